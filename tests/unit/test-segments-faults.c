/*
 * The disk tier when calls fail, when the process ends at one of them, and
 * when the power goes. What is served is right, what was written by a process
 * that was killed is there, and what comes later works.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "tests/unit/segworld.h"

#define LATER 200 /* the pages that come after the fault */

/* Some of everything; whatever of it fails. Ends where the process does. */
static void live(struct world *w)
{
	uint32_t i = 0;

	if (world_open(w) < 0)
		return;
	while (i < 16 && !w->disk->dead)
		world_append(w, i++);
	if (!w->disk->dead)
		world_read_all(w);
	if (!w->disk->dead)
		world_forget(w, 2); /* of a full file */
	if (!w->disk->dead)
		world_forget(w, 13); /* of one that is not */
	if (!w->disk->dead)
		segments_flush(w->s, NULL);
	if (!w->disk->dead)
		segments_evict(w->s, 1, 1001);
	while (i < 22 && !w->disk->dead)
		world_append(w, i++);
	if (!w->disk->dead)
		world_read_all(w);
}

/* One life before, so that there is something to be found. */
static struct segdisk *used_disk(struct world *w)
{
	struct segdisk *disk = segdisk_new();

	disk->total_bytes = 1 << 20;
	world_init(w, disk, 4096);
	w->opts.limits.user_bytes = 200000; /* seven files: evicts now and then */
	assert_int_equal(world_open(w), 0);
	for (uint32_t i = 100; i < 108; i++)
		assert_int_equal(world_append(w, i), 0);
	world_close(w);
	return disk;
}

static uint64_t calls_of_a_life(void)
{
	struct world w;
	struct segdisk *disk = used_disk(&w);
	uint64_t n = disk->n_calls;

	live(&w);
	n = disk->n_calls - n;
	assert_int_equal(world_stats(&w).n_damaged + world_stats(&w).n_failed, 0);
	world_deinit(&w);
	segdisk_free(disk);
	return n;
}

/* All is well again; is it? */
static void live_on(struct world *w)
{
	w->disk->at = 0;
	w->disk->lasting = false;
	if (!w->s)
		assert_int_equal(world_open(w), 0);
	while (segments_scan(w->s, NULL) > 0) /* there may have been no memory for it */
		;
	world_read_all(w);
	for (uint32_t i = LATER; i < LATER + 8; i++) {
		assert_int_equal(world_append(w, i), 0);
		assert_int_equal(world_read(w, i), 0);
	}
	assert_int_equal(segments_flush(w->s, NULL), 0);
	assert_int_equal(world_reopen(w), 0);
	assert_int_equal(w->n_strangers, 0);
	for (uint32_t i = LATER; i < LATER + 8; i++)
		assert_int_equal(world_read(w, i), 0);
	world_read_all(w);
}

static void fail_each(enum segdisk_fault fault, int error, bool lasting)
{
	const uint64_t calls = calls_of_a_life();

	assert_true(calls > 100);
	for (uint64_t n = 1; n <= calls; n++) {
		struct world w;
		struct segdisk *disk = used_disk(&w);

		disk->at = disk->n_calls + n;
		disk->fault = fault;
		disk->error = error;
		disk->lasting = lasting;
		live(&w);
		live_on(&w);
		world_deinit(&w);
		segdisk_free(disk);
	}
}

static void any_call_may_fail_once(void **state)
{
	static const int errors[] = { EIO,    ENOSPC, EDQUOT, EINTR,  EINVAL, ENOMEM,
				      EMFILE, EACCES, EROFS,  ENOENT, EAGAIN, EOPNOTSUPP };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(errors); i++)
		fail_each(FAULT_ERROR, errors[i], false);
}

static void a_kind_of_call_may_fail_from_then_on(void **state)
{
	static const int errors[] = { EIO, ENOSPC, EDQUOT, EINVAL, ENOMEM, EMFILE, EROFS };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(errors); i++)
		fail_each(FAULT_ERROR, errors[i], true);
}

static void reads_and_writes_may_be_short(void **state)
{
	(void)state;
	fail_each(FAULT_SHORT, 0, false);
	fail_each(FAULT_SCRAP, 0, false);
	fail_each(FAULT_SCRAP, 0, true);
}

/* Not tried again on the same file, although it would "succeed": what the kernel could not write is gone. */
static void a_failed_sync_gives_the_file_up(void **state)
{
	struct world w;
	struct segdisk *disk = segdisk_new();

	(void)state;
	world_init(&w, disk, 4096);
	assert_int_equal(world_open(&w), 0);
	for (uint32_t i = 0; i < 4; i += 2)
		assert_int_equal(world_append(&w, i), 0);
	disk->at = disk->n_calls + 1;
	disk->error = EIO;
	assert_int_equal(segments_flush(w.s, &w.err), -EIO);
	assert_non_null(strstr(w.err.text, "cannot sync '"));
	assert_non_null(strstr(w.err.text, "1000/seg-0000000000000001.kv': Input/output error"));
	for (uint32_t i = 0; i < 4; i += 2) {
		assert_int_equal(w.pages[i].n_gone, 1);
		assert_int_equal(w.pages[i].why, SEGMENTS_FAILED);
	}
	assert_int_equal(world_stats(&w).n_failed, 1);
	assert_null(segdisk_find(disk, "1000/seg-0000000000000001.kv"));
	assert_int_equal(segments_flush(w.s, NULL), 0);

	/* the sync of a file that gets full: the page that filled it goes into a new one */
	for (uint32_t i = 0; i < 4; i += 2)
		assert_int_equal(world_append(&w, i), 0);
	disk->at = disk->n_calls + 4; /* payload, head, footer, sync */
	assert_int_equal(world_append(&w, 4), 0);
	assert_int_equal(world_stats(&w).n_failed, 2);
	assert_int_equal(w.pages[0].n_gone, 2);
	assert_int_equal(w.pages[4].n_gone, 0);
	assert_int_equal(world_read_all(&w), 1);
	world_deinit(&w);
	segdisk_free(disk);
}

static void a_failed_write_goes_to_another_file(void **state)
{
	struct world w;
	struct segdisk *disk = segdisk_new();

	(void)state;
	world_init(&w, disk, 4096);
	assert_int_equal(world_open(&w), 0);
	assert_int_equal(world_append(&w, 0), 0);
	disk->at = disk->n_calls + 2; /* of the head */
	disk->error = EIO;
	assert_int_equal(world_append(&w, 2), 0);
	assert_int_equal(w.pages[0].why, SEGMENTS_FAILED);
	assert_int_equal(w.pages[2].place.segment, 2);
	assert_int_equal(world_read(&w, 2), 0);

	disk->at = disk->n_calls + 1;
	disk->lasting = true;
	assert_int_equal(world_append(&w, 4), -EIO);
	assert_non_null(strstr(w.err.text, "cannot make '"));
	assert_int_equal(world_held(&w), 0);
	assert_int_equal(world_stats(&w).bytes, 0);
	live_on(&w);
	world_deinit(&w);
	segdisk_free(disk);
}

static void no_room_at_a_write_makes_room(void **state)
{
	struct world w;
	struct segdisk *disk = segdisk_new();

	(void)state;
	disk->no_fallocate = true; /* so that it shows only then */
	world_init(&w, disk, 4096);
	assert_int_equal(world_open(&w), 0);
	for (uint32_t i = 0; i < 8; i += 2)
		assert_int_equal(world_append(&w, i), 0);
	disk->at = disk->n_calls + 1;
	disk->error = ENOSPC;
	assert_int_equal(world_append(&w, 8), 0);
	assert_int_equal(w.pages[0].why, SEGMENTS_EVICTED);
	assert_int_equal(w.pages[8].place.segment, w.pages[6].place.segment);
	assert_int_equal(world_read_all(&w), 2);
	disk->at = disk->n_calls + 1;
	disk->lasting = true;
	assert_int_equal(world_append(&w, 10), -ENOSPC); /* nothing more can go for it */
	assert_int_equal(world_stats(&w).n_refused, 1);
	assert_int_equal(world_read_all(&w), 2);
	live_on(&w);
	world_deinit(&w);
	segdisk_free(disk);
}

static void a_file_that_cannot_be_deleted_is_done_with(void **state)
{
	struct world w;
	struct segdisk *disk = segdisk_new();

	(void)state;
	world_init(&w, disk, 4096);
	assert_int_equal(world_open(&w), 0);
	for (uint32_t i = 0; i < 12; i += 2)
		assert_int_equal(world_append(&w, i), 0);
	disk->at = disk->n_calls + 1;
	disk->error = EACCES;
	assert_true(segments_evict(w.s, 1, SEGMENTS_ALL) > 0); /* the other one */
	assert_int_equal(world_held(&w), 0);
	assert_int_equal(world_stats(&w).n_foreign, 1);
	assert_int_equal(segments_evict(w.s, 1, SEGMENTS_ALL), 0);
	segments_forget_user(w.s, 1000);
	assert_int_equal(world_stats(&w).bytes, 0);
	world_deinit(&w);
	segdisk_free(disk);
}

/*
 * The process is killed at each of its calls. All that it said to have written
 * and not to have given up is there afterwards, whole.
 */
static void a_killed_process_loses_nothing(void **state)
{
	const uint64_t calls = calls_of_a_life();

	(void)state;
	for (uint64_t n = 1; n <= calls; n++) {
		bool held[WORLD_PAGES_MAX];
		struct world w, next;
		struct segdisk *disk = used_disk(&w), *after;

		disk->at = disk->n_calls + n;
		disk->fault = FAULT_DEATH;
		live(&w);
		assert_true(disk->dead);
		for (uint32_t i = 0; i < WORLD_PAGES_MAX; i++)
			held[i] = w.pages[i].held;
		after = segdisk_copy(disk);
		world_deinit(&w);
		segdisk_free(disk);

		world_init(&next, after, 4096);
		next.opts.limits.user_bytes = 200000;
		assert_int_equal(world_open(&next), 0);
		world_read_all(&next);
		for (uint32_t i = 0; i < WORLD_PAGES_MAX; i++)
			assert_true(next.pages[i].read || !held[i]);
		/* nothing half either: a record is there behind its payload, a footer behind all */
		for (uint32_t i = 0; i < WORLD_PAGES_MAX; i++)
			assert_true(next.pages[i].read || !next.pages[i].held);
		live_on(&next);
		world_deinit(&next);
		segdisk_free(after);
	}
}

static void lose_power(const struct segdisk *disk, uint32_t n, enum segdisk_cut how, uint32_t seed,
		       bool *ret_all)
{
	struct segdisk *after = segdisk_cut(disk, n, how, seed);
	struct world w;

	world_init(&w, after, 4096);
	w.opts.limits.user_bytes = 200000;
	assert_int_equal(world_open(&w), 0);
	assert_int_equal(w.n_strangers, 0);
	/* a file whose making was cut short has no header: that is no damage to a record */
	*ret_all = world_read_all(&w) == world_held(&w) &&
		   world_stats(&w).n_damaged == world_stats(&w).n_foreign;
	live_on(&w);
	world_deinit(&w);
	segdisk_free(after);
}

/* What was written before the power went, and what of it had reached the disk: every prefix, in many ways. */
static void without_power_it_is_right_or_absent(void **state)
{
	uint32_t n_cuts = 0, n_whole = 0;
	struct segdisk *disk = segdisk_new();
	struct world w;

	(void)state;
	disk->logs = true;
	disk->total_bytes = 1 << 20;
	world_init(&w, disk, 4096);
	w.opts.limits.user_bytes = 200000;
	live(&w);
	assert_int_equal(world_stats(&w).n_failed, 0);
	world_deinit(&w);

	for (uint32_t n = 0; n <= disk->n_log; n++)
		for (uint32_t i = 0; i < 2 + 2 * 8; i++) {
			const enum segdisk_cut how = i < 2 ? i : i % 2 ? CUT_512 : CUT_4096;
			bool all;

			lose_power(disk, n, how, n * 100 + i, &all);
			/* in order and whole it is as after a kill */
			assert_true(all || how != CUT_NOTHING);
			n_cuts++;
			n_whole += all;
		}
	print_message("%u events, %u cuts, after %u of them something was damaged\n", disk->n_log,
		      n_cuts, n_cuts - n_whole);
	assert_true(n_whole < n_cuts); /* or the disk in memory tears nothing */
	segdisk_free(disk);
}

/* After a flush it is on the disk, whatever else happens. */
static void what_was_flushed_is_there_without_power(void **state)
{
	struct segdisk *disk = segdisk_new(), *after;
	struct world w, next;

	(void)state;
	disk->logs = true;
	world_init(&w, disk, 4096);
	assert_int_equal(world_open(&w), 0);
	for (uint32_t i = 0; i < 11; i++)
		assert_int_equal(world_append(&w, i), 0);
	world_forget(&w, 2);
	world_forget(&w, 9);
	segments_evict(w.s, 1, 1001);
	assert_int_equal(segments_flush(w.s, NULL), 0);

	for (uint32_t seed = 0; seed < 20; seed++) {
		after = segdisk_cut(disk, disk->n_log, CUT_ALL + seed % 3, seed);
		world_init(&next, after, 4096);
		assert_int_equal(world_open(&next), 0);
		for (uint32_t i = 0; i < WORLD_PAGES_MAX; i++)
			assert_int_equal(next.pages[i].held, w.pages[i].held);
		assert_int_equal(world_read_all(&next), world_held(&w));
		assert_int_equal(world_stats(&next).n_damaged, 0);
		world_deinit(&next);
		segdisk_free(after);
	}
	world_deinit(&w);
	segdisk_free(disk);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(any_call_may_fail_once),
		cmocka_unit_test(a_kind_of_call_may_fail_from_then_on),
		cmocka_unit_test(reads_and_writes_may_be_short),
		cmocka_unit_test(a_failed_sync_gives_the_file_up),
		cmocka_unit_test(a_failed_write_goes_to_another_file),
		cmocka_unit_test(no_room_at_a_write_makes_room),
		cmocka_unit_test(a_file_that_cannot_be_deleted_is_done_with),
		cmocka_unit_test(a_killed_process_loses_nothing),
		cmocka_unit_test(without_power_it_is_right_or_absent),
		cmocka_unit_test(what_was_flushed_is_there_without_power),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
