/* On CPUs an operation costs nothing to begin: a layer's parts are what they are made of. */
#include "kernels/layer.h"

int op_layer_in(struct stream *st, const struct layer_in *in, const struct tensor *room,
		const struct tensor *x)
{
	return layer_in_apart(st, in, room, x);
}

int op_norm_router(struct stream *st, const struct tensor *y, uint32_t *ret_experts,
		   float *ret_weights, const struct tensor *x, const struct tensor *norm, float eps,
		   const struct tensor *w, const struct tensor *bias,
		   const struct router_params *params)
{
	return norm_router_apart(st, y, ret_experts, ret_weights, x, norm, eps, w, bias, params);
}
