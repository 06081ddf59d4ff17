/* Normalisation, rotation, attention and routing with vectors of 8 floats. */
#define LANES 8
#include "kernels/cpu/ops-body.h"
#include "kernels/cpu/attend-body.h"

const struct ops_kernels ops_avx2 = {
	.rmsnorm = body_rmsnorm,
	.rotate = body_rotate,
	.dots = body_dots,
	.attend = body_attend,
	.divide = body_divide,
	.merge = body_merge,
};
