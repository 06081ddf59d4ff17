/*
 * op_router(): logits in double, then the choice by counting who is ahead, by the block
 * that is last to leave its logits.
 */
#include "kernels/cuda/matrix.h"
#include "kernels/cuda/ptx.h"
#include "kernels/cuda/sum.h"
#include "kernels/cuda/tile.h"

extern "C" {
#include "kernels/cpu/router-choose.h"
#include "kernels/layer.h"
}

#define FEW_TOKENS 8
#define FEW_THREADS 128
#define FEW_AHEAD 8	 /* vectors of a row that a thread has under way */
#define TILE_THREADS 256 /* a block has a square of logits, a warp some of the columns */
#define TILE 4		 /* of its sides, */
#define WIDE_TILE 8	 /* or, with so many tokens that what blocks read counts: */
#define WIDE_TOKENS 256
#define NORM_TOKENS 4 /* that are normalised on the way */

static __device__ __forceinline__ double add_lanes(double v)
{
	for (int step = 16; step; step /= 2)
		v += __shfl_xor_sync(0xffffffffu, v, step);
	return v;
}

static __device__ __forceinline__ double dot4(const float4 &a, const float4 &b, double sum)
{
	sum = fma((double)a.x, (double)b.x, sum);
	sum = fma((double)a.y, (double)b.y, sum);
	sum = fma((double)a.z, (double)b.z, sum);
	return fma((double)a.w, (double)b.w, sum);
}

/*
 * Columns c … c + 3 of a row of weights, as far as there are any. Not of x, which may be
 * written until pdl_wait(): such loads need not stay behind it.
 */
static __device__ __forceinline__ float4 weights_of(const float *row, uint32_t c, uint32_t dim,
						    bool is_aligned)
{
	return is_aligned && c < dim ? __ldg((const float4 *)(row + c))
				     : four_columns(row, c, dim, false);
}

struct choice {
	const double *logits;
	const float *bias;
	uint32_t *experts_chosen, *arrivals;
	float *weights;
	uint32_t experts, top_k, groups, top_groups;
	float scale;
	bool normalise;
};

/* How many of @values come before number @i: greater ones, and equal ones that stand lower. */
static __device__ __forceinline__ uint32_t rank_of(const double *values, uint32_t n, uint32_t i)
{
	const double own = values[i];
	uint32_t rank = 0;

#pragma unroll 4
	for (uint32_t j = 0; j < n; j++)
		rank += values[j] > own || (values[j] == own && j < i);
	return rank;
}

/* Sum of the two largest of a group. */
static __device__ __forceinline__ double score_of(const double *c, uint32_t n)
{
	double first = -INFINITY, second = -INFINITY;

	for (uint32_t e = 0; e < n; e++) {
		if (c[e] > first) {
			second = first;
			first = c[e];
		} else if (c[e] > second) {
			second = c[e];
		}
	}
	return first + second;
}

/* Shared memory of a choice. */
struct choosing {
	double s[MOE_EXPERTS_MAX], c[MOE_EXPERTS_MAX];
	double scores[MOE_GROUPS_MAX], s_chosen[MOE_TOP_K_MAX];
	bool is_kept[MOE_GROUPS_MAX];
};

/* By all THREADS of a block, which share the experts. */
template <int THREADS>
static __device__ __forceinline__ void choose(const struct choice &g, struct choosing *t,
					      uint32_t token)
{
	const uint32_t size = g.experts / g.groups;

	for (uint32_t e = threadIdx.x; e < g.experts; e += THREADS) {
		t->s[e] = 1 / (1 + exp(-__ldcg(&g.logits[(size_t)token * g.experts + e])));
		t->c[e] = t->s[e] + g.bias[e];
		if (!(t->c[e] > -INFINITY)) /* no number */
			t->c[e] = -INFINITY;
	}
	__syncthreads();
	if (g.groups > 1) {
		for (uint32_t i = threadIdx.x; i < g.groups; i += THREADS)
			t->scores[i] = score_of(t->c + i * size, size);
		__syncthreads();
		for (uint32_t i = threadIdx.x; i < g.groups; i += THREADS)
			t->is_kept[i] = rank_of(t->scores, g.groups, i) < g.top_groups;
		__syncthreads();
		for (uint32_t e = threadIdx.x; e < g.experts; e += THREADS)
			if (!t->is_kept[e / size])
				t->c[e] = -INFINITY;
		__syncthreads();
	}
	for (uint32_t e = threadIdx.x; e < g.experts; e += THREADS) {
		const uint32_t rank = rank_of(t->c, g.experts, e);

		if (rank < g.top_k) {
			g.experts_chosen[(size_t)token * g.top_k + rank] = e;
			t->s_chosen[rank] = t->s[e];
		}
	}
	__syncthreads();
	for (uint32_t i = threadIdx.x; i < g.top_k; i += THREADS) {
		double sum = 0;

		for (uint32_t k = 0; k < g.top_k; k++)
			sum += t->s_chosen[k];
		g.weights[(size_t)token * g.top_k + i] =
			(float)(t->s_chosen[i] * (g.normalise ? g.scale / (sum + 1e-20) : g.scale));
	}
	__syncthreads();
}

/* Whether this block is the last of @n that come here, so that it sees what they all wrote. */
static __device__ __forceinline__ bool is_last_of(uint32_t *arrivals, uint32_t n)
{
	__shared__ bool is_last;

	__threadfence();
	__syncthreads();
	if (threadIdx.x == 0)
		is_last = atomicInc(arrivals, n - 1) == n - 1;
	__syncthreads();
	__threadfence();
	return is_last;
}

struct logits {
	double *to; /* [tokens][experts] */
	const float *x, *w;
	const float *norm; /* NULL: x is normalised already */
	float *normed;	   /* where to leave it, else */
	float eps;
	uint32_t tokens, dim, experts;
	bool is_aligned;
};

/* A block has one expert, the beginning of whose row it reads before x is there. */
static __global__ void __launch_bounds__(FEW_THREADS, 4)
	k_router_few(const struct logits g, const struct choice choice)
{
	__shared__ double of_warp[FEW_TOKENS][FEW_THREADS / 32];
	__shared__ float factors[NORM_TOKENS], parts[NORM_TOKENS * (NORM_THREADS / 32)];
	__shared__ struct choosing choosing;
	const uint32_t step = FEW_THREADS * 4, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
	const float *w = g.w + (size_t)blockIdx.x * g.dim;
	float4 ahead[FEW_AHEAD];

	pdl_release();
#pragma unroll
	for (uint32_t i = 0; i < FEW_AHEAD; i++)
		ahead[i] = weights_of(w, i * step + threadIdx.x * 4, g.dim, g.is_aligned);
	for (uint32_t c = threadIdx.x * 32; g.norm && c < g.dim; c += FEW_THREADS * 32)
		prefetch(g.norm + c);
	pdl_wait();
	if (g.norm)
		norm_factors<FEW_THREADS>(factors, parts, g.x, g.tokens, g.dim, g.eps);
	for (uint32_t t = 0; t < g.tokens; t++) {
		const float *x = g.x + (size_t)t * g.dim;
		double sum = 0;
		/* of column c …; each block leaves some of the normalised ones */
		const auto columns = [&](uint32_t c) {
			float4 v = four_columns(x, c, g.dim, g.is_aligned);

			if (g.norm && c < g.dim) {
				v = normed(v, factors[t], __ldg((const float4 *)(g.norm + c)));
				if (c / 4 % gridDim.x == blockIdx.x)
					*(float4 *)(g.normed + (size_t)t * g.dim + c) = v;
			}
			return v;
		};

#pragma unroll
		for (uint32_t i = 0; i < FEW_AHEAD; i++)
			sum = dot4(ahead[i], columns(i * step + threadIdx.x * 4), sum);
		for (uint32_t c = FEW_AHEAD * step + threadIdx.x * 4; c < g.dim; c += step)
			sum = dot4(weights_of(w, c, g.dim, g.is_aligned), columns(c), sum);
		sum = add_lanes(sum);
		if (lane == 0)
			of_warp[t][warp] = sum;
	}
	__syncthreads();
	if (threadIdx.x < g.tokens) {
		double sum = 0;

		for (uint32_t i = 0; i < FEW_THREADS / 32; i++)
			sum += of_warp[threadIdx.x][i];
		g.to[(size_t)threadIdx.x * g.experts + blockIdx.x] = sum;
	}
	if (!is_last_of(choice.arrivals, gridDim.x))
		return;
	for (uint32_t t = 0; t < g.tokens; t++)
		choose<FEW_THREADS>(choice, &choosing, t);
}

/* Of the blocks of @SIDE tokens the last one chooses. */
template <uint32_t SIDE>
static __global__ void __launch_bounds__(TILE_THREADS)
	k_router_many(const struct logits g, const struct choice choice)
{
	constexpr uint32_t WARPS = TILE_THREADS / 32;
	__shared__ double of_warp[WARPS][SIDE * SIDE];
	__shared__ struct choosing choosing;
	const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
	const uint32_t e = blockIdx.x * SIDE, t = blockIdx.y * SIDE;
	double sums[SIDE][SIDE] = {};

	pdl_release();
	pdl_wait();
	for (uint32_t c = threadIdx.x * 4; c < g.dim; c += TILE_THREADS * 4) {
		float4 x[SIDE];

#pragma unroll
		for (uint32_t i = 0; i < SIDE; i++)
			x[i] = four_columns(g.x + (size_t)min(t + i, g.tokens - 1) * g.dim, c, g.dim,
					    g.is_aligned);
#pragma unroll
		for (uint32_t j = 0; j < SIDE; j++) {
			const float4 w = weights_of(g.w + (size_t)min(e + j, g.experts - 1) * g.dim,
						    c, g.dim, g.is_aligned);

#pragma unroll
			for (uint32_t i = 0; i < SIDE; i++)
				sums[i][j] = dot4(x[i], w, sums[i][j]);
		}
	}
#pragma unroll
	for (uint32_t i = 0; i < SIDE * SIDE; i++) {
		const double sum = add_lanes(sums[i / SIDE][i % SIDE]);

		if (lane == 0)
			of_warp[warp][i] = sum;
	}
	__syncthreads();
	if (threadIdx.x < SIDE * SIDE) {
		const uint32_t token = t + threadIdx.x / SIDE, expert = e + threadIdx.x % SIDE;
		double sum = 0;

		for (uint32_t w = 0; w < WARPS; w++)
			sum += of_warp[w][threadIdx.x];
		if (token < g.tokens && expert < g.experts)
			g.to[(size_t)token * g.experts + expert] = sum;
	}
	if (!is_last_of(choice.arrivals + blockIdx.y, gridDim.x))
		return;
	for (uint32_t i = t; i < min(t + SIDE, g.tokens); i++)
		choose<TILE_THREADS>(choice, &choosing, i);
}

static size_t logits_bytes(uint32_t tokens, uint32_t experts)
{
	return (size_t)tokens * experts * sizeof(double);
}

size_t router_scratch(const struct op_limits *l)
{
	return logits_bytes(l->tokens, l->experts) + 256;
}

/* @norm, @normed: NULL, or x is normalised on the way */
static int run_router(struct stream *st, uint32_t *ret_experts, float *ret_weights,
		      const struct tensor *x, const struct tensor *w, const struct tensor *bias,
		      const struct router_params *params, const float *norm, float *normed,
		      float eps)
{
	const uint32_t tokens = x->shape[1], dim = x->shape[2], experts = w->shape[1];
	struct logits logits = {};
	struct choice choice = {};
	size_t at = 0;

	logits.to = (double *)matrix_scratch_take(st, &at, logits_bytes(tokens, experts));
	if (!logits.to || ceil_div(tokens, TILE) > STREAM_COUNTERS)
		return -EINVAL;
	logits.x = (const float *)x->data;
	logits.w = (const float *)w->data;
	logits.norm = norm;
	logits.normed = normed;
	logits.eps = eps;
	logits.tokens = tokens;
	logits.dim = dim;
	logits.experts = experts;
	logits.is_aligned = dim % 4 == 0 && ((uintptr_t)x->data | (uintptr_t)w->data) % 16 == 0;

	choice.logits = logits.to;
	choice.bias = (const float *)bias->data;
	choice.experts_chosen = ret_experts;
	choice.arrivals = st->counters;
	choice.weights = ret_weights;
	choice.experts = experts;
	choice.top_k = params->top_k;
	choice.groups = params->groups > 1 ? params->groups : 1;
	choice.top_groups = params->top_groups;
	choice.scale = params->scale;
	choice.normalise = params->normalise;
	if (tokens <= FEW_TOKENS)
		return launch(st, LAUNCH_PDL, k_router_few, experts, FEW_THREADS, 0, logits, choice);
	if (tokens < WIDE_TOKENS)
		return launch(st, LAUNCH_PDL, k_router_many<TILE>,
			      dim3(ceil_div(experts, TILE), ceil_div(tokens, TILE)), TILE_THREADS, 0,
			      logits, choice);
	return launch(st, LAUNCH_PDL, k_router_many<WIDE_TILE>,
		      dim3(ceil_div(experts, WIDE_TILE), ceil_div(tokens, WIDE_TILE)), TILE_THREADS, 0,
		      logits, choice);
}

int op_router(struct stream *st, uint32_t *ret_experts, float *ret_weights, const struct tensor *x,
	      const struct tensor *w, const struct tensor *bias, const struct router_params *params)
{
	if (!router_fits(x, w, bias, params))
		return -EINVAL;
	if (x->shape[1] == 0)
		return 0;
	return run_router(st, ret_experts, ret_weights, x, w, bias, params, NULL, NULL, 0);
}

int op_norm_router(struct stream *st, const struct tensor *y, uint32_t *ret_experts,
		   float *ret_weights, const struct tensor *x, const struct tensor *norm, float eps,
		   const struct tensor *w, const struct tensor *bias,
		   const struct router_params *params)
{
	const uint32_t tokens = x->shape[1], dim = x->shape[2];
	const uintptr_t all = (uintptr_t)x->data | (uintptr_t)y->data | (uintptr_t)norm->data |
			      (uintptr_t)w->data;

	if (tokens == 0 || tokens > NORM_TOKENS || dim % 4 || all % 16 || x->data == y->data ||
	    !(eps > 0) || !is_batch(y, tokens, dim) || !is_batch(norm, 1, dim) ||
	    !router_fits(x, w, bias, params))
		return norm_router_apart(st, y, ret_experts, ret_weights, x, norm, eps, w, bias,
					 params);
	return run_router(st, ret_experts, ret_weights, x, w, bias, params,
			  (const float *)norm->data, (float *)y->data, eps);
}
