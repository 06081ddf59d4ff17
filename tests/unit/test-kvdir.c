/* Entries opened, sealed, dropped, adopted: what a later broker may believe, and whose bytes are where. */
#include "daemon/kv/kvdir.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/wire/ownership.h"

#define N_PAGES 4
#define PAGE_TOKENS 16
#define HEAD_BYTES 4096
#define ENTRY_BYTES 192 /* 104 and 16 tokens, up to a multiple of 64 */
#define ALL_BYTES (HEAD_BYTES + N_PAGES * ENTRY_BYTES)
#define SEALS (F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL)

/* Where things are, in literals: another program wrote what is adopted. */
enum { AT_MAGIC = 0, AT_VERSION = 8, AT_N_PAGES = 12, AT_PAGE_TOKENS = 16, AT_ENTRY_BYTES = 20 };
enum { AT_STATE = 0, AT_OWNER = 16, AT_GENERATION = 20, AT_CHECK = 96, AT_TOKENS = 104 };
enum { FREE, OPEN, SEALED };

static struct kvdir *new_dir(void)
{
	struct kvdir *d = NULL;
	struct err err = { 0 };

	assert_int_equal(kvdir_new(N_PAGES, PAGE_TOKENS, &d, &err), 0);
	return d;
}

static uint8_t *map_of(const struct kvdir *d)
{
	uint8_t *at = mmap(NULL, ALL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, kvdir_fd(d), 0);

	assert_true(at != MAP_FAILED);
	return at;
}

static uint32_t word(const uint8_t *map, uint32_t page, uint32_t at)
{
	uint32_t ret;

	memcpy(&ret, map + HEAD_BYTES + page * ENTRY_BYTES + at, sizeof(ret));
	return ret;
}

static void seal(struct kvdir *d, uint32_t page, uint32_t uid, uint32_t n_tokens)
{
	uint32_t tokens[PAGE_TOKENS];
	const struct kvdir_page p = {
		.uid = uid,
		.n_tokens = n_tokens,
		.depth = page + 1,
		.hits = 3,
		.hash = { 0x1111 + page, 0x2222 },
		.parent = { 0x3333, 0x4444 + page },
		.root = { 0x5555, 0x6666 },
		.sum = { 0x7777 + page, 0x8888 },
		.used_us = 1000000 + page,
		.tokens = tokens,
	};

	for (uint32_t i = 0; i < n_tokens; i++)
		tokens[i] = 100 * page + i;
	kvdir_seal(d, page, &p);
	memset(tokens, 0xff, sizeof(tokens)); /* they were copied */
}

static void assert_sealed(const struct kvdir *d, uint32_t page, uint32_t uid, uint32_t n_tokens)
{
	struct kvdir_page p = { 0 };

	assert_true(kvdir_get(d, page, &p));
	assert_int_equal(p.uid, uid);
	assert_int_equal(p.n_tokens, n_tokens);
	assert_int_equal(p.depth, page + 1);
	assert_int_equal(p.hits, 3);
	assert_true(chain_equal(p.hash, (struct kv_hash){ 0x1111 + page, 0x2222 }));
	assert_true(chain_equal(p.parent, (struct kv_hash){ 0x3333, 0x4444 + page }));
	assert_true(chain_equal(p.root, (struct kv_hash){ 0x5555, 0x6666 }));
	assert_true(p.sum[0] == 0x7777 + page && p.sum[1] == 0x8888);
	assert_int_equal(p.used_us, 1000000 + page);
	for (uint32_t i = 0; i < n_tokens; i++)
		assert_int_equal(p.tokens[i], 100 * page + i);
}

static struct kvdir *adopt(const struct kvdir *d, uint32_t bad_wanted)
{
	struct kvdir *next = NULL;
	struct err err = { 0 };
	uint32_t bad = 77;

	assert_int_equal(kvdir_adopt(dup(kvdir_fd(d)), N_PAGES, PAGE_TOKENS, &next, &bad, &err), 0);
	assert_int_equal(bad, bad_wanted);
	return next;
}

static void the_layout_is_what_an_earlier_broker_wrote(void **state)
{
	struct kvdir *d = new_dir();
	uint8_t *map = map_of(d);
	struct stat st;
	uint32_t head[4];

	(void)state;
	assert_int_equal(fstat(kvdir_fd(d), &st), 0);
	assert_int_equal(st.st_size, ALL_BYTES);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_int_equal(fcntl(kvdir_fd(d), F_GET_SEALS), SEALS);
	assert_true(fcntl(kvdir_fd(d), F_GETFD) & FD_CLOEXEC);
	assert_memory_equal(map + AT_MAGIC, "smtvdir1", 8);
	memcpy(head, map + AT_VERSION, sizeof(head));
	assert_int_equal(head[0], 1);
	assert_int_equal(head[1], N_PAGES);
	assert_int_equal(head[2], PAGE_TOKENS);
	assert_int_equal(head[3], ENTRY_BYTES);

	assert_false(kvdir_open(d, 2, 1000));
	seal(d, 2, 1000, 7);
	assert_int_equal(word(map, 2, AT_STATE), SEALED);
	assert_int_equal(word(map, 2, 4), 3);	    /* hits */
	assert_int_equal(word(map, 2, 8), 1000002); /* used */
	assert_int_equal(word(map, 2, AT_OWNER), 1000);
	assert_int_equal(word(map, 2, AT_GENERATION), 1);
	assert_int_equal(word(map, 2, 24), 7);	    /* tokens */
	assert_int_equal(word(map, 2, 28), 3);	    /* depth */
	assert_int_equal(word(map, 2, 32), 0x1113); /* hash */
	assert_int_equal(word(map, 2, 56), 0x4446); /* parent, the high half */
	assert_int_equal(word(map, 2, 64), 0x5555); /* root */
	assert_int_equal(word(map, 2, 80), 0x7779); /* sum */
	assert_int_equal(word(map, 2, AT_TOKENS + 24), 206);
	assert_int_equal(word(map, 2, AT_TOKENS + 28), 0);
	assert_int_equal(word(map, 3, AT_STATE), FREE);
	munmap(map, ALL_BYTES);
	kvdir_free(d);
}

static void a_directory_that_makes_no_sense_is_refused(void **state)
{
	static const struct {
		uint32_t n_pages, page_tokens;
		const char *text;
	} cases[] = {
		{ 0, 16, "a KV directory of 0 pages of 16 tokens makes no sense" },
		{ 4, 0, "a KV directory of 4 pages of 0 tokens makes no sense" },
		{ 4, 65537, "a KV directory of 4 pages of 65537 tokens makes no sense" },
	};
	struct kvdir *d = NULL;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct err err = { 0 };
		uint32_t bad = 77;

		assert_int_equal(kvdir_new(cases[i].n_pages, cases[i].page_tokens, &d, &err),
				 -EINVAL);
		assert_string_equal(err.text, cases[i].text);
		err = (struct err){ 0 };
		assert_int_equal(
			kvdir_adopt(-1, cases[i].n_pages, cases[i].page_tokens, &d, &bad, &err),
			-EINVAL);
		assert_string_equal(err.text, cases[i].text);
		assert_null(d);
	}
	assert_int_equal(kvdir_new(1, 65536, &d, NULL), 0);
	kvdir_free(d);
}

static void a_page_is_open_then_sealed_then_free(void **state)
{
	struct kvdir *d = new_dir();
	uint8_t *map = map_of(d);
	struct kvdir_page p;

	(void)state;
	assert_int_equal(kvdir_owner(d, 1), KVDIR_NOBODY);
	assert_false(kvdir_open(d, 1, 7));
	assert_int_equal(word(map, 1, AT_STATE), OPEN);
	assert_int_equal(word(map, 1, AT_GENERATION), 1);
	assert_false(kvdir_get(d, 1, &p));
	assert_int_equal(kvdir_owner(d, 1), 7);
	seal(d, 1, 7, 16);
	assert_int_equal(word(map, 1, AT_STATE), SEALED);
	assert_sealed(d, 1, 7, 16);
	kvdir_drop(d, 1);
	assert_int_equal(word(map, 1, AT_STATE), FREE);
	assert_false(kvdir_get(d, 1, &p));
	assert_int_equal(kvdir_owner(d, 1), 7); /* its bytes are still in it */
	assert_false(kvdir_open(d, 1, 7));
	assert_int_equal(word(map, 1, AT_GENERATION), 2);
	assert_false(kvdir_get(d, 1, &p)); /* not the entry of before */
	kvdir_drop(d, 1);
	kvdir_punched(d, 1);
	assert_int_equal(kvdir_owner(d, 1), KVDIR_NOBODY);
	munmap(map, ALL_BYTES);
	kvdir_free(d);
}

static void a_touch_is_counted_and_the_entry_stays_whole(void **state)
{
	struct kvdir *d = new_dir(), *next;
	struct kvdir_page p;
	uint8_t *map = map_of(d);
	const uint32_t most = UINT32_MAX;

	(void)state;
	kvdir_open(d, 0, 7);
	seal(d, 0, 7, 16);
	kvdir_touch(d, 0, 5000000);
	next = adopt(d, 0);
	assert_true(kvdir_get(next, 0, &p));
	assert_int_equal(p.hits, 4);
	assert_int_equal(p.used_us, 5000000);
	memcpy(map + HEAD_BYTES + 4, &most, sizeof(most));
	kvdir_touch(next, 0, 5000001);
	assert_true(kvdir_get(next, 0, &p));
	assert_int_equal(p.hits, UINT32_MAX); /* and not 0 */
	munmap(map, ALL_BYTES);
	kvdir_free(next);
	kvdir_free(d);
}

static void what_is_sealed_is_adopted_and_the_rest_is_free(void **state)
{
	static const uint64_t model[2] = { 0x123456789abcdef0, 0xfedcba9876543210 };
	struct kvdir *d = new_dir(), *next;
	uint8_t *map = map_of(d);
	struct kvdir_page p;
	uint64_t got[2] = { 1, 1 };

	(void)state;
	kvdir_model(d, got);
	assert_true(got[0] == 0 && got[1] == 0);
	kvdir_set_model(d, model);
	kvdir_open(d, 0, 7);
	seal(d, 0, 7, 16);
	kvdir_open(d, 1, 7); /* it was being written */
	kvdir_open(d, 2, 8);
	seal(d, 2, 8, 1);
	kvdir_open(d, 3, 8);
	seal(d, 3, 8, 16);
	kvdir_drop(d, 3);
	next = adopt(d, 0);
	d = kvdir_free(d);
	assert_sealed(next, 0, 7, 16);
	assert_sealed(next, 2, 8, 1);
	assert_false(kvdir_get(next, 1, &p));
	assert_false(kvdir_get(next, 3, &p));
	assert_int_equal(word(map, 1, AT_STATE), FREE);
	assert_int_equal(kvdir_owner(next, 1), 7);
	assert_int_equal(kvdir_owner(next, 3), 8);
	kvdir_model(next, got);
	assert_memory_equal(got, model, sizeof(model));
	munmap(map, ALL_BYTES);
	kvdir_free(next);
}

/* Bits of the state and what an entry's sum leaves out are of no harm, each in its way; all others are found. */
static void every_flipped_bit_of_an_entry_is_found(void **state)
{
	struct kvdir *d = new_dir();
	uint8_t *map = map_of(d), *entry = map + HEAD_BYTES + ENTRY_BYTES, good[ENTRY_BYTES];
	const uint32_t n_tokens = 13;

	(void)state;
	kvdir_open(d, 1, 7);
	seal(d, 1, 7, n_tokens);
	kvdir_open(d, 2, 9);
	seal(d, 2, 9, 16);
	memcpy(good, entry, sizeof(good));
	for (uint32_t bit = 0; bit < ENTRY_BYTES * 8; bit++) {
		const uint32_t at = bit / 8;
		const bool counts = at >= AT_OWNER && at < AT_TOKENS + n_tokens * 4;
		struct kvdir_page p;
		struct kvdir *next;

		entry[at] ^= 1u << bit % 8;
		/* SEALED is 2: a flip makes it FREE, or what no state is */
		next = adopt(d, counts || (at < 4 && bit != 1));
		assert_int_equal(kvdir_get(next, 1, &p), !counts && at >= 4);
		if (counts || (at < 4 && bit != 1)) /* who knows what else is not as it was */
			assert_int_equal(kvdir_owner(next, 1), KVDIR_MIXED);
		assert_sealed(next, 2, 9, 16);
		kvdir_free(next);
		memcpy(entry, good, sizeof(good));
	}
	munmap(map, ALL_BYTES);
	kvdir_free(d);
}

static void an_entry_is_not_believed_at_another_number_of_tokens(void **state)
{
	static const uint32_t counts[] = { 0, 12, 14, 17, 1u << 30, UINT32_MAX };
	struct kvdir *d = new_dir(), *next;
	uint8_t *map = map_of(d);
	struct kvdir_page p;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(counts); i++) {
		kvdir_open(d, 3, 7); /* the last: beyond its tokens is the end of the map */
		kvdir_cleared(d, 3, 7);
		seal(d, 3, 7, 13);
		memcpy(map + HEAD_BYTES + 3 * ENTRY_BYTES + 24, &counts[i], 4);
		next = adopt(d, 1);
		assert_false(kvdir_get(next, 3, &p));
		kvdir_free(next);
	}
	munmap(map, ALL_BYTES);
	kvdir_free(d);
}

static void an_entry_in_another_ones_place_is_as_it_was_sealed(void **state)
{
	struct kvdir *d = new_dir(), *next;
	uint8_t *map = map_of(d);

	(void)state;
	kvdir_open(d, 0, 7);
	seal(d, 0, 7, 16);
	kvdir_open(d, 1, 8);
	/* half of another's entry over one's own */
	memcpy(map + HEAD_BYTES + ENTRY_BYTES, map + HEAD_BYTES, AT_CHECK);
	next = adopt(d, 1);
	assert_sealed(next, 0, 7, 16);
	assert_int_equal(kvdir_owner(next, 1), KVDIR_MIXED);
	munmap(map, ALL_BYTES);
	kvdir_free(next);
	kvdir_free(d);
}

/* A memfd with the bytes of a good directory, as a test then makes them. */
static int copy_of(const struct kvdir *d, off_t bytes)
{
	uint8_t all[ALL_BYTES];
	int fd = memfd_create("copy", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_int_equal(pread(kvdir_fd(d), all, sizeof(all), 0), sizeof(all));
	assert_int_equal(pwrite(fd, all, sizeof(all), 0), sizeof(all));
	assert_int_equal(ftruncate(fd, bytes), 0);
	return fd;
}

static void assert_refused(int fd, uint32_t n_pages, uint32_t page_tokens, const char *text)
{
	struct kvdir *next = NULL;
	struct err err = { 0 };
	uint32_t bad = 77;

	assert_int_equal(kvdir_adopt(fd, n_pages, page_tokens, &next, &bad, &err), -EBADMSG);
	assert_string_equal(err.text, text);
	assert_null(next);
	assert_int_equal(bad, 77);
	assert_true(fcntl(fd, F_GETFD) >= 0); /* still the caller's */
}

static void another_directory_is_refused(void **state)
{
	static const char version[] = "the KV directory is not of this version of steamd";
	struct kvdir *d = new_dir();
	_cleanup_(closep) int empty = memfd_create("empty", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int fd, pipes[2];

	(void)state;
	assert_refused(empty, N_PAGES, PAGE_TOKENS, "the KV directory ends in its head");
	assert_int_equal(pipe(pipes), 0);
	assert_refused(pipes[0], N_PAGES, PAGE_TOKENS, "the KV directory is no file");
	close(pipes[0]);
	close(pipes[1]);
	assert_refused(kvdir_fd(d), 5, 16,
		       "the KV directory is for 4 pages of 16 tokens in 4864 bytes; 5, 16 and "
		       "5056 are wanted");
	assert_refused(kvdir_fd(d), 4, 17,
		       "the KV directory is for 4 pages of 16 tokens in 4864 bytes; 4, 17 and "
		       "4864 are wanted");
	fd = copy_of(d, ALL_BYTES - 1);
	assert_refused(fd, 4, 16,
		       "the KV directory is for 4 pages of 16 tokens in 4863 bytes; 4, 16 and "
		       "4864 are wanted");
	close(fd);
	fd = copy_of(d, ALL_BYTES);
	assert_refused(fd, 4, 16, "the KV directory is not sealed against resizing");
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW), 0);
	assert_refused(fd, 4, 16, "the KV directory is not sealed against resizing");
	close(fd);
	/* every bit of magic and version, then of the sizes */
	for (uint32_t bit = 0; bit < AT_ENTRY_BYTES * 8 + 32; bit++) {
		uint8_t byte;

		fd = copy_of(d, ALL_BYTES);
		assert_int_equal(fcntl(fd, F_ADD_SEALS, SEALS), 0);
		assert_int_equal(pread(fd, &byte, 1, bit / 8), 1);
		byte ^= 1u << bit % 8;
		assert_int_equal(pwrite(fd, &byte, 1, bit / 8), 1);
		if (bit / 8 < AT_N_PAGES) {
			assert_refused(fd, 4, 16, version);
		} else {
			struct kvdir *next = NULL;
			uint32_t bad;

			assert_int_equal(kvdir_adopt(fd, 4, 16, &next, &bad, NULL), -EBADMSG);
			assert_null(next);
		}
		close(fd);
	}
	kvdir_free(d);
}

static void a_page_is_cleared_only_of_others_bytes(void **state)
{
	struct kvdir *d = new_dir();

	(void)state;
	assert_false(kvdir_open(d, 0, 7)); /* nobody's */
	kvdir_drop(d, 0);
	assert_false(kvdir_open(d, 0, 7)); /* its own */
	kvdir_drop(d, 0);
	assert_true(kvdir_open(d, 0, 8));
	assert_int_equal(kvdir_owner(d, 0), KVDIR_MIXED);
	kvdir_cleared(d, 0, 8);
	assert_int_equal(kvdir_owner(d, 0), 8);
	kvdir_drop(d, 0);
	assert_false(kvdir_open(d, 0, 8));
	kvdir_drop(d, 0);
	kvdir_punched(d, 0);
	assert_false(kvdir_open(d, 0, 7));
	kvdir_free(d);
}

static void a_page_that_was_never_cleared_is_everybodys(void **state)
{
	struct kvdir *d = new_dir(), *next;

	(void)state;
	kvdir_open(d, 0, 7);
	kvdir_drop(d, 0);
	assert_true(kvdir_open(d, 0, 8));
	kvdir_drop(d, 0); /* given back before it was cleared */
	assert_int_equal(kvdir_owner(d, 0), KVDIR_MIXED);
	kvdir_cleared(d, 0, 8); /* too late: whose it is now is not known */
	assert_int_equal(kvdir_owner(d, 0), KVDIR_MIXED);
	assert_true(kvdir_open(d, 0, 7));
	assert_true(kvdir_open(d, 0, 8));
	next = adopt(d, 0); /* so it is after a death in this moment */
	assert_int_equal(kvdir_owner(next, 0), KVDIR_MIXED);
	assert_true(kvdir_open(next, 0, 7));
	kvdir_free(next);
	kvdir_free(d);
}

/* A uid may be any number but one: those which mean something else here are cleared for always. */
static void a_uid_that_looks_like_mixed_gets_no_others_bytes(void **state)
{
	struct kvdir *d = new_dir();

	(void)state;
	kvdir_open(d, 0, 7);
	kvdir_drop(d, 0);
	assert_true(kvdir_open(d, 0, 8));
	kvdir_drop(d, 0);
	assert_true(kvdir_open(d, 0, KVDIR_MIXED));
	kvdir_cleared(d, 0, KVDIR_MIXED);
	assert_true(kvdir_open(d, 0, KVDIR_MIXED));
	assert_true(kvdir_open(d, 0, 7));
	kvdir_free(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_layout_is_what_an_earlier_broker_wrote),
		cmocka_unit_test(a_directory_that_makes_no_sense_is_refused),
		cmocka_unit_test(a_page_is_open_then_sealed_then_free),
		cmocka_unit_test(a_touch_is_counted_and_the_entry_stays_whole),
		cmocka_unit_test(what_is_sealed_is_adopted_and_the_rest_is_free),
		cmocka_unit_test(every_flipped_bit_of_an_entry_is_found),
		cmocka_unit_test(an_entry_is_not_believed_at_another_number_of_tokens),
		cmocka_unit_test(an_entry_in_another_ones_place_is_as_it_was_sealed),
		cmocka_unit_test(another_directory_is_refused),
		cmocka_unit_test(a_page_is_cleared_only_of_others_bytes),
		cmocka_unit_test(a_page_that_was_never_cleared_is_everybodys),
		cmocka_unit_test(a_uid_that_looks_like_mixed_gets_no_others_bytes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
