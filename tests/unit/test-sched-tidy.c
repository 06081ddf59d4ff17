/* A tidy turn: computes a prompt for one that may come, while there is no other. */
#include "daemon/sched/fair.h"
#include "tests/unit/world.h"

#include <errno.h>

static const struct computer_cost cost = { .step_us = 1000, .token_us = 100 };

/* The executor is there: a tidy turn does not wait for one. */
static void open_world(struct world *w, uint32_t n_pages)
{
	clock_fake(1000000, 0);
	world_open(w, n_pages, 4, 64);
	w->computer.cost = &cost;
	world_run_all(w);
}

static struct turn *add_tidy(struct world *w, uint32_t uid, uint32_t n_prompt)
{
	struct turn *t = world_add(w, uid, n_prompt, 0);

	t->rec->tidy = 1;
	return t;
}

static struct turn *tidy(struct world *w, uint32_t uid, uint32_t n_prompt)
{
	struct turn *t = add_tidy(w, uid, n_prompt);

	assert_int_equal(sched_submit(w->sched, t, NULL), 0);
	return t;
}

/* Another turn whose prompt begins with all of @of's. */
static struct turn *follow(struct world *w, uint32_t uid, const struct turn *of, uint32_t n_prompt)
{
	struct turn *t = world_add(w, uid, n_prompt, 3);

	memcpy(turn_ids(w->turns, t->rec), turn_ids(w->turns, of->rec), of->rec->n_prompt * 4);
	assert_int_equal(sched_submit(w->sched, t, NULL), 0);
	return t;
}

static void the_next_turn_finds_all_of_it(void **state)
{
	struct world w;
	struct turn *a, *b;

	(void)state;
	open_world(&w, 64);
	a = tidy(&w, 1, 100);
	world_run_all(&w);
	assert_int_equal(a->rec->finish, FINISH_LENGTH);
	assert_int_equal(a->rec->n_ids, 100);
	assert_int_equal(w.computer.n_computed, 100);
	b = follow(&w, 1, a, 120);
	world_run_all(&w);
	assert_int_equal(b->rec->n_cached, 100);
	assert_int_equal(w.computer.n_computed, 120 + 2);
	world_assert_text(&w, b, 3);
	world_assert_all_free(&w);
	world_close(&w);
}

static void what_is_there_is_not_computed_again(void **state)
{
	struct world w;
	struct turn *a, *b;

	(void)state;
	open_world(&w, 64);
	a = world_submit(&w, 1, 100, 1);
	world_run_all(&w);
	b = add_tidy(&w, 1, 130);
	memcpy(turn_ids(w.turns, b->rec), turn_ids(w.turns, a->rec), 400);
	assert_int_equal(sched_submit(w.sched, b, NULL), 0);
	world_run_all(&w);
	assert_int_equal(b->rec->n_cached, 100);
	assert_int_equal(w.computer.n_computed, 130);
	world_assert_all_free(&w);
	world_close(&w);
}

static void it_is_refused_beside_others_and_counts_nowhere(void **state)
{
	struct sched_counts n;
	struct world w;
	struct err err = { 0 };

	(void)state;
	open_world(&w, 64);
	world_submit(&w, 1, 20, 5);
	assert_int_equal(sched_submit(w.sched, add_tidy(&w, 2, 20), &err), -EBUSY);
	assert_string_equal(err.text, "other turns wait or run");
	world_run_all(&w);
	w.settings.max_queued_tokens = w.settings.max_user_queued_tokens = 10;
	tidy(&w, 2, 40);
	assert_true(sched_is_tidying(w.sched));
	assert_false(sched_is_idle(w.sched));
	sched_count(w.sched, (uid_t)-1, &n);
	assert_int_equal(n.n_queued + n.n_running + n.queued_tokens, 0);
	world_run_all(&w);
	assert_false(sched_is_tidying(w.sched));
	assert_true(sched_is_idle(w.sched));
	world_close(&w);
}

/* Whenever another comes: it has the next step, and what was computed is there later. */
static void any_turn_ends_it_at_once(void **state)
{
	struct world w;
	struct turn *a, *b, *c;

	(void)state;
	for (uint64_t n = 0; n < 12; n++) {
		uint64_t n_computed;

		open_world(&w, 64);
		a = tidy(&w, 1, 150);
		world_run(&w, n);
		n_computed = w.computer.n_computed;
		b = world_submit(&w, 2, 30, 4);
		assert_false(sched_is_tidying(w.sched));
		if (n < 10) {
			assert_int_equal(a->rec->finish, FINISH_CANCELLED);
			assert_int_equal(n_computed, n * WORLD_PAGE_TOKENS); /* a page a step */
		}
		world_run(&w, 2); /* at most one step of it was under way */
		assert_true(b->rec->n_ids > b->rec->n_prompt);
		world_run_all(&w);
		world_assert_text(&w, b, 4);
		c = follow(&w, 1, a, 160);
		world_run_all(&w);
		assert_true(c->rec->n_cached >= n_computed);
		world_assert_text(&w, c, 3);
		world_assert_all_free(&w);
		world_close(&w);
	}
}

static void it_is_charged_to_its_user(void **state)
{
	struct world w;

	(void)state;
	open_world(&w, 64);
	tidy(&w, 7, 100);
	world_run_all(&w);
	assert_true(fair_find(sched_fair(w.sched), 7)->used_us > 0);
	assert_true(fair_find(sched_fair(w.sched), 7)->used_us == sched_fair(w.sched)->measured_us);
	world_close(&w);
}

static void it_ends_with_the_executor_and_blames_nobody(void **state)
{
	struct world w;
	struct turn *a, *b;

	(void)state;
	for (uint64_t n = 0; n < 5; n++) {
		open_world(&w, 64);
		a = tidy(&w, 1, 150);
		world_run(&w, n);
		computer_die(&w.computer);
		world_run_all(&w);
		assert_int_equal(a->rec->finish, FINISH_CANCELLED);
		assert_int_equal(a->rec->n_faults, 0);
		b = follow(&w, 1, a, 160);
		world_run_all(&w);
		world_assert_text(&w, b, 3);
		world_assert_all_free(&w);
		world_close(&w);
	}
}

/* Pages that others are to keep by right are not taken, as they would be for a request. */
static void without_room_it_ends(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	open_world(&w, 16);
	w.settings.min_user_cache = 50;
	world_submit(&w, 1, 120, 5);
	world_run_all(&w);
	t = tidy(&w, 2, 200);
	world_run_all(&w);
	assert_int_equal(t->rec->finish, FINISH_FAULT);
	world_assert_all_free(&w);
	world_close(&w);
}

static void prices_are_not_learnt_from_its_steps(void **state)
{
	struct world w;
	double us;

	(void)state;
	open_world(&w, 64);
	assert_true(sched_prompt_us(w.sched, 0, 100) == 0);
	world_submit(&w, 1, 100, 1);
	world_run_all(&w);
	us = sched_prompt_us(w.sched, 0, 100);
	assert_true(us > 0);
	assert_true(sched_prompt_us(w.sched, 0, 200) == 2 * us);
	tidy(&w, 1, 150);
	world_run_all(&w);
	assert_true(sched_prompt_us(w.sched, 0, 100) == us);
	world_close(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_next_turn_finds_all_of_it),
		cmocka_unit_test(what_is_there_is_not_computed_again),
		cmocka_unit_test(it_is_refused_beside_others_and_counts_nowhere),
		cmocka_unit_test(any_turn_ends_it_at_once),
		cmocka_unit_test(it_is_charged_to_its_user),
		cmocka_unit_test(it_ends_with_the_executor_and_blames_nobody),
		cmocka_unit_test(without_room_it_ends),
		cmocka_unit_test(prices_are_not_learnt_from_its_steps),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
