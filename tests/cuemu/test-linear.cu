/* Matrix products of kernels/cuda against double, around every limit, in every order of blocks. */
#include <math.h>

#include "tests/cuemu/matrices.h"

#define TOL_SPLIT (1.0 / 131072) /* of an activation: high and low halves */
#define TOL_SUM 2e-6		 /* of the sum of |W x|: sums in F32 here, in double there */

static const struct form forms[] = {
	{ DT_BF16, DT_NONE, 0 }, { DT_F32, DT_NONE, 0 },  { DT_I32, DT_BF16, 32 },
	{ DT_I32, DT_F32, 32 },	 { DT_F16, DT_NONE, 0 },  { DT_I32, DT_F16, 64 },
	{ DT_I32, DT_BF16, 0 },
};
#define N_FORMS (sizeof(forms) / sizeof(*forms))

/* Products of @m with @tokens rows, with bias or added to what was there, against double. */
static void check_product(struct rig *rig, const struct matrix &m, uint32_t tokens, bool add)
{
	const uint32_t rows = m.src.rows, cols = m.src.cols;
	const std::vector<float> x = random_floats((size_t)tokens * cols), bias = random_floats(rows);
	const std::vector<float> was = random_floats((size_t)tokens * rows);
	device_memory dx(x.size() * 4, x.data()), dbias(bias.size() * 4, bias.data());
	device_memory dy(was.size() * 4, was.data());
	const struct tensor tx = batch(dx.at, tokens, cols);
	struct linear_job job = {};
	std::vector<float> y;

	job.w = &m.packed;
	if (!add)
		job.bias = batch(dbias.at, 1, rows);
	job.y = batch(dy.at, tokens, rows);
	job.add = add;
	for (int order = 0; order < CUEMU_ORDERS; order++) {
		cuemu_set_order((enum cuemu_order)order);
		dy.write(was.data());
		assert_int_equal(op_linears(rig->st, &job, 1, &tx), 0);
		if (order > 0) {
			assert_true(dy.read<float>(rig->st) == y);
			continue;
		}
		y = dy.read<float>(rig->st);
		if (rows * cols * tokens > 100000)
			break;
	}
	for (uint32_t t = 0; t < tokens; t++)
		for (uint32_t r = 0; r < rows; r++) {
			double want = add ? was[t * rows + r] : bias[r], most = 1e-30;

			for (uint32_t c = 0; c < cols; c++) {
				const double v = m.values[(size_t)r * cols + c] * x[t * cols + c];

				want += v;
				most += fabs(v) * (TOL_SPLIT + TOL_SUM);
			}
			most += fabs(want) * 1e-6;
			if (!(fabs(y[t * rows + r] - want) <= most))
				fail_msg("type %d, %u x %u, %u tokens: y[%u, %u] is %g, not %g",
					 m.src.type, rows, cols, tokens, t, r, y[t * rows + r],
					 want);
		}
}

static void few_tokens_agree_with_double(void **state)
{
	/* half tiles, one and many rounds, several strips a block and more than have slots */
	static const uint32_t shapes[][3] = {
		{ 1, 32, 1 },  { 16, 96, 2 },	{ 17, 160, 3 }, { 40, 64, 4 },
		{ 31, 96, 5 }, { 400, 64, 7 }, { 52, 544, 8 },  { 33, 4192, 1 },
	};

	(void)state;
	for (const struct form &form : forms)
		for (const uint32_t *shape : shapes)
			if (!form.group || shape[1] % form.group == 0) {
				struct rig rig(shape[0] % 2 ? 2 : 4);
				struct matrix m;

				matrix_make(rig.dev, &m, form, shape[0], shape[1]);
				check_product(&rig, m, shape[2], shape[2] % 2);
			}
}

static void columns_that_are_no_multiple_of_anything_work(void **state)
{
	struct rig rig(2);

	(void)state;
	for (const struct form &form : forms)
		for (uint32_t cols = 1; cols <= 201 && !form.group; cols += 100)
			for (uint32_t tokens : { 1, 3, 6, 11 }) {
				struct matrix m;

				matrix_make(rig.dev, &m, form, 19, cols);
				check_product(&rig, m, tokens, tokens % 2);
			}
}

static void rows_longer_than_shared_memory_are_taken_in_runs(void **state)
{
	(void)state;
	for (const struct form &form : { forms[0], forms[2] })
		for (uint32_t tokens : { 1, 2, 4 }) {
			struct rig rig(2, (80 + 6 * tokens) << 10);
			struct matrix m;

			/* two batches of strips for a block, three runs of columns or so each */
			matrix_make(rig.dev, &m, form, 16 * 19, tokens == 1 ? 6400 : 2144);
			check_product(&rig, m, tokens, true);
		}
}

static void many_tokens_agree_with_double(void **state)
{
	static const uint32_t shapes[][3] = {
		{ 1, 32, 9 },	 { 130, 64, 16 }, { 47, 96, 17 }, { 65, 160, 33 },
		{ 16, 288, 64 }, { 257, 64, 65 }, { 40, 2048, 9 }, { 24, 1056, 70 },
	};

	(void)state;
	for (const struct form &form : forms)
		for (const uint32_t *shape : shapes)
			if (!form.group || shape[1] % form.group == 0) {
				struct rig rig(4);
				struct matrix m;

				matrix_make(rig.dev, &m, form, shape[0], shape[1]);
				check_product(&rig, m, shape[2], shape[2] % 2);
			}
}

static void several_jobs_share_one_launch(void **state)
{
	const uint32_t cols = 160;

	(void)state;
	for (uint32_t tokens : { 1, 5, 12 }) {
		struct rig rig(4);
		const std::vector<float> x = random_floats(tokens * cols);
		device_memory dx(x.size() * 4, x.data());
		const struct tensor tx = batch(dx.at, tokens, cols);
		std::vector<struct matrix> m(OP_LINEARS_MAX);
		std::vector<std::unique_ptr<device_memory>> y;
		struct linear_job jobs[OP_LINEARS_MAX] = {};

		for (uint32_t i = 0; i < OP_LINEARS_MAX; i++) {
			matrix_make(rig.dev, &m[i], forms[i % 3], 20 + 9 * i, cols);
			y.push_back(std::make_unique<device_memory>(tokens * m[i].src.rows * 4));
			jobs[i].w = &m[i].packed;
			jobs[i].y = batch(y[i]->at, tokens, m[i].src.rows);
		}
		assert_int_equal(op_linears(rig.st, jobs, OP_LINEARS_MAX, &tx), 0);
		for (uint32_t i = 0; i < OP_LINEARS_MAX; i++) {
			const std::vector<float> got = y[i]->read<float>(rig.st);

			for (uint32_t at = 0; at < got.size(); at++) {
				const uint32_t r = at % m[i].src.rows, t = at / m[i].src.rows;
				double want = 0, size = 0;

				for (uint32_t c = 0; c < cols; c++) {
					const double v =
						m[i].values[r * cols + c] * x[t * cols + c];

					want += v;
					size += fabs(v);
				}
				assert_true(fabs(got[at] - want) <= size * (TOL_SPLIT + TOL_SUM));
			}
		}
		assert_int_equal(op_linears(rig.st, jobs, OP_LINEARS_MAX + 1, &tx), -EINVAL);
	}
}

static void embedding_is_exact_and_refuses_ids_beyond_the_table(void **state)
{
	uint32_t ids[] = { 20, 0, 17, 7 };

	(void)state;
	for (const struct form &form : forms)
		for (uint32_t cols : { 64, 96 }) {
			struct rig rig(4);
			device_memory y(4 * cols * 4);
			const struct tensor ty = batch(y.at, 4, cols);
			std::vector<float> got;
			struct matrix m;

			if (form.group && cols % form.group)
				continue;
			matrix_make(rig.dev, &m, form, 21, cols);
			assert_int_equal(op_embed(rig.st, &ty, &m.packed, ids), 0);
			got = y.read<float>(rig.st);
			for (uint32_t i = 0; i < 4 * cols; i++)
				assert_true(got[i] ==
					    (float)m.values[ids[i / cols] * cols + i % cols]);
			ids[1] = 21;
			assert_int_equal(op_embed(rig.st, &ty, &m.packed, ids), -EINVAL);
			ids[1] = 0;
			/* rows 5 … 25 of a table of 26: the others are zeros */
			assert_int_equal(op_embed_part(rig.st, &ty, &m.packed, 5, 26, ids), 0);
			got = y.read<float>(rig.st);
			for (uint32_t i = 0; i < 4 * cols; i++) {
				const uint32_t id = ids[i / cols];

				assert_true(got[i] ==
					    (id < 5 ? 0 : (float)m.values[(id - 5) * cols + i % cols]));
			}
			assert_int_equal(op_clear(rig.st, &ty), 0);
			got = y.read<float>(rig.st);
			for (uint32_t i = 0; i < 4 * cols; i++)
				assert_true(got[i] == 0);
		}
}

static void the_bytes_of_a_matrix_are_those_of_its_strips(void **state)
{
	(void)state;
	assert_int_equal(weight_bytes(NULL, WEIGHT_BF16, 3, 2), 1024);
	assert_int_equal(weight_bytes(NULL, WEIGHT_F32, 17, 33), 2 * 2 * 2048);
	assert_int_equal(weight_bytes(NULL, WEIGHT_INT4, 1, 32), 288);
	assert_int_equal(weight_bytes(NULL, WEIGHT_INT4, 16, 4096), 36864);
	assert_int_equal(weight_bytes(NULL, WEIGHT_INT4, 16, 352), 3168);
	assert_int_equal(weight_bytes(NULL, WEIGHT_INT4_F32, 32, 64), 2 * 640);
	assert_int_equal(weight_bytes(NULL, WEIGHT_NONE, 32, 64), 0);
}

/* Pieces of a matrix, cut at strips, make the same bytes as the whole. */
static void a_matrix_can_be_packed_in_pieces(void **state)
{
	(void)state;
	for (const struct form &form : forms) {
		struct rig rig(4);
		struct matrix m;

		matrix_make(rig.dev, &m, form, 41, form.group == 64 ? 128 : 96);

		const size_t row = m.src.type == DT_I32 ? m.src.cols / 8 * 4 :
							  m.src.cols * dtype_bytes(m.src.type);
		const size_t scale_row = m.src.cols / m.src.group * dtype_bytes(m.src.scale_type);
		device_memory pieces(m.memory->bytes);

		for (uint32_t first = 0; first < 41; first += 16) {
			struct weight_source src = m.src;
			struct weight to = m.packed;

			src.rows = to.rows = 41 - first < 16 ? 41 - first : 16;
			src.data = (const char *)src.data + first * row;
			src.scales = (const char *)src.scales + first * scale_row;
			to.data = pieces.at + weight_bytes(rig.dev, to.kind, first, to.cols);
			weight_touch(rig.dev, &to, first, 41);
			assert_int_equal(op_repack(rig.dev, &to, &src, NULL), 0);
		}
		assert_true(pieces.read<uint8_t>(rig.st) == m.memory->read<uint8_t>(rig.st));
	}
}

static void scales_that_are_no_scales_are_named(void **state)
{
	static const struct {
		enum dtype type;
		uint32_t bits;
	} bad[] = {
		{ DT_BF16, 0 },	     { DT_BF16, 0x7fc0 }, { DT_BF16, 0xbf80 },
		{ DT_F16, 0x7c00 },  { DT_F16, 0 },	  { DT_F32, 0x7fc00000 },
		{ DT_F32, 0xbf800000 },
	};
	struct rig rig(4);

	(void)state;
	for (const auto &b : bad) {
		const uint32_t bytes = dtype_bytes(b.type);
		struct matrix m;
		size_t which = 99;

		matrix_make(rig.dev, &m, { DT_I32, b.type, 32 }, 3, 64);
		memcpy(m.scales.data() + 1 + 3 * bytes, &b.bits, bytes);
		assert_int_equal(op_repack(rig.dev, &m.packed, &m.src, &which), -EDOM);
		assert_int_equal(which, 3);
	}
}

static void wrong_shapes_are_refused_and_no_tokens_are_nothing_to_do(void **state)
{
	struct rig rig(4);
	device_memory x(2 * 32 * 4), y(2 * 16 * 4);
	struct linear_job job = {};
	struct tensor tx = batch(x.at, 2, 31);
	struct matrix m;

	(void)state;
	matrix_make(rig.dev, &m, forms[0], 16, 32);
	job.w = &m.packed;
	job.y = batch(y.at, 2, 16);
	assert_int_equal(op_linears(rig.st, &job, 1, &tx), -EINVAL);
	tx = batch(x.at, 1, 32);
	assert_int_equal(op_linears(rig.st, &job, 1, &tx), -EINVAL);
	tx.type = DT_BF16;
	assert_int_equal(op_linears(rig.st, &job, 1, &tx), -EINVAL);
	tx = batch(NULL, 0, 32);
	job.y = batch(NULL, 0, 16);
	assert_int_equal(op_linears(rig.st, &job, 1, &tx), 0);
	m.packed.rows = 15;
	assert_int_equal(op_repack(rig.dev, &m.packed, &m.src, NULL), -EINVAL);
}

/* What blocks load is every weight once, and each of them the activations once. */
static void weights_are_read_once(void **state)
{
	(void)state;
	for (const struct form &form : { forms[0], forms[2], forms[3] })
		for (uint32_t tokens : { 1, 4, 8 }) {
			const uint32_t rows = 512, cols = 1024, n_sm = 2;
			struct rig rig(n_sm);
			const std::vector<float> x = random_floats(tokens * cols);
			device_memory dx(x.size() * 4, x.data()), y(tokens * rows * 4);
			const struct tensor tx = batch(dx.at, tokens, cols);
			/* with more tokens than 4 it is split first, and blocks have 128 rows each */
			const uint64_t of_x = (tokens > 4 ? 1 + rows / 128 : n_sm) * x.size() * 4;
			struct linear_job job = {};
			struct matrix m;
			uint64_t least;

			matrix_make(rig.dev, &m, form, rows, cols);
			if (tokens > 4 && m.packed.kind > WEIGHT_BF16 && m.packed.kind != WEIGHT_INT4)
				continue; /* its blocks have 32 tokens, be they there or not */
			job.w = &m.packed;
			job.y = batch(y.at, tokens, rows);
			least = weight_bytes(rig.dev, m.packed.kind, rows, cols) + of_x;
			cuemu_count(true);
			assert_int_equal(op_linears(rig.st, &job, 1, &tx), 0);
			assert_int_equal(cuemu_counted().read_sectors * 32, least);
			cuemu_count(false);
		}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(few_tokens_agree_with_double),
		cmocka_unit_test(columns_that_are_no_multiple_of_anything_work),
		cmocka_unit_test(rows_longer_than_shared_memory_are_taken_in_runs),
		cmocka_unit_test(many_tokens_agree_with_double),
		cmocka_unit_test(several_jobs_share_one_launch),
		cmocka_unit_test(embedding_is_exact_and_refuses_ids_beyond_the_table),
		cmocka_unit_test(the_bytes_of_a_matrix_are_those_of_its_strips),
		cmocka_unit_test(a_matrix_can_be_packed_in_pieces),
		cmocka_unit_test(scales_that_are_no_scales_are_named),
		cmocka_unit_test(wrong_shapes_are_refused_and_no_tokens_are_nothing_to_do),
		cmocka_unit_test(weights_are_read_once),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
