/* Users share the executor's time: real scheduler, scripted executor, virtual clock. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "client/wire/ownership.h"
#include "daemon/sched/fair.h"
#include "tests/unit/world.h"

#define FLOOD 1	 /* the user that asks for much */
#define SINGLE 2 /* and the one that asks for one thing */
#define WINDOW_US (10 * US_PER_S)
#define MOMENTS_MAX 200000

/* A 5 GB model with 64 experts on two cores, one with 128 on a server, a dense one on a card. */
static const struct computer_cost two_cores = { 25000, 130000, 0.125, 7000, 700, 300 };
static const struct computer_cost server = { 9000, 220000, 0.0625, 2500, 250, 100 };
static const struct computer_cost card = { 9000, 0, 0, 90, 8, 10 };

/* The accounts of two users after each step. */
static struct {
	struct moment {
		uint64_t at_us;
		double used_us[2];
	} at[MOMENTS_MAX];
	uint32_t n;
} book;

static double used_us(const struct world *w, uid_t uid)
{
	const struct fair_user *u = fair_find(sched_fair(w->sched), uid);

	return u ? u->used_us : 0;
}

static void open_world(struct world *w, const struct computer_cost *cost, uint32_t context)
{
	clock_fake(1000000, 0);
	book.n = 0;
	world_open_context(w, context, COMPUTER_PAGES_MAX, 32, 512);
	w->computer.cost = cost;
}

static void assert_accounts_sum_up(const struct world *w)
{
	const struct fair *f = sched_fair(w->sched);
	double sum = f->forgotten_us;

	for (uint32_t i = 0; i < f->n_users; i++)
		sum += f->users[i].used_us;
	assert_true(fabs(sum - f->measured_us) <= 1e-6 * f->measured_us);
}

static void close_world(struct world *w)
{
	assert_accounts_sum_up(w);
	world_close(w);
	clock_real();
}

/* Runs until @t has @n_ids tokens or more, or ended, and keeps book. */
static void run_until(struct world *w, const struct turn *t, uint32_t n_ids)
{
	while (t->rec->state != TURN_ENDED && t->rec->n_ids < n_ids) {
		world_run(w, 1);
		assert_true(book.n < MOMENTS_MAX);
		book.at[book.n++] = (struct moment){ clock_us(),
						     { used_us(w, FLOOD), used_us(w, SINGLE) } };
	}
}

/* The least and greatest part that SINGLE had of what both had, over any WINDOW_US of the book. */
static void shares(double *ret_least, double *ret_most)
{
	*ret_least = 1;
	*ret_most = 0;
	for (uint32_t from = 0, to = 0; to < book.n; to++) {
		const struct moment *a = &book.at[from], *b = &book.at[to];
		double flood, single;

		if (b->at_us - a->at_us < WINDOW_US)
			continue;
		flood = b->used_us[0] - a->used_us[0];
		single = b->used_us[1] - a->used_us[1];
		*ret_least = MIN(*ret_least, single / (flood + single));
		*ret_most = MAX(*ret_most, single / (flood + single));
		from++;
	}
	print_message("over any 10 s of %.0f, user %d had from %.1f to %.1f %% of the time\n",
		      (book.at[book.n - 1].at_us - book.at[0].at_us) / 1e6, SINGLE,
		      100 * *ret_least, 100 * *ret_most);
}

static void assert_shares(double least, double most)
{
	double had_least, had_most;

	shares(&had_least, &had_most);
	assert_true(had_least >= least && had_most <= most);
}

static void flood(struct world *w, uint32_t n, uint32_t n_prompt, uint32_t max_tokens)
{
	for (uint32_t i = 0; i < n; i++)
		world_submit(w, FLOOD, n_prompt + i % 32, max_tokens + i % 16);
}

static void flood_against_stream(const struct computer_cost *cost, uint32_t n_prompt,
				 uint32_t max_tokens)
{
	struct world w;
	struct turn *t;

	open_world(&w, cost, 2048);
	flood(&w, 200, n_prompt, max_tokens);
	world_run(&w, 100);
	t = world_submit(&w, SINGLE, 100, 1500);
	world_run(&w, 2); /* in flight when it came */
	run_until(&w, t, 1600);
	assert_true(w.n_ended < 200); /* both were busy all the time */
	assert_shares(0.45, 0.55);
	close_world(&w);
}

static void a_flood_of_200_requests_leaves_a_stream_its_share_on_two_cores(void **state)
{
	(void)state;
	flood_against_stream(&two_cores, 100, 200);
}

static void a_flood_of_200_requests_leaves_a_stream_its_share_on_a_server(void **state)
{
	(void)state;
	flood_against_stream(&server, 100, 200);
}

static void a_flood_of_200_requests_leaves_a_stream_its_share_on_a_card(void **state)
{
	(void)state;
	flood_against_stream(&card, 500, 500);
}

static void a_flood_of_prompts_leaves_a_stream_its_share(void **state)
{
	(void)state;
	flood_against_stream(&two_cores, 1000, 1);
}

static void two_floods_of_prompts_share_alike(void **state)
{
	struct world w;

	(void)state;
	open_world(&w, &two_cores, 2048);
	for (uint32_t i = 0; i < 40; i++) {
		world_submit(&w, FLOOD, 1000, 1);
		world_submit(&w, SINGLE, 400, 1);
	}
	world_run(&w, 2);
	run_until(&w, &w.t[79], 401);
	assert_shares(0.45, 0.55);
	close_world(&w);
}

/* What users ask. */
enum mix { ANSWERS, PROMPTS, BOTH, N_MIXES };

static uint64_t rng;

static uint32_t random_below(uint32_t n)
{
	uint64_t z = rng += 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return (uint32_t)((z ^ z >> 31) % n);
}

static struct turn *ask(struct world *w, uid_t uid, enum mix mix)
{
	const uint32_t part = w->context / 4;
	const bool long_prompt = mix == PROMPTS || (mix == BOTH && random_below(2));
	const bool long_answer = mix == ANSWERS || (mix == BOTH && random_below(2));

	return world_submit(w, uid, long_prompt ? part + random_below(part) : 20 + random_below(80),
			    long_answer ? part / 2 + random_below(part) : 1 + random_below(20));
}

/* Asks the next thing at once when it was answered. */
static struct {
	struct turn *turn;
	enum mix mix;
} stream;

static void ask_on(struct world *w, struct turn *t)
{
	if (t == stream.turn)
		stream.turn = ask(w, SINGLE, stream.mix);
}

static const struct set_up {
	const char *name;
	uint32_t max_batch, n_pages, context;
} set_ups[] = {
	{ "roomy", 32, COMPUTER_PAGES_MAX, 2048 },
	{ "MaxBatch=1", 1, COMPUTER_PAGES_MAX, 2048 },
	{ "MaxBatch=2", 2, COMPUTER_PAGES_MAX, 2048 },
	{ "MaxBatch=7", 7, COMPUTER_PAGES_MAX, 2048 },
	/* an arena of two contexts */
	{ "tight", 32, 256, 2048 },
	{ "tight, MaxBatch=1", 1, 256, 2048 },
	{ "tight and small", 16, 64, 512 },
};

/* FLOOD has asked for 200 things when SINGLE begins to ask, one after the other. */
static void run_set_up(const struct set_up *up, const struct computer_cost *cost, enum mix mix,
		       uint64_t seed)
{
	double least, most;
	struct world w;

	clock_fake(1000000, 0);
	book.n = 0;
	rng = seed;
	world_open_context(&w, up->context, up->n_pages, up->max_batch, 512);
	w.computer.cost = cost;
	w.ended = ask_on;
	for (uint32_t i = 0; i < 200; i++)
		ask(&w, FLOOD, mix);
	world_run(&w, 100);
	stream.mix = mix;
	stream.turn = ask(&w, SINGLE, mix);
	world_run(&w, 2); /* in flight when it came */
	for (const uint64_t from_us = clock_us(); clock_us() < from_us + 60 * US_PER_S;) {
		struct sched_counts n;

		sched_count(w.sched, FLOOD, &n);
		if (n.n_queued == 0)
			break; /* both were busy up to now */
		run_until(&w, stream.turn, stream.turn->rec->n_ids + 1);
		assert_true(w.computer.n_rows <= up->max_batch);
		assert_true(w.n_turns < WORLD_TURNS);
	}
	shares(&least, &most);
	if (least < 0.45 || most > 0.55)
		fail_msg("%s, mix %d, seed %llu: from %.1f to %.1f %%", up->name, mix,
			 (unsigned long long)seed, 100 * least, 100 * most);
	w.ended = NULL;
	close_world(&w);
}

/* The sanitizers take ten times as long. */
#ifdef __SANITIZE_ADDRESS__
#define SEEDS 1
#else
#define SEEDS 3
#endif

static void two_users_share_alike_in_every_set_up_whatever_they_ask(void **state)
{
	static const struct computer_cost *const costs[] = { &two_cores, &server, &card };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(set_ups); i++) {
		print_message("%s, seeds 1 to %d\n", set_ups[i].name, SEEDS);
		for (size_t k = 0; k < ARRAY_SIZE(costs); k++) {
			for (enum mix mix = 0; mix < N_MIXES; mix++) {
				for (uint64_t seed = 1; seed <= SEEDS; seed++)
					run_set_up(&set_ups[i], costs[k], mix, seed);
			}
		}
	}
}

static void weights_are_shares(void **state)
{
	struct world w;

	(void)state;
	open_world(&w, &two_cores, 2048);
	settings_set(&w.settings, "UserWeights=1:150 2:50", "test", NULL);
	flood(&w, 60, 100, 200);
	for (uint32_t i = 0; i < 60; i++)
		world_submit(&w, SINGLE, 100, 200);
	world_run(&w, 20);
	run_until(&w, &w.t[40], 300);
	assert_shares(0.20, 0.30);
	close_world(&w);
}

/* Short questions, long prompts, long answers, many at once and one: all for as long as it takes. */
static void five_users_share_by_weight_whatever_they_ask(void **state)
{
	static const struct {
		uint32_t n, n_prompt, max_tokens;
		double share;
	} users[] = {
		{ 60, 20, 60, 100 }, { 30, 1000, 1, 200 }, { 8, 100, 900, 300 },
		{ 1, 50, 1900, 50 }, { 60, 300, 40, 150 },
	};
	uint32_t n_tokens = 0, n_rows = 0, n_steps = 0;
	double used[5], sum = 0;
	struct world w;

	(void)state;
	open_world(&w, &two_cores, 2048);
	settings_set(&w.settings, "UserWeights=11:200 12:300 13:50 14:150", "test", NULL);
	for (uid_t i = 0; i < 5; i++) {
		for (uint32_t k = 0; k < users[i].n; k++)
			world_submit(&w, 10 + i, users[i].n_prompt + k, users[i].max_tokens);
	}
	while (clock_us() < 30 * US_PER_S)
		world_run(&w, 1);
	for (uid_t i = 0; i < 5; i++)
		used[i] = -used_us(&w, 10 + i);
	for (uint64_t from_us = clock_us(); clock_us() < from_us + 60 * US_PER_S;) {
		world_run(&w, 1);
		n_tokens += w.computer.n_tokens;
		n_rows += w.computer.n_rows;
		n_steps++;
	}
	print_message("%u tokens, %.1f rows a step\n", n_tokens, (double)n_rows / n_steps);
	for (uid_t i = 0; i < 5; i++) {
		struct sched_counts n;

		sched_count(w.sched, 10 + i, &n);
		assert_true(n.n_running > 0); /* it had work all the time */
		used[i] += used_us(&w, 10 + i);
		sum += used[i];
	}
	for (int i = 0; i < 5; i++) {
		print_message("weight %.0f: %.1f %% of the time\n", users[i].share,
			      100 * used[i] / sum);
		assert_true(fabs(used[i] / sum - users[i].share / 800) <= 0.02);
	}
	close_world(&w);
}

/* Time that was not used is not saved up, and time that was used is not held against anybody. */
static void who_comes_after_an_hour_neither_starves_nor_is_starved(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	open_world(&w, &two_cores, 32768);
	world_submit(&w, SINGLE, 20, 2);
	t = world_submit(&w, FLOOD, 20, 30000);
	while (clock_us() < 600 * US_PER_S)
		world_run(&w, 100);
	assert_true(used_us(&w, FLOOD) > 100 * used_us(&w, SINGLE));
	t = world_submit(&w, SINGLE, 20, 1000);
	world_run(&w, 2);
	run_until(&w, t, 1020);
	assert_shares(0.45, 0.55);
	close_world(&w);
}

static void a_prompt_of_100000_tokens_and_a_stream_share_alike(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	open_world(&w, &card, 131072);
	t = world_submit(&w, SINGLE, 20, 30000);
	world_run(&w, 40);
	world_submit(&w, FLOOD, 100000, 1);
	world_run(&w, 2);
	run_until(&w, &w.t[1], 100001);
	assert_int_equal(t->rec->state, TURN_RUNNING);
	assert_shares(0.45, 0.55);
	close_world(&w);
}

static void submit_batch(struct world *w, uid_t uid, uint32_t n_prompt, uint32_t max_tokens)
{
	struct turn *t = world_add(w, uid, n_prompt, max_tokens);

	t->rec->batch = 1;
	assert_int_equal(sched_submit(w->sched, t, NULL), 0);
}

static void a_question_comes_before_the_batch_of_its_own_user(void **state)
{
	struct world w;
	struct turn *t;
	uint64_t from_us;

	(void)state;
	open_world(&w, &two_cores, 2048);
	for (uint32_t i = 0; i < 100; i++)
		submit_batch(&w, FLOOD, 1000, 100);
	world_run(&w, 300);
	from_us = clock_us();
	t = world_submit(&w, FLOOD, 20, 50);
	run_until(&w, t, 21);
	/* the steps in flight when it came, and those in which the others decode */
	assert_true(clock_us() - from_us < 4 * US_PER_S);
	run_until(&w, t, 70);
	assert_true(w.n_ended < 100);
	close_world(&w);
}

static void a_question_takes_the_place_of_its_own_users_batch(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	open_world(&w, &two_cores, 2048);
	for (uint32_t i = 0; i < 40; i++)
		submit_batch(&w, FLOOD, 20 + i, 1500);
	world_run(&w, 300);
	t = world_submit(&w, FLOOD, 20, 3);
	world_run(&w, 6);
	assert_int_equal(w.n_ended, 1);
	assert_int_equal(t->rec->state, TURN_ENDED);
	close_world(&w);
}

static void one_slot_is_kept_for_a_user_that_comes(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	open_world(&w, &two_cores, 2048);
	flood(&w, 40, 20, 1000);
	world_run(&w, 100);
	t = world_submit(&w, SINGLE, 20, 10);
	world_run(&w, 1);
	assert_int_equal(t->rec->state, TURN_RUNNING); /* and nobody was put back for it */
	for (uint32_t i = 0; i < 40; i++)
		assert_false(w.t[i].replaying);
	close_world(&w);
}

/* Who has most of the places gives back what is more than its share, and not all at once. */
static void places_are_given_back_to_users_that_have_fewer(void **state)
{
	struct sched_counts n[2];
	uint32_t n_put_back = 0;
	bool replayed[40] = { false };
	uint64_t from_us;
	struct world w;

	(void)state;
	open_world(&w, &two_cores, 2048);
	settings_set(&w.settings, "UserWeights=2:300", "test", NULL);
	flood(&w, 40, 100, 1500);
	while (clock_us() < 40 * US_PER_S)
		world_run(&w, 1);
	for (uint32_t i = 0; i < 40; i++)
		world_submit(&w, SINGLE, 100, 1500);
	for (from_us = clock_us(); clock_us() < from_us + 100 * US_PER_S;) {
		world_run(&w, 1);
		for (int i = 0; i < 40; i++) {
			n_put_back += w.t[i].replaying && !replayed[i];
			replayed[i] = w.t[i].replaying;
		}
	}
	for (uid_t i = 0; i < 2; i++)
		sched_count(w.sched, FLOOD + i, &n[i]);
	print_message("%u of user 1 and %u of user 2 run, %u were put back\n", n[0].n_running,
		      n[1].n_running, n_put_back);
	assert_true(n[1].n_running >= 12 && n[1].n_running <= 23);
	assert_int_equal(n[0].n_running + n[1].n_running, 31); /* and one is kept */
	assert_int_equal(n_put_back, 31 - n[0].n_running);     /* each once */
	assert_int_equal(w.n_ended, 0);
	close_world(&w);
}

/* Where more users ask than have a place, one is put back for another that waits, at a bounded price. */
static void who_waits_takes_the_place_of_one_that_has_had_more(void **state)
{
	uint32_t n_put_back = 0, n_tokens = 0;
	bool replayed[SCHED_SLOTS_LEAST] = { false };
	struct world w;

	(void)state;
	clock_fake(1000000, 0);
	world_open_context(&w, 2048, 512, 1, 512);
	w.computer.cost = &two_cores;
	for (uint32_t i = 0; i < SCHED_SLOTS_LEAST; i++)
		world_submit(&w, 10 + i, 100, 400);
	world_submit(&w, 3, 100, 20);
	while (w.n_ended <= SCHED_SLOTS_LEAST) {
		world_run(&w, 1);
		assert_int_equal(w.computer.n_rows, 1);
		n_tokens += w.computer.n_tokens;
		for (int i = 0; i < SCHED_SLOTS_LEAST; i++) {
			n_put_back += w.t[i].replaying && !replayed[i];
			replayed[i] = w.t[i].replaying;
		}
	}
	print_message("put back %u times in %.0f s; of %u tokens computed, %u were new\n",
		      n_put_back, (double)clock_us() / 1e6, n_tokens,
		      SCHED_SLOTS_LEAST * 500 + 120);
	assert_int_equal(w.ended_order[0], SCHED_SLOTS_LEAST); /* it waited for none of them */
	assert_true(n_put_back >= 1);
	for (int i = 0; i < SCHED_SLOTS_LEAST; i++)
		world_assert_text(&w, &w.t[i], 400);
	close_world(&w);
}

static void the_user_with_the_most_pages_loses_them_first(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	clock_fake(1000000, 0);
	world_open_context(&w, 512, 64, 16, 512);
	w.computer.cost = &two_cores;
	flood(&w, 8, 60, 400); /* more than all pages */
	world_run(&w, 20);
	t = world_submit(&w, SINGLE, 60, 400);
	while (w.n_ended == 0) {
		world_run(&w, 1);
		assert_false(t->replaying);
	}
	assert_int_equal(w.ended_order[0], 8);
	world_run_all(&w);
	for (int i = 0; i < 9; i++)
		world_assert_text(&w, &w.t[i], w.t[i].rec->max_tokens);
	world_assert_all_free(&w);
	close_world(&w);
}

static uint32_t pages_of(const struct world *w, uid_t uid)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < w->n_turns; i++) {
		if (w->t[i].sched && w->t[i].rec->uid == uid)
			n += w->t[i].rec->n_pages;
	}
	return n;
}

static void a_user_has_no_more_pages_than_it_may(void **state)
{
	struct err err = { 0 };
	struct world w;
	uint32_t most = 0;

	(void)state;
	clock_fake(1000000, 0);
	world_open_context(&w, 512, 64, 16, 512);
	w.computer.cost = &two_cores;
	settings_set(&w.settings, "MaxCachePerUser=25", "test", NULL);
	assert_int_equal(sched_submit(w.sched, world_add(&w, FLOOD, 200, 57), &err), -ENOSPC);
	assert_string_equal(err.text, "257 tokens need 17 KV pages; user 1 may have 16 of 64 "
				      "(MaxCachePerUser=25)");
	world_submit(&w, FLOOD, 200, 56);
	for (int i = 0; i < 4; i++)
		world_submit(&w, FLOOD, 40, 60);
	world_submit(&w, SINGLE, 200, 50);
	while (w.n_ended < 6) {
		world_run(&w, 1);
		most = MAX(most, pages_of(&w, FLOOD));
		assert_false(w.t[6].replaying);
	}
	assert_true(most > 12 && most <= 16);
	for (int i = 1; i < 7; i++)
		world_assert_text(&w, &w.t[i], w.t[i].rec->max_tokens);
	world_assert_all_free(&w);
	close_world(&w);
}

/* Ten questions about one text: its pages count once. */
static void what_turns_share_counts_once(void **state)
{
	struct world w;
	uint32_t most = 0;

	(void)state;
	clock_fake(1000000, 0);
	world_open_context(&w, 512, 64, 16, 512);
	w.computer.cost = &two_cores;
	settings_set(&w.settings, "MaxCachePerUser=75", "test", NULL);
	for (int i = 0; i < 10; i++) {
		struct turn *t = world_add(&w, FLOOD, 400, 20);

		memcpy(turn_ids(w.turns, t->rec), turn_ids(w.turns, w.t[0].rec), 390 * 4);
		assert_int_equal(sched_submit(w.sched, t, NULL), 0);
	}
	while (w.n_ended < 10) {
		struct sched_counts n;

		world_run(&w, 1);
		sched_count(w.sched, FLOOD, &n);
		most = MAX(most, n.n_running);
	}
	/* 25 and 9 times two or three; a first time without the 25 */
	assert_true(most >= 8);
	for (int i = 0; i < 10; i++)
		world_assert_text(&w, &w.t[i], 20);
	world_assert_all_free(&w);
	close_world(&w);
}

/* User 2 has 4 times the pages that its weight gives it, and fewer than are its by right. */
static void nobody_takes_pages_that_are_a_users_by_right(void **state)
{
	struct world w;

	(void)state;
	clock_fake(1000000, 0);
	world_open_context(&w, 512, 64, 16, 512);
	w.computer.cost = &two_cores;
	settings_set(&w.settings, "UserWeights=2:1 1:10000", "test", NULL);
	settings_set(&w.settings, "MinCachePerUser=25", "test", NULL);
	world_submit(&w, SINGLE, 200, 50);
	world_run(&w, 4);
	flood(&w, 8, 60, 300);
	while (w.n_ended < 9) {
		world_run(&w, 1);
		assert_false(w.t[0].replaying);
	}
	for (int i = 0; i < 9; i++)
		world_assert_text(&w, &w.t[i], w.t[i].rec->max_tokens);
	close_world(&w);
}

static void shares_of_the_arena(void **state)
{
	(void)state;
	assert_int_equal(shares_of(1000, 0, 500, 10, 100).kept_pages, 100);
	assert_int_equal(shares_of(1000, 1, 500, 100, 100).kept_pages, 1000);
	assert_int_equal(shares_of(1000, 3, 500, 100, 100).kept_pages, 333);
	assert_int_equal(shares_of(1000, 20, 500, 10, 100).kept_pages, 50);
	assert_int_equal(shares_of(1000, 2, 500, 10, 100).min_pages, 100);
	assert_int_equal(shares_of(1000, 6, 500, 25, 100).kept_pages, 166);
	assert_int_equal(shares_of(1000, 6, 500, 25, 100).min_pages, 100); /* 5 leave 500 */
	assert_int_equal(shares_of(1000, 2, 1000, 25, 100).min_pages, 0);
	assert_int_equal(shares_of(1000, 1, 500, 10, 50).max_pages, 500);
	assert_int_equal(shares_of(10, 1, 5, 0, 1).max_pages, 1);
	assert_int_equal(shares_of(UINT32_MAX, 1, 0, 100, 100).max_pages, UINT32_MAX);
}

static void accounts_of_users_long_gone_make_room(void **state)
{
	const struct pace pace = { 0 };
	struct fair *f = calloc(1, sizeof(*f));
	struct fair_row row = { .n_tokens = 1 };

	(void)state;
	for (uid_t uid = 0; uid < 3 * FAIR_USERS_MAX; uid++) {
		row.user = fair_enter(f, uid, "");
		fair_charge(f, &pace, &row, 1, 1000);
		fair_leave(row.user);
	}
	assert_int_equal(f->n_users, FAIR_USERS_MAX);
	assert_non_null(fair_find(f, 3 * FAIR_USERS_MAX - 1));
	assert_int_equal(f->measured_us, 3 * FAIR_USERS_MAX * 1000);
	assert_int_equal(f->forgotten_us, 2 * FAIR_USERS_MAX * 1000);
	free(f);
}

static void what_is_owed_is_owed_for_a_minute(void **state)
{
	const struct pace pace = { 0 };
	struct fair *f = calloc(1, sizeof(*f));
	struct fair_user *a = fair_enter(f, 1, ""), *b = fair_enter(f, 2, "2:50");
	const struct fair_row row = { .user = a, .n_tokens = 1 };

	(void)state;
	for (int i = 0; i < 100; i++) {
		fair_look(f);
		fair_competes(a);
		fair_competes(b);
		fair_looked(f);
		fair_charge(f, &pace, &row, 1, 10000000);
	}
	/* 1000 s were used; it has half the weight, and its time is worth twice as much */
	assert_int_equal(lround(a->vt - b->vt), 120000000 + 10000000);
	fair_look(f);
	fair_competes(a);
	fair_looked(f); /* does not wait any more */
	fair_look(f);
	fair_competes(a);
	fair_competes(b);
	fair_looked(f);
	assert_int_equal(lround(a->vt - b->vt), 0);
	free(f);
}

static void a_share_is_tokens_and_their_context(void **state)
{
	/* a token of a prompt takes 100 us and 50 more for every 4096 before it */
	const struct pace pace = {
		.step_us = 900, .rows_us = 800, .token_us = 100, .context_us = 50
	};
	struct fair *f = calloc(1, sizeof(*f));
	struct fair_user *a = fair_enter(f, 1, "2:200"), *b = fair_enter(f, 2, "2:200");
	const struct fair_row rows[] = {
		{ .user = a, .decodes = true, .n_tokens = 1, .at = 0 },	   /* 2 of 5 of 1100 */
		{ .user = b, .decodes = true, .n_tokens = 1, .at = 4096 }, /* 3 of 5 */
		{ .user = b, .n_tokens = 10, .at = 8192 },		   /* 10 * 200 */
	};

	(void)state;
	fair_charge(f, &pace, rows, 3, 6200); /* twice the 440 + 660 + 2000 that were expected */
	assert_int_equal(lround(a->used_us), 880);
	assert_int_equal(lround(b->used_us), 5320);
	assert_int_equal(lround(a->vt), 880);
	assert_int_equal(lround(b->vt), 2660);
	assert_true(fair_before(a, b));
	assert_int_equal(lround(fair_lead_us(b, a)), 3560); /* (2660 - 880) * 200 / 100 */
	free(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_flood_of_200_requests_leaves_a_stream_its_share_on_two_cores),
		cmocka_unit_test(a_flood_of_200_requests_leaves_a_stream_its_share_on_a_server),
		cmocka_unit_test(a_flood_of_200_requests_leaves_a_stream_its_share_on_a_card),
		cmocka_unit_test(a_flood_of_prompts_leaves_a_stream_its_share),
		cmocka_unit_test(two_floods_of_prompts_share_alike),
		cmocka_unit_test(two_users_share_alike_in_every_set_up_whatever_they_ask),
		cmocka_unit_test(weights_are_shares),
		cmocka_unit_test(five_users_share_by_weight_whatever_they_ask),
		cmocka_unit_test(who_comes_after_an_hour_neither_starves_nor_is_starved),
		cmocka_unit_test(a_prompt_of_100000_tokens_and_a_stream_share_alike),
		cmocka_unit_test(a_question_comes_before_the_batch_of_its_own_user),
		cmocka_unit_test(a_question_takes_the_place_of_its_own_users_batch),
		cmocka_unit_test(one_slot_is_kept_for_a_user_that_comes),
		cmocka_unit_test(places_are_given_back_to_users_that_have_fewer),
		cmocka_unit_test(who_waits_takes_the_place_of_one_that_has_had_more),
		cmocka_unit_test(the_user_with_the_most_pages_loses_them_first),
		cmocka_unit_test(a_user_has_no_more_pages_than_it_may),
		cmocka_unit_test(what_turns_share_counts_once),
		cmocka_unit_test(nobody_takes_pages_that_are_a_users_by_right),
		cmocka_unit_test(shares_of_the_arena),
		cmocka_unit_test(accounts_of_users_long_gone_make_room),
		cmocka_unit_test(what_is_owed_is_owed_for_a_minute),
		cmocka_unit_test(a_share_is_tokens_and_their_context),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
