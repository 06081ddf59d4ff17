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

static inline bool linear_job_fits(const struct linear_job *job, const struct tensor *x)
{
	const struct weight *w = job->w;

	if (!w->rows || !weight_is_whole(w, w->rows, x->shape[2]))
		return false;
	if (job->bias.data && !is_batch(&job->bias, 1, w->rows))
		return false;
	return is_batch(&job->y, x->shape[1], w->rows);
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

/* op_linears() with more tokens than 4: jobs of any kinds, checked. */
int linears_many(struct stream *st, const struct linear_job *jobs, uint32_t n_jobs,
		 const struct tensor *x);
size_t linears_many_scratch(const struct dev *dev, uint32_t tokens, uint32_t cols);

/* One matrix of every expert, at equal distances. */
struct experts {
	const char *first;
	size_t stride;
};
struct experts experts_of(const struct weight *w, uint32_t n);
/* Whether all routed experts are so, in int4, and the shared one, if there is any, BF16. */
bool moe_is_regular(const struct moe_weights *w, uint32_t top_k);

/*
 * op_moe() once it is checked: the first for 1 to 4 tokens, if moe_is_few(), the
 * second for any number, if moe_is_regular().
 */
bool moe_is_few(const struct dev *dev, const struct moe_weights *w, uint32_t tokens,
		uint32_t top_k);
int moe_few(struct stream *st, const struct tensor *y, const struct tensor *x,
	    const struct moe_weights *w, uint32_t top_k, const uint32_t *chosen,
	    const float *weights);
int moe_tiles(struct stream *st, const struct tensor *y, const struct tensor *x,
	      const struct moe_weights *w, uint32_t top_k, const uint32_t *chosen,
	      const float *weights);
int moe_many(struct stream *st, const struct tensor *y, const struct tensor *x,
	     const struct moe_weights *w, uint32_t top_k, const uint32_t *chosen,
	     const float *weights);

/* Scratch that moe_tiles() and moe_many() have in common. */
struct moe_room {
	uint16_t *x, *h, *shared_h;
	float *out, *shared_out; /* [tokens][top_k][n_rows], [tokens][n_rows] */
	uint32_t *lists, *counts; /* [experts][tokens], [experts]: the choices that fell on each */
	void *items;	 /* of moe_tiles() */
	void *tables;	 /* of moe_many() */
	uint32_t n_rows; /* of down at a time */
};
/* False if the stream's scratch is too small. */
bool moe_take_room(const struct stream *st, struct moe_room *ret, uint32_t tokens, uint32_t top_k,
		   uint32_t experts, uint32_t dim, uint32_t ffn_dim, uint32_t shared_dim);
size_t moe_items_bytes(uint32_t choices, uint32_t experts);
/* y, rows first … first + n_rows, += the choices of each token by rising expert, then the shared one. */
int moe_add_up(struct stream *st, const struct tensor *y, const struct moe_room *room,
	       uint32_t top_k, uint32_t experts, uint32_t shared_dim, const uint32_t *chosen,
	       const float *weights, uint32_t first, uint32_t n_rows);
size_t moe_few_scratch(const struct op_limits *limits);
size_t moe_many_scratch(const struct op_limits *limits);
size_t router_scratch(const struct op_limits *limits);
