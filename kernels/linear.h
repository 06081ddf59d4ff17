/* Matrix products with packed weights, and their packing. */
#pragma once

#include "kernels/backend.h"

/* The kind that @src is packed as, or WEIGHT_NONE if no backend can hold it (see weight_source). */
enum weight_kind weight_kind_of(const struct weight_source *src);

/*
 * Bytes of a packed matrix; rows are padded to 16 and columns to 32 inside
 * (padding is zero and never visible). Layout: strips of 16 rows, all columns
 * of a strip together; see kernels/cpu/layout.h.
 */
size_t weight_bytes(const struct dev *dev, enum weight_kind kind, uint32_t rows, uint32_t cols);

/*
 * Puts memory behind a part of a matrix, where the threads that will read it
 * are: each NUMA node has a run of a matrix's rows. What is there is lost.
 *
 * part		rows @first, a multiple of 16, and on, of a matrix of @rows
 */
void weight_touch(const struct dev *dev, const struct weight *part, uint32_t first, uint32_t rows);

/*
 * Packs @src into @dst, whose kind, rows, cols and data are set; the kind is
 * weight_kind_of(@src). Runs on the calling thread alone, so that several
 * loaders may pack at once. The value of every weight is kept exactly: int4
 * codes and scales are not multiplied out.
 *
 * Returns 0; -EINVAL for shapes or types outside the above; -EDOM if a scale
 * is NaN, infinite, zero or negative: then *ret_bad is the index of the first
 * such scale in @src->scales (may be NULL).
 */
int op_repack(struct dev *dev, const struct weight *dst, const struct weight_source *src,
	      size_t *ret_bad);

/*
 * y[t,r] = sum_c W[r,c] * x[t,c]  (+ bias[r])  (+ y[t,r] if add)
 *
 * x	F32 [1, tokens, cols]
 * y	F32 [1, tokens, rows]; must not overlap x
 * bias	F32 [1, 1, rows] or data NULL
 *
 * The value of W is exact ((code - 8) * scale for int4). x may be rounded
 * inside to BF16-with-remainder or to 16-bit fixed point per 32 columns, so
 * that an activation's error is at most 1/65000 of its group's largest; sums are
 * in F32 or better. REF: double throughout, rounded once.
 *
 * op_linears() computes @n_jobs of them from one x in one go.
 *
 * Return 0, or -EINVAL for shapes or types outside the above.
 */
struct linear_job {
	const struct weight *w;
	struct tensor bias;
	struct tensor y;
	bool add;
};
#define OP_LINEARS_MAX 8
int op_linears(struct stream *st, const struct linear_job *jobs, uint32_t n_jobs,
	       const struct tensor *x);

/*
 * Chooses how op_linears() on @st computes products of more tokens than a few from
 * now on, where there are several ways: each is timed there, with these weights and
 * buffers, for numbers of tokens up to those of x; or taken from the file where a
 * process before has kept what it measured. What is recorded is recorded later.
 *
 * jobs		[n_variants][n_jobs], all variants of the same shapes, as different layers
 *		have them, so that weights come from memory; y of as many tokens as x
 * x		of the most tokens; x and all y are overwritten
 * path		the file, or NULL: nothing is kept
 * ret_text	for people: what computes, and why; "" where there is nothing to choose
 *
 * Waits. Takes no memory of the device but what a library needs for its code, and not
 * longer than a few seconds: what there was no time for is computed as if nothing had
 * been chosen, and timed by the next process. Once for a stream. On CPUs nothing is done.
 *
 * Returns 0, also if there is no library; -EINVAL; -ENOMEM; or -EIO.
 */
struct linear_set {
	const struct linear_job *jobs;
	uint32_t n_jobs, n_variants;
	struct tensor x;
};
int op_linears_choose(struct stream *st, const struct linear_set *sets, uint32_t n_sets,
		      const char *path, char *ret_text, size_t text_bytes);

/*
 * Dense gated MLP: y[t,:] += Wdown * (silu(Wgate x[t]) .* (Wup x[t])),  silu(z) = z / (1 + e^-z)
 *
 * x, y	F32 [1, tokens, dim]; must not overlap
 * gate, up [ffn_dim, dim]; down [dim, ffn_dim]; each of any kind
 */
int op_mlp(struct stream *st, const struct tensor *y, const struct tensor *x,
	   const struct weight *gate, const struct weight *up, const struct weight *down);

/*
 * y[t,:] = row ids[t] of a packed matrix [vocab, dim], exact, of which @table is
 * the rows from @first on; zeros where it has not that row.
 *
 * y	F32 [1, tokens, dim];  ids	tokens ids, each below vocab (-EINVAL otherwise)
 */
int op_embed_part(struct stream *st, const struct tensor *y, const struct weight *table,
		  uint32_t first, uint32_t vocab, const uint32_t *ids);
/* The same where @table is all of it. */
static inline int op_embed(struct stream *st, const struct tensor *y, const struct weight *table,
			   const uint32_t *ids)
{
	return op_embed_part(st, y, table, 0, table->rows, ids);
}

/* The same in double, on one thread, from what the checkpoint holds. Return 0 or -EINVAL. */
int ref_linear(double *y, const struct weight_source *w, const double *bias, const double *x,
	       uint32_t tokens);
/* y += weight * MLP(x) for one token; @h is scratch of ffn_dim doubles. */
int ref_mlp(double *y, const struct weight_source *gate, const struct weight_source *up,
	    const struct weight_source *down, double weight, double *h, const double *x);
