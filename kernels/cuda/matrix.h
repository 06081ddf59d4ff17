/* What the matrix operations have in common on the host. */
#pragma once

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/layout.h"

extern "C" {
#include "kernels/moe.h"
#include "kernels/source.h"
}

/* A batch of rows in F32. */
static inline bool is_batch(const struct tensor *t, uint32_t tokens, uint32_t cols)
{
	return t->type == DT_F32 && t->shape[0] == 1 && t->shape[1] == tokens &&
	       t->shape[2] == cols && (t->data || !tokens);
}

/* Takes @bytes off the scratch at *@at (offset, rounded up to 256); NULL if it does not fit. */
static inline void *matrix_scratch_take(const struct stream *st, size_t *at, size_t bytes)
{
	const size_t begin = *at;

	bytes = (bytes + 255) & ~(size_t)255;
	if (bytes > st->scratch_bytes || begin > st->scratch_bytes - bytes)
		return NULL;
	*at = begin + bytes;
	return st->scratch + begin;
}

static inline uint32_t ceil_div(uint32_t a, uint32_t b)
{
	return a / b + (a % b != 0);
}

/* Of op_linears(), op_mlp(), op_moe() and op_router(), for op_scratch(). */
size_t matrix_scratch(const struct dev *dev, const struct op_limits *limits);

/*
 * The split form of a batch: [row][high, low][padded_cols()], BF16, the rest
 * of a row zero. x F32 [rows, cols].
 */
size_t split_bytes(size_t rows, uint32_t cols);
int split_rows(struct stream *st, uint16_t *to, const float *x, uint32_t rows, uint32_t cols);

/* op_linears() with more tokens than 8: jobs of any kinds, checked. */
int linears_many(struct stream *st, const struct linear_job *jobs, uint32_t n_jobs,
		 const struct tensor *x);
size_t linears_many_scratch(const struct dev *dev, uint32_t tokens, uint32_t cols);

/* op_moe() once it is checked; the first for 1 to 8 tokens, if moe_is_few(). */
bool moe_is_few(const struct dev *dev, const struct moe_weights *w, uint32_t tokens,
		uint32_t top_k);
int moe_few(struct stream *st, const struct tensor *y, const struct tensor *x,
	    const struct moe_weights *w, uint32_t top_k, const uint32_t *chosen,
	    const float *weights);
int moe_many(struct stream *st, const struct tensor *y, const struct tensor *x,
	     const struct moe_weights *w, uint32_t top_k, const uint32_t *chosen,
	     const float *weights);
size_t moe_few_scratch(const struct op_limits *limits);
size_t moe_many_scratch(const struct op_limits *limits);
size_t router_scratch(const struct op_limits *limits);
