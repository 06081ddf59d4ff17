/*
 * Matrix products with AVX2 and FMA: a strip is two vectors of 8 rows. The
 * order of additions is that of the wider vectors: even and odd columns in two
 * chains, groups of int4 as exact integers. One token takes two strips at once,
 * so that the memory has more to do; many are taken in tiles that keep their
 * sums in registers.
 */
#include <immintrin.h>

#define LANES 8
#define ASK_AHEAD 1024 /* measured: Zen 3, a tenth faster than 2048 */
#include "kernels/cpu/act.h"
#include "kernels/cpu/ahead.h"

#define HALF 8
#define HALVES (MUL_ROWS / HALF)

/* Tokens whose sums for one strip fill the registers. */
#define TILE 6
/* The same of the two sums that int4 takes. */
#define NIBBLE_TILE 3
/* Columns that a tile goes through before the next one: they stay in the first cache. */
#define BLOCK_COLS 256
/* The same of weights that are no integers; and tokens whose activations and sums fit in beside them. */
#define FLOAT_COLS 128
#define RUN_TOKENS 24

/* Sums that are hidden from the compiler stay in their registers: it would rather reorder and spill. */
#define KEEP(v) __asm__("" : "+x"(v))
#define ADD_EPI32(sum, v) __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(v))

/* The even (or odd) columns of one half strip at @p, a pair of columns. */
INLINE __m256 load_columns(const uint8_t *p, const bool odd, const bool f32)
{
	if (f32)
		return _mm256_loadu_ps((const float *)(p + (odd ? 64 : 0)));
	if (odd)
		return _mm256_and_ps(_mm256_loadu_ps((const float *)p),
				     _mm256_castsi256_ps(_mm256_set1_epi32((int)0xffff0000)));
	return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256((const __m256i *)p), 16));
}

/* One token times H halves of strips; the third and fourth are the next strip's. */
INLINE void mul_float_one(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_groups,
			  const float *x, const int H, const bool f32)
{
	const size_t pair_bytes = f32 ? 128 : 64;
	__m256 even[HALVES], odd[HALVES];

#pragma GCC unroll 4
	for (int h = 0; h < H; h++)
		even[h] = odd[h] = _mm256_setzero_ps();

	for (uint32_t k = 0; k < n_groups * GROUP_COLS; k += 2, w += pair_bytes) {
		const __m256 x_even = _mm256_broadcast_ss(x + k);
		const __m256 x_odd = _mm256_broadcast_ss(x + k + 1);

#pragma GCC unroll 4
		for (int h = 0; h < H; h++) {
			const uint8_t *p = w + h / 2 * strip_bytes + h % 2 * 32;

			if (h % 2 == 0) {
				ask_ahead(p, H / 2, 1);
				if (f32)
					ask_ahead(p + 64, H / 2, 1);
			}
			even[h] = _mm256_fmadd_ps(load_columns(p, false, f32), x_even, even[h]);
			odd[h] = _mm256_fmadd_ps(load_columns(p, true, f32), x_odd, odd[h]);
		}
	}
#pragma GCC unroll 4
	for (int h = 0; h < H; h++)
		_mm256_store_ps(out + h * HALF, _mm256_add_ps(even[h], odd[h]));
}

/* Lines of the next block that memory is asked for beside this one: @n of each strip. */
struct ask {
	const uint8_t *at;
	uint32_t n;
};

/* sums[t] += every other column from @k on, n_pairs of them, of H halves of strips times T tokens. */
INLINE void add_columns(float (*sums)[MUL_ROWS], const uint8_t *w, size_t strip_bytes,
			uint32_t n_pairs, const uint8_t *const *x, uint32_t k, struct ask ask,
			const int H, const int T, const bool odd, const bool f32)
{
	__m256 sum[HALVES][TILE];
	const float *xt[TILE];

#pragma GCC unroll 6
	for (int t = 0; t < T; t++) {
		xt[t] = (const float *)x[t] + k + odd;
#pragma GCC unroll 4
		for (int h = 0; h < H; h++)
			sum[h][t] = _mm256_load_ps(sums[t] + h * HALF);
	}
	for (uint32_t j = 0; j < n_pairs; j++, w += f32 ? 128 : 64) {
		__m256 columns[HALVES];

		if (j < ask.n) {
			_mm_prefetch((const char *)ask.at + j * 64, _MM_HINT_T0);
			if (H > 2)
				_mm_prefetch((const char *)ask.at + strip_bytes + j * 64,
					     _MM_HINT_T0);
		}
#pragma GCC unroll 4
		for (int h = 0; h < H; h++)
			columns[h] = load_columns(w + h / 2 * strip_bytes + h % 2 * 32, odd, f32);
#pragma GCC unroll 6
		for (int t = 0; t < T; t++) {
			const __m256 one = _mm256_broadcast_ss(xt[t] + 2 * j);

#pragma GCC unroll 4
			for (int h = 0; h < H; h++)
				sum[h][t] = _mm256_fmadd_ps(columns[h], one, sum[h][t]);
		}
	}
#pragma GCC unroll 6
	for (int t = 0; t < T; t++)
#pragma GCC unroll 4
		for (int h = 0; h < H; h++)
			_mm256_store_ps(sums[t] + h * HALF, sum[h][t]);
}

/* Two strips times few tokens are one tile, or the registers would hold too few sums to be busy. */
INLINE void add_tile(float (*sums)[MUL_ROWS], const uint8_t *w, size_t strip_bytes,
		     uint32_t n_strips, uint32_t n_pairs, const uint8_t *const *x,
		     uint32_t n_tokens, uint32_t k, struct ask ask, const bool odd, const bool f32)
{
	if (n_strips == 2 && n_tokens == 3) {
		add_columns(sums, w, strip_bytes, n_pairs, x, k, ask, 4, 3, odd, f32);
		return;
	}
	if (n_strips == 2 && n_tokens == 2) {
		add_columns(sums, w, strip_bytes, n_pairs, x, k, ask, 4, 2, odd, f32);
		return;
	}
	for (uint32_t s = 0; s < n_strips; s++, w += strip_bytes, ask.at += strip_bytes) {
		float(*to)[MUL_ROWS] = (float(*)[MUL_ROWS])(sums[0] + s * STRIP_ROWS);

		switch (n_tokens) {
		case 6:
			add_columns(to, w, 0, n_pairs, x, k, ask, 2, 6, odd, f32);
			break;
		case 5:
			add_columns(to, w, 0, n_pairs, x, k, ask, 2, 5, odd, f32);
			break;
		case 4:
			add_columns(to, w, 0, n_pairs, x, k, ask, 2, 4, odd, f32);
			break;
		case 3:
			add_columns(to, w, 0, n_pairs, x, k, ask, 2, 3, odd, f32);
			break;
		case 2:
			add_columns(to, w, 0, n_pairs, x, k, ask, 2, 2, odd, f32);
			break;
		}
	}
}

/*
 * Block by block of columns, which stay in the first cache while 2 … RUN_TOKENS
 * tokens go over them in tiles of about one size: in each the even columns,
 * then the odd.
 */
INLINE void mul_float_run(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
			  uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens,
			  const bool f32)
{
	const uint32_t cols = n_groups * GROUP_COLS, n_tiles = (n_tokens + TILE - 1) / TILE;
	const size_t col_bytes = f32 ? 64 : 32;
	_Alignas(32) float even[RUN_TOKENS][MUL_ROWS], odd[RUN_TOKENS][MUL_ROWS];

	memset(even, 0, n_tokens * sizeof(*even));
	memset(odd, 0, n_tokens * sizeof(*odd));
	for (uint32_t k = 0; k < cols; k += FLOAT_COLS) {
		const uint32_t n = (cols - k < FLOAT_COLS ? cols - k : FLOAT_COLS) / 2;
		const uint8_t *block = w + k * col_bytes;
		struct ask ask = { block + n * 2 * col_bytes,
				   (n + 2 * n_tiles - 1) / (2 * n_tiles) };

		if (k + FLOAT_COLS >= cols) /* then come the next strips */
			ask.at += (n_strips - 1) * strip_bytes;
		for (uint32_t i = 0; i < n_tiles; i++) {
			const uint32_t from = n_tokens * i / n_tiles;
			const uint32_t to = n_tokens * (i + 1) / n_tiles;

			add_tile(even + from, block, strip_bytes, n_strips, n, x + from, to - from,
				 k, ask, false, f32);
			ask.at += ask.n * 64;
			add_tile(odd + from, block, strip_bytes, n_strips, n, x + from, to - from,
				 k, ask, true, f32);
			ask.at += ask.n * 64;
		}
	}
	for (uint32_t t = 0; t < n_tokens; t++)
		for (uint32_t i = 0; i < n_strips * STRIP_ROWS; i += HALF)
			_mm256_store_ps(out + t * MUL_ROWS + i,
					_mm256_add_ps(_mm256_load_ps(even[t] + i),
						      _mm256_load_ps(odd[t] + i)));
}

INLINE void mul_float_any(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
			  uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens,
			  const bool f32)
{
	if (n_tokens == 1 && n_strips == 2) {
		mul_float_one(out, w, strip_bytes, n_groups, (const float *)x[0], 4, f32);
		return;
	}
	if (n_tokens == 1) {
		mul_float_one(out, w, strip_bytes, n_groups, (const float *)x[0], 2, f32);
		return;
	}
	for (uint32_t t = 0, n; t < n_tokens; t += n) {
		n = n_tokens - t;
		if (n > RUN_TOKENS) /* a single one must not be left over */
			n = n == RUN_TOKENS + 1 ? RUN_TOKENS - TILE : RUN_TOKENS;
		mul_float_run(out + t * MUL_ROWS, w, strip_bytes, n_strips, n_groups, x + t, n,
			      f32);
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

INLINE __m256 load_scales(const uint8_t *p, const bool f32)
{
	if (f32)
		return _mm256_loadu_ps((const float *)p);
	return _mm256_castsi256_ps(
		_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}

INLINE __m256i four_bytes(const uint8_t *x)
{
	int32_t word;

	memcpy(&word, x, sizeof(word));
	return _mm256_set1_epi32(word);
}

INLINE void add_products(__m256i *sum, __m256i q, __m256i x)
{
	*sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(q, x));
}

/*
 * H halves of strips times T tokens in ACT_FIXED. A group's products with the
 * high bytes and with the low bytes are summed in 16 bits: sixteen of 15 times
 * 128 fit.
 */
INLINE void mul_nibbles_tile(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_groups,
			     const uint8_t *const *x, const int H, const int T, const bool f32)
{
	const size_t bytes = group_bytes(f32 ? WEIGHT_INT4_F32 : WEIGHT_INT4);
	const size_t at_groups = (size_t)n_groups * 2 * GROUP_COLS;
	const __m256i low_nibble = _mm256_set1_epi8(15);
	__m256 sum[NIBBLE_TILE][HALVES];

#pragma GCC unroll 3
	for (int t = 0; t < T; t++)
#pragma GCC unroll 4
		for (int h = 0; h < H; h++)
			sum[t][h] = _mm256_setzero_ps();

	for (uint32_t g = 0; g < n_groups; g++, w += bytes) {
		__m256i high[NIBBLE_TILE][HALVES], low[NIBBLE_TILE][HALVES];

#pragma GCC unroll 3
		for (int t = 0; t < T; t++)
#pragma GCC unroll 4
			for (int h = 0; h < H; h++)
				high[t][h] = low[t][h] = _mm256_setzero_si256();
#pragma GCC unroll 4
		for (int j = 0; j < 4; j++) {
#pragma GCC unroll 4
			for (int h = 0; h < H; h++) {
				const uint8_t *p = w + h / 2 * strip_bytes + h % 2 * 32 + 64 * j;
				const __m256i line = _mm256_loadu_si256((const __m256i *)p);
				const __m256i q0 = _mm256_and_si256(line, low_nibble);
				const __m256i q1 = _mm256_and_si256(_mm256_srli_epi16(line, 4),
								    low_nibble);

				if (h % 2 == 0)
					ask_ahead(p, H / 2, T);
#pragma GCC unroll 3
				for (int t = 0; t < T; t++) {
					const uint8_t *high_x = x[t] + g * 2 * GROUP_COLS + 8 * j;
					const uint8_t *low_x = high_x + GROUP_COLS;

					add_products(&high[t][h], q0, four_bytes(high_x));
					add_products(&low[t][h], q0, four_bytes(low_x));
					add_products(&high[t][h], q1, four_bytes(high_x + 4));
					add_products(&low[t][h], q1, four_bytes(low_x + 4));
					KEEP(high[t][h]);
					KEEP(low[t][h]);
				}
			}
		}
#pragma GCC unroll 4
		for (int h = 0; h < H; h++) {
			const uint8_t *p = w + h / 2 * strip_bytes + 256 + h % 2 * (f32 ? 32 : 16);
			const __m256 scales = load_scales(p, f32);

#pragma GCC unroll 3
			for (int t = 0; t < T; t++) {
				const struct fixed_group *group =
					(const struct fixed_group *)(x[t] + at_groups) + g;
				__m256i all = _mm256_add_epi32(
					_mm256_madd_epi16(high[t][h], _mm256_set1_epi16(256)),
					_mm256_madd_epi16(low[t][h], _mm256_set1_epi16(1)));

				all = _mm256_sub_epi32(all, _mm256_set1_epi32(group->sum8));
				sum[t][h] = _mm256_fmadd_ps(
					_mm256_cvtepi32_ps(all),
					_mm256_mul_ps(scales, _mm256_set1_ps(group->scale)),
					sum[t][h]);
			}
		}
	}
#pragma GCC unroll 3
	for (int t = 0; t < T; t++)
#pragma GCC unroll 4
		for (int h = 0; h < H; h++)
			_mm256_store_ps(out + t * MUL_ROWS + h * HALF, sum[t][h]);
}

INLINE void mul_nibbles_few(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
			    uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens,
			    const bool f32)
{
	if (n_tokens == 1 && n_strips == 2) {
		mul_nibbles_tile(out, w, strip_bytes, n_groups, x, 4, 1, f32);
		return;
	}
	for (uint32_t s = 0; s < n_strips; s++, w += strip_bytes, out += STRIP_ROWS)
		for (uint32_t t = 0, n; t < n_tokens; t += n) {
			float *to = out + t * MUL_ROWS;

			n = tile_of(n_tokens - t, NIBBLE_TILE);
			WITH_TILE_3(n, mul_nibbles_tile(to, w, 0, n_groups, x + t, 2, T, f32));
		}
}

static void mul_int4(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
		     uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens)
{
	mul_nibbles_few(out, w, strip_bytes, n_strips, n_groups, x, n_tokens, false);
}

static void mul_int4_f32(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
			 uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens)
{
	mul_nibbles_few(out, w, strip_bytes, n_strips, n_groups, x, n_tokens, true);
}

/* The integers of a block of one strip, as vpmaddwd wants them, and its scales. */
struct panel {
	_Alignas(32)
		int16_t pairs[BLOCK_COLS / 2][2][2 * HALF]; /* two columns of a row in each lane */
	_Alignas(32) float scales[BLOCK_COLS / GROUP_COLS][STRIP_ROWS];
};

/* A lane's four bytes are columns 0 … 3: out come columns 0 and 2, and columns 1 and 3. */
INLINE void unpack_bytes(int16_t *even, int16_t *odd, __m256i codes)
{
	const __m256i q = _mm256_sub_epi8(codes, _mm256_set1_epi8(8));

	_mm256_store_si256((__m256i *)even, _mm256_srai_epi16(_mm256_slli_epi16(q, 8), 8));
	_mm256_store_si256((__m256i *)odd, _mm256_srai_epi16(q, 8));
}

INLINE void unpack_panel(struct panel *panel, const uint8_t *w, uint32_t n_groups, const bool f32)
{
	const size_t bytes = group_bytes(f32 ? WEIGHT_INT4_F32 : WEIGHT_INT4);
	const __m256i low_nibble = _mm256_set1_epi8(15);

	for (uint32_t g = 0; g < n_groups; g++, w += bytes) {
		for (int i = 0; i < 8; i++) {
			const __m256i line = _mm256_loadu_si256((const __m256i *)(w + i * 32));
			int16_t(*to)[2][2 * HALF] = &panel->pairs[g * GROUP_COLS / 2 + i / 2 * 4];

			if (i % 2 == 0)
				ask_ahead(w + i * 32, 1, TILE);
			unpack_bytes(to[0][i % 2], to[1][i % 2],
				     _mm256_and_si256(line, low_nibble));
			unpack_bytes(to[2][i % 2], to[3][i % 2],
				     _mm256_and_si256(_mm256_srli_epi16(line, 4), low_nibble));
		}
		_mm256_store_ps(panel->scales[g], load_scales(w + 256, f32));
		_mm256_store_ps(panel->scales[g] + HALF,
				load_scales(w + 256 + (f32 ? 32 : 16), f32));
	}
}

/* out[t] += one group of a strip times T tokens: exact integers, then one product with the scales. */
INLINE void add_group(float *out, const int16_t (*pairs)[2][2 * HALF], const float *scales,
		      uint32_t group, size_t at_scales, const uint8_t *const *x, const int T)
{
	const __m256 scales_low = _mm256_load_ps(scales),
		     scales_high = _mm256_load_ps(scales + HALF);
	__m256i low[TILE], high[TILE];

#pragma GCC unroll 6
	for (int t = 0; t < T; t++)
		low[t] = high[t] = _mm256_setzero_si256();
#pragma GCC unroll 2
	for (int j = 0; j < GROUP_COLS / 2; j++) {
		const __m256i q_low = _mm256_load_si256((const __m256i *)pairs[j][0]);
		const __m256i q_high = _mm256_load_si256((const __m256i *)pairs[j][1]);

#pragma GCC unroll 6
		for (int t = 0; t < T; t++) {
			const __m256i pair =
				four_bytes(x[t] + (size_t)group * 2 * GROUP_COLS + 4 * j);

			ADD_EPI32(low[t], _mm256_madd_epi16(q_low, pair));
			ADD_EPI32(high[t], _mm256_madd_epi16(q_high, pair));
		}
	}
#pragma GCC unroll 6
	for (int t = 0; t < T; t++) {
		const __m256 scale = _mm256_broadcast_ss((const float *)(x[t] + at_scales) + group);
		float *sum = out + t * MUL_ROWS;

		_mm256_store_ps(sum, _mm256_fmadd_ps(_mm256_cvtepi32_ps(low[t]),
						     _mm256_mul_ps(scales_low, scale),
						     _mm256_load_ps(sum)));
		_mm256_store_ps(sum + HALF, _mm256_fmadd_ps(_mm256_cvtepi32_ps(high[t]),
							    _mm256_mul_ps(scales_high, scale),
							    _mm256_load_ps(sum + HALF)));
	}
}

INLINE void add_panel(float *out, const struct panel *panel, uint32_t first, uint32_t n_groups,
		      size_t at_scales, const uint8_t *const *x, const int T)
{
	for (uint32_t g = 0; g < n_groups; g++)
		add_group(out, &panel->pairs[g * GROUP_COLS / 2], panel->scales[g], first + g,
			  at_scales, x, T);
}

/*
 * A block of a strip is unpacked once for all tokens, in ACT_WIDE. A last tile
 * that is not full repeats its last token in rows that nobody asked for.
 */
INLINE void mul_nibbles_many(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
			     uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens,
			     const bool f32)
{
	const size_t bytes = group_bytes(f32 ? WEIGHT_INT4_F32 : WEIGHT_INT4);
	const size_t at_scales = (size_t)n_groups * 2 * GROUP_COLS;
	const uint32_t whole = n_tokens - n_tokens % TILE, block = BLOCK_COLS / GROUP_COLS;
	const uint8_t *last[TILE];
	struct panel panel;

	for (uint32_t i = 0; i < TILE; i++)
		last[i] = x[whole + i < n_tokens ? whole + i : n_tokens - 1];
	for (uint32_t s = 0; s < n_strips; s++, w += strip_bytes, out += STRIP_ROWS) {
		for (uint32_t t = 0; t < whole + TILE && t < MUL_TOKENS; t++)
			memset(out + t * MUL_ROWS, 0, STRIP_ROWS * sizeof(*out));
		for (uint32_t g = 0; g < n_groups; g += block) {
			const uint32_t n = n_groups - g < block ? n_groups - g : block;

			unpack_panel(&panel, w + g * bytes, n, f32);
			for (uint32_t t = 0; t < whole; t += TILE)
				add_panel(out + t * MUL_ROWS, &panel, g, n, at_scales, x + t, TILE);
			if (n_tokens - whole > TILE / 2)
				add_panel(out + whole * MUL_ROWS, &panel, g, n, at_scales, last,
					  TILE);
			else if (n_tokens > whole)
				add_panel(out + whole * MUL_ROWS, &panel, g, n, at_scales, last,
					  TILE / 2);
		}
	}
}

static void mul_int4_many(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
			  uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens)
{
	mul_nibbles_many(out, w, strip_bytes, n_strips, n_groups, x, n_tokens, false);
}

static void mul_int4_f32_many(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
			      uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens)
{
	mul_nibbles_many(out, w, strip_bytes, n_strips, n_groups, x, n_tokens, true);
}

const struct linear_kernels linear_avx2 = {
	.gate = gate_rows,
	.act = { [ACT_F32] = take_f32,
		 [ACT_SPLIT] = take_split,
		 [ACT_FIXED] = take_fixed,
		 [ACT_WIDE] = take_wide },
	.kinds = {
		[WEIGHT_BF16] = { .few = { ACT_F32, mul_bf16 } },
		[WEIGHT_F32] = { .few = { ACT_F32, mul_f32 } },
		[WEIGHT_INT4] = { .few = { ACT_FIXED, mul_int4 },
				  .many = { ACT_WIDE, mul_int4_many } },
		[WEIGHT_INT4_F32] = { .few = { ACT_FIXED, mul_int4_f32 },
				      .many = { ACT_WIDE, mul_int4_f32_many } },
	},
};
