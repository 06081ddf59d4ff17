/* Mixtures of experts and dense MLPs of kernels/cuda against double. */
#include <math.h>

#include <algorithm>

#include "tests/cuemu/matrices.h"

/* Of the magnitudes that are summed: activations, twice on the way, have 18 bits, and F32 has more. */
#define TOL_MOE 0x1p-17

enum { GATE, UP, DOWN, ROLES };

static const struct form bf16 = { DT_BF16, DT_NONE, 0 }, f32 = { DT_F32, DT_NONE, 0 };
static const struct form int4 = { DT_I32, DT_BF16, 32 }, int4_f32 = { DT_I32, DT_F16, 32 };

struct shape {
	uint32_t experts, top_k, dim, ffn_dim, shared_dim; /* top_k or shared_dim 0: none */
};

struct mixture {
	struct shape shape;
	std::vector<struct matrix> matrices[ROLES];
	struct matrix shared[ROLES];
	std::vector<struct weight> packed[ROLES];
	std::unique_ptr<device_memory> memory;
	struct moe_weights w;
};

/* Experts one behind another in one piece of memory, as a model has them, or each in its own. */
static void mixture_make(struct dev *dev, struct mixture *x, const struct shape &shape,
			 const struct form &routed, const struct form &shared, bool is_regular)
{
	const struct form forms[ROLES] = { routed, routed, routed };
	const uint32_t sizes[ROLES][2] = { { shape.ffn_dim, shape.dim },
					   { shape.ffn_dim, shape.dim },
					   { shape.dim, shape.ffn_dim } };
	const uint32_t of_shared[ROLES][2] = { { shape.shared_dim, shape.dim },
					       { shape.shared_dim, shape.dim },
					       { shape.dim, shape.shared_dim } };
	size_t at = 0;

	x->shape = shape;
	x->w = {};
	for (int pass = is_regular ? 0 : 1; pass < 2 && shape.top_k; pass++) {
		at = 0;
		for (uint32_t e = 0; e < shape.experts; e++)
			for (int role = 0; role < ROLES; role++) {
				const uint32_t *size = sizes[role];
				struct matrix m;

				if (pass) {
					matrix_make(dev, &m, forms[role], size[0], size[1],
						    x->memory ? x->memory->at + at : NULL);
					x->packed[role].push_back(m.packed);
					x->matrices[role].push_back(std::move(m));
				}
				at += weight_bytes(dev, WEIGHT_INT4, size[0], size[1]);
			}
		if (!pass)
			x->memory = std::make_unique<device_memory>(at);
	}
	if (shape.top_k) {
		x->w.experts = shape.experts;
		x->w.gate = x->packed[GATE].data();
		x->w.up = x->packed[UP].data();
		x->w.down = x->packed[DOWN].data();
	}
	for (int role = 0; role < ROLES && shape.shared_dim; role++)
		matrix_make(dev, &x->shared[role], shared, of_shared[role][0], of_shared[role][1]);
	if (shape.shared_dim) {
		x->w.shared_gate = x->shared[GATE].packed;
		x->w.shared_up = x->shared[UP].packed;
		x->w.shared_down = x->shared[DOWN].packed;
	}
}

/* Distinct experts for each token, the first few far more often than the last. */
static void choose(const struct shape &shape, uint32_t tokens, std::vector<uint32_t> *chosen,
		   std::vector<float> *weights)
{
	for (uint32_t t = 0; t < tokens; t++)
		for (uint32_t k = 0; k < shape.top_k; k++) {
			bool taken;
			uint32_t e;

			do {
				e = std::min(random_u32() % shape.experts,
					     random_u32() % shape.experts);
				taken = false;
				for (uint32_t i = 0; i < k; i++)
					taken |= (*chosen)[t * shape.top_k + i] == e;
			} while (taken);
			chosen->push_back(e);
			weights->push_back(0.1f + (random_f32() + 1) / 4);
		}
}

/* What an expert adds to each row, and what errors of its sums are measured by. */
struct added {
	std::vector<double> sum, size;
};

static void add_mlp(struct added *to, const struct matrix &gate, const struct matrix &up,
		    const struct matrix &down, double weight, const float *x)
{
	const uint32_t dim = gate.src.cols, ffn_dim = gate.src.rows;
	std::vector<double> h(ffn_dim), size(ffn_dim);

	for (uint32_t i = 0; i < ffn_dim; i++) {
		double z = 0, u = 0, z_size = 0, u_size = 0, silu;

		for (uint32_t c = 0; c < dim; c++) {
			const double of_gate = gate.values[(size_t)i * dim + c] * x[c];
			const double of_up = up.values[(size_t)i * dim + c] * x[c];

			z += of_gate;
			u += of_up;
			z_size += fabs(of_gate);
			u_size += fabs(of_up);
		}
		silu = z / (1 + exp(-z));
		h[i] = silu * u;
		size[i] = fabs(silu) * u_size + 1.1 * z_size * fabs(u); /* no slope is above 1.1 */
	}
	for (uint32_t r = 0; r < dim; r++)
		for (uint32_t i = 0; i < ffn_dim; i++) {
			const double by = weight * down.values[(size_t)r * ffn_dim + i];

			to->sum[r] += by * h[i];
			to->size[r] += fabs(by) * size[i];
		}
}

/* op_moe() in every order of blocks, with the same bits, against double. */
static void check_mixture(struct rig *rig, const struct mixture &m, uint32_t tokens)
{
	const struct shape &s = m.shape;
	const size_t n = (size_t)tokens * s.dim;
	std::vector<uint32_t> chosen;
	std::vector<float> weights, x(n), was(n), y;

	for (size_t i = 0; i < n; i++) {
		x[i] = random_f32();
		was[i] = random_f32();
	}
	choose(s, tokens, &chosen, &weights);
	device_memory dx(n * 4, x.data()), dy(n * 4), dchosen(chosen.size() * 4, chosen.data());
	device_memory dweights(weights.size() * 4, weights.data());
	const struct tensor tx = batch(dx.at, tokens, s.dim), ty = batch(dy.at, tokens, s.dim);

	for (int order = 0; order < CUEMU_ORDERS; order++) {
		cuemu_set_order((enum cuemu_order)order);
		dy.write(was.data());
		assert_int_equal(op_moe(rig->st, &ty, &tx, &m.w, s.top_k, (uint32_t *)dchosen.at,
					(float *)dweights.at),
				 0);
		if (order > 0)
			assert_true(dy.read<float>(rig->st) == y);
		y = dy.read<float>(rig->st);
		if (n * s.ffn_dim > 20000)
			break;
	}
	for (uint32_t t = 0; t < tokens; t++) {
		struct added sum = { std::vector<double>(s.dim), std::vector<double>(s.dim) };

		for (uint32_t k = 0; k < s.top_k; k++) {
			const uint32_t e = chosen[t * s.top_k + k];

			add_mlp(&sum, m.matrices[GATE][e], m.matrices[UP][e], m.matrices[DOWN][e],
				weights[t * s.top_k + k], x.data() + t * s.dim);
		}
		if (s.shared_dim)
			add_mlp(&sum, m.shared[GATE], m.shared[UP], m.shared[DOWN], 1,
				x.data() + t * s.dim);
		for (uint32_t r = 0; r < s.dim; r++) {
			const double before = was[t * s.dim + r], want = before + sum.sum[r];

			if (!(fabs(y[t * s.dim + r] - want) <= TOL_MOE * (fabs(before) + sum.size[r])))
				fail_msg("%u of %u experts, %u x %u, shared %u, %u tokens: y[%u, "
					 "%u] is %g, not %g",
					 s.top_k, s.experts, s.ffn_dim, s.dim, s.shared_dim,
					 tokens, t, r, y[t * s.dim + r], want);
		}
	}
}

static const struct shape shapes[] = {
	{ 6, 2, 96, 64, 32 },  { 12, 3, 64, 32, 96 },	{ 5, 1, 64, 96, 0 },
	{ 0, 0, 64, 0, 48 },   { 300, 4, 32, 40, 40 },	{ 3, 3, 40, 33, 17 },
	{ 16, 8, 64, 352, 352 },
};

static void few_tokens_agree_with_double(void **state)
{
	(void)state;
	for (const struct shape &shape : shapes)
		for (uint32_t tokens : { 1, 2 }) {
			struct rig rig(tokens % 2 ? 2 : 3);
			const bool is_odd = shape.dim % 32 || shape.ffn_dim % 32;
			const struct form routed = { DT_I32, DT_BF16, is_odd ? 0 : 32u };
			struct mixture m;

			if (shape.experts > 100 && tokens != 2)
				continue;
			mixture_make(rig.dev, &m, shape, routed, bf16, true);
			assert_true(moe_is_few(rig.dev, &m.w, tokens, shape.top_k));
			check_mixture(&rig, m, tokens);
		}
}

static void few_tokens_fit_into_any_shared_memory(void **state)
{
	const struct shape shape = { 16, 8, 1056, 416, 1100 };
	struct mixture m;

	(void)state;
	for (uint32_t tokens : { 1, 2 }) {
		/* runs of columns, batches of strips, and more choices than there is room for at once */
		struct rig rig(2, (tokens == 1 ? 78 : 82) << 10);

		mixture_make(rig.dev, &m, shape, int4, bf16, true);
		assert_true(moe_is_few(rig.dev, &m.w, tokens, shape.top_k));
		check_mixture(&rig, m, tokens);
		m = {};
	}
}

/* More tokens of one expert than a tile has: the bits of a way that takes them by 32. */
static void tiles_have_the_bits_of_any_other_way(void **state)
{
	const struct shape shape = { 4, 2, 96, 64, 96 };
	const uint32_t tokens = 150, n = tokens * shape.dim;
	const std::vector<float> x = random_floats(n), was = random_floats(n);
	std::vector<uint32_t> chosen;
	std::vector<float> weights;
	struct rig rig(4);
	struct mixture m;

	(void)state;
	mixture_make(rig.dev, &m, shape, int4, bf16, true);
	choose(shape, tokens, &chosen, &weights);
	device_memory dx(n * 4, x.data()), dy(n * 4, was.data()), dz(n * 4, was.data());
	device_memory dchosen(chosen.size() * 4, chosen.data());
	device_memory dweights(weights.size() * 4, weights.data());
	const struct tensor tx = batch(dx.at, tokens, shape.dim);
	const struct tensor ty = batch(dy.at, tokens, shape.dim);
	const struct tensor tz = batch(dz.at, tokens, shape.dim);

	assert_int_equal(moe_tiles(rig.st, &ty, &tx, &m.w, shape.top_k, (uint32_t *)dchosen.at,
				   (float *)dweights.at),
			 0);
	assert_int_equal(moe_many(rig.st, &tz, &tx, &m.w, shape.top_k, (uint32_t *)dchosen.at,
				  (float *)dweights.at),
			 0);
	assert_true(dy.read<float>(rig.st) == dz.read<float>(rig.st));
	assert_true(dy.read<float>(rig.st) != was);
}

/* Experts one behind another: tiles of every width, of one expert and of several. */
static void tiles_of_tokens_agree_with_double(void **state)
{
	(void)state;
	for (const struct shape &shape : shapes)
		for (uint32_t tokens : { 3, 30, 70, 133 }) {
			const bool is_odd = shape.dim % 32 || shape.ffn_dim % 32;
			const struct form routed = { DT_I32, DT_BF16, is_odd ? 0 : 32u };
			struct rig rig(4);
			struct mixture m;

			if (shape.experts > 100 && tokens > 3)
				continue;
			mixture_make(rig.dev, &m, shape, routed, bf16, true);
			assert_true(moe_is_regular(&m.w, shape.top_k));
			assert_false(moe_is_few(rig.dev, &m.w, tokens, shape.top_k));
			check_mixture(&rig, m, tokens);
		}
}

static void many_tokens_and_other_kinds_agree_with_double(void **state)
{
	const struct form kinds[][2] = {
		{ int4, bf16 }, { int4_f32, int4 }, { bf16, f32 }, { f32, int4_f32 }
	};
	uint32_t i = 0;

	(void)state;
	for (const struct shape &shape : shapes)
		for (uint32_t tokens : { 3, 9, 41 }) {
			const struct form *kind = kinds[i++ % 4];
			struct rig rig(4);
			struct mixture m;

			if (shape.dim % 32 || shape.ffn_dim % 32 || shape.shared_dim % 32)
				kind = kinds[2];
			if (shape.experts > 100 && tokens != 9)
				continue;
			mixture_make(rig.dev, &m, shape, kind[0], kind[1], false);
			check_mixture(&rig, m, tokens);
		}
}

static void matrices_of_several_kinds_may_be_one_expert(void **state)
{
	const struct shape shape = { 4, 2, 64, 32, 32 };
	struct rig rig(4);
	struct mixture m;

	(void)state;
	mixture_make(rig.dev, &m, shape, int4, bf16, false);
	matrix_make(rig.dev, &m.matrices[UP][1], bf16, 32, 64);
	matrix_make(rig.dev, &m.matrices[DOWN][2], f32, 64, 32);
	matrix_make(rig.dev, &m.shared[UP], int4_f32, 32, 64);
	m.packed[UP][1] = m.matrices[UP][1].packed;
	m.packed[DOWN][2] = m.matrices[DOWN][2].packed;
	m.w.shared_up = m.shared[UP].packed;
	for (uint32_t tokens : { 2, 10 })
		check_mixture(&rig, m, tokens);
}

static void the_order_in_which_experts_were_chosen_does_not_matter(void **state)
{
	const struct shape shape = { 12, 3, 64, 32, 0 };
	const uint32_t orders[2][3] = { { 2, 5, 9 }, { 9, 5, 2 } };
	const float weights[2][3] = { { 0.5f, 0.3f, 0.2f }, { 0.2f, 0.3f, 0.5f } };
	const std::vector<float> x = random_floats(64), zero(64);
	struct rig rig(2);
	struct mixture m;

	(void)state;
	for (bool is_regular : { true, false }) {
		std::vector<float> y[2];

		mixture_make(rig.dev, &m, shape, int4, bf16, is_regular);
		for (int i = 0; i < 2; i++) {
			device_memory dx(64 * 4, x.data()), dy(64 * 4, zero.data());
			device_memory chosen(12, orders[i]), by(12, weights[i]);
			const struct tensor tx = batch(dx.at, 1, 64), ty = batch(dy.at, 1, 64);

			assert_int_equal(op_moe(rig.st, &ty, &tx, &m.w, 3, (uint32_t *)chosen.at,
						(float *)by.at),
					 0);
			y[i] = dy.read<float>(rig.st);
		}
		assert_true(y[0] == y[1] && y[0][0] != 0);
		m = {};
	}
}

/* Choices come from the device, so that they cannot be refused; they must do no harm. */
static void what_is_no_expert_is_left_out(void **state)
{
	const struct shape shape = { 4, 2, 64, 32, 0 };
	const uint32_t chosen[] = { 7, 1, 0xffffffffu, 4 };
	const float weights[] = { 1, 1, 1, 1 };
	const std::vector<float> x = random_floats(128), zero(128);
	struct rig rig(2);

	(void)state;
	for (bool is_regular : { true, false }) {
		struct mixture m;
		device_memory dx(512, x.data()), dy(512, zero.data());
		device_memory dchosen(16, chosen), dweights(16, weights);
		const struct tensor tx = batch(dx.at, 2, 64), ty = batch(dy.at, 2, 64);
		std::vector<float> y;

		mixture_make(rig.dev, &m, shape, int4, bf16, is_regular);
		assert_int_equal(op_moe(rig.st, &ty, &tx, &m.w, 2, (uint32_t *)dchosen.at,
					(float *)dweights.at),
				 0);
		y = dy.read<float>(rig.st);
		assert_true(y[0] != 0);
		for (int i = 64; i < 128; i++)
			assert_true(y[i] == 0);
	}
}

static void a_dense_mlp_is_a_shared_expert_alone(void **state)
{
	const struct shape shape = { 0, 0, 64, 0, 160 };

	(void)state;
	for (uint32_t tokens : { 1, 7, 20 }) {
		struct rig rig(4);
		const std::vector<float> x = random_floats(tokens * 64), zero(tokens * 64);
		device_memory dx(x.size() * 4, x.data()), dy(x.size() * 4, zero.data());
		device_memory dz(x.size() * 4, zero.data());
		const struct tensor tx = batch(dx.at, tokens, 64), ty = batch(dy.at, tokens, 64);
		const struct tensor tz = batch(dz.at, tokens, 64);
		struct weight none = {};
		struct mixture m;

		mixture_make(rig.dev, &m, shape, int4, bf16, true);
		assert_int_equal(op_mlp(rig.st, &ty, &tx, &m.w.shared_gate, &m.w.shared_up,
					&m.w.shared_down),
				 0);
		assert_int_equal(op_moe(rig.st, &tz, &tx, &m.w, 0, NULL, NULL), 0);
		assert_true(dy.read<float>(rig.st) == dz.read<float>(rig.st));
		assert_int_equal(op_mlp(rig.st, &ty, &tx, &none, &none, &none), -EINVAL);
	}
}

static void large_gates_neither_overflow_nor_lose_their_sign(void **state)
{
	/* one row each: gate 1, up 1, down 1; silu(100) = 100, silu(-100) = -4e-42, silu(0) = 0 */
	const float in[9] = { 100, -100, 0, 1, 100, -100, 0, 1, 1 }, zero[9] = { 0 };
	const uint16_t one = 0x3f80;
	const struct weight_source src = { 1, 1, DT_BF16, &one, NULL, DT_NONE, 0 };

	(void)state;
	for (uint32_t tokens : { 4, 9 }) {
		struct rig rig(4);
		device_memory data(1024), dx(tokens * 4, in), dy(tokens * 4, zero);
		const struct weight w = { WEIGHT_BF16, 1, 1, data.at };
		const struct tensor x = batch(dx.at, tokens, 1), y = batch(dy.at, tokens, 1);
		std::vector<float> out;

		assert_int_equal(op_repack(rig.dev, &w, &src, NULL), 0);
		assert_int_equal(op_mlp(rig.st, &y, &x, &w, &w, &w), 0);
		out = dy.read<float>(rig.st);
		assert_true(fabsf(out[0] - 10000) < 0.1f && fabsf(out[1]) < 1e-30f);
		assert_true(out[2] == 0 && fabsf(out[3] - 0.7310586f) < 1e-5f);
	}
}

static void experts_and_shapes_out_of_range_are_refused(void **state)
{
	struct rig rig(4);
	device_memory in(64 * 4), out(64 * 4), chosen(8), weights(8);
	struct tensor x = batch(in.at, 1, 64), y = batch(out.at, 1, 64);
	uint32_t *of = (uint32_t *)chosen.at;
	float *by = (float *)weights.at;
	struct mixture m;

	(void)state;
	mixture_make(rig.dev, &m, { 12, 2, 64, 32, 64 }, int4, bf16, true);
	assert_int_equal(op_moe(rig.st, &y, &x, &m.w, 13, of, by), -EINVAL);
	assert_int_equal(op_moe(rig.st, &y, &x, &m.w, MOE_TOP_K_MAX + 1, of, by), -EINVAL);
	m.packed[UP][0].rows = 31;
	assert_int_equal(op_moe(rig.st, &y, &x, &m.w, 2, of, by), -EINVAL);
	m.packed[UP][0].rows = 32;
	y.shape[2] = 63;
	assert_int_equal(op_moe(rig.st, &y, &x, &m.w, 2, of, by), -EINVAL);
	x.shape[1] = y.shape[1] = 0;
	y.shape[2] = 64;
	assert_int_equal(op_moe(rig.st, &y, &x, &m.w, 2, of, by), 0);
}

/* Experts that several tokens chose are read once, and the shared one too. */
static void weights_are_read_once(void **state)
{
	const struct shape shape = { 8, 2, 256, 128, 128 };

	(void)state;
	for (uint32_t tokens : { 1, 8 }) {
		struct rig rig(2);
		std::vector<uint32_t> chosen;
		std::vector<float> weights(2 * tokens, 0.5f);
		const std::vector<float> x = random_floats(tokens * 256);
		device_memory dx(x.size() * 4, x.data()), dy(x.size() * 4, x.data());
		const struct tensor tx = batch(dx.at, tokens, 256), ty = batch(dy.at, tokens, 256);
		struct mixture m;
		uint64_t least, read;

		mixture_make(rig.dev, &m, shape, int4, bf16, true);
		for (uint32_t t = 0; t < tokens; t++) {
			chosen.push_back(t % 2);
			chosen.push_back(5);
		}
		device_memory dchosen(chosen.size() * 4, chosen.data());
		device_memory dweights(weights.size() * 4, weights.data());
		least = 3 * (weight_bytes(rig.dev, WEIGHT_BF16, 128, 256) +
			     (tokens == 1 ? 2 : 3) * weight_bytes(rig.dev, WEIGHT_INT4, 128, 256));
		cuemu_count(true);
		assert_int_equal(op_moe(rig.st, &ty, &tx, &m.w, 2, (uint32_t *)dchosen.at,
					(float *)dweights.at),
				 0);
		read = cuemu_counted().read_sectors * 32;
		cuemu_count(false);
		/*
		 * four blocks: x, then a row of h for each choice and the shared expert, and
		 * choices; of several tokens x is split first, each expert's block has eight rows,
		 * lists are made and what down leaves is added up
		 */
		assert_in_range(read, least,
				least + (tokens == 1 ? 4 * (256 + 3 * 128 + 3 * 64) * 4 + 4096
						     : (4 * 8 + 2 * tokens) * (256 + 2 * 128) * 4 +
							       4 * tokens * 256 * 4 + 8192));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(few_tokens_agree_with_double),
		cmocka_unit_test(few_tokens_fit_into_any_shared_memory),
		cmocka_unit_test(tiles_of_tokens_agree_with_double),
		cmocka_unit_test(tiles_have_the_bits_of_any_other_way),
		cmocka_unit_test(many_tokens_and_other_kinds_agree_with_double),
		cmocka_unit_test(matrices_of_several_kinds_may_be_one_expert),
		cmocka_unit_test(the_order_in_which_experts_were_chosen_does_not_matter),
		cmocka_unit_test(what_is_no_expert_is_left_out),
		cmocka_unit_test(a_dense_mlp_is_a_shared_expert_alone),
		cmocka_unit_test(large_gates_neither_overflow_nor_lose_their_sign),
		cmocka_unit_test(experts_and_shapes_out_of_range_are_refused),
		cmocka_unit_test(weights_are_read_once),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
