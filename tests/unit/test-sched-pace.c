/* The scheduler: how steady answers are while a long prompt comes in, by a virtual clock. */
#include <stdlib.h>

#include "client/wire/ownership.h"
#include "daemon/sched/pace.h"
#include "tests/unit/world.h"

#define PROMPT 16384
#define STREAMS 4
#define GAPS_MAX 65536
#define QUIET_STEPS 300

/* Of a 5 GB model with 64 experts on two cores, of one with 128 on a server, and of a dense one on a card. */
static const struct computer_cost two_cores = { 25000, 130000, 0.125, 7000, 700, 300 };
static const struct computer_cost server = { 9000, 220000, 0.0625, 2500, 250, 100 };
static const struct computer_cost card = { 9000, 0, 0, 90, 8, 10 };
static const struct computer_cost slow = { 250000, 1300000, 0.125, 70000, 7000, 3000 };

/* All gaps between tokens of the first STREAMS turns. */
static struct {
	uint64_t last_us[STREAMS];
	uint32_t gaps_us[GAPS_MAX], n;
} heard;

static void listen_to(struct world *w, struct turn *t)
{
	const long i = t - w->t;

	if (i >= STREAMS)
		return;
	if (heard.last_us[i] > 0 && heard.n < GAPS_MAX)
		heard.gaps_us[heard.n++] = (uint32_t)(clock_us() - heard.last_us[i]);
	heard.last_us[i] = clock_us();
}

static int by_size(const void *a, const void *b)
{
	const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static uint32_t p99_us(void)
{
	assert_true(heard.n >= 100 && heard.n < GAPS_MAX);
	qsort(heard.gaps_us, heard.n, sizeof(*heard.gaps_us), by_size);
	return heard.gaps_us[heard.n * 99 / 100];
}

/* What a piece of @n tokens at the prompt's end takes by itself, experts not shared with anybody. */
static double piece_us(const struct computer_cost *c, uint32_t n)
{
	return c->experts_us * (1 - pow(1 - c->experts_part, n)) +
	       n * (c->token_us + c->context_us * PROMPT / 1000);
}

struct outcome {
	uint32_t quiet_us, disturbed_us; /* p99 gaps */
	double used;			 /* of the time that the prompt may take, what it took */
};

static void open_world(struct world *w, const struct computer_cost *cost, uint32_t gap_ms)
{
	clock_fake(1000000, 0);
	memset(&heard, 0, sizeof(heard));
	world_open_context(w, 32768, 4096, 8, 512);
	w->computer.cost = cost;
	w->heard = listen_to;
	w->settings.token_gap_ms = gap_ms;
}

static void close_world(struct world *w)
{
	world_close(w);
	clock_real();
}

static void begin_streams(struct world *w)
{
	for (uint32_t i = 0; i < STREAMS; i++)
		world_submit(w, 1, 20, 15000);
	while (w->t[STREAMS - 1].rec->n_ids == 20)
		world_run(w, 1);
	world_run(w, 2); /* those in flight */
}

static double allowed_us(const struct outcome *o, const struct computer_cost *cost, uint32_t gap_ms)
{
	const double least = o->quiet_us + piece_us(cost, PACE_TOKENS_LEAST);

	return MAX(MAX(2.0 * o->quiet_us, 1000.0 * gap_ms), least);
}

static struct outcome measure(const struct computer_cost *cost, uint32_t gap_ms)
{
	struct world w;
	struct outcome o;
	struct turn *t;
	double us;

	open_world(&w, cost, gap_ms);
	begin_streams(&w);
	heard.n = 0;
	world_run(&w, QUIET_STEPS);
	o.quiet_us = p99_us();
	heard.n = 0;
	t = world_submit(&w, 1, PROMPT, 1); /* all of one user: shares are not at issue here */
	us = -(double)clock_us();
	while (t->rec->n_ids == PROMPT)
		world_run(&w, 1);
	us += (double)clock_us();
	o.disturbed_us = p99_us();
	o.used = us / (heard.n / STREAMS) / allowed_us(&o, cost, gap_ms);
	print_message("TokenGap=%u: p99 gap %u us, with a prompt %u us, %.2f of the time used, "
		      "prompt read in %.1f s\n",
		      gap_ms, o.quiet_us, o.disturbed_us, o.used, us / 1e6);
	close_world(&w);
	return o;
}

/* The prompt of 16384 tokens comes to four streams. */
static void assert_steady(const struct computer_cost *cost)
{
	static const uint32_t gaps_ms[] = { 1, 200, 1000 };

	for (size_t i = 0; i < ARRAY_SIZE(gaps_ms); i++) {
		const struct outcome o = measure(cost, gaps_ms[i]);

		assert_true(o.disturbed_us <= 1.05 * allowed_us(&o, cost, gaps_ms[i]));
		/* whole pieces of BatchTokens may be all that a fast machine has time for */
		assert_true(o.used >= 0.7 || o.disturbed_us <= o.quiet_us + piece_us(cost, 512));
	}
}

static void answers_stay_steady_on_two_cores(void **state)
{
	(void)state;
	assert_steady(&two_cores);
}

static void answers_stay_steady_on_a_server(void **state)
{
	(void)state;
	assert_steady(&server);
}

static void answers_stay_steady_on_a_card(void **state)
{
	(void)state;
	assert_steady(&card);
}

static void answers_stay_steady_where_a_token_takes_a_second(void **state)
{
	(void)state;
	assert_steady(&slow);
}

static void a_prompt_alone_is_read_in_whole_steps(void **state)
{
	struct world w;

	(void)state;
	open_world(&w, &server, 200);
	world_submit(&w, 1, PROMPT, 1);
	world_run_all(&w);
	assert_int_equal(w.n_ended, 1);
	assert_int_equal(sched_steps(w.sched), PROMPT / 512);
	close_world(&w);
}

/* Nothing is known yet of what a small piece costs when the first of them decodes. */
static void answers_that_begin_beside_a_prompt_are_steady_from_the_start(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	open_world(&w, &server, 200);
	for (uint32_t i = 0; i < STREAMS; i++)
		world_add(&w, 1, 20, 200);
	t = world_submit(&w, 1, PROMPT, 1);
	world_run(&w, 10);
	for (uint32_t i = 0; i < STREAMS; i++)
		assert_int_equal(sched_submit(w.sched, &w.t[i], NULL), 0);
	while (w.n_ended < STREAMS)
		world_run(&w, 1);
	assert_int_equal(t->rec->n_ids, PROMPT);
	assert_true(p99_us() <= 1.1 * 200000); /* the prices are learnt meanwhile */
	/* and once they have ended, the rest is read in whole steps again */
	world_run(&w, 4);
	assert_int_equal(w.computer.n_tokens, 512);
	close_world(&w);
}

/* What decoding takes grows fourfold while there is no step without a prompt. */
static void a_prompt_keeps_its_share_when_more_begin_to_decode(void **state)
{
	static const struct computer_cost rows = { .step_us = 9000,
						   .token_us = 1000,
						   .row_us = 9000 };
	const uint32_t quiet_us = 9000 + 6 * (9000 + 1000);
	struct world w;
	struct turn *t;
	uint32_t n_fed;

	(void)state;
	open_world(&w, &rows, 1);
	world_submit(&w, 1, 20, 3000);
	world_run(&w, 40);
	t = world_submit(&w, 1, PROMPT, 1);
	t->rec->batch = 1; /* those that come later begin all the same */
	world_run(&w, 40);
	for (uint32_t i = 0; i < 5; i++)
		world_submit(&w, 1, 1, 3000);
	world_run(&w, 4 * PACE_LOOK_STEPS);
	heard.n = 0;
	n_fed = t->n_fed;
	world_run(&w, 40);
	assert_true((t->n_fed - n_fed) / 40 >= 0.8 * (quiet_us - rows.row_us) / rows.token_us);
	assert_true(p99_us() <= 1.05 * 2 * quiet_us + rows.row_us);
	close_world(&w);
}

/* The clock goes on while the machine sleeps. */
static void a_step_that_took_an_hour_is_soon_forgotten(void **state)
{
	const struct pace_load alone = { .n_decoding = 4 };
	const struct pace_load mixed = { .n_decoding = 4, .n_tokens = 100 };
	struct pace p = { 0 };
	struct pace_budget b;

	(void)state;
	for (int i = 0; i < 10; i++) {
		pace_learn(&p, &alone, 50000);
		pace_learn(&p, &mixed, 150000);
	}
	b = pace_budget(&p, 4, 150000);
	assert_in_range(pace_take(&b, 0, 1000), 99, 101);
	pace_learn(&p, &mixed, 3600000000u);
	pace_learn(&p, &alone, 3600000000u);
	for (int i = 0; i < 10; i++) {
		pace_learn(&p, &alone, 50000);
		pace_learn(&p, &mixed, 150000);
	}
	b = pace_budget(&p, 4, 150000);
	assert_in_range(pace_take(&b, 0, 1000), 90, 110);
}

/* Steps of one row and of 31 by turns: what each takes is known, and not the mean of both. */
static void a_few_rows_and_many_have_prices_of_their_own(void **state)
{
	struct pace p = { 0 };

	(void)state;
	for (int i = 0; i < 20; i++) {
		pace_learn(&p, &(struct pace_load){ .n_decoding = 1 }, 41000);
		pace_learn(&p, &(struct pace_load){ .n_decoding = 31 }, 370000);
	}
	assert_in_range(pace_decode_us(&p, 1), 40000, 42000);
	assert_in_range(pace_decode_us(&p, 31), 366000, 374000);
	assert_in_range(pace_decode_us(&p, 16), 150000, 250000);
	assert_int_equal(pace_decode_us(&p, 0), 0);
}

/* Prompts that were found but for their last token, between those that were not. */
static void a_lone_token_does_not_make_prompts_dear(void **state)
{
	struct pace p = { 0 };

	(void)state;
	assert_true(pace_prompt_us(&p, 0, 100) == 0);
	pace_learn(&p, &(struct pace_load){ .n_tokens = 1 }, 40000);
	for (int i = 0; i < 2; i++)
		pace_learn(&p, &(struct pace_load){ .n_tokens = 500 }, 500000);
	for (int i = 0; i < 20; i++)
		pace_learn(&p, &(struct pace_load){ .n_tokens = 1 }, 40000);
	assert_in_range(pace_prompt_us(&p, 0, 1000), 1000000, 1300000);
	for (int i = 0; i < 5; i++)
		pace_learn(&p, &(struct pace_load){ .n_tokens = 500 }, 250000);
	assert_in_range(pace_prompt_us(&p, 0, 1000), 500000, 550000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(answers_stay_steady_on_two_cores),
		cmocka_unit_test(answers_stay_steady_on_a_server),
		cmocka_unit_test(answers_stay_steady_on_a_card),
		cmocka_unit_test(answers_stay_steady_where_a_token_takes_a_second),
		cmocka_unit_test(a_prompt_alone_is_read_in_whole_steps),
		cmocka_unit_test(answers_that_begin_beside_a_prompt_are_steady_from_the_start),
		cmocka_unit_test(a_prompt_keeps_its_share_when_more_begin_to_decode),
		cmocka_unit_test(a_step_that_took_an_hour_is_soon_forgotten),
		cmocka_unit_test(a_few_rows_and_many_have_prices_of_their_own),
		cmocka_unit_test(a_lone_token_does_not_make_prompts_dear),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
