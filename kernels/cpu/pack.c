/* Packing of checkpoints' matrices into strips, and reading rows back. */
#include <string.h>

#include "kernels/cpu/bf16.h"
#include "kernels/cpu/interleave.h"
#include "kernels/cpu/layout.h"
#include "kernels/cpu/pack.h"
#include "kernels/linear.h"
#include "kernels/source.h"

#define CODE_BYTES (GROUP_COLS * STRIP_ROWS / 2) /* of a group, before its scales */

static uint16_t read_u16(const void *p, size_t i)
{
	uint16_t v;

	memcpy(&v, (const uint8_t *)p + 2 * i, sizeof(v));
	return v;
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
							     ? source_value(src->type, src->data,
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
	const uint32_t word = source_codes(src, row, c);

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
					is_row ? source_value(src->scale_type, src->scales, at) : 0;
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

int op_repack(struct dev *dev, const struct weight *dst, const struct weight_source *src,
	      size_t *ret_bad)
{
	const int r = source_check(dst, src, ret_bad);

	(void)dev;
	for (uint32_t strip = 0; r == 0 && strip < strips_of(src->rows); strip++) {
		uint8_t *to = (uint8_t *)dst->data + strip * strip_bytes(dst->kind, src->cols);

		pack_strip(to, dst->kind, src, strip);
	}
	return r;
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
