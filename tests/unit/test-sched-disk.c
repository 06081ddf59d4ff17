/* Pages that the arena has lost come back from disk: to their own uid, whole, and right or not at all. */
#include "daemon/kv/kvcache-parts.h"
#include "daemon/kv/tiers.h"
#include "tests/unit/world.h"

#include <fcntl.h>
#include <glob.h>
#include <stdlib.h>

#define IDS_MAX 256

/* A turn with these ids, and then its own up to @n_prompt. */
static struct turn *say(struct world *w, uint32_t uid, const uint32_t *ids, uint32_t n,
			uint32_t n_prompt, uint32_t max_tokens)
{
	struct turn *t = world_add(w, uid, n_prompt, max_tokens);

	memcpy(turn_ids(w->turns, t->rec), ids, n * sizeof(*ids));
	assert_int_equal(sched_submit(w->sched, t, NULL), 0);
	return t;
}

static struct kvcache_counts counts(const struct world *w)
{
	struct kvcache_counts n;

	kvcache_count(w->cache, &n);
	return n;
}

/* A turn of @n_prompt tokens and twenty more is done; its ids are kept at @ids. */
static void first_turn(struct world *w, uint32_t uid, uint32_t n_prompt, uint32_t *ids)
{
	struct turn *t = world_submit(w, uid, n_prompt, 20);

	world_run_all(w);
	world_assert_text(w, t, 20);
	memcpy(ids, turn_ids(w->turns, t->rec), (n_prompt + 20) * sizeof(*ids));
}

static void evicted_pages_come_back_from_disk(void **state)
{
	struct world w;
	struct turn *b;
	uint32_t ids[IDS_MAX];
	uint64_t n_computed;

	(void)state;
	world_open(&w, 16, 4, 64);
	world_open_disk(&w);
	first_turn(&w, 1, 100, ids);
	assert_int_equal(counts(&w).n_written, 8);
	for (uint32_t i = 0; i < 6; i++) {
		world_submit(&w, 1, 200, 10);
		world_run_all(&w);
	}
	assert_int_equal(counts(&w).n_read, 0);
	n_computed = w.computer.n_computed;
	b = say(&w, 1, ids, 120, 130, 5);
	world_run_all(&w);
	assert_int_equal(b->rec->n_cached, 119);
	assert_int_equal(counts(&w).n_read, 8);
	assert_int_equal(w.computer.n_computed - n_computed, 11 + 4);
	assert_int_equal(counts(&w).n_damaged, 0);
	world_assert_text(&w, b, 5);
	world_assert_all_free(&w);
	world_close(&w);
}

static void after_a_reboot_whole_pages_are_found_on_disk(void **state)
{
	struct world w;
	struct turn *b, *c;
	uint32_t ids[IDS_MAX];

	(void)state;
	world_open(&w, 64, 4, 64);
	world_open_disk(&w);
	first_turn(&w, 1, 100, ids);
	for (uint32_t i = 0; i < 3; i++) {
		world_reboot(&w);
		b = say(&w, 1, ids, 119, 119, 1);
		world_run_all(&w);
		assert_int_equal(b->rec->n_cached, 112);
		assert_int_equal(counts(&w).n_read, 7);
		world_assert_text(&w, b, 1);
		/* and from then on they are in the arena */
		c = say(&w, 1, ids, 119, 119, 5);
		world_run_all(&w);
		assert_int_equal(c->rec->n_cached, 118);
		assert_int_equal(counts(&w).n_read, 7);
		world_assert_text(&w, c, 5);
		world_assert_all_free(&w);
	}
	world_close(&w);
}

/*
 * An arena of one context, of which a request needs all: others' pages go, though
 * they are no more than each is left; but to the disk, which had no room for them
 * when they were sealed. Where it needs less than all, it takes no more.
 */
static void what_one_takes_beyond_the_others_minimum_is_on_disk_first(void **state)
{
	const struct segments_limits none = { .total_bytes = 1 << 28, .user_bytes = 1 },
				     plenty = { .total_bytes = 1 << 28 };

	(void)state;
	for (uint32_t n = 330; n <= 480; n += 150) {
		uint32_t ids[3][IDS_MAX], n_left = 0;
		struct world w;

		world_open_context(&w, 512, 32, 4, 512);
		w.settings.min_user_cache = 33; /* 10 pages */
		world_open_disk(&w);
		kvdisk_limit(w.disk, &none);
		first_turn(&w, 1, 120, ids[1]);
		first_turn(&w, 2, 120, ids[2]);
		assert_int_equal(counts(&w).n_written, 0);
		kvdisk_limit(w.disk, &plenty);

		world_submit(&w, 3, n, 20);
		world_run_all(&w);
		world_assert_text(&w, &w.t[2], 20);
		for (uint32_t uid = 1; uid <= 2; uid++)
			n_left += evict_owner(w.cache, uid) ? evict_owner(w.cache, uid)->n_pages
							    : 0;
		assert_int_equal(n_left, n == 480 ? 0 : MIN(18, 32 - (n + 20 + 15) / 16));
		for (uint32_t uid = 1; uid <= 2; uid++) {
			struct turn *t = say(&w, uid, ids[uid], 140, 150, 1);

			world_run_all(&w);
			assert_int_equal(t->rec->n_cached, 139);
			world_assert_text(&w, t, 1);
		}
		assert_int_equal(counts(&w).n_damaged, 0);
		world_assert_all_free(&w);
		world_close(&w);
	}
}

/* Whatever the length, nothing that was computed is computed again; and once a turn is what a part is written. */
static void after_a_reboot_the_next_turn_computes_only_what_is_new(void **state)
{
	struct world w;
	struct turn *b;
	uint32_t ids[IDS_MAX];
	uint64_t n_computed;

	(void)state;
	for (uint32_t n = 90; n < 110; n++) {
		const uint32_t n_kv = n + 20 - 1; /* what was sampled last was not fed */

		world_open(&w, 64, 4, 64);
		world_open_disk(&w);
		first_turn(&w, 1, n, ids);
		assert_int_equal(counts(&w).n_written, (n_kv + 15) / 16);
		world_reboot(&w);
		n_computed = w.computer.n_computed;
		b = say(&w, 1, ids, n + 20, n + 30, 5);
		world_run_all(&w);
		assert_int_equal(b->rec->n_cached, n_kv);
		assert_int_equal(b->rec->n_cached_disk, n_kv);
		assert_int_equal(w.computer.n_computed - n_computed, 11 + 4);
		assert_int_equal(counts(&w).n_damaged, 0);
		world_assert_text(&w, b, 5);
		world_assert_all_free(&w);
		world_close(&w);
	}
}

/* The arena's own part is shorter than the disk's, and the other way round. */
static void the_longer_part_is_taken(void **state)
{
	struct world w;
	struct turn *b;
	uint32_t ids[IDS_MAX];

	(void)state;
	world_open(&w, 64, 4, 64);
	world_open_disk(&w);
	first_turn(&w, 1, 100, ids);
	world_reboot(&w);
	b = say(&w, 1, ids, 115, 115, 1); /* 3 of the part's 7 tokens are in the arena now */
	world_run_all(&w);
	assert_int_equal(b->rec->n_cached, 112);
	b = say(&w, 1, ids, 120, 122, 1);
	world_run_all(&w);
	assert_int_equal(b->rec->n_cached, 119);
	assert_int_equal(b->rec->n_cached_disk, 7);
	world_assert_text(&w, b, 1);
	memcpy(ids, turn_ids(w.turns, b->rec), 122 * sizeof(*ids));
	b = say(&w, 1, ids, 122, 124, 3);
	world_run_all(&w);
	assert_int_equal(b->rec->n_cached, 122);
	assert_int_equal(b->rec->n_cached_disk, 0);
	world_assert_text(&w, b, 3);
	world_assert_all_free(&w);
	world_close(&w);
}

static uint32_t n_flushed;

static void on_flushed(struct tiers_flush *f)
{
	assert_null(f->cache);
	n_flushed++;
}

/* More than may wait to be written. */
static void a_flush_ends_when_all_is_on_disk(void **state)
{
	struct tiers_flush f = { .on_flushed = on_flushed }, late = f;
	struct world w;

	(void)state;
	world_open_context(&w, 9000, 600, 1, 2048);
	world_submit(&w, 1, 550 * WORLD_PAGE_TOKENS + 5, 1);
	world_run_all(&w);
	n_flushed = 0;
	assert_int_equal(tiers_flush(w.cache, w.loop, 1000, &f), 0);
	assert_int_equal(n_flushed, 0);
	world_run(&w, 0);
	assert_int_equal(n_flushed, 1); /* there is no disk */
	assert_int_equal(f.n_left, 551);
	assert_false(f.late);

	world_open_disk(&w);
	assert_int_equal(tiers_flush(w.cache, w.loop, UINT64_MAX / 4, &f), 0);
	assert_int_equal(tiers_flush(w.cache, w.loop, UINT64_MAX / 4, &late), 0);
	tiers_flush_withdraw(&late);
	while (n_flushed == 1)
		assert_true(sd_event_run(w.loop, UINT64_MAX) >= 0);
	assert_int_equal(f.n_left, 0);
	assert_false(f.late);
	assert_int_equal(counts(&w).n_written, 551);
	assert_int_equal(n_flushed, 2);
	world_assert_all_free(&w);
	world_close(&w);
}

static void a_flush_ends_when_its_time_is_over(void **state)
{
	struct tiers_flush f = { .on_flushed = on_flushed };
	struct world w;

	(void)state;
	for (int how = 0; how < 2; how++) {
		world_open_context(&w, 9000, 600, 1, 2048);
		world_open_disk(&w);
		world_submit(&w, 1, 100 * WORLD_PAGE_TOKENS, 1);
		while (counts(&w).n_sealed < 100)
			world_turn(&w);
		n_flushed = 0;
		assert_int_equal(tiers_flush(w.cache, w.loop, how ? 0 : UINT64_MAX / 4, &f), 0);
		if (how == 0)
			world_reboot(&w); /* the disk and the cache go */
		while (n_flushed == 0)
			assert_true(sd_event_run(w.loop, UINT64_MAX) >= 0);
		assert_int_equal(n_flushed, 1);
		assert_int_equal(f.late, how);
		world_run_all(&w);
		assert_int_equal(n_flushed, 1);
		world_close(&w);
	}
}

/* What has been read from disk is in the directory, as what was computed is. */
static void a_restarted_broker_finds_what_was_read(void **state)
{
	struct world w;
	struct turn *b;
	uint32_t ids[IDS_MAX];

	(void)state;
	world_open(&w, 64, 4, 64);
	world_open_disk(&w);
	first_turn(&w, 1, 100, ids);
	world_reboot(&w);
	say(&w, 1, ids, 112, 113, 1);
	world_run_all(&w);
	world_restart_broker(&w);
	world_run_all(&w);
	b = say(&w, 1, ids, 120, 130, 5);
	world_run_all(&w);
	assert_int_equal(b->rec->n_cached, 119);
	assert_int_equal(counts(&w).n_read,
			 1); /* of the first turn, what is behind its whole pages */
	assert_int_equal(counts(&w).n_damaged, 0);
	world_assert_text(&w, b, 5);
	world_assert_all_free(&w);
	world_close(&w);
}

/* A bit of the payload of the record number @slot of the first segment. */
static void damage(const struct world *w, uint32_t slot)
{
	const off_t at = 4096 + slot * 8192 + 4096 + slot * 5 % 64;
	char pattern[96];
	glob_t found;
	uint8_t byte;
	int fd;

	snprintf(pattern, sizeof(pattern), "%s/*/seg-0000000000000001.kv", w->disk_dir);
	assert_int_equal(glob(pattern, 0, NULL, &found), 0);
	fd = open(found.gl_pathv[0], O_RDWR | O_CLOEXEC);
	globfree(&found);
	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &byte, 1, at), 1);
	byte ^= 1u << slot;
	assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	close(fd);
}

static void a_damaged_record_is_computed_again(void **state)
{
	struct world w;
	struct turn *b;
	uint32_t ids[IDS_MAX];

	(void)state;
	for (uint32_t slot = 0; slot < 8; slot++) { /* the last one is of the part */
		world_open(&w, 64, 4, 64);
		world_open_disk(&w);
		first_turn(&w, 1, 100, ids);
		damage(&w, slot);
		world_reboot(&w);
		b = say(&w, 1, ids, 120, 130, 5);
		world_run_all(&w);
		assert_int_equal(counts(&w).n_damaged, 1);
		assert_int_equal(b->rec->n_cached, slot * 16);
		assert_int_equal(b->rec->n_recomputed, 119 - slot * 16);
		world_assert_text(&w, b, 5);
		world_assert_all_free(&w);
		/* written again, it is there after the next one */
		world_reboot(&w);
		b = say(&w, 1, ids, 120, 130, 5);
		world_run_all(&w);
		assert_int_equal(counts(&w).n_damaged, 0);
		assert_int_equal(b->rec->n_cached, 128); /* of its own 134 */
		world_assert_text(&w, b, 5);
		world_assert_all_free(&w);
		world_close(&w);
	}
}

/* One has the page read from disk; another, which had not found it, has computed it first. */
static void a_computed_page_replaces_one_that_is_still_read(void **state)
{
	const struct step_moved moved = { .sum = { 1, 2 } };
	struct kvcache_chain read = { 0 }, computed = { 0 };
	struct kvcache_found found;
	struct kvcache_held held;
	kv_page table[2], page;
	uint32_t ids[IDS_MAX];
	struct step_move order;
	struct kv_hash root;
	struct world w;

	(void)state;
	world_open(&w, 64, 4, 64);
	world_open_disk(&w);
	first_turn(&w, 1, 100, ids);
	damage(&w, 0);
	world_reboot(&w);
	root = kvcache_root(w.cache, 1, "");
	assert_int_equal(kvcache_hold(w.cache, root, 1, ids, 16, table, &held), 1);
	assert_int_equal(kvcache_take(w.cache, 1, 1, &page), 0);
	kvcache_seal(w.cache, root, 1, ids, 16, &page, 16, KVCACHE_TAIL_GROWS, &computed);
	assert_int_equal(kvcache_moves(w.cache, &order, 1), 1);
	assert_int_equal(order.to, page);
	kvcache_moved(w.cache, &moved, 1);
	kvcache_drop(w.cache, &page, 1);
	world_run_all(&w);
	/* what was read is nobody's, and what was computed is found */
	assert_int_equal(kvcache_settle(w.cache, table, &held, &read), -EBADMSG);
	kvcache_drop(w.cache, table, 1);
	assert_int_equal(kvcache_hold(w.cache, root, 1, ids, 16, table, &held), 1);
	assert_int_equal(table[0], page);
	assert_int_equal(kvcache_settle(w.cache, table, &held, &read), 1);
	kvcache_drop(w.cache, table, 1);
	kvcache_look(w.cache, root, 1, ids, 16, &found);
	assert_int_equal(found.n_tokens, 16);
	world_assert_all_free(&w);
	world_close(&w);
}

/* Not one token of one uid is served to another, nor of one label, whichever tier it is in. */
static void no_tier_serves_anothers_tokens(void **state)
{
	static const char *const labels[] = { "", "app" };
	struct world w;
	struct turn *t;
	uint32_t ids[IDS_MAX], n_served = 0;

	(void)state;
	world_open(&w, 64, 4, 64);
	world_open_disk(&w);
	first_turn(&w, 1, 100, ids);
	for (uint32_t tier = 0; tier < 2; tier++) {
		for (uint32_t i = 0; i < 4; i++) {
			t = world_add(&w, 2 + tier + i / 2 * 100, 110, 5);
			memcpy(turn_ids(w.turns, t->rec), ids, 110 * sizeof(*ids));
			strcpy(t->rec->label, labels[i % 2]);
			assert_int_equal(sched_submit(w.sched, t, NULL), 0);
			world_run_all(&w);
			n_served += t->rec->n_cached;
			world_assert_text(&w, t, 5);
		}
		t = world_add(&w, 1, 110, 5);
		memcpy(turn_ids(w.turns, t->rec), ids, 110 * sizeof(*ids));
		strcpy(t->rec->label, "other");
		assert_int_equal(sched_submit(w.sched, t, NULL), 0);
		world_run_all(&w);
		n_served += tier == 0 ? t->rec->n_cached : 0;
		assert_int_equal(n_served, 0);
		assert_int_equal(counts(&w).n_read, tier == 0 ? 0 : 6);
		assert_int_equal(counts(&w).n_found_tokens, tier == 0 ? 0 : 96 + 0);
		world_reboot(&w);
	}
	/* it was there all the time */
	t = say(&w, 1, ids, 120, 130, 5);
	world_run_all(&w);
	assert_int_equal(t->rec->n_cached, 119);
	world_assert_text(&w, t, 5);
	world_assert_all_free(&w);
	world_close(&w);
}

static void forks_wait_for_one_read(void **state)
{
	struct world w;
	uint32_t ids[IDS_MAX];
	uint64_t n_computed;

	(void)state;
	world_open(&w, 128, 12, 64);
	world_open_disk(&w);
	first_turn(&w, 1, 200, ids);
	world_reboot(&w);
	n_computed = w.computer.n_computed;
	for (uint32_t i = 0; i < 10; i++)
		say(&w, 1, ids, 209, 209, 20);
	world_run_all(&w);
	assert_int_equal(counts(&w).n_read, 13);
	for (uint32_t i = 0; i < 10; i++) {
		assert_int_equal(w.t[i].rec->n_cached, 208);
		world_assert_text(&w, &w.t[i], 20);
	}
	assert_int_equal(w.computer.n_computed - n_computed, 10 * (1 + 19));
	world_assert_all_free(&w);
	world_close(&w);
}

/* Pages come from others: what a failed read leaves in them is nobody's to see. */
static void a_page_for_a_read_that_fails_is_cleared_for_the_next(void **state)
{
	struct world w;
	struct turn *t;
	uint32_t ids[IDS_MAX];

	(void)state;
	world_open(&w, 8, 4, 64);
	world_open_disk(&w);
	first_turn(&w, 1, 90, ids);
	world_submit(&w, 2, 110, 10);
	world_run_all(&w);
	for (uint32_t slot = 0; slot < 6; slot++)
		damage(&w, slot);
	t = say(&w, 1, ids, 110, 112, 5);
	world_run_all(&w);
	world_assert_text(&w, t, 5);
	assert_true(counts(&w).n_damaged >= 1);
	world_assert_all_free(&w);
	t = say(&w, 3, ids, 1, 100, 5);
	world_run_all(&w);
	world_assert_text(&w, t, 5);
	assert_true(counts(&w).n_cleared > 0);
	world_assert_all_free(&w);
	world_close(&w);
}

/* Nodes that only explain are let go of as others come, but not the one that is being read. */
static void a_read_is_not_disturbed_by_forgetting(void **state)
{
	enum { CHAIN = 550 * WORLD_PAGE_TOKENS };
	uint32_t *ids = calloc(CHAIN + 20, sizeof(*ids));
	struct world w;
	struct turn *t;

	(void)state;
	world_open_context(&w, CHAIN + 200, 600, 4, 512);
	world_open_disk(&w);
	t = world_submit(&w, 9, CHAIN, 20);
	while (t->rec->state != TURN_ENDED)
		world_run(&w, 1); /* no more is written at once than may wait */
	assert_int_equal(counts(&w).n_written, CHAIN / WORLD_PAGE_TOKENS + 1);
	memcpy(ids, turn_ids(w.turns, t->rec), CHAIN * sizeof(*ids));
	world_reboot(&w);
	for (uint32_t i = 0; i < 4; i++) {
		world_submit(&w, 1, CHAIN, 1);
		world_run_all(&w);
	}
	t = say(&w, 9, ids, CHAIN, CHAIN + 10, 3);
	world_run_all(&w);
	assert_int_equal(t->rec->n_cached, CHAIN);
	world_assert_text(&w, t, 3);
	world_assert_all_free(&w);
	world_close(&w);
	free(ids);
}

static void a_model_that_comes_back_computes_what_was_half_read(void **state)
{
	static const uint64_t before[2], other[2] = { 1, 2 };
	struct world w;
	struct turn *t;
	uint32_t ids[IDS_MAX];

	(void)state;
	world_open(&w, 64, 4, 64);
	world_open_disk(&w);
	first_turn(&w, 1, 100, ids);
	world_reboot(&w);
	t = say(&w, 1, ids, 120, 130, 5);
	while (counts(&w).n_found_tokens == 0) /* then the reads are under way, and not yet home */
		sd_event_run(w.loop, UINT64_MAX);
	kvcache_set_model(w.cache, other);
	kvcache_set_disk(w.cache, NULL, NULL, NULL);
	w.disk = kvdisk_free(w.disk);
	kvcache_set_model(w.cache, before);
	sched_executor_changed(w.sched);
	world_run_all(&w);
	assert_int_equal(t->rec->n_cached, 0);
	assert_int_equal(counts(&w).n_read, 0);
	world_assert_text(&w, t, 5);
	world_assert_all_free(&w);
	world_close(&w);
}

static void the_executor_and_the_broker_may_die_while_pages_are_read(void **state)
{
	struct world w;
	uint32_t ids[IDS_MAX];

	(void)state;
	for (uint64_t n = 0; n < 24; n++) {
		world_open(&w, 40, 4, 64);
		world_open_disk(&w);
		first_turn(&w, 1, 100, ids);
		world_reboot(&w);
		say(&w, 1, ids, 120, 150, 15);
		say(&w, 1, ids, 70, 90, 15);
		say(&w, 2, ids, 120, 150, 15);
		for (uint64_t i = 0; i < n / 2 % 6; i++) /* with the reads somewhere on their way */
			sd_event_run(w.loop, 0);
		world_run(&w, n > 12 ? n : 0);
		if (n % 2)
			computer_die(&w.computer);
		else
			world_restart_broker(&w);
		world_run_all(&w);
		assert_int_equal(w.n_ended, 3);
		for (uint32_t i = 0; i < 3; i++)
			world_assert_text(&w, &w.t[i], 15);
		assert_int_equal(counts(&w).n_damaged, 0);
		world_assert_all_free(&w);
		world_close(&w);
	}
}

/* Few pages, many texts with beginnings in common, deaths, restarts, reboots, damage: the text is right. */
static void whatever_happens_the_text_is_right(void **state)
{
	uint32_t ids[4][IDS_MAX];
	struct world w;

	(void)state;
	for (uint32_t seed = 0; seed < 6; seed++) {
		srand(seed);
		world_open(&w, 30, 4, 64);
		world_open_disk(&w);
		for (uint32_t i = 0; i < 4; i++)
			first_turn(&w, 1 + i % 2, 100, ids[i]);
		for (uint32_t round = 0; round < 10; round++) {
			world_reboot(&w);
			for (uint32_t i = 0; i < 8; i++) {
				const uint32_t n = (uint32_t)rand() % 120;

				say(&w, 1 + (uint32_t)rand() % 2, ids[rand() % 4], n,
				    n + 1 + (uint32_t)rand() % 60, 10);
				world_run(&w, (uint64_t)(rand() % 12));
				if (i == 4 && round % 2)
					computer_die(&w.computer);
				else if (rand() % 6 == 0)
					world_restart_broker(&w);
				else if (rand() % 8 == 0)
					kvcache_yield(w.cache, 3 * WORLD_PAGE_TOKENS * 4);
			}
			world_run_all(&w);
			assert_int_equal(w.n_ended, 8);
			for (uint32_t i = 0; i < 8; i++)
				world_assert_text(&w, &w.t[i], 10);
			world_assert_all_free(&w);
			if (rand() % 2)
				damage(&w, (uint32_t)rand() % 7);
		}
		world_close(&w);
	}
}

/* More pages at once than may wait to be written. */
static void a_disk_that_fell_behind_catches_up(void **state)
{
	struct world w;

	(void)state;
	world_open_context(&w, 9000, 600, 1, 2048);
	world_open_disk(&w);
	world_submit(&w, 1, 550 * WORLD_PAGE_TOKENS, 1);
	world_run_all(&w);
	assert_int_equal(counts(&w).n_written, 550);
	world_assert_all_free(&w);
	world_close(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(evicted_pages_come_back_from_disk),
		cmocka_unit_test(after_a_reboot_whole_pages_are_found_on_disk),
		cmocka_unit_test(after_a_reboot_the_next_turn_computes_only_what_is_new),
		cmocka_unit_test(what_one_takes_beyond_the_others_minimum_is_on_disk_first),
		cmocka_unit_test(the_longer_part_is_taken),
		cmocka_unit_test(a_flush_ends_when_all_is_on_disk),
		cmocka_unit_test(a_flush_ends_when_its_time_is_over),
		cmocka_unit_test(a_restarted_broker_finds_what_was_read),
		cmocka_unit_test(a_damaged_record_is_computed_again),
		cmocka_unit_test(a_computed_page_replaces_one_that_is_still_read),
		cmocka_unit_test(no_tier_serves_anothers_tokens),
		cmocka_unit_test(a_disk_that_fell_behind_catches_up),
		cmocka_unit_test(forks_wait_for_one_read),
		cmocka_unit_test(a_page_for_a_read_that_fails_is_cleared_for_the_next),
		cmocka_unit_test(a_read_is_not_disturbed_by_forgetting),
		cmocka_unit_test(a_model_that_comes_back_computes_what_was_half_read),
		cmocka_unit_test(the_executor_and_the_broker_may_die_while_pages_are_read),
		cmocka_unit_test(whatever_happens_the_text_is_right),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
