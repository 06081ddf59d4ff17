/* Choosing experts in double; the choice itself is shared with the CPU operations. */
#include <errno.h>
#include <math.h>

#include "kernels/cpu/router-choose.h"

bool router_fits(const struct tensor *x, const struct tensor *w, const struct tensor *bias,
		 const struct router_params *params)
{
	const uint32_t experts = w->shape[1], groups = params->groups;

	if (x->type != DT_F32 || w->type != DT_F32 || bias->type != DT_F32)
		return false;
	if (x->shape[2] == 0 || w->shape[2] != x->shape[2] || bias->shape[2] != experts)
		return false;
	if (experts == 0 || experts > MOE_EXPERTS_MAX)
		return false;
	if (params->top_k == 0 || params->top_k > MOE_TOP_K_MAX || params->top_k > experts)
		return false;
	if (groups <= 1)
		return true;
	/* two experts a group make its score, and the groups kept must hold top_k */
	return groups <= MOE_GROUPS_MAX && experts % groups == 0 && experts / groups >= 2 &&
	       params->top_groups >= 1 && params->top_groups <= groups &&
	       params->top_k <= experts / groups * params->top_groups;
}

/* Index of the largest that is not taken, the lowest on ties. */
static uint32_t largest(const double *values, const bool *taken, uint32_t n)
{
	uint32_t best = UINT32_MAX;

	for (uint32_t i = 0; i < n; i++)
		if (!taken[i] && (best == UINT32_MAX || values[i] > values[best]))
			best = i;
	return best;
}

/* Takes the experts of all but the best groups. */
static void mask_groups(const double *c, bool *taken, uint32_t experts,
			const struct router_params *params)
{
	const uint32_t groups = params->groups, size = experts / groups;
	double scores[MOE_GROUPS_MAX];
	bool kept[MOE_GROUPS_MAX] = { false };

	for (uint32_t g = 0; g < groups; g++) {
		double first = -INFINITY, second = -INFINITY;

		for (uint32_t e = g * size; e < (g + 1) * size; e++) {
			if (c[e] > first) {
				second = first;
				first = c[e];
			} else if (c[e] > second) {
				second = c[e];
			}
		}
		scores[g] = first + second;
	}
	for (uint32_t i = 0; i < params->top_groups; i++)
		kept[largest(scores, kept, groups)] = true;
	for (uint32_t e = 0; e < experts; e++)
		taken[e] = !kept[e / size];
}

void router_choose(uint32_t *ret_experts, float *ret_weights, const double *logits,
		   const float *bias, uint32_t experts, const struct router_params *params)
{
	double s[MOE_EXPERTS_MAX], c[MOE_EXPERTS_MAX], sum = 0, factor;
	bool taken[MOE_EXPERTS_MAX] = { false };

	for (uint32_t e = 0; e < experts; e++) {
		s[e] = 1 / (1 + exp(-logits[e]));
		c[e] = s[e] + bias[e];
	}
	if (params->groups > 1)
		mask_groups(c, taken, experts, params);

	for (uint32_t i = 0; i < params->top_k; i++) {
		const uint32_t e = largest(c, taken, experts);

		taken[e] = true;
		ret_experts[i] = e;
		sum += s[e];
	}
	factor = params->normalise ? params->scale / (sum + 1e-20) : params->scale;
	for (uint32_t i = 0; i < params->top_k; i++)
		ret_weights[i] = (float)(s[ret_experts[i]] * factor);
}

int ref_router(uint32_t *ret_experts, float *ret_weights, const struct tensor *x,
	       const struct tensor *w, const struct tensor *bias,
	       const struct router_params *params)
{
	const uint32_t tokens = x->shape[1], dim = x->shape[2], experts = w->shape[1];
	double logits[MOE_EXPERTS_MAX];

	if (!router_fits(x, w, bias, params))
		return -EINVAL;

	for (uint32_t t = 0; t < tokens; t++) {
		const float *token = (const float *)x->data + (size_t)t * dim;

		for (uint32_t e = 0; e < experts; e++) {
			const float *row = (const float *)w->data + (size_t)e * dim;

			logits[e] = 0;
			for (uint32_t i = 0; i < dim; i++)
				logits[e] += (double)token[i] * row[i];
		}
		router_choose(ret_experts + (size_t)t * params->top_k,
			      ret_weights + (size_t)t * params->top_k, logits, bias->data, experts,
			      params);
	}
	return 0;
}
