/* Mixture of experts: choosing them, and computing them. */
#pragma once

#include "kernels/linear.h"

#define MOE_EXPERTS_MAX 1024
#define MOE_TOP_K_MAX 64
#define MOE_GROUPS_MAX 64

/*
 * logit[e] = sum_c W[e,c] x[t,c];  s = 1 / (1 + e^-logit);  c = s + bias
 * if groups > 1: a group's score is the sum of its two largest c; only experts
 *	of the top_groups best groups (ties: lowest index) stay, the others get c = -inf
 * chosen: the top_k largest c (ties: lowest index), in falling order of c
 * weight = s of the chosen (not c); if normalise: / (sum of them + 1e-20); * scale
 *
 * x		F32 [1, tokens, dim]
 * w		F32 [1, experts, dim], row-major, not packed
 * bias		F32 [1, 1, experts]
 * ret_experts	u32 [tokens][top_k];  ret_weights f32 [tokens][top_k]
 *
 * In F32 or better throughout; the dot products in double or pairwise, so that
 * logits that differ by 1e-6 relative are told apart. -EINVAL: shapes,
 * experts over MOE_EXPERTS_MAX, top_k over MOE_TOP_K_MAX or over experts.
 */
struct router_params {
	uint32_t top_k, groups, top_groups;
	bool normalise;
	float scale;
};
int op_router(struct stream *st, uint32_t *ret_experts, float *ret_weights, const struct tensor *x,
	      const struct tensor *w, const struct tensor *bias, const struct router_params *params);
int ref_router(uint32_t *ret_experts, float *ret_weights, const struct tensor *x,
	       const struct tensor *w, const struct tensor *bias, const struct router_params *params);

/*
 * y[t,:] += sum over the chosen e of weight[t,e] * MLP_e(x[t])  +  MLP_shared(x[t])
 * MLP as op_mlp() in kernels/linear.h.
 *
 * x, y		F32 [1, tokens, dim]; must not overlap
 * gate, up	experts matrices [ffn_dim, dim]; down [dim, ffn_dim]: arrays, kinds may differ
 * shared_…	[shared_ffn_dim, dim], kind WEIGHT_NONE: no shared expert
 * chosen	u32 [tokens][top_k], weights f32 [tokens][top_k], as op_router() gives them
 *
 * Sums in F32 or better: the chosen experts by rising index, then the shared
 * one, then y. Each expert's matrices are read once a call.
 */
struct moe_weights {
	uint32_t experts;
	const struct weight *gate, *up, *down; /* [experts] */
	struct weight shared_gate, shared_up, shared_down;
};
int op_moe(struct stream *st, const struct tensor *y, const struct tensor *x,
	   const struct moe_weights *w, uint32_t top_k, const uint32_t *chosen, const float *weights);
