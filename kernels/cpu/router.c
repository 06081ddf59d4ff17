/* Choosing experts: logits by tiles of tokens and experts, then the choice by tokens. */
#include <errno.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/router-choose.h"

#define TILE_TOKENS 16 /* share a reading of the weights */
#define TILE_EXPERTS 4
#define TOKENS_WORTH_THREADS 4

struct router_job {
	const struct ops_kernels *ops;
	const struct router_params *params;
	const float *x, *w, *bias;
	double *logits; /* [tokens][experts] */
	uint32_t *experts_chosen;
	float *weights;
	uint32_t tokens, dim, experts;
};

static void compute_logits(void *userdata, uint32_t thread, uint32_t n_threads)
{
	const struct router_job *job = userdata;
	const uint32_t wide = (job->experts + TILE_EXPERTS - 1) / TILE_EXPERTS;
	const uint32_t high = (job->tokens + TILE_TOKENS - 1) / TILE_TOKENS;
	uint32_t from, to;

	share_of(wide * high, thread, n_threads, &from, &to);
	for (uint32_t tile = from; tile < to; tile++) {
		const uint32_t e = tile % wide * TILE_EXPERTS, t = tile / wide * TILE_TOKENS;
		const uint32_t left = job->experts - e;
		const uint32_t end = job->tokens - t < TILE_TOKENS ? job->tokens : t + TILE_TOKENS;

		for (uint32_t i = t; i < end; i++)
			job->ops->dots(job->logits + (size_t)i * job->experts + e,
				       job->x + (size_t)i * job->dim, job->w + (size_t)e * job->dim,
				       job->dim, left < TILE_EXPERTS ? left : TILE_EXPERTS);
	}
}

static void choose(void *userdata, uint32_t thread, uint32_t n_threads)
{
	const struct router_job *job = userdata;
	const uint32_t top_k = job->params->top_k;
	uint32_t from, to;

	share_of(job->tokens, thread, n_threads, &from, &to);
	for (uint32_t t = from; t < to; t++)
		router_choose(job->experts_chosen + (size_t)t * top_k,
			      job->weights + (size_t)t * top_k,
			      job->logits + (size_t)t * job->experts, job->bias, job->experts,
			      job->params);
}

int op_router(struct stream *st, uint32_t *ret_experts, float *ret_weights, const struct tensor *x,
	      const struct tensor *w, const struct tensor *bias, const struct router_params *params)
{
	struct router_job job = {
		.ops = ops_kernels(st->dev->isa),
		.params = params,
		.x = x->data,
		.w = w->data,
		.bias = bias->data,
		.experts_chosen = ret_experts,
		.weights = ret_weights,
		.tokens = x->shape[1],
		.dim = x->shape[2],
		.experts = w->shape[1],
	};
	size_t at = 0;

	if (st->dev->isa == ISA_REF)
		return ref_router(ret_experts, ret_weights, x, w, bias, params);
	if (!router_fits(x, w, bias, params))
		return -EINVAL;

	job.logits = scratch_take(st, &at, (size_t)job.tokens * job.experts * sizeof(*job.logits));
	if (!job.logits)
		return -EINVAL;

	pool_run(st->dev, compute_logits, &job);
	if (job.tokens < TOKENS_WORTH_THREADS)
		choose(&job, 0, 1);
	else
		pool_run(st->dev, choose, &job);
	return 0;
}
