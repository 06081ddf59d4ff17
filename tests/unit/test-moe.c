/* The mixture of experts and the dense MLP against double, and bit for bit against themselves. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include "kernels/moe.h"
#include "tests/unit/matrices.h"

/* Of the root mean square of what is added to a token. */
#define TOL_MOE 2e-4
#define TOL_MOE_REF 5e-7

enum { EXPERTS = 12, TOKENS_MAX = 120, TOP_K_MAX = 4 };

static const struct form int4 = { DT_I32, DT_BF16, 32 }, int4_f32 = { DT_I32, DT_F16, 32 };
static const struct form bf16 = { DT_BF16, DT_NONE, 0 }, f32 = { DT_F32, DT_NONE, 0 };

struct mixture {
	struct dev *dev;
	struct stream *st;
	uint32_t dim, ffn_dim, shared_dim;
	struct matrix gate[EXPERTS], up[EXPERTS], down[EXPERTS], shared[3];
	struct weight packed[3][EXPERTS];
	struct moe_weights w;
	uint32_t chosen[TOKENS_MAX * TOP_K_MAX];
	float weights[TOKENS_MAX * TOP_K_MAX];
};

static struct weight packed(struct dev *dev, struct matrix *m)
{
	assert_int_equal(op_repack(dev, &m->packed, &m->src, NULL), 0);
	return m->packed;
}

/* Distinct experts for each token, the first few far more often than the last. */
static void choose(struct mixture *x, uint32_t top_k)
{
	for (uint32_t t = 0; t < TOKENS_MAX; t++) {
		for (uint32_t k = 0; k < top_k; k++) {
			uint32_t *to = &x->chosen[t * top_k], e;
			bool taken;

			do {
				e = random_u32() % EXPERTS * (random_u32() % EXPERTS) / EXPERTS;
				taken = false;
				for (uint32_t i = 0; i < k; i++)
					taken |= to[i] == e;
			} while (taken);
			to[k] = e;
			x->weights[t * top_k + k] = 0.1f + (random_f32() + 1) / 4;
		}
	}
}

static struct mixture *mixture_new(enum isa isa, uint32_t threads, const struct form *routed,
				   const struct form *shared, uint32_t dim, uint32_t ffn_dim)
{
	struct mixture *x = calloc(1, sizeof(*x));
	const struct op_limits limits = { .tokens = TOKENS_MAX,
					  .dim = dim,
					  .heads = 1,
					  .kv_heads = 1,
					  .head_dim = 16,
					  .ffn_dim = 2 * ffn_dim,
					  .experts = EXPERTS,
					  .top_k = TOP_K_MAX,
					  .vocab = 16,
					  .max_context = 16 };

	random_state = 1234567;
	x->dim = dim;
	x->ffn_dim = ffn_dim;
	x->shared_dim = 2 * ffn_dim;
	assert_int_equal(dev_open(isa, threads, &x->dev), 0);
	assert_int_equal(st_open(x->dev, op_scratch(x->dev, &limits), &x->st), 0);
	for (int e = 0; e < EXPERTS; e++) {
		x->gate[e] = matrix_new(x->dev, routed, ffn_dim, dim);
		x->up[e] = matrix_new(x->dev, routed, ffn_dim, dim);
		x->down[e] = matrix_new(x->dev, routed, dim, ffn_dim);
		x->packed[0][e] = packed(x->dev, &x->gate[e]);
		x->packed[1][e] = packed(x->dev, &x->up[e]);
		x->packed[2][e] = packed(x->dev, &x->down[e]);
	}
	x->w = (struct moe_weights){
		.experts = EXPERTS, .gate = x->packed[0], .up = x->packed[1], .down = x->packed[2]
	};
	if (shared) {
		x->shared[0] = matrix_new(x->dev, shared, x->shared_dim, dim);
		x->shared[1] = matrix_new(x->dev, shared, x->shared_dim, dim);
		x->shared[2] = matrix_new(x->dev, shared, dim, x->shared_dim);
		x->w.shared_gate = packed(x->dev, &x->shared[0]);
		x->w.shared_up = packed(x->dev, &x->shared[1]);
		x->w.shared_down = packed(x->dev, &x->shared[2]);
	}
	return x;
}

static void mixture_free(struct mixture *x)
{
	for (int e = 0; e < EXPERTS; e++) {
		matrix_free(&x->gate[e]);
		matrix_free(&x->up[e]);
		matrix_free(&x->down[e]);
	}
	for (int i = 0; i < 3; i++)
		matrix_free(&x->shared[i]);
	st_close(x->st);
	dev_close(x->dev);
	free(x);
}

static float *random_batch(uint32_t n)
{
	float *x = malloc(n * sizeof(*x));

	for (uint32_t i = 0; i < n; i++)
		x[i] = random_f32();
	return x;
}

/* What op_moe() adds to y for one token, in double. */
static void add_exactly(const struct mixture *x, uint32_t top_k, uint32_t t, const float *in,
			double *sum)
{
	double *wide = malloc(x->dim * sizeof(double)), *h = malloc(x->shared_dim * sizeof(double));

	memset(sum, 0, x->dim * sizeof(*sum));
	for (uint32_t c = 0; c < x->dim; c++)
		wide[c] = in[t * x->dim + c];
	for (uint32_t k = 0; k < top_k; k++) {
		const uint32_t e = x->chosen[t * top_k + k];

		ref_mlp(sum, &x->gate[e].src, &x->up[e].src, &x->down[e].src,
			x->weights[t * top_k + k], h, wide);
	}
	if (x->w.shared_gate.kind != WEIGHT_NONE)
		ref_mlp(sum, &x->shared[0].src, &x->shared[1].src, &x->shared[2].src, 1, h, wide);
	free(wide);
	free(h);
}

static void check_mixture(enum isa isa, const struct form *routed, const struct form *shared,
			  uint32_t dim, uint32_t ffn_dim, uint32_t top_k, uint32_t tokens)
{
	struct mixture *m = mixture_new(isa, 2, routed, shared, dim, ffn_dim);
	float *in = random_batch(tokens * dim), *out = random_batch(tokens * dim);
	float *was = malloc(tokens * dim * sizeof(*was));
	const struct tensor x = batch(in, tokens, dim), y = batch(out, tokens, dim);
	double *sum = malloc(dim * sizeof(*sum));

	memcpy(was, out, tokens * dim * sizeof(*was));
	choose(m, top_k);
	assert_int_equal(op_moe(m->st, &y, &x, &m->w, top_k, m->chosen, m->weights), 0);
	for (uint32_t t = 0; t < tokens; t++) {
		double size = 1e-3, worst = 0;

		add_exactly(m, top_k, t, in, sum);
		for (uint32_t c = 0; c < dim; c++)
			size += sum[c] * sum[c] / dim;
		for (uint32_t c = 0; c < dim; c++)
			worst = fmax(worst, fabs(out[t * dim + c] - was[t * dim + c] - sum[c]));
		if (!(worst <= (isa == ISA_REF ? TOL_MOE_REF : TOL_MOE) * (sqrt(size) + 1)))
			fail_msg("%s: dim %u ffn %u top %u of %u tokens: token %u is off by %g of "
				 "%g",
				 isa_name(isa), dim, ffn_dim, top_k, tokens, t, worst, sqrt(size));
	}
	free(in);
	free(out);
	free(was);
	free(sum);
	mixture_free(m);
}

static void a_mixture_agrees_with_double(void **state)
{
	(void)state;
	for (int isa = 0; isa < ISA_N; isa++) {
		if (!isa_supported(isa))
			continue;
		check_mixture(isa, &int4, &bf16, 64, 32, 4, 1);
		check_mixture(isa, &int4, &bf16, 96, 96, 2, 17);
		check_mixture(isa, &int4, NULL, 64, 32, 1, 5);
		check_mixture(isa, &int4_f32, &int4, 64, 64, 3, 9);
		check_mixture(isa, &bf16, &f32, 40, 24, 3, 7);
		check_mixture(isa, &f32, &int4_f32, 64, 32, 2, 3);
		check_mixture(isa, &int4, &bf16, 32, 32, 4, TOKENS_MAX);
		check_mixture(isa, &int4, &bf16, 64, 352, 1, 2);
	}
}

static void a_token_has_the_same_bits_in_every_batch_and_on_every_number_of_threads(void **state)
{
	enum { DIM = 96, TOKENS = 103, TOP_K = 3 };

	(void)state;
	for (int isa = 0; isa < ISA_N; isa++) {
		static float in[TOKENS * DIM], whole[TOKENS * DIM], cut[TOKENS * DIM];

		for (uint32_t threads = 1; threads <= 3 && isa_supported(isa); threads++) {
			struct mixture *m = mixture_new(isa, threads, &int4, &bf16, DIM, 64);

			choose(m, TOP_K);
			for (int i = 0; i < TOKENS * DIM; i++)
				in[i] = random_f32();
			for (uint32_t n = TOKENS; n; n = n == TOKENS ? 50 : n / 3) {
				float *out = n == TOKENS && threads == 1 ? whole : cut;

				memcpy(out, in, sizeof(in));
				for (uint32_t at = 0; at < TOKENS; at += n) {
					const uint32_t k = at + n > TOKENS ? TOKENS - at : n;
					const struct tensor x = batch(in + at * DIM, k, DIM);
					const struct tensor y = batch(out + at * DIM, k, DIM);

					assert_int_equal(op_moe(m->st, &y, &x, &m->w, TOP_K,
								m->chosen + at * TOP_K,
								m->weights + at * TOP_K),
							 0);
				}
				assert_memory_equal(out, whole, sizeof(whole));
			}
			mixture_free(m);
		}
	}
}

static void the_order_in_which_experts_were_chosen_does_not_matter(void **state)
{
	struct mixture *m = mixture_new(isa_best(), 2, &int4, NULL, 64, 32);
	float *in = random_batch(64), one[64] = { 0 }, other[64] = { 0 };
	const struct tensor x = batch(in, 1, 64), y = batch(one, 1, 64), z = batch(other, 1, 64);
	const uint32_t rising[3] = { 2, 5, 9 }, falling[3] = { 9, 5, 2 };
	const float weights[3] = { 0.5f, 0.3f, 0.2f }, reverse[3] = { 0.2f, 0.3f, 0.5f };

	(void)state;
	assert_int_equal(op_moe(m->st, &y, &x, &m->w, 3, rising, weights), 0);
	assert_int_equal(op_moe(m->st, &z, &x, &m->w, 3, falling, reverse), 0);
	assert_memory_equal(one, other, sizeof(one));
	assert_true(one[0] != 0);
	free(in);
	mixture_free(m);
}

static void a_dense_mlp_is_a_shared_expert_alone(void **state)
{
	(void)state;
	for (int isa = 0; isa < ISA_N; isa++) {
		struct mixture *m;
		float *in, *out;
		double *sum;
		struct tensor x, y;

		if (!isa_supported(isa))
			continue;
		m = mixture_new(isa, 2, &int4, &bf16, 64, 32);
		in = random_batch(50 * 64);
		out = calloc(50 * 64, sizeof(*out));
		sum = malloc(64 * sizeof(*sum));
		x = batch(in, 50, 64);
		y = batch(out, 50, 64);
		assert_int_equal(op_mlp(m->st, &y, &x, &m->w.shared_gate, &m->w.shared_up,
					&m->w.shared_down),
				 0);
		for (uint32_t t = 0; t < 50; t += 7) {
			add_exactly(m, 0, t, in, sum);
			for (uint32_t c = 0; c < 64; c++)
				assert_true(fabs(out[t * 64 + c] - sum[c]) <=
					    TOL_MOE * (1 + fabs(sum[c])));
		}
		free(in);
		free(out);
		free(sum);
		mixture_free(m);
	}
}

static void experts_and_shapes_out_of_range_are_refused(void **state)
{
	struct mixture *m = mixture_new(ISA_PORTABLE, 1, &int4, &bf16, 64, 32);
	float in[64] = { 0 }, out[64] = { 3 };
	struct tensor x = batch(in, 1, 64), y = batch(out, 1, 64);
	uint32_t chosen[2] = { 0, EXPERTS };
	const float weights[2] = { 1, 1 };

	(void)state;
	assert_int_equal(op_moe(m->st, &y, &x, &m->w, 2, chosen, weights), -EINVAL);
	chosen[1] = EXPERTS - 1;
	assert_int_equal(op_moe(m->st, &y, &x, &m->w, EXPERTS + 1, chosen, weights), -EINVAL);
	assert_int_equal(op_moe(m->st, &y, &x, &m->w, MOE_TOP_K_MAX + 1, chosen, weights), -EINVAL);
	m->packed[1][0].rows = 31;
	assert_int_equal(op_moe(m->st, &y, &x, &m->w, 2, chosen, weights), -EINVAL);
	m->packed[1][0].rows = 32;
	y.shape[2] = 63;
	assert_int_equal(op_moe(m->st, &y, &x, &m->w, 2, chosen, weights), -EINVAL);
	assert_true(out[0] == 3);
	x.shape[1] = y.shape[1] = 0;
	y.shape[2] = 64;
	assert_int_equal(op_moe(m->st, &y, &x, &m->w, 2, chosen, weights), 0);
	mixture_free(m);
}

static void large_gates_neither_overflow_nor_lose_their_sign(void **state)
{
	/* one row each: gate 1, up 1, down 1; silu(100) = 100, silu(-100) = -4e-42, silu(0) = 0 */
	const uint16_t one = 0x3f80;
	const struct weight_source src = { .rows = 1, .cols = 1, .type = DT_BF16, .data = &one };
	const struct op_limits limits = { .tokens = 4,
					  .dim = 1,
					  .heads = 1,
					  .kv_heads = 1,
					  .head_dim = 1,
					  .ffn_dim = 1,
					  .experts = 1,
					  .top_k = 1,
					  .vocab = 1,
					  .max_context = 1 };

	(void)state;
	for (int isa = 0; isa < ISA_N; isa++) {
		float in[4] = { 100, -100, 0, 1 }, out[4] = { 0 };
		const struct tensor x = batch(in, 4, 1), y = batch(out, 4, 1);
		_Alignas(64) uint8_t data[1024];
		struct weight w = { WEIGHT_BF16, 1, 1, data };
		struct stream *st;
		struct dev *dev;

		if (!isa_supported(isa))
			continue;
		assert_int_equal(dev_open(isa, 1, &dev), 0);
		assert_int_equal(st_open(dev, op_scratch(dev, &limits), &st), 0);
		assert_int_equal(op_repack(dev, &w, &src, NULL), 0);
		assert_int_equal(op_mlp(st, &y, &x, &w, &w, &w), 0);
		assert_float_equal(out[0], 10000, 0.01);
		assert_float_equal(out[1], 0, 1e-30);
		assert_float_equal(out[2], 0, 0);
		assert_float_equal(out[3], 0.7310586f, 1e-5);
		st_close(st);
		dev_close(dev);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_mixture_agrees_with_double),
		cmocka_unit_test(
			a_token_has_the_same_bits_in_every_batch_and_on_every_number_of_threads),
		cmocka_unit_test(the_order_in_which_experts_were_chosen_does_not_matter),
		cmocka_unit_test(a_dense_mlp_is_a_shared_expert_alone),
		cmocka_unit_test(experts_and_shapes_out_of_range_are_refused),
		cmocka_unit_test(large_gates_neither_overflow_nor_lose_their_sign),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
