/*
 * Matrix products with AMX: tiles of tokens times a strip of weights. The packed
 * layouts are the tiles' own: a line of 64 bytes is a row of the second operand.
 *
 * BF16 weights: per group, the high halves of the activations and then the low ones are
 * added to one sum, whatever the number of tokens. int4: the exact integer sums of
 * a group, then the same additions as in linear-avx512.c, which serves few
 * tokens; so a row's bits do not depend on how many there are.
 */
#include <immintrin.h>

#define LANES 16
#include "kernels/cpu/act.h"
#include "kernels/cpu/ahead.h"
#include "kernels/cpu/scales512.h"

#define TILE_ROWS 16
#define BLOCK (2 * TILE_ROWS) /* tokens that go through the tiles together */

struct tile_config {
	uint8_t palette, start_row, reserved[14];
	uint16_t row_bytes[16];
	uint8_t rows[16];
};
_Static_assert(sizeof(struct tile_config) == 64, "as LDTILECFG reads it");

/* The compiler's intrinsics do not say that they read memory: what was stored is to be there. */
INLINE void finish_stores(void)
{
	__asm__ volatile("" ::: "memory");
}

static uint32_t smaller(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

static void set_tile(struct tile_config *c, int tile, uint32_t rows, uint32_t row_bytes)
{
	c->rows[tile] = (uint8_t)rows;
	c->row_bytes[tile] = (uint16_t)row_bytes;
}

/* Tiles 0 and 1 are sums of the first 16 tokens, 2 and 3 of the others; 4 and 5 are their activations. */
static void configure(uint32_t n_tokens, uint32_t act_bytes, uint32_t weight_lines)
{
	const uint32_t first = smaller(n_tokens, TILE_ROWS), second = n_tokens - first;
	struct tile_config c = { .palette = 1 };

	set_tile(&c, 0, first, 64);
	set_tile(&c, 1, first, 64);
	set_tile(&c, 4, first, act_bytes);
	if (second > 0) {
		set_tile(&c, 2, second, 64);
		set_tile(&c, 3, second, 64);
		set_tile(&c, 5, second, act_bytes);
	}
	set_tile(&c, 6, weight_lines, 64);
	set_tile(&c, 7, weight_lines, 64);
	__asm__ volatile("" ::"m"(c));
	_tile_loadconfig(&c);
}

/* Bytes between the rows of @x, or 0 if they are not evenly spaced. */
static size_t spacing(const uint8_t *const *x, uint32_t n)
{
	const ptrdiff_t step = n > 1 ? x[1] - x[0] : 64;

	if (step <= 0)
		return 0;
	for (uint32_t i = 1; i < n; i++)
		if (x[i] - x[i - 1] != step)
			return 0;
	return (size_t)step;
}

/* Copies @bytes at @at of each row to rows that lie behind one another. */
static void gather(uint8_t *to, const uint8_t *const *x, uint32_t n, size_t at, const int n_lines)
{
	for (uint32_t i = 0; i < n; i++)
		for (int j = 0; j < n_lines; j++)
			_mm512_store_si512(to + (i * n_lines + j) * 64,
					   _mm512_loadu_si512(x[i] + at + 64 * j));
	finish_stores();
}

INLINE void prefetch_group(const uint8_t *w, const int n_lines)
{
#pragma GCC unroll 16
	for (int i = 0; i < n_lines; i++)
		ask_ahead(w + 64 * i, 1, TILE_ROWS);
}

/* S strips, and P tiles of tokens. */
INLINE void mul_block_bf16(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_groups,
			   const uint8_t *const *x, uint32_t n, const int S, const int P)
{
	const size_t group = group_bytes(WEIGHT_BF16), evenly = spacing(x, n);
	const size_t stride = evenly ? evenly : 128;
	_Alignas(64) uint8_t panel[BLOCK * 128];

	configure(n, 64, GROUP_COLS / 2);
	_tile_zero(0);
	if (S > 1)
		_tile_zero(1);
	if (P > 1)
		_tile_zero(2);
	if (P > 1 && S > 1)
		_tile_zero(3);
	for (uint32_t g = 0; g < n_groups; g++, w += group) {
		const uint8_t *at = evenly ? x[0] + (size_t)g * 128 : panel;

		if (!evenly)
			gather(panel, x, n, (size_t)g * 128, 2);
		prefetch_group(w, 16);
		_tile_loadd(6, w, 64);
		if (S > 1) {
			prefetch_group(w + strip_bytes, 16);
			_tile_loadd(7, w + strip_bytes, 64);
		}
#pragma GCC unroll 2
		for (int half = 0; half < 2; half++, at += 64) {
			_tile_loadd(4, at, stride);
			_tile_dpbf16ps(0, 4, 6);
			if (S > 1)
				_tile_dpbf16ps(1, 4, 7);
			if (P > 1) {
				_tile_loadd(5, at + TILE_ROWS * stride, stride);
				_tile_dpbf16ps(2, 5, 6);
				if (S > 1)
					_tile_dpbf16ps(3, 5, 7);
			}
		}
	}
	_tile_stored(0, out, MUL_ROWS * sizeof(float));
	if (S > 1)
		_tile_stored(1, out + STRIP_ROWS, MUL_ROWS * sizeof(float));
	out += TILE_ROWS * MUL_ROWS;
	if (P > 1)
		_tile_stored(2, out, MUL_ROWS * sizeof(float));
	if (P > 1 && S > 1)
		_tile_stored(3, out + STRIP_ROWS, MUL_ROWS * sizeof(float));
}

static void mul_bf16(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
		     uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens)
{
	for (uint32_t t = 0; t < n_tokens; t += BLOCK) {
		const uint32_t n = smaller(n_tokens - t, BLOCK);
		float *to = out + t * MUL_ROWS;

		if (n_strips == 2 && n > TILE_ROWS)
			mul_block_bf16(to, w, strip_bytes, n_groups, x + t, n, 2, 2);
		else if (n_strips == 2)
			mul_block_bf16(to, w, strip_bytes, n_groups, x + t, n, 2, 1);
		else if (n > TILE_ROWS)
			mul_block_bf16(to, w, strip_bytes, n_groups, x + t, n, 1, 2);
		else
			mul_block_bf16(to, w, strip_bytes, n_groups, x + t, n, 1, 1);
	}
	_tile_release();
}

/* The codes of a group of a strip as bytes: lines of 4 columns. */
INLINE void unpack_group(uint8_t *to, const uint8_t *w)
{
	const __m512i low_nibble = _mm512_set1_epi8(15);

#pragma GCC unroll 4
	for (int j = 0; j < 4; j++) {
		const __m512i line = _mm512_loadu_si512(w + 64 * j);

		_mm512_store_si512(to + 128 * j, _mm512_and_si512(line, low_nibble));
		_mm512_store_si512(to + 128 * j + 64,
				   _mm512_and_si512(_mm512_srli_epi16(line, 4), low_nibble));
	}
	finish_stores();
}

/* out[t] += scales .* (256 high[t] + low[t] - 8 sum[t]) for the rows of one strip. */
INLINE void add_group(float *out, const int32_t *high, const int32_t *low, const uint8_t *const *x,
		      uint32_t n, size_t at_group, __m512 scales)
{
	for (uint32_t t = 0; t < n; t++) {
		const struct fixed_group *group = (const struct fixed_group *)(x[t] + at_group);
		__m512i sum = _mm512_load_si512(high + t * STRIP_ROWS);
		float *to = out + t * MUL_ROWS;

		sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 8),
				       _mm512_load_si512(low + t * STRIP_ROWS));
		sum = _mm512_sub_epi32(sum, _mm512_set1_epi32(group->sum8));
		_mm512_store_ps(to,
				_mm512_fmadd_ps(_mm512_cvtepi32_ps(sum),
						_mm512_mul_ps(scales, _mm512_set1_ps(group->scale)),
						_mm512_load_ps(to)));
	}
}

INLINE void mul_block_int4(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
			   uint32_t n_groups, const uint8_t *const *x, uint32_t n, const int P,
			   const bool f32)
{
	const size_t bytes = group_bytes(f32 ? WEIGHT_INT4_F32 : WEIGHT_INT4);
	const size_t at_groups = (size_t)n_groups * 2 * GROUP_COLS;
	const uint32_t first = smaller(n, TILE_ROWS);
	const size_t evenly = spacing(x, n), stride = evenly ? evenly : 64;
	_Alignas(64) uint8_t panel[BLOCK * 64], codes[GROUP_COLS * STRIP_ROWS];
	_Alignas(64) int32_t sums[4][TILE_ROWS * STRIP_ROWS];

	configure(n, GROUP_COLS, GROUP_COLS / 4);
	memset(out, 0, n * MUL_ROWS * sizeof(*out));
	for (uint32_t g = 0; g < n_groups; g++, w += bytes) {
		const uint8_t *at = evenly ? x[0] + (size_t)g * 64 : panel;
		const size_t at_group = at_groups + g * sizeof(struct fixed_group);

		if (!evenly)
			gather(panel, x, n, (size_t)g * 64, 1);
		for (uint32_t s = 0; s < n_strips; s++) {
			const uint8_t *p = w + s * strip_bytes;
			const __m512 scales = load_scales(p + 256, f32);
			float *to = out + s * STRIP_ROWS;

			prefetch_group(p, 5);
			unpack_group(codes, p);
			_tile_loadd(6, codes, 64);
			_tile_zero(0);
			_tile_loadd(4, at, stride);
			_tile_dpbsud(0, 4, 6);
			_tile_zero(1);
			_tile_loadd(4, at + GROUP_COLS, stride);
			_tile_dpbsud(1, 4, 6);
			_tile_stored(0, sums[0], 64);
			_tile_stored(1, sums[1], 64);
			if (P > 1) {
				const uint8_t *more = at + TILE_ROWS * stride;

				_tile_zero(2);
				_tile_loadd(5, more, stride);
				_tile_dpbsud(2, 5, 6);
				_tile_zero(3);
				_tile_loadd(5, more + GROUP_COLS, stride);
				_tile_dpbsud(3, 5, 6);
				_tile_stored(2, sums[2], 64);
				_tile_stored(3, sums[3], 64);
			}
			add_group(to, sums[0], sums[1], x, first, at_group, scales);
			if (P > 1)
				add_group(to + TILE_ROWS * MUL_ROWS, sums[2], sums[3], x + first,
					  n - first, at_group, scales);
		}
	}
}

INLINE void mul_int4_any(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
			 uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens,
			 const bool f32)
{
	for (uint32_t t = 0; t < n_tokens; t += BLOCK) {
		const uint32_t n = smaller(n_tokens - t, BLOCK);
		float *to = out + t * MUL_ROWS;

		if (n > TILE_ROWS)
			mul_block_int4(to, w, strip_bytes, n_strips, n_groups, x + t, n, 2, f32);
		else
			mul_block_int4(to, w, strip_bytes, n_strips, n_groups, x + t, n, 1, f32);
	}
	_tile_release();
}

static void mul_int4(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
		     uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens)
{
	mul_int4_any(out, w, strip_bytes, n_strips, n_groups, x, n_tokens, false);
}

static void mul_int4_f32(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
			 uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens)
{
	mul_int4_any(out, w, strip_bytes, n_strips, n_groups, x, n_tokens, true);
}

const struct linear_kernels linear_amx = {
	.gate = gate_rows,
	.act = { [ACT_F32] = take_f32, [ACT_SPLIT] = take_split, [ACT_FIXED] = take_fixed },
	.kinds = {
		[WEIGHT_BF16] = { .few = { ACT_SPLIT, mul_bf16 } },
		[WEIGHT_F32] = { .few = { ACT_F32, mul_f32_avx512 } },
		[WEIGHT_INT4] = { .few = { ACT_FIXED, mul_int4_vnni },
				  .many = { ACT_FIXED, mul_int4 } },
		[WEIGHT_INT4_F32] = { .few = { ACT_FIXED, mul_int4_f32_vnni },
				      .many = { ACT_FIXED, mul_int4_f32 } },
	},
	.block_tokens = BLOCK,
	.block_bytes = 1 << 20,
};
