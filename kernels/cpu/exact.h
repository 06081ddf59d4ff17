/* Matrix operations of ISA_REF: packed weights in double, rounded once at the end. */
#pragma once

#include "kernels/cpu/cpu.h"
#include "kernels/moe.h"

int exact_linear(struct stream *st, const struct linear_job *job, const struct tensor *x);
/* Assignments as kernels/cpu/moe.c sorts them; y += over all parts, in their order. */
struct moe_part;
int exact_moe(struct stream *st, size_t scratch_at, float *y, const float *x, uint32_t tokens,
	      uint32_t dim, const struct moe_part *parts, uint32_t n_parts);
