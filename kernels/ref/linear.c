/* Products with a checkpoint's own matrices, in double, straight from the formulas. */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "kernels/linear.h"

static double value_of(enum dtype type, const void *data, size_t i)
{
	uint16_t half;
	float f32;

	if (type == DT_F32) {
		memcpy(&f32, (const char *)data + 4 * i, 4);
		return f32;
	}
	memcpy(&half, (const char *)data + 2 * i, 2);
	if (type == DT_BF16) {
		const uint32_t bits = (uint32_t)half << 16;

		memcpy(&f32, &bits, 4);
		return f32;
	}
	const int exponent = half >> 10 & 31, mantissa = half & 1023;
	const double size = exponent == 31 ? (mantissa ? NAN : INFINITY)
			    : exponent	   ? ldexp(1024 + mantissa, exponent - 25)
					   : ldexp(mantissa, -24);

	return half & 0x8000 ? -size : size;
}

static double weight_of(const struct weight_source *w, uint32_t row, uint32_t c)
{
	const size_t words = ((size_t)w->cols + 7) / 8;
	uint32_t word;

	if (w->type != DT_I32)
		return value_of(w->type, w->data, (size_t)row * w->cols + c);
	memcpy(&word, (const char *)w->data + 4 * (row * words + c / 8), 4);
	return ((int)(word >> 4 * (c % 8) & 15) - 8) *
	       value_of(w->scale_type, w->scales,
			(size_t)row * (w->cols / w->group) + c / w->group);
}

static double row_times(const struct weight_source *w, uint32_t row, const double *x)
{
	double sum = 0;

	for (uint32_t c = 0; c < w->cols; c++)
		sum += weight_of(w, row, c) * x[c];
	return sum;
}

int ref_linear(double *y, const struct weight_source *w, const double *bias, const double *x,
	       uint32_t tokens)
{
	if (weight_kind_of(w) == WEIGHT_NONE)
		return -EINVAL;
	for (uint32_t t = 0; t < tokens; t++)
		for (uint32_t row = 0; row < w->rows; row++)
			y[(size_t)t * w->rows + row] = row_times(w, row, x + (size_t)t * w->cols) +
						       (bias ? bias[row] : 0);
	return 0;
}

int ref_mlp(double *y, const struct weight_source *gate, const struct weight_source *up,
	    const struct weight_source *down, double weight, double *h, const double *x)
{
	if (weight_kind_of(gate) == WEIGHT_NONE || weight_kind_of(up) == WEIGHT_NONE ||
	    weight_kind_of(down) == WEIGHT_NONE)
		return -EINVAL;
	for (uint32_t i = 0; i < gate->rows; i++) {
		const double z = row_times(gate, i, x);

		h[i] = z / (1 + exp(-z)) * row_times(up, i, x);
	}
	for (uint32_t row = 0; row < down->rows; row++)
		y[row] += weight * row_times(down, row, h);
	return 0;
}
