/* The scheduler against a toy executor that speaks the real protocols. */
#include "daemon/sched/sched.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#include "client/wire/ownership.h"
#include "daemon/base/clock.h"
#include "tests/unit/computer.h"
#include "tests/unit/manager.h"

#define CONTEXT 512
#define PAGE_TOKENS 16
#define TURNS 12

struct world {
	sd_event *loop;
	struct settings settings;
	struct kvpool *kv;
	struct turns *turns;
	struct executor *executor;
	struct sched *sched;
	struct computer computer;
	struct manager manager;
	uint32_t n_pages;
	struct turn t[TURNS];
	uint32_t n_turns, n_ended, n_tokens_calls;
	int ended_order[TURNS];
	uint64_t stop_at_tokens; /* on_tokens finishes the turn here */
};
static struct world *the_world;

static void on_tokens(struct turn *t)
{
	the_world->n_tokens_calls++;
	if (the_world->stop_at_tokens &&
	    t->rec->n_ids - t->rec->n_prompt >= the_world->stop_at_tokens)
		sched_finish(t, FINISH_STOP_STRING);
}

static void on_end(struct turn *t)
{
	assert_int_equal(t->rec->state, TURN_ENDED);
	the_world->ended_order[the_world->n_ended++] = (int)(t - the_world->t);
}

static void on_executor(struct executor *e, void *userdata)
{
	struct world *w = userdata;

	(void)e;
	if (w->sched)
		sched_executor_changed(w->sched);
}

static void new_executor(struct world *w)
{
	struct err err = { 0 };
	struct executor_options o = {
		.unit_socket = w->computer.path,
		.arena_fd = kvpool_fd(w->kv),
		.on_state = on_executor,
		.on_results = on_executor,
		.userdata = w,
		.configure = { .kind = CONTROL_CONFIGURE,
			       .version = CONTROL_VERSION,
			       .n_pages = w->n_pages,
			       .page_tokens = PAGE_TOKENS,
			       .n_slots = w->settings.max_batch,
			       .max_context = CONTEXT,
			       .max_batch_tokens = w->settings.batch_tokens },
	};

	assert_int_equal(executor_new(w->loop, &o, &w->executor, &err), 0);
}

static void new_sched(struct world *w)
{
	const struct sched_options o = {
		.settings = &w->settings, .kv = w->kv, .turns = w->turns, .executor = w->executor
	};

	assert_int_equal(sched_new(w->loop, &o, &w->sched), 0);
}

static void open_world(struct world *w, uint32_t n_pages, uint32_t max_batch, uint32_t batch_tokens)
{
	struct err err = { 0 };

	memset(w, 0, sizeof(*w));
	the_world = w;
	w->n_pages = n_pages;
	assert_int_equal(settings_init(&w->settings), 0);
	w->settings.max_batch = max_batch;
	w->settings.batch_tokens = batch_tokens;
	assert_int_equal(sd_event_new(&w->loop), 0);
	manager_open(&w->manager);
	computer_open(&w->computer);
	assert_int_equal(kvpool_new(n_pages, PAGE_TOKENS * 4, PAGE_TOKENS, &w->kv, &err), 0);
	assert_int_equal(turns_new(CONTEXT, CONTEXT / PAGE_TOKENS + 1, &w->turns, &err), 0);
	new_executor(w);
	new_sched(w);
	assert_int_equal(executor_start(w->executor, NULL, &err), 0);
}

static void close_world(struct world *w)
{
	sched_free(w->sched);
	executor_stop(w->executor);
	executor_free(w->executor);
	computer_close(&w->computer);
	turns_free(w->turns);
	kvpool_free(w->kv);
	manager_close(&w->manager);
	settings_deinit(&w->settings);
	sd_event_unref(w->loop);
}

static bool turn_loop(struct world *w)
{
	bool moved = false;

	while (sd_event_run(w->loop, 0) > 0)
		moved = true;
	manager_read(&w->manager);
	return moved | (computer_accept(&w->computer) > 0);
}

/* Runs until nothing moves any more, or the computer has done @n_steps more. */
static void run_steps(struct world *w, uint64_t n_steps)
{
	uint32_t still = 0;

	while (still < 20) {
		still = turn_loop(w) ? 0 : still + 1;
		if (n_steps == 0)
			continue;
		if (computer_step(&w->computer)) {
			still = 0;
			n_steps--;
		}
	}
}

static void run_all(struct world *w)
{
	run_steps(w, UINT64_MAX);
}

static struct turn *add(struct world *w, uint32_t uid, uint32_t n_prompt, uint32_t max_tokens)
{
	struct turn *t = &w->t[w->n_turns];
	struct turn_record *rec = turns_take(w->turns);

	assert_non_null(rec);
	*t = (struct turn){ .rec = rec, .on_tokens = on_tokens, .on_end = on_end };
	rec->uid = uid;
	rec->n_prompt = rec->n_ids = n_prompt;
	rec->max_tokens = max_tokens;
	rec->accepted_us = 1000 + w->n_turns;
	rec->sampler.seed = w->n_turns;
	rec->sampler.vocab_real = COMPUTER_VOCAB;
	for (uint32_t i = 0; i < n_prompt; i++)
		turn_ids(w->turns, rec)[i] = (w->n_turns * 7919 + i * 31) % COMPUTER_VOCAB;
	w->n_turns++;
	return t;
}

static struct turn *submit(struct world *w, uint32_t uid, uint32_t n_prompt, uint32_t max_tokens)
{
	struct turn *t = add(w, uid, n_prompt, max_tokens);
	struct err err = { 0 };

	assert_int_equal(sched_submit(w->sched, t, &err), 0);
	return t;
}

/* What the toy model says after the turn's prompt, reckoned without any of the machinery. */
static void assert_text(struct world *w, struct turn *t, uint32_t n_sampled)
{
	const uint32_t *ids = turn_ids(w->turns, t->rec);

	assert_int_equal(t->rec->n_ids, t->rec->n_prompt + n_sampled);
	for (uint32_t at = t->rec->n_prompt; at < t->rec->n_ids; at++) {
		uint64_t h = 1469598103934665603ull ^ t->rec->sampler.seed;

		for (uint32_t i = 0; i < at; i++)
			h = (h ^ ids[i]) * 1099511628211ull;
		assert_int_equal(ids[at], (h >> 20) % COMPUTER_VOCAB);
	}
}

static void assert_all_free(struct world *w)
{
	run_steps(w, UINT64_MAX);
	assert_true(sched_is_idle(w->sched));
	assert_int_equal(kvpool_free_pages(w->kv), w->n_pages);
	assert_int_equal(kvpool_dropped_pages(w->kv), 0);
}

static void a_turn_runs_to_its_length(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	open_world(&w, 64, 4, 16);
	t = submit(&w, 1, 50, 30);
	run_all(&w);
	assert_int_equal(t->rec->finish, FINISH_LENGTH);
	assert_text(&w, t, 30);
	assert_int_equal(w.n_ended, 1);
	assert_int_equal(w.n_tokens_calls, 30);
	assert_int_equal(sched_steps(w.sched), 4 + 29);
	assert_true(sched_deep_steps(w.sched) >= 30); /* the executor never waits for us */
	assert_true(t->rec->first_token_us > 0);
	assert_all_free(&w);
	sched_release(t);
	assert_null(turns_next(w.turns, NULL));
	close_world(&w);
}

static void a_stop_id_ends_and_is_kept(void **state)
{
	struct world w;
	struct turn *t;
	uint32_t stop;

	(void)state;
	open_world(&w, 64, 4, 64);
	t = submit(&w, 1, 20, 10);
	run_all(&w);
	stop = turn_ids(w.turns, t->rec)[20 + 4];
	t = add(&w, 1, 20, 10);
	memcpy(turn_ids(w.turns, t->rec), turn_ids(w.turns, w.t[0].rec), 80);
	t->rec->sampler.seed = 0;
	t->rec->sampler.n_stop_ids = 1;
	t->rec->sampler.stop_ids[0] = stop;
	assert_int_equal(sched_submit(w.sched, t, NULL), 0);
	run_all(&w);
	assert_int_equal(t->rec->finish, FINISH_STOP);
	assert_int_equal(t->rec->stop_id, stop);
	assert_text(&w, t, 5);
	assert_all_free(&w);
	close_world(&w);
}

static void an_answer_ends_with_the_context(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	open_world(&w, CONTEXT / PAGE_TOKENS, 4, 512);
	t = submit(&w, 1, CONTEXT - 7, 4096);
	run_all(&w);
	assert_int_equal(t->rec->finish, FINISH_LENGTH);
	assert_text(&w, t, 7);
	assert_all_free(&w);
	close_world(&w);
}

static void ten_turns_of_three_users_take_slots_in_turn(void **state)
{
	/* one user has six waiting, the others two each: none waits for the six */
	static const uint32_t uids[] = { 1, 1, 1, 1, 1, 1, 2, 2, 3, 3 };
	static const int order[] = { 0, 6, 8, 1, 7, 9, 2, 3, 4, 5 };
	struct world w;

	(void)state;
	open_world(&w, 64, 1, 64);
	for (size_t i = 0; i < ARRAY_SIZE(uids); i++)
		submit(&w, uids[i], 10 + (uint32_t)i, 3);
	run_all(&w);
	assert_int_equal(w.n_ended, 10);
	for (int i = 0; i < 10; i++) {
		assert_int_equal(w.ended_order[i], order[i]);
		assert_text(&w, &w.t[i], 3);
	}
	assert_all_free(&w);
	close_world(&w);
}

static void prompts_of_two_users_are_read_in_turn(void **state)
{
	struct world w;

	(void)state;
	open_world(&w, 64, 4, 16);
	submit(&w, 1, 160, 1);
	submit(&w, 2, 160, 1);
	run_steps(&w, 10);
	assert_int_equal(w.computer.n_rows_of_slot[0], 5);
	assert_int_equal(w.computer.n_rows_of_slot[1], 5);
	run_all(&w);
	assert_text(&w, &w.t[0], 1);
	assert_text(&w, &w.t[1], 1);
	assert_all_free(&w);
	close_world(&w);
}

static void a_long_prompt_does_not_hold_up_those_that_decode(void **state)
{
	struct world w;
	uint64_t before;

	(void)state;
	open_world(&w, 64, 4, 16);
	submit(&w, 1, 10, 100);
	run_steps(&w, 5);
	submit(&w, 1, 300, 1);
	run_steps(&w, 4); /* those in flight */
	before = w.computer.n_rows_of_slot[0];
	run_steps(&w, 10);
	assert_int_equal(w.computer.n_rows_of_slot[0] - before, 10); /* a row in every step */
	assert_int_equal(w.computer.n_tokens, 16);
	run_all(&w);
	assert_text(&w, &w.t[0], 100);
	assert_text(&w, &w.t[1], 1);
	close_world(&w);
}

static void a_paused_turn_holds_nobody_up(void **state)
{
	struct world w;
	uint64_t paused, others;

	(void)state;
	open_world(&w, 64, 4, 64);
	for (int i = 0; i < 3; i++)
		submit(&w, 1, 10, 60);
	run_steps(&w, 6);
	sched_pause(&w.t[1], true);
	run_steps(&w, 4);
	paused = w.computer.n_rows_of_slot[1];
	others = w.computer.n_rows_of_slot[0];
	run_steps(&w, 20);
	assert_int_equal(w.computer.n_rows_of_slot[1], paused);
	assert_int_equal(w.computer.n_rows_of_slot[0], others + 20);
	run_all(&w);
	assert_int_equal(w.n_ended, 2);
	sched_pause(&w.t[1], false);
	run_all(&w);
	assert_int_equal(w.n_ended, 3);
	for (int i = 0; i < 3; i++)
		assert_text(&w, &w.t[i], 60);
	assert_all_free(&w);
	close_world(&w);
}

static void a_paused_turn_gives_its_slot_to_those_who_wait(void **state)
{
	struct world w;

	(void)state;
	open_world(&w, 64, 1, 64);
	submit(&w, 1, 10, 40);
	run_steps(&w, 6);
	sched_pause(&w.t[0], true);
	submit(&w, 2, 10, 5);
	run_all(&w);
	assert_int_equal(w.n_ended, 1);
	assert_text(&w, &w.t[1], 5);
	sched_pause(&w.t[0], false);
	run_all(&w);
	assert_text(&w, &w.t[0], 40);
	assert_all_free(&w);
	close_world(&w);
}

static void a_turn_can_be_cancelled_after_every_step(void **state)
{
	struct world w;
	struct turn *t, *other;

	(void)state;
	for (uint64_t n = 0; n < 14; n++) {
		open_world(&w, 16, 2, 16);
		other = submit(&w, 2, 20, 10);
		t = submit(&w, 1, 60, 10);
		run_steps(&w, n);
		sched_finish(t, FINISH_CANCELLED);
		assert_int_equal(w.ended_order[w.n_ended - 1], 1);
		assert_int_equal(t->rec->finish, FINISH_CANCELLED);
		sched_release(t);
		submit(&w, 1, 60, 4); /* takes over slot and pages */
		run_all(&w);
		assert_text(&w, other, 10);
		assert_text(&w, &w.t[2], 4);
		assert_all_free(&w);
		close_world(&w);
	}
}

static void a_callback_may_end_its_turn(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	open_world(&w, 64, 4, 64);
	w.stop_at_tokens = 5;
	t = submit(&w, 1, 10, 50);
	run_all(&w);
	assert_int_equal(t->rec->finish, FINISH_STOP_STRING);
	assert_int_equal(w.n_ended, 1);
	assert_text(&w, t, 5);
	assert_all_free(&w);
	close_world(&w);
}

static void when_pages_run_out_the_youngest_begins_again(void **state)
{
	struct world w;
	uint32_t n_replayed = 0;

	(void)state;
	/* four turns of 100 tokens each need 28 pages; there are 16 */
	open_world(&w, 16, 4, 64);
	for (uint32_t i = 0; i < 4; i++)
		submit(&w, i % 2, 20, 80);
	for (int i = 0; i < 2000 && w.n_ended < 4; i++) {
		run_steps(&w, 1);
		for (uint32_t k = 0; k < 4; k++)
			n_replayed += w.t[k].replaying;
		assert_false(w.t[0].replaying); /* the oldest never loses */
	}
	assert_true(n_replayed > 0);
	assert_int_equal(w.n_ended, 4);
	for (int i = 0; i < 4; i++)
		assert_text(&w, &w.t[i], 80);
	assert_all_free(&w);
	close_world(&w);
}

static void three_turns(struct world *w)
{
	open_world(w, 32, 2, 16);
	submit(w, 1, 40, 6);
	submit(w, 2, 9, 8);
	submit(w, 1, 20, 5);
}

static void assert_three_turns(struct world *w)
{
	assert_int_equal(w->n_ended, 3);
	assert_text(w, &w->t[0], 6);
	assert_text(w, &w->t[1], 8);
	assert_text(w, &w->t[2], 5);
	assert_all_free(w);
}

static void the_executor_may_die_at_every_step(void **state)
{
	struct world w;

	(void)state;
	for (uint64_t n = 0; n < 25; n++) {
		three_turns(&w);
		run_steps(&w, n);
		computer_die(&w.computer);
		run_all(&w);
		assert_three_turns(&w);
		assert_int_equal(executor_generation(w.executor), 2);
		assert_int_equal(executor_state(w.executor), EXECUTOR_READY);
		close_world(&w);
	}
}

static void a_turn_in_flight_at_two_deaths_in_a_row_ends_at_fault(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	open_world(&w, 32, 2, 64);
	t = submit(&w, 1, 20, 50);
	run_steps(&w, 5);
	computer_die(&w.computer);
	run_steps(&w, 5);
	assert_int_equal(executor_deaths(w.executor), 1);
	computer_die(&w.computer);
	run_all(&w);
	assert_int_equal(w.n_ended, 1);
	assert_int_equal(t->rec->finish, FINISH_FAULT);
	assert_all_free(&w);
	close_world(&w);
}

static void a_completed_request_between_two_deaths_forgives_the_first(void **state)
{
	struct world w;

	(void)state;
	open_world(&w, 32, 2, 64);
	submit(&w, 1, 20, 60);
	run_steps(&w, 5);
	computer_die(&w.computer);
	run_steps(&w, 3);
	submit(&w, 2, 10, 3);
	run_steps(&w, 10);
	assert_int_equal(w.n_ended, 1);
	assert_int_equal(executor_deaths(w.executor), 0);
	computer_die(&w.computer);
	run_all(&w);
	assert_int_equal(w.n_ended, 2);
	assert_text(&w, &w.t[0], 60);
	close_world(&w);
}

/* All of the broker's objects go; memory, ring and socket stay, in the manager's store. */
static void restart_broker(struct world *w)
{
	struct ring ring;
	struct err err = { 0 };
	struct turn_record *rec;
	int control_fd, turns_fd_copy = dup(turns_fd(w->turns)), arena_fd = dup(kvpool_fd(w->kv));

	manager_read(&w->manager);
	w->sched = sched_free(w->sched);
	w->executor = executor_free(w->executor);
	w->turns = turns_free(w->turns);
	w->kv = kvpool_free(w->kv);
	memset(w->t, 0, sizeof(w->t));
	w->n_ended = 0;

	assert_int_equal(
		kvpool_adopt(arena_fd, w->n_pages, PAGE_TOKENS * 4, PAGE_TOKENS, &w->kv, &err), 0);
	assert_int_equal(turns_adopt(turns_fd_copy, &w->turns, &err), 0);
	new_executor(w);
	control_fd = manager_get(&w->manager, "exec-ctl");
	assert_true(control_fd >= 0);
	assert_int_equal(ring_map(manager_get(&w->manager, "ring"),
				  manager_get(&w->manager, "ring-down"),
				  manager_get(&w->manager, "ring-up"), &ring, &err),
			 0);
	assert_int_equal(executor_adopt(w->executor, control_fd, &ring, &err), 0);
	computer_ready(&w->computer);
	while (sd_event_run(w->loop, 0) > 0)
		;
	assert_int_equal(executor_state(w->executor), EXECUTOR_READY);
	new_sched(w);
	for (rec = turns_next(w->turns, NULL); rec; rec = turns_next(w->turns, rec)) {
		struct turn *t = &w->t[rec->sampler.seed];

		*t = (struct turn){ .rec = rec, .on_tokens = on_tokens, .on_end = on_end };
		if (rec->state == TURN_ENDED)
			w->n_ended++;
		else
			assert_int_equal(sched_adopt(w->sched, t, &err), 0);
	}
}

static void the_broker_may_die_at_every_step(void **state)
{
	struct world w;

	(void)state;
	for (uint64_t n = 1; n < 25; n++) {
		const uint64_t slot_opened = n;

		three_turns(&w);
		run_steps(&w, slot_opened);
		restart_broker(&w);
		run_all(&w);
		assert_three_turns(&w);
		assert_int_equal(executor_generation(w.executor), 1);
		close_world(&w);
	}
}

static void results_that_wait_while_no_broker_lives_are_applied(void **state)
{
	struct world w;

	(void)state;
	for (uint64_t n = 1; n < 25; n++) {
		three_turns(&w);
		run_steps(&w, n);
		/* both steps in flight end after the broker's last look at them */
		computer_step(&w.computer);
		computer_step(&w.computer);
		restart_broker(&w);
		run_all(&w);
		assert_three_turns(&w);
		close_world(&w);
	}
}

static void a_running_turn_is_not_fed_again_after_adoption(void **state)
{
	struct world w;

	(void)state;
	open_world(&w, 32, 2, 64);
	submit(&w, 1, 60, 20);
	run_steps(&w, 8);
	restart_broker(&w);
	run_steps(&w, 3);
	assert_false(w.t[0].replaying);
	assert_int_equal(w.computer.n_tokens, 1);
	run_all(&w);
	assert_text(&w, &w.t[0], 20);
	assert_int_equal(w.computer.n_steps, 20);
	assert_all_free(&w);
	close_world(&w);
}

static void a_deadline_ends_a_turn(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	clock_fake(1000000, 0);
	open_world(&w, 32, 2, 64);
	t = add(&w, 1, 20, 100);
	t->rec->deadline_us = 1500000;
	assert_int_equal(sched_submit(w.sched, t, NULL), 0);
	submit(&w, 1, 10, 8);
	run_steps(&w, 5);
	assert_int_equal(t->rec->finish, FINISH_NONE);
	clock_advance(499999);
	run_steps(&w, 1);
	assert_int_equal(t->rec->finish, FINISH_NONE);
	clock_advance(1);
	run_steps(&w, 1);
	assert_int_equal(t->rec->finish, FINISH_DEADLINE);
	assert_int_equal(t->rec->ended_us, 1500000);
	run_all(&w);
	assert_text(&w, &w.t[1], 8);
	assert_all_free(&w);
	close_world(&w);
	clock_real();
}

static void a_deadline_needs_no_other_event(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	open_world(&w, 32, 2, 64);
	run_steps(&w, 0);
	computer_die(&w.computer);
	close(w.computer.listen_fd);
	w.computer.listen_fd = -1; /* nobody computes any more */
	t = add(&w, 1, 20, 100);
	t->rec->deadline_us = clock_us() + 20000;
	assert_int_equal(sched_submit(w.sched, t, NULL), 0);
	while (w.n_ended == 0)
		assert_true(sd_event_run(w.loop, 5000000) >= 0);
	assert_int_equal(t->rec->finish, FINISH_DEADLINE);
	close_world(&w);
}

static void limits_are_refused_with_their_numbers(void **state)
{
	struct world w;
	struct err err = { 0 };

	(void)state;
	open_world(&w, 16, 2, 64);
	assert_int_equal(sched_submit(w.sched, add(&w, 1, 200, 100), &err), -ENOSPC);
	assert_string_equal(err.text, "300 tokens need 19 KV pages; there are 16");
	assert_int_equal(w.t[0].rec->state, TURN_OPEN);
	assert_int_equal(sched_submit(w.sched, add(&w, 1, 513, 1), &err), -ENOSPC);
	assert_string_equal(err.text, "the prompt has 513 tokens; the context has 512");

	w.settings.max_user_queued_tokens = 150;
	w.settings.max_queued_tokens = 250;
	submit(&w, 7, 100, 1);
	assert_int_equal(sched_submit(w.sched, add(&w, 7, 51, 1), &err), -EAGAIN);
	assert_string_equal(err.text, "user 7 has 100 tokens waiting; 51 more would exceed "
				      "MaxQueuedTokensPerUser=150");
	submit(&w, 8, 150, 1);
	assert_int_equal(sched_submit(w.sched, add(&w, 9, 1, 1), &err), -EAGAIN);
	assert_string_equal(err.text,
			    "250 tokens are waiting; 1 more would exceed MaxQueuedTokens=250");
	run_all(&w);
	assert_int_equal(w.n_ended, 2);
	close_world(&w);
}

static void a_text_is_scored(void **state)
{
	struct world w;
	struct turn *t;
	const uint32_t *ids;

	(void)state;
	open_world(&w, 32, 2, 16);
	t = add(&w, 1, 50, 0);
	t->rec->score = 1;
	t->rec->n_top = 3;
	assert_int_equal(sched_submit(w.sched, t, NULL), 0);
	submit(&w, 1, 10, 5);
	run_all(&w);
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
	assert_all_free(&w);
	close_world(&w);
}

static void one_token_is_scored_without_computing(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	open_world(&w, 32, 2, 16);
	t = add(&w, 1, 1, 0);
	t->rec->score = 1;
	assert_int_equal(sched_submit(w.sched, t, NULL), 0);
	run_all(&w);
	assert_int_equal(t->rec->finish, FINISH_SCORED);
	assert_int_equal(sched_steps(w.sched), 0);
	close_world(&w);
}

static void scores_survive_both_deaths(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	for (uint64_t n = 1; n < 5; n++) {
		open_world(&w, 32, 2, 16);
		t = add(&w, 1, 60, 0);
		t->rec->score = 1;
		t->rec->n_top = 2;
		assert_int_equal(sched_submit(w.sched, t, NULL), 0);
		run_steps(&w, n);
		restart_broker(&w);
		if (n % 2)
			computer_die(&w.computer);
		run_all(&w);
		assert_int_equal(w.t[0].rec->finish, FINISH_SCORED);
		for (uint32_t i = 1; i < 60; i++)
			assert_true(turn_logprobs(w.turns, w.t[0].rec)[i] <= -1.0f);
		assert_all_free(&w);
		close_world(&w);
	}
}

static void log_probabilities_stand_beside_the_tokens(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	open_world(&w, 32, 2, 16);
	t = add(&w, 1, 20, 10);
	t->rec->logprobs = 1;
	t->rec->n_top = 4;
	assert_int_equal(sched_submit(w.sched, t, NULL), 0);
	run_all(&w);
	assert_text(&w, t, 10);
	for (uint32_t i = 0; i < 10; i++) {
		const uint32_t id = turn_ids(w.turns, t->rec)[20 + i];

		assert_true(turn_logprobs(w.turns, t->rec)[i] == computer_logprob(id, id));
		assert_int_equal(turn_top_ids(w.turns, t->rec)[4 * i], id);
		assert_true(turn_top_logprobs(w.turns, t->rec)[4 * i + 3] == -2.0f);
	}
	close_world(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_turn_runs_to_its_length),
		cmocka_unit_test(a_stop_id_ends_and_is_kept),
		cmocka_unit_test(an_answer_ends_with_the_context),
		cmocka_unit_test(ten_turns_of_three_users_take_slots_in_turn),
		cmocka_unit_test(prompts_of_two_users_are_read_in_turn),
		cmocka_unit_test(a_long_prompt_does_not_hold_up_those_that_decode),
		cmocka_unit_test(a_paused_turn_holds_nobody_up),
		cmocka_unit_test(a_paused_turn_gives_its_slot_to_those_who_wait),
		cmocka_unit_test(a_turn_can_be_cancelled_after_every_step),
		cmocka_unit_test(a_callback_may_end_its_turn),
		cmocka_unit_test(when_pages_run_out_the_youngest_begins_again),
		cmocka_unit_test(the_executor_may_die_at_every_step),
		cmocka_unit_test(a_turn_in_flight_at_two_deaths_in_a_row_ends_at_fault),
		cmocka_unit_test(a_completed_request_between_two_deaths_forgives_the_first),
		cmocka_unit_test(the_broker_may_die_at_every_step),
		cmocka_unit_test(results_that_wait_while_no_broker_lives_are_applied),
		cmocka_unit_test(a_running_turn_is_not_fed_again_after_adoption),
		cmocka_unit_test(a_deadline_ends_a_turn),
		cmocka_unit_test(a_deadline_needs_no_other_event),
		cmocka_unit_test(limits_are_refused_with_their_numbers),
		cmocka_unit_test(a_text_is_scored),
		cmocka_unit_test(one_token_is_scored_without_computing),
		cmocka_unit_test(scores_survive_both_deaths),
		cmocka_unit_test(log_probabilities_stand_beside_the_tokens),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
