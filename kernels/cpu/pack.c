/* Packing of checkpoints' matrices into strips, and reading rows back. */
#include <errno.h>
#include <string.h>

#include "kernels/cpu/bf16.h"
#include "kernels/cpu/interleave.h"
#include "kernels/cpu/layout.h"
#include "kernels/cpu/pack.h"
#include "kernels/linear.h"

#define NIBBLES_OF_ZERO 0x88888888u
#define CODE_BYTES (GROUP_COLS * STRIP_ROWS / 2) /* of a group, before its scales */

static uint16_t read_u16(const void *p, size_t i)
{
	uint16_t v;

	memcpy(&v, (const uint8_t *)p + 2 * i, sizeof(v));
	return v;
}

static uint32_t read_u32(const void *p, size_t i)
{
	uint32_t v;

	memcpy(&v, (const uint8_t *)p + 4 * i, sizeof(v));
	return v;
}

/* Every F16 is an F32: normal ones move their exponent, denormals become normal. */
static float widen_f16(uint16_t half)
{
	const uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31;
	const uint32_t mantissa = half & 0x3ff;
	uint32_t bits;
	float value;

	if (exponent == 0) {
		value = (float)mantissa * 0x1p-24f;
		memcpy(&bits, &value, sizeof(bits));
		bits |= sign;
	} else {
		bits = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | mantissa << 13;
	}
	memcpy(&value, &bits, sizeof(value));
	return value;
}

static float read_value(enum dtype type, const void *p, size_t i)
{
	uint32_t bits;
	float value;

	if (type == DT_BF16)
		return bf16_widen(read_u16(p, i));
	if (type == DT_F16)
		return widen_f16(read_u16(p, i));
	bits = read_u32(p, i);
	memcpy(&value, &bits, sizeof(value));
	return value;
}

static bool groups_fit(const struct weight_source *src)
{
	if (!src->group || src->cols % src->group)
		return false;
	return src->group == src->cols || src->group % GROUP_COLS == 0;
}

enum weight_kind weight_kind_of(const struct weight_source *src)
{
	switch (src->type) {
	case DT_BF16:
		return WEIGHT_BF16;
	case DT_F16:
	case DT_F32:
		return WEIGHT_F32;
	case DT_I32:
		if (!groups_fit(src))
			return WEIGHT_NONE;
		if (src->scale_type == DT_BF16)
			return WEIGHT_INT4;
		if (src->scale_type == DT_F16 || src->scale_type == DT_F32)
			return WEIGHT_INT4_F32;
		return WEIGHT_NONE;
	default:
		return WEIGHT_NONE;
	}
}

size_t weight_bytes(const struct dev *dev, enum weight_kind kind, uint32_t rows, uint32_t cols)
{
	(void)dev; /* one layout serves every instruction set */
	return strips_of(rows) * strip_bytes(kind, cols);
}

/* Whether a strip needs no padding. */
static bool is_full(const struct weight_source *src, uint32_t strip)
{
	return src->cols % GROUP_COLS == 0 && src->rows / STRIP_ROWS > strip;
}

static void pack_bf16(uint8_t *dst, const struct weight_source *src, uint32_t strip)
{
	const uint32_t padded = groups_of(src->cols) * GROUP_COLS;

	for (uint32_t r = 0; r < STRIP_ROWS; r++) {
		const size_t row = (size_t)strip * STRIP_ROWS + r;
		const uint8_t *from = (const uint8_t *)src->data + row * src->cols * 2;
		uint16_t *to = (uint16_t *)dst + 2 * r;

		for (uint32_t c = 0; c < padded; c++)
			to[(size_t)(c / 2) * 2 * STRIP_ROWS + c % 2] =
				row < src->rows && c < src->cols ? read_u16(from, c) : 0;
	}
}

static void pack_f32(uint8_t *dst, const struct weight_source *src, uint32_t strip)
{
	const uint32_t padded = groups_of(src->cols) * GROUP_COLS;

	for (uint32_t r = 0; r < STRIP_ROWS; r++) {
		const size_t row = (size_t)strip * STRIP_ROWS + r;
		float *to = (float *)dst + r;

		for (uint32_t c = 0; c < padded; c++)
			to[(size_t)c * STRIP_ROWS] = row < src->rows && c < src->cols
							     ? read_value(src->type, src->data,
									  row * src->cols + c)
							     : 0;
	}
}

/* Four nibbles to the low halves of four bytes. */
static uint32_t spread(uint32_t nibbles)
{
	nibbles = (nibbles | nibbles << 8) & 0x00ff00ff;
	return (nibbles | nibbles << 4) & 0x0f0f0f0f;
}

static uint32_t pack_word(const struct weight_source *src, size_t row, uint32_t c)
{
	const size_t words = ((size_t)src->cols + 7) / 8;
	uint32_t word;

	if (row >= src->rows || c >= src->cols)
		return NIBBLES_OF_ZERO;
	word = read_u32(src->data, row * words + c / 8);
	if (src->cols - c < 8) {
		const uint32_t valid = (1u << 4 * (src->cols - c)) - 1;

		word = (word & valid) | (NIBBLES_OF_ZERO & ~valid);
	}
	return spread(word & 0xffff) | spread(word >> 16) << 4;
}

static void pack_codes(uint8_t *dst, enum weight_kind kind, const struct weight_source *src,
		       uint32_t strip)
{
	for (uint32_t g = 0; g < groups_of(src->cols); g++, dst += group_bytes(kind))
		for (uint32_t r = 0; r < STRIP_ROWS; r++)
			for (uint32_t j = 0; j < 4; j++)
				((uint32_t *)dst)[j * STRIP_ROWS + r] =
					pack_word(src, (size_t)strip * STRIP_ROWS + r,
						  g * GROUP_COLS + 8 * j);
}

static void pack_scales(uint8_t *dst, enum weight_kind kind, const struct weight_source *src,
			uint32_t strip)
{
	const size_t per_row = src->cols / src->group, first = (size_t)strip * STRIP_ROWS;

	for (uint32_t g = 0; g < groups_of(src->cols); g++) {
		uint8_t *to = dst + g * group_bytes(kind) + CODE_BYTES;
		size_t at = first * per_row + (size_t)g * GROUP_COLS / src->group;

		for (uint32_t r = 0; r < STRIP_ROWS; r++, at += per_row) {
			const bool is_row = first + r < src->rows;

			if (kind == WEIGHT_INT4)
				((uint16_t *)to)[r] = is_row ? read_u16(src->scales, at) : 0;
			else
				((float *)to)[r] =
					is_row ? read_value(src->scale_type, src->scales, at) : 0;
		}
	}
}

static void pack_int4(uint8_t *dst, enum weight_kind kind, const struct weight_source *src,
		      uint32_t strip)
{
	const size_t row_bytes = (size_t)src->cols / 8 * 4;

	if (is_full(src, strip))
		interleave_codes(dst, group_bytes(kind),
				 (const uint8_t *)src->data + strip * STRIP_ROWS * row_bytes,
				 row_bytes, groups_of(src->cols));
	else
		pack_codes(dst, kind, src, strip);
	pack_scales(dst, kind, src, strip);
}

/* What has to be padded, or widened from F16, goes element by element. */
static void pack_strip(uint8_t *to, enum weight_kind kind, const struct weight_source *src,
		       uint32_t strip)
{
	const size_t row_bytes = src->cols * dtype_bytes(src->type);

	if (src->type == DT_I32)
		pack_int4(to, kind, src, strip);
	else if (src->type != DT_F16 && is_full(src, strip))
		interleave_words(to, TILE_BYTES,
				 (const uint8_t *)src->data + strip * STRIP_ROWS * row_bytes,
				 row_bytes, (uint32_t)(row_bytes / (TILE_WORDS * 4)));
	else if (kind == WEIGHT_BF16)
		pack_bf16(to, src, strip);
	else
		pack_f32(to, src, strip);
}

/* By its bits, since threads that flush denormals would see a tiny scale as zero. */
static bool is_scale(float scale)
{
	uint32_t bits;

	memcpy(&bits, &scale, sizeof(bits));
	return bits > 0 && bits < 0x7f800000;
}

/* In BF16 there are most, and as integers they are checked many at a time. */
static bool are_all_scales(const void *scales, size_t n)
{
	uint16_t bad = 0;

	for (size_t i = 0; i < n; i++)
		bad |= (uint16_t)(read_u16(scales, i) - 1) >= 0x7f7f;
	return !bad;
}

static int check_scales(const struct weight_source *src, size_t *ret_bad)
{
	const size_t n = (size_t)src->rows * (src->cols / src->group);

	if (src->scale_type == DT_BF16 && are_all_scales(src->scales, n))
		return 0;
	for (size_t i = 0; i < n; i++) {
		if (is_scale(read_value(src->scale_type, src->scales, i)))
			continue;
		if (ret_bad)
			*ret_bad = i;
		return -EDOM;
	}
	return 0;
}

int op_repack(struct dev *dev, const struct weight *dst, const struct weight_source *src,
	      size_t *ret_bad)
{
	const enum weight_kind kind = weight_kind_of(src);
	int r;

	(void)dev;
	if (kind == WEIGHT_NONE || dst->kind != kind || !dst->data || !src->data || !src->rows ||
	    !src->cols || dst->rows != src->rows || dst->cols != src->cols)
		return -EINVAL;
	if (src->type == DT_I32) {
		r = src->scales ? check_scales(src, ret_bad) : -EINVAL;
		if (r < 0)
			return r;
	}
	for (uint32_t strip = 0; strip < strips_of(src->rows); strip++) {
		uint8_t *to = (uint8_t *)dst->data + strip * strip_bytes(kind, src->cols);

		pack_strip(to, kind, src, strip);
	}
	return 0;
}

bool weight_is_whole(const struct weight *w, uint32_t rows, uint32_t cols)
{
	return w->kind > WEIGHT_NONE && w->kind <= WEIGHT_INT4_F32 && w->data && w->rows == rows &&
	       w->cols == cols;
}

static inline double value_at(const struct weight *w, const uint8_t *strip, uint32_t r, uint32_t c)
{
	const uint8_t *group = strip + c / GROUP_COLS * group_bytes(w->kind);
	const uint32_t k = c % GROUP_COLS;
	uint32_t nibble;
	double scale;

	if (w->kind == WEIGHT_BF16)
		return bf16_widen(
			((const uint16_t *)group)[k / 2 * 2 * STRIP_ROWS + 2 * r + k % 2]);
	if (w->kind == WEIGHT_F32)
		return ((const float *)group)[k * STRIP_ROWS + r];
	nibble = group[k / 8 * 64 + 4 * r + k % 4] >> (k % 8 < 4 ? 0 : 4) & 15;
	scale = w->kind == WEIGHT_INT4 ? bf16_widen(((const uint16_t *)(group + 256))[r])
				       : ((const float *)(group + 256))[r];
	return ((int)nibble - 8) * scale;
}

static const uint8_t *strip_of(const struct weight *w, uint32_t row)
{
	return (const uint8_t *)w->data + row / STRIP_ROWS * strip_bytes(w->kind, w->cols);
}

void unpack_row(double *y, const struct weight *w, uint32_t row)
{
	const uint8_t *strip = strip_of(w, row);

	for (uint32_t c = 0; c < w->cols; c++)
		y[c] = value_at(w, strip, row % STRIP_ROWS, c);
}

void unpack_row_f32(float *y, const struct weight *w, uint32_t row)
{
	const uint8_t *strip = strip_of(w, row);

	for (uint32_t c = 0; c < w->cols; c++)
		y[c] = (float)value_at(w, strip, row % STRIP_ROWS, c);
}
