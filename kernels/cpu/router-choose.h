/* From the logits of one token to its experts and their weights, in double; and the router's limits. */
#pragma once

#include "kernels/moe.h"

void router_choose(uint32_t *ret_experts, float *ret_weights, const double *logits,
		   const float *bias, uint32_t experts, const struct router_params *params);

bool router_fits(const struct tensor *x, const struct tensor *w, const struct tensor *bias,
		 const struct router_params *params);
