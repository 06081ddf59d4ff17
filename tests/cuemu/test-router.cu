/* The router of kernels/cuda: its choice, weights, groups, ties and precision. */
#include <math.h>

#include "tests/cuemu/matrices.h"

#define TOL_ROUTER 1e-6

struct routed {
	std::vector<uint32_t> chosen;
	std::vector<float> weights;
};

static struct routed route(const std::vector<float> &x, const std::vector<float> &w,
			   const std::vector<float> &bias, uint32_t tokens,
			   const struct router_params *params)
{
	const uint32_t experts = bias.size(), dim = w.size() / experts, n = tokens * params->top_k;
	struct rig rig(4);
	device_memory dx(x.size() * 4, x.data()), dw(w.size() * 4, w.data());
	device_memory dbias(bias.size() * 4, bias.data()), chosen(n * 4), weights(n * 4);
	const struct tensor tx = batch(dx.at, tokens, dim), tw = batch(dw.at, experts, dim);
	const struct tensor tbias = batch(dbias.at, 1, experts);

	assert_int_equal(op_router(rig.st, (uint32_t *)chosen.at, (float *)weights.at, &tx, &tw,
				   &tbias, params),
			 0);
	return { chosen.read<uint32_t>(rig.st), weights.read<float>(rig.st) };
}

static void the_choice_agrees_with_double(void **state)
{
	static const struct router_params params[] = {
		{ 8, 1, 1, true, 2.5f }, { 8, 10, 3, false, 1 }, { 1, 0, 0, true, 1 }
	};
	static const uint32_t shapes[][3] = {
		{ 1, 165, 130 }, { 8, 40, 130 }, { 9, 165, 130 }, { 37, 256, 130 }, { 2, 4100, 40 },
		{ 259, 36, 40 }
	};

	(void)state;
	for (const struct router_params &p : params)
		for (const uint32_t *shape : shapes) {
			const uint32_t tokens = shape[0], dim = shape[1], experts = shape[2];
			std::vector<float> x = random_floats(tokens * dim);
			std::vector<float> w = random_floats(experts * dim);
			std::vector<float> bias = random_floats(experts), want_weights;
			std::vector<uint32_t> want(tokens * p.top_k);
			const struct tensor tx = batch(x.data(), tokens, dim);
			const struct tensor tw = batch(w.data(), experts, dim);
			const struct tensor tbias = batch(bias.data(), 1, experts);
			struct routed got;

			for (float &v : w)
				v *= 0.02f;
			for (float &v : bias)
				v *= 0.1f;
			want_weights.resize(want.size());
			assert_int_equal(ref_router(want.data(), want_weights.data(), &tx, &tw,
						    &tbias, &p),
					 0);
			got = route(x, w, bias, tokens, &p);
			assert_true(got.chosen == want);
			for (size_t i = 0; i < want.size(); i++)
				assert_true(fabsf(got.weights[i] - want_weights[i]) <=
					    TOL_ROUTER * want_weights[i]);
		}
}

/* One dim, x = 1: the logits are the weights themselves. */
static struct routed choose(const std::vector<float> &logits, const std::vector<float> &bias,
			    const struct router_params &params)
{
	return route({ 1 }, logits, bias, 1, &params);
}

static void a_bias_chooses_and_does_not_weigh(void **state)
{
	const struct routed got = choose({ -1, 1, 3, 4 }, { 5, 5, 0, 0 }, { 2, 1, 0, true, 1 });

	(void)state;
	assert_true(got.chosen == std::vector<uint32_t>({ 1, 0 }));
	assert_true(fabsf(got.weights[0] - 0.73105858f) < 1e-6f); /* sigmoids of 1 and -1 add up to 1 */
	assert_true(fabsf(got.weights[1] - 0.26894142f) < 1e-6f);
}

static void ties_go_to_the_lowest_index(void **state)
{
	(void)state;
	assert_true(choose({ 0, 1, 0, 1, 0 }, { 0, 0, 0, 0, 0 }, { 3, 1, 0, false, 1 }).chosen ==
		    std::vector<uint32_t>({ 1, 3, 0 }));
	assert_true(choose({ 1, 0, 0, 1, 1, 0 }, { 0, 0, 0, 0, 0, 0 }, { 2, 3, 1, false, 1 }).chosen ==
		    std::vector<uint32_t>({ 0, 1 }));
}

static void a_masked_group_loses_even_to_negative_scores(void **state)
{
	/* group 0 scores 0.975 - 10, group 1 1.0002 - 10; expert 0 alone beats 4 */
	const struct routed got = choose({ 0, -0.1f, -9, 9, -8, -8 }, { -5, -5, -5, -5, -5, -5 },
					 { 2, 2, 1, false, 1 });

	(void)state;
	assert_true(got.chosen == std::vector<uint32_t>({ 3, 4 }));
}

static void logits_a_millionth_apart_are_told_apart(void **state)
{
	(void)state;
	/* large products cancel in pairs and leave 2, or for expert 1 2.000002 */
	for (uint32_t tokens : { 1, 9 }) {
		const struct router_params params = { 1, 1, 0, false, 1 };
		std::vector<float> w(3 * 160), x(tokens * 160, 1);
		struct routed got;

		for (uint32_t i = 0; i < 160; i++)
			for (uint32_t e = 0; e < 3; e++)
				w[e * 160 + i] = (i % 2 ? 1 : -1) * (1000.3f + (float)(i / 2));
		for (uint32_t e = 0; e < 3; e++) {
			w[e * 160 + 80] = 2;
			w[e * 160 + 81] = e == 1 ? 2e-6f : 0;
		}
		got = route(x, w, { 0, 0, 0 }, tokens, &params);
		assert_true(got.chosen == std::vector<uint32_t>(tokens, 1));
	}
}

static void no_numbers_make_no_choice_of_nobody(void **state)
{
	const struct routed got = choose({ NAN, 1, NAN, NAN }, { 0, 0, 0, 0 }, { 3, 1, 0, false, 1 });

	(void)state;
	assert_true(got.chosen == std::vector<uint32_t>({ 1, 0, 2 }));
}

static void numbers_beyond_the_limits_are_refused(void **state)
{
	struct rig rig(4);
	device_memory x(64), w(8 * 64), bias(32), chosen(64), weights(64);
	const struct tensor tx = batch(x.at, 1, 16), tw = batch(w.at, 8, 16);
	const struct tensor tbias = batch(bias.at, 1, 8), none = batch(x.at, 0, 16);
	const struct router_params bad[] = {
		{ 9, 1, 0, false, 1 }, { 0, 1, 0, false, 1 }, { 5, 2, 1, false, 1 }, { 2, 3, 1, false, 1 }
	};
	const struct router_params good = { 2, 1, 0, false, 1 };
	uint32_t *of = (uint32_t *)chosen.at;

	(void)state;
	for (const struct router_params &p : bad)
		assert_int_equal(op_router(rig.st, of, (float *)weights.at, &tx, &tw, &tbias, &p),
				 -EINVAL);
	assert_int_equal(op_router(rig.st, of, (float *)weights.at, &none, &tw, &tbias, &good), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_choice_agrees_with_double),
		cmocka_unit_test(a_bias_chooses_and_does_not_weigh),
		cmocka_unit_test(ties_go_to_the_lowest_index),
		cmocka_unit_test(a_masked_group_loses_even_to_negative_scores),
		cmocka_unit_test(logits_a_millionth_apart_are_told_apart),
		cmocka_unit_test(no_numbers_make_no_choice_of_nobody),
		cmocka_unit_test(numbers_beyond_the_limits_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
