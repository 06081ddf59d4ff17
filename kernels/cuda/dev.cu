/* A device: of the GPUs that the process may see the one of the rank's number, host threads for loading, and memory. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/memory.h"
extern "C" {
#include "kernels/cuda/nvml.h"
}

#define SM_MIN 80
#define THREADS_MAX 256
#define THREADS_WANTED 8 /* that a load is quick with */

static thread_local const char *why = "no error";

bool isa_supported(enum isa isa)
{
	int n;

	return isa == ISA_CUDA && cudaGetDeviceCount(&n) == cudaSuccess && n > 0;
}

enum isa isa_best(void)
{
	return ISA_CUDA;
}

const char *dev_why(void)
{
	return why;
}

const char *dev_lost(void)
{
	return calls_lost() ? calls_why() : NULL;
}

static int attribute(const struct dev *dev, cudaDeviceAttr which, int *ret)
{
	return CUDA_CALL(cudaDeviceGetAttribute(ret, which, dev->ordinal));
}

static int describe(struct dev *dev)
{
	int major, minor, n_sm, shared, l2;
	struct cudaDeviceProp prop;
	int r;

	if ((r = attribute(dev, cudaDevAttrComputeCapabilityMajor, &major)) < 0 ||
	    (r = attribute(dev, cudaDevAttrComputeCapabilityMinor, &minor)) < 0 ||
	    (r = attribute(dev, cudaDevAttrMultiProcessorCount, &n_sm)) < 0 ||
	    (r = attribute(dev, cudaDevAttrMaxSharedMemoryPerBlockOptin, &shared)) < 0 ||
	    (r = attribute(dev, cudaDevAttrL2CacheSize, &l2)) < 0 ||
	    (r = CUDA_CALL(cudaGetDeviceProperties(&prop, dev->ordinal))) < 0 ||
	    (r = CUDA_CALL(cudaDeviceGetPCIBusId(dev->bus_id, sizeof(dev->bus_id), dev->ordinal))) < 0)
		return r;
	dev->sm = major * 10 + minor;
	dev->n_sm = n_sm;
	dev->shared_max = shared;
	dev->l2_bytes = l2;
	dev->pdl = dev->sm >= 90;
	snprintf(dev->name, sizeof(dev->name), "cuda sm_%d", dev->sm);
	snprintf(dev->product, sizeof(dev->product), "%s", prop.name);
	if (dev->sm < SM_MIN) {
		why = "the GPU's compute capability is below 8.0";
		return -ENODEV;
	}
	return 0;
}

/* @wanted by one of @n_ranks; 0: its share */
static uint32_t host_threads(uint32_t wanted, uint32_t n_ranks)
{
	const long n = sysconf(_SC_NPROCESSORS_ONLN);

	if (wanted == 0) {
		wanted = n < 1 ? 1 : n < THREADS_WANTED ? (uint32_t)n : THREADS_WANTED;
		wanted = wanted > n_ranks ? wanted / n_ranks : 1;
	}
	return wanted < THREADS_MAX ? wanted : THREADS_MAX;
}

static int open_device(struct dev *dev)
{
	int n, r;

	/* kernels are loaded now and not while a step is recorded */
	setenv("CUDA_MODULE_LOADING", "EAGER", 0);
	if (cudaDriverGetVersion(&n) != cudaSuccess || n == 0) {
		why = "no NVIDIA driver is loaded";
		return -ENODEV;
	}
	r = CUDA_CALL(cudaGetDeviceCount(&n));
	if (r < 0 || n == 0) {
		why = r < 0 ? calls_why() : "no GPU is visible";
		return -ENODEV;
	}
	/* said by rank 0 too, whoever's device is wanting */
	if ((uint32_t)n < dev->n_ranks) {
		why = "fewer GPUs are visible than Ranks= asks for";
		return -ENODEV;
	}
	r = CUDA_CALL(cudaSetDevice(dev->ordinal));
	if (r == 0)
		r = CUDA_CALL(cudaFree(NULL)); /* makes the context */
	if (r == 0)
		r = describe(dev);
	if (r == 0)
		r = memory_new(dev->ordinal, &dev->memory);
	if (r == -EIO)
		why = calls_why();
	return r;
}

int dev_open(enum isa isa, uint32_t n_threads, struct dev **ret)
{
	return dev_open_rank(isa, n_threads, 0, 1, ret);
}

int dev_open_rank(enum isa isa, uint32_t n_threads, uint32_t rank, uint32_t n_ranks,
		  struct dev **ret)
{
	struct dev *dev;
	int r;

	if (isa != ISA_CUDA) {
		why = "this executor computes on GPUs alone";
		return -ENOTSUP;
	}
	dev = (struct dev *)calloc(1, sizeof(*dev));
	if (!dev)
		return -ENOMEM;
	dev->ordinal = (int)rank;
	dev->n_ranks = n_ranks;
	dev->n_threads = host_threads(n_threads, n_ranks);
	r = open_device(dev);
	if (r < 0) {
		dev_close(dev);
		return r;
	}
	*ret = dev;
	return 0;
}

struct dev *dev_close(struct dev *dev)
{
	if (!dev)
		return NULL;
	memory_free(dev->memory);
	free(dev);
	return NULL;
}

enum isa dev_isa(const struct dev *dev)
{
	(void)dev;
	return ISA_CUDA;
}

const char *dev_name(const struct dev *dev)
{
	return dev->name;
}

const char *dev_product(const struct dev *dev)
{
	return dev->product;
}

bool dev_is_host(const struct dev *dev)
{
	(void)dev;
	return false;
}

uint32_t dev_threads(const struct dev *dev)
{
	return dev->n_threads;
}

enum dtype dev_kv_type(const struct dev *dev)
{
	(void)dev;
	return DT_BF16;
}

void *dev_reserve_named(struct dev *dev, const char *name, size_t bytes, size_t chunk_bytes)
{
	return memory_reserve(dev->memory, name, bytes, chunk_bytes);
}

void dev_set_serving(struct dev *dev, bool serving)
{
	memory_set_serving(dev->memory, serving);
}

uint32_t dev_look(struct dev *dev, struct dev_memory *ret, struct dev_region *ret_regions, uint32_t room)
{
	return memory_look(dev->memory, ret, ret_regions, room);
}

int dev_back(struct dev *dev, void *at, size_t bytes)
{
	const struct on_device own(dev);

	return memory_back(dev->memory, at, bytes);
}

int dev_unback(struct dev *dev, void *at, size_t bytes)
{
	const struct on_device own(dev);

	return memory_unback(dev->memory, at, bytes);
}

int dev_seal(struct dev *dev, void *at, size_t bytes)
{
	const struct on_device own(dev);

	return memory_seal(dev->memory, at, bytes);
}

int dev_sense(struct dev *dev, struct dev_sensors *ret, char *ret_why, size_t why_bytes)
{
	struct nvml_facts facts;
	const int r = nvml_read(dev->bus_id, &facts, ret_why, why_bytes);

	static_assert((int)DEV_SENSES_MEMORY == NVML_KNOWS_MEMORY && (int)DEV_SENSES_POWER == NVML_KNOWS_POWER &&
			      (int)DEV_SENSES_LIMIT == NVML_KNOWS_LIMIT &&
			      (int)DEV_SENSES_TEMPERATURE == NVML_KNOWS_TEMPERATURE,
		      "the same bits");
	if (r < 0)
		return r;
	*ret = { facts.known,	      facts.power_mw,	 facts.power_limit_mw,
		 facts.temperature_c, facts.total_bytes, facts.free_bytes };
	return 0;
}

int dev_write(struct dev *dev, void *to, const void *from, size_t bytes)
{
	const struct on_device own(dev);
	int r;

	if (!bytes)
		return 0;
	r = CUDA_CALL(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
	/* it returns when the bytes are staged; our streams do not wait for the rest of it */
	return r < 0 ? r : CUDA_CALL(cudaStreamSynchronize(0));
}

int dev_pin(struct dev *dev, void *host, size_t bytes)
{
	cudaError_t due, error;

	(void)dev;
	error = calls_due(&due) ? due : cudaHostRegister(host, bytes, cudaHostRegisterPortable);
	if (error == cudaSuccess)
		return 0;
	(void)cudaGetLastError();
	return error == cudaErrorMemoryAllocation ? -ENOMEM : -ENOTSUP; /* no harm done */
}

void dev_unpin(struct dev *dev, void *host)
{
	(void)dev;
	(void)cudaHostUnregister(host);
	(void)cudaGetLastError(); /* it was not pinned */
}

struct turn {
	void (*run)(void *userdata, uint32_t thread, uint32_t n_threads);
	void *userdata;
	uint32_t thread, n_threads;
	pthread_t id;
};

static void *take_turn(void *userdata)
{
	struct turn *t = (struct turn *)userdata;

	t->run(t->userdata, t->thread, t->n_threads);
	return NULL;
}

/* The calling thread also takes the numbers of those that could not be started. */
void dev_run(struct dev *dev, void (*run)(void *userdata, uint32_t thread, uint32_t n_threads),
	     void *userdata)
{
	const uint32_t n = dev->n_threads;
	struct turn turns[THREADS_MAX];
	uint32_t started = 1;

	for (uint32_t i = 0; i < n; i++)
		turns[i] = { run, userdata, i, n, pthread_t() };
	while (started < n &&
	       pthread_create(&turns[started].id, NULL, take_turn, &turns[started]) == 0)
		started++;
	run(userdata, 0, n);
	for (uint32_t i = started; i < n; i++)
		run(userdata, i, n);
	while (started > 1)
		pthread_join(turns[--started].id, NULL);
}

/* A new thread's device is the first one until it says otherwise. */
void dev_settle(const struct dev *dev, uint32_t index)
{
	(void)index;
	(void)cudaSetDevice(dev->ordinal);
}
