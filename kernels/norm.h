/* Root mean square normalisation. */
#pragma once

#include "kernels/backend.h"

/*
 * y[t,:] = x[t,:] / sqrt(mean(x[t,:]^2) + eps) * w
 *
 * x, y	F32 [1, tokens, dim]; y may be x, and must not overlap it otherwise
 * w	F32 [1, 1, dim]
 * eps	added to the mean square; positive
 *
 * The sum is taken in double or in a fixed tree of F32. Returns 0 or -EINVAL.
 */
int op_rmsnorm(struct stream *st, const struct tensor *y, const struct tensor *x,
	       const struct tensor *w, float eps);
int ref_rmsnorm(const struct tensor *y, const struct tensor *x, const struct tensor *w, float eps);
