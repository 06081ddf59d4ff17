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
}

static __device__ __forceinline__ uint4 load_once(const void *at)
{
	return *static_cast<const uint4 *>(at);
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
