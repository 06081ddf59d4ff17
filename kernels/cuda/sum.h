/* Sums over a warp and over a block, in an order of additions that depends on nothing else. */
#pragma once

#include <cuda_runtime.h>

#define WARP_ALL 0xffffffffu

/* Every lane gets the sum. */
static __device__ __forceinline__ float sum_warp(float v)
{
#pragma unroll
	for (int bits = 16; bits > 0; bits /= 2)
		v += __shfl_xor_sync(WARP_ALL, v, bits);
	return v;
}

/* Every thread gets the sum. Once a kernel: a second call would meet the first one's memory. */
template <int THREADS> static __device__ __forceinline__ float sum_block(float v)
{
	__shared__ float parts[THREADS / 32];
	float sum = 0;

	v = sum_warp(v);
	if (threadIdx.x % 32 == 0)
		parts[threadIdx.x / 32] = v;
	__syncthreads();
#pragma unroll
	for (int i = 0; i < THREADS / 32; i++)
		sum += parts[i];
	return sum;
}
