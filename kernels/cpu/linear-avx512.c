/*
 * Matrix products with AVX-512 F, BW, VL, DQ and VNNI. A vector is 16 rows.
 *
 * BF16 and F32 weights: one chain of FMAs over the even columns and one over
 * the odd, added at the end; tiles of tokens share what is loaded of the
 * weights. int4: the exact integer sum of a group, then one FMA with weight
 * scale times activation scale. Of few tokens the sums stay in registers, and a
 * single one takes two strips at once, so that the memory has more to do. Of
 * many the codes of a group of two strips do, while all tokens go over them,
 * two at a time: what is loaded of a token serves both strips.
 */
#include <immintrin.h>

#define LANES 16
#include "kernels/cpu/act.h"
#include "kernels/cpu/ahead.h"
#include "kernels/cpu/scales512.h"

INLINE void load_pair_bf16(const uint8_t *p, __m512 *even, __m512 *odd)
{
	const __m512i q = _mm512_loadu_si512(p);

	*even = _mm512_castsi512_ps(_mm512_slli_epi32(q, 16));
	*odd = _mm512_castsi512_ps(_mm512_and_si512(q, _mm512_set1_epi32((int)0xffff0000)));
}

INLINE void load_pair_f32(const uint8_t *p, __m512 *even, __m512 *odd)
{
	*even = _mm512_loadu_ps(p);
	*odd = _mm512_loadu_ps(p + 64);
}

/* Tokens whose sums for two strips stay in registers. */
#define TILE 6

/* S strips times T tokens of weights in pairs of columns, pair_bytes each. */
INLINE void mul_float(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_groups,
		      const uint8_t *const *x, const int S, const int T, const bool f32)
{
	const size_t pair_bytes = f32 ? 128 : 64;
	__m512 even[MUL_STRIPS][TILE], odd[MUL_STRIPS][TILE];

#pragma GCC unroll 2
	for (int s = 0; s < S; s++)
#pragma GCC unroll 6
		for (int t = 0; t < T; t++)
			even[s][t] = odd[s][t] = _mm512_setzero_ps();

	for (uint32_t k = 0; k < n_groups * GROUP_COLS; k += 2, w += pair_bytes) {
		__m512 w_even[MUL_STRIPS], w_odd[MUL_STRIPS];

#pragma GCC unroll 2
		for (int s = 0; s < S; s++) {
			const uint8_t *p = w + s * strip_bytes;

			ask_ahead(p, S, T);
			if (f32) {
				ask_ahead(p + 64, S, T);
				load_pair_f32(p, &w_even[s], &w_odd[s]);
			} else {
				load_pair_bf16(p, &w_even[s], &w_odd[s]);
			}
		}
#pragma GCC unroll 6
		for (int t = 0; t < T; t++) {
			const float *xt = (const float *)x[t] + k;
			const __m512 x_even = _mm512_set1_ps(xt[0]), x_odd = _mm512_set1_ps(xt[1]);

#pragma GCC unroll 2
			for (int s = 0; s < S; s++) {
				even[s][t] = _mm512_fmadd_ps(w_even[s], x_even, even[s][t]);
				odd[s][t] = _mm512_fmadd_ps(w_odd[s], x_odd, odd[s][t]);
			}
		}
	}
#pragma GCC unroll 2
	for (int s = 0; s < S; s++)
#pragma GCC unroll 6
		for (int t = 0; t < T; t++)
			_mm512_store_ps(out + t * MUL_ROWS + s * STRIP_ROWS,
					_mm512_add_ps(even[s][t], odd[s][t]));
}

INLINE void mul_float_any(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
			  uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens,
			  const bool f32)
{
	for (uint32_t n; n_tokens; n_tokens -= n, x += n, out += n * MUL_ROWS) {
		n = n_strips == MUL_STRIPS ? tile_of(n_tokens, TILE) : 1;
		if (n_strips == MUL_STRIPS)
			WITH_TILE_6(n, mul_float(out, w, strip_bytes, n_groups, x, 2, T, f32))
		else
			mul_float(out, w, strip_bytes, n_groups, x, 1, 1, f32);
	}
}

static void mul_bf16(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
		     uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens)
{
	mul_float_any(out, w, strip_bytes, n_strips, n_groups, x, n_tokens, false);
}

void mul_f32_avx512(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
		    uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens)
{
	mul_float_any(out, w, strip_bytes, n_strips, n_groups, x, n_tokens, true);
}

INLINE __m512i four_columns(const int8_t *x)
{
	int32_t word;

	memcpy(&word, x, 4);
	return _mm512_set1_epi32(word);
}

/* The codes of a group of a strip, four columns a vector. */
INLINE void load_codes(__m512i q[8], const uint8_t *p, const int S, const int T)
{
	const __m512i low_nibble = _mm512_set1_epi8(15);

#pragma GCC unroll 4
	for (int j = 0; j < 4; j++) {
		const __m512i line = _mm512_loadu_si512(p + 64 * j);

		ask_ahead(p + 64 * j, S, T);
		q[2 * j] = _mm512_and_si512(line, low_nibble);
		q[2 * j + 1] = _mm512_and_si512(_mm512_srli_epi16(line, 4), low_nibble);
	}
	ask_ahead(p + 256, S, T);
}

/* Tokens whose sums for a strip stay in registers; of more it takes longer. */
#define NIBBLES_FEW 6

INLINE void mul_nibbles_few(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_groups,
			    const uint8_t *const *x, const int S, const int T, const bool f32)
{
	const size_t bytes = group_bytes(f32 ? WEIGHT_INT4_F32 : WEIGHT_INT4);
	const size_t at_groups = (size_t)n_groups * 2 * GROUP_COLS;
	__m512 sum[MUL_STRIPS][NIBBLES_FEW];

#pragma GCC unroll 2
	for (int s = 0; s < S; s++)
#pragma GCC unroll 6
		for (int t = 0; t < T; t++)
			sum[s][t] = _mm512_setzero_ps();

	for (uint32_t g = 0; g < n_groups; g++, w += bytes) {
#pragma GCC unroll 2
		for (int s = 0; s < S; s++) {
			const uint8_t *p = w + s * strip_bytes;
			const __m512 scales = load_scales(p + 256, f32);
			__m512i q[8];

			load_codes(q, p, S, T);
#pragma GCC unroll 6
			for (int t = 0; t < T; t++) {
				const int8_t *xt = (const int8_t *)x[t] +
						   (size_t)g * 2 * GROUP_COLS;
				const struct fixed_group *group =
					(const struct fixed_group *)(x[t] + at_groups) + g;
				__m512i high = _mm512_setzero_si512(), low = high;

#pragma GCC unroll 8
				for (int i = 0; i < 8; i++) {
					high = _mm512_dpbusd_epi32(high, q[i],
								   four_columns(xt + 4 * i));
					low = _mm512_dpbusd_epi32(
						low, q[i], four_columns(xt + GROUP_COLS + 4 * i));
				}
				low = _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
				low = _mm512_sub_epi32(low, _mm512_set1_epi32(group->sum8));
				sum[s][t] = _mm512_fmadd_ps(
					_mm512_cvtepi32_ps(low),
					_mm512_mul_ps(scales, _mm512_set1_ps(group->scale)),
					sum[s][t]);
			}
		}
	}
#pragma GCC unroll 2
	for (int s = 0; s < S; s++)
#pragma GCC unroll 6
		for (int t = 0; t < T; t++)
			_mm512_store_ps(out + t * MUL_ROWS + s * STRIP_ROWS, sum[s][t]);
}

/* out[t] += group @g of T tokens and two strips, times its scales. */
INLINE void add_group(float *out, const __m512i q[MUL_STRIPS][8], const __m512 *scales,
		      const uint8_t *const *x, uint32_t g, size_t at_groups, const int T)
{
	__m512i high[MUL_STRIPS][2], low[MUL_STRIPS][2];

#pragma GCC unroll 2
	for (int s = 0; s < MUL_STRIPS; s++)
#pragma GCC unroll 2
		for (int t = 0; t < T; t++)
			high[s][t] = low[s][t] = _mm512_setzero_si512();
#pragma GCC unroll 8
	for (int i = 0; i < 8; i++) {
#pragma GCC unroll 2
		for (int t = 0; t < T; t++) {
			const int8_t *xt = (const int8_t *)x[t] + (size_t)g * 2 * GROUP_COLS +
					   4 * i;
			const __m512i x_high = four_columns(xt);
			const __m512i x_low = four_columns(xt + GROUP_COLS);

#pragma GCC unroll 2
			for (int s = 0; s < MUL_STRIPS; s++) {
				high[s][t] = _mm512_dpbusd_epi32(high[s][t], q[s][i], x_high);
				low[s][t] = _mm512_dpbusd_epi32(low[s][t], q[s][i], x_low);
			}
		}
	}
#pragma GCC unroll 2
	for (int t = 0; t < T; t++) {
		const struct fixed_group *group = (const struct fixed_group *)(x[t] + at_groups) +
						  g;
		const __m512i sum8 = _mm512_set1_epi32(group->sum8);
		const __m512 scale = _mm512_set1_ps(group->scale);

#pragma GCC unroll 2
		for (int s = 0; s < MUL_STRIPS; s++) {
			float *to = out + t * MUL_ROWS + s * STRIP_ROWS;
			const __m512i sum = _mm512_sub_epi32(
				_mm512_add_epi32(_mm512_slli_epi32(high[s][t], 8), low[s][t]),
				sum8);

			_mm512_store_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum),
							    _mm512_mul_ps(scales[s], scale),
							    _mm512_load_ps(to)));
		}
	}
}

INLINE void mul_nibbles(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_groups,
			const uint8_t *const *x, uint32_t n_tokens, const bool f32)
{
	const size_t bytes = group_bytes(f32 ? WEIGHT_INT4_F32 : WEIGHT_INT4);
	const size_t at_groups = (size_t)n_groups * 2 * GROUP_COLS;

	memset(out, 0, n_tokens * MUL_ROWS * sizeof(*out));
	for (uint32_t g = 0; g < n_groups; g++, w += bytes) {
		__m512i q[MUL_STRIPS][8];
		__m512 scales[MUL_STRIPS];
		uint32_t t = 0;

#pragma GCC unroll 2
		for (int s = 0; s < MUL_STRIPS; s++) {
			load_codes(q[s], w + s * strip_bytes, 2, 2);
			scales[s] = load_scales(w + s * strip_bytes + 256, f32);
		}
		for (; t + 2 <= n_tokens; t += 2)
			add_group(out + t * MUL_ROWS, q, scales, x + t, g, at_groups, 2);
		if (t < n_tokens)
			add_group(out + t * MUL_ROWS, q, scales, x + t, g, at_groups, 1);
	}
}

INLINE void mul_nibbles_any(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
			    uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens,
			    const bool f32)
{
	if (n_strips == MUL_STRIPS && n_tokens > NIBBLES_FEW) {
		mul_nibbles(out, w, strip_bytes, n_groups, x, n_tokens, f32);
		return;
	}
	if (n_strips == MUL_STRIPS && n_tokens == 1) {
		mul_nibbles_few(out, w, strip_bytes, n_groups, x, 2, 1, f32);
		return;
	}
	for (uint32_t s = 0; s < n_strips; s++, w += strip_bytes, out += STRIP_ROWS) {
		for (uint32_t t = 0, n; t < n_tokens; t += n) {
			float *to = out + t * MUL_ROWS;

			n = tile_of(n_tokens - t, NIBBLES_FEW);
			WITH_TILE_6(n, mul_nibbles_few(to, w, 0, n_groups, x + t, 1, T, f32))
		}
	}
}

void mul_int4_vnni(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
		   uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens)
{
	mul_nibbles_any(out, w, strip_bytes, n_strips, n_groups, x, n_tokens, false);
}

void mul_int4_f32_vnni(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
		       uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens)
{
	mul_nibbles_any(out, w, strip_bytes, n_strips, n_groups, x, n_tokens, true);
}

const struct linear_kernels linear_avx512 = {
	.gate = gate_rows,
	.act = { [ACT_F32] = take_f32, [ACT_SPLIT] = take_split, [ACT_FIXED] = take_fixed },
	.kinds = {
		[WEIGHT_BF16] = { .few = { ACT_F32, mul_bf16 } },
		[WEIGHT_F32] = { .few = { ACT_F32, mul_f32_avx512 } },
		[WEIGHT_INT4] = { .few = { ACT_FIXED, mul_int4_vnni } },
		[WEIGHT_INT4_F32] = { .few = { ACT_FIXED, mul_int4_f32_vnni } },
	},
};
