/* The scheduler: what is left of turns when the executor or the broker dies. */
#include <poll.h>

#include "daemon/sched/queue.h"
#include "tests/unit/world.h"

static void three_turns(struct world *w)
{
	world_open(w, 32, 2, 16);
	world_submit(w, 1, 40, 6);
	world_submit(w, 2, 9, 8);
	world_submit(w, 1, 20, 5);
}

static void assert_three_turns(struct world *w)
{
	assert_int_equal(w->n_ended, 3);
	world_assert_text(w, &w->t[0], 6);
	world_assert_text(w, &w->t[1], 8);
	world_assert_text(w, &w->t[2], 5);
	world_assert_all_free(w);
}

static void the_executor_may_die_at_every_step(void **state)
{
	struct world w;

	(void)state;
	for (uint64_t n = 0; n < 25; n++) {
		three_turns(&w);
		world_run(&w, n);
		computer_die(&w.computer);
		world_run_all(&w);
		assert_three_turns(&w);
		assert_int_equal(executor_generation(w.executor), 2);
		assert_int_equal(executor_state(w.executor), EXECUTOR_READY);
		world_close(&w);
	}
}

static void five_turns(struct world *w)
{
	world_open(w, 64, 4, 16);
	for (uint32_t i = 0; i < 5; i++)
		world_submit(w, i % 2, 20 + 5 * i, 6 + 3 * i);
}

static void only_the_turn_that_kills_the_executor_ends(void **state)
{
	struct world w;

	(void)state;
	for (int guilty = 0; guilty < 5; guilty++) {
		const uint32_t n_prompt = 20 + 5 * (uint32_t)guilty;

		for (uint32_t at = 0; at < n_prompt + 5; at += 3) {
			five_turns(&w);
			w.computer.poison_seeds = 1u << guilty;
			w.computer.poison_at = at;
			world_run_all(&w);
			assert_int_equal(w.n_ended, 5);
			for (uint32_t i = 0; i < 5; i++) {
				if (i != (uint32_t)guilty)
					world_assert_text(&w, &w.t[i], 6 + 3 * i);
			}
			assert_int_equal(w.t[guilty].rec->finish, FINISH_FAULT);
			assert_int_equal(executor_generation(w.executor), 3);
			world_assert_all_free(&w);
			world_close(&w);
		}
	}
}

static void at_the_third_death_in_a_row_all_suspects_end(void **state)
{
	struct world w;

	(void)state;
	five_turns(&w);
	w.computer.poison_seeds = 0x1f;
	w.computer.poison_at = 0;
	/* the third back-off is not waited for */
	world_run_all(&w);
	assert_int_equal(executor_deaths(w.executor), 3);
	for (int i = 0; i < 4; i++) {
		/* those in flight then; the third step had no room beside one that clears pages */
		if (i != 2)
			assert_int_equal(w.t[i].rec->finish, FINISH_FAULT);
	}
	assert_int_equal(w.t[4].rec->finish, FINISH_NONE); /* it was never computed */
	world_close(&w);
}

static void a_suspect_whose_reader_stalls_holds_no_other_up(void **state)
{
	struct world w;
	struct turn *t = NULL;
	uint32_t n_suspects = 0;

	(void)state;
	world_open(&w, 64, 4, 16);
	for (uint32_t i = 0; i < 5; i++)
		world_submit(&w, i % 2, 60, 40);
	world_run(&w, 25);
	computer_die(&w.computer);
	world_run(&w, 1); /* far from where it was */
	for (int i = 0; i < 5; i++) {
		n_suspects += w.t[i].rec->n_faults > 0;
		if (w.t[i].rec->n_faults > 0 && w.t[i].rec->slot != TURN_NO_SLOT) {
			assert_null(t); /* one at a time */
			t = &w.t[i];
		}
	}
	assert_non_null(t);
	assert_true(n_suspects > 1);
	sched_pause(t, true);
	world_run_all(&w);
	assert_int_equal(w.n_ended, 4);
	sched_pause(t, false);
	world_run_all(&w);
	assert_int_equal(w.n_ended, 5);
	for (uint32_t i = 0; i < 5; i++)
		world_assert_text(&w, &w.t[i], 40);
	world_close(&w);
}

static void a_turn_in_flight_at_two_deaths_in_a_row_ends_at_fault(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	world_open(&w, 32, 2, 64);
	t = world_submit(&w, 1, 20, 50);
	world_run(&w, 5);
	computer_die(&w.computer);
	world_run(&w, 1);
	assert_int_equal(executor_deaths(w.executor), 1);
	computer_die(&w.computer);
	world_run_all(&w);
	assert_int_equal(w.n_ended, 1);
	assert_int_equal(t->rec->finish, FINISH_FAULT);
	world_assert_all_free(&w);
	world_close(&w);
}

static void a_turn_that_came_past_the_first_death_is_no_suspect(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	world_open(&w, 32, 2, 64);
	t = world_submit(&w, 1, 20, 50);
	world_run(&w, 5);
	computer_die(&w.computer);
	world_run(&w, 3); /* those in flight then, and one more */
	computer_die(&w.computer);
	world_run_all(&w);
	world_assert_text(&w, t, 50);
	world_assert_all_free(&w);
	world_close(&w);
}

static void a_completed_request_between_two_deaths_forgives_the_first(void **state)
{
	struct world w;

	(void)state;
	world_open(&w, 32, 2, 64);
	world_submit(&w, 1, 20, 60);
	world_run(&w, 5);
	computer_die(&w.computer);
	world_run(&w, 3);
	world_submit(&w, 2, 10, 3);
	world_run(&w, 10);
	assert_int_equal(w.n_ended, 1);
	assert_int_equal(executor_deaths(w.executor), 0);
	computer_die(&w.computer);
	world_run_all(&w);
	assert_int_equal(w.n_ended, 2);
	world_assert_text(&w, &w.t[0], 60);
	world_close(&w);
}

static void the_broker_may_die_at_every_step(void **state)
{
	struct world w;

	(void)state;
	for (uint64_t n = 1; n < 25; n++) {
		const uint64_t slot_opened = n;

		three_turns(&w);
		world_run(&w, slot_opened);
		world_restart_broker(&w);
		world_run_all(&w);
		assert_three_turns(&w);
		assert_int_equal(executor_generation(w.executor), 1);
		world_close(&w);
	}
}

static void results_that_wait_while_no_broker_lives_are_applied(void **state)
{
	struct world w;

	(void)state;
	for (uint64_t n = 1; n < 25; n++) {
		three_turns(&w);
		world_run(&w, n);
		/* both steps in flight end after the broker's last look at them */
		computer_step(&w.computer);
		computer_step(&w.computer);
		world_restart_broker(&w);
		world_run_all(&w);
		assert_three_turns(&w);
		world_close(&w);
	}
}

/* A broker may die between a step and its bell: the next one rings, or the executor sleeps for ever. */
static void an_adopted_executor_is_rung(void **state)
{
	struct world w;
	struct pollfd bell;
	uint64_t n;

	(void)state;
	three_turns(&w);
	world_run(&w, 3);
	bell = (struct pollfd){ .fd = w.computer.ring.down_fd, .events = POLLIN };
	if (poll(&bell, 1, 0) == 1)
		assert_int_equal(read(bell.fd, &n, sizeof(n)), sizeof(n));
	assert_int_equal(poll(&bell, 1, 0), 0);
	world_restart_broker(&w);
	assert_int_equal(poll(&bell, 1, 0), 1);
	world_run_all(&w);
	assert_three_turns(&w);
	world_close(&w);
}

/* Of a result's rows some are in the records, and the result is still in the ring. */
static void a_result_is_applied_once_when_the_broker_dies_over_it(void **state)
{
	struct world w;
	uint32_t n_deaths = 0;

	(void)state;
	for (uint64_t n = 1; n < 25; n++) {
		three_turns(&w);
		w.remember_at_step = n;
		world_run(&w, n);
		n_deaths += w.remembered != NULL;
		world_restart_broker(&w);
		world_run_all(&w);
		assert_three_turns(&w);
		assert_int_equal(executor_generation(w.executor),
				 1); /* nothing had to be doubted */
		world_close(&w);
	}
	assert_true(n_deaths >= 12);
}

/* A later life knows a result's turn by its slot alone. */
static void a_result_is_of_no_later_turn_in_its_slot(void **state)
{
	struct world w;

	(void)state;
	world_open(&w, 64, 1, 64);
	world_submit(&w, 1, 20, 50);
	world_run(&w, 5);
	assert_int_equal(ring_in_flight(&w.computer.ring), 2);
	sched_finish(&w.t[0], FINISH_CANCELLED);
	world_submit(&w, 1, 20, 5);
	world_run(&w, 1); /* the first of the two is done; the other names the slot too */
	world_restart_broker(&w);
	world_run_all(&w);
	assert_int_equal(w.n_ended, 2);
	world_assert_text(&w, &w.t[1], 5);
	assert_int_equal(executor_generation(w.executor), 1);
	world_assert_all_free(&w);
	world_close(&w);
}

static void a_running_turn_is_not_fed_again_after_adoption(void **state)
{
	struct world w;

	(void)state;
	world_open(&w, 32, 2, 64);
	world_submit(&w, 1, 60, 20);
	world_run(&w, 8);
	world_restart_broker(&w);
	world_run(&w, 3);
	assert_false(w.t[0].replaying);
	assert_int_equal(w.computer.n_tokens, 1);
	world_run_all(&w);
	world_assert_text(&w, &w.t[0], 20);
	assert_int_equal(w.computer.n_steps, 20);
	world_assert_all_free(&w);
	world_close(&w);
}

/* What it computed in memory of its own, and did not sum, is lost: nobody goes on from it. */
static void an_executor_with_its_own_memory_may_die_at_every_step(void **state)
{
	struct world w;

	(void)state;
	for (uint64_t n = 0; n < 40; n++) {
		world_open(&w, 32, 2, 16);
		w.computer.aside = true;
		computer_die(&w.computer); /* and says so when it comes again */
		world_run(&w, 0);
		world_submit(&w, 1, 40, 20);
		world_submit(&w, 2, 9, 20);
		for (uint64_t i = 0; i < n; i++)
			world_turn(&w);
		computer_die(&w.computer);
		world_run_all(&w);
		world_assert_text(&w, &w.t[0], 20);
		world_assert_text(&w, &w.t[1], 20);
		assert_int_equal(w.n_ended, 2);
		world_assert_all_free(&w);
		world_close(&w);
	}
}

/* The loop alone, for so long or until the executor has died. */
static void wait_ms(struct world *w, uint64_t ms)
{
	const uint64_t end_us = clock_us() + ms * US_PER_MS;

	while (executor_deaths(w->executor) == 0 && clock_us() < end_us)
		sd_event_run(w->loop, end_us - clock_us());
}

/* A turn, whose steps may take a second. */
static void open_with_deadline(struct world *w)
{
	world_open(w, 32, 2, 16);
	w->settings.step_timeout = 1;
	world_submit(w, 1, 20, 10);
}

static void a_step_that_never_ends_is_a_death(void **state)
{
	struct world w;

	(void)state;
	open_with_deadline(&w);
	world_run(&w, 4);
	world_listen(&w);
	assert_true(ring_in_flight(executor_ring(w.executor)) > 0);
	wait_ms(&w, 900);
	assert_int_equal(executor_deaths(w.executor), 0);
	wait_ms(&w, 10000);
	assert_int_equal(executor_deaths(w.executor), 1);
	assert_non_null(strstr(executor_text(w.executor), "has not ended after 1 s"));
	computer_die(&w.computer);
	world_run_all(&w);
	assert_int_equal(w.n_ended, 1);
	world_assert_text(&w, &w.t[0], 10);
	world_assert_all_free(&w);
	world_close(&w);
}

static bool is_watched(const struct world *w)
{
	int enabled = SD_EVENT_OFF;

	assert_true(sd_event_source_get_enabled(w->sched->stuck.timer, &enabled) >= 0);
	return enabled != SD_EVENT_OFF;
}

static void nothing_is_watched_while_a_reader_stalls(void **state)
{
	struct world w;

	(void)state;
	open_with_deadline(&w);
	world_run(&w, 4);
	assert_true(is_watched(&w));
	sched_pause(&w.t[0], true);
	for (int i = 0; i < 4; i++)
		world_run(&w, 1);
	assert_int_equal(ring_in_flight(executor_ring(w.executor)), 0);
	assert_false(is_watched(&w));
	sched_pause(&w.t[0], false);
	world_run(&w, 1);
	assert_true(is_watched(&w));
	world_run_all(&w);
	assert_false(is_watched(&w));
	world_assert_text(&w, &w.t[0], 10);
	world_close(&w);
}

static void steps_that_end_one_after_the_other_are_no_death(void **state)
{
	struct world w;

	(void)state;
	open_with_deadline(&w);
	for (int i = 0; i < 6; i++) {
		world_run(&w, 1);
		world_listen(&w);
		assert_true(ring_in_flight(executor_ring(w.executor)) > 0);
		wait_ms(&w, 500);
	}
	assert_int_equal(executor_deaths(w.executor), 0);
	world_run_all(&w);
	world_assert_text(&w, &w.t[0], 10);
	/* with nothing to compute no time is counted */
	assert_int_equal(sd_event_run(w.loop, 600 * US_PER_MS), 0);
	world_close(&w);
}

/* By what the pace knows of such steps. */
static void a_step_that_was_expected_to_take_long_may(void **state)
{
	struct world w;

	(void)state;
	open_with_deadline(&w);
	world_run(&w, 4);
	world_listen(&w);
	w.sched->pace.step_us = 400000;
	wait_ms(&w, 1700);
	assert_int_equal(executor_deaths(w.executor), 0);
	wait_ms(&w, 10000);
	assert_int_equal(executor_deaths(w.executor), 1);
	world_close(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_executor_may_die_at_every_step),
		cmocka_unit_test(only_the_turn_that_kills_the_executor_ends),
		cmocka_unit_test(at_the_third_death_in_a_row_all_suspects_end),
		cmocka_unit_test(a_suspect_whose_reader_stalls_holds_no_other_up),
		cmocka_unit_test(a_turn_in_flight_at_two_deaths_in_a_row_ends_at_fault),
		cmocka_unit_test(a_turn_that_came_past_the_first_death_is_no_suspect),
		cmocka_unit_test(a_completed_request_between_two_deaths_forgives_the_first),
		cmocka_unit_test(the_broker_may_die_at_every_step),
		cmocka_unit_test(results_that_wait_while_no_broker_lives_are_applied),
		cmocka_unit_test(an_adopted_executor_is_rung),
		cmocka_unit_test(a_result_is_applied_once_when_the_broker_dies_over_it),
		cmocka_unit_test(a_result_is_of_no_later_turn_in_its_slot),
		cmocka_unit_test(a_running_turn_is_not_fed_again_after_adoption),
		cmocka_unit_test(an_executor_with_its_own_memory_may_die_at_every_step),
		cmocka_unit_test(a_step_that_never_ends_is_a_death),
		cmocka_unit_test(nothing_is_watched_while_a_reader_stalls),
		cmocka_unit_test(steps_that_end_one_after_the_other_are_no_death),
		cmocka_unit_test(a_step_that_was_expected_to_take_long_may),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
