/* The activations of an operation, taken into the forms that its weights want; in scratch. */
#pragma once

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/kinds.h"

struct acts {
	uint32_t tokens, cols;
	size_t row_bytes[ACT_N];
	uint8_t *rows[ACT_N];	   /* [tokens][row_bytes]; NULL: not wanted */
	const uint8_t **at[ACT_N]; /* [tokens]: each row, as mul_fn takes them */
};

/*
 * Takes @x, F32 [tokens, cols], into every form f with bit f of @forms set,
 * by all threads of the device. Returns 0, or -EINVAL if the scratch is too
 * small.
 */
int acts_take(struct stream *st, struct acts *ret, size_t *scratch_at, const float *x,
	      uint32_t tokens, uint32_t cols, uint32_t forms);

/* Bit of the form that weights of @kind want of @n_tokens rows. */
uint32_t acts_form(const struct dev *dev, enum weight_kind kind, uint32_t n_tokens);
