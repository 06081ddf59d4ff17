/* A prompt that an administrator marked is found by everybody; what follows it by nobody else. */
#include "tests/unit/world.h"

#define N_MARKED 50 /* three whole pages and a part of one, which is not shared */
#define N_SHARED 48

static uint32_t marked[128], words[512]; /* words: what users say behind it */

static void open_marked(struct world *w, uint32_t n_pages)
{
	for (uint32_t i = 0; i < ARRAY_SIZE(marked); i++)
		marked[i] = (i * 37 + 5) % COMPUTER_VOCAB;
	for (uint32_t i = 0; i < ARRAY_SIZE(words); i++)
		words[i] = (i * 53 + 11) % COMPUTER_VOCAB;
	world_open(w, n_pages, 4, 64);
	world_mark(w, marked, N_MARKED);
}

/* A turn that says the first @n_same marked tokens, and @words from there on. */
static struct turn *say(struct world *w, uint32_t uid, uint32_t n_same, uint32_t n_prompt,
			uint32_t max_tokens)
{
	struct turn *t = world_add(w, uid, n_prompt, max_tokens);
	uint32_t *ids = turn_ids(w->turns, t->rec);

	memcpy(ids, marked, n_same * 4);
	memcpy(ids + n_same, words, (n_prompt - n_same) * 4);
	assert_int_equal(sched_submit(w->sched, t, NULL), 0);
	return t;
}

static uint32_t n_resident(const struct world *w)
{
	struct kvcache_shared_state state;

	assert_true(kvcache_shared_at(w->cache, 0, &state));
	return state.n_arena;
}

static void a_second_user_computes_what_is_behind_the_marked_prompt(void **state)
{
	struct world w;
	struct turn *a, *b, *c, *d;
	uint64_t n_computed;

	(void)state;
	open_marked(&w, 64);
	assert_int_equal(n_resident(&w), 0);
	a = say(&w, 1, 50, 100, 5);
	world_run_all(&w);
	assert_int_equal(a->rec->n_cached, 0);
	assert_int_equal(n_resident(&w), 3);
	n_computed = w.computer.n_computed;
	b = say(&w, 2, 50, 100, 5); /* all the same text */
	world_run_all(&w);
	assert_int_equal(b->rec->n_cached, N_SHARED);
	assert_int_equal(w.computer.n_computed - n_computed, 100 - N_SHARED + 4);
	c = say(&w, 1, 50, 100, 5);
	d = say(&w, 2, 50, 120, 5);
	world_run_all(&w);
	assert_int_equal(c->rec->n_cached, 99); /* its own, whole */
	assert_int_equal(d->rec->n_cached, 100);
	for (uint32_t i = 0; i < 4; i++)
		world_assert_text(&w, &w.t[i], 5);
	assert_int_equal(n_resident(&w), 3);
	world_assert_all_free(&w);
	world_close(&w);
}

static void another_label_finds_the_marked_pages_and_no_others(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	open_marked(&w, 64);
	say(&w, 1, 50, 100, 5);
	world_run_all(&w);
	t = world_add(&w, 1, 100, 5);
	memcpy(turn_ids(w.turns, t->rec), turn_ids(w.turns, w.t[0].rec), 400);
	strcpy(t->rec->label, "app");
	assert_int_equal(sched_submit(w.sched, t, NULL), 0);
	world_run_all(&w);
	assert_int_equal(t->rec->n_cached, N_SHARED);
	world_assert_text(&w, t, 5);
	world_assert_all_free(&w);
	world_close(&w);
}

/* Else it could be found out a page, or a word, at a time. */
static void who_knows_a_part_of_the_marked_prompt_gets_nothing(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	open_marked(&w, 64);
	say(&w, 1, 50, 100, 5);
	world_run_all(&w);
	for (uint32_t n = 1; n <= N_SHARED + 1; n++) {
		w.n_turns = 1;
		t = say(&w, 1000 + n, n, 90, 2);
		world_run_all(&w);
		assert_int_equal(t->rec->n_cached, n < N_SHARED ? 0 : N_SHARED);
		world_assert_text(&w, t, 2);
		sched_release(t);
		w.n_ended = 1;
	}
	world_assert_all_free(&w);
	world_close(&w);
}

static void of_marked_prompts_that_begin_alike_the_longest_counts(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	open_marked(&w, 64);
	world_mark(&w, marked, 100); /* six pages, of which the first three are the other's */
	t = say(&w, 1, 110, 120, 2);
	world_run_all(&w);
	assert_int_equal(t->rec->n_cached, 0);
	t = say(&w, 2, 60, 120, 2);
	world_run_all(&w);
	assert_int_equal(t->rec->n_cached, N_SHARED); /* not the 60 that are in its pages */
	t = say(&w, 3, 100, 120, 2);
	world_run_all(&w);
	assert_int_equal(t->rec->n_cached, 96);
	world_assert_text(&w, t, 2);
	world_assert_all_free(&w);
	world_close(&w);
}

static void many_users_at_once_hold_its_pages_once(void **state)
{
	struct world w;
	struct kvcache_counts n;

	(void)state;
	open_marked(&w, 64);
	say(&w, 1, 50, 60, 1);
	world_run_all(&w);
	for (uint32_t uid = 2; uid < 6; uid++)
		say(&w, uid, 50, 60, 30);
	world_run(&w, 12);
	kvcache_count(w.cache, &n);
	assert_true(n.n_held > 3 && n.n_held <= 3 + 4 * 3);
	/* nor do they count as anybody's */
	for (uint32_t uid = 1; uid < 6; uid++)
		assert_true(kvpool_user_pages(w.kv, uid) <= 3);
	assert_int_equal(kvpool_user_pages(w.kv, CHAIN_SHARED_UID), 3);
	world_run_all(&w);
	for (uint32_t i = 1; i < 5; i++)
		world_assert_text(&w, &w.t[i], 30);
	world_assert_all_free(&w);
	world_close(&w);
}

static void all_ask_before_it_is_there(void **state)
{
	struct world w;

	(void)state;
	open_marked(&w, 64);
	for (uint32_t uid = 1; uid < 5; uid++)
		say(&w, uid, 50, 100, 30);
	world_run_all(&w);
	assert_int_equal(n_resident(&w), 3);
	for (uint32_t i = 0; i < 4; i++)
		world_assert_text(&w, &w.t[i], 30);
	/* each can continue what it was told, behind pages that one of them sealed */
	for (uint32_t i = 0; i < 4; i++) {
		struct turn *t = world_add(&w, i + 1, 140, 3);

		memcpy(turn_ids(w.turns, t->rec), turn_ids(w.turns, w.t[i].rec), 130 * 4);
		assert_int_equal(sched_submit(w.sched, t, NULL), 0);
		world_run_all(&w);
		assert_int_equal(t->rec->n_cached, 129);
		world_assert_text(&w, t, 3);
	}
	world_assert_all_free(&w);
	world_close(&w);
}

/* What others said behind it, or whether they said the same, explains nobody's miss. */
static void a_miss_behind_it_tells_nothing_of_others(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	open_marked(&w, 64);
	say(&w, 1, 50, 100, 5);
	world_run_all(&w);
	for (uint32_t n_same = 50; n_same < 61; n_same += 10) { /* the same text, and another */
		t = say(&w, n_same, n_same, 100, 5);
		world_run_all(&w);
		assert_int_equal(t->rec->n_cached, N_SHARED);
		assert_int_equal(t->rec->miss.cause, KV_MISS_END);
		assert_int_equal(t->rec->miss.n_ids, 0);
	}
	world_assert_all_free(&w);
	world_close(&w);
}

/* What was found and is spared is no page that is still wanted. */
static void who_shares_it_need_not_wait_for_its_pages(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	open_marked(&w, 10);
	say(&w, 1, 48, 49, 1);
	world_run_all(&w);
	world_submit(&w, 1, 10, 20);
	world_run(&w, 2);
	t = say(&w, 2, 50, 118, 1);
	world_run(&w, 2);
	assert_int_not_equal(t->rec->slot, TURN_NO_SLOT);
	world_run_all(&w);
	world_assert_text(&w, t, 1);
	world_assert_all_free(&w);
	world_close(&w);
}

/* A user's own pages stay its own, in the midst of a longer one that is marked later. */
static void a_part_of_its_page_is_found_by_who_left_it(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	open_marked(&w, 64);
	say(&w, 1, 100, 101, 1);
	world_run_all(&w);
	world_mark(&w, marked, 128);
	w.settings.batch_tokens = 20;
	t = say(&w, 2, 128, 140, 2);
	world_run(&w, 2);
	assert_int_equal(t->rec->n_kv, 68);
	sched_finish(t, FINISH_CANCELLED);
	world_run_all(&w);
	t = say(&w, 2, 128, 140, 2);
	world_run_all(&w);
	assert_int_equal(t->rec->n_cached, 68);
	world_assert_text(&w, t, 2);
	world_assert_all_free(&w);
	world_close(&w);
}

static void it_is_given_up_last(void **state)
{
	const uint32_t least[] = { 0, 10 };

	(void)state;
	for (size_t k = 0; k < ARRAY_SIZE(least); k++) {
		struct world w;
		struct kvcache_counts n;

		open_marked(&w, 24);
		w.settings.min_user_cache = least[k];
		w.shared[0].n_ids = 128; /* more than each user has: of them the largest loses */
		assert_int_equal(kvcache_set_shared(w.cache, w.shared, 1), 0);
		say(&w, 1, 128, 130, 1);
		world_run_all(&w);
		for (uint32_t i = 0; i < 12; i++) {
			world_submit(&w, 2 + i % 2, 100, 10);
			world_submit(&w, 3 - i % 2, 120, 10);
			world_run_all(&w);
			assert_int_equal(n_resident(&w), 8);
		}
		kvcache_count(w.cache, &n);
		assert_true(n.n_evicted > 20);
		/* a lone turn that wants every page may have these too */
		world_submit(&w, 4, 260, 120);
		world_run_all(&w);
		world_assert_text(&w, &w.t[w.n_turns - 1], 120);
		assert_true(n_resident(&w) < 8);
		world_assert_all_free(&w);
		world_close(&w);
	}
}

/* Users that have little are left it, and with it the shared pages before it: nobody waits for ever. */
static void pages_that_continue_it_are_their_users_by_right(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	open_marked(&w, 40);
	w.settings.min_user_cache = 25;
	say(&w, 1, 50, 150, 5);
	world_run_all(&w);
	for (uint32_t i = 0; i < 4; i++) {
		world_submit(&w, 2, 200, 5);
		world_submit(&w, 2, 200, 5);
		world_run_all(&w);
	}
	assert_int_equal(w.n_ended, 9);
	t = say(&w, 1, 50, 160, 3);
	world_run_all(&w);
	assert_int_equal(t->rec->n_cached, 150);
	world_assert_text(&w, t, 3);
	world_assert_all_free(&w);
	world_close(&w);
}

static void what_is_marked_no_more_is_found_by_nobody(void **state)
{
	struct world w;
	struct turn *t;

	(void)state;
	open_marked(&w, 20);
	say(&w, 1, 50, 100, 5);
	world_run_all(&w);
	assert_int_equal(kvcache_set_shared(w.cache, NULL, 0), 0);
	t = say(&w, 2, 50, 100, 5);
	world_run_all(&w);
	assert_int_equal(t->rec->n_cached, 0);
	t = say(&w, 2, 50, 100, 5);
	world_run_all(&w);
	assert_int_equal(t->rec->n_cached, 99);
	/* and goes as anything else */
	for (uint32_t i = 0; i < 6; i++) {
		world_submit(&w, 3, 150, 10);
		world_run_all(&w);
	}
	assert_int_equal(kvcache_set_shared(w.cache, w.shared, 1), 0);
	assert_int_equal(n_resident(&w), 0);
	world_assert_all_free(&w);
	world_close(&w);
}

static void the_list_may_change_under_a_turn(void **state)
{
	struct world w;

	(void)state;
	for (uint64_t n = 0; n < 40; n++) {
		open_marked(&w, 40);
		say(&w, 1, 50, 100, 20);
		say(&w, 2, 50, 100, 20);
		world_run(&w, n);
		assert_int_equal(kvcache_set_shared(w.cache, NULL, 0), 0);
		world_run(&w, n / 2);
		assert_int_equal(kvcache_set_shared(w.cache, w.shared, 1), 0);
		say(&w, 3, 50, 100, 20);
		world_run_all(&w);
		for (uint32_t i = 0; i < 3; i++)
			world_assert_text(&w, &w.t[i], 20);
		world_assert_all_free(&w);
		world_close(&w);
	}
}

static void a_restarted_broker_finds_it_and_what_continues_it(void **state)
{
	struct world w;
	struct kvcache_counts n;
	struct turn *a, *b;

	(void)state;
	open_marked(&w, 64);
	say(&w, 1, 50, 100, 20);
	world_run_all(&w);
	world_restart_broker(&w);
	kvcache_count(w.cache, &n);
	assert_int_equal(n.n_damaged, 0);
	assert_int_equal(n_resident(&w), 3);
	a = say(&w, 1, 50, 100, 3);
	b = say(&w, 2, 50, 100, 3);
	world_run_all(&w);
	assert_int_equal(a->rec->n_cached, 99);
	assert_int_equal(b->rec->n_cached, N_SHARED);
	world_assert_text(&w, a, 3);
	world_assert_text(&w, b, 3);
	world_assert_all_free(&w);
	world_close(&w);
}

static void a_turn_under_way_keeps_its_shared_pages(void **state)
{
	struct world w;
	uint64_t n_computed;

	(void)state;
	open_marked(&w, 64);
	say(&w, 1, 50, 100, 1);
	world_run_all(&w);
	say(&w, 2, 50, 100, 20);
	world_run(&w, 8);
	n_computed = w.computer.n_computed;
	world_restart_broker(&w);
	world_run_all(&w);
	world_assert_text(&w, &w.t[1], 20);
	assert_true(n_computed > 100 + 52);
	assert_int_equal(w.computer.n_computed, 100 + 52 + 19);
	world_assert_all_free(&w);
	world_close(&w);
}

static void the_broker_may_die_at_every_step_of_it(void **state)
{
	struct world w;

	(void)state;
	for (uint64_t n = 0; n < 40; n++) {
		open_marked(&w, 40);
		say(&w, 1, 50, 100, 20);
		say(&w, 2, 50, 90, 15);
		world_run(&w, n);
		world_restart_broker(&w);
		world_run_all(&w);
		assert_int_equal(w.n_ended, 2);
		world_assert_text(&w, &w.t[0], 20);
		world_assert_text(&w, &w.t[1], 15);
		assert_int_equal(n_resident(&w), 3);
		say(&w, 3, 50, 100, 3);
		world_run_all(&w);
		assert_int_equal(w.t[2].rec->n_cached, N_SHARED);
		world_assert_all_free(&w);
		world_close(&w);
	}
}

static void a_new_executor_goes_on_from_it(void **state)
{
	struct world w;
	struct turn *a;

	(void)state;
	open_marked(&w, 64);
	a = say(&w, 1, 50, 100, 100);
	world_run(&w, 50);
	computer_die(&w.computer);
	world_run_all(&w);
	world_assert_text(&w, a, 100);
	assert_true(a->rec->n_recomputed <= 16 + 2);
	world_assert_all_free(&w);
	world_close(&w);
}

static void a_flipped_bit_in_it_is_computed_again(void **state)
{
	struct world w;
	struct kvcache_counts n;
	struct turn *t;

	(void)state;
	for (uint32_t flip = 0; flip < N_SHARED; flip += 5) {
		open_marked(&w, 64);
		say(&w, 1, 50, 100, 20);
		world_run_all(&w);
		world_restart_broker(&w);
		for (uint32_t i = 0; i < 64 * WORLD_PAGE_TOKENS; i++) {
			if (computer_token(w.computer.kv[i]) != marked[flip])
				continue;
			w.computer.kv[i] ^= 1u << flip % 32;
			break;
		}
		t = say(&w, 2, 50, 100, 3);
		world_run_all(&w);
		world_assert_text(&w, t, 3);
		kvcache_count(w.cache, &n);
		assert_int_equal(n.n_damaged, 1);
		assert_int_equal(n_resident(&w), 3);
		world_assert_all_free(&w);
		world_close(&w);
	}
}

/* It may have been computed on behalf of anybody. */
static void a_page_that_was_shared_is_cleared_before_it_is_used(void **state)
{
	struct world w;
	struct kvcache_counts n;

	(void)state;
	open_marked(&w, 4);
	say(&w, 1, 48, 49, 1);
	world_run_all(&w);
	assert_int_equal(n_resident(&w), 3);
	world_submit(&w, 1, 60, 2); /* the one that computed them */
	world_run_all(&w);
	kvcache_count(w.cache, &n);
	assert_int_equal(n.n_cleared, 3);
	world_assert_all_free(&w);
	world_close(&w);
}

static void no_client_has_its_namespace(void **state)
{
	const uint64_t fingerprint[2] = { 1, 2 };
	const struct kv_hash root = chain_shared_root(fingerprint, 2);

	(void)state;
	assert_false(chain_equal(root, chain_root(fingerprint, 2, CHAIN_SHARED_UID, "")));
	assert_false(chain_equal(root, chain_root(fingerprint, 2, 0, "")));
	assert_false(chain_equal(root, chain_shared_root(fingerprint, 4)));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_second_user_computes_what_is_behind_the_marked_prompt),
		cmocka_unit_test(another_label_finds_the_marked_pages_and_no_others),
		cmocka_unit_test(who_knows_a_part_of_the_marked_prompt_gets_nothing),
		cmocka_unit_test(of_marked_prompts_that_begin_alike_the_longest_counts),
		cmocka_unit_test(many_users_at_once_hold_its_pages_once),
		cmocka_unit_test(all_ask_before_it_is_there),
		cmocka_unit_test(a_miss_behind_it_tells_nothing_of_others),
		cmocka_unit_test(who_shares_it_need_not_wait_for_its_pages),
		cmocka_unit_test(a_part_of_its_page_is_found_by_who_left_it),
		cmocka_unit_test(it_is_given_up_last),
		cmocka_unit_test(pages_that_continue_it_are_their_users_by_right),
		cmocka_unit_test(what_is_marked_no_more_is_found_by_nobody),
		cmocka_unit_test(the_list_may_change_under_a_turn),
		cmocka_unit_test(a_restarted_broker_finds_it_and_what_continues_it),
		cmocka_unit_test(a_turn_under_way_keeps_its_shared_pages),
		cmocka_unit_test(the_broker_may_die_at_every_step_of_it),
		cmocka_unit_test(a_new_executor_goes_on_from_it),
		cmocka_unit_test(a_flipped_bit_in_it_is_computed_again),
		cmocka_unit_test(a_page_that_was_shared_is_cleared_before_it_is_used),
		cmocka_unit_test(no_client_has_its_namespace),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
