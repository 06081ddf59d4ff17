/* Why something was not found in the cache: each cause, brought about, and told in the turn's record. */
#include "tests/unit/world.h"

/* A turn whose prompt begins with the first @n_same tokens of @ids, and goes on in its own way. */
static struct turn *follow(struct world *w, uint32_t uid, const char *label, const uint32_t *ids,
			   uint32_t n_same, uint32_t n_prompt)
{
	struct turn *t = world_add(w, uid, n_prompt, 1);

	strcpy(t->rec->label, label);
	memcpy(turn_ids(w->turns, t->rec), ids, n_same * 4);
	assert_int_equal(t->rec->miss.cause, KV_MISS_WAITING);
	assert_int_equal(sched_submit(w->sched, t, NULL), 0);
	world_run_all(w);
	return t;
}

/* A turn of 100 tokens has been computed; its 120 ids are in @ids. */
static void open_with_one(struct world *w, uint32_t n_pages, uint32_t *ids)
{
	struct turn *a;

	world_open(w, n_pages, 4, 64);
	a = world_submit(w, 1, 100, 20);
	world_run_all(w);
	memcpy(ids, turn_ids(w->turns, a->rec), 480);
	assert_int_equal(a->rec->miss.cause, KV_MISS_NEW);
	assert_int_equal(a->rec->miss.at, 0);
}

static void assert_miss(const struct turn *t, enum kv_miss_cause cause, uint32_t at)
{
	assert_int_equal(t->rec->miss.cause, cause);
	assert_int_equal(t->rec->miss.at, at);
	assert_int_equal(t->rec->n_cached, at);
	assert_true((t->rec->miss.n_ids > 0) == (cause == KV_MISS_TEXT));
}

static void a_repeated_prompt_missed_nothing(void **state)
{
	struct world w;
	uint32_t ids[120];

	(void)state;
	open_with_one(&w, 64, ids);
	assert_miss(follow(&w, 1, "", ids, 100, 100), KV_MISS_NONE, 99);
	world_close(&w);
}

/* Inside a page, at a page's end, and anywhere else: what stands there instead is noted. */
static void another_text_is_told_with_what_was_there(void **state)
{
	struct world w;
	struct turn *b;
	uint32_t ids[120];

	(void)state;
	for (uint32_t at = 1; at < 119; at += 5) {
		const uint32_t n = MIN(KV_MISS_IDS, 119 - at);

		open_with_one(&w, 64, ids);
		b = follow(&w, 1, "", ids, at, 140);
		assert_miss(b, KV_MISS_TEXT, at);
		assert_int_equal(b->rec->miss.n_ids, n);
		assert_memory_equal(b->rec->miss.ids, ids + at, n * 4);
		assert_true(turn_ids(w.turns, b->rec)[at] != ids[at]);
		world_close(&w);
	}
}

static void a_conversation_that_goes_on_ends_where_the_last_one_did(void **state)
{
	struct world w;
	uint32_t ids[120];

	(void)state;
	open_with_one(&w, 64, ids);
	/* the last sampled token was never fed */
	assert_miss(follow(&w, 1, "", ids, 120, 140), KV_MISS_END, 119);
	world_close(&w);
}

static void another_uid_is_told_nothing(void **state)
{
	struct world w;
	uint32_t ids[120];

	(void)state;
	open_with_one(&w, 64, ids);
	assert_miss(follow(&w, 2, "", ids, 100, 100), KV_MISS_NEW, 0);
	world_close(&w);
}

static void another_label_of_the_same_uid_is_told(void **state)
{
	struct world w;
	uint32_t ids[120];

	(void)state;
	open_with_one(&w, 64, ids);
	assert_miss(follow(&w, 1, "app", ids, 100, 100), KV_MISS_LABEL, 0);
	/* a beginning that it has in common is no explanation */
	assert_miss(follow(&w, 1, "other", ids, 40, 100), KV_MISS_NEW, 0);
	world_close(&w);
}

static void what_was_given_up_is_told(void **state)
{
	struct world w;
	struct turn *b;
	uint32_t ids[120];

	(void)state;
	open_with_one(&w, 16, ids);
	world_submit(&w, 1, 180, 10);
	world_run_all(&w);
	b = follow(&w, 1, "", ids, 100, 100);
	assert_miss(b, KV_MISS_EVICTED, b->rec->n_cached);
	assert_true(b->rec->n_cached < 99);
	world_close(&w);
}

/* By the broker after the one that gave it up, too; and not what has been computed again since. */
static void what_an_earlier_broker_gave_up_is_told(void **state)
{
	struct world w;
	struct turn *b;
	uint32_t ids[120], at;

	(void)state;
	open_with_one(&w, 16, ids);
	world_submit(&w, 1, 180, 10);
	world_run_all(&w);
	world_restart_broker(&w);
	assert_miss(follow(&w, 2, "", ids, 100, 100), KV_MISS_NEW, 0);
	b = follow(&w, 1, "", ids, 100, 100);
	assert_miss(b, KV_MISS_EVICTED, b->rec->n_cached);
	assert_true(b->rec->n_cached < 99);
	/* it is there again */
	at = b->rec->n_cached;
	world_restart_broker(&w);
	b = follow(&w, 1, "", ids, 100, 100);
	assert_true(b->rec->n_cached > at);
	assert_miss(b, KV_MISS_NONE, 99);
	world_close(&w);
}

static void what_an_earlier_broker_found_damaged_is_told(void **state)
{
	struct world w;
	uint32_t ids[120];

	(void)state;
	open_with_one(&w, 64, ids);
	world_restart_broker(&w);
	for (uint32_t i = 0; i < 64 * WORLD_PAGE_TOKENS; i++) {
		if (computer_token(w.computer.kv[i]) != ids[40])
			continue;
		w.computer.kv[i] ^= 1;
		break;
	}
	/* goes on in its own way inside the page, which so is not computed again */
	assert_miss(follow(&w, 1, "", ids, 40, 100), KV_MISS_DAMAGED, 32);
	world_restart_broker(&w);
	assert_miss(follow(&w, 1, "", ids, 100, 100), KV_MISS_DAMAGED, 40);
	world_restart_broker(&w);
	assert_miss(follow(&w, 1, "", ids, 100, 100), KV_MISS_NONE, 99);
	world_close(&w);
}

static void what_was_damaged_is_told_and_does_not_count_as_cached(void **state)
{
	struct world w;
	struct turn *b;
	uint32_t ids[120];

	(void)state;
	open_with_one(&w, 64, ids);
	world_restart_broker(&w);
	for (uint32_t i = 0; i < 64 * WORLD_PAGE_TOKENS; i++) {
		if (computer_token(w.computer.kv[i]) != ids[40])
			continue;
		w.computer.kv[i] ^= 1;
		break;
	}
	b = follow(&w, 1, "", ids, 100, 100);
	assert_miss(b, KV_MISS_DAMAGED, 32); /* its page's beginning */
	assert_int_equal(b->rec->n_recomputed, 99 - 32);
	world_assert_all_free(&w);
	world_close(&w);
}

static void another_model_is_told_and_so_is_the_way_back(void **state)
{
	static const uint64_t one[2] = { 1, 2 }, other[2] = { 3, 4 };
	struct world w;
	uint32_t ids[120];
	struct turn *a;

	(void)state;
	world_open(&w, 64, 4, 64);
	kvcache_set_model(w.cache, one);
	a = world_submit(&w, 1, 100, 20);
	world_run_all(&w);
	memcpy(ids, turn_ids(w.turns, a->rec), sizeof(ids));
	kvcache_set_model(w.cache, other);
	assert_miss(follow(&w, 1, "", ids, 100, 100), KV_MISS_MODEL, 0);
	assert_miss(follow(&w, 1, "app", ids, 30, 100), KV_MISS_NEW, 0);
	kvcache_set_model(w.cache, one);
	assert_miss(follow(&w, 1, "", ids, 100, 100), KV_MISS_MODEL, 0);
	world_close(&w);
}

static void a_text_to_be_scored_is_not_looked_for(void **state)
{
	struct world w;
	struct turn *b;
	uint32_t ids[120];

	(void)state;
	open_with_one(&w, 64, ids);
	b = world_add(&w, 1, 100, 0);
	b->rec->score = 1;
	b->rec->logprobs = 1;
	assert_int_equal(sched_submit(w.sched, b, NULL), 0);
	world_run_all(&w);
	assert_miss(b, KV_MISS_SCORE, 0);
	world_close(&w);
}

/* What it was told when it began is what it says in the end. */
static void a_turn_put_back_keeps_its_explanation(void **state)
{
	struct world w;
	struct turn *b;
	uint32_t ids[120];

	(void)state;
	open_with_one(&w, 64, ids);
	b = world_add(&w, 1, 140, 40);
	memcpy(turn_ids(w.turns, b->rec), ids, 50 * 4);
	assert_int_equal(sched_submit(w.sched, b, NULL), 0);
	world_run(&w, 10);
	computer_die(&w.computer);
	world_run(&w, 10);
	world_restart_broker(&w);
	world_run_all(&w);
	assert_miss(b, KV_MISS_TEXT, 50);
	world_assert_text(&w, b, 40);
	world_close(&w);
}

static void a_turn_that_waits_through_a_restart_is_told_when_it_begins(void **state)
{
	struct world w;
	struct turn *b;
	uint32_t ids[120];

	(void)state;
	world_open(&w, 64, 1, 64);
	memcpy(ids, turn_ids(w.turns, world_submit(&w, 1, 100, 60)->rec), 400);
	b = world_add(&w, 1, 120, 5);
	memcpy(turn_ids(w.turns, b->rec), ids, 70 * 4);
	assert_int_equal(sched_submit(w.sched, b, NULL), 0);
	world_run(&w, 10);
	assert_miss(b, KV_MISS_WAITING, 0);
	world_restart_broker(&w);
	world_run_all(&w);
	assert_miss(b, KV_MISS_TEXT, 70);
	world_assert_text(&w, b, 5);
	world_close(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_repeated_prompt_missed_nothing),
		cmocka_unit_test(another_text_is_told_with_what_was_there),
		cmocka_unit_test(a_conversation_that_goes_on_ends_where_the_last_one_did),
		cmocka_unit_test(another_uid_is_told_nothing),
		cmocka_unit_test(another_label_of_the_same_uid_is_told),
		cmocka_unit_test(what_was_given_up_is_told),
		cmocka_unit_test(what_an_earlier_broker_gave_up_is_told),
		cmocka_unit_test(what_an_earlier_broker_found_damaged_is_told),
		cmocka_unit_test(what_was_damaged_is_told_and_does_not_count_as_cached),
		cmocka_unit_test(another_model_is_told_and_so_is_the_way_back),
		cmocka_unit_test(a_text_to_be_scored_is_not_looked_for),
		cmocka_unit_test(a_turn_put_back_keeps_its_explanation),
		cmocka_unit_test(a_turn_that_waits_through_a_restart_is_told_when_it_begins),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
