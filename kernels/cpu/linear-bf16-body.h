/*
 * Products of BF16 weights by bf16 dot products; included once by a file that
 * has defined DOT_PAIRS(sum, weights, activations) and LINEAR_TABLE.
 *
 * One BF16 of an activation would be too coarse, so each is two, high and low,
 * and takes two dot products: still fewer instructions than widening the
 * weights. int4 stays with the integer form: it needs two products for as many
 * columns where bf16 pairs would need four, and no table look-ups.
 */
#include <immintrin.h>

#define LANES 16
#include "kernels/cpu/act.h"
#include "kernels/cpu/ahead.h"

/* Tokens whose sums for two strips stay in registers. */
#define TILE 6

INLINE void mul_tile(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_groups,
		     const uint8_t *const *x, const int S, const int T)
{
	__m512 high[MUL_STRIPS][TILE], low[MUL_STRIPS][TILE];

#pragma GCC unroll 2
	for (int s = 0; s < S; s++)
#pragma GCC unroll 6
		for (int t = 0; t < T; t++)
			high[s][t] = low[s][t] = _mm512_setzero_ps();

	for (uint32_t g = 0; g < n_groups; g++) {
		for (uint32_t i = 0; i < GROUP_COLS / 2; i++, w += 64) {
			__m512i q[MUL_STRIPS];

#pragma GCC unroll 2
			for (int s = 0; s < S; s++) {
				q[s] = _mm512_loadu_si512(w + s * strip_bytes);
				ask_ahead(w + s * strip_bytes, S, T);
			}
#pragma GCC unroll 6
			for (int t = 0; t < T; t++) {
				const int32_t *xt = (const int32_t *)x[t] + g * GROUP_COLS + i;
				const __m512i x_high = _mm512_set1_epi32(xt[0]);
				const __m512i x_low = _mm512_set1_epi32(xt[GROUP_COLS / 2]);

#pragma GCC unroll 2
				for (int s = 0; s < S; s++) {
					high[s][t] = DOT_PAIRS(high[s][t], q[s], x_high);
					low[s][t] = DOT_PAIRS(low[s][t], q[s], x_low);
				}
			}
		}
	}
#pragma GCC unroll 2
	for (int s = 0; s < S; s++)
#pragma GCC unroll 6
		for (int t = 0; t < T; t++)
			_mm512_store_ps(out + t * MUL_ROWS + s * STRIP_ROWS,
					_mm512_add_ps(high[s][t], low[s][t]));
}

static void mul_bf16(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
		     uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens)
{
	for (uint32_t n; n_tokens; n_tokens -= n, x += n, out += n * MUL_ROWS) {
		n = n_strips == MUL_STRIPS ? tile_of(n_tokens, TILE) : 1;
		if (n_strips == MUL_STRIPS)
			WITH_TILE_6(n, mul_tile(out, w, strip_bytes, n_groups, x, 2, T))
		else
			mul_tile(out, w, strip_bytes, n_groups, x, 1, 1);
	}
}

const struct linear_kernels LINEAR_TABLE = {
	.gate = gate_rows,
	.act = { [ACT_F32] = take_f32, [ACT_SPLIT] = take_split, [ACT_FIXED] = take_fixed },
	.kinds = {
		[WEIGHT_BF16] = { .few = { ACT_SPLIT, mul_bf16 } },
		[WEIGHT_F32] = { .few = { ACT_F32, mul_f32_avx512 } },
		[WEIGHT_INT4] = { .few = { ACT_FIXED, mul_int4_vnni } },
		[WEIGHT_INT4_F32] = { .few = { ACT_FIXED, mul_int4_f32_vnni } },
	},
};
