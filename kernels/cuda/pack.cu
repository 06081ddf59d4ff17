/* Packing of checkpoints' matrices on the loading threads, and their way to the device. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/calls.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/layout.h"

extern "C" {
#include "kernels/linear.h"
#include "kernels/source.h"
}

size_t weight_bytes(const struct dev *dev, enum weight_kind kind, uint32_t rows, uint32_t cols)
{
	(void)dev; /* one layout serves every device */
	return kind == WEIGHT_NONE ? 0 : strips_of(rows) * strip_bytes(kind, cols);
}

/* A device has one memory. */
void weight_touch(const struct dev *dev, const struct weight *part, uint32_t first, uint32_t rows)
{
	(void)dev, (void)part, (void)first, (void)rows;
}

/* Eight codes in the order of columns, to even ones below and odd ones above. */
static uint32_t part_columns(uint32_t codes)
{
	uint32_t even = codes & 0x0f0f0f0f, odd = codes >> 4 & 0x0f0f0f0f;

	even = (even | even >> 4) & 0x00ff00ff;
	odd = (odd | odd >> 4) & 0x00ff00ff;
	even = (even | even >> 8) & 0xffff;
	odd = (odd | odd >> 8) & 0xffff;
	return even | odd << 16;
}

static void put_scale(uint8_t *to, enum weight_kind kind, const struct weight_source *src,
		      size_t row, uint32_t group)
{
	const size_t at = row * (src->cols / src->group) + (size_t)group * GROUP_COLS / src->group;
	float scale = 0;

	if (row < src->rows)
		scale = source_value(src->scale_type, src->scales, at);
	if (kind == WEIGHT_INT4) /* BF16 is the upper half of F32 */
		memcpy(to, (const uint8_t *)&scale + 2, 2);
	else
		memcpy(to, &scale, 4);
}

static void pack_int4(uint8_t *to, enum weight_kind kind, const struct weight_source *src,
		      uint32_t strip)
{
	const uint32_t groups = groups_of(src->cols), bytes = scale_bytes(kind);
	uint8_t *scales = to + (size_t)groups * GROUP_CODE_BYTES;

	for (uint32_t first = 0; first < groups; first += 2) {
		const uint32_t n = groups - first < 2 ? 1 : 2;

		for (uint32_t r = 0; r < STRIP_ROWS; r++) {
			const size_t row = (size_t)strip * STRIP_ROWS + r;

			for (uint32_t q = 0; q < n; q++) {
				uint32_t *words = (uint32_t *)to + (first * 64 + q * 2 + r / 8);

				for (uint32_t t = 0; t < 4; t++)
					words[(r % 8 * 4 + t) * 2 * n] = part_columns(source_codes(
						src, row, (first + q) * GROUP_COLS + 8 * t));
				put_scale(scales + (first * STRIP_ROWS + (r % 8 * 2 + r / 8) * n +
						    q) * bytes,
					  kind, src, row, first + q);
			}
		}
	}
}

static void pack_rows(uint8_t *to, enum weight_kind kind, const struct weight_source *src)
{
	const size_t bytes = kind == WEIGHT_BF16 ? 2 : 4, row_bytes = src->cols * bytes;
	const size_t pitch = groups_of(src->cols) * GROUP_COLS * bytes;

	for (uint32_t row = 0; row < strips_of(src->rows) * STRIP_ROWS; row++, to += pitch) {
		memset(to, 0, pitch);
		if (row >= src->rows)
			continue;
		if (src->type != DT_F16)
			memcpy(to, (const uint8_t *)src->data + row * row_bytes, row_bytes);
		for (uint32_t c = 0; src->type == DT_F16 && c < src->cols; c++)
			((float *)to)[c] = source_value(DT_F16, src->data,
							(size_t)row * src->cols + c);
	}
}

/* Whether the packed form is the checkpoint's own. */
static bool is_as_it_is(const struct weight_source *src)
{
	return (src->type == DT_BF16 || src->type == DT_F32) && src->cols % GROUP_COLS == 0 &&
	       src->rows % STRIP_ROWS == 0;
}

int op_repack(struct dev *dev, const struct weight *dst, const struct weight_source *src,
	      size_t *ret_bad)
{
	const size_t bytes = weight_bytes(dev, dst->kind, dst->rows, dst->cols);
	const size_t strip = strip_bytes(dst->kind, dst->cols);
	uint8_t *packed;
	int r;

	r = source_check(dst, src, ret_bad);
	if (r < 0)
		return r;
	if (is_as_it_is(src))
		return dev_write(dev, dst->data, src->data, bytes);
	packed = (uint8_t *)malloc(bytes);
	if (!packed)
		return -ENOMEM;
	if (src->type == DT_I32)
		for (uint32_t i = 0; i < strips_of(src->rows); i++)
			pack_int4(packed + i * strip, dst->kind, src, i);
	else
		pack_rows(packed, dst->kind, src);
	r = dev_write(dev, dst->data, packed, bytes);
	free(packed);
	return r;
}
