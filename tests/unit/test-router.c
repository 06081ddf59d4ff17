/* Choosing experts: the choice, its weights, groups, ties, precision; and bits across batches. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/moe.h"

#define TOL_ROUTER 1e-6
#define TOKENS 37
#define DIM 165
#define EXPERTS 130

static float x[TOKENS * DIM], w[EXPERTS * DIM], bias[EXPERTS];
static uint32_t chosen[TOKENS * 8], want_chosen[TOKENS * 8];
static float weights[TOKENS * 8], want_weights[TOKENS * 8];

static struct tensor tensor_of(float *data, uint32_t rows, uint32_t columns)
{
	return (struct tensor){ .data = data, .type = DT_F32, .shape = { 1, rows, columns } };
}

static struct stream *open_stream(enum isa isa, uint32_t threads, struct dev **ret_dev)
{
	const struct op_limits limits = { .tokens = TOKENS,
					  .dim = DIM,
					  .heads = 1,
					  .kv_heads = 1,
					  .head_dim = 16,
					  .ffn_dim = 32,
					  .experts = EXPERTS,
					  .top_k = 8,
					  .vocab = 32,
					  .max_context = 64 };
	struct stream *st;

	assert_int_equal(dev_open(isa, threads, ret_dev), 0);
	assert_int_equal(st_open(*ret_dev, op_scratch(*ret_dev, &limits), &st), 0);
	return st;
}

static void fill(float *data, size_t n, float scale, uint32_t seed)
{
	for (size_t i = 0; i < n; i++) {
		seed = seed * 1664525 + 1013904223;
		data[i] = scale * ((float)(seed >> 8) / (1 << 23) - 1);
	}
}

static void the_choice_agrees_with_double_whatever_its_batch(void **state)
{
	const struct router_params params[] = {
		{ .top_k = 8, .groups = 1, .top_groups = 1, .normalise = true, .scale = 2.5f },
		{ .top_k = 8, .groups = 10, .top_groups = 3, .normalise = false, .scale = 1 },
	};
	const struct tensor of_x = tensor_of(x, TOKENS, DIM), of_w = tensor_of(w, EXPERTS, DIM);
	const struct tensor of_bias = tensor_of(bias, 1, EXPERTS);

	(void)state;

	fill(x, TOKENS * DIM, 1, 1);
	fill(w, EXPERTS * DIM, 0.3f, 2);
	fill(bias, EXPERTS, 0.2f, 3);
	for (enum isa isa = ISA_REF; isa < ISA_N; isa++) {
		for (int i = 0; i < 2; i++) {
			struct dev *dev;
			struct stream *st;
			uint32_t one[8];
			float its[8];

			if (!isa_supported(isa))
				continue;
			st = open_stream(isa, 2, &dev);
			ref_router(want_chosen, want_weights, &of_x, &of_w, &of_bias, &params[i]);
			assert_int_equal(
				op_router(st, chosen, weights, &of_x, &of_w, &of_bias, &params[i]),
				0);
			assert_memory_equal(chosen, want_chosen, sizeof(chosen));
			for (int j = 0; j < TOKENS * 8; j++)
				assert_true(fabsf(weights[j] - want_weights[j]) <=
					    TOL_ROUTER * want_weights[j]);
			for (uint32_t t = 0; t < TOKENS; t += 9) {
				const struct tensor row = tensor_of(x + t * DIM, 1, DIM);

				assert_int_equal(
					op_router(st, one, its, &row, &of_w, &of_bias, &params[i]),
					0);
				assert_memory_equal(one, chosen + t * 8, sizeof(one));
				assert_memory_equal(its, weights + t * 8, sizeof(its));
			}
			st_close(st);
			dev_close(dev);
		}
	}
}

/* One dim, x = 1: the logits are the weights of @logits themselves. */
static void route(const float *logits, const float *its_bias, uint32_t experts,
		  const struct router_params *params)
{
	float one = 1;
	const struct tensor of_x = tensor_of(&one, 1, 1);
	const struct tensor of_w = tensor_of((float *)logits, experts, 1);
	const struct tensor of_bias = tensor_of((float *)its_bias, 1, experts);
	struct dev *dev;
	struct stream *st = open_stream(ISA_PORTABLE, 1, &dev);

	assert_int_equal(op_router(st, chosen, weights, &of_x, &of_w, &of_bias, params), 0);
	st_close(st);
	dev_close(dev);
}

static void a_bias_chooses_and_does_not_weigh(void **state)
{
	const struct router_params params = {
		.top_k = 2, .groups = 1, .normalise = true, .scale = 1
	};
	const float logits[4] = { -1, 1, 3, 4 }, force[4] = { 5, 5, 0, 0 };

	(void)state;

	route(logits, force, 4, &params);
	assert_int_equal(chosen[0], 1);
	assert_int_equal(chosen[1], 0);
	assert_true(fabsf(weights[0] - 0.73105858f) < 1e-6f); /* sigmoids of 1 and -1 add up to 1 */
	assert_true(fabsf(weights[1] - 0.26894142f) < 1e-6f);
}

static void ties_go_to_the_lowest_index(void **state)
{
	const struct router_params params = { .top_k = 3, .groups = 1, .scale = 1 };
	const float logits[5] = { 0, 1, 0, 1, 0 }, zero[5] = { 0 };

	(void)state;

	route(logits, zero, 5, &params);
	assert_int_equal(chosen[0], 1);
	assert_int_equal(chosen[1], 3);
	assert_int_equal(chosen[2], 0);
}

static void a_masked_group_loses_even_to_negative_scores(void **state)
{
	const struct router_params params = {
		.top_k = 2, .groups = 2, .top_groups = 1, .scale = 1
	};
	const float logits[6] = { 0, -0.1f, -9, 9, -8, -8 }, below[6] = { -5, -5, -5, -5, -5, -5 };

	(void)state;

	/* group 0 scores 0.975 - 10, group 1 1.0002 - 10; expert 0 alone beats 4 */
	route(logits, below, 6, &params);
	assert_int_equal(chosen[0], 3);
	assert_int_equal(chosen[1], 4); /* of equal sigmoids the lower */
}

static void logits_a_millionth_apart_are_told_apart(void **state)
{
	const struct router_params params = { .top_k = 1, .groups = 1, .scale = 1 };
	const struct tensor of_bias = tensor_of(bias, 1, 3);

	(void)state;

	/* large products cancel in pairs and leave 2, or for expert 1 2.000002 */
	memset(bias, 0, sizeof(bias));
	for (uint32_t i = 0; i < 160; i++)
		x[i] = 1;
	for (uint32_t i = 0; i < 160; i++)
		for (uint32_t e = 0; e < 3; e++)
			w[e * 160 + i] = (i % 2 ? 1 : -1) * (1000.3f + (float)(i / 2));
	for (uint32_t e = 0; e < 3; e++) {
		w[e * 160 + 80] = 2;
		w[e * 160 + 81] = e == 1 ? 2e-6f : 0;
	}
	for (enum isa isa = ISA_REF; isa < ISA_N; isa++) {
		const struct tensor of_x = tensor_of(x, 1, 160), of_w = tensor_of(w, 3, 160);
		struct dev *dev;
		struct stream *st;

		if (!isa_supported(isa))
			continue;
		st = open_stream(isa, 1, &dev);
		assert_int_equal(op_router(st, chosen, weights, &of_x, &of_w, &of_bias, &params),
				 0);
		assert_int_equal(chosen[0], 1);
		st_close(st);
		dev_close(dev);
	}
}

static void numbers_beyond_the_limits_are_refused(void **state)
{
	struct router_params params = { .top_k = 4, .groups = 1, .scale = 1 };
	const struct tensor of_x = tensor_of(x, 1, 16), of_w = tensor_of(w, 8, 16);
	const struct tensor of_bias = tensor_of(bias, 1, 8);

	(void)state;

	assert_int_equal(ref_router(chosen, weights, &of_x, &of_w, &of_bias, &params), 0);
	params.top_k = 9;
	assert_int_equal(ref_router(chosen, weights, &of_x, &of_w, &of_bias, &params), -EINVAL);
	params.top_k = 0;
	assert_int_equal(ref_router(chosen, weights, &of_x, &of_w, &of_bias, &params), -EINVAL);
	params = (struct router_params){ .top_k = 5, .groups = 2, .top_groups = 1, .scale = 1 };
	assert_int_equal(ref_router(chosen, weights, &of_x, &of_w, &of_bias, &params), -EINVAL);
	params = (struct router_params){ .top_k = 2, .groups = 3, .top_groups = 1, .scale = 1 };
	assert_int_equal(ref_router(chosen, weights, &of_x, &of_w, &of_bias, &params), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_choice_agrees_with_double_whatever_its_batch),
		cmocka_unit_test(a_bias_chooses_and_does_not_weigh),
		cmocka_unit_test(ties_go_to_the_lowest_index),
		cmocka_unit_test(a_masked_group_loses_even_to_negative_scores),
		cmocka_unit_test(logits_a_millionth_apart_are_told_apart),
		cmocka_unit_test(numbers_beyond_the_limits_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
