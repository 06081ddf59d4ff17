/* Rungs by idleness, wish and suspend, and what comes meanwhile. */
#include "tests/unit/ladder.h"

#include <errno.h>

#define DELAY_US (5 * US_PER_S)

static void never_by_idleness_unless_it_is_set(void **state)
{
	struct ladder l;

	(void)state;
	ladder_open(&l, 0, 0);
	assert_int_equal(power_next_us(l.power), 0); /* no timer */
	ladder_pass(&l, 1000000);
	ladder_is_on(&l, POWER_QUIET);
	ladder_close(&l);
}

static void idleness_leads_down_rung_by_rung(void **state)
{
	struct ladder l;

	(void)state;
	ladder_open(&l, 60, 600);
	assert_int_equal(power_next_us(l.power), clock_us() + 60 * US_PER_S);
	ladder_pass(&l, 59);
	ladder_is_on(&l, POWER_QUIET);
	ladder_pass(&l, 1);
	ladder_is_on(&l, POWER_PARKED);
	assert_int_equal(power_next_us(l.power), clock_us() + 540 * US_PER_S);
	ladder_pass(&l, 539);
	ladder_is_on(&l, POWER_PARKED);
	ladder_pass(&l, 1);
	ladder_is_on(&l, POWER_GONE);
	assert_int_equal(power_next_us(l.power), 0); /* the last rung has no timer */
	ladder_close(&l);
}

static void the_executor_may_leave_without_having_been_parked(void **state)
{
	struct ladder l;

	(void)state;
	ladder_open(&l, 0, 100);
	ladder_pass(&l, 100);
	ladder_is_on(&l, POWER_GONE);
	ladder_close(&l);
	ladder_open(&l, 200, 100);
	ladder_pass(&l, 100);
	ladder_is_on(&l, POWER_GONE);
	ladder_close(&l);
}

static void work_keeps_it_up_and_wakes_it(void **state)
{
	struct turn *t;
	struct ladder l;

	(void)state;
	ladder_open(&l, 60, 600);
	ladder_pass(&l, 59);
	t = world_submit(&l.world, 1, 20, 400);
	ladder_run(&l, 0);
	assert_int_equal(power_next_us(l.power), 0); /* none while there is work */
	sched_finish(t, FINISH_CANCELLED);
	ladder_settle(&l);
	assert_int_equal(power_next_us(l.power), clock_us() + 60 * US_PER_S);
	ladder_pass(&l, 60);
	ladder_is_on(&l, POWER_PARKED);
	for (int i = 0; i < 2; i++) {
		t = world_submit(&l.world, 1, 20, 5);
		ladder_settle(&l);
		assert_int_equal(t->rec->finish, FINISH_LENGTH);
		world_assert_text(&l.world, t, 5);
		ladder_is_on(&l, POWER_QUIET);
		ladder_pass(&l, 600);
		ladder_is_on(&l, POWER_GONE);
	}
	ladder_close(&l);
}

static void a_reader_that_stalls_keeps_nothing_awake(void **state)
{
	struct turn *t;
	struct ladder l;

	(void)state;
	ladder_open(&l, 60, 0);
	t = world_submit(&l.world, 1, 20, 50);
	world_run(&l.world, 8);
	sched_pause(t, true);
	ladder_settle(&l);
	ladder_pass(&l, 60);
	ladder_is_on(&l, POWER_PARKED);
	sched_pause(t, false);
	ladder_settle(&l);
	assert_int_equal(t->rec->finish, FINISH_LENGTH);
	world_assert_text(&l.world, t, 50);
	ladder_close(&l);
}

static void a_wish_to_sleep_waits_for_the_end_of_the_work(void **state)
{
	struct power_wish w = ladder_sleep_to(POWER_PARKED), deeper = ladder_sleep_to(POWER_GONE);
	struct turn *t;
	struct ladder l;

	(void)state;
	ladder_open(&l, 0, 0);
	t = world_submit(&l.world, 1, 20, 30);
	assert_int_equal(power_ask(l.power, &w, NULL), 0);
	ladder_run(&l, 0);
	assert_int_equal(l.n_done, 0);
	ladder_is_on(&l, POWER_QUIET);
	ladder_settle(&l);
	world_assert_text(&l.world, t, 30);
	assert_int_equal(l.n_done, 1);
	assert_int_equal(l.done_r, 0);
	ladder_is_on(&l, POWER_PARKED);
	assert_int_equal(power_ask(l.power, &deeper, NULL), 0);
	ladder_settle(&l);
	assert_int_equal(l.n_done, 2);
	ladder_is_on(&l, POWER_GONE);
	ladder_close(&l);
}

static void a_wish_to_wake_ends_the_others(void **state)
{
	struct power_wish down = ladder_sleep_to(POWER_PARKED);
	struct power_wish up = { .kind = POWER_WISH_WAKE, .on_done = ladder_on_done };
	struct turn *t;
	struct ladder l;

	(void)state;
	ladder_open(&l, 0, 0);
	t = world_submit(&l.world, 1, 20, 30);
	assert_int_equal(power_ask(l.power, &down, NULL), 0);
	assert_int_equal(power_ask(l.power, &up, NULL), 0);
	assert_int_equal(l.n_done, 1);
	assert_int_equal(l.done_r, -ECANCELED);
	ladder_settle(&l);
	assert_int_equal(l.n_done, 2);
	assert_int_equal(t->rec->finish, FINISH_LENGTH);
	ladder_is_on(&l, POWER_QUIET);

	down = ladder_sleep_to(POWER_GONE);
	assert_int_equal(power_ask(l.power, &down, NULL), 0);
	ladder_settle(&l);
	assert_int_equal(power_ask(l.power, &up, NULL), 0);
	ladder_settle(&l);
	assert_int_equal(l.n_done, 4);
	ladder_is_on(&l, POWER_QUIET);
	ladder_close(&l);
}

static void a_wish_withdrawn_is_nobody_s(void **state)
{
	struct power_wish w = ladder_sleep_to(POWER_PARKED);
	struct ladder l;

	(void)state;
	ladder_open(&l, 0, 0);
	assert_int_equal(power_ask(l.power, &w, NULL), 0);
	power_withdraw(&w);
	power_withdraw(&w);
	ladder_settle(&l);
	assert_int_equal(l.n_done, 0);
	ladder_is_on(&l, POWER_QUIET);
	ladder_close(&l);
}

static void before_suspend_turns_pause_and_afterwards_they_go_on(void **state)
{
	struct turn *t, *late;
	struct ladder l;

	(void)state;
	ladder_open(&l, 60, 0);
	t = world_submit(&l.world, 1, 20, 40);
	world_run(&l.world, 10);
	power_suspend(l.power, true, DELAY_US, ladder_on_safe, &l);
	ladder_settle(&l);
	ladder_is_on(&l, POWER_GONE);
	assert_int_equal(t->rec->state == TURN_ENDED, false);
	assert_int_equal(l.n_seals, 1);
	assert_int_equal(l.sealed_in, EXECUTOR_READY); /* for sums are the executor's to make */
	assert_int_equal(l.n_safe, 1);
	assert_int_equal(power_next_us(l.power), 0);
	late = world_submit(&l.world, 2, 20, 5);
	ladder_settle(&l);
	ladder_is_on(&l, POWER_GONE); /* not now */
	assert_int_equal(l.n_safe, 1);
	clock_advance(8 * 3600 * US_PER_S);
	power_suspend(l.power, false, 0, NULL, NULL);
	ladder_settle(&l);
	world_assert_text(&l.world, t, 40);
	world_assert_text(&l.world, late, 5);
	assert_int_equal(t->rec->n_recomputed, 0); /* sealed to its last token */
	ladder_is_on(&l, POWER_QUIET);
	ladder_close(&l);
}

static void a_suspend_waits_for_no_longer_than_it_may(void **state)
{
	struct turn *t;
	struct ladder l;

	(void)state;
	ladder_open(&l, 0, 0);
	t = world_submit(&l.world, 1, 20, 40);
	world_run(&l.world, 10);
	l.disk_hangs = true;
	power_suspend(l.power, true, DELAY_US, ladder_on_safe, &l);
	ladder_settle(&l);
	assert_int_equal(l.n_safe, 0);
	assert_int_equal(executor_state(l.world.executor), EXECUTOR_READY);
	assert_int_equal(power_next_us(l.power), clock_us() + DELAY_US * 3 / 4);
	ladder_pass(&l, DELAY_US / US_PER_S);
	assert_int_equal(l.n_safe, 1);
	ladder_is_on(&l, POWER_GONE);
	power_suspend(l.power, false, 0, NULL, NULL);
	ladder_settle(&l);
	world_assert_text(&l.world, t, 40);

	/* nor for a step that does not end */
	l.disk_hangs = false;
	t = world_submit(&l.world, 1, 20, 40);
	ladder_run(&l, 0);
	power_suspend(l.power, true, DELAY_US, ladder_on_safe, &l);
	ladder_run(&l, 0);
	assert_int_equal(l.n_safe, 1);
	clock_advance(DELAY_US);
	power_tick(l.power);
	assert_int_equal(l.n_safe, 2);
	power_suspend(l.power, false, 0, NULL, NULL);
	ladder_settle(&l);
	world_assert_text(&l.world, t, 40);
	ladder_is_on(&l, POWER_QUIET);
	ladder_close(&l);
}

static void sleep_now_pauses_answers_until_others_come_or_a_wake_up(void **state)
{
	struct power_wish w, up = { .kind = POWER_WISH_WAKE, .on_done = ladder_on_done };
	struct turn *t, *other;
	struct ladder l;

	(void)state;
	for (int i = 0; i < 4; i++) {
		ladder_open(&l, 0, 600);
		t = world_submit(&l.world, 1, 20, 40);
		world_run(&l.world, 10);
		w = ladder_sleep_to(i % 2 ? POWER_GONE : POWER_PARKED);
		w.now = true;
		assert_int_equal(power_ask(l.power, &w, NULL), 0);
		ladder_settle(&l);
		assert_int_equal(l.n_done, 1);
		ladder_is_on(&l, w.rung);
		assert_int_equal(t->rec->state, TURN_QUEUED);
		ladder_pass(&l, 100);
		ladder_is_on(&l, w.rung);
		if (i < 2) {
			assert_int_equal(power_ask(l.power, &up, NULL), 0);
		} else {
			other = world_submit(&l.world, 2, 20, 5);
			ladder_settle(&l);
			world_assert_text(&l.world, other, 5);
		}
		ladder_settle(&l);
		world_assert_text(&l.world, t, 40);
		assert_int_equal(t->rec->n_recomputed, 0);
		ladder_is_on(&l, POWER_QUIET);
		ladder_close(&l);
	}
}

static void a_wish_to_sleep_now_withdrawn_halts_nothing(void **state)
{
	struct power_wish w = ladder_sleep_to(POWER_PARKED);
	struct turn *t;
	struct ladder l;

	(void)state;
	ladder_open(&l, 0, 0);
	t = world_submit(&l.world, 1, 20, 40);
	world_run(&l.world, 10);
	l.disk_hangs = true;
	w.now = true;
	assert_int_equal(power_ask(l.power, &w, NULL), 0);
	ladder_settle(&l);
	assert_int_equal(l.n_done, 0);
	power_withdraw(&w);
	ladder_settle(&l);
	world_assert_text(&l.world, t, 40);
	ladder_is_on(&l, POWER_QUIET);
	ladder_close(&l);
}

static void work_that_comes_while_it_is_sealed_is_done_at_once(void **state)
{
	struct power_wish w = ladder_sleep_to(POWER_GONE);
	struct power_wish up = { .kind = POWER_WISH_WAKE, .on_done = ladder_on_done };
	struct turn *t;
	struct ladder l;

	(void)state;
	ladder_open(&l, 60, 0);
	l.disk_hangs = true;
	ladder_pass(&l, 60);
	t = world_submit(&l.world, 1, 20, 5);
	ladder_settle(&l);
	world_assert_text(&l.world, t, 5);
	ladder_is_on(&l, POWER_QUIET);

	assert_int_equal(power_ask(l.power, &w, NULL), 0);
	ladder_settle(&l);
	assert_int_equal(power_ask(l.power, &up, NULL), 0);
	ladder_settle(&l);
	assert_int_equal(l.n_done, 2);
	ladder_is_on(&l, POWER_QUIET);
	ladder_close(&l);
}

static void what_slept_before_suspend_sleeps_after_it(void **state)
{
	struct power_wish w = ladder_sleep_to(POWER_PARKED);
	struct ladder l;

	(void)state;
	ladder_open(&l, 0, 0);
	power_suspend(l.power, true, DELAY_US, ladder_on_safe, &l);
	ladder_settle(&l);
	power_suspend(l.power, false, 0, NULL, NULL);
	ladder_settle(&l);
	ladder_is_on(&l, POWER_QUIET);
	assert_int_equal(power_ask(l.power, &w, NULL), 0);
	ladder_settle(&l);
	power_suspend(l.power, true, DELAY_US, ladder_on_safe, &l);
	ladder_settle(&l);
	assert_int_equal(l.n_safe, 2);
	power_suspend(l.power, false, 0, NULL, NULL);
	ladder_settle(&l);
	ladder_is_on(&l, POWER_GONE);
	ladder_close(&l);
}

static void without_an_executor_there_is_nothing_to_ask(void **state)
{
	struct power_wish w = ladder_sleep_to(POWER_PARKED);
	struct err err = { 0 };
	struct ladder l;

	(void)state;
	ladder_open(&l, 60, 600);
	power_set_executor(l.power, NULL);
	assert_int_equal(power_ask(l.power, &w, &err), -EAGAIN);
	assert_string_equal(err.text, "there is no executor yet: the model is being opened");
	power_suspend(l.power, true, DELAY_US, ladder_on_safe, &l);
	ladder_settle(&l);
	assert_int_equal(l.n_safe, 1);
	power_suspend(l.power, false, 0, NULL, NULL);
	ladder_close(&l);
}

static void to_wake_waits_for_the_first_executor(void **state)
{
	struct power_wish up = { .kind = POWER_WISH_WAKE, .on_done = ladder_on_done };
	struct executor *executor;
	struct err err = { 0 };
	struct ladder l;

	(void)state;
	ladder_open(&l, 0, 0);
	executor = l.world.executor;
	power_set_executor(l.power, NULL);
	assert_int_equal(power_ask(l.power, &up, NULL), 0);
	ladder_settle(&l);
	assert_int_equal(l.n_done, 0);
	power_set_executor(l.power, executor);
	ladder_settle(&l);
	assert_int_equal(l.n_done, 1);
	assert_int_equal(l.done_r, 0);

	power_set_executor(l.power, NULL);
	assert_int_equal(power_ask(l.power, &up, NULL), 0);
	power_refuse(l.power, err_set(&err, -ENOEXEC, "no model"), &err);
	assert_int_equal(l.n_done, 2);
	assert_int_equal(l.done_r, -ENOEXEC);
	power_set_executor(l.power, executor);
	ladder_close(&l);
}

static void prices_are_reckoned_until_they_are_measured(void **state)
{
	struct power_wish w = ladder_sleep_to(POWER_GONE);
	struct power_view view;
	struct ladder l;

	(void)state;
	ladder_open(&l, 0, 0);
	power_look_at(l.power, &view);
	assert_int_equal(view.prices[POWER_PARKED].freed_bytes, WEIGHTS);
	assert_true(view.prices[POWER_PARKED].measured);
	assert_int_equal(view.prices[POWER_GONE].freed_bytes, RESIDENT);
	assert_int_equal(power_ask(l.power, &w, NULL), 0);
	ladder_settle(&l);
	power_look_at(l.power, &view);
	assert_int_equal(view.prices[POWER_GONE].freed_bytes,
			 RESIDENT); /* known while it is gone */
	ladder_close(&l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(never_by_idleness_unless_it_is_set),
		cmocka_unit_test(idleness_leads_down_rung_by_rung),
		cmocka_unit_test(the_executor_may_leave_without_having_been_parked),
		cmocka_unit_test(work_keeps_it_up_and_wakes_it),
		cmocka_unit_test(a_reader_that_stalls_keeps_nothing_awake),
		cmocka_unit_test(a_wish_to_sleep_waits_for_the_end_of_the_work),
		cmocka_unit_test(a_wish_to_wake_ends_the_others),
		cmocka_unit_test(a_wish_withdrawn_is_nobody_s),
		cmocka_unit_test(before_suspend_turns_pause_and_afterwards_they_go_on),
		cmocka_unit_test(a_suspend_waits_for_no_longer_than_it_may),
		cmocka_unit_test(sleep_now_pauses_answers_until_others_come_or_a_wake_up),
		cmocka_unit_test(a_wish_to_sleep_now_withdrawn_halts_nothing),
		cmocka_unit_test(work_that_comes_while_it_is_sealed_is_done_at_once),
		cmocka_unit_test(what_slept_before_suspend_sleeps_after_it),
		cmocka_unit_test(without_an_executor_there_is_nothing_to_ask),
		cmocka_unit_test(to_wake_waits_for_the_first_executor),
		cmocka_unit_test(prices_are_reckoned_until_they_are_measured),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
