/* The work of op_moe(), sorted by expert. */
#pragma once

#include "kernels/tensor.h"

/* One MLP and the tokens that go through it; the shared one comes last, with all tokens. */
struct moe_part {
	const struct weight *gate, *up, *down;
	const uint32_t *tokens; /* [n]: rows of x and y, rising */
	const float *weights;	/* [n]; NULL: 1 for all */
	uint32_t n;
	uint32_t ffn_dim;
};
