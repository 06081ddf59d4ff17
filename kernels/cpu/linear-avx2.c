/*
 * Matrix products with AVX2 and FMA: a strip is two vectors of 8 rows. The
 * order of additions is that of the wider vectors: even and odd columns in two
 * chains, groups of int4 as exact integers. Sixteen products of 15 times 128
 * fit 16 bits, so a group's bytes are widened once.
 */
#include <immintrin.h>

#define LANES 8
#include "kernels/cpu/act.h"

#define PREFETCH 2048
#define HALF 8

INLINE void load_pair(const uint8_t *p, const bool f32, __m256 *even, __m256 *odd)
{
	__m256i q;

	if (f32) {
		*even = _mm256_loadu_ps((const float *)p);
		*odd = _mm256_loadu_ps((const float *)(p + 64));
		return;
	}
	q = _mm256_loadu_si256((const __m256i *)p);
	*even = _mm256_castsi256_ps(_mm256_slli_epi32(q, 16));
	*odd = _mm256_castsi256_ps(_mm256_and_si256(q, _mm256_set1_epi32((int)0xffff0000)));
}

/* H halves of strips (the third and fourth are the next strip's) times T tokens. */
INLINE void mul_float(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_groups,
		      const uint8_t *const *x, const int H, const int T, const bool f32)
{
	const size_t pair_bytes = f32 ? 128 : 64;
	__m256 even[4][3], odd[4][3];

#pragma GCC unroll 4
	for (int h = 0; h < H; h++)
#pragma GCC unroll 3
		for (int t = 0; t < T; t++)
			even[h][t] = odd[h][t] = _mm256_setzero_ps();

	for (uint32_t k = 0; k < n_groups * GROUP_COLS; k += 2, w += pair_bytes) {
#pragma GCC unroll 4
		for (int h = 0; h < H; h++) {
			const uint8_t *p = w + h / 2 * strip_bytes + h % 2 * 32;
			__m256 w_even, w_odd;

			if (h % 2 == 0) {
				_mm_prefetch((const char *)p + PREFETCH, _MM_HINT_T0);
				if (f32)
					_mm_prefetch((const char *)p + PREFETCH + 64, _MM_HINT_T0);
			}
			load_pair(p, f32, &w_even, &w_odd);
#pragma GCC unroll 3
			for (int t = 0; t < T; t++) {
				const float *xt = (const float *)x[t] + k;

				even[h][t] = _mm256_fmadd_ps(w_even, _mm256_broadcast_ss(xt),
							     even[h][t]);
				odd[h][t] = _mm256_fmadd_ps(w_odd, _mm256_broadcast_ss(xt + 1),
							    odd[h][t]);
			}
		}
	}
#pragma GCC unroll 4
	for (int h = 0; h < H; h++)
#pragma GCC unroll 3
		for (int t = 0; t < T; t++)
			_mm256_store_ps(out + t * MUL_ROWS + h * HALF,
					_mm256_add_ps(even[h][t], odd[h][t]));
}

INLINE void mul_float_any(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
			  uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens,
			  const bool f32)
{
	if (n_tokens == 1 && n_strips == 2) {
		mul_float(out, w, strip_bytes, n_groups, x, 4, 1, f32);
		return;
	}
	for (uint32_t s = 0; s < n_strips; s++, w += strip_bytes, out += STRIP_ROWS) {
		uint32_t t = 0;

		for (; t + 3 <= n_tokens; t += 3)
			mul_float(out + t * MUL_ROWS, w, 0, n_groups, x + t, 2, 3, f32);
		for (; t < n_tokens; t++)
			mul_float(out + t * MUL_ROWS, w, 0, n_groups, x + t, 2, 1, f32);
	}
}

static void mul_bf16(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
		     uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens)
{
	mul_float_any(out, w, strip_bytes, n_strips, n_groups, x, n_tokens, false);
}

static void mul_f32(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
		    uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens)
{
	mul_float_any(out, w, strip_bytes, n_strips, n_groups, x, n_tokens, true);
}

/* The sum of one group over eight rows, in 32 bits. */
INLINE __m256i sum_bytes(const __m256i q[8], const int8_t *x)
{
	__m256i sum = _mm256_setzero_si256();

#pragma GCC unroll 8
	for (int i = 0; i < 8; i++) {
		int32_t four;

		memcpy(&four, x + 4 * i, sizeof(four));
		sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(q[i], _mm256_set1_epi32(four)));
	}
	return _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
}

INLINE __m256 load_scales(const uint8_t *p, const bool f32)
{
	if (f32)
		return _mm256_loadu_ps((const float *)p);
	return _mm256_castsi256_ps(
		_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}

INLINE void mul_nibbles(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_groups,
			const uint8_t *const *x, const int H, const int T, const bool f32)
{
	const size_t bytes = group_bytes(f32 ? WEIGHT_INT4_F32 : WEIGHT_INT4);
	const size_t at_groups = (size_t)n_groups * 2 * GROUP_COLS;
	const __m256i low_nibble = _mm256_set1_epi8(15);
	__m256 sum[4][4];

#pragma GCC unroll 4
	for (int h = 0; h < H; h++)
#pragma GCC unroll 4
		for (int t = 0; t < T; t++)
			sum[h][t] = _mm256_setzero_ps();

	for (uint32_t g = 0; g < n_groups; g++, w += bytes) {
#pragma GCC unroll 4
		for (int h = 0; h < H; h++) {
			const uint8_t *p = w + h / 2 * strip_bytes + h % 2 * 32;
			const __m256 scales = load_scales(
				w + h / 2 * strip_bytes + 256 + h % 2 * (f32 ? 32 : 16), f32);
			__m256i q[8];

#pragma GCC unroll 4
			for (int j = 0; j < 4; j++) {
				const __m256i line =
					_mm256_loadu_si256((const __m256i *)(p + 64 * j));

				if (h % 2 == 0)
					_mm_prefetch((const char *)p + PREFETCH + 64 * j,
						     _MM_HINT_T0);
				q[2 * j] = _mm256_and_si256(line, low_nibble);
				q[2 * j + 1] = _mm256_and_si256(_mm256_srli_epi16(line, 4),
								low_nibble);
			}
#pragma GCC unroll 4
			for (int t = 0; t < T; t++) {
				const int8_t *xt = (const int8_t *)x[t] +
						   (size_t)g * 2 * GROUP_COLS;
				const struct fixed_group *group =
					(const struct fixed_group *)(x[t] + at_groups) + g;
				const __m256i high = sum_bytes(q, xt);
				const __m256i low = sum_bytes(q, xt + GROUP_COLS);
				const __m256i all = _mm256_sub_epi32(
					_mm256_add_epi32(_mm256_slli_epi32(high, 8), low),
					_mm256_set1_epi32(group->sum8));

				sum[h][t] = _mm256_fmadd_ps(
					_mm256_cvtepi32_ps(all),
					_mm256_mul_ps(scales, _mm256_set1_ps(group->scale)),
					sum[h][t]);
			}
		}
	}
#pragma GCC unroll 4
	for (int h = 0; h < H; h++)
#pragma GCC unroll 4
		for (int t = 0; t < T; t++)
			_mm256_store_ps(out + t * MUL_ROWS + h * HALF, sum[h][t]);
}

INLINE void mul_nibbles_any(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
			    uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens,
			    const bool f32)
{
	if (n_tokens == 1 && n_strips == 2) {
		mul_nibbles(out, w, strip_bytes, n_groups, x, 4, 1, f32);
		return;
	}
	for (uint32_t s = 0; s < n_strips; s++, w += strip_bytes, out += STRIP_ROWS) {
		uint32_t t = 0;

		for (; t + 4 <= n_tokens; t += 4)
			mul_nibbles(out + t * MUL_ROWS, w, 0, n_groups, x + t, 2, 4, f32);
		for (; t < n_tokens; t++)
			mul_nibbles(out + t * MUL_ROWS, w, 0, n_groups, x + t, 2, 1, f32);
	}
}

static void mul_int4(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
		     uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens)
{
	mul_nibbles_any(out, w, strip_bytes, n_strips, n_groups, x, n_tokens, false);
}

static void mul_int4_f32(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
			 uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens)
{
	mul_nibbles_any(out, w, strip_bytes, n_strips, n_groups, x, n_tokens, true);
}

const struct linear_kernels linear_avx2 = {
	.gate = gate_rows,
	.act = { [ACT_F32] = take_f32, [ACT_SPLIT] = take_split, [ACT_FIXED] = take_fixed },
	.kinds = {
		[WEIGHT_BF16] = { ACT_F32, mul_bf16 },
		[WEIGHT_F32] = { ACT_F32, mul_f32 },
		[WEIGHT_INT4] = { ACT_FIXED, mul_int4 },
		[WEIGHT_INT4_F32] = { ACT_FIXED, mul_int4_f32 },
	},
};
