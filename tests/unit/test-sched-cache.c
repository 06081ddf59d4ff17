/* What earlier turns computed is found by later ones of the same namespace, and by nobody else. */
#include "daemon/kv/kvcache-parts.h"
#include "daemon/sched/queue.h"
#include "tests/unit/world.h"

/* A turn whose prompt begins with the first @n_same tokens of @of, and goes on in its own way. */
static struct turn *follow(struct world *w, uint32_t uid, const struct turn *of, uint32_t n_same,
			   uint32_t n_prompt, uint32_t max_tokens)
{
	struct turn *t = world_add(w, uid, n_prompt, max_tokens);

	memcpy(turn_ids(w->turns, t->rec), turn_ids(w->turns, of->rec), n_same * 4);
	assert_int_equal(sched_submit(w->sched, t, NULL), 0);
	return t;
}

static void a_repeated_prompt_is_computed_but_for_its_last_token(void **state)
{
	struct world w;
	struct turn *a, *b;
	uint64_t n_computed;

	(void)state;
	world_open(&w, 64, 4, 64);
	a = world_submit(&w, 1, 100, 1);
	world_run_all(&w);
	assert_int_equal(a->rec->n_cached, 0);
	n_computed = w.computer.n_computed;
	b = follow(&w, 1, a, 100, 100, 5);
	world_run_all(&w);
	assert_int_equal(b->rec->n_cached, 99);
	assert_int_equal(w.computer.n_computed - n_computed, 1 + 4);
	world_assert_text(&w, b, 5);
	world_assert_all_free(&w);
	world_close(&w);
}

static struct turn *next_turn;

static void ask_again(struct world *w, struct turn *t)
{
	(void)t;
	if (!next_turn)
		next_turn = follow(w, 1, &w->t[0], 100, 100, 5);
}

/* The answer is there before its pages are sealed; who asks at once waits for that. */
static void a_prompt_repeated_at_once_is_found_too(void **state)
{
	struct world w;

	(void)state;
	next_turn = NULL;
	world_open(&w, 64, 4, 64);
	world_submit(&w, 1, 100, 1);
	w.heard = ask_again;
	world_run_all(&w);
	assert_int_equal(next_turn->rec->n_cached, 99);
	world_assert_text(&w, next_turn, 5);
	world_assert_all_free(&w);
	world_close(&w);
}

static void the_next_turn_of_a_conversation_computes_what_is_new(void **state)
{
	struct world w;
	struct turn *a, *b;
	uint64_t n_computed;

	(void)state;
	world_open(&w, 64, 4, 64);
	a = world_submit(&w, 1, 53, 20);
	world_run_all(&w);
	n_computed = w.computer.n_computed;
	b = follow(&w, 1, a, 73, 90, 3);
	world_run_all(&w);
	/* the last sampled token was never fed */
	assert_int_equal(b->rec->n_cached, 72);
	assert_int_equal(w.computer.n_computed - n_computed, 18 + 2);
	world_assert_text(&w, b, 3);
	world_assert_all_free(&w);
	world_close(&w);
}

static void another_uid_and_another_label_find_nothing(void **state)
{
	struct world w;
	struct turn *a, *b, *c;

	(void)state;
	world_open(&w, 64, 4, 64);
	a = world_submit(&w, 1, 100, 1);
	world_run_all(&w);
	b = follow(&w, 2, a, 100, 100, 5);
	world_run_all(&w);
	assert_int_equal(b->rec->n_cached, 0);
	c = world_add(&w, 1, 100, 5);
	memcpy(turn_ids(w.turns, c->rec), turn_ids(w.turns, a->rec), 400);
	strcpy(c->rec->label, "app");
	assert_int_equal(sched_submit(w.sched, c, NULL), 0);
	world_run_all(&w);
	assert_int_equal(c->rec->n_cached, 0);
	world_assert_text(&w, b, 5);
	world_assert_text(&w, c, 5);
	world_assert_all_free(&w);
	world_close(&w);
}

static void fork_ten_at_once(uint32_t n_prompt, uint32_t batch_tokens)
{
	const uint32_t n_pages = n_prompt / WORLD_PAGE_TOKENS;
	struct world w;
	struct kvcache_counts n;
	uint64_t n_new;

	world_open_context(&w, n_prompt + 64, n_pages + 108, 12, batch_tokens);
	world_submit(&w, 1, n_prompt, 40);
	for (int i = 1; i < 10; i++)
		follow(&w, 1, &w.t[0], n_prompt, n_prompt, 40);
	world_run(&w, n_prompt / batch_tokens + 15);
	kvcache_count(w.cache, &n);
	for (int i = 0; i < 10; i++)
		assert_int_equal(w.t[i].rec->state, TURN_RUNNING); /* all of them at once */
	/* the prompt's pages once, and for each fork at most three of its own */
	assert_in_range(n.n_held, n_pages, n_pages + 10 * 3);
	world_run_all(&w);
	for (int i = 0; i < 10; i++)
		world_assert_text(&w, &w.t[i], 40);
	n_new = w.computer.n_computed - n_prompt - 10 * 39;
	assert_true(n_new <= 9 * 16); /* what a page could not share */
	world_assert_all_free(&w);
	world_close(&w);
}

static void ten_forks_at_once_compute_and_hold_one_prompt(void **state)
{
	(void)state;
	fork_ten_at_once(320, 64);
}

static void ten_forks_of_8_k_tokens_compute_and_hold_them_once(void **state)
{
	(void)state;
	fork_ten_at_once(8192, 512);
}

static void a_divergence_inside_a_page_copies_its_beginning(void **state)
{
	struct world w;
	struct turn *a, *b;

	(void)state;
	world_open(&w, 64, 4, 64);
	a = world_submit(&w, 1, 100, 20);
	world_run_all(&w);
	for (uint32_t n = 1; n < 100; n += 13) {
		w.n_turns = 1;
		b = follow(&w, 1, a, n, 110, 4);
		world_run_all(&w);
		assert_int_equal(b->rec->n_cached, n);
		world_assert_text(&w, b, 4);
		sched_release(b);
		w.n_ended = 1;
	}
	world_assert_all_free(&w);
	world_close(&w);
}

static void pages_are_given_up_when_others_need_them(void **state)
{
	struct world w;
	struct kvcache_counts n;

	(void)state;
	world_open(&w, 16, 4, 64);
	for (uint32_t i = 0; i < 8; i++) {
		world_submit(&w, 1, 100, 10);
		world_run_all(&w);
		world_assert_text(&w, &w.t[i], 10);
	}
	kvcache_count(w.cache, &n);
	assert_true(n.n_evicted > 0);
	assert_int_equal(n.n_held, 0);
	world_assert_all_free(&w);
	world_close(&w);
}

static void what_is_anothers_by_right_is_left_to_it(void **state)
{
	struct world w;
	struct turn *a, *b;

	(void)state;
	world_open(&w, 40, 4, 64);
	w.settings.min_user_cache = 25;
	a = world_submit(&w, 1, 150, 5);
	world_run_all(&w);
	/* two turns of another at a time, so that neither is alone */
	for (uint32_t i = 0; i < 8; i += 2) {
		world_submit(&w, 2, 200, 5);
		world_submit(&w, 2, 200, 5);
		world_run_all(&w);
		w.n_turns = 1;
		sched_release(&w.t[1]);
		sched_release(&w.t[2]);
	}
	b = follow(&w, 1, a, 150, 160, 3);
	world_run_all(&w);
	assert_int_equal(b->rec->n_cached, 150);
	world_assert_text(&w, b, 3);
	world_assert_all_free(&w);
	world_close(&w);
}

static uint32_t pages_of(const struct world *w, uid_t uid)
{
	const struct owner *owner = evict_owner(w->cache, uid);

	return owner ? owner->n_pages : 0;
}

/*
 * Three users have 13, 13 and 9 of 48 pages, and each is left 12 where there is
 * another way. A context takes 32: the rest is 8 for each of the two others. Who
 * asks for a whole one loses what it has itself, though that is less.
 */
static void nobody_is_left_less_than_its_minimum(void **state)
{
	struct kv_shares shares;
	struct world w;

	(void)state;
	world_open(&w, 48, 4, 512);
	w.settings.min_user_cache = 25;
	world_submit(&w, 1, 200, 5);
	world_run_all(&w);
	world_submit(&w, 3, 200, 5);
	world_run_all(&w);
	world_submit(&w, 2, 135, 5);
	world_run_all(&w);
	assert_int_equal(pages_of(&w, 1), 13);
	assert_int_equal(pages_of(&w, 3), 13);
	assert_int_equal(pages_of(&w, 2), 9);
	shares = sched_user_shares(w.sched, 1);
	assert_int_equal(shares.kept_pages, 12);
	assert_int_equal(shares.min_pages, 16 / 3); /* a fourth may come */

	world_submit(&w, 2, 480, 32);
	while (w.n_ended < 4) {
		world_run(&w, 1);
		assert_true(pages_of(&w, 1) >= 8 && pages_of(&w, 3) >= 8);
	}
	assert_int_equal(pages_of(&w, 1), 8);
	world_assert_text(&w, &w.t[3], 32);
	world_assert_all_free(&w);
	world_close(&w);
}

/* The arena is one context, and nobody waits for ever: neither who wants all of it, nor who wants little. */
static void a_whole_context_and_a_flood_both_come_to_their_end(void **state)
{
	struct world w;

	(void)state;
	for (uint32_t least = 0; least <= 50; least += 50) {
		world_open(&w, 32, 4, 64);
		w.settings.min_user_cache = least;
		for (uint32_t i = 0; i < 30; i++)
			world_submit(&w, 1 + i % 3, 60, 60);
		world_run(&w, 20);
		world_submit(&w, 9, 480, 32);
		world_run_all(&w);
		assert_int_equal(w.n_ended, 31);
		for (uint32_t i = 0; i < 31; i++)
			world_assert_text(&w, &w.t[i], w.t[i].rec->max_tokens);
		world_assert_all_free(&w);
		world_close(&w);
	}
}

static void a_request_that_could_not_be_computed_else_takes_it(void **state)
{
	struct world w;

	(void)state;
	world_open(&w, 16, 4, 64);
	w.settings.min_user_cache = 50;
	world_submit(&w, 1, 120, 5);
	world_run_all(&w);
	world_submit(&w, 2, 200, 50);
	world_run_all(&w);
	assert_int_equal(w.n_ended, 2);
	world_assert_text(&w, &w.t[1], 50);
	world_assert_all_free(&w);
	world_close(&w);
}

/* The lone turn that wants every page must not be kept from them by what it found. */
static void a_turn_may_need_all_pages_and_share_some(void **state)
{
	struct world w;
	struct turn *a, *b;

	(void)state;
	world_open(&w, 8, 4, 64);
	a = world_submit(&w, 1, 60, 10);
	world_run_all(&w);
	b = follow(&w, 1, a, 69, 100, 28);
	world_run_all(&w);
	assert_int_equal(b->rec->n_cached, 69);
	world_assert_text(&w, b, 28);
	world_assert_all_free(&w);
	world_close(&w);
}

static void a_page_of_another_uid_is_cleared_before_it_is_used(void **state)
{
	struct world w;
	struct kvcache_counts n;

	(void)state;
	world_open(&w, 8, 4, 64);
	world_submit(&w, 1, 100, 10);
	world_run_all(&w);
	kvcache_count(w.cache, &n);
	assert_int_equal(n.n_cleared, 0);
	world_submit(&w, 2, 17, 1);
	world_run_all(&w);
	kvcache_count(w.cache, &n);
	assert_true(n.n_cleared >= 1);
	/* of the second page it wrote one position; the rest is nobody's */
	for (kv_page page = 0; page < 8; page++) {
		const uint32_t *at = w.computer.kv + page * WORLD_PAGE_TOKENS;

		if (computer_token(at[0]) == turn_ids(w.turns, w.t[1].rec)[16])
			for (uint32_t i = 1; i < WORLD_PAGE_TOKENS; i++)
				assert_int_equal(at[i], 0);
	}
	world_assert_all_free(&w);
	world_close(&w);
}

/*
 * The broker dies when a turn's record names pages that were another's and the
 * order to clear them is not given yet: the next one gives it.
 */
static void a_page_granted_by_a_broker_that_died_is_cleared_too(void **state)
{
	uint32_t n_granted = 0;

	(void)state;
	for (uint64_t n_steps = 1; n_steps < 20; n_steps++) {
		struct world w;
		struct turn *t;
		kv_page page;
		uint32_t n_pages;

		world_open(&w, 8, 4, 64);
		world_submit(&w, 1, 100, 10); /* leaves its bytes in seven of the eight */
		world_run_all(&w);
		t = world_submit(&w, 2, 20, 30);
		world_run(&w, n_steps);
		n_pages = t->rec->n_pages;
		assert_true(sched_grow(t, (uint64_t)n_pages * WORLD_PAGE_TOKENS + 1));
		page = turn_page_table(w.turns, t->rec)[n_pages];
		n_granted += w.computer.kv[page * WORLD_PAGE_TOKENS] != 0;
		world_restart_broker(&w);
		world_run(&w, 4); /* two of them are the dead broker's */
		/* nothing is in it but what its new owner put there */
		for (uint32_t i = 0; i < WORLD_PAGE_TOKENS; i++) {
			const uint32_t at = n_pages * WORLD_PAGE_TOKENS + i;
			const uint32_t entry = w.computer.kv[page * WORLD_PAGE_TOKENS + i];

			if (entry != 0 && at >= w.t[1].rec->n_ids)
				fail_msg("after %d steps token %u of another is at %u",
					 (int)n_steps, computer_token(entry), at);
		}
		world_run_all(&w);
		world_assert_text(&w, &w.t[1], 30);
		world_assert_all_free(&w);
		world_close(&w);
	}
	assert_true(n_granted >= 5);
}

static void a_restarted_broker_finds_what_the_last_one_left(void **state)
{
	struct world w;
	struct turn *a, *b;
	uint32_t ids[120];

	(void)state;
	world_open(&w, 64, 4, 64);
	a = world_submit(&w, 1, 100, 20);
	world_run_all(&w);
	memcpy(ids, turn_ids(w.turns, a->rec), sizeof(ids));
	world_restart_broker(&w);
	b = world_add(&w, 1, 130, 3);
	memcpy(turn_ids(w.turns, b->rec), ids, sizeof(ids));
	assert_int_equal(sched_submit(w.sched, b, NULL), 0);
	world_run_all(&w);
	assert_int_equal(b->rec->n_cached, 119);
	world_assert_text(&w, b, 3);
	world_assert_all_free(&w);
	world_close(&w);
}

static void a_new_executor_goes_on_from_the_arena(void **state)
{
	struct world w;
	struct turn *a;
	uint64_t n_computed;

	(void)state;
	world_open(&w, 64, 4, 64);
	a = world_submit(&w, 1, 100, 100);
	world_run(&w, 50);
	n_computed = w.computer.n_computed;
	computer_die(&w.computer);
	world_run_all(&w);
	world_assert_text(&w, a, 100);
	/* nothing but what was in no sealed page, and two steps in flight */
	assert_true(w.computer.n_computed - n_computed <= 199 - n_computed + 16 + 2);
	assert_true(a->rec->n_recomputed <= 16 + 2);
	world_assert_all_free(&w);
	world_close(&w);
}

/* What was computed was summed, was to be summed, or is in the last page: all of it is there. */
static void nothing_is_computed_again_whenever_the_executor_dies(void **state)
{
	(void)state;
	for (uint64_t n = 1; n < 40; n++) {
		struct world w;
		struct turn *a;
		uint64_t n_computed;

		world_open(&w, 64, 4, 64);
		a = world_submit(&w, 1, 100, 40);
		world_run(&w, n);
		n_computed = w.computer.n_computed;
		computer_die(&w.computer);
		world_run_all(&w);
		world_assert_text(&w, a, 40);
		assert_int_equal(a->rec->n_recomputed, 0);
		assert_true(w.computer.n_computed <= 139 + STEP_DEPTH_MAX * 64);
		assert_true(w.computer.n_computed >= n_computed);
		world_assert_all_free(&w);
		world_close(&w);
	}
}

/* Whatever bit flips, and whenever: it is counted, and computed again. */
static void a_flipped_bit_is_computed_again(void **state)
{
	struct world w;
	struct turn *a, *b;
	struct kvcache_counts n;
	uint32_t ids[120];

	(void)state;
	for (uint32_t flip = 0; flip < 119; flip += 7) {
		world_open(&w, 64, 4, 64);
		a = world_submit(&w, 1, 100, 20);
		world_run_all(&w);
		memcpy(ids, turn_ids(w.turns, a->rec), sizeof(ids));
		world_restart_broker(&w);
		for (uint32_t i = 0; i < 64 * WORLD_PAGE_TOKENS; i++) {
			if (computer_token(w.computer.kv[i]) != ids[flip])
				continue;
			w.computer.kv[i] ^= 1u << flip % 32;
			break;
		}
		b = world_add(&w, 1, 130, 3);
		memcpy(turn_ids(w.turns, b->rec), ids, sizeof(ids));
		assert_int_equal(sched_submit(w.sched, b, NULL), 0);
		world_run_all(&w);
		world_assert_text(&w, b, 3);
		kvcache_count(w.cache, &n);
		assert_int_equal(n.n_damaged, 1);
		world_assert_all_free(&w);
		world_close(&w);
	}
}

/* The broker dies at every step of two conversations; the text is the same and nothing is lost. */
static void the_broker_may_die_at_every_step_of_a_second_turn(void **state)
{
	struct world w;
	struct turn *a;

	(void)state;
	for (uint64_t n = 0; n < 30; n++) {
		world_open(&w, 40, 2, 64);
		a = world_submit(&w, 1, 100, 20);
		world_run_all(&w);
		follow(&w, 1, a, 120, 150, 15);
		follow(&w, 2, a, 120, 150, 15);
		world_run(&w, n);
		world_restart_broker(&w);
		world_run_all(&w);
		assert_int_equal(w.n_ended, 3);
		world_assert_text(&w, &w.t[1], 15);
		world_assert_text(&w, &w.t[2], 15);
		world_assert_all_free(&w);
		world_close(&w);
	}
}

static void the_executor_may_die_at_every_step_of_a_second_turn(void **state)
{
	struct world w;
	struct turn *a;

	(void)state;
	for (uint64_t n = 0; n < 30; n++) {
		world_open(&w, 40, 2, 64);
		a = world_submit(&w, 1, 100, 20);
		world_run_all(&w);
		follow(&w, 1, a, 120, 150, 15);
		follow(&w, 2, a, 120, 150, 15);
		world_run(&w, n);
		computer_die(&w.computer);
		world_run_all(&w);
		assert_int_equal(w.n_ended, 3);
		world_assert_text(&w, &w.t[1], 15);
		world_assert_text(&w, &w.t[2], 15);
		world_assert_all_free(&w);
		world_close(&w);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_repeated_prompt_is_computed_but_for_its_last_token),
		cmocka_unit_test(a_prompt_repeated_at_once_is_found_too),
		cmocka_unit_test(the_next_turn_of_a_conversation_computes_what_is_new),
		cmocka_unit_test(another_uid_and_another_label_find_nothing),
		cmocka_unit_test(ten_forks_at_once_compute_and_hold_one_prompt),
		cmocka_unit_test(ten_forks_of_8_k_tokens_compute_and_hold_them_once),
		cmocka_unit_test(a_divergence_inside_a_page_copies_its_beginning),
		cmocka_unit_test(pages_are_given_up_when_others_need_them),
		cmocka_unit_test(what_is_anothers_by_right_is_left_to_it),
		cmocka_unit_test(nobody_is_left_less_than_its_minimum),
		cmocka_unit_test(a_whole_context_and_a_flood_both_come_to_their_end),
		cmocka_unit_test(a_request_that_could_not_be_computed_else_takes_it),
		cmocka_unit_test(a_turn_may_need_all_pages_and_share_some),
		cmocka_unit_test(a_page_of_another_uid_is_cleared_before_it_is_used),
		cmocka_unit_test(a_page_granted_by_a_broker_that_died_is_cleared_too),
		cmocka_unit_test(a_restarted_broker_finds_what_the_last_one_left),
		cmocka_unit_test(a_new_executor_goes_on_from_the_arena),
		cmocka_unit_test(nothing_is_computed_again_whenever_the_executor_dies),
		cmocka_unit_test(a_flipped_bit_is_computed_again),
		cmocka_unit_test(the_broker_may_die_at_every_step_of_a_second_turn),
		cmocka_unit_test(the_executor_may_die_at_every_step_of_a_second_turn),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
