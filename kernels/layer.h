/*
 * Parts of a layer that a device may compute in fewer goes than operations: each is
 * what the operations named do one after another.
 */
#pragma once

#include "kernels/attention.h"
#include "kernels/moe.h"
#include "kernels/norm.h"

/*
 * op_rmsnorm() of x with @norm and @eps, op_linears() of that with the three jobs,
 * op_rope_kv() of what these made.
 *
 * jobs		of q, k and v: y F32 [1, tokens, heads * head_dim] and two of [1, tokens,
 *		kv_heads * head_dim]; add is false
 * room		F32 [1, tokens, dim]: scratch
 *
 * The rest is as those operations have it. Returns 0, or -EINVAL as they do.
 */
struct layer_in {
	struct tensor norm;
	float eps; /* of all norms */
	struct linear_job jobs[3];
	struct tensor q_norm, k_norm;
	const struct rope_table *rope;
	const struct kv_cache *kv;
	uint32_t layer;
	const struct seq *seqs;
	uint32_t n_seqs;
};
int op_layer_in(struct stream *st, const struct layer_in *in, const struct tensor *room,
		const struct tensor *x);

/* y = op_rmsnorm() of x with @norm and @eps, and op_router() of y. */
int op_norm_router(struct stream *st, const struct tensor *y, uint32_t *ret_experts,
		   float *ret_weights, const struct tensor *x, const struct tensor *norm, float eps,
		   const struct tensor *w, const struct tensor *bias,
		   const struct router_params *params);

/* What a job of layer_in made, as op_rope_kv() takes it. */
static inline struct tensor layer_heads(const struct layer_in *in, int job)
{
	const struct tensor *y = &in->jobs[job].y;
	const uint32_t head_dim = in->kv->head_dim;

	return (struct tensor){ y->data, y->type,
				{ y->shape[1], head_dim ? y->shape[2] / head_dim : 0, head_dim } };
}

/* The same by those operations. */
static inline int layer_in_apart(struct stream *st, const struct layer_in *in, const struct tensor *room,
		   const struct tensor *x)
{
	const struct tensor q = layer_heads(in, 0), k = layer_heads(in, 1), v = layer_heads(in, 2);
	int r;

	r = op_rmsnorm(st, room, x, &in->norm, in->eps);
	if (r == 0)
		r = op_linears(st, in->jobs, 3, room);
	if (r == 0)
		r = op_rope_kv(st, &q, &k, &v, &in->q_norm, &in->k_norm, in->eps, in->rope, in->kv,
			       in->layer, in->seqs, in->n_seqs);
	return r;
}

static inline int norm_router_apart(struct stream *st, const struct tensor *y, uint32_t *ret_experts,
		      float *ret_weights, const struct tensor *x, const struct tensor *norm,
		      float eps, const struct tensor *w, const struct tensor *bias,
		      const struct router_params *params)
{
	const int r = op_rmsnorm(st, y, x, norm, eps);

	return r < 0 ? r : op_router(st, ret_experts, ret_weights, y, w, bias, params);
}
