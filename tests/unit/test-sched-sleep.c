/* Turns whose executor falls asleep under them: parked, gone, and awake again. */
#include "tests/unit/world.h"

/* The toy executor does what it was told to; returns the kind of the order, 0: there was none. */
static uint32_t obey(struct world *w)
{
	const struct control_parked parked = { .kind = CONTROL_PARKED, .freed_bytes = 1 };
	struct control_order order;

	if (recv(w->computer.fd, &order, sizeof(order), MSG_DONTWAIT) != sizeof(order))
		return 0;
	while (computer_step(&w->computer))
		;
	if (order.kind == CONTROL_PARK)
		assert_int_equal(send(w->computer.fd, &parked, sizeof(parked), 0), sizeof(parked));
	else
		computer_ready(&w->computer);
	world_run(w, 0);
	return order.kind;
}

static void park(struct world *w)
{
	assert_int_equal(executor_park(w->executor), 0);
	assert_int_equal(obey(w), CONTROL_PARK);
	assert_int_equal(executor_state(w->executor), EXECUTOR_PARKED);
}

static void a_turn_goes_on_in_its_slot_after_its_executor_was_parked(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	world_open(&w, 32, 4, 64);
	t = world_submit(&w, 1, 40, 30);
	world_run(&w, 8);
	assert_int_equal(t->rec->state, TURN_RUNNING);
	for (int i = 0; i < 3; i++) {
		const uint64_t n_fed = w.computer.n_rows_of_slot[t->rec->slot];

		park(&w);
		world_run_all(&w);
		assert_int_equal(w.computer.n_rows_of_slot[t->rec->slot] <= n_fed + 2, true);
		executor_wake(w.executor);
		assert_int_equal(obey(&w), CONTROL_WAKE);
		world_run(&w, 2);
	}
	world_run_all(&w);
	assert_int_equal(w.n_ended, 1);
	assert_int_equal(t->rec->finish, FINISH_LENGTH);
	world_assert_text(&w, t, 30);
	assert_int_equal(t->rec->n_faults, 0);
	world_assert_all_free(&w);
	world_close(&w);
}

static void a_turn_is_computed_again_after_its_executor_was_gone(void **state)
{
	struct world w;
	struct turn *t[3];

	(void)state;
	world_open(&w, 64, 4, 64);
	for (uint32_t i = 0; i < 3; i++)
		t[i] = world_submit(&w, 1 + i % 2, 20 + 10 * i, 25);
	world_run(&w, 10);
	assert_int_equal(executor_leave(w.executor), 0);
	world_run_all(&w);
	assert_int_equal(executor_state(w.executor), EXECUTOR_GONE);
	assert_int_equal(w.n_ended, 0);
	executor_wake(w.executor);
	world_run_all(&w);
	assert_int_equal(w.n_ended, 3);
	for (uint32_t i = 0; i < 3; i++) {
		world_assert_text(&w, t[i], 25);
		assert_int_equal(t[i]->rec->n_faults, 0); /* nobody is suspected */
	}
	world_assert_all_free(&w);
	world_close(&w);
}

static void what_comes_while_it_sleeps_waits_and_is_done(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	world_open(&w, 32, 4, 64);
	world_run_all(&w);
	park(&w);
	t = world_submit(&w, 1, 40, 5);
	world_run_all(&w);
	assert_int_equal(t->rec->state, TURN_QUEUED);
	executor_wake(w.executor);
	assert_int_equal(obey(&w), CONTROL_WAKE);
	world_run_all(&w);
	world_assert_text(&w, t, 5);
	world_assert_all_free(&w);
	world_close(&w);
}

static void a_turn_may_end_while_its_executor_sleeps(void **state)
{
	struct world w;
	struct turn *t, *other;

	(void)state;
	world_open(&w, 32, 4, 64);
	t = world_submit(&w, 1, 40, 300);
	world_run(&w, 8);
	park(&w);
	sched_finish(t, FINISH_CANCELLED);
	world_run_all(&w);
	other = world_submit(&w, 1, 33, 6);
	executor_wake(w.executor);
	assert_int_equal(obey(&w), CONTROL_WAKE);
	world_run_all(&w);
	world_assert_text(&w, other, 6);
	world_assert_all_free(&w);
	world_close(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_turn_goes_on_in_its_slot_after_its_executor_was_parked),
		cmocka_unit_test(a_turn_is_computed_again_after_its_executor_was_gone),
		cmocka_unit_test(what_comes_while_it_sleeps_waits_and_is_done),
		cmocka_unit_test(a_turn_may_end_while_its_executor_sleeps),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
