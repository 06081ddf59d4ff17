/*
 * The inner loops of normalisation, rotation, attention and routing. One
 * source, ops-body.h over vector.h, is compiled once for each instruction set;
 * the instruction sets differ in the width of their vectors alone.
 */
#pragma once

#include "kernels/cpu/kv.h"

/* Positions are attended in chunks that begin at multiples of this, whoever computes them. */
#define ATTEND_CHUNK 256
/* Query rows that read a key or a value together. */
#define ATTEND_ROWS_MAX 48

/* Queries that share a kv head, in rising order of position. */
struct attend {
	const struct kv_cache *kv;
	const struct seq *seq;
	uint32_t layer, kv_head, n_rows;
	const float *q[ATTEND_ROWS_MAX];	/* [head_dim] */
	uint32_t positions[ATTEND_ROWS_MAX];	/* positions 0 .. positions[row] are attended */
};

/* Softmax over some positions, not yet divided: sum of weights, and of weighted values. */
struct attend_part {
	float most[ATTEND_ROWS_MAX], sum[ATTEND_ROWS_MAX];
	float acc[ATTEND_ROWS_MAX * KV_HEAD_DIM_MAX]; /* [n_rows][head_dim] */
};

struct ops_kernels {
	/* y = x / sqrt(mean(x^2) + eps) * w, as op_rmsnorm(), for one row */
	void (*rmsnorm)(float *y, const float *x, const float *w, uint32_t dim, float eps);
	/* Rotates the first 2 * half dims of one head in place. */
	void (*rotate)(float *x, const float *cos, const float *sin, uint32_t half);
	/* ret[i] = sum_c w[i][c] x[c] in double, for n_rows of @w; a row's bits do not depend on n_rows */
	void (*dots)(double *ret, const float *x, const float *w, uint32_t dim, uint32_t n_rows);
	/* Attention of every row over the positions of one chunk that it may see. */
	void (*attend)(const struct attend *a, uint32_t chunk, struct attend_part *ret);
	/* y = acc / sum, for one head of one row */
	void (*divide)(float *y, const float *acc, float sum, uint32_t head_dim);
	/* Adds @part, of the next chunk, to @total; rows that saw nothing of it stay. */
	void (*merge)(struct attend_part *total, const struct attend_part *part, uint32_t n_rows,
		      uint32_t head_dim);
};

extern const struct ops_kernels ops_portable, ops_avx2, ops_avx512;

const struct ops_kernels *ops_kernels(enum isa isa);
