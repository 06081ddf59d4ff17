/* Reading and checking of checkpoints' matrices: kinds, values, codes, scales. */
#include "kernels/source.h"

#include <errno.h>
#include <string.h>

#include "kernels/linear.h"

#define NIBBLES_OF_ZERO 0x88888888u
#define GROUP_COLS 32

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
static uint32_t widen_f16(uint16_t half)
{
	const uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31;
	const uint32_t mantissa = half & 0x3ff;
	uint32_t bits;
	float value;

	if (exponent)
		return sign | (exponent == 31 ? 255 : exponent + 112) << 23 | mantissa << 13;
	value = (float)mantissa * 0x1p-24f;
	memcpy(&bits, &value, sizeof(bits));
	return bits | sign;
}

float source_value(enum dtype type, const void *data, size_t i)
{
	uint32_t bits;
	float value;

	if (type == DT_BF16)
		bits = (uint32_t)read_u16(data, i) << 16;
	else if (type == DT_F16)
		bits = widen_f16(read_u16(data, i));
	else
		bits = read_u32(data, i);
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

uint32_t source_codes(const struct weight_source *src, size_t row, uint32_t col)
{
	const size_t words = ((size_t)src->cols + 7) / 8;
	uint32_t word, valid;

	if (row >= src->rows || col >= src->cols)
		return NIBBLES_OF_ZERO;
	word = read_u32(src->data, row * words + col / 8);
	if (src->cols - col >= 8)
		return word;
	valid = (1u << 4 * (src->cols - col)) - 1;
	return (word & valid) | (NIBBLES_OF_ZERO & ~valid);
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
		if (is_scale(source_value(src->scale_type, src->scales, i)))
			continue;
		if (ret_bad)
			*ret_bad = i;
		return -EDOM;
	}
	return 0;
}

int source_check(const struct weight *dst, const struct weight_source *src, size_t *ret_bad)
{
	const enum weight_kind kind = weight_kind_of(src);

	if (kind == WEIGHT_NONE || dst->kind != kind || !dst->data || !src->data || !src->rows ||
	    !src->cols || dst->rows != src->rows || dst->cols != src->cols)
		return -EINVAL;
	if (src->type != DT_I32)
		return 0;
	return src->scales ? check_scales(src, ret_bad) : -EINVAL;
}

bool weight_is_whole(const struct weight *w, uint32_t rows, uint32_t cols)
{
	return w->kind > WEIGHT_NONE && w->kind <= WEIGHT_INT4_F32 && w->data && w->rows == rows &&
	       w->cols == cols;
}
