/* Pages taken, named in steps, dropped and taken again. */
#include "daemon/kv/kvpool.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "client/wire/ownership.h"

static struct kvpool *pool_of(uint32_t n_pages)
{
	struct kvpool *pool = NULL;
	struct err err = { 0 };

	assert_int_equal(kvpool_new(n_pages, 8192, 16, &pool, &err), 0);
	return pool;
}

static void the_arena_is_private_and_sealed(void **state)
{
	struct kvpool *pool = pool_of(4);
	struct stat st;

	(void)state;
	assert_int_equal(fstat(kvpool_fd(pool), &st), 0);
	assert_int_equal(st.st_size, 4 * 8192 + 4096);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_int_equal(fcntl(kvpool_fd(pool), F_GET_SEALS),
			 F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL);
	assert_in_range(st.st_blocks, 0, 4096 / 512); /* memory is taken as pages are written */
	assert_true(fcntl(kvpool_fd(pool), F_GETFD) & FD_CLOEXEC);
	kvpool_free(pool);
}

static void the_lowest_free_pages_are_taken(void **state)
{
	struct kvpool *pool = pool_of(8);
	kv_page a[8];

	(void)state;
	assert_int_equal(kvpool_take(pool, 1, 5, a), 0);
	assert_int_equal(a[0], 0);
	assert_int_equal(a[4], 4);
	kvpool_drop(pool, &a[1], 1);
	kvpool_drop(pool, &a[3], 1);
	assert_int_equal(kvpool_take(pool, 2, 3, a), 0);
	assert_int_equal(a[0], 1);
	assert_int_equal(a[1], 3);
	assert_int_equal(a[2], 5);
	assert_int_equal(kvpool_free_pages(pool), 2);
	assert_int_equal(kvpool_user_pages(pool, 1), 3);
	assert_int_equal(kvpool_user_pages(pool, 2), 3);
	kvpool_free(pool);
}

static void all_or_none_are_taken(void **state)
{
	struct kvpool *pool = pool_of(4);
	kv_page a[5] = { 77, 77, 77, 77, 77 };

	(void)state;
	assert_int_equal(kvpool_take(pool, 1, 5, a), -EAGAIN);
	assert_int_equal(a[0], 77);
	assert_int_equal(kvpool_free_pages(pool), 4);
	assert_int_equal(kvpool_take(pool, 1, 4, a), 0);
	assert_int_equal(kvpool_take(pool, 1, 1, a), -EAGAIN);
	assert_int_equal(kvpool_take(pool, 1, 0, a), 0);
	kvpool_free(pool);
}

static void a_page_named_in_a_step_is_free_only_after_it(void **state)
{
	struct kvpool *pool = pool_of(2);
	kv_page a[2], b;

	(void)state;
	assert_int_equal(kvpool_take(pool, 1, 2, a), 0);
	kvpool_busy(pool, a, 1, 7);
	kvpool_busy(pool, a, 1, 8);
	kvpool_drop(pool, a, 2);
	assert_int_equal(kvpool_free_pages(pool), 1);
	assert_int_equal(kvpool_dropped_pages(pool), 1);
	assert_int_equal(kvpool_user_pages(pool, 1), 0);
	assert_int_equal(kvpool_take(pool, 2, 1, &b), 0);
	assert_int_equal(b, 1);
	kvpool_step_done(pool, 7);
	assert_int_equal(kvpool_take(pool, 2, 1, &b), -EAGAIN);
	kvpool_step_done(pool, 8);
	assert_int_equal(kvpool_take(pool, 2, 1, &b), 0);
	assert_int_equal(b, 0);
	kvpool_free(pool);
}

static void without_an_executor_nothing_is_busy(void **state)
{
	struct kvpool *pool = pool_of(2);
	kv_page a[2];

	(void)state;
	assert_int_equal(kvpool_take(pool, 1, 2, a), 0);
	kvpool_busy(pool, a, 2, 900);
	kvpool_drop(pool, a, 1);
	kvpool_idle(pool);
	assert_int_equal(kvpool_free_pages(pool), 1);
	kvpool_drop(pool, a + 1, 1);
	assert_int_equal(kvpool_free_pages(pool), 2);
	/* the next executor's steps count from 1 again */
	assert_int_equal(kvpool_take(pool, 1, 2, a), 0);
	kvpool_busy(pool, a, 2, 1);
	kvpool_drop(pool, a, 2);
	assert_int_equal(kvpool_free_pages(pool), 0);
	kvpool_free(pool);
}

static void an_arena_is_adopted_with_its_claims(void **state)
{
	static const kv_page one[] = { 3, 0 }, twice[] = { 1, 3 }, beyond[] = { 1, 4 };
	struct kvpool *pool = pool_of(4), *next = NULL;
	struct err err = { 0 };
	kv_page a[2];

	(void)state;
	assert_int_equal(kvpool_adopt(dup(kvpool_fd(pool)), 4, 8192, 16, &next, &err), 0);
	assert_int_equal(kvpool_free_pages(next), 4);
	assert_int_equal(kvpool_claim(next, 5, one, 2), 0);
	assert_int_equal(kvpool_claim(next, 5, twice, 2), -EINVAL);
	assert_int_equal(kvpool_claim(next, 5, beyond, 2), -EINVAL);
	assert_int_equal(kvpool_free_pages(next), 2); /* a failed claim leaves nothing */
	assert_int_equal(kvpool_take(next, 6, 2, a), 0);
	assert_int_equal(a[0], 1);
	assert_int_equal(a[1], 2);
	kvpool_free(next);
	kvpool_free(pool);
}

/* Each bit of magic and version. */
static void an_arena_of_another_version_is_refused(void **state)
{
	struct kvpool *pool = pool_of(4), *next = NULL;
	struct err err;
	char head[12];

	(void)state;
	assert_int_equal(pread(kvpool_fd(pool), head, sizeof(head), 32768), sizeof(head));
	for (size_t bit = 0; bit < 8 * sizeof(head); bit++) {
		head[bit / 8] ^= (char)(1 << bit % 8);
		assert_int_equal(pwrite(kvpool_fd(pool), head, sizeof(head), 32768), sizeof(head));
		err = (struct err){ 0 };
		assert_int_equal(kvpool_adopt(kvpool_fd(pool), 4, 8192, 16, &next, &err), -EBADMSG);
		assert_string_equal(err.text, "the KV arena is not of this version of steamd");
		head[bit / 8] ^= (char)(1 << bit % 8);
	}
	kvpool_free(pool);
}

static void another_arena_is_refused(void **state)
{
	char tail[32];
	struct kvpool *pool = pool_of(4), *next = NULL;
	_cleanup_(closep) int plain = memfd_create("plain", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	struct err err = { 0 };

	(void)state;
	assert_int_equal(kvpool_adopt(kvpool_fd(pool), 5, 8192, 16, &next, &err), -EBADMSG);
	assert_string_equal(err.text, "the KV arena has 36864 bytes; 45056 are wanted");
	assert_int_equal(kvpool_adopt(kvpool_fd(pool), 4, 8192, 32, &next, &err), -EBADMSG);
	assert_string_equal(err.text, "the KV arena is of 4 pages of 8192 bytes and 16 tokens; 4, "
				      "8192 and 32 are wanted");
	assert_int_equal(ftruncate(plain, 36864), 0);
	assert_int_equal(kvpool_adopt(plain, 4, 8192, 16, &next, &err), -EBADMSG);
	assert_string_equal(err.text, "the KV arena is not of this version of steamd");
	assert_int_equal(pread(kvpool_fd(pool), tail, sizeof(tail), 32768), sizeof(tail));
	assert_int_equal(pwrite(plain, tail, sizeof(tail), 32768), sizeof(tail));
	assert_int_equal(kvpool_adopt(plain, 4, 8192, 16, &next, &err), -EBADMSG);
	assert_string_equal(err.text, "the KV arena is not sealed against resizing");
	assert_null(next);
	kvpool_free(pool);
}

static void a_pool_is_drawn_and_its_free_runs_are_measured(void **state)
{
	struct kvpool *pool = pool_of(10);
	char map[17];
	kv_page a[10];

	(void)state;
	kvpool_draw(pool, map, 16);
	assert_string_equal(map, "..........");
	assert_int_equal(kvpool_largest_free_run(pool), 10);
	assert_int_equal(kvpool_take(pool, 1, 10, a), 0);
	kvpool_keep(pool, a[0]);
	kvpool_keep(pool, a[1]);
	kvpool_drop(pool, a, 4);
	kvpool_drop(pool, a + 6, 1);
	kvpool_draw(pool, map, 16);
	assert_string_equal(map, "++..##.###");
	assert_int_equal(kvpool_largest_free_run(pool), 2);
	kvpool_draw(pool, map, 5);
	assert_string_equal(map, "+.#o#");
	kvpool_draw(pool, map, 3);
	assert_string_equal(map, "ooo");
	kvpool_draw(pool, map, 1);
	assert_string_equal(map, "o");
	kvpool_free(pool);
}

static void memory_of_the_arena_is_taken_as_it_is_written(void **state)
{
	struct kvpool *pool = pool_of(4);
	const uint64_t before = kvpool_resident_bytes(pool);
	char page[8192] = { 1 };

	(void)state;
	assert_int_equal(before, 0);
	assert_int_equal(pwrite(kvpool_fd(pool), page, sizeof(page), 8192), sizeof(page));
	assert_true(kvpool_resident_bytes(pool) >= sizeof(page));
	assert_int_equal(kvpool_punch(pool, 1), 0);
	assert_int_equal(kvpool_resident_bytes(pool), 0);
	kvpool_free(pool);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_arena_is_private_and_sealed),
		cmocka_unit_test(the_lowest_free_pages_are_taken),
		cmocka_unit_test(all_or_none_are_taken),
		cmocka_unit_test(a_page_named_in_a_step_is_free_only_after_it),
		cmocka_unit_test(without_an_executor_nothing_is_busy),
		cmocka_unit_test(an_arena_is_adopted_with_its_claims),
		cmocka_unit_test(an_arena_of_another_version_is_refused),
		cmocka_unit_test(another_arena_is_refused),
		cmocka_unit_test(a_pool_is_drawn_and_its_free_runs_are_measured),
		cmocka_unit_test(memory_of_the_arena_is_taken_as_it_is_written),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
