/* Matrix products: every instruction set against double, and bit for bit against itself. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include "kernels/cpu/cpu.h"
#include "tests/unit/matrices.h"

/* Of a group's largest activation: what fixed point may lose, and BF16 with remainder of each. */
#define TOL_FIXED (1.0 / 65000)
#define TOL_SPLIT (1.0 / 131072)
/* Of the sum of |W x|: sums in F32 here, in double there. */
#define TOL_SUM 2e-6
#define TOL_SUM_REF 6e-8

static const struct form forms[] = {
	{ DT_BF16, DT_NONE, 0 }, { DT_F16, DT_NONE, 0 },  { DT_F32, DT_NONE, 0 },
	{ DT_I32, DT_BF16, 32 }, { DT_I32, DT_BF16, 64 }, { DT_I32, DT_F16, 32 },
	{ DT_I32, DT_F32, 0 },	 { DT_I32, DT_BF16, 0 },
};
#define N_FORMS (sizeof(forms) / sizeof(*forms))

static struct dev *open_dev(enum isa isa, uint32_t threads, struct stream **ret)
{
	const struct op_limits limits = { .tokens = 600,
					  .dim = 4096,
					  .heads = 1,
					  .kv_heads = 1,
					  .head_dim = 64,
					  .ffn_dim = 512,
					  .experts = 16,
					  .top_k = 4,
					  .vocab = 400,
					  .max_context = 64 };
	struct dev *dev;

	assert_int_equal(dev_open(isa, threads, &dev), 0);
	assert_int_equal(st_open(dev, op_scratch(dev, &limits), ret), 0);
	return dev;
}

static float *random_batch(uint32_t n)
{
	float *x = malloc(n * sizeof(*x));

	for (uint32_t i = 0; i < n; i++)
		x[i] = random_f32() * (i % 97 == 0 ? 30 : 1); /* as hidden states have outliers */
	return x;
}

static double activation_error(enum isa isa, enum dtype type)
{
	if (isa == ISA_REF)
		return 0;
	if (type == DT_I32)
		return TOL_FIXED;
	return type == DT_BF16 && isa >= ISA_AVX512BF16 ? TOL_SPLIT : 0;
}

/* How far an element may be off: w and x are one row of the matrix and one of the input. */
static double allowed(enum isa isa, enum dtype type, const float *w, const float *x, uint32_t cols)
{
	double sum = 0, loss = 0;

	for (uint32_t g = 0; g < cols; g += 32) {
		double largest = 0, weights = 0;

		for (uint32_t c = g; c < cols && c < g + 32; c++) {
			largest = fmax(largest, fabsf(x[c]));
			weights += fabsf(w[c]);
			sum += fabs((double)w[c] * x[c]);
		}
		loss += largest * weights;
	}
	return loss * activation_error(isa, type) + sum * (isa == ISA_REF ? TOL_SUM_REF : TOL_SUM);
}

/* The largest error of any element, in units of what it may be. */
static double worst_error(struct stream *st, const struct matrix *m, const float *y, const float *x,
			  uint32_t tokens)
{
	const uint32_t rows = m->src.rows, cols = m->src.cols;
	double *wide = malloc((size_t)tokens * cols * sizeof(double));
	double *exact = malloc((size_t)tokens * rows * sizeof(double));
	float *w = malloc(cols * sizeof(*w));
	const struct tensor tw = batch(w, 1, cols);
	double worst = 0;

	for (size_t i = 0; i < (size_t)tokens * cols; i++)
		wide[i] = x[i];
	assert_int_equal(ref_linear(exact, &m->src, NULL, wide, tokens), 0);
	for (uint32_t r = 0; r < rows; r++) {
		assert_int_equal(op_embed(st, &tw, &m->packed, &r), 0);
		for (uint32_t t = 0; t < tokens; t++) {
			const size_t i = (size_t)t * rows + r;
			const double most = allowed(dev_isa(st_dev(st)), m->src.type, w,
						    x + (size_t)t * cols, cols);

			worst = fmax(worst, fabs(y[i] - exact[i]) / most);
		}
	}
	free(w);
	free(wide);
	free(exact);
	return worst;
}

static void check_shape(struct dev *dev, struct stream *st, const struct form *form, uint32_t rows,
			uint32_t cols, uint32_t tokens)
{
	struct matrix m = matrix_new(dev, form, rows, cols);
	float *x = random_batch(tokens * cols), *y = malloc((size_t)tokens * rows * sizeof(*y));
	const struct tensor tx = batch(x, tokens, cols);
	const struct linear_job job = { .w = &m.packed, .y = batch(y, tokens, rows) };
	double error;

	assert_int_equal(op_repack(dev, &m.packed, &m.src, NULL), 0);
	assert_int_equal(op_linears(st, &job, 1, &tx), 0);
	error = worst_error(st, &m, y, x, tokens);
	if (!(error <= 1))
		fail_msg("%s: type %d group %u, %u x %u, %u tokens: %g times what is allowed",
			 isa_name(dev_isa(dev)), form->type, form->group, rows, cols, tokens,
			 error);
	free(x);
	free(y);
	matrix_free(&m);
}

static void products_agree_with_double_around_every_limit(void **state)
{
	static const uint32_t shapes[][3] = {
		{ 1, 32, 1 },	{ 15, 64, 2 },	 { 16, 160, 3 },  { 17, 32, 4 },   { 31, 64, 5 },
		{ 33, 160, 7 }, { 352, 64, 8 },	 { 16, 4096, 1 }, { 40, 4096, 3 }, { 47, 96, 17 },
		{ 65, 64, 49 }, { 100, 32, 64 }, { 64, 160, 97 },
	};

	(void)state;
	for (int isa = 0; isa < ISA_N; isa++) {
		struct stream *st;
		struct dev *dev;

		if (!isa_supported(isa)) {
			print_message("%s: not on this processor\n", isa_name(isa));
			continue;
		}
		dev = open_dev(isa, 2, &st);
		for (size_t f = 0; f < N_FORMS; f++)
			for (size_t s = 0; s < sizeof(shapes) / sizeof(*shapes); s++)
				if (!forms[f].group || shapes[s][1] % forms[f].group == 0)
					check_shape(dev, st, &forms[f], shapes[s][0], shapes[s][1],
						    shapes[s][2]);
		/* columns that are no multiple of 32 */
		for (size_t f = 0; f < N_FORMS; f++)
			for (uint32_t cols = 1; cols <= 200; cols += 199)
				if (!forms[f].group)
					check_shape(dev, st, &forms[f], 19, cols, 3);
		st_close(st);
		dev_close(dev);
	}
}

static void a_row_has_the_same_bits_in_every_batch_and_on_every_number_of_threads(void **state)
{
	enum { ROWS = 83, COLS = 320, TOKENS = 67 };

	(void)state;
	for (int isa = 0; isa < ISA_N; isa++) {
		for (size_t f = 0; f < N_FORMS && isa_supported(isa); f++) {
			float *x = random_batch(TOKENS * COLS);
			float whole[TOKENS * ROWS], one[TOKENS * ROWS];

			for (uint32_t threads = 1; threads <= 2; threads++) {
				struct stream *st;
				struct dev *dev = open_dev(isa, threads, &st);
				struct matrix m;

				random_state = 4711 + f;
				/* with two threads in the order of the other processors */
				if (threads == 2)
					dev->in_turn = !dev->in_turn;
				m = matrix_new(dev, &forms[f], ROWS, COLS);
				op_repack(dev, &m.packed, &m.src, NULL);
				for (uint32_t n = 1; n <= TOKENS; n += n < 18 ? 1 : 16) {
					for (uint32_t at = 0; at < TOKENS; at += n) {
						const uint32_t k = at + n > TOKENS ? TOKENS - at
										   : n;
						const struct tensor tx = batch(x + at * COLS, k,
									       COLS);
						const struct linear_job job = {
							.w = &m.packed,
							.y = batch((n == 1 && threads == 1 ? whole
											   : one) +
									   at * ROWS,
								   k, ROWS),
						};

						assert_int_equal(op_linears(st, &job, 1, &tx), 0);
					}
					if (n > 1 || threads > 1)
						assert_memory_equal(whole, one, sizeof(whole));
				}
				matrix_free(&m);
				st_close(st);
				dev_close(dev);
			}
			free(x);
		}
	}
}

static void bias_is_added_and_add_keeps_what_was_there(void **state)
{
	(void)state;
	for (int isa = 0; isa < ISA_N; isa++) {
		const float ones[2] = { 1, 1 };
		uint16_t w[3][2] = { { 0x3f80, 0x4000 }, { 0x4040, 0x4080 }, { 0xbf80, 0 } };
		const struct weight_source src = {
			.rows = 3, .cols = 2, .type = DT_BF16, .data = w
		};
		_Alignas(64) uint8_t packed[1024];
		struct weight to = { WEIGHT_BF16, 3, 2, packed };
		float bias[3] = { 10, 20, 30 }, y[3] = { 100, 200, 300 };
		struct linear_job job = {
			.w = &to, .bias = batch(bias, 1, 3), .y = batch(y, 1, 3), .add = true
		};
		const struct tensor x = batch((float *)ones, 1, 2);
		struct stream *st;
		struct dev *dev;

		if (!isa_supported(isa))
			continue;
		dev = open_dev(isa, 1, &st);
		assert_int_equal(weight_bytes(dev, WEIGHT_BF16, 3, 2), 1024);
		assert_int_equal(op_repack(dev, &to, &src, NULL), 0);
		assert_int_equal(op_linears(st, &job, 1, &x), 0);
		assert_true(y[0] == 113 && y[1] == 227 && y[2] == 329);
		job.add = false;
		job.bias.data = NULL;
		assert_int_equal(op_linears(st, &job, 1, &x), 0);
		assert_true(y[0] == 3 && y[1] == 7 && y[2] == -1);
		st_close(st);
		dev_close(dev);
	}
}

static void several_jobs_of_several_kinds_share_one_input(void **state)
{
	(void)state;
	for (int isa = 0; isa < ISA_N; isa++) {
		float *x = random_batch(5 * 64), y[2][N_FORMS][5 * 50];
		const struct tensor tx = batch(x, 5, 64);
		struct linear_job jobs[N_FORMS];
		struct matrix m[N_FORMS];
		struct stream *st;
		struct dev *dev;

		if (!isa_supported(isa)) {
			free(x);
			continue;
		}
		dev = open_dev(isa, 2, &st);
		for (size_t f = 0; f < N_FORMS; f++) {
			m[f] = matrix_new(dev, &forms[f], 20 + (uint32_t)f, 64);
			op_repack(dev, &m[f].packed, &m[f].src, NULL);
			jobs[f] = (struct linear_job){ .w = &m[f].packed,
						       .y = batch(y[0][f], 5, 20 + (uint32_t)f) };
			assert_int_equal(op_linears(st, &jobs[f], 1, &tx), 0);
			jobs[f].y.data = y[1][f];
		}
		assert_int_equal(op_linears(st, jobs, N_FORMS, &tx), 0);
		for (size_t f = 0; f < N_FORMS; f++) {
			assert_memory_equal(y[0][f], y[1][f], 5 * (20 + f) * sizeof(float));
			matrix_free(&m[f]);
		}
		assert_int_equal(op_linears(st, jobs, OP_LINEARS_MAX + 1, &tx), -EINVAL);
		free(x);
		st_close(st);
		dev_close(dev);
	}
}

static void the_lowest_nibble_is_the_first_column_and_code_0_is_minus_8(void **state)
{
	const uint32_t words[4] = { 0x76543210, 0xfedcba98, 0x88888888, 0x00000000 };
	const uint16_t one = 0x3f80;
	const struct weight_source src = { .rows = 1,
					   .cols = 32,
					   .type = DT_I32,
					   .data = words,
					   .scales = &one,
					   .scale_type = DT_BF16,
					   .group = 32 };
	const float expected[32] = {
		-8, -7, -6, -5, -4, -3, -2, -1, 0,  1,	2,  3,	4,  5,	6,  7,
		0,  0,	0,  0,	0,  0,	0,  0,	-8, -8, -8, -8, -8, -8, -8, -8
	};
	_Alignas(64) uint8_t packed[288];
	const struct weight to = { WEIGHT_INT4, 1, 32, packed };

	(void)state;
	for (int isa = 0; isa < ISA_N; isa++) {
		float y[32], x[32] = { 0 }, got;
		const struct tensor ty = batch(y, 1, 32), tx = batch(x, 1, 32);
		const struct linear_job job = { .w = &to, .y = batch(&got, 1, 1) };
		const uint32_t id = 0;
		struct stream *st;
		struct dev *dev;

		if (!isa_supported(isa))
			continue;
		dev = open_dev(isa, 1, &st);
		assert_int_equal(weight_bytes(dev, WEIGHT_INT4, 1, 32), 288);
		assert_int_equal(op_repack(dev, &to, &src, NULL), 0);
		assert_int_equal(op_embed(st, &ty, &to, &id), 0);
		assert_memory_equal(y, expected, sizeof(y));
		for (int c = 0; c < 32; c++) {
			x[c] = 1;
			assert_int_equal(op_linears(st, &job, 1, &tx), 0);
			assert_float_equal(got, expected[c], 1e-5);
			x[c] = 0;
		}
		st_close(st);
		dev_close(dev);
	}
}

static void a_part_of_a_table_has_its_rows_and_zeros_for_others(void **state)
{
	const struct form form = { DT_BF16, DT_NONE, 0 };
	const uint32_t ids[] = { 99, 100, 120, 121, 7, 139 };
	float y[6 * 40], want[40];
	const struct tensor ty = batch(y, 6, 40), one = batch(want, 1, 40);
	struct stream *st;
	struct dev *dev = open_dev(ISA_PORTABLE, 1, &st);
	struct matrix m = matrix_new(dev, &form, 21, 40);

	(void)state;
	assert_int_equal(op_repack(dev, &m.packed, &m.src, NULL), 0);
	memset(y, 0xff, sizeof(y));
	assert_int_equal(op_embed_part(st, &ty, &m.packed, 100, 140, ids), 0);
	for (uint32_t i = 0; i < 6; i++) {
		const uint32_t row = ids[i] - 100;

		memset(want, 0, sizeof(want));
		if (ids[i] >= 100 && ids[i] < 121)
			assert_int_equal(op_embed(st, &one, &m.packed, &row), 0);
		assert_memory_equal(y + i * 40, want, sizeof(want));
	}
	assert_int_equal(op_embed_part(st, &ty, &m.packed, 100, 139, ids), -EINVAL);

	assert_int_equal(op_clear(st, &one), 0);
	for (uint32_t i = 0; i < 40; i++)
		assert_true(want[i] == 0);
	matrix_free(&m);
	st_close(st);
	dev_close(dev);
}

static void scales_that_are_no_scales_are_named(void **state)
{
	static const struct {
		enum dtype type;
		uint32_t bits;
	} bad[] = {
		{ DT_BF16, 0 },	     { DT_BF16, 0x8000 },    { DT_BF16, 0x7fc0 },
		{ DT_BF16, 0x7f80 }, { DT_BF16, 0xbf80 },    { DT_F16, 0x7e00 },
		{ DT_F16, 0x7c00 },  { DT_F16, 0 },	     { DT_F16, 0xbc00 },
		{ DT_F32, 0 },	     { DT_F32, 0x7fc00000 }, { DT_F32, 0xbf800000 },
	};
	struct dev *dev;

	(void)state;
	assert_int_equal(dev_open(ISA_PORTABLE, 1, &dev), 0);
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		const struct form form = { DT_I32, bad[i].type, 32 };
		struct matrix m = matrix_new(dev, &form, 3, 64);
		const size_t bytes = dtype_bytes(bad[i].type);
		size_t which = 99;

		memcpy(m.scale_bytes + 1 + 3 * bytes, &bad[i].bits, bytes);
		assert_int_equal(op_repack(dev, &m.packed, &m.src, &which), -EDOM);
		assert_int_equal(which, 3);
		matrix_free(&m);
	}
	dev_close(dev);
}

static void kinds_are_told_from_types_and_groups(void **state)
{
	struct weight_source s = { .rows = 2, .cols = 64, .type = DT_I32, .scale_type = DT_BF16 };
	static const struct {
		uint32_t cols, group;
		enum dtype scale;
		enum weight_kind kind;
	} cases[] = {
		{ 64, 32, DT_BF16, WEIGHT_INT4 },      { 64, 64, DT_F16, WEIGHT_INT4_F32 },
		{ 128, 128, DT_F32, WEIGHT_INT4_F32 }, { 40, 40, DT_BF16, WEIGHT_INT4 },
		{ 64, 16, DT_BF16, WEIGHT_NONE },      { 80, 32, DT_BF16, WEIGHT_NONE },
		{ 64, 0, DT_BF16, WEIGHT_NONE },       { 64, 32, DT_I32, WEIGHT_NONE },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		s.cols = cases[i].cols;
		s.group = cases[i].group;
		s.scale_type = cases[i].scale;
		assert_int_equal(weight_kind_of(&s), cases[i].kind);
	}
	s.type = DT_BF16;
	assert_int_equal(weight_kind_of(&s), WEIGHT_BF16);
	s.type = DT_F16;
	assert_int_equal(weight_kind_of(&s), WEIGHT_F32);
	s.type = DT_I64;
	assert_int_equal(weight_kind_of(&s), WEIGHT_NONE);
}

static void embedding_is_exact_and_refuses_ids_beyond_the_table(void **state)
{
	(void)state;
	for (size_t f = 0; f < N_FORMS; f++) {
		struct stream *st;
		struct dev *dev = open_dev(isa_best(), 1, &st);
		struct matrix m = matrix_new(dev, &forms[f], 21, 64);
		uint32_t ids[3] = { 20, 0, 17 };
		float y[3 * 64];
		double unit[64], exact[21];
		const struct tensor ty = batch(y, 3, 64);

		op_repack(dev, &m.packed, &m.src, NULL);
		assert_int_equal(op_embed(st, &ty, &m.packed, ids), 0);
		for (uint32_t c = 0; c < 64; c++) {
			memset(unit, 0, sizeof(unit));
			unit[c] = 1;
			ref_linear(exact, &m.src, NULL, unit, 1);
			for (int t = 0; t < 3; t++)
				assert_true(y[t * 64 + c] == (float)exact[ids[t]]);
		}
		ids[1] = 21;
		assert_int_equal(op_embed(st, &ty, &m.packed, ids), -EINVAL);
		matrix_free(&m);
		st_close(st);
		dev_close(dev);
	}
}

static void wrong_shapes_are_refused_and_no_tokens_are_nothing_to_do(void **state)
{
	struct stream *st;
	struct dev *dev = open_dev(ISA_PORTABLE, 1, &st);
	struct matrix m = matrix_new(dev, &forms[0], 16, 32);
	float x[64], y[64] = { 7 };
	struct linear_job job = { .w = &m.packed, .y = batch(y, 2, 16) };
	struct tensor tx = batch(x, 2, 31);

	(void)state;
	op_repack(dev, &m.packed, &m.src, NULL);
	assert_int_equal(op_linears(st, &job, 1, &tx), -EINVAL);
	tx = batch(x, 1, 32);
	assert_int_equal(op_linears(st, &job, 1, &tx), -EINVAL);
	tx.type = DT_BF16;
	assert_int_equal(op_linears(st, &job, 1, &tx), -EINVAL);
	tx = batch(NULL, 0, 32);
	job.y = batch(NULL, 0, 16);
	assert_int_equal(op_linears(st, &job, 1, &tx), 0);
	assert_true(y[0] == 7);
	m.packed.rows = 15;
	assert_int_equal(op_repack(dev, &m.packed, &m.src, NULL), -EINVAL);
	matrix_free(&m);
	st_close(st);
	dev_close(dev);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(products_agree_with_double_around_every_limit),
		cmocka_unit_test(
			a_row_has_the_same_bits_in_every_batch_and_on_every_number_of_threads),
		cmocka_unit_test(bias_is_added_and_add_keeps_what_was_there),
		cmocka_unit_test(several_jobs_of_several_kinds_share_one_input),
		cmocka_unit_test(the_lowest_nibble_is_the_first_column_and_code_0_is_minus_8),
		cmocka_unit_test(a_part_of_a_table_has_its_rows_and_zeros_for_others),
		cmocka_unit_test(scales_that_are_no_scales_are_named),
		cmocka_unit_test(kinds_are_told_from_types_and_groups),
		cmocka_unit_test(embedding_is_exact_and_refuses_ids_beyond_the_table),
		cmocka_unit_test(wrong_shapes_are_refused_and_no_tokens_are_nothing_to_do),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
