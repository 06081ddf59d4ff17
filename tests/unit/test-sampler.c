/* The sampler: reference distributions, the generator, the draw, counts, masks, log-probabilities. */
#include <errno.h>
#include <float.h>
#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/exec/sample/philox.h"
#include "daemon/exec/sample/sampler.h"

#define TOL_PROBS 1e-5
#define N_MAX 4096
#define BIAS_MAX 256

static const struct step_sampler off = {
	.temperature = 1,
	.top_p = 1,
	.repetition = 1,
	.vocab_real = 8,
};
static const float rising[8] = { 0, 1, 2, 3, 4, 5, 6, 7 };

static double number(const json_t *params, const char *key, double otherwise)
{
	const json_t *value = json_object_get(params, key);

	return value ? json_number_value(value) : otherwise;
}

static void push(struct sampler *s, const json_t *ids)
{
	for (size_t i = 0; i < json_array_size(ids); i++) {
		const uint32_t id = (uint32_t)json_integer_value(json_array_get(ids, i));

		assert_int_equal(sampler_push(s, &id, 1), 0);
	}
}

static struct sampler *sampler_of(const json_t *params, uint32_t n)
{
	const json_t *prompt = json_object_get(params, "prompt_ids");
	const double top_k = number(params, "top_k", 0);
	struct step_sampler p = {
		.temperature = number(params, "temperature", 1),
		.top_p = number(params, "top_p", 1),
		.min_p = number(params, "min_p", 0),
		.repetition = number(params, "repetition_penalty", 1),
		.frequency = number(params, "frequency_penalty", 0),
		.presence = number(params, "presence_penalty", 0),
		.top_k = top_k > 0 ? (uint32_t)top_k : 0,
		.n_prompt = (uint32_t)json_array_size(prompt),
		.vocab_real = n,
	};
	uint32_t ids[BIAS_MAX];
	float values[BIAS_MAX];
	struct sampler *s;
	const char *key;
	json_t *value;

	json_object_foreach(json_object_get(params, "logit_bias"), key, value) {
		assert_true(p.n_bias < BIAS_MAX);
		ids[p.n_bias] = (uint32_t)strtoul(key, NULL, 10);
		values[p.n_bias++] = (float)json_number_value(value);
	}
	assert_int_equal(sampler_new(&p, ids, values, n, &s), 0);
	push(s, prompt);
	push(s, json_object_get(params, "output_ids"));
	return s;
}

static void check_case(const json_t *c)
{
	const uint32_t n = (uint32_t)json_integer_value(json_object_get(c, "n"));
	const json_t *list = json_object_get(c, "logits"), *probs = json_object_get(c, "probs");
	const json_t *greedy = json_object_get(c, "greedy");
	const char *name = json_string_value(json_object_get(c, "name"));
	_cleanup_(sampler_freep) struct sampler *s = NULL;
	double got[N_MAX], want[N_MAX] = { 0 };
	float logits[N_MAX];

	assert_in_range(n, 1, N_MAX);
	for (uint32_t i = 0; i < n; i++) {
		const json_t *logit = json_array_get(list, i);

		logits[i] = json_is_string(logit) ? -INFINITY : (float)json_number_value(logit);
	}
	for (size_t i = 0; i < json_array_size(probs); i++) {
		const json_t *pair = json_array_get(probs, i);

		want[json_integer_value(json_array_get(pair, 0))] =
			json_number_value(json_array_get(pair, 1));
	}

	s = sampler_of(json_object_get(c, "params"), n);
	sampler_probs(s, logits, got);
	for (uint32_t i = 0; i < n; i++)
		if (fabs(got[i] - want[i]) > TOL_PROBS * want[i] + 1e-300)
			fail_msg("%s: id %u has probability %.12g, not %.12g", name, i, got[i],
				 want[i]);
	if (greedy)
		assert_int_equal(sampler_sample(s, logits, 0), json_integer_value(greedy));
}

static void every_reference_case_has_its_distribution(void **state)
{
	const char *top = getenv("srcdir");
	char path[4096];
	json_t *root, *cases;

	(void)state;

	snprintf(path, sizeof(path), "%s/tests/golden/samplers/cases.json", top ? top : ".");
	root = json_load_file(path, 0, NULL);
	cases = json_object_get(root, "cases");
	assert_true(json_array_size(cases) > 80);
	for (size_t i = 0; i < json_array_size(cases); i++)
		check_case(json_array_get(cases, i));
	json_decref(root);
}

static void philox_gives_the_published_vectors(void **state)
{
	const uint32_t zeros[4] = { 0 }, ones[4] = { ~0u, ~0u, ~0u, ~0u };
	const uint32_t of_zeros[4] = { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 };
	const uint32_t of_ones[4] = { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd };
	uint32_t got[4];

	(void)state;

	philox_4x32_10(zeros, zeros, got);
	assert_memory_equal(got, of_zeros, sizeof(got));
	philox_4x32_10(ones, ones, got);
	assert_memory_equal(got, of_ones, sizeof(got));
	assert_true(sampler_uniform(0, 0) == (double)(0xe169c58d6627e8d5 >> 11) * 0x1p-53);
}

static void a_draw_depends_on_seed_and_position_alone(void **state)
{
	struct step_sampler p = off;
	struct sampler *a, *b;
	uint32_t differ = 0;

	(void)state;

	p.temperature = 5;
	p.seed = 42;
	assert_int_equal(sampler_new(&p, NULL, NULL, 8, &a), 0);
	assert_int_equal(sampler_new(&p, NULL, NULL, 8, &b), 0);
	for (uint32_t i = 0; i < 100; i++)
		sampler_sample(a, rising, i);
	for (uint32_t i = 0; i < 100; i++)
		assert_int_equal(sampler_sample(a, rising, 99 - i),
				 sampler_sample(b, rising, 99 - i));
	for (uint32_t i = 0; i < 100; i++)
		differ += sampler_sample(a, rising, i) != sampler_sample(a, rising, i + 100);
	assert_true(differ > 20);
	sampler_free(a);
	sampler_free(b);
}

static void draws_follow_the_distribution(void **state)
{
	const struct step_sampler *p = &off;
	double probs[8], chi_square = 0;
	uint32_t seen[8] = { 0 };
	const float logits[8] = { 0, 0.5f, 1, 0.25f, -0.5f, 1, -1, 0 };
	struct sampler *s;

	(void)state;

	assert_int_equal(sampler_new(p, NULL, NULL, 8, &s), 0);
	sampler_probs(s, logits, probs);
	for (uint32_t i = 0; i < 100000; i++)
		seen[sampler_sample(s, logits, i)]++;
	for (uint32_t i = 0; i < 8; i++)
		chi_square += pow(seen[i] - 100000 * probs[i], 2) / (100000 * probs[i]);
	assert_true(chi_square <
		    24.3); /* 7 degrees of freedom: one seed in a thousand exceeds it */
	sampler_free(s);
}

static void a_draw_inverts_the_falling_distribution(void **state)
{
	struct step_sampler p = off;
	struct sampler *s;

	(void)state;

	p.temperature = 2;
	p.seed = 7;
	assert_int_equal(sampler_new(&p, NULL, NULL, 8, &s), 0);
	for (uint32_t i = 0; i < 1000; i++) {
		const double u = sampler_uniform(7, i);
		double probs[8], sum = 0;
		uint32_t want = 7;

		sampler_probs(s, rising, probs);
		for (want = 8; want > 0 && sum <= u;)
			sum += probs[--want];
		assert_int_equal(sampler_sample(s, rising, i), want);
	}
	sampler_free(s);
}

static void padded_ids_are_never_chosen(void **state)
{
	struct step_sampler p = off;
	struct sampler *s;
	double probs[8];

	(void)state;

	p.vocab_real = 5;
	assert_int_equal(sampler_new(&p, NULL, NULL, 8, &s), 0);
	sampler_probs(s, rising, probs);
	assert_true(probs[5] == 0 && probs[6] == 0 && probs[7] == 0 && probs[4] > 0.6);
	sampler_free(s);

	p.temperature = 0;
	assert_int_equal(sampler_new(&p, NULL, NULL, 8, &s), 0);
	assert_int_equal(sampler_sample(s, rising, 0), 4);
	sampler_free(s);
}

static void stop_ids_wait_for_min_tokens(void **state)
{
	const uint32_t ids[] = { 1, 2, 3, 0 };
	struct step_sampler p = off;
	struct sampler *s;

	(void)state;

	p.temperature = 0;
	p.n_prompt = 2;
	p.min_tokens = 2;
	p.n_stop_ids = 1;
	p.stop_ids[0] = 7;
	assert_int_equal(sampler_new(&p, NULL, NULL, 8, &s), 0);
	assert_int_equal(sampler_push(s, ids, 3), 0);
	assert_int_equal(sampler_sample(s, rising, 3), 6);
	assert_int_equal(sampler_push(s, ids + 3, 1), 0);
	assert_int_equal(sampler_sample(s, rising, 4), 7);
	sampler_truncate(s, 3);
	assert_int_equal(sampler_sample(s, rising, 3), 6);
	sampler_free(s);
}

static void truncating_forgets_counts(void **state)
{
	const uint32_t ids[] = { 7, 7, 7, 6, 7 };
	struct step_sampler p = off;
	struct sampler *a, *b;
	double of_a[8], of_b[8];

	(void)state;

	p.n_prompt = 1;
	p.repetition = 1.2;
	p.frequency = 0.5;
	p.presence = 0.25;
	assert_int_equal(sampler_new(&p, NULL, NULL, 8, &a), 0);
	assert_int_equal(sampler_new(&p, NULL, NULL, 8, &b), 0);
	assert_int_equal(sampler_push(a, ids, 5), 0);
	assert_int_equal(sampler_push(b, ids, 2), 0);
	sampler_probs(a, rising, of_a);
	sampler_probs(b, rising, of_b);
	assert_memory_not_equal(of_a, of_b, sizeof(of_a));
	sampler_truncate(a, 2);
	sampler_probs(a, rising, of_a);
	assert_memory_equal(of_a, of_b, sizeof(of_a));
	sampler_free(a);
	sampler_free(b);
}

static void logprobs_are_those_of_a_softmax(void **state)
{
	float logprob, top[3];
	uint32_t ids[3];

	(void)state;

	sampler_logprobs(rising, 3, 1, 3, &logprob, ids, top);
	assert_true(fabs(logprob - -1.4076059644) < 1e-6);
	assert_int_equal(ids[0], 2);
	assert_int_equal(ids[1], 1);
	assert_int_equal(ids[2], 0);
	assert_true(fabs(top[0] - -0.4076059644) < 1e-6);
	sampler_logprobs(rising, 3, UINT32_MAX, 0, &logprob, NULL, NULL);
	assert_true(isnan(logprob));
}

static void equal_logits_are_listed_by_id(void **state)
{
	const float flat[4] = { 1, 2, 1, 2 };
	float logprob, top[4];
	uint32_t ids[4];

	(void)state;

	sampler_logprobs(flat, 4, 0, 4, &logprob, ids, top);
	assert_int_equal(ids[0], 1);
	assert_int_equal(ids[1], 3);
	assert_int_equal(ids[2], 0);
	assert_int_equal(ids[3], 2);
}

static void values_outside_their_definitions_are_refused(void **state)
{
	struct step_sampler p = off;
	struct sampler *s = NULL;
	const uint32_t beyond = 8;

	(void)state;

	p.temperature = -1;
	assert_int_equal(sampler_new(&p, NULL, NULL, 8, &s), -EINVAL);
	p = off;
	p.top_p = 1.01;
	assert_int_equal(sampler_new(&p, NULL, NULL, 8, &s), -EINVAL);
	p = off;
	p.min_p = NAN;
	assert_int_equal(sampler_new(&p, NULL, NULL, 8, &s), -EINVAL);
	p = off;
	p.repetition = 0;
	assert_int_equal(sampler_new(&p, NULL, NULL, 8, &s), -EINVAL);
	p = off;
	p.vocab_real = 9;
	assert_int_equal(sampler_new(&p, NULL, NULL, 8, &s), -EINVAL);
	assert_null(s);
	assert_int_equal(sampler_new(&off, NULL, NULL, 8, &s), 0);
	assert_int_equal(sampler_push(s, &beyond, 1), -EINVAL);
	sampler_free(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_reference_case_has_its_distribution),
		cmocka_unit_test(philox_gives_the_published_vectors),
		cmocka_unit_test(a_draw_depends_on_seed_and_position_alone),
		cmocka_unit_test(draws_follow_the_distribution),
		cmocka_unit_test(a_draw_inverts_the_falling_distribution),
		cmocka_unit_test(padded_ids_are_never_chosen),
		cmocka_unit_test(stop_ids_wait_for_min_tokens),
		cmocka_unit_test(truncating_forgets_counts),
		cmocka_unit_test(logprobs_are_those_of_a_softmax),
		cmocka_unit_test(equal_logits_are_listed_by_id),
		cmocka_unit_test(values_outside_their_definitions_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
