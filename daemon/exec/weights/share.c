/* The arithmetic of dividing a model; see share.h. */
#include "daemon/exec/weights/share.h"

#include <errno.h>

#include "client/wire/ownership.h"

/* Runs of whole strips: [0, n) cut into n_ranks that differ by one strip at most. */
static void cut_strips(uint32_t n, uint32_t rank, uint32_t n_ranks, uint32_t *ret_first,
		       uint32_t *ret_n)
{
	const uint64_t strips = ((uint64_t)n + SHARE_ROWS - 1) / SHARE_ROWS;
	const uint64_t from = strips * rank / n_ranks * SHARE_ROWS;
	const uint64_t end = strips * (rank + 1) / n_ranks * SHARE_ROWS;

	*ret_first = (uint32_t)MIN(from, n);
	*ret_n = (uint32_t)(MIN(end, n) - *ret_first);
}

int share_matrix(uint32_t rows, uint32_t cols, enum weight_kind kind, enum split split,
		 uint32_t rank, uint32_t n_ranks, struct share_part *ret, uint32_t *ret_unit)
{
	const bool int4 = kind == WEIGHT_INT4 || kind == WEIGHT_INT4_F32;
	const uint32_t unit = int4 && split == SPLIT_COLS ? SHARE_INT4_COLS : SHARE_ROWS;
	const uint32_t divided = split == SPLIT_COLS ? cols : rows;
	struct share_part part = { 0, rows, 0, cols };

	if (split == SPLIT_NOT || n_ranks == 1) {
		*ret = part;
		return 0;
	}
	if (ret_unit)
		*ret_unit = unit;
	if (split == SPLIT_VOCAB ? (uint64_t)rows <= (uint64_t)unit * (n_ranks - 1)
				 : divided % (n_ranks * unit) != 0)
		return -ENOTSUP;

	if (split == SPLIT_COLS) {
		part.cols = cols / n_ranks;
		part.first_col = part.cols * rank;
	} else {
		cut_strips(rows, rank, n_ranks, &part.first_row, &part.rows);
	}
	*ret = part;
	return 0;
}

int share_make(const struct config *c, uint32_t rank, uint32_t n_ranks, const char *what,
	       struct share *ret, struct err *err)
{
	struct share_part vocab;
	uint32_t unit;

	if (n_ranks == 0 || n_ranks > SHARE_RANKS_MAX || rank >= n_ranks)
		return err_set(err, -EINVAL, "rank %u of %u; from 1 to %u are possible", rank,
			       n_ranks, SHARE_RANKS_MAX);
	if (c->heads % n_ranks || c->kv_heads % n_ranks)
		return err_set(
			err, -ENOTSUP,
			"%u heads with %u heads of keys and values cannot be divided among %u %s",
			c->heads, c->kv_heads, n_ranks, what);
	if (share_matrix(c->vocab, c->dim, WEIGHT_BF16, SPLIT_VOCAB, rank, n_ranks, &vocab, &unit) <
	    0)
		return err_set(
			err, -ENOTSUP,
			"a vocabulary of %u cannot be divided among %u %s in multiples of %u",
			c->vocab, n_ranks, what, unit);

	*ret = (struct share){
		.rank = rank,
		.n_ranks = n_ranks,
		.heads = c->heads / n_ranks,
		.kv_heads = c->kv_heads / n_ranks,
		.first_kv_head = c->kv_heads / n_ranks * rank,
		.ffn_dim = c->ffn_dim / n_ranks,
		.moe_ffn_dim = c->moe_ffn_dim / n_ranks,
		.shared_ffn_dim = c->moe_ffn_dim * c->shared_experts / n_ranks,
		.first_vocab = vocab.first_row,
		.vocab = vocab.rows,
	};
	return 0;
}
