/* op_router(): logits in double, then the choice by counting who is ahead. */
#include "kernels/cuda/matrix.h"
#include "kernels/cuda/ptx.h"

extern "C" {
#include "kernels/cpu/router-choose.h"
}

#define FEW_TOKENS 8
#define FEW_THREADS 128
#define FEW_AHEAD 8	 /* vectors of a row that a thread has under way */
#define TILE_THREADS 256 /* a warp has TILE x TILE logits */
#define TILE 4

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

/* Columns c … c + 3 of a row, as far as there are any. */
static __device__ __forceinline__ float4 columns_of(const float *row, uint32_t c, uint32_t dim,
						    bool is_aligned)
{
	if (c >= dim)
		return make_float4(0, 0, 0, 0);
	if (is_aligned)
		return __ldg((const float4 *)(row + c));
	return make_float4(row[c], c + 1 < dim ? row[c + 1] : 0, c + 2 < dim ? row[c + 2] : 0,
			   c + 3 < dim ? row[c + 3] : 0);
}

struct logits {
	double *to; /* [tokens][experts] */
	const float *x, *w;
	uint32_t tokens, dim, experts;
	bool is_aligned;
};

/* A block has one expert, the beginning of whose row it reads before x is there. */
static __global__ void __launch_bounds__(FEW_THREADS, 4) k_logits_few(const struct logits g)
{
	__shared__ double of_warp[FEW_TOKENS][FEW_THREADS / 32];
	const uint32_t step = FEW_THREADS * 4, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
	const float *w = g.w + (size_t)blockIdx.x * g.dim;
	float4 ahead[FEW_AHEAD];

	pdl_release();
#pragma unroll
	for (uint32_t i = 0; i < FEW_AHEAD; i++)
		ahead[i] = columns_of(w, i * step + threadIdx.x * 4, g.dim, g.is_aligned);
	pdl_wait();
	for (uint32_t t = 0; t < g.tokens; t++) {
		const float *x = g.x + (size_t)t * g.dim;
		double sum = 0;

#pragma unroll
		for (uint32_t i = 0; i < FEW_AHEAD; i++)
			sum = dot4(ahead[i],
				   columns_of(x, i * step + threadIdx.x * 4, g.dim, g.is_aligned),
				   sum);
		for (uint32_t c = FEW_AHEAD * step + threadIdx.x * 4; c < g.dim; c += step)
			sum = dot4(columns_of(w, c, g.dim, g.is_aligned),
				   columns_of(x, c, g.dim, g.is_aligned), sum);
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
}

static __global__ void __launch_bounds__(TILE_THREADS) k_logits_many(const struct logits g)
{
	const uint32_t lane = threadIdx.x % 32;
	const uint32_t e = (blockIdx.x * (TILE_THREADS / 32) + threadIdx.x / 32) * TILE;
	const uint32_t t = blockIdx.y * TILE;
	double sums[TILE][TILE] = {};

	pdl_release();
	pdl_wait();
	if (e >= g.experts)
		return;
	for (uint32_t c = lane * 4; c < g.dim; c += 128) {
		float4 x[TILE];

#pragma unroll
		for (uint32_t i = 0; i < TILE; i++)
			x[i] = columns_of(g.x + (size_t)min(t + i, g.tokens - 1) * g.dim, c, g.dim,
					  g.is_aligned);
#pragma unroll
		for (uint32_t j = 0; j < TILE; j++) {
			const float4 w = columns_of(g.w + (size_t)min(e + j, g.experts - 1) * g.dim,
						    c, g.dim, g.is_aligned);

#pragma unroll
			for (uint32_t i = 0; i < TILE; i++)
				sums[i][j] = dot4(x[i], w, sums[i][j]);
		}
	}
#pragma unroll
	for (uint32_t i = 0; i < TILE; i++) {
#pragma unroll
		for (uint32_t j = 0; j < TILE; j++) {
			const double sum = add_lanes(sums[i][j]);

			if (lane == 0 && t + i < g.tokens && e + j < g.experts)
				g.to[(size_t)(t + i) * g.experts + e + j] = sum;
		}
	}
}

struct choice {
	const double *logits;
	const float *bias;
	uint32_t *experts_chosen;
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

/* A block has one token, a thread one expert. */
static __global__ void __launch_bounds__(MOE_EXPERTS_MAX) k_choose(const struct choice g)
{
	__shared__ double c[MOE_EXPERTS_MAX], scores[MOE_GROUPS_MAX], s_chosen[MOE_TOP_K_MAX];
	__shared__ bool is_kept[MOE_GROUPS_MAX];
	const uint32_t e = threadIdx.x, size = g.experts / g.groups, token = blockIdx.x;
	const bool is_expert = e < g.experts;
	double s = 0;

	pdl_release();
	pdl_wait();
	if (is_expert) {
		s = 1 / (1 + exp(-g.logits[(size_t)token * g.experts + e]));
		c[e] = s + g.bias[e];
		if (!(c[e] > -INFINITY)) /* no number */
			c[e] = -INFINITY;
	}
	__syncthreads();
	if (g.groups > 1) {
		if (e < g.groups)
			scores[e] = score_of(c + e * size, size);
		__syncthreads();
		if (e < g.groups)
			is_kept[e] = rank_of(scores, g.groups, e) < g.top_groups;
		__syncthreads();
		if (is_expert && !is_kept[e / size])
			c[e] = -INFINITY;
		__syncthreads();
	}
	if (is_expert) {
		uint32_t rank = rank_of(c, g.experts, e);

		if (rank < g.top_k) {
			g.experts_chosen[(size_t)token * g.top_k + rank] = e;
			s_chosen[rank] = s;
		}
	}
	__syncthreads();
	if (e < g.top_k) {
		double sum = 0;

		for (uint32_t k = 0; k < g.top_k; k++)
			sum += s_chosen[k];
		g.weights[(size_t)token * g.top_k + e] =
			(float)(s_chosen[e] * (g.normalise ? g.scale / (sum + 1e-20) : g.scale));
	}
}

static size_t logits_bytes(uint32_t tokens, uint32_t experts)
{
	return (size_t)tokens * experts * sizeof(double);
}

size_t router_scratch(const struct op_limits *l)
{
	return logits_bytes(l->tokens, l->experts) + 256;
}

static int run_logits(struct stream *st, const struct logits &g)
{
	if (g.tokens <= FEW_TOKENS)
		return launch(st, LAUNCH_PDL, k_logits_few, g.experts, FEW_THREADS, 0, g);
	return launch(st, LAUNCH_PDL, k_logits_many,
		      dim3(ceil_div(g.experts, TILE_THREADS / 32 * TILE), ceil_div(g.tokens, TILE)),
		      TILE_THREADS, 0, g);
}

int op_router(struct stream *st, uint32_t *ret_experts, float *ret_weights, const struct tensor *x,
	      const struct tensor *w, const struct tensor *bias, const struct router_params *params)
{
	const uint32_t tokens = x->shape[1], dim = x->shape[2], experts = w->shape[1];
	struct logits logits = {};
	struct choice choice = {};
	uint32_t threads;
	size_t at = 0;
	int r;

	if (!router_fits(x, w, bias, params))
		return -EINVAL;
	if (tokens == 0)
		return 0;
	logits.to = (double *)matrix_scratch_take(st, &at, logits_bytes(tokens, experts));
	if (!logits.to)
		return -EINVAL;
	logits.x = (const float *)x->data;
	logits.w = (const float *)w->data;
	logits.tokens = tokens;
	logits.dim = dim;
	logits.experts = experts;
	logits.is_aligned = dim % 4 == 0 && ((uintptr_t)x->data | (uintptr_t)w->data) % 16 == 0;
	r = run_logits(st, logits);
	if (r < 0)
		return r;

	choice.logits = logits.to;
	choice.bias = (const float *)bias->data;
	choice.experts_chosen = ret_experts;
	choice.weights = ret_weights;
	choice.experts = experts;
	choice.top_k = params->top_k;
	choice.groups = params->groups > 1 ? params->groups : 1;
	choice.top_groups = params->top_groups;
	choice.scale = params->scale;
	choice.normalise = params->normalise;
	/* a thread for each expert, group and choice; there are no more groups or choices than experts */
	threads = ceil_div(experts, 32) * 32;
	return launch(st, LAUNCH_PDL, k_choose, tokens, threads, 0, choice);
}
