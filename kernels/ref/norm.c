/* Root mean square normalisation in double. */
#include "kernels/norm.h"

#include <errno.h>
#include <math.h>

int ref_rmsnorm(const struct tensor *y, const struct tensor *x, const struct tensor *w, float eps)
{
	const uint32_t tokens = x->shape[1], dim = x->shape[2];
	const float *weight = w->data;

	if (x->type != DT_F32 || y->type != DT_F32 || w->type != DT_F32)
		return -EINVAL;
	if (dim == 0 || y->shape[1] != tokens || y->shape[2] != dim || w->shape[2] != dim)
		return -EINVAL;
	if (!(eps > 0))
		return -EINVAL;

	for (uint32_t t = 0; t < tokens; t++) {
		const float *from = (const float *)x->data + (size_t)t * dim;
		float *to = (float *)y->data + (size_t)t * dim;
		double sum = 0, factor;

		for (uint32_t i = 0; i < dim; i++)
			sum += (double)from[i] * from[i];
		factor = 1 / sqrt(sum / dim + (double)eps);
		for (uint32_t i = 0; i < dim; i++)
			to[i] = (float)(from[i] * factor * weight[i]);
	}
	return 0;
}
