/* The runtime's calls. Errors stick, as on a device, until cuemu_forget(). */
#include <atomic>
#include <map>
#include <mutex>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <vector>

#include <cuda_runtime.h>

#include "tests/cuemu/parts.h"

#define NEVER_WRITTEN 0xff /* NaN, or an index far out, for whatever reads it */
#define SHARED_PER_BLOCK (48 * 1024)
#define SHARED_STATIC (16 * 1024) /* it cannot be seen: what a kernel may have of it */

typedef std::function<cudaError_t()> work;

struct CUgraph_st {
	std::vector<work> list;
};
struct CUstream_st {
	CUgraph_st *capture;
	int device;
};
struct CUevent_st {
	struct timespec at;
};

static std::recursive_mutex lock; /* one kernel at a time; and guards what follows */
static std::map<const void *, int> shared_allowed;
static std::map<void *, size_t> sizes;
static cudaError_t last_error;
static thread_local int current; /* the thread's device */

/* There is one, or as many as the environment says; they share the memory, and are one at faults. */
static int devices(void)
{
	const char *n = getenv("CUEMU_DEVICES");

	return n ? atoi(n) : 1;
}

static std::atomic<uint64_t> n_launches, n_allocations;

void allocation_count(void)
{
	n_allocations++;
}

void cuemu_calls(uint64_t *ret_launches, uint64_t *ret_allocations)
{
	*ret_launches = n_launches;
	*ret_allocations = n_allocations;
}

static cudaError_t say(cudaError_t error)
{
	if (error != cudaSuccess)
		last_error = error;
	return error;
}

static cudaError_t state(void)
{
	return fault_happened() ? cudaErrorIllegalAddress : cudaSuccess;
}

static cudaError_t queue(cudaStream_t stream, work w)
{
	std::lock_guard<std::recursive_mutex> hold(lock);

	if (stream && stream->device != current)
		return say(cudaErrorInvalidResourceHandle);

	if (stream && stream->capture) {
		stream->capture->list.push_back(w);
		return cudaSuccess;
	}
	enum trouble trouble;

	while ((trouble = trouble_now()) == TROUBLE_HANG)
		usleep(10000);
	if (trouble == TROUBLE_LOST || trouble == TROUBLE_FAIL)
		fault_note("the device is lost");
	if (fault_happened())
		return say(cudaErrorIllegalAddress);
	return say(w());
}

cudaError_t cuemu_function_set(const void *function, enum cudaFuncAttribute attribute, int value)
{
	std::lock_guard<std::recursive_mutex> hold(lock);

	if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
		if (value < 0 || value > SHARED_MAX)
			return say(cudaErrorInvalidValue);
		shared_allowed[function] = value;
	}
	return state();
}

static void run_body(void *closure)
{
	(*(std::function<void()> *)closure)();
}

cudaError_t cuemu_launch(const cudaLaunchConfig_t *config, const void *kernel,
			 std::function<void()> body)
{
	std::lock_guard<std::recursive_mutex> hold(lock);
	const dim3 grid = config->gridDim, dim = config->blockDim;
	const size_t shared_bytes = config->dynamicSmemBytes;
	auto allowed = shared_allowed.find(kernel);
	bool pdl = false;

	if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > 65535 ||
	    grid.z > 65535 || dim.x == 0 || dim.y == 0 || dim.z == 0 || dim.z > 64 ||
	    (uint64_t)dim.x * dim.y * dim.z > THREADS_MAX)
		return say(cudaErrorInvalidConfiguration);
	if (shared_bytes > (allowed == shared_allowed.end() ? SHARED_PER_BLOCK - SHARED_STATIC :
							      (size_t)allowed->second) &&
	    shared_bytes > SHARED_PER_BLOCK - SHARED_STATIC)
		return say(cudaErrorInvalidValue);
	for (unsigned i = 0; i < config->numAttrs; i++)
		if (config->attrs[i].id == cudaLaunchAttributeProgrammaticStreamSerialization)
			pdl = config->attrs[i].val.programmaticStreamSerializationAllowed;

	return queue(config->stream, [=]() mutable {
		n_launches++;
		return blocks_run_all(grid, dim, shared_bytes, pdl, run_body, &body, sizeof(body)) ?
			       cudaSuccess :
			       cudaErrorIllegalAddress;
	});
}

cudaError_t cuemu_malloc(void **ret, size_t bytes)
{
	allocation_count();
	std::lock_guard<std::recursive_mutex> hold(lock);
	void *at;

	*ret = NULL;
	if (bytes == 0)
		return state();
	if (!memory_charge(bytes))
		return say(cudaErrorMemoryAllocation);
	at = memory_reserve(bytes, 256);
	if (!at) {
		memory_discharge(bytes);
		return say(cudaErrorMemoryAllocation);
	}
	memory_map(at, bytes);
	memset(at, NEVER_WRITTEN, bytes);
	sizes[at] = bytes;
	*ret = at;
	return state();
}

cudaError_t cudaFree(void *at)
{
	allocation_count();
	std::lock_guard<std::recursive_mutex> hold(lock);
	auto it = sizes.find(at);

	if (!at)
		return state();
	if (it == sizes.end())
		return say(cudaErrorInvalidValue);
	memory_give(at);
	memory_discharge(it->second);
	sizes.erase(it);
	memory_host_waited();
	return state();
}

cudaError_t cudaFreeAsync(void *at, cudaStream_t)
{
	return cudaFree(at);
}

cudaError_t cuemu_malloc_host(void **ret, size_t bytes)
{
	allocation_count();
	void *at = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);

	if (!at)
		return say(cudaErrorMemoryAllocation);
	memory_pin(at, bytes);
	*ret = at;
	return state();
}

cudaError_t cudaFreeHost(void *at)
{
	allocation_count();
	if (!at)
		return cudaSuccess;
	if (!memory_unpin(at))
		return say(cudaErrorInvalidValue);
	free(at);
	return state();
}

cudaError_t cudaHostRegister(void *at, size_t bytes, unsigned)
{
	allocation_count();
	memory_pin(at, bytes);
	return state();
}

cudaError_t cudaHostUnregister(void *at)
{
	return memory_unpin(at) ? state() : say(cudaErrorHostMemoryNotRegistered);
}

/* Memory of another device is out of the thread's device's reach. */
static bool is_within_reach(const void *at)
{
	const int owner = memory_owner(at);

	return owner < 0 || owner == current;
}

static bool direction_fits(const void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
	const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
	const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;

	if (kind == cudaMemcpyDefault)
		return true;
	return memory_is_device(to, bytes) == to_device &&
	       memory_is_device(from, bytes) == from_device;
}

static cudaError_t copy_rows(void *to, size_t to_pitch, const void *from, size_t from_pitch,
			     size_t width, size_t rows, enum cudaMemcpyKind kind)
{
	if (width > to_pitch || width > from_pitch)
		return cudaErrorInvalidValue;
	for (size_t i = 0; width > 0 && i < rows; i++) {
		char *to_row = (char *)to + i * to_pitch;
		const char *from_row = (const char *)from + i * from_pitch;

		if (!direction_fits(to_row, from_row, width, kind) || !is_within_reach(to_row) ||
		    !is_within_reach(from_row)) {
			fault_note("a copy of %zu bytes from %p to %p is not of the kind %d", width,
				   (const void *)from_row, (void *)to_row, kind);
			return cudaErrorInvalidValue;
		}
		memmove(to_row, from_row, width);
	}
	return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
			      size_t width, size_t rows, enum cudaMemcpyKind kind,
			      cudaStream_t stream)
{
	return queue(stream, [=]() {
		return copy_rows(to, to_pitch, from, from_pitch, width, rows, kind);
	});
}

cudaError_t cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch,
			 size_t width, size_t rows, enum cudaMemcpyKind kind)
{
	memory_host_waited();
	return cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, width, rows, kind, 0);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
			    cudaStream_t stream)
{
	return queue(stream, [=]() { return copy_rows(to, bytes, from, bytes, bytes, 1, kind); });
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
	memory_host_waited();
	return cudaMemcpyAsync(to, from, bytes, kind, 0);
}

cudaError_t cudaMemsetAsync(void *at, int value, size_t bytes, cudaStream_t stream)
{
	return queue(stream, [=]() {
		if (!memory_is_device(at, bytes) || !is_within_reach(at)) {
			fault_note("%zu bytes at %p are not memory of the device", bytes, at);
			return cudaErrorInvalidValue;
		}
		if (value == 0)
			memory_zero(at, bytes);
		else
			memset(at, value, bytes);
		return cudaSuccess;
	});
}

cudaError_t cudaMemset(void *at, int value, size_t bytes)
{
	return cudaMemsetAsync(at, value, bytes, 0);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *ret, unsigned)
{
	*ret = new CUstream_st();
	(*ret)->device = current;
	return state();
}

cudaError_t cudaStreamCreate(cudaStream_t *ret)
{
	return cudaStreamCreateWithFlags(ret, 0);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *ret, unsigned flags, int)
{
	return cudaStreamCreateWithFlags(ret, flags);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
	if (stream)
		delete stream->capture; /* that nobody ended */
	delete stream;
	return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t)
{
	memory_host_waited();
	return say(state());
}

cudaError_t cudaDeviceSynchronize(void)
{
	memory_host_waited();
	return say(state());
}

cudaError_t cudaStreamQuery(cudaStream_t)
{
	return say(state());
}

cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned)
{
	return state();
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t fn, void *userdata)
{
	return queue(stream, [=]() {
		fn(userdata);
		return cudaSuccess;
	});
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *ret, unsigned)
{
	*ret = new CUevent_st();
	return state();
}

cudaError_t cudaEventCreate(cudaEvent_t *ret)
{
	return cudaEventCreateWithFlags(ret, 0);
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
	delete event;
	return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
	return queue(stream, [=]() {
		clock_gettime(CLOCK_MONOTONIC, &event->at);
		return cudaSuccess;
	});
}

cudaError_t cudaEventSynchronize(cudaEvent_t)
{
	memory_host_waited();
	return say(state());
}

cudaError_t cudaEventQuery(cudaEvent_t)
{
	return say(state());
}

cudaError_t cudaEventElapsedTime(float *ret_ms, cudaEvent_t from, cudaEvent_t to)
{
	*ret_ms = (float)(to->at.tv_sec - from->at.tv_sec) * 1e3f +
		  (float)(to->at.tv_nsec - from->at.tv_nsec) / 1e6f;
	return state();
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode)
{
	if (!stream || stream->capture)
		return say(cudaErrorInvalidValue);
	stream->capture = new CUgraph_st();
	return state();
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *ret)
{
	if (!stream || !stream->capture)
		return say(cudaErrorInvalidValue);
	*ret = stream->capture;
	stream->capture = NULL;
	return state();
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *ret)
{
	*ret = stream && stream->capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
	return state();
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *ret, cudaGraph_t graph, unsigned long long)
{
	allocation_count();
	*ret = new CUgraph_st(*graph);
	return state();
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t)
{
	return state();
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream)
{
	for (const work &w : graph->list) {
		const cudaError_t error = queue(stream, w);

		if (error != cudaSuccess)
			return error;
	}
	return state();
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *, size_t *n)
{
	*n = graph->list.size();
	return state();
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
	delete graph;
	return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph)
{
	delete graph;
	return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *ret)
{
	*ret = trouble_now() != TROUBLE_LOST ? devices() : 0;
	return *ret ? cudaSuccess : cudaErrorNoDevice;
}

cudaError_t cudaSetDevice(int device)
{
	if (trouble_now() == TROUBLE_ECC)
		return say(cudaErrorECCUncorrectable);
	if (device < 0 || device >= devices())
		return say(cudaErrorInvalidDevice);
	current = device;
	return state();
}

cudaError_t cudaGetDevice(int *ret)
{
	*ret = current;
	return state();
}

cudaError_t cudaSetDeviceFlags(unsigned)
{
	return state();
}

cudaError_t cudaInitDevice(int device, unsigned, unsigned)
{
	return cudaSetDevice(device);
}

cudaError_t cudaDeviceReset(void)
{
	return state();
}

cudaError_t cudaDeviceGetAttribute(int *ret, enum cudaDeviceAttr attribute, int device)
{
	if (device < 0 || device >= devices())
		return say(cudaErrorInvalidDevice);
	switch (attribute) {
	case cudaDevAttrMaxThreadsPerBlock: *ret = THREADS_MAX; break;
	case cudaDevAttrMaxSharedMemoryPerBlock: *ret = SHARED_PER_BLOCK; break;
	case cudaDevAttrMultiProcessorCount: *ret = 4; break;
	case cudaDevAttrL2CacheSize: *ret = 50 << 20; break;
	case cudaDevAttrMaxThreadsPerMultiProcessor: *ret = 2048; break;
	case cudaDevAttrComputeCapabilityMajor: *ret = __CUDA_ARCH__ / 100; break;
	case cudaDevAttrComputeCapabilityMinor: *ret = __CUDA_ARCH__ / 10 % 10; break;
	case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *ret = SHARED_MAX + 1024; break;
	case cudaDevAttrMaxSharedMemoryPerBlockOptin: *ret = SHARED_MAX; break;
	default: return say(cudaErrorInvalidValue);
	}
	return state();
}

cudaError_t cudaDeviceGetPCIBusId(char *ret, int size, int device)
{
	snprintf(ret, (size_t)size, "0000:%02x:00.0", 0x65 + device);
	return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *ret, int device)
{
	if (device < 0 || device >= devices())
		return say(cudaErrorInvalidDevice);
	*ret = {};
	strcpy(ret->name, "emulated");
	ret->totalGlobalMem = memory_bytes();
	ret->sharedMemPerBlock = SHARED_PER_BLOCK;
	ret->sharedMemPerBlockOptin = SHARED_MAX;
	ret->sharedMemPerMultiprocessor = SHARED_MAX + 1024;
	ret->warpSize = WARP;
	ret->maxThreadsPerBlock = THREADS_MAX;
	ret->maxThreadsPerMultiProcessor = 2048;
	ret->major = __CUDA_ARCH__ / 100;
	ret->minor = __CUDA_ARCH__ / 10 % 10;
	ret->multiProcessorCount = 4;
	ret->l2CacheSize = 50 << 20;
	return state();
}

cudaError_t cudaDriverGetVersion(int *ret)
{
	*ret = CUDART_VERSION;
	return state();
}

cudaError_t cudaRuntimeGetVersion(int *ret)
{
	*ret = CUDART_VERSION;
	return state();
}

cudaError_t cudaMemGetInfo(size_t *ret_free, size_t *ret_total)
{
	*ret_free = memory_left();
	*ret_total = memory_bytes();
	return state();
}

cudaError_t cudaGetLastError(void)
{
	const cudaError_t error = fault_happened() ? cudaErrorIllegalAddress : last_error;

	last_error = cudaSuccess;
	return error;
}

cudaError_t cudaPeekAtLastError(void)
{
	return fault_happened() ? cudaErrorIllegalAddress : last_error;
}

const char *cudaGetErrorString(cudaError_t error)
{
	if (error == cudaErrorIllegalAddress && cuemu_fault())
		return cuemu_fault();
	return error == cudaSuccess ? "no error" : "an error of the emulator";
}

const char *cudaGetErrorName(cudaError_t error)
{
	return error == cudaSuccess ? "cudaSuccess" : "cudaError";
}
