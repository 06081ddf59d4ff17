/* Pages of KV on a disk: put there, found again, made room for. */
#include "daemon/kv/segments.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <cmocka.h>

#include "daemon/base/clock.h"
#include "tests/unit/segworld.h"

#define FILE_BYTES (4096 + 3 * (4096 + 8192) + 4096) /* of three pages of 8192 */

static uint64_t file_bytes(const struct world *w, const char *name, struct stat *ret)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/%s", w->dir, name);
	return stat(path, ret) < 0 ? 0 : (uint64_t)ret->st_size;
}

static void blocks_are_as_they_ever_were(void **state)
{
	const struct segfile_layout l = segfile_layout(12058624, 64, 256 << 20);

	(void)state;
	assert_int_equal(offsetof(struct segfile_header, version), 24);
	assert_int_equal(offsetof(struct segfile_header, fingerprint), 32);
	assert_int_equal(offsetof(struct segfile_header, id), 48);
	assert_int_equal(offsetof(struct segfile_header, uid), 88);
	assert_int_equal(offsetof(struct segfile_record, id), 24);
	assert_int_equal(offsetof(struct segfile_record, key), 48);
	assert_int_equal(offsetof(struct segfile_record, payload_sum), 112);
	assert_int_equal(offsetof(struct segfile_record, tokens), 128);
	assert_int_equal(sizeof(struct segfile_record), 4096);
	assert_int_equal(offsetof(struct segfile_footer, keys), 48);
	assert_int_equal(l.n_slots, 22);
	assert_int_equal(l.stride, 4096 + 12058624);
	assert_int_equal(segfile_slot(&l, 1), 4096 + 4096 + 12058624);
	assert_int_equal(segfile_bytes(&l), 4096 + 22 * (4096 + 12058624) + 4096);
}

static void names_are_those_we_write(void **state)
{
	static const char *const others[] = {
		"seg-1.kv",
		"seg-000000000000000A.kv",
		"seg-0000000000000001.kv~",
		"seg- 000000000000001.kv",
		"seg-0000000000000000.kv",
		"seg-+000000000000001.kv",
		"seg-00000000000000001.kv",
		"sag-0000000000000001.kv",
		"",
	};
	static const char *const nobodies[] = { "",	      "01", "-1", "4294967295",
						"4294967296", "1 ", "a" };
	uint64_t seq;
	uint32_t uid;

	(void)state;
	assert_true(segfile_parse_name("seg-00000000000000ff.kv", &seq));
	assert_int_equal(seq, 255);
	for (size_t i = 0; i < ARRAY_SIZE(others); i++)
		assert_false(segfile_parse_name(others[i], &seq));
	assert_true(segfile_parse_uid("0", &uid));
	assert_true(segfile_parse_uid("4294967294", &uid));
	assert_int_equal(uid, 4294967294);
	for (size_t i = 0; i < ARRAY_SIZE(nobodies); i++)
		assert_false(segfile_parse_uid(nobodies[i], &uid));
}

static void go_round(uint64_t page_bytes, bool direct)
{
	struct segdisk *disk = direct ? NULL : segdisk_new();
	struct world w;

	if (disk)
		disk->no_direct = disk->no_fallocate = true;
	world_init(&w, disk, page_bytes);
	assert_int_equal(world_open(&w), 0);
	for (uint32_t i = 0; i < 20; i++)
		assert_int_equal(world_append(&w, i), 0);
	assert_int_equal(world_read_all(&w), 20);
	assert_int_equal(world_stats(&w).n_records, 20);
	assert_int_equal(world_stats(&w).n_segments, 8);
	assert_int_equal(segments_flush(w.s, NULL), 0);

	for (int again = 0; again < 2; again++) {
		assert_int_equal(world_reopen(&w), 0);
		assert_int_equal(world_held(&w), 20);
		assert_int_equal(w.n_strangers, 0);
		assert_int_equal(world_read_all(&w), 20);
		assert_int_equal(world_stats(&w).n_damaged, 0);
		if (disk)
			assert_false(world_stats(&w).direct);
	}
	/* what was not full goes on being filled: pages 18 and 19 are the first in theirs */
	for (uint32_t i = 20; i < 24; i++)
		assert_int_equal(world_append(&w, i), 0);
	assert_int_equal(world_stats(&w).n_segments, 8);
	assert_int_equal(w.pages[22].place.segment, w.pages[18].place.segment);
	assert_int_equal(world_read_all(&w), 24);
	world_deinit(&w);
	segdisk_free(disk);
}

static void what_is_stored_is_found_again(void **state)
{
	(void)state;
	go_round(8192, true);
}

static void any_size_of_page_will_do(void **state)
{
	(void)state;
	go_round(1, true);
	go_round(5000, true);
	go_round(100000, true);
}

static void it_does_without_direct_and_preallocation(void **state)
{
	(void)state;
	go_round(8192, false);
}

static void addresses_need_no_alignment(void **state)
{
	struct world w;
	uint8_t *own;

	(void)state;
	world_init(&w, NULL, 8192);
	own = w.room;
	w.room = malloc(8192 + 8);
	assert_non_null(w.room);
	w.room += 8;
	assert_int_equal(world_open(&w), 0);
	assert_int_equal(world_append(&w, 5), 0);
	assert_int_equal(segments_prefetch(w.s, w.pages[5].place, w.room), -EINVAL);
	assert_int_equal(world_read(&w, 5), 0);
	free(w.room - 8);
	w.room = own;
	world_deinit(&w);
}

static void files_are_private_and_preallocated(void **state)
{
	struct world w;
	struct stat st;

	(void)state;
	world_init(&w, NULL, 8192);
	assert_int_equal(world_open(&w), 0);
	assert_int_equal(world_append(&w, 0), 0);
	assert_int_equal(world_append(&w, 1), 0);
	assert_true(file_bytes(&w, "1000", &st));
	assert_int_equal(st.st_mode & 07777, 0700);
	assert_int_equal(file_bytes(&w, "1000/seg-0000000000000001.kv", &st), FILE_BYTES);
	assert_int_equal(st.st_mode & 07777, 0600);
	assert_true(st.st_blocks * 512 >= FILE_BYTES);
	assert_int_equal(file_bytes(&w, "1001/seg-0000000000000002.kv", &st), FILE_BYTES);
	assert_int_equal(segments_user_bytes(w.s, 1000), FILE_BYTES);
	assert_int_equal(segments_user_bytes(w.s, 1001), FILE_BYTES);
	assert_int_equal(segments_user_bytes(w.s, 1002), 0);
	assert_int_equal(world_stats(&w).bytes, 2 * FILE_BYTES);
	world_deinit(&w);
}

static void one_process_has_the_directory(void **state)
{
	struct segments *second = NULL;
	struct err err = { 0 };
	char wanted[128];
	struct world w;

	(void)state;
	world_init(&w, NULL, 8192);
	assert_int_equal(world_open(&w), 0);
	assert_int_equal(segments_open(&w.opts, &second, &err), -EBUSY);
	snprintf(wanted, sizeof(wanted), "'%s' is in use by another process", w.dir);
	assert_string_equal(err.text, wanted);
	assert_null(second);
	world_deinit(&w);
}

static void options_have_to_make_sense(void **state)
{
	struct segments *s = NULL;
	struct err err = { 0 };
	struct segments_options o;
	struct world w;

	(void)state;
	world_init(&w, NULL, 8192);
	o = w.opts;
	o.page_tokens = 993;
	assert_int_equal(segments_open(&o, &s, &err), -EINVAL);
	assert_string_equal(err.text, "no KV cache on disk has pages of 8192 bytes and 993 tokens "
				      "and keeps 0 % free");
	o = w.opts;
	o.page_bytes = 0;
	assert_int_equal(segments_open(&o, &s, &err), -EINVAL);
	o = w.opts;
	o.limits.keep_free = 100;
	assert_int_equal(segments_open(&o, &s, &err), -EINVAL);
	o = w.opts;
	o.dir = "/proc/nowhere/cache";
	assert_int_equal(segments_open(&o, &s, &err), -ENOENT);
	assert_null(s);
	world_deinit(&w);
}

static void pages_of_992_tokens_fit(void **state)
{
	static uint32_t tokens[992];
	struct segments_key key = world_key(0);
	const uint64_t sum[2] = { 0 };
	struct segments_place place;
	struct world w;

	(void)state;
	world_init(&w, NULL, 8192);
	w.opts.page_tokens = 992;
	assert_int_equal(world_open(&w), 0);
	key.n_tokens = 993;
	assert_int_equal(segments_append(w.s, &key, tokens, w.payload, sum, &place, &w.err),
			 -EINVAL);
	assert_string_equal(w.err.text, "no page of uid 1000 has 993 tokens");
	key.n_tokens = 0;
	assert_int_equal(segments_append(w.s, &key, tokens, w.payload, sum, &place, NULL), -EINVAL);
	key.n_tokens = 992;
	tokens[991] = 7;
	assert_int_equal(segments_append(w.s, &key, tokens, w.payload, sum, &place, NULL), 0);
	world_deinit(&w);
}

static void nothing_is_appended_before_all_is_known(void **state)
{
	struct world w;

	(void)state;
	world_init(&w, NULL, 8192);
	assert_int_equal(world_open(&w), 0);
	assert_int_equal(world_append(&w, 0), 0);
	world_close(&w);
	assert_int_equal(segments_open(&w.opts, &w.s, NULL), 0);
	assert_int_equal(world_append(&w, 1), -EAGAIN);
	assert_int_equal(segments_scan(w.s, NULL), 1);
	assert_int_equal(world_read(&w, 0), 0); /* but what is known is served */
	assert_int_equal(segments_scan(w.s, NULL), 0);
	assert_int_equal(world_append(&w, 1), 0);
	world_deinit(&w);
}

static void another_key_is_another_page(void **state)
{
	struct segments_key key = world_key(4);
	uint32_t tokens[WORLD_PAGE_TOKENS];
	char wanted[256];
	struct world w;

	(void)state;
	world_init(&w, NULL, 8192);
	assert_int_equal(world_open(&w), 0);
	assert_int_equal(world_append(&w, 4), 0);
	assert_int_equal(world_append(&w, 6), 0);
	world_tokens(4, tokens);

	key.root[1]++;
	assert_int_equal(segments_read(w.s, w.pages[4].place, &key, tokens, w.room, NULL, &w.err),
			 -ENOENT);
	snprintf(wanted, sizeof(wanted),
		 "no such record in slot 0 of segment 0000000000000001 of '%s'", w.dir);
	assert_string_equal(w.err.text, wanted);
	key.root[1]--;
	assert_int_equal(segments_read(w.s, w.pages[6].place, &key, tokens, w.room, NULL, NULL),
			 -ENOENT);
	assert_int_equal(
		segments_read(w.s, (struct segments_place){ 0 }, &key, tokens, w.room, NULL, NULL),
		-ENOENT);
	assert_int_equal(segments_read(w.s, (struct segments_place){ 1, 2, 0 }, &key, tokens,
				       w.room, NULL, NULL),
			 -ENOENT); /* not written yet */
	assert_int_equal(segments_read(w.s, (struct segments_place){ 1, 3, 0 }, &key, tokens,
				       w.room, NULL, NULL),
			 -ENOENT); /* there is no such slot */
	assert_int_equal(world_read_all(&w), 2);
	assert_int_equal(world_stats(&w).n_damaged, 0);

	/* of the same key but other tokens it must not be served, ever */
	tokens[2]++;
	assert_int_equal(segments_read(w.s, w.pages[4].place, &key, tokens, w.room, NULL, &w.err),
			 -EBADMSG);
	snprintf(wanted, sizeof(wanted),
		 "record 0 of '%s/1000/seg-0000000000000001.kv': its token 2 is 4002, and not 4003",
		 w.dir);
	assert_string_equal(w.err.text, wanted);
	assert_int_equal(w.pages[4].n_gone, 1);
	assert_int_equal(w.pages[4].why, SEGMENTS_DAMAGED);
	assert_int_equal(world_read_all(&w), 1);
	world_deinit(&w);
}

static void what_is_forgotten_is_not_found_again(void **state)
{
	struct world w;
	struct stat st;

	(void)state;
	world_init(&w, NULL, 8192);
	assert_int_equal(world_open(&w), 0);
	for (uint32_t i = 0; i < 8; i++)
		assert_int_equal(world_append(&w, i), 0);
	world_forget(&w, 2); /* in a full segment: of 0, 2, 4 */
	world_forget(&w, 7); /* in one that is not: of 7 */
	assert_int_equal(world_read(&w, 2), -ENOENT);
	assert_int_equal(segments_user_bytes(w.s, 1000), 2 * FILE_BYTES - 12288);
	segments_forget(w.s, w.pages[2].place); /* no error */

	assert_int_equal(world_reopen(&w), 0);
	assert_false(w.pages[2].held || w.pages[7].held);
	assert_int_equal(world_read_all(&w), 6);
	assert_int_equal(world_stats(&w).n_damaged, 0);
	assert_int_equal(segments_user_bytes(w.s, 1000), 2 * FILE_BYTES - 12288);

	/* the file goes with its last record */
	assert_true(file_bytes(&w, "1000/seg-0000000000000001.kv", &st));
	world_forget(&w, 0);
	world_forget(&w, 4);
	assert_false(file_bytes(&w, "1000/seg-0000000000000001.kv", &st));
	assert_int_equal(segments_user_bytes(w.s, 1000), FILE_BYTES);
	for (uint32_t i = 0; i < 8; i++)
		assert_int_equal(w.pages[i].n_gone, 0); /* who forgets need not be told */
	assert_int_equal(segments_flush(w.s, NULL), 0);
	world_deinit(&w);
}

/* Without holes the head is overwritten: the same, but that no space comes back. */
static void it_is_forgotten_without_holes_as_well(void **state)
{
	_cleanup_(segdisk_freep) struct segdisk *disk = segdisk_new();
	struct world w;

	(void)state;
	disk->no_fallocate = true;
	world_init(&w, disk, 8192);
	assert_int_equal(world_open(&w), 0);
	for (uint32_t i = 0; i < 8; i++)
		assert_int_equal(world_append(&w, i), 0);
	world_forget(&w, 2);
	world_forget(&w, 7);
	assert_int_equal(world_reopen(&w), 0);
	assert_false(w.pages[2].held || w.pages[7].held);
	assert_int_equal(world_read_all(&w), 6);
	assert_int_equal(segments_user_bytes(w.s, 1000), 2 * FILE_BYTES);
	world_deinit(&w);
}

static void a_user_is_forgotten_and_nobody_else(void **state)
{
	struct world w;
	struct stat st;

	(void)state;
	world_init(&w, NULL, 8192);
	assert_int_equal(world_open(&w), 0);
	for (uint32_t i = 0; i < 10; i++)
		assert_int_equal(world_append(&w, i), 0);
	segments_forget_user(w.s, 1001);
	assert_int_equal(segments_user_bytes(w.s, 1001), 0);
	for (uint32_t i = 0; i < 10; i++)
		assert_int_equal(world_read(&w, i), i % 2 ? -ENOENT : 0);
	assert_false(file_bytes(&w, "1001/seg-0000000000000002.kv", &st));
	segments_forget_user(w.s, SEGMENTS_ALL);
	assert_int_equal(world_stats(&w).bytes, 0);
	assert_int_equal(segments_flush(w.s, NULL), 0);
	assert_int_equal(world_reopen(&w), 0);
	assert_int_equal(world_held(&w), 0);
	world_deinit(&w);
}

static void other_names_are_left_alone(void **state)
{
	static const char *const names[] = { "1000/notes", "1000/seg-1.kv", "lost", "4294967295" };
	struct world w;
	struct stat st;
	char path[128];

	(void)state;
	world_init(&w, NULL, 8192);
	assert_int_equal(world_open(&w), 0);
	assert_int_equal(world_append(&w, 0), 0);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		snprintf(path, sizeof(path), "%s/%s", w.dir, names[i]);
		closep(&(int){ open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600) });
	}
	snprintf(path, sizeof(path), "%s/1003", w.dir);
	assert_int_equal(symlink("/etc", path), 0);
	assert_int_equal(world_reopen(&w), 0);
	assert_int_equal(world_held(&w), 1);
	segments_forget_user(w.s, SEGMENTS_ALL);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		file_bytes(&w, names[i], &st);
		assert_int_equal(st.st_mode & 07777, 0600);
	}
	world_deinit(&w);
}

static void all_may_be_deleted_while_it_is_open(void **state)
{
	char command[160];
	struct world w;

	(void)state;
	world_init(&w, NULL, 8192);
	assert_int_equal(world_open(&w), 0);
	for (uint32_t i = 0; i < 10; i++)
		assert_int_equal(world_append(&w, i), 0);
	assert_int_equal(world_reopen(&w), 0);
	world_read(&w, 9);
	snprintf(command, sizeof(command), "rm -r %s/*", w.dir);
	assert_int_equal(system(command), 0);
	world_read_all(&w);
	for (uint32_t i = 10; i < 30; i++)
		assert_int_equal(world_append(&w, i), 0);
	for (uint32_t i = 24; i < 30; i++)
		assert_int_equal(world_read(&w, i), 0);
	assert_int_equal(world_reopen(&w), 0);
	assert_true(world_held(&w) >= 12);
	assert_int_equal(world_read_all(&w), world_held(&w));
	world_deinit(&w);
}

static void few_files_are_open_at_a_time(void **state)
{
	_cleanup_(segdisk_freep) struct segdisk *disk = segdisk_new();
	struct world w;

	(void)state;
	world_init(&w, disk, 8192);
	world_segment(&w, 1);
	assert_int_equal(world_open(&w), 0);
	for (uint32_t i = 0; i < 200; i++)
		assert_int_equal(world_append(&w, i), 0);
	assert_int_equal(world_read_all(&w), 200);
	assert_int_equal(segdisk_open_fds(disk), 64 + 1);
	assert_int_equal(world_reopen(&w), 0);
	assert_int_equal(world_read_all(&w), 200);
	assert_int_equal(segdisk_open_fds(disk), 64 + 1);
	world_deinit(&w);
}

static void what_is_read_ahead_is_the_same(void **state)
{
	uint8_t *room[3];
	struct world w;

	(void)state;
	world_init(&w, NULL, 1 << 20);
	for (int i = 0; i < 3; i++)
		assert_non_null(room[i] = aligned_alloc(4096, 1 << 20));
	assert_int_equal(world_open(&w), 0);
	for (uint32_t i = 0; i < 12; i++)
		assert_int_equal(world_append(&w, i), 0);
	free(w.room);
	/* as one does it: while this page is looked at, the next is read */
	for (uint32_t i = 0; i < 12; i++) {
		w.room = room[i % 2];
		if (i < 11)
			assert_int_equal(
				segments_prefetch(w.s, w.pages[i + 1].place, room[(i + 1) % 2]), 0);
		assert_int_equal(world_read(&w, i), 0);
	}
	assert_int_equal(segments_prefetch(w.s, w.pages[1].place, room[0]), 0);
	assert_int_equal(segments_prefetch(w.s, w.pages[2].place, room[1]), 0);
	assert_int_equal(segments_prefetch(w.s, w.pages[3].place, room[2]), -EAGAIN);
	segments_cancel(w.s);
	assert_int_equal(segments_prefetch(w.s, w.pages[3].place, room[2]), 0);
	/* another page is wanted in the same room */
	w.room = room[2];
	assert_int_equal(world_read(&w, 5), 0);
	/* its file goes while it is read */
	assert_int_equal(segments_prefetch(w.s, w.pages[7].place, room[2]), 0);
	segments_forget_user(w.s, 1001);
	assert_int_equal(world_read(&w, 7), -ENOENT);
	assert_int_equal(segments_prefetch(w.s, w.pages[7].place, room[2]), -ENOENT);
	/* the store goes while it is read */
	assert_int_equal(segments_prefetch(w.s, w.pages[2].place, room[0]), 0);
	world_close(&w);
	w.room = room[0];
	free(room[1]);
	free(room[2]);
	world_deinit(&w);
}

static void a_user_over_his_limit_loses_his_own(void **state)
{
	char wanted[256];
	struct world w;

	(void)state;
	world_init(&w, NULL, 8192);
	w.opts.limits.user_bytes = 4 * FILE_BYTES;
	assert_int_equal(world_open(&w), 0);
	assert_int_equal(world_append(&w, 1), 0);
	for (uint32_t i = 0; i < 40; i += 2)
		assert_int_equal(world_append(&w, i), 0);
	assert_int_equal(segments_user_bytes(w.s, 1000), 4 * FILE_BYTES);
	assert_int_equal(world_stats(&w).n_evicted, 3);
	assert_int_equal(w.pages[0].why, SEGMENTS_EVICTED);
	assert_int_equal(world_held(&w), 1 + 20 - 9);
	assert_int_equal(world_read_all(&w), 1 + 20 - 9);

	/* a limit below one page's file: refused with the numbers */
	segments_limit(w.s, &(struct segments_limits){ .total_bytes = 1 << 30, .user_bytes = 999 });
	for (uint32_t i = 40; i < 42; i += 2)
		assert_int_equal(world_append(&w, i), 0); /* there is still a slot */
	assert_int_equal(world_append(&w, 42), -EDQUOT);
	snprintf(wanted, sizeof(wanted),
		 "uid 1000 has 0 bytes in '%s' and may have 999; a file of 20480 is wanted", w.dir);
	assert_string_equal(w.err.text, wanted);
	assert_int_equal(world_stats(&w).n_refused, 1);
	assert_int_equal(world_read(&w, 1), 0);
	world_deinit(&w);
}

static void nobody_is_evicted_below_his_minimum(void **state)
{
	struct world w;

	(void)state;
	world_init(&w, NULL, 8192);
	w.opts.limits.total_bytes = 6 * FILE_BYTES;
	w.opts.limits.user_min_percent = 34;
	assert_int_equal(world_open(&w), 0);
	for (uint32_t i = 1; i < 1 + 2 * 9; i += 2)
		assert_int_equal(world_append(&w, i), 0); /* three files of uid 1001 */
	for (uint32_t i = 0; i < 2 * 60; i += 2)
		assert_int_equal(world_append(&w, i), 0); /* twenty of uid 1000 */
	assert_int_equal(segments_user_bytes(w.s, 1001), 2 * FILE_BYTES);
	assert_int_equal(segments_user_bytes(w.s, 1000), 4 * FILE_BYTES);

	/* the owner himself has no such protection, nor has anybody from the administrator */
	assert_int_equal(segments_evict(w.s, 1, 1001), FILE_BYTES);
	assert_int_equal(segments_user_bytes(w.s, 1001), FILE_BYTES);
	assert_int_equal(segments_evict(w.s, 1 << 30, SEGMENTS_ALL), 5 * FILE_BYTES);
	assert_int_equal(world_held(&w), 0);
	assert_int_equal(segments_evict(w.s, 1, SEGMENTS_ALL), 0);
	world_deinit(&w);
}

static void what_is_worth_least_goes_first(void **state)
{
	struct world w;

	(void)state;
	clock_fake(1, 1000000 * US_PER_S);
	world_init(&w, NULL, 8192);
	world_segment(&w, 1);
	assert_int_equal(world_open(&w), 0);
	assert_int_equal(world_append(&w, 14), 0); /* 15 tokens, old, but wanted again and again */
	assert_int_equal(world_append(&w, 30), 0); /* 15 tokens, old */
	clock_advance(24 * 3600 * US_PER_S);
	assert_int_equal(world_append(&w, 12), 0); /* 13 tokens */
	assert_int_equal(world_append(&w, 0), 0);  /* 1 token */
	for (int i = 0; i < 30; i++)
		assert_int_equal(world_read(&w, 14), 0);

	assert_true(segments_evict(w.s, 1, SEGMENTS_ALL) > 0);
	assert_false(w.pages[0].held);
	assert_true(segments_evict(w.s, 1, SEGMENTS_ALL) > 0);
	assert_false(w.pages[30].held);
	assert_true(segments_evict(w.s, 1, SEGMENTS_ALL) > 0);
	assert_false(w.pages[12].held);
	assert_int_equal(world_read(&w, 14), 0);
	clock_real();
	world_deinit(&w);
}

static void what_was_used_while_the_clock_was_ahead_is_worth_no_more_for_that(void **state)
{
	struct world w;

	(void)state;
	clock_fake(1, 1000000 * US_PER_S);
	world_init(&w, NULL, 8192);
	world_segment(&w, 1);
	assert_int_equal(world_open(&w), 0);
	assert_int_equal(world_append(&w, 0), 0); /* 1 token */
	clock_fake(1, 1000 * US_PER_S);
	assert_int_equal(world_append(&w, 12), 0); /* 13 tokens */
	assert_true(segments_evict(w.s, 1, SEGMENTS_ALL) > 0);
	assert_false(w.pages[0].held);
	assert_int_equal(world_read(&w, 12), 0);
	clock_real();
	world_deinit(&w);
}

static uint32_t n_kept;
static void keep(struct world *w, uint32_t page)
{
	assert_int_equal(world_read(w, page), 0);
	n_kept++;
}

static void a_hot_one_can_be_read_as_it_goes(void **state)
{
	struct world w;

	(void)state;
	world_init(&w, NULL, 8192);
	assert_int_equal(world_open(&w), 0);
	for (uint32_t i = 0; i < 6; i += 2)
		assert_int_equal(world_append(&w, i), 0);
	n_kept = 0;
	w.on_gone = keep;
	assert_int_equal(segments_evict(w.s, 1, 1000), FILE_BYTES);
	assert_int_equal(n_kept, 3);
	w.on_gone = NULL;
	assert_int_equal(world_append(&w, 4), 0);
	assert_int_equal(world_read(&w, 4), 0);
	world_deinit(&w);
}

static void files_of_another_model_go_first(void **state)
{
	struct world w;

	(void)state;
	for (int kind = 0; kind < 4; kind++) {
		world_init(&w, NULL, 8192);
		assert_int_equal(world_open(&w), 0);
		for (uint32_t i = 1; i < 6; i += 2)
			assert_int_equal(world_append(&w, i), 0);
		w.opts.fingerprint[3] ^= kind == 0;
		w.opts.layout += kind == 1;
		w.opts.page_bytes -= kind == 2 ? 4096 : 0;
		w.opts.page_tokens -= kind == 3;
		w.opts.limits.total_bytes = 4 * FILE_BYTES;
		w.opts.limits.user_min_percent = 34; /* is not for these */
		assert_int_equal(world_reopen(&w), 0);
		assert_int_equal(world_held(&w), 0);
		assert_int_equal(world_stats(&w).n_foreign, 1);
		assert_int_equal(world_stats(&w).foreign_bytes, FILE_BYTES);
		assert_int_equal(world_stats(&w).n_damaged, 0);
		for (uint32_t i = 0; i < 80; i += 2)
			assert_int_equal(world_append(&w, i), 0);
		assert_int_equal(world_stats(&w).n_foreign, 0);
		assert_int_equal(w.pages[0].n_gone, 1);
		world_deinit(&w);
	}
}

static void a_full_disk_is_served_on(void **state)
{
	_cleanup_(segdisk_freep) struct segdisk *disk = segdisk_new();
	char wanted[256];
	struct world w;

	(void)state;
	disk->total_bytes = 10 * FILE_BYTES;
	world_init(&w, disk, 8192);
	w.opts.limits.keep_free = 50;
	assert_int_equal(world_open(&w), 0);
	for (uint32_t i = 0; i < 60; i++)
		assert_int_equal(world_append(&w, i), 0);
	assert_true(world_stats(&w).bytes <= 5 * FILE_BYTES);
	assert_true(world_held(&w) >= 10);
	assert_int_equal(world_read_all(&w), world_held(&w));

	/* others fill it: what is here makes room, and then nothing is written any more */
	segdisk_resize(segdisk_add(disk, "film", false), 8 * FILE_BYTES);
	for (uint32_t i = 60; i < 70; i++)
		world_append(&w, i);
	assert_int_equal(world_append(&w, 70), -ENOSPC);
	snprintf(wanted, sizeof(wanted),
		 "the file system of '%s' has no room for a file of %d bytes if 50 %% of it are to "
		 "stay free",
		 w.dir, FILE_BYTES);
	assert_string_equal(w.err.text, wanted);
	assert_int_equal(world_held(&w), 0);
	segdisk_resize(segdisk_find(disk, "film"), 0);
	assert_int_equal(world_append(&w, 70), 0);
	assert_int_equal(world_read(&w, 70), 0);
	world_deinit(&w);
}

/* A page's last block is filled up: with nothing, and not with what was in the room before. */
static void nothing_of_one_user_is_in_a_file_of_another(void **state)
{
	_cleanup_(segdisk_freep) struct segdisk *disk = segdisk_new();
	const struct segdisk_file *f;
	struct world w;

	(void)state;
	world_init(&w, disk, 5000);
	assert_int_equal(world_open(&w), 0);
	for (uint32_t i = 0; i < 6; i++)
		assert_int_equal(world_append(&w, i), 0);
	f = segdisk_find(disk, "1001/seg-0000000000000002.kv");
	assert_non_null(f);
	for (uint32_t slot = 0; slot < 3; slot++) {
		const uint8_t *payload = f->data + 4096 + slot * 12288 + 4096;

		world_payload(&w, 1 + 2 * slot, w.payload);
		assert_memory_equal(payload, w.payload, 5000);
		for (uint32_t i = 5000; i < 8192; i++)
			assert_int_equal(payload[i], 0);
	}
	world_deinit(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(blocks_are_as_they_ever_were),
		cmocka_unit_test(names_are_those_we_write),
		cmocka_unit_test(what_is_stored_is_found_again),
		cmocka_unit_test(any_size_of_page_will_do),
		cmocka_unit_test(it_does_without_direct_and_preallocation),
		cmocka_unit_test(addresses_need_no_alignment),
		cmocka_unit_test(files_are_private_and_preallocated),
		cmocka_unit_test(one_process_has_the_directory),
		cmocka_unit_test(options_have_to_make_sense),
		cmocka_unit_test(pages_of_992_tokens_fit),
		cmocka_unit_test(nothing_is_appended_before_all_is_known),
		cmocka_unit_test(another_key_is_another_page),
		cmocka_unit_test(what_is_forgotten_is_not_found_again),
		cmocka_unit_test(it_is_forgotten_without_holes_as_well),
		cmocka_unit_test(a_user_is_forgotten_and_nobody_else),
		cmocka_unit_test(other_names_are_left_alone),
		cmocka_unit_test(all_may_be_deleted_while_it_is_open),
		cmocka_unit_test(few_files_are_open_at_a_time),
		cmocka_unit_test(what_is_read_ahead_is_the_same),
		cmocka_unit_test(a_user_over_his_limit_loses_his_own),
		cmocka_unit_test(nobody_is_evicted_below_his_minimum),
		cmocka_unit_test(what_is_worth_least_goes_first),
		cmocka_unit_test(what_was_used_while_the_clock_was_ahead_is_worth_no_more_for_that),
		cmocka_unit_test(a_hot_one_can_be_read_as_it_goes),
		cmocka_unit_test(files_of_another_model_go_first),
		cmocka_unit_test(a_full_disk_is_served_on),
		cmocka_unit_test(nothing_of_one_user_is_in_a_file_of_another),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
