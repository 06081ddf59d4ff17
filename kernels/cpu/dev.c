/* A device: one instruction set, its threads, and reservations of memory. */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/kinds.h"
#include "kernels/linear.h"
#include "kernels/moe.h"

#define HUGE_PAGE ((size_t)2 << 20)

struct reservation {
	struct reservation *next;
	void *at, *mapped;
	size_t bytes, mapped_bytes;
	_Atomic size_t backed_bytes; /* looked at by any thread */
	char name[DEV_NAME_MAX];
};

/*
 * AMD's cores from Zen 4 on, those with AVX-512, read one run ahead best (measured: Zen 4, a
 * thread with memory for 31 GB/s): int4 at all of that instead of 0.58 of it, bf16 at all instead
 * of 0.96 and with AVX2 at 0.91 instead of 0.80. Those before do not (Zen 3, a thread with memory
 * for 21 GB/s): int4 at 0.73 of that instead of 0.98, bf16 at 0.85 instead of all.
 */
static bool reads_runs_best(void)
{
#if defined(__x86_64__)
	__builtin_cpu_init();
	return __builtin_cpu_is("amd") && __builtin_cpu_supports("avx512f");
#else
	return false;
#endif
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

	if (!isa_supported(isa))
		return -ENOTSUP;
	dev = calloc(1, sizeof(*dev));
	if (!dev)
		return -ENOMEM;
	r = pool_new(n_threads, rank, n_ranks, &dev->pool);
	if (r < 0) {
		free(dev);
		return r;
	}
	dev->isa = isa;
	dev->n_threads = pool_threads(dev->pool);
	dev->linear = linear_kernels_of(isa);
	dev->in_turn = reads_runs_best();
	*ret = dev;
	return 0;
}

struct dev *dev_close(struct dev *dev)
{
	struct reservation *res, *next;

	if (!dev)
		return NULL;
	pool_free(dev->pool);
	for (res = dev->reservations; res; res = next) {
		next = res->next;
		munmap(res->mapped, res->mapped_bytes);
		free(res);
	}
	free(dev);
	return NULL;
}

const char *dev_lost(void)
{
	return NULL;
}

/* A lack of memory or threads is for strerror(). */
const char *dev_why(void)
{
	return "this processor cannot";
}

const char *dev_name(const struct dev *dev)
{
	return isa_name(dev->isa);
}

const char *dev_product(const struct dev *dev)
{
	(void)dev;
	return NULL;
}

bool dev_is_host(const struct dev *dev)
{
	(void)dev;
	return true;
}

int dev_write(struct dev *dev, void *to, const void *from, size_t bytes)
{
	(void)dev;
	memcpy(to, from, bytes);
	return 0;
}

int dev_pin(struct dev *dev, void *host, size_t bytes)
{
	(void)dev, (void)host, (void)bytes;
	return 0;
}

void dev_unpin(struct dev *dev, void *host)
{
	(void)dev, (void)host;
}

enum isa dev_isa(const struct dev *dev)
{
	return dev->isa;
}

uint32_t dev_threads(const struct dev *dev)
{
	return dev->n_threads;
}

enum dtype dev_kv_type(const struct dev *dev)
{
	return dev->isa == ISA_REF ? DT_F32 : DT_BF16;
}

/* A large reservation begins where a huge page can. */
void *dev_reserve_named(struct dev *dev, const char *name, size_t bytes, size_t chunk_bytes)
{
	struct reservation *res = calloc(1, sizeof(*res));
	const size_t align = bytes >= HUGE_PAGE ? HUGE_PAGE : 1;

	(void)chunk_bytes;
	if (!res)
		return NULL;
	res->bytes = bytes ? bytes : 1;
	res->mapped_bytes = res->bytes > SIZE_MAX - align ? SIZE_MAX : res->bytes + align - 1;
	res->mapped = mmap(NULL, res->mapped_bytes, PROT_NONE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (res->mapped == MAP_FAILED) {
		free(res);
		return NULL;
	}
	res->at = (void *)(((uintptr_t)res->mapped + align - 1) & ~(align - 1));
	snprintf(res->name, sizeof(res->name), "%s", name);
	res->next = atomic_load(&dev->reservations);
	atomic_store(&dev->reservations, res);
	return res->at;
}

static struct reservation *find(const struct dev *dev, const void *at, size_t bytes)
{
	for (struct reservation *res = dev->reservations; res; res = res->next) {
		const size_t from = (uintptr_t)at - (uintptr_t)res->at;

		if ((uintptr_t)at >= (uintptr_t)res->at && from <= res->bytes &&
		    bytes <= res->bytes - from)
			return res;
	}
	return NULL;
}

static bool is_reserved(const struct dev *dev, const void *at, size_t bytes)
{
	return find(dev, at, bytes);
}

static int remap(const struct dev *dev, void *at, size_t bytes, int prot, int flags)
{
	if (!bytes)
		return 0;
	if (!is_reserved(dev, at, bytes))
		return -EINVAL;
	if (mmap(at, bytes, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | flags, -1, 0) ==
	    MAP_FAILED)
		return -ENOMEM;
	return 0;
}

int dev_back(struct dev *dev, void *at, size_t bytes)
{
	const int r = remap(dev, at, bytes, PROT_READ | PROT_WRITE, 0);

	if (r == 0 && bytes) {
		(void)madvise(at, bytes, MADV_HUGEPAGE); /* a kernel without them works too */
		find(dev, at, bytes)->backed_bytes += bytes;
	}
	return r;
}

int dev_unback(struct dev *dev, void *at, size_t bytes)
{
	struct reservation *res = find(dev, at, bytes);
	const int r = remap(dev, at, bytes, PROT_NONE, MAP_NORESERVE);

	if (r == 0 && bytes)
		res->backed_bytes -= bytes < res->backed_bytes ? bytes : res->backed_bytes;
	return r;
}

void dev_set_serving(struct dev *dev, bool serving)
{
	(void)dev, (void)serving;
}

int dev_sense(struct dev *dev, struct dev_sensors *ret, char *ret_why, size_t why_bytes)
{
	(void)dev, (void)ret;
	snprintf(ret_why, why_bytes, "a processor is not asked");
	return -ENOTSUP;
}

/* Nobody counts the kernel's calls, nor does it refuse. */
uint32_t dev_look(struct dev *dev, struct dev_memory *ret, struct dev_region *ret_regions,
		  uint32_t room)
{
	uint32_t n = 0;

	*ret = (struct dev_memory){ 0 };
	for (const struct reservation *res = dev->reservations; res; res = res->next) {
		struct dev_region region = { .bytes = res->bytes,
					     .chunk_bytes = (uint64_t)sysconf(_SC_PAGESIZE),
					     .backed_bytes = res->backed_bytes };

		memcpy(region.name, res->name, sizeof(region.name));
		ret->reserved_bytes += region.bytes;
		ret->taken_bytes += region.backed_bytes;
		if (n < room)
			ret_regions[n++] = region;
	}
	for (uint32_t i = 0; i < n / 2; i++) { /* the newest is the first in the list */
		const struct dev_region other = ret_regions[i];

		ret_regions[i] = ret_regions[n - 1 - i];
		ret_regions[n - 1 - i] = other;
	}
	return n;
}

int dev_seal(struct dev *dev, void *at, size_t bytes)
{
	if (!bytes)
		return 0;
	if (!is_reserved(dev, at, bytes))
		return -EINVAL;
	return mprotect(at, bytes, PROT_READ) < 0 ? -errno : 0;
}

void dev_run(struct dev *dev, pool_fn run, void *userdata)
{
	pool_run(dev, run, userdata);
}

void dev_settle(const struct dev *dev, uint32_t index)
{
	pool_settle(dev->pool, index);
}

size_t op_scratch(const struct dev *dev, const struct op_limits *limits)
{
	const size_t matrices = matrix_scratch(dev, limits);
	const size_t rest = ops_scratch(dev->n_threads, limits);

	return matrices > rest ? matrices : rest;
}
