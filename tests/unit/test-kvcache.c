/* The cache without a scheduler: moves are done by hand, so that every moment can be the one in which it happens. */
#include "daemon/kv/kvcache.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/wire/ownership.h"
#include "daemon/kv/kvdir.h"
#include "daemon/kv/kvdisk.h"
#include "daemon/kv/miss.h"
#include "tests/unit/bycache.h"

static const uint64_t no_model[2], other_model[2] = { 1, 2 };

static uint64_t damaged(const struct kvcache *c)
{
	struct kvcache_counts n;

	kvcache_count(c, &n);
	return n.n_damaged;
}

/* The next broker, which has both descriptors. */
static struct kvcache *next_life(struct kvcache *c, uint32_t n_pages, const char *lost)
{
	const int arena_fd = dup(kvcache_arena_fd(c)), dir_fd = dup(kvcache_dir_fd(c));

	kvcache_free(c);
	return new_cache(n_pages, arena_fd, dir_fd, lost);
}

static const uint32_t text[12] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 };

static void a_next_life_finds_the_chain_and_sums_it_first(void **state)
{
	struct kvcache *c = new_cache(8, -1, -1, "");
	struct kvcache_held held;
	struct kvcache_chain chain = { 0 };
	kv_page table[8];
	uint32_t n;

	(void)state;
	say(c, 5, text, 11);
	assert_int_equal(found(c, 5, text, 12), 11);
	c = next_life(c, 8, "");
	assert_int_equal(damaged(c), 0);
	assert_int_equal(found(c, 5, text, 12), 11);
	assert_int_equal(found(c, 6, text, 12), 0);
	n = kvcache_hold(c, kvcache_root(c, 5, ""), 5, text, 12, table, &held);
	assert_int_equal(n, 3);
	assert_int_equal(held.n_tokens, 11);
	assert_int_equal(kvcache_settle(c, table, &held, &chain), 0); /* not before it was summed */
	do_moves(c);
	assert_int_equal(kvcache_settle(c, table, &held, &chain), 1);
	assert_int_equal(chain.n_pages, 2);
	do_moves(c);
	kvcache_drop(c, table, n);
	kvcache_check(c);
	kvcache_free(c);
}

/* Entries that are whole, but cannot be what they say. */
static void pages_without_what_is_before_them_are_dropped_and_counted(void **state)
{
	static const uint64_t no_sum[2];

	(void)state;
	for (uint32_t i = 0; i < 7; i++) {
		struct kvcache *c = new_cache(8, -1, -1, "");
		struct kvdir *d = NULL;
		struct kvdir_page p;
		uint32_t bad, tokens[PAGE_TOKENS], page = 8;

		say(c, 5, text, 8);
		/* as a directory that another wrote: the second page anew */
		assert_int_equal(
			kvdir_adopt(dup(kvcache_dir_fd(c)), 8, PAGE_TOKENS, &d, &bad, NULL), 0);
		while (page-- > 0 && !(kvdir_get(d, page, &p) && p.depth == 2))
			;
		memcpy(tokens, p.tokens, sizeof(tokens));
		p.tokens = tokens;
		memcpy(p.sum, no_sum, sizeof(no_sum));
		tokens[3] += i == 0;
		p.hash.lo ^= i == 1;
		p.parent.hi ^= i == 2;
		p.root.lo ^= i == 3;
		p.depth += i == 4;
		p.uid += i == 5;
		if (i == 2 || i == 3 || i == 0) /* with a hash that is right for it */
			p.hash = chain_next(p.root, p.parent, tokens, i == 0 ? 3 : 4);
		kvdir_drop(d, page);
		kvdir_open(d, page, p.uid);
		kvdir_cleared(d, page, p.uid);
		kvdir_seal(d, page, &p);
		if (i == 6) { /* and the first is gone */
			for (page = 0; page < 8; page++)
				if (kvdir_get(d, page, &p) && p.depth == 1)
					kvdir_drop(d, page);
		}
		kvdir_free(d);
		c = next_life(c, 8, "");
		assert_int_equal(damaged(c), 1);
		assert_int_equal(found(c, 5, text, 12), i == 6 ? 0 : 4);
		assert_int_equal(found(c, 6, text, 12), 0);
		kvcache_check(c);
		say(c, 5, text, 12); /* and the pages are of use */
		assert_int_equal(found(c, 5, text, 12), 12);
		kvcache_check(c);
		kvcache_free(c);
	}
}

static void what_cannot_be_taken_over_is_made_afresh_and_says_why(void **state)
{
	struct kvcache *c = new_cache(8, -1, -1, "");
	int other, arena_fd, dir_fd;

	(void)state;
	say(c, 5, text, 8);
	c = next_life(c, 9,
		      "the KV directory is for 8 pages of 4 tokens in 5120 bytes; 9, 4 and 5248 "
		      "are wanted");
	assert_int_equal(found(c, 5, text, 12), 0);
	say(c, 5, text, 8);
	other = memfd_create("other", MFD_CLOEXEC);
	dir_fd = dup(kvcache_dir_fd(c));
	kvcache_free(c);
	c = new_cache(9, other, dir_fd, "the KV arena has 0 bytes; 40960 are wanted");
	assert_int_equal(found(c, 5, text, 12), 0);  /* a directory alone is worth nothing */
	assert_int_equal(fcntl(other, F_GETFD), -1); /* it was taken */
	assert_int_equal(fcntl(dir_fd, F_GETFD), -1);
	arena_fd = dup(kvcache_arena_fd(c));
	kvcache_free(c);
	c = new_cache(9, arena_fd, -1, "");
	assert_int_equal(fcntl(arena_fd, F_GETFD), -1);
	kvcache_check(c);
	kvcache_free(c);
}

/* The first token that is missed, and why. */
static void assert_cause(struct kvcache *c, uid_t uid, const uint32_t *ids, uint32_t n,
			 enum kv_miss_cause cause)
{
	struct kvcache_miss miss;

	kvcache_explain(c, uid, "", ids, n, found(c, uid, ids, n), &miss);
	assert_int_equal(miss.cause, cause);
}

/* The next life takes over the causes @causes_fd, and the pages if @arena. */
static struct kvcache *life_after(struct kvcache *c, bool arena, int causes_fd)
{
	const int arena_fd = arena ? dup(kvcache_arena_fd(c)) : -1;
	const int dir_fd = arena ? dup(kvcache_dir_fd(c)) : -1;

	kvcache_free(c);
	return new_cache_of(8, arena_fd, dir_fd, causes_fd, "");
}

static struct kvcache *new_evicted(void)
{
	struct kvcache *c = new_cache(8, -1, -1, "");

	say(c, 5, text, 11);
	assert_int_equal(kvcache_yield(c, UINT64_MAX), 3 * PAGE_BYTES);
	assert_int_equal(found(c, 5, text, 11), 0);
	return c;
}

static void why_pages_are_gone_is_known_to_the_next_life(void **state)
{
	static const uint32_t other[8] = { 1, 2, 3, 4, 5, 6, 7, 99 };
	struct kvcache *c = new_evicted();

	(void)state;
	c = life_after(c, true, dup(kvcache_causes_fd(c)));
	assert_cause(c, 5, text, 11, KV_MISS_EVICTED);
	assert_cause(c, 5, text, 6, KV_MISS_EVICTED); /* it ends inside a page */
	assert_cause(c, 5, text, 2, KV_MISS_EVICTED);
	assert_cause(c, 6, text, 11, KV_MISS_NEW); /* it is nobody else's business */
	assert_cause(c, 5, text + 1, 10, KV_MISS_NEW);
	/* what is there again is not gone: a page, then the part behind two */
	say(c, 5, other, 8);
	c = life_after(c, true, dup(kvcache_causes_fd(c)));
	assert_cause(c, 5, other, 8, KV_MISS_NONE);
	assert_cause(c, 5, text, 11, KV_MISS_EVICTED);
	say(c, 5, text, 8);
	assert_cause(c, 5, text, 11, KV_MISS_EVICTED); /* the part alone */
	say(c, 5, text, 12);
	c = life_after(c, true, dup(kvcache_causes_fd(c)));
	assert_cause(c, 5, text, 11, KV_MISS_NONE);
	assert_cause(c, 5, text, 12, KV_MISS_NONE);
	kvcache_check(c);
	kvcache_free(c);
}

static void without_what_was_noted_nothing_is_claimed(void **state)
{
	struct kvcache *c;
	int other;

	(void)state;
	c = new_evicted();
	c = life_after(c, true, -1);
	assert_cause(c, 5, text, 11, KV_MISS_NEW);
	kvcache_free(c);

	c = new_evicted(); /* of an arena that is lost */
	other = dup(kvcache_causes_fd(c));
	c = life_after(c, false, other);
	assert_cause(c, 5, text, 11, KV_MISS_NEW);
	assert_int_not_equal(kvcache_causes_fd(c), -1);
	kvcache_free(c);

	c = new_evicted();
	other = memfd_create("other", MFD_CLOEXEC);
	c = life_after(c, true, other);
	assert_int_not_equal(kvcache_causes_fd(c), other);
	assert_cause(c, 5, text, 11, KV_MISS_NEW);
	say(c, 5, text, 11);
	kvcache_yield(c, UINT64_MAX);
	c = life_after(c, true, dup(kvcache_causes_fd(c))); /* a new one was made */
	assert_cause(c, 5, text, 11, KV_MISS_EVICTED);
	kvcache_free(c);
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
	(void)st, (void)kind, (void)ftw;
	return remove(path);
}

static struct kvdisk *new_disk(sd_event *loop, const char *dir, struct kvcache *c)
{
	const struct segments_options o = { .dir = dir,
					    .layout = CHAIN_LAYOUT,
					    .page_tokens = PAGE_TOKENS,
					    .page_bytes = PAGE_BYTES,
					    .limits.total_bytes = 64 * 1024 * 1024 };
	struct kvdisk *disk = NULL;

	assert_int_equal(kvdisk_new(loop, &o, NULL, NULL, &disk), 0);
	while (!kvdisk_is_ready(disk))
		sd_event_run(loop, UINT64_MAX);
	assert_int_equal(kvcache_set_disk(c, disk, NULL, NULL), 0);
	return disk;
}

/* What was asked of it has ended. */
static void finish_jobs(sd_event *loop, const struct kvdisk *disk)
{
	struct kvdisk_counts n;

	for (kvdisk_count(disk, &n); n.n_waiting > 0; kvdisk_count(disk, &n))
		sd_event_run(loop, UINT64_MAX);
}

static void on_carried(int r, const uint64_t sum[2], void *userdata)
{
	(void)sum;
	*(int *)userdata = r;
}

/* The text was known under the model before the last one, in an earlier life. */
static void a_model_that_changed_twice_is_told_over_a_restart(void **state)
{
	static const uint64_t models[3][2] = { { 5, 5 }, { 6, 6 }, { 7, 7 } };
	struct kvcache *c = new_cache(8, -1, -1, "");

	(void)state;
	kvcache_set_model(c, models[0]);
	say(c, 5, text, 11);
	kvcache_set_model(c, models[1]);
	assert_cause(c, 5, text, 11, KV_MISS_MODEL);
	c = life_after(c, true, dup(kvcache_causes_fd(c)));
	kvcache_set_model(c, models[1]);
	assert_cause(c, 5, text, 11, KV_MISS_MODEL);
	kvcache_set_model(c, models[2]);
	assert_cause(c, 5, text, 11, KV_MISS_MODEL);
	assert_cause(c, 6, text, 11, KV_MISS_NEW);
	assert_cause(c, 5, text + 1, 11, KV_MISS_NEW);
	c = life_after(c, true, dup(kvcache_causes_fd(c)));
	kvcache_set_model(c, models[0]);
	assert_cause(c, 5, text, 11, KV_MISS_MODEL);
	say(c, 5, text, 11);
	assert_cause(c, 5, text, 11, KV_MISS_NONE);
	kvcache_check(c);
	kvcache_free(c);
}

/* A page is recomputed while it is being read from a record that proves damaged. */
static void what_replaces_a_damaged_record_is_written_again(void **state)
{
	char dir[] = "/tmp/steamd-kvcache-XXXXXX";
	struct kvcache *c = new_cache(8, -1, -1, "");
	struct kvcache_counts counts;
	struct kvcache_held held;
	sd_event *loop = NULL;
	struct kvdisk *disk;
	kv_page table[8];

	(void)state;
	assert_non_null(mkdtemp(dir));
	assert_int_equal(sd_event_new(&loop), 0);
	disk = new_disk(loop, dir, c);
	say(c, 5, text, 4); /* with a sum that is not the bytes' */
	finish_jobs(loop, disk);
	kvcache_yield(c, UINT64_MAX);
	assert_int_equal(kvcache_hold(c, kvcache_root(c, 5, ""), 5, text, 4, table, &held), 1);
	say(c, 5, text, 4); /* before the read ends */
	kvcache_drop(c, table, 1);
	finish_jobs(loop, disk);
	kvcache_count(c, &counts);
	assert_int_equal(counts.n_damaged, 1);
	assert_int_equal(counts.n_written, 2);
	kvcache_set_disk(c, NULL, NULL, NULL);
	kvdisk_free(disk);
	kvcache_check(c);
	kvcache_free(c);
	sd_event_unref(loop);
	nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* After a reboot nothing is known but what the disk holds; what that has lost is told from then on. */
static void what_the_disk_has_lost_is_known_to_the_next_life(void **state)
{
	char dir[] = "/tmp/steamd-kvcache-XXXXXX";
	_Alignas(4096) static char room[PAGE_BYTES];
	struct kvcache *c = new_cache(8, -1, -1, "");
	struct kvcache_walk walk;
	sd_event *loop = NULL;
	struct kvdisk *disk;
	int r = 1;

	(void)state;
	assert_non_null(mkdtemp(dir));
	assert_int_equal(sd_event_new(&loop), 0);
	disk = new_disk(loop, dir, c);
	say(c, 5, text, 4); /* with a sum that is not the bytes' */
	finish_jobs(loop, disk);
	kvcache_set_disk(c, NULL, NULL, NULL);
	kvdisk_free(disk);
	kvcache_free(c);

	c = new_cache(8, -1, -1, "");
	disk = new_disk(loop, dir, c);
	assert_int_equal(found(c, 5, text, 4), 4);
	kvcache_walk(c, kvcache_root(c, 5, ""), 5, text, 4, &walk);
	assert_int_equal(kvcache_carry_out(c, &walk, NULL, room, on_carried, &r), 0);
	while (r == 1)
		sd_event_run(loop, UINT64_MAX);
	assert_int_equal(r, -EBADMSG);
	assert_cause(c, 5, text, 8, KV_MISS_DAMAGED);
	kvcache_set_disk(c, NULL, NULL, NULL);
	kvdisk_free(disk);
	c = life_after(c, true, dup(kvcache_causes_fd(c)));
	assert_cause(c, 5, text, 8, KV_MISS_DAMAGED);
	kvcache_free(c);
	sd_event_unref(loop);
	nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* A read that fails has cost the page of which the beginning was to be copied. */
static void a_part_may_be_given_up_for_a_read_that_fails(void **state)
{
	static const uint32_t part[3] = { 1, 2, 99 };
	char dir[] = "/tmp/steamd-kvcache-XXXXXX";
	struct kvcache *c = new_cache(4, -1, -1, "");
	struct kvdisk *disk;
	struct kvcache_held held;
	sd_event *loop = NULL;
	kv_page table[8], rest[2];
	uint32_t n;

	(void)state;
	assert_non_null(mkdtemp(dir));
	assert_int_equal(sd_event_new(&loop), 0);
	disk = new_disk(loop, dir, c);
	/* being written, and not in the arena any more; from now on the loop stands still */
	say(c, 5, text, 4);
	kvcache_set_model(c, other_model);
	kvcache_set_model(c, no_model);
	say(c, 5, part, 3);
	assert_int_equal(kvcache_take(c, 5, 2, rest), 0);
	assert_int_equal(found(c, 5, text, 4), 4);
	n = kvcache_hold(c, kvcache_root(c, 5, ""), 5, text, 4, table, &held);
	assert_int_equal(held.n_tokens, 0);
	assert_int_equal(n, 0);
	kvcache_unsettle(c, &held);
	kvcache_drop(c, rest, 2);
	kvcache_set_disk(c, NULL, NULL, NULL);
	kvdisk_free(disk);
	kvcache_check(c);
	kvcache_free(c);
	sd_event_unref(loop);
	nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* The turn that it is for may be gone before: meanwhile the page is nobody else's. */
static void a_page_that_is_copied_to_is_free_when_that_is_done(void **state)
{
	struct kvcache *c = new_cache(8, -1, -1, "");
	struct kvcache_chain chain = { 0 };
	struct kvcache_counts before, n;
	struct kvcache_held held;
	struct step_move moves[2];
	struct step_moved sum = { 0 };
	kv_page table[8];
	uint32_t n_held;

	(void)state;
	say(c, 5, text, 7);
	kvcache_count(c, &before);
	for (uint32_t under_way = 0; under_way < 2; under_way++) {
		n_held = kvcache_hold(c, kvcache_root(c, 5, ""), 5, text, 12, table, &held);
		assert_int_equal(n_held, 2);
		assert_int_equal(held.source_tokens, 3);
		assert_int_equal(kvcache_settle(c, table, &held, &chain), 1);
		if (under_way)
			assert_int_equal(kvcache_moves(c, moves, 2), 1);
		kvcache_drop(c, table, n_held); /* it was cancelled */
		kvcache_count(c, &n);
		assert_int_equal(n.n_free, before.n_free - 1);
		if (under_way)
			kvcache_moved(c, &sum, 1);
		else
			do_moves(c);
		kvcache_count(c, &n);
		assert_int_equal(n.n_free, before.n_free);
		kvcache_check(c);
	}
	kvcache_free(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_next_life_finds_the_chain_and_sums_it_first),
		cmocka_unit_test(pages_without_what_is_before_them_are_dropped_and_counted),
		cmocka_unit_test(what_cannot_be_taken_over_is_made_afresh_and_says_why),
		cmocka_unit_test(why_pages_are_gone_is_known_to_the_next_life),
		cmocka_unit_test(without_what_was_noted_nothing_is_claimed),
		cmocka_unit_test(a_model_that_changed_twice_is_told_over_a_restart),
		cmocka_unit_test(what_replaces_a_damaged_record_is_written_again),
		cmocka_unit_test(what_the_disk_has_lost_is_known_to_the_next_life),
		cmocka_unit_test(a_part_may_be_given_up_for_a_read_that_fails),
		cmocka_unit_test(a_page_that_is_copied_to_is_free_when_that_is_done),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
