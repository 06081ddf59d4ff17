/*
 * How a model is divided among ranks: which heads, rows, columns and tokens of
 * the vocabulary belong to which. Pure arithmetic on shapes.
 *
 *	attention	by heads, and with them the KV cache: q, k, v by rows, o by columns
 *	every MLP	by its width: gate and up by rows, down by columns
 *	vocabulary	embedding and head by rows
 *	the rest	norms, routers: whole on every rank
 *
 * A rank's o and down give a part of a sum (kernels/comm.h); all else of a rank
 * is computed from what it has alone. Matrices are packed in strips of 16 rows,
 * and int4 columns in groups of 32, so parts are multiples of those.
 */
#pragma once

#include "daemon/exec/weights/config.h"
#include "kernels/tensor.h"

#define SHARE_RANKS_MAX 8
#define SHARE_ROWS 16	   /* that stay together */
#define SHARE_INT4_COLS 32 /* that stay together, where they are int4 */

enum split {
	SPLIT_NOT,
	SPLIT_ROWS,  /* all ranks have as many */
	SPLIT_COLS,  /* likewise */
	SPLIT_VOCAB, /* rows, of which some ranks have 16 more than others */
};

/* A rank's part of a matrix. */
struct share_part {
	uint32_t first_row, rows, first_col, cols;
};

/*
 * The part of rank @rank of @n_ranks. The last rank's is never smaller than
 * another's, but for what is missing from its last strip. Returns 0, or
 * -ENOTSUP if it cannot be divided: then *ret_unit is what parts would have to
 * be a multiple of (may be NULL).
 */
int share_matrix(uint32_t rows, uint32_t cols, enum weight_kind kind, enum split split,
		 uint32_t rank, uint32_t n_ranks, struct share_part *ret, uint32_t *ret_unit);

/* What a rank has of a model. */
struct share {
	uint32_t rank, n_ranks;
	uint32_t heads, kv_heads, first_kv_head;
	uint32_t ffn_dim, moe_ffn_dim, shared_ffn_dim;
	uint32_t first_vocab, vocab;
};

/*
 * @what: what ranks are called in a refusal: "ranks", "GPUs"
 *
 * Returns 0; -EINVAL if there is no such rank, or more than SHARE_RANKS_MAX;
 * -ENOTSUP with the numbers where heads or vocabulary cannot be divided. What
 * is packed how, and so divides how, is for share_matrix().
 */
int share_make(const struct config *c, uint32_t rank, uint32_t n_ranks, const char *what,
	       struct share *ret, struct err *err);
