/* The scheduler: turns that come, run, end and are refused. */
#include <errno.h>

#include "tests/unit/world.h"

static void a_turn_runs_to_its_length(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	world_open(&w, 64, 4, 16);
	t = world_submit(&w, 1, 50, 30);
	world_run_all(&w);
	assert_int_equal(t->rec->finish, FINISH_LENGTH);
	world_assert_text(&w, t, 30);
	assert_int_equal(w.n_ended, 1);
	assert_int_equal(w.n_tokens_calls, 30);
	assert_int_equal(sched_steps(w.sched), 4 + 29);
	assert_true(sched_deep_steps(w.sched) >= 30); /* the executor never waits for us */
	assert_true(t->rec->first_token_us > 0);
	world_assert_all_free(&w);
	sched_release(t);
	assert_null(turns_next(w.turns, NULL));
	world_close(&w);
}

static void a_stop_id_ends_and_is_kept(void **state)
{
	struct world w;
	struct turn *t;
	uint32_t stop;

	(void)state;
	world_open(&w, 64, 4, 64);
	t = world_submit(&w, 1, 20, 10);
	world_run_all(&w);
	stop = turn_ids(w.turns, t->rec)[20 + 4];
	t = world_add(&w, 1, 20, 10);
	memcpy(turn_ids(w.turns, t->rec), turn_ids(w.turns, w.t[0].rec), 80);
	t->rec->sampler.seed = 0;
	t->rec->sampler.n_stop_ids = 1;
	t->rec->sampler.stop_ids[0] = stop;
	assert_int_equal(sched_submit(w.sched, t, NULL), 0);
	world_run_all(&w);
	assert_int_equal(t->rec->finish, FINISH_STOP);
	assert_int_equal(t->rec->stop_id, stop);
	world_assert_text(&w, t, 5);
	world_assert_all_free(&w);
	world_close(&w);
}

static void an_answer_ends_with_the_context(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	world_open(&w, WORLD_CONTEXT / WORLD_PAGE_TOKENS, 4, 512);
	t = world_submit(&w, 1, WORLD_CONTEXT - 7, 4096);
	world_run_all(&w);
	assert_int_equal(t->rec->finish, FINISH_LENGTH);
	world_assert_text(&w, t, 7);
	world_assert_all_free(&w);
	world_close(&w);
}

static void a_turn_can_be_cancelled_after_every_step(void **state)
{
	struct world w;
	struct turn *t, *other;

	(void)state;
	for (uint64_t n = 0; n < 14; n++) {
		world_open(&w, 16, 2, 16);
		other = world_submit(&w, 2, 20, 10);
		t = world_submit(&w, 1, 60, 10);
		world_run(&w, n);
		sched_finish(t, FINISH_CANCELLED);
		assert_int_equal(w.ended_order[w.n_ended - 1], 1);
		assert_int_equal(t->rec->finish, FINISH_CANCELLED);
		sched_release(t);
		world_submit(&w, 1, 60, 4); /* takes over slot and pages */
		world_run_all(&w);
		world_assert_text(&w, other, 10);
		world_assert_text(&w, &w.t[2], 4);
		world_assert_all_free(&w);
		world_close(&w);
	}
}

static void a_callback_may_end_its_turn(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	world_open(&w, 64, 4, 64);
	w.stop_at_tokens = 5;
	t = world_submit(&w, 1, 10, 50);
	world_run_all(&w);
	assert_int_equal(t->rec->finish, FINISH_STOP_STRING);
	assert_int_equal(w.n_ended, 1);
	world_assert_text(&w, t, 5);
	world_assert_all_free(&w);
	world_close(&w);
}

static void a_deadline_ends_a_turn(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	clock_fake(1000000, 0);
	world_open(&w, 32, 2, 64);
	t = world_add(&w, 1, 20, 100);
	t->rec->deadline_us = 1500000;
	assert_int_equal(sched_submit(w.sched, t, NULL), 0);
	world_submit(&w, 1, 10, 8);
	world_run(&w, 5);
	assert_int_equal(t->rec->finish, FINISH_NONE);
	clock_advance(499999);
	world_run(&w, 1);
	assert_int_equal(t->rec->finish, FINISH_NONE);
	clock_advance(1);
	world_run(&w, 1);
	assert_int_equal(t->rec->finish, FINISH_DEADLINE);
	assert_int_equal(t->rec->ended_us, 1500000);
	world_run_all(&w);
	world_assert_text(&w, &w.t[1], 8);
	world_assert_all_free(&w);
	world_close(&w);
	clock_real();
}

static void a_deadline_needs_no_other_event(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	world_open(&w, 32, 2, 64);
	world_run(&w, 0);
	computer_die(&w.computer);
	close(w.computer.listen_fd);
	w.computer.listen_fd = -1; /* nobody computes any more */
	t = world_add(&w, 1, 20, 100);
	t->rec->deadline_us = clock_us() + 20000;
	assert_int_equal(sched_submit(w.sched, t, NULL), 0);
	while (w.n_ended == 0)
		assert_true(sd_event_run(w.loop, 5000000) >= 0);
	assert_int_equal(t->rec->finish, FINISH_DEADLINE);
	world_close(&w);
}

static void limits_are_refused_with_their_numbers(void **state)
{
	struct world w;
	struct err err = { 0 };

	(void)state;
	world_open(&w, 16, 2, 64);
	assert_int_equal(sched_submit(w.sched, world_add(&w, 1, 200, 100), &err), -ENOSPC);
	assert_string_equal(err.text, "300 tokens need 19 KV pages; there are 16");
	assert_int_equal(w.t[0].rec->state, TURN_OPEN);
	assert_int_equal(sched_submit(w.sched, world_add(&w, 1, 513, 1), &err), -ENOSPC);
	assert_string_equal(err.text, "the prompt has 513 tokens; the context has 512");

	w.settings.max_user_queued_tokens = 150;
	w.settings.max_queued_tokens = 250;
	world_submit(&w, 7, 100, 1);
	assert_int_equal(sched_submit(w.sched, world_add(&w, 7, 51, 1), &err), -EAGAIN);
	assert_string_equal(err.text, "user 7 has 100 tokens waiting; 51 more would exceed "
				      "MaxQueuedTokensPerUser=150");
	world_submit(&w, 8, 150, 1);
	assert_int_equal(sched_submit(w.sched, world_add(&w, 9, 1, 1), &err), -EAGAIN);
	assert_string_equal(err.text,
			    "250 tokens are waiting; 1 more would exceed MaxQueuedTokens=250");
	world_run_all(&w);
	assert_int_equal(w.n_ended, 2);
	world_close(&w);
}

static void nobody_has_more_waiting_than_is_left(void **state)
{
	struct err err = { 0 };
	struct world w;

	(void)state;
	world_open(&w, 16, 1, 64);
	w.settings.max_queued_tokens = 400;
	for (int i = 0; i < 4; i++)
		world_submit(&w, 7, 50, 1);
	assert_int_equal(sched_submit(w.sched, world_add(&w, 7, 50, 1), &err), -EAGAIN);
	assert_string_equal(err.text, "user 7 has 200 tokens waiting; 200 of MaxQueuedTokens=400 "
				      "are left, and nobody has more than that");
	for (int i = 0; i < 2; i++)
		world_submit(&w, 8, 50, 1);
	assert_int_equal(sched_submit(w.sched, world_add(&w, 8, 1, 1), &err), -EAGAIN);
	assert_string_equal(err.text, "user 8 has 100 tokens waiting; 100 of MaxQueuedTokens=400 "
				      "are left, and nobody has more than that");
	world_submit(&w, 9, 100, 1);
	world_run_all(&w);
	assert_int_equal(w.n_ended, 7);
	world_close(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_turn_runs_to_its_length),
		cmocka_unit_test(a_stop_id_ends_and_is_kept),
		cmocka_unit_test(an_answer_ends_with_the_context),
		cmocka_unit_test(a_turn_can_be_cancelled_after_every_step),
		cmocka_unit_test(a_callback_may_end_its_turn),
		cmocka_unit_test(a_deadline_ends_a_turn),
		cmocka_unit_test(a_deadline_needs_no_other_event),
		cmocka_unit_test(limits_are_refused_with_their_numbers),
		cmocka_unit_test(nobody_has_more_waiting_than_is_left),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
