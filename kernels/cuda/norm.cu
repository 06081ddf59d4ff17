/* Root mean square normalisation: a block a row, whose elements stay in registers if they fit. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/ptx.h"
#include "kernels/cuda/sum.h"

extern "C" {
#include "kernels/norm.h"
}

#define NORM_KEPT 4 /* of a thread: rows of up to 8192 elements are read once */

static __device__ __forceinline__ float square(float v)
{
	return v * v;
}

static __device__ __forceinline__ float square(float4 v)
{
	return sum_squares(v);
}

static __device__ __forceinline__ float scaled(float v, float factor, float w)
{
	return v * factor * w;
}

static __device__ __forceinline__ float4 scaled(float4 v, float factor, float4 w)
{
	return normed(v, factor, w);
}

/* @n: elements of V in a row; @dim: numbers in it. y may be x, so neither is __restrict__. */
template <typename V>
static __global__ void __launch_bounds__(NORM_THREADS)
	k_rmsnorm(V *y, const V *x, const V *w, uint32_t n, uint32_t dim, float eps)
{
	const size_t row = (size_t)blockIdx.x * n;
	V kept[NORM_KEPT], weights[NORM_KEPT];
	float sum = 0, factor;

	pdl_release();
#pragma unroll
	for (uint32_t i = 0; i < NORM_KEPT; i++) /* the weights are there before x is */
		if (threadIdx.x + i * NORM_THREADS < n)
			weights[i] = w[threadIdx.x + i * NORM_THREADS];
	pdl_wait();

#pragma unroll
	for (uint32_t i = 0; i < NORM_KEPT; i++) {
		if (threadIdx.x + i * NORM_THREADS < n) {
			kept[i] = x[row + threadIdx.x + i * NORM_THREADS];
			sum += square(kept[i]);
		}
	}
	for (uint32_t i = threadIdx.x + NORM_KEPT * NORM_THREADS; i < n; i += NORM_THREADS)
		sum += square(x[row + i]);
	factor = 1 / sqrtf(sum_block<NORM_THREADS>(sum) / (float)dim + eps);

#pragma unroll
	for (uint32_t i = 0; i < NORM_KEPT; i++)
		if (threadIdx.x + i * NORM_THREADS < n)
			y[row + threadIdx.x + i * NORM_THREADS] =
				scaled(kept[i], factor, weights[i]);
	for (uint32_t i = threadIdx.x + NORM_KEPT * NORM_THREADS; i < n; i += NORM_THREADS)
		y[row + i] = scaled(x[row + i], factor, w[i]);
}

static bool by_fours(const void *p, uint32_t dim)
{
	return dim % 4 == 0 && (uintptr_t)p % sizeof(float4) == 0;
}

int op_rmsnorm(struct stream *st, const struct tensor *y, const struct tensor *x,
	       const struct tensor *w, float eps)
{
	const uint32_t tokens = x->shape[1], dim = x->shape[2];

	if (x->type != DT_F32 || y->type != DT_F32 || w->type != DT_F32 || !(eps > 0))
		return -EINVAL;
	if (dim == 0 || y->shape[1] != tokens || y->shape[2] != dim || w->shape[2] != dim)
		return -EINVAL;
	if (tokens == 0)
		return 0;
	if (by_fours(x->data, dim) && by_fours(y->data, dim) && by_fours(w->data, dim))
		return launch(st, LAUNCH_PDL, k_rmsnorm<float4>, dim3(tokens), dim3(NORM_THREADS), 0,
			      (float4 *)y->data, (const float4 *)x->data, (const float4 *)w->data,
			      dim / 4, dim, eps);
	return launch(st, LAUNCH_PDL, k_rmsnorm<float>, dim3(tokens), dim3(NORM_THREADS), 0,
		      (float *)y->data, (const float *)x->data, (const float *)w->data, dim, dim, eps);
}
