/*
 * The loops behind struct ops_kernels, for whatever LANES says. For a row and
 * a position the additions have one order, whatever else is computed beside
 * them; a tail of fewer than LANES is done apart, so that nothing beyond a row
 * is read.
 */
#include <math.h>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/vector.h"

static void body_rmsnorm(float *y, const float *x, const float *w, uint32_t dim, float eps)
{
	vd sums[4] = { 0 };
	double sum, factor;
	uint32_t i = 0;

	for (; i + 4 * LANES_D <= dim; i += 4 * LANES_D) {
		for (uint32_t j = 0; j < 4; j++) {
			const vd v = v_load_d(x + i + j * LANES_D);

			sums[j] += v * v;
		}
	}
	sum = v_sum_d((sums[0] + sums[1]) + (sums[2] + sums[3]));
	for (uint32_t k = i; k < dim; k++)
		sum += (double)x[k] * x[k];
	factor = 1 / sqrt(sum / dim + (double)eps);

	for (i = 0; i + LANES_D <= dim; i += LANES_D) {
		const vd v = v_load_d(x + i) * factor * v_load_d(w + i);
		const vf2 rounded = __builtin_convertvector(v, vf2);

		memcpy(y + i, &rounded, sizeof(rounded));
	}
	for (; i < dim; i++)
		y[i] = (float)(x[i] * factor * w[i]);
}

static void body_rotate(float *x, const float *cos, const float *sin, uint32_t half)
{
	uint32_t i = 0;

	for (; i + LANES <= half; i += LANES) {
		const vf a = v_load(x + i), b = v_load(x + i + half);
		const vf c = v_load(cos + i), s = v_load(sin + i);

		v_store(x + i, a * c - b * s);
		v_store(x + i + half, b * c + a * s);
	}
	for (; i < half; i++) {
		const float a = x[i], b = x[i + half];

		x[i] = a * cos[i] - b * sin[i];
		x[i + half] = b * cos[i] + a * sin[i];
	}
}

/* Two chains for each row: even and odd vectors. */
INLINE void dots_of(double *ret, const float *x, const float *w, uint32_t dim, const uint32_t n_rows)
{
	vd even[4] = { 0 }, odd[4] = { 0 };
	uint32_t i = 0;

	for (; i + 2 * LANES_D <= dim; i += 2 * LANES_D) {
		const vd x_even = v_load_d(x + i), x_odd = v_load_d(x + i + LANES_D);

#pragma GCC unroll 4
		for (uint32_t r = 0; r < n_rows; r++) {
			even[r] += x_even * v_load_d(w + (size_t)r * dim + i);
			odd[r] += x_odd * v_load_d(w + (size_t)r * dim + i + LANES_D);
		}
	}
	for (uint32_t r = 0; r < n_rows; r++) {
		double sum = v_sum_d(even[r] + odd[r]);

		for (uint32_t k = i; k < dim; k++)
			sum += (double)x[k] * w[(size_t)r * dim + k];
		ret[r] = sum;
	}
}

static void body_dots(double *ret, const float *x, const float *w, uint32_t dim, uint32_t n_rows)
{
	uint32_t r = 0;

	for (; r + 4 <= n_rows; r += 4)
		dots_of(ret + r, x, w + (size_t)r * dim, dim, 4);
	for (; r < n_rows; r++)
		dots_of(ret + r, x, w + (size_t)r * dim, dim, 1);
}
