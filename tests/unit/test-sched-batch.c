/* The scheduler: who is in the next step, who has slots and pages, who waits. */
#include "tests/unit/world.h"

static void ten_turns_of_three_users_take_slots_in_turn(void **state)
{
	/* one user has six waiting, the others two each: none waits for the six */
	static const uint32_t uids[] = { 1, 1, 1, 1, 1, 1, 2, 2, 3, 3 };
	static const int order[] = { 0, 6, 8, 1, 7, 9, 2, 3, 4, 5 };
	struct world w;

	(void)state;
	world_open(&w, 64, 1, 64);
	for (size_t i = 0; i < ARRAY_SIZE(uids); i++)
		world_submit(&w, uids[i], 10 + (uint32_t)i, 3);
	world_run_all(&w);
	assert_int_equal(w.n_ended, 10);
	for (int i = 0; i < 10; i++) {
		assert_int_equal(w.ended_order[i], order[i]);
		world_assert_text(&w, &w.t[i], 3);
	}
	world_assert_all_free(&w);
	world_close(&w);
}

static void prompts_of_two_users_are_read_in_turn(void **state)
{
	struct world w;

	(void)state;
	world_open(&w, 64, 4, 16);
	world_submit(&w, 1, 160, 1);
	world_submit(&w, 2, 160, 1);
	world_run(&w, 10);
	assert_int_equal(w.computer.n_rows_of_slot[0], 5);
	assert_int_equal(w.computer.n_rows_of_slot[1], 5);
	world_run_all(&w);
	world_assert_text(&w, &w.t[0], 1);
	world_assert_text(&w, &w.t[1], 1);
	world_assert_all_free(&w);
	world_close(&w);
}

static void a_long_prompt_does_not_hold_up_those_that_decode(void **state)
{
	struct world w;
	uint64_t before;

	(void)state;
	world_open(&w, 64, 4, 16);
	world_submit(&w, 1, 10, 100);
	world_run(&w, 5);
	world_submit(&w, 1, 300, 1);
	world_run(&w, 4); /* those in flight */
	before = w.computer.n_rows_of_slot[0];
	world_run(&w, 10);
	assert_int_equal(w.computer.n_rows_of_slot[0] - before, 10); /* a row in every step */
	assert_int_equal(w.computer.n_tokens, 16);
	world_run_all(&w);
	world_assert_text(&w, &w.t[0], 100);
	world_assert_text(&w, &w.t[1], 1);
	world_close(&w);
}

static void a_paused_turn_holds_nobody_up(void **state)
{
	struct world w;
	uint64_t paused, others;

	(void)state;
	world_open(&w, 64, 4, 64);
	for (int i = 0; i < 3; i++)
		world_submit(&w, 1, 10, 60);
	world_run(&w, 6);
	sched_pause(&w.t[1], true);
	world_run(&w, 4);
	paused = w.computer.n_rows_of_slot[1];
	others = w.computer.n_rows_of_slot[0];
	world_run(&w, 20);
	assert_int_equal(w.computer.n_rows_of_slot[1], paused);
	assert_int_equal(w.computer.n_rows_of_slot[0], others + 20);
	world_run_all(&w);
	assert_int_equal(w.n_ended, 2);
	sched_pause(&w.t[1], false);
	world_run_all(&w);
	assert_int_equal(w.n_ended, 3);
	for (int i = 0; i < 3; i++)
		world_assert_text(&w, &w.t[i], 60);
	world_assert_all_free(&w);
	world_close(&w);
}

static void a_paused_turn_gives_its_slot_to_those_who_wait(void **state)
{
	struct world w;

	(void)state;
	world_open(&w, 64, 1, 64);
	world_submit(&w, 1, 10, 40);
	world_run(&w, 6);
	sched_pause(&w.t[0], true);
	world_submit(&w, 2, 10, 5);
	world_run_all(&w);
	assert_int_equal(w.n_ended, 1);
	world_assert_text(&w, &w.t[1], 5);
	sched_pause(&w.t[0], false);
	world_run_all(&w);
	world_assert_text(&w, &w.t[0], 40);
	world_assert_all_free(&w);
	world_close(&w);
}

static void when_pages_run_out_the_youngest_begins_again(void **state)
{
	struct world w;
	uint32_t n_replayed = 0;

	(void)state;
	/* four turns of 100 tokens each need 28 pages; there are 16 */
	world_open(&w, 16, 4, 64);
	for (uint32_t i = 0; i < 4; i++)
		world_submit(&w, i % 2, 20, 80);
	for (int i = 0; i < 2000 && w.n_ended < 4; i++) {
		world_run(&w, 1);
		for (uint32_t k = 0; k < 4; k++)
			n_replayed += w.t[k].replaying;
		assert_false(w.t[0].replaying); /* the oldest never loses */
	}
	assert_true(n_replayed > 0);
	assert_int_equal(w.n_ended, 4);
	for (int i = 0; i < 4; i++)
		world_assert_text(&w, &w.t[i], 80);
	world_assert_all_free(&w);
	world_close(&w);
}

/* An executor may be at work on both steps in flight, whatever the order of their results. */
static void pages_are_given_to_nobody_before_their_last_step_is_done(void **state)
{
	struct world w;

	(void)state;
	world_open(&w, 4, 2, 64);
	world_submit(&w, 1, 40, 20);
	world_run(&w, 5);
	assert_int_equal(ring_in_flight(&w.computer.ring), 2);
	sched_finish(&w.t[0], FINISH_CANCELLED);
	world_submit(&w, 2, 50, 5); /* needs them all */
	world_run(&w, 1);
	assert_int_equal(w.t[1].rec->n_pages, 0);
	world_run_all(&w);
	world_assert_text(&w, &w.t[1], 5);
	world_assert_all_free(&w);
	world_close(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ten_turns_of_three_users_take_slots_in_turn),
		cmocka_unit_test(prompts_of_two_users_are_read_in_turn),
		cmocka_unit_test(a_long_prompt_does_not_hold_up_those_that_decode),
		cmocka_unit_test(a_paused_turn_holds_nobody_up),
		cmocka_unit_test(a_paused_turn_gives_its_slot_to_those_who_wait),
		cmocka_unit_test(when_pages_run_out_the_youngest_begins_again),
		cmocka_unit_test(pages_are_given_to_nobody_before_their_last_step_is_done),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
