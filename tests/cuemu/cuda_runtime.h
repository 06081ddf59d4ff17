/*
 * The part of CUDA's runtime that steamd uses, on the CPU: see cuemu.h. Streams
 * do at once what is queued on them, unless they are being captured.
 */
#pragma once

#include <functional>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "tests/cuemu/device.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
/* one block at a time runs on a thread of the host; its shadow finds these as thread-local ones */
#define __shared__ static thread_local
#ifndef __CUDA_ARCH__
#define __CUDA_ARCH__ 900
#endif
#define CUDART_VERSION 13000
#define CUDART_CB
#define CUDART_INF_F __builtin_inff()

#define VECTOR(type, name, align2, align4)                                                         \
	struct name##2 { type x, y; } __attribute__((aligned(align2)));                            \
	struct name##4 { type x, y, z, w; } __attribute__((aligned(align4)));                      \
	static inline name##2 make_##name##2(type x, type y) { return { x, y }; }                  \
	static inline name##4 make_##name##4(type x, type y, type z, type w)                       \
	{                                                                                          \
		return { x, y, z, w };                                                             \
	}
VECTOR(float, float, 8, 16)
VECTOR(unsigned, uint, 8, 16)
VECTOR(int, int, 8, 16)
VECTOR(unsigned short, ushort, 4, 8)
VECTOR(unsigned char, uchar, 2, 4)
#undef VECTOR
struct float3 { float x, y, z; };
struct double2 { double x, y; } __attribute__((aligned(16)));
static inline float3 make_float3(float x, float y, float z) { return { x, y, z }; }
static inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return { x, y, z }; }

/* Of the thread that reads them: constant for as long as its kernel runs. */
extern const uint3 threadIdx __asm__("cuemu_thread_idx");
extern const uint3 blockIdx __asm__("cuemu_block_idx");
extern const dim3 blockDim __asm__("cuemu_block_dim");
extern const dim3 gridDim __asm__("cuemu_grid_dim");
static const int warpSize = 32;

/* Meetings. */
#define __syncthreads() ((void)cuemu_barrier(0, 0, CUEMU_TALLY_NONE, false))
static inline int __syncthreads_count(int p) { return (int)cuemu_barrier(0, 0, CUEMU_TALLY_COUNT, p != 0); }
static inline int __syncthreads_or(int p) { return (int)cuemu_barrier(0, 0, CUEMU_TALLY_OR, p != 0); }
static inline int __syncthreads_and(int p) { return (int)cuemu_barrier(0, 0, CUEMU_TALLY_AND, p != 0); }
static inline void __syncwarp(unsigned mask = 0xffffffffu) { cuemu_syncwarp(mask); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline void __threadfence_system() {}

template <typename T> static inline uint64_t cuemu_bits(T value)
{
	uint64_t bits = 0;

	static_assert(sizeof(T) <= 8, "a shuffle moves 8 bytes at most");
	memcpy(&bits, &value, sizeof(T));
	return bits;
}

template <typename T> static inline T cuemu_value(uint64_t bits)
{
	T value;

	memcpy(&value, &bits, sizeof(T));
	return value;
}

/* @step: lanes from the own one, within groups of @width; out of them it is the own value. */
template <typename T>
static inline T cuemu_shuffle(unsigned mask, const char *what, T value, int width, int kind, int arg)
{
	uint64_t all[32];
	const uint32_t lane = cuemu_gather(mask, what, cuemu_bits(value), all);
	const int first = (int)lane / width * width;
	int from = (int)lane;

	if (kind == 0)
		from = first + (arg & (width - 1));
	if (kind == 1)
		from = (int)lane - arg < first ? (int)lane : (int)lane - arg;
	if (kind == 2)
		from = (int)lane + arg >= first + width ? (int)lane : (int)lane + arg;
	if (kind == 3)
		from = ((int)lane ^ arg) >= first + width ? (int)lane : (int)lane ^ arg;
	if (!(mask >> from & 1))
		cuemu_trap("a shuffle from a lane that is not in the mask");
	return cuemu_value<T>(all[from]);
}

template <typename T> static inline T __shfl_sync(unsigned mask, T v, int lane, int width = 32)
{
	return cuemu_shuffle(mask, "__shfl_sync()", v, width, 0, lane);
}
template <typename T> static inline T __shfl_up_sync(unsigned mask, T v, unsigned n, int width = 32)
{
	return cuemu_shuffle(mask, "__shfl_up_sync()", v, width, 1, (int)n);
}
template <typename T> static inline T __shfl_down_sync(unsigned mask, T v, unsigned n, int width = 32)
{
	return cuemu_shuffle(mask, "__shfl_down_sync()", v, width, 2, (int)n);
}
template <typename T> static inline T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32)
{
	return cuemu_shuffle(mask, "__shfl_xor_sync()", v, width, 3, bits);
}

static inline unsigned __ballot_sync(unsigned mask, int p)
{
	uint64_t all[32];
	unsigned ballot = 0;

	cuemu_gather(mask, "a vote", p != 0, all);
	for (int i = 0; i < 32; i++)
		ballot |= (unsigned)all[i] << i;
	return ballot;
}
static inline int __any_sync(unsigned mask, int p) { return __ballot_sync(mask, p) != 0; }
static inline int __all_sync(unsigned mask, int p) { return __ballot_sync(mask, p) == mask; }
template <typename T> static inline unsigned __match_any_sync(unsigned mask, T v)
{
	uint64_t all[32];
	const uint32_t lane = cuemu_gather(mask, "__match_any_sync()", cuemu_bits(v), all);
	unsigned same = 0;

	for (int i = 0; i < 32; i++)
		same |= (unsigned)((mask >> i & 1) && all[i] == all[lane]) << i;
	return same;
}

template <typename T, typename F>
static inline T cuemu_reduce(unsigned mask, const char *what, T v, F f)
{
	uint64_t all[32];
	const uint32_t lane = cuemu_gather(mask, what, cuemu_bits(v), all);

	(void)lane;
	for (int i = 0, first = 1; i < 32; i++) {
		if (!(mask >> i & 1))
			continue;
		v = first ? cuemu_value<T>(all[i]) : f(v, cuemu_value<T>(all[i]));
		first = 0;
	}
	return v;
}
#define REDUCE(name, type, expression)                                                             \
	static inline type name(unsigned mask, type v)                                             \
	{                                                                                          \
		return cuemu_reduce(mask, #name "()", v,                                           \
				    [](type a, type b) -> type { return expression; });            \
	}
REDUCE(__reduce_add_sync, unsigned, a + b)
REDUCE(__reduce_add_sync, int, a + b)
REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
REDUCE(__reduce_min_sync, int, a < b ? a : b)
REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
REDUCE(__reduce_max_sync, int, a > b ? a : b)
REDUCE(__reduce_or_sync, unsigned, a | b)
REDUCE(__reduce_and_sync, unsigned, a & b)
REDUCE(__reduce_xor_sync, unsigned, a ^ b)
#undef REDUCE

/* Atomic operations: a fiber is not interrupted, so a plain load and store are one. */
template <typename T, typename F>
__attribute__((no_sanitize("thread"), noinline)) static T cuemu_change(T *at, F f)
{
	T before;

	cuemu_atomic(at, sizeof(*at));
	before = *at;
	*at = f(before);
	return before;
}
template <typename T> struct cuemu_same { typedef T type; };
#define ATOMIC(name, expression)                                                                   \
	template <typename T> static inline T name(T *at, typename cuemu_same<T>::type v)          \
	{                                                                                          \
		return cuemu_change(at, [v](T old) -> T { return expression; });                   \
	}                                                                                          \
	template <typename T> static inline T name##_block(T *at, typename cuemu_same<T>::type v)  \
	{                                                                                          \
		return name(at, v);                                                                \
	}                                                                                          \
	template <typename T> static inline T name##_system(T *at, typename cuemu_same<T>::type v) \
	{                                                                                          \
		return name(at, v);                                                                \
	}
ATOMIC(atomicAdd, old + v)
ATOMIC(atomicSub, old - v)
ATOMIC(atomicExch, ((void)old, v))
ATOMIC(atomicMin, old < v ? old : v)
ATOMIC(atomicMax, old > v ? old : v)
ATOMIC(atomicAnd, old & v)
ATOMIC(atomicOr, old | v)
ATOMIC(atomicXor, old ^ v)
ATOMIC(atomicInc, old >= v ? 0 : old + 1)
ATOMIC(atomicDec, old == 0 || old > v ? v : old - 1)
#undef ATOMIC
template <typename T>
static inline T atomicCAS(T *at, typename cuemu_same<T>::type expected, typename cuemu_same<T>::type v)
{
	return cuemu_change(at, [expected, v](T old) -> T { return old == expected ? v : old; });
}

/* Loads and stores with hints. */
#define HINTED_LOAD(name)                                                                          \
	template <typename T> static inline T name(const T *at) { return *at; }
HINTED_LOAD(__ldcg)
HINTED_LOAD(__ldca)
HINTED_LOAD(__ldcs)
HINTED_LOAD(__ldcv)
HINTED_LOAD(__ldlu)
#undef HINTED_LOAD
template <typename T> static inline T __ldg(const T *at)
{
	cuemu_constant(at, sizeof(*at));
	return *at;
}
template <typename T> static inline void __stcg(T *at, T v) { *at = v; }
template <typename T> static inline void __stcs(T *at, T v) { *at = v; }
template <typename T> static inline void __stwt(T *at, T v) { *at = v; }
static inline void __trap() { cuemu_trap("__trap()"); }
static inline void __nanosleep(unsigned) {}

/* Numbers. */
static inline unsigned __float_as_uint(float v) { return (unsigned)cuemu_bits(v); }
static inline int __float_as_int(float v) { return (int)(unsigned)cuemu_bits(v); }
static inline float __uint_as_float(unsigned v) { return cuemu_value<float>(v); }
static inline float __int_as_float(int v) { return cuemu_value<float>((unsigned)v); }
static inline long long __double_as_longlong(double v) { return (long long)cuemu_bits(v); }
static inline double __longlong_as_double(long long v) { return cuemu_value<double>((uint64_t)v); }
static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
static inline int __clz(int v) { return v ? __builtin_clz((unsigned)v) : 32; }
static inline int __clzll(long long v) { return v ? __builtin_clzll((unsigned long long)v) : 64; }
static inline int __ffs(int v) { return __builtin_ffs(v); }
static inline unsigned __brev(unsigned v)
{
	unsigned r = 0;

	for (int i = 0; i < 32; i++)
		r |= (v >> i & 1) << (31 - i);
	return r;
}
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector)
{
	const uint64_t both = (uint64_t)b << 32 | a;
	unsigned r = 0;

	for (int i = 0; i < 4; i++) {
		const unsigned s = selector >> 4 * i & 15;
		unsigned byte = both >> 8 * (s & 7) & 0xff;

		if (s & 8)
			byte = byte & 0x80 ? 0xff : 0;
		r |= byte << 8 * i;
	}
	return r;
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned n)
{
	return (unsigned)(((uint64_t)high << 32 | low) >> (n & 31));
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned n)
{
	return (unsigned)(((uint64_t)high << 32 | low) << (n & 31) >> 32);
}
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
	return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __frcp_rn(float a) { return 1 / a; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __frsqrt_rn(float a) { return (float)(1 / sqrt((double)a)); }
static inline float rsqrtf(float a) { return (float)(1 / sqrt((double)a)); }
static inline double rsqrt(double a) { return 1 / sqrt(a); }
static inline float __fdividef(float a, float b) { return a / b; }
#define __expf(a) expf(a) /* the host's mathematics has functions of these names */
#define __logf(a) logf(a)
#define __log2f(a) log2f(a)
#define __exp10f(a) exp10f(a)
#define __powf(a, b) powf(a, b)
#define __sinf(a) sinf(a)
#define __cosf(a) cosf(a)
static inline float __saturatef(float a) { return a < 0 ? 0 : a > 1 ? 1 : a; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dsub_rn(double a, double b) { return a - b; }
static inline double __ddiv_rn(double a, double b) { return a / b; }
static inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
static inline float __double2float_rn(double a) { return (float)a; }
static inline float __double2float_rd(double a)
{
	const float near = (float)a;

	return (double)near > a ? nextafterf(near, -INFINITY) : near;
}
static inline int __float2int_rn(float a) { return (int)rintf(a); }
static inline int __float2int_rz(float a) { return (int)a; }
static inline float __int2float_rn(int a) { return (float)a; }
static inline float __uint2float_rn(unsigned a) { return (float)a; }
template <typename T> static inline T cuemu_min(T a, T b) { return b < a ? b : a; }
template <typename T> static inline T cuemu_max(T a, T b) { return a < b ? b : a; }
#define MIN_MAX(type)                                                                              \
	static inline type min(type a, type b) { return cuemu_min(a, b); }                         \
	static inline type max(type a, type b) { return cuemu_max(a, b); }
MIN_MAX(int)
MIN_MAX(unsigned)
MIN_MAX(long)
MIN_MAX(unsigned long)
MIN_MAX(long long)
MIN_MAX(unsigned long long)
#undef MIN_MAX
static inline unsigned min(int a, unsigned b) { return cuemu_min((unsigned)a, b); }
static inline unsigned min(unsigned a, int b) { return cuemu_min(a, (unsigned)b); }
static inline unsigned max(int a, unsigned b) { return cuemu_max((unsigned)a, b); }
static inline unsigned max(unsigned a, int b) { return cuemu_max(a, (unsigned)b); }
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }

/* The host's side. */
enum cudaError_t {
	cudaSuccess = 0,
	cudaErrorInvalidValue = 1,
	cudaErrorMemoryAllocation = 2,
	cudaErrorInvalidConfiguration = 9,
	cudaErrorInvalidSymbol = 13,
	cudaErrorNoDevice = 100,
	cudaErrorInvalidDevice = 101,
	cudaErrorECCUncorrectable = 214,
	cudaErrorInvalidResourceHandle = 400,
	cudaErrorSymbolNotFound = 500,
	cudaErrorNotReady = 600,
	cudaErrorIllegalAddress = 700,
	cudaErrorHostMemoryAlreadyRegistered = 712,
	cudaErrorHostMemoryNotRegistered = 713,
	cudaErrorLaunchFailure = 719,
	cudaErrorNotSupported = 801,
	cudaErrorUnknown = 999,
};
typedef enum cudaError_t cudaError;
enum cudaMemcpyKind {
	cudaMemcpyHostToHost,
	cudaMemcpyHostToDevice,
	cudaMemcpyDeviceToHost,
	cudaMemcpyDeviceToDevice,
	cudaMemcpyDefault,
};
enum cudaDeviceAttr {
	cudaDevAttrMaxThreadsPerBlock = 1,
	cudaDevAttrMaxSharedMemoryPerBlock = 8,
	cudaDevAttrMultiProcessorCount = 16,
	cudaDevAttrL2CacheSize = 38,
	cudaDevAttrMaxThreadsPerMultiProcessor = 39,
	cudaDevAttrComputeCapabilityMajor = 75,
	cudaDevAttrComputeCapabilityMinor = 76,
	cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
	cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaFuncAttribute {
	cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
	cudaFuncAttributePreferredSharedMemoryCarveout = 9,
};
enum cudaLaunchAttributeID {
	cudaLaunchAttributeIgnore = 0,
	cudaLaunchAttributeCooperative = 2,
	cudaLaunchAttributeClusterDimension = 4,
	cudaLaunchAttributeProgrammaticStreamSerialization = 6,
};
union cudaLaunchAttributeValue {
	int cooperative;
	int programmaticStreamSerializationAllowed;
	struct { unsigned x, y, z; } clusterDim;
};
struct cudaLaunchAttribute {
	cudaLaunchAttributeID id;
	cudaLaunchAttributeValue val;
};
typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;
typedef struct CUgraph_st *cudaGraph_t;
typedef struct CUgraph_st *cudaGraphExec_t;
typedef struct CUgraphNode_st *cudaGraphNode_t;
struct cudaLaunchConfig_t {
	dim3 gridDim, blockDim;
	size_t dynamicSmemBytes;
	cudaStream_t stream;
	cudaLaunchAttribute *attrs;
	unsigned numAttrs;
};
struct cudaDeviceProp {
	char name[256];
	unsigned char uuid[16];
	size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin, sharedMemPerMultiprocessor;
	int regsPerBlock, warpSize, maxThreadsPerBlock, major, minor, multiProcessorCount, l2CacheSize;
	int maxThreadsPerMultiProcessor, ECCEnabled, integrated;
};
struct cudaFuncAttributes {
	size_t sharedSizeBytes, constSizeBytes, localSizeBytes;
	int maxThreadsPerBlock, numRegs, ptxVersion, binaryVersion, maxDynamicSharedSizeBytes;
};
enum cudaStreamCaptureMode {
	cudaStreamCaptureModeGlobal,
	cudaStreamCaptureModeThreadLocal,
	cudaStreamCaptureModeRelaxed,
};
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
enum cudaDriverEntryPointQueryResult {
	cudaDriverEntryPointSuccess,
	cudaDriverEntryPointSymbolNotFound,
	cudaDriverEntryPointVersionNotSufficent,
};
enum {
	cudaHostAllocDefault = 0,
	cudaHostAllocPortable = 1,
	cudaHostAllocMapped = 2,
	cudaHostRegisterDefault = 0,
	cudaHostRegisterPortable = 1,
	cudaHostRegisterMapped = 2,
	cudaStreamDefault = 0,
	cudaStreamNonBlocking = 1,
	cudaEventDefault = 0,
	cudaEventBlockingSync = 1,
	cudaEventDisableTiming = 2,
	cudaEnableDefault = 0,
	cudaDeviceScheduleBlockingSync = 4,
	cudaDeviceMapHost = 8,
};
typedef void (*cudaHostFn_t)(void *userdata);

extern "C" {
cudaError_t cudaGetDeviceCount(int *ret);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int *ret);
cudaError_t cudaSetDeviceFlags(unsigned flags);
cudaError_t cudaInitDevice(int device, unsigned, unsigned);
cudaError_t cudaDeviceReset(void);
cudaError_t cudaDeviceGetAttribute(int *ret, enum cudaDeviceAttr attribute, int device);
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *ret, int device);
cudaError_t cudaDeviceGetPCIBusId(char *ret, int size, int device);
cudaError_t cudaDriverGetVersion(int *ret);
cudaError_t cudaRuntimeGetVersion(int *ret);
cudaError_t cudaDeviceSynchronize(void);
cudaError_t cudaMemGetInfo(size_t *ret_free, size_t *ret_total);
cudaError_t cudaGetLastError(void);
cudaError_t cudaPeekAtLastError(void);
const char *cudaGetErrorString(cudaError_t error);
const char *cudaGetErrorName(cudaError_t error);

cudaError_t cudaGetDriverEntryPoint(const char *symbol, void **ret, unsigned long long flags,
				    enum cudaDriverEntryPointQueryResult *found = 0);
cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **ret, unsigned version,
					     unsigned long long flags,
					     enum cudaDriverEntryPointQueryResult *found = 0);

cudaError_t cudaFree(void *at);
cudaError_t cudaFreeAsync(void *at, cudaStream_t stream);
cudaError_t cudaFreeHost(void *at);
cudaError_t cudaHostRegister(void *at, size_t bytes, unsigned flags);
cudaError_t cudaHostUnregister(void *at);
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
			    cudaStream_t stream = 0);
cudaError_t cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch,
			 size_t width, size_t rows, enum cudaMemcpyKind kind);
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
			      size_t width, size_t rows, enum cudaMemcpyKind kind,
			      cudaStream_t stream = 0);
cudaError_t cudaMemset(void *at, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void *at, int value, size_t bytes, cudaStream_t stream = 0);

cudaError_t cudaStreamCreate(cudaStream_t *ret);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *ret, unsigned flags);
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *ret, unsigned flags, int priority);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t fn, void *userdata);
cudaError_t cudaEventCreate(cudaEvent_t *ret);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *ret, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = 0);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *ret_ms, cudaEvent_t from, cudaEvent_t to);

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *ret);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *ret);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *ret, cudaGraph_t graph, unsigned long long flags = 0);
cudaError_t cudaGraphUpload(cudaGraphExec_t graph, cudaStream_t stream);
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream);
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *n);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph);
}

cudaError_t cuemu_malloc(void **ret, size_t bytes);
cudaError_t cuemu_malloc_host(void **ret, size_t bytes);
template <typename T> static inline cudaError_t cudaMalloc(T **ret, size_t bytes)
{
	return cuemu_malloc((void **)ret, bytes);
}
template <typename T> static inline cudaError_t cudaMallocAsync(T **ret, size_t bytes, cudaStream_t)
{
	return cuemu_malloc((void **)ret, bytes);
}
template <typename T> static inline cudaError_t cudaMallocManaged(T **ret, size_t bytes, unsigned = 1)
{
	return cuemu_malloc((void **)ret, bytes);
}
template <typename T> static inline cudaError_t cudaMallocHost(T **ret, size_t bytes, unsigned = 0)
{
	return cuemu_malloc_host((void **)ret, bytes);
}
template <typename T> static inline cudaError_t cudaHostAlloc(T **ret, size_t bytes, unsigned)
{
	return cuemu_malloc_host((void **)ret, bytes);
}
template <typename T> static inline cudaError_t cudaHostGetDevicePointer(T **ret, void *host, unsigned)
{
	*ret = (T *)host;
	return cudaSuccess;
}

cudaError_t cuemu_function_set(const void *function, enum cudaFuncAttribute attribute, int value);
static inline cudaError_t cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute attribute, int value)
{
	return cuemu_function_set(f, attribute, value);
}
template <typename F>
static inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *ret, F, int threads,
									 size_t shared_bytes)
{
	const int by_threads = 2048 / (threads > 0 ? threads : 1);
	const int by_shared = (int)(228 * 1024 / (shared_bytes + 1024));

	*ret = by_threads < by_shared ? by_threads : by_shared;
	return cudaSuccess;
}
template <typename F>
static inline cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *ret, F)
{
	*ret = {};
	ret->maxThreadsPerBlock = 1024;
	return cudaSuccess;
}

cudaError_t cuemu_launch(const cudaLaunchConfig_t *config, const void *kernel,
			 std::function<void()> body);
/* Arguments are copied now, as a launch does. */
template <typename... P, typename... A>
__attribute__((no_sanitize("thread"))) static inline cudaError_t
cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*k)(P...), A &&...args)
{
	return cuemu_launch(config, (const void *)k,
			    [=]() __attribute__((no_sanitize("thread"))) { k(static_cast<P>(args)...); });
}
