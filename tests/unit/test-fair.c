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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_flood_of_200_requests_leaves_a_stream_its_share_on_two_cores),
		cmocka_unit_test(a_flood_of_200_requests_leaves_a_stream_its_share_on_a_server),
		cmocka_unit_test(a_flood_of_200_requests_leaves_a_stream_its_share_on_a_card),
		cmocka_unit_test(a_flood_of_prompts_leaves_a_stream_its_share),
		cmocka_unit_test(two_floods_of_prompts_share_alike),
		cmocka_unit_test(weights_are_shares),
		cmocka_unit_test(who_comes_after_an_hour_neither_starves_nor_is_starved),
		cmocka_unit_test(a_prompt_of_100000_tokens_and_a_stream_share_alike),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
