/* The scheduler: scores and log-probabilities. */
#include "tests/unit/world.h"

static void a_text_is_scored(void **state)
{
	struct world w;
	struct turn *t;
	const uint32_t *ids;

	(void)state;
	world_open(&w, 32, 2, 16);
	t = world_add(&w, 1, 50, 0);
	t->rec->score = 1;
	t->rec->n_top = 3;
	assert_int_equal(sched_submit(w.sched, t, NULL), 0);
	world_submit(&w, 1, 10, 5);
	world_run_all(&w);
	assert_int_equal(t->rec->finish, FINISH_SCORED);
	assert_int_equal(t->rec->n_scored, 50);
	assert_int_equal(t->rec->n_ids, 50);
	assert_true(isnan(turn_logprobs(w.turns, t->rec)[0]));
	ids = turn_ids(w.turns, t->rec);
	for (uint32_t i = 1; i < 50; i++) {
		uint64_t h = 1469598103934665603ull;
		uint32_t predicted;

		for (uint32_t k = 0; k < i; k++)
			h = (h ^ ids[k]) * 1099511628211ull;
		predicted = (uint32_t)((h >> 20) % COMPUTER_VOCAB);
		assert_true(turn_logprobs(w.turns, t->rec)[i] ==
			    computer_logprob(predicted, ids[i]));
		assert_int_equal(turn_top_ids(w.turns, t->rec)[3 * i], predicted);
		assert_int_equal(turn_top_ids(w.turns, t->rec)[3 * i + 2], (predicted + 2) % 1000);
		assert_true(turn_top_logprobs(w.turns, t->rec)[3 * i + 1] == -1.0f);
	}
	world_assert_all_free(&w);
	world_close(&w);
}

static void one_token_is_scored_without_computing(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	world_open(&w, 32, 2, 16);
	t = world_add(&w, 1, 1, 0);
	t->rec->score = 1;
	assert_int_equal(sched_submit(w.sched, t, NULL), 0);
	world_run_all(&w);
	assert_int_equal(t->rec->finish, FINISH_SCORED);
	assert_int_equal(sched_steps(w.sched), 0);
	world_close(&w);
}

static void scores_survive_both_deaths(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	for (uint64_t n = 1; n < 5; n++) {
		world_open(&w, 32, 2, 16);
		t = world_add(&w, 1, 60, 0);
		t->rec->score = 1;
		t->rec->n_top = 2;
		assert_int_equal(sched_submit(w.sched, t, NULL), 0);
		world_run(&w, n);
		world_restart_broker(&w);
		if (n % 2)
			computer_die(&w.computer);
		world_run_all(&w);
		assert_int_equal(w.t[0].rec->finish, FINISH_SCORED);
		for (uint32_t i = 1; i < 60; i++)
			assert_true(turn_logprobs(w.turns, w.t[0].rec)[i] <= -1.0f);
		world_assert_all_free(&w);
		world_close(&w);
	}
}

static void log_probabilities_stand_beside_the_tokens(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	world_open(&w, 32, 2, 16);
	t = world_add(&w, 1, 20, 10);
	t->rec->logprobs = 1;
	t->rec->n_top = 4;
	assert_int_equal(sched_submit(w.sched, t, NULL), 0);
	world_run_all(&w);
	world_assert_text(&w, t, 10);
	for (uint32_t i = 0; i < 10; i++) {
		const uint32_t id = turn_ids(w.turns, t->rec)[20 + i];

		assert_true(turn_logprobs(w.turns, t->rec)[i] == computer_logprob(id, id));
		assert_int_equal(turn_top_ids(w.turns, t->rec)[4 * i], id);
		assert_true(turn_top_logprobs(w.turns, t->rec)[4 * i + 3] == -2.0f);
	}
	world_close(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_text_is_scored),
		cmocka_unit_test(one_token_is_scored_without_computing),
		cmocka_unit_test(scores_survive_both_deaths),
		cmocka_unit_test(log_probabilities_stand_beside_the_tokens),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
