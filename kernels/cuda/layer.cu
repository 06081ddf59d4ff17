/*
 * op_layer_in() for 1 to 4 tokens in one kernel: rows are normalised as they are filled
 * in, and the block that comes last to a head of q, k or v rotates it and writes it to
 * the cache.
 */
#include "kernels/cuda/few-linears.h"

extern "C" {
#include "kernels/cpu/kv.h"
#include "kernels/layer.h"
}
#include "kernels/cuda/rope.h"

#define LINE_FLOATS 32 /* of a cache line */

struct layer_few {
	struct few_linears linears; /* q, k and v: heads behind one another */
	struct rope_job rope;
	const float *norm;
	uint32_t *arrivals; /* [heads of all]: strips that are there */
	float eps;
	uint32_t head_strips;
};

template <int KIND, int DEPTH>
static __global__ void __launch_bounds__(FEW_THREADS, 2) k_layer_in(const struct layer_few g)
{
	__shared__ float factors[FEW_TOKENS], parts[FEW_TOKENS * (NORM_THREADS / 32)];
	__shared__ float cosines[FEW_TOKENS][KV_HEAD_DIM_MAX / 2];
	__shared__ float sines[FEW_TOKENS][KV_HEAD_DIM_MAX / 2];
	__shared__ float rows[FEW_WARPS][KV_HEAD_DIM_MAX];
	__shared__ bool is_whole[FEW_SLOTS + 1];
	const uint32_t tokens = g.linears.tokens, per = g.head_strips, warp = threadIdx.x / 32;
	const auto ready = [&] {
		for (uint32_t c = threadIdx.x * LINE_FLOATS; c < g.linears.cols;
		     c += FEW_THREADS * LINE_FLOATS)
			prefetch(g.norm + c);
		for (uint32_t t = 0; t < tokens; t++)
			rope_angles(g.rope, t, cosines[t], sines[t], threadIdx.x, FEW_THREADS);
		pdl_wait();
		pdl_release(); /* not earlier: attention reads what older kernels wrote before it waits */
		norm_factors<FEW_THREADS>(factors, parts, g.linears.x, tokens, g.linears.cols,
					  g.eps);
	};
	const auto finish = [&](uint32_t first, uint32_t n) {
		const uint32_t head = first / per, heads = (first + n - 1) / per - head + 1;

		__threadfence();
		__syncthreads();
		if (threadIdx.x < heads) {
			const uint32_t begin = (head + threadIdx.x) * per;
			const uint32_t own = min(first + n, begin + per) - max(first, begin);
			const uint32_t before = atomicAdd(g.arrivals + head + threadIdx.x, own);

			is_whole[threadIdx.x] = before + own == per;
			if (before + own == per)
				g.arrivals[head + threadIdx.x] = 0;
		}
		__syncthreads();
		__threadfence();
		for (uint32_t i = warp; i < heads * tokens; i += FEW_WARPS) {
			if (is_whole[i / tokens])
				rope_head(g.rope, i % tokens, head + i / tokens, rows[warp],
					  cosines[i % tokens], sines[i % tokens]);
			__syncwarp();
		}
	};

	run_linears<KIND, DEPTH>(g.linears, { g.norm, factors }, ready, finish);
}

template <int KIND, int DEPTH> static int launch_in(struct stream *st, struct layer_few *g)
{
	const struct few_plan plan = few_linears_plan<KIND, DEPTH>(st->dev, &g->linears);

	return launch(st, LAUNCH_PDL, k_layer_in<KIND, DEPTH>, plan.blocks, FEW_THREADS,
		      plan.shared_bytes, *g);
}

static bool is_aligned(const void *p)
{
	return (uintptr_t)p % 16 == 0;
}

/* Whether one kernel can do it; what is refused is none of that. */
static bool fits_one(const struct layer_in *in, const struct tensor *x)
{
	const uint32_t dim = x->shape[2], head_dim = in->kv->head_dim;
	uint32_t heads = 0;

	if (!is_batch(x, x->shape[1], dim) || x->shape[1] == 0 || x->shape[1] > FEW_TOKENS ||
	    dim % 4 || !is_aligned(x->data) || !is_batch(&in->norm, 1, dim) ||
	    !is_aligned(in->norm.data) || !(in->eps > 0) || head_dim % STRIP_ROWS || !head_dim)
		return false;
	for (const struct linear_job *job = in->jobs; job < in->jobs + 3; job++) {
		if (!linear_job_fits(job, x) || job->add || job->w->rows % head_dim ||
		    job->w->kind != in->jobs[0].w->kind)
			return false;
		heads += job->w->rows / head_dim;
	}
	return heads <= STREAM_COUNTERS && (in->jobs[0].w->kind == WEIGHT_BF16 ||
					    in->jobs[0].w->kind == WEIGHT_INT4);
}

int op_layer_in(struct stream *st, const struct layer_in *in, const struct tensor *room,
		const struct tensor *x)
{
	const struct tensor q = layer_heads(in, 0), k = layer_heads(in, 1), v = layer_heads(in, 2);
	struct layer_few g;
	int r;

	if (!fits_one(in, x))
		return layer_in_apart(st, in, room, x);
	r = rope_job_of(&g.rope, &q, &k, &v, &in->q_norm, &in->k_norm, in->eps, in->rope, in->kv,
			in->layer, in->seqs, in->n_seqs);
	if (r == 0)
		r = stage_seqs(st, in->seqs, in->n_seqs, &g.rope.batch);
	if (r < 0)
		return r;
	g.linears = few_linears_of(in->jobs[0].w->kind, in->jobs, 3, x);
	g.norm = (const float *)in->norm.data;
	g.arrivals = st->counters;
	g.eps = in->eps;
	g.head_strips = in->kv->head_dim / STRIP_ROWS;
	if (in->jobs[0].w->kind == WEIGHT_INT4)
		return launch_in<WEIGHT_INT4, 12>(st, &g);
	return st->dev->shared_max < SHARED_OF_MANY ? launch_in<WEIGHT_BF16, 3>(st, &g)
						    : launch_in<WEIGHT_BF16, 6>(st, &g);
}
