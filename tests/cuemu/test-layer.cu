/* Parts of a layer in one kernel each: the bits of the operations they are made of. */
#include <math.h>

#include "tests/cuemu/matrices.h"

extern "C" {
#include "kernels/layer.h"
}

#define PAGE_TOKENS 16
#define PAGES 8
#define EPS 1e-5f

struct layer_shape {
	uint32_t dim, heads, kv_heads, head_dim, rotary;
	bool has_norms, is_int4;
};

/* Everything that op_layer_in() writes. */
struct written {
	std::vector<float> q, k, v;
	std::vector<uint16_t> pages;
};

static uint64_t launches(void)
{
	uint64_t n, unused;

	cuemu_calls(&n, &unused);
	return n;
}

struct layer {
	struct layer_shape s;
	struct matrix w[3];
	std::unique_ptr<device_memory> norm, q_norm, k_norm, bias;
	struct rope_table rope;

	layer(struct dev *dev, const struct layer_shape &shape) : s(shape)
	{
		const struct form form = { s.is_int4 ? DT_I32 : DT_BF16,
					   s.is_int4 ? DT_BF16 : DT_NONE, s.is_int4 ? 32u : 0 };
		const uint32_t rows[3] = { s.heads, s.kv_heads, s.kv_heads };

		for (int i = 0; i < 3; i++)
			matrix_make(dev, &w[i], form, rows[i] * s.head_dim, s.dim);
		norm = std::make_unique<device_memory>(s.dim * 4, random_floats(s.dim).data());
		q_norm = std::make_unique<device_memory>(s.head_dim * 4,
							 random_floats(s.head_dim).data());
		k_norm = std::make_unique<device_memory>(s.head_dim * 4,
							 random_floats(s.head_dim).data());
		bias = std::make_unique<device_memory>(
			s.heads * s.head_dim * 4, random_floats(s.heads * s.head_dim).data());
		assert_int_equal(rope_table_init(&rope, 10000, s.rotary, PAGES * PAGE_TOKENS), 0);
	}
	~layer()
	{
		rope_table_deinit(&rope);
	}

	struct written run(struct rig *rig, const std::vector<float> &x, const struct seq *seqs,
			   uint32_t n_seqs, bool apart)
	{
		const uint32_t tokens = (uint32_t)(x.size() / s.dim);
		const uint32_t q_width = s.heads * s.head_dim, kv_width = s.kv_heads * s.head_dim;
		struct kv_cache kv = { NULL, DT_BF16, PAGES, PAGE_TOKENS, 2, s.kv_heads, s.head_dim, 0 };
		device_memory dx(x.size() * 4, x.data()), room(x.size() * 4);
		device_memory q(tokens * q_width * 4), k(tokens * kv_width * 4),
			v(tokens * kv_width * 4), pages(PAGES * kv_page_bytes(&kv));
		const struct tensor tx = batch(dx.at, tokens, s.dim);
		const struct tensor troom = batch(room.at, tokens, s.dim);
		struct layer_in in = {};

		assert_int_equal(cudaMemset(pages.at, 0, pages.bytes), cudaSuccess);
		kv.base = pages.at;
		in.norm = batch(norm->at, 1, s.dim);
		in.eps = EPS;
		in.jobs[0] = { &w[0].packed, batch(bias->at, 1, q_width), batch(q.at, tokens, q_width),
			       false };
		in.jobs[1] = { &w[1].packed, {}, batch(k.at, tokens, kv_width), false };
		in.jobs[2] = { &w[2].packed, {}, batch(v.at, tokens, kv_width), false };
		if (s.has_norms) {
			in.q_norm = batch(q_norm->at, 1, s.head_dim);
			in.k_norm = batch(k_norm->at, 1, s.head_dim);
		}
		in.rope = &rope;
		in.kv = &kv;
		in.layer = 1;
		in.seqs = seqs;
		in.n_seqs = n_seqs;
		assert_int_equal(apart ? layer_in_apart(rig->st, &in, &troom, &tx)
				       : op_layer_in(rig->st, &in, &troom, &tx),
				 0);
		return { q.read<float>(rig->st), k.read<float>(rig->st), v.read<float>(rig->st),
			 pages.read<uint16_t>(rig->st) };
	}
};

static const uint32_t some_pages[] = { 5, 2, 7, 0 };

static void one_kernel_normalises_projects_and_rotates(void **state)
{
	static const struct layer_shape shapes[] = {
		{ 160, 6, 2, 32, 16, true, false },
		{ 64, 4, 1, 128, 64, false, false },
		{ 96, 5, 5, 16, 16, true, true },
	};

	(void)state;
	for (const struct layer_shape &shape : shapes)
		for (uint32_t tokens : { 1, 3, 4 }) {
			/* rows of one sequence, and one row of another */
			const struct seq seqs[] = { { 0, tokens - 1, 14, 2, some_pages },
						    { tokens - 1, 1, 30, 2, some_pages + 2 } };
			const std::vector<float> x = random_floats(tokens * shape.dim);
			struct rig rig(3);
			struct layer layer(rig.dev, shape);
			const struct seq *first = seqs + (tokens == 1);
			const struct written want =
				layer.run(&rig, x, first, tokens == 1 ? 1 : 2, true);

			for (int order = 0; order < CUEMU_ORDERS; order++) {
				const uint64_t before = launches();

				cuemu_set_order((enum cuemu_order)order);
				const struct written got =
					layer.run(&rig, x, first, tokens == 1 ? 1 : 2, false);

				assert_int_equal(launches() - before, 1);
				assert_true(got.q == want.q && got.v == want.v);
				assert_true(got.pages == want.pages);
			}
		}
}

static void what_one_kernel_cannot_do_several_do(void **state)
{
	const struct seq seq = { 0, 6, 3, 1, some_pages };
	const struct layer_shape shape = { 64, 2, 1, 32, 32, false, false };
	const struct layer_shape odd = { 66, 2, 1, 24, 24, false, false };
	struct rig rig(2);

	(void)state;
	for (const struct layer_shape &s : { shape, odd }) {
		struct layer layer(rig.dev, s);
		const std::vector<float> x = random_floats(6 * s.dim);
		const uint64_t before = launches();
		const struct written got = layer.run(&rig, x, &seq, 1, false);

		assert_true(launches() - before > 1);
		assert_true(got.pages == layer.run(&rig, x, &seq, 1, true).pages);
	}
}

static void one_kernel_normalises_and_chooses_experts(void **state)
{
	const uint32_t dim = 4200, experts = 20, top_k = 3;
	const struct router_params params = { top_k, 4, 2, true, 2.5f };
	struct rig rig(2);
	device_memory norm(dim * 4, random_floats(dim).data());
	device_memory w(experts * dim * 4, random_floats(experts * dim).data());
	device_memory bias(experts * 4, random_floats(experts).data());
	const struct tensor tnorm = batch(norm.at, 1, dim), tw = batch(w.at, experts, dim);
	const struct tensor tbias = batch(bias.at, 1, experts);

	(void)state;
	for (uint32_t tokens : { 1, 4, 5 }) {
		const std::vector<float> x = random_floats(tokens * dim);
		device_memory dx(x.size() * 4, x.data());
		const struct tensor tx = batch(dx.at, tokens, dim);
		std::vector<float> y[2], weights[2];
		std::vector<uint32_t> chosen[2];

		for (int apart = 0; apart < 2; apart++) {
			device_memory dy(x.size() * 4), dchosen(tokens * top_k * 4),
				dweights(tokens * top_k * 4);
			const struct tensor ty = batch(dy.at, tokens, dim);
			const uint64_t before = launches();

			assert_int_equal(
				(apart ? norm_router_apart : op_norm_router)(
					rig.st, &ty, (uint32_t *)dchosen.at, (float *)dweights.at,
					&tx, &tnorm, EPS, &tw, &tbias, &params),
				0);
			assert_int_equal(launches() - before, !apart && tokens <= 4 ? 1 : 2);
			y[apart] = dy.read<float>(rig.st);
			weights[apart] = dweights.read<float>(rig.st);
			chosen[apart] = dchosen.read<uint32_t>(rig.st);
		}
		assert_true(y[0] == y[1] && weights[0] == weights[1] && chosen[0] == chosen[1]);
	}
}

/* More parts of a row than a warp has lanes, and a few. */
static void many_parts_of_a_row_add_up_as_few_do(void **state)
{
	const uint32_t heads = 3, dim = 32, at = 2599, n_pages = at / PAGE_TOKENS + 1;
	const std::vector<float> q = random_floats(heads * dim);
	std::vector<uint32_t> pages(n_pages);
	std::vector<uint16_t> keys;
	std::vector<float> y[2];

	(void)state;
	for (uint32_t i = 0; i < n_pages; i++)
		pages[i] = n_pages - 1 - i;
	for (uint32_t i = 0; i < n_pages * 2 * PAGE_TOKENS * dim; i++) {
		const float value = random_f32();
		uint32_t bits;

		memcpy(&bits, &value, sizeof(bits));
		keys.push_back((uint16_t)(bits >> 16));
	}
	for (int i = 0; i < 2; i++) {
		const struct seq seq = { 0, 1, at, n_pages, pages.data() };
		struct rig rig(i ? 24 : 2);
		device_memory dq(q.size() * 4, q.data()), dy(q.size() * 4);
		device_memory dkeys(keys.size() * 2, keys.data());
		const struct kv_cache kv = { dkeys.at, DT_BF16, n_pages, PAGE_TOKENS, 1, 1, dim, 0 };
		const struct tensor tq = { dq.at, DT_F32, { 1, heads, dim } };
		const struct tensor ty = { dy.at, DT_F32, { 1, heads, dim } };

		assert_int_equal(op_attention(rig.st, &ty, &tq, &kv, 0, &seq, 1), 0);
		y[i] = dy.read<float>(rig.st);
	}
	for (uint32_t i = 0; i < heads * dim; i++)
		assert_true(fabsf(y[0][i] - y[1][i]) < 1e-5f);
	assert_true(y[0] != y[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_kernel_normalises_projects_and_rotates),
		cmocka_unit_test(what_one_kernel_cannot_do_several_do),
		cmocka_unit_test(one_kernel_normalises_and_chooses_experts),
		cmocka_unit_test(many_parts_of_a_row_add_up_as_few_do),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
