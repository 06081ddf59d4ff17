/* Root mean square normalisation: against double, in place, and bits across batches and threads. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/norm.h"

#define TOL_RMSNORM 2e-7 /* relative: both round once, from double */
#define TOKENS 9
#define DIM_MAX 4099

static float x[TOKENS * DIM_MAX], y[TOKENS * DIM_MAX], want[TOKENS * DIM_MAX], w[DIM_MAX];

static struct tensor tensor_of(float *data, uint32_t tokens, uint32_t dim)
{
	return (struct tensor){ .data = data, .type = DT_F32, .shape = { 1, tokens, dim } };
}

static int fill(void **state)
{
	uint32_t seed = 1;

	(void)state;

	for (size_t i = 0; i < TOKENS * DIM_MAX; i++) {
		seed = seed * 1664525 + 1013904223;
		x[i] = (float)(seed >> 8) / (1 << 22) - 2;
	}
	for (size_t i = 0; i < DIM_MAX; i++)
		w[i] = 1 + x[i + 7] / 4;
	return 0;
}

static void check(enum isa isa, uint32_t dim)
{
	const struct tensor of_x = tensor_of(x, TOKENS, dim), of_y = tensor_of(y, TOKENS, dim);
	const struct tensor of_w = tensor_of(w, 1, dim), of_want = tensor_of(want, TOKENS, dim);
	const struct tensor row = tensor_of(y + 4 * dim, 1, dim);
	struct dev *dev;
	struct stream *st;

	assert_int_equal(dev_open(isa, 2, &dev), 0);
	assert_int_equal(st_open(dev, 64, &st), 0);
	assert_int_equal(ref_rmsnorm(&of_want, &of_x, &of_w, 1e-5f), 0);
	assert_int_equal(op_rmsnorm(st, &of_y, &of_x, &of_w, 1e-5f), 0);
	for (size_t i = 0; i < TOKENS * dim; i++)
		assert_true(fabsf(y[i] - want[i]) <= TOL_RMSNORM * fabsf(want[i]));

	/* one row alone, in place, is the row of the batch */
	memcpy(want, y + 4 * dim, dim * sizeof(*y));
	memcpy(y + 4 * dim, x + 4 * dim, dim * sizeof(*y));
	assert_int_equal(op_rmsnorm(st, &row, &row, &of_w, 1e-5f), 0);
	assert_memory_equal(y + 4 * dim, want, dim * sizeof(*y));
	st_close(st);
	dev_close(dev);
}

static void rows_agree_with_double_whatever_their_batch(void **state)
{
	const uint32_t dims[] = { 1, 7, 8, 16, 33, 64, 160, 4096, DIM_MAX };

	(void)state;

	for (enum isa isa = ISA_REF; isa < ISA_N; isa++)
		for (size_t i = 0; i < sizeof(dims) / sizeof(*dims); i++)
			if (isa_supported(isa))
				check(isa, dims[i]);
}

static void the_formula_is_that_of_the_contract(void **state)
{
	float in[2] = { 3, 4 }, out[2], ones[2] = { 1, 2 };
	const struct tensor of_in = tensor_of(in, 1, 2), of_out = tensor_of(out, 1, 2);
	const struct tensor of_ones = tensor_of(ones, 1, 2);

	(void)state;

	assert_int_equal(ref_rmsnorm(&of_out, &of_in, &of_ones, 1e-5f), 0);
	assert_true(fabsf(out[0] - 0.84852779f) < 1e-6f); /* 3 / sqrt(12.5 + eps) */
	assert_true(fabsf(out[1] - 2.26274078f) < 1e-6f);
}

static void shapes_that_differ_are_refused(void **state)
{
	struct tensor of_x = tensor_of(x, 1, 16), of_y = tensor_of(y, 1, 16);
	const struct tensor of_w = tensor_of(w, 1, 16), narrow = tensor_of(w, 1, 8);
	struct dev *dev;
	struct stream *st;

	(void)state;

	assert_int_equal(dev_open(ISA_PORTABLE, 1, &dev), 0);
	assert_int_equal(st_open(dev, 64, &st), 0);
	assert_int_equal(op_rmsnorm(st, &of_y, &of_x, &narrow, 1e-5f), -EINVAL);
	assert_int_equal(op_rmsnorm(st, &of_y, &of_x, &of_w, 0), -EINVAL);
	of_y.type = DT_BF16;
	assert_int_equal(op_rmsnorm(st, &of_y, &of_x, &of_w, 1e-5f), -EINVAL);
	st_close(st);
	dev_close(dev);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rows_agree_with_double_whatever_their_batch),
		cmocka_unit_test(the_formula_is_that_of_the_contract),
		cmocka_unit_test(shapes_that_differ_are_refused),
	};

	return cmocka_run_group_tests(tests, fill, NULL);
}
