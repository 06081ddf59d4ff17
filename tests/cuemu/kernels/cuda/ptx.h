/* The twins of kernels/cuda/ptx.h: check-twins.sh holds the two lists against each other. */
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

template <typename T> static __device__ __forceinline__ T *shared_memory()
{
	return reinterpret_cast<T *>(cuemu_shared());
}

static __device__ __forceinline__ void pdl_wait()
{
	cuemu_pdl_wait();
}

static __device__ __forceinline__ void pdl_release()
{
	cuemu_pdl_release();
}

static __device__ __forceinline__ void prefetch(const void *at)
{
	(void)at;
}

/* Round to nearest even; what is no number stays none. */
static inline uint32_t cuemu_narrow(float value)
{
	const uint32_t bits = __float_as_uint(value);

	if (value != value)
		return 0x7fff;
	return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

static __device__ __forceinline__ uint32_t bf16_pair(float low, float high)
{
	return cuemu_narrow(low) | cuemu_narrow(high) << 16;
}

static __device__ __forceinline__ uint32_t add_bf16_pairs(uint32_t a, uint32_t b)
{
	return bf16_pair(__uint_as_float(a << 16) + __uint_as_float(b << 16),
			 __uint_as_float(a & 0xffff0000u) + __uint_as_float(b & 0xffff0000u));
}

static __device__ __forceinline__ void copy_async(void *shared, const void *global)
{
	cuemu_copy_async(shared, global, 16, 16);
}

static __device__ __forceinline__ void copy_async_commit()
{
	cuemu_copy_commit();
}

template <int N> static __device__ __forceinline__ void copy_async_wait()
{
	cuemu_copy_wait(N);
}

static __device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void *shared_row)
{
	cuemu_matrices(r, shared_row, false);
}

static __device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4],
								const void *shared_row)
{
	cuemu_matrices(r, shared_row, true);
}

static __device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4],
						const uint32_t (&b)[2])
{
	cuemu_mma_bf16(d, a, b);
}
