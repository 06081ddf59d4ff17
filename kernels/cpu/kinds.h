/*
 * The table of matrix kernels of one instruction set: for each kind of weight
 * the form of activations it wants and the product itself.
 */
#pragma once

#include "kernels/backend.h"
#include "kernels/cpu/layout.h"
#include "kernels/cpu/tile.h"

struct dev;

/* Rows that one call of a product takes at most, and the stride of its result. */
#define MUL_TOKENS 96
#define MUL_STRIPS 2
#define MUL_ROWS (MUL_STRIPS * STRIP_ROWS)

/* Takes groups [0, n_groups) of a row; @x has n_groups * 32 columns, padding included. */
typedef void (*act_fn)(uint8_t *row, uint32_t at, uint32_t row_groups, const float *x,
		       uint32_t n_groups);

/*
 * out[t][s * 16 + r] = row r of strip s of @w, times x[t]
 *
 * out		[MUL_TOKENS][MUL_ROWS], aligned to 64; rows from n_tokens on may be overwritten
 * w		n_strips strips, strip_bytes apart; n_strips 1 or MUL_STRIPS
 * x		n_tokens activation rows in the kind's form; n_tokens 1 … MUL_TOKENS
 *
 * An element is one fixed sequence of additions over the columns, whatever
 * n_strips and n_tokens are.
 */
typedef void (*mul_fn)(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
		       uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens);

/*
 * The same of up to MUL_STRIPS strips of @kind; of one token's any number, and out has 16
 * elements a strip: what is looked up between two calls waits for the cache behind all that is
 * under way from memory, so a run is best one call. One token's product waits for memory: the
 * two halves of the run side by side ask it for more, unless the processor reads ahead best where
 * it sees one run (dev->in_turn); then strip follows strip. The same bits either way.
 */
void multiply_strips(const struct dev *dev, enum weight_kind kind, mul_fn mul, float *out,
		     const uint8_t *w, uint32_t n_strips, uint32_t cols, const uint8_t *const *x,
		     uint32_t n_tokens);

/* h[i] = silu(gate[i]) * up[i] for MUL_ROWS elements */
typedef void (*gate_fn)(float *h, const float *gate, const float *up);

/* One way to compute the products of a kind, and the form of activations that it wants. */
struct product {
	enum act act;
	mul_fn mul;
};

/* Tokens from which on a kind's second way is the faster. */
#define MUL_MANY 12

struct linear_kernels {
	gate_fn gate;
	act_fn act[ACT_N]; /* NULL: no kind of this set uses it */
	struct {
		struct product few, many; /* many.mul NULL: few serves any number; same bits */
	} kinds[WEIGHT_INT4_F32 + 1];
	/* 0: 6 and 240 KiB */
	uint32_t block_tokens; /* rows that a product takes together */
	size_t block_bytes; /* of activations that shall stay in the second cache over some strips */
};

/* Rows of @row_bytes that are best taken at once. */
static inline uint32_t tokens_at_once(const struct linear_kernels *kernels, size_t row_bytes)
{
	const uint32_t block = kernels->block_tokens ? kernels->block_tokens : 6;
	const size_t bytes = kernels->block_bytes ? kernels->block_bytes : 240 << 10;
	const size_t n = bytes / row_bytes / block * block;

	return n < block ? block : n > MUL_TOKENS ? MUL_TOKENS : (uint32_t)n;
}

/* How weights of @kind are multiplied with @n_tokens rows that go through them together. */
static inline const struct product *product_of(const struct linear_kernels *kernels,
					       enum weight_kind kind, uint32_t n_tokens)
{
	if (n_tokens >= MUL_MANY && kernels->kinds[kind].many.mul)
		return &kernels->kinds[kind].many;
	return &kernels->kinds[kind].few;
}

extern const struct linear_kernels linear_portable, linear_avx2, linear_avx512, linear_avx512bf16,
	linear_avx512bf16_emulated, linear_amx;

/* Products of linear-avx512.c that the tables with bf16 dot products share. */
void mul_f32_avx512(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
		    uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens);
void mul_int4_vnni(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
		   uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens);
void mul_int4_f32_vnni(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
		       uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens);

/* NULL for ISA_REF, which is computed in double by exact.c. */
const struct linear_kernels *linear_kernels_of(enum isa isa);

/* Scratch of op_linears(), op_mlp(), op_moe() and op_embed(). */
size_t matrix_scratch(const struct dev *dev, const struct op_limits *limits);
