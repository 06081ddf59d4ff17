/* Sums over a warp and over a block, in an order of additions that depends on nothing else. */
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

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

/* Rows are normalised with so many sums of squares, by whatever kernel: with the same bits. */
#define NORM_THREADS 512

static __device__ __forceinline__ float sum_squares(float4 v)
{
	return (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w);
}

/*
 * factors[t] = 1 / sqrt(mean(x[t,:]^2) + eps), by all THREADS of a block, as op_rmsnorm() has it.
 *
 * x	[tokens][dim], aligned to 16 bytes; dim a multiple of 4
 * factors, parts	shared memory: [tokens], [tokens][NORM_THREADS / 32]
 *
 * Ends with a barrier.
 */
template <int THREADS>
static __device__ __forceinline__ void norm_factors(float *factors, float *parts, const float *x,
						    uint32_t tokens, uint32_t dim, float eps)
{
	const uint32_t n = dim / 4;

	for (uint32_t t = 0; t < tokens; t++) {
		const float4 *row = (const float4 *)(x + (size_t)t * dim);
		float sums[NORM_THREADS / THREADS] = {};

#pragma unroll
		for (uint32_t s = 0; s < NORM_THREADS / THREADS; s++) {
#pragma unroll 4
			for (uint32_t i = s * THREADS + threadIdx.x; i < n; i += NORM_THREADS)
				sums[s] += sum_squares(row[i]);
		}
#pragma unroll
		for (uint32_t s = 0; s < NORM_THREADS / THREADS; s++) {
			const float sum = sum_warp(sums[s]);

			if (threadIdx.x % 32 == 0)
				parts[t * (NORM_THREADS / 32) +
				      (s * THREADS + threadIdx.x) / 32] = sum;
		}
	}
	__syncthreads();
	if (threadIdx.x < tokens) {
		float sum = 0;

		for (int i = 0; i < NORM_THREADS / 32; i++)
			sum += parts[threadIdx.x * (NORM_THREADS / 32) + i];
		factors[threadIdx.x] = 1 / sqrtf(sum / (float)dim + eps);
	}
	__syncthreads();
}

static __device__ __forceinline__ float4 normed(float4 v, float factor, float4 w)
{
	return make_float4(v.x * factor * w.x, v.y * factor * w.y, v.z * factor * w.z,
			   v.w * factor * w.w);
}
