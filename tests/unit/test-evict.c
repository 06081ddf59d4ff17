/* Which pages go first, and what it takes to find them. */
#include "daemon/kv/cheapest.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "daemon/kv/value.h"
#include "tests/unit/bycache.h"

#define N_LINKS 500

static double least_in(const struct cheapest_link *links)
{
	double least = INFINITY;

	for (uint32_t i = 0; i < N_LINKS; i++)
		least = links[i].is_in ? fmin(least, links[i].value) : least;
	return least;
}

static void the_first_is_the_least_whatever_comes_and_goes(void **state)
{
	static struct cheapest_link links[N_LINKS];
	struct cheapest heap = { 0 };
	uint32_t n = 0;

	(void)state;
	srandom(7);
	for (uint32_t i = 0; i < 20000; i++) {
		struct cheapest_link *link = &links[(uint32_t)random() % N_LINKS];

		if (i % 3 == 0 && heap.first)
			link = heap.first;
		if (link->is_in) {
			cheapest_remove(&heap, link);
			n--;
		} else {
			link->value = (double)(random() % 100);
			cheapest_add(&heap, link);
			n++;
		}
		assert_int_equal(heap.first == NULL, n == 0);
		if (heap.first)
			assert_true(heap.first->value == least_in(links));
	}
	while (heap.first)
		cheapest_remove(&heap, heap.first);
	assert_true(least_in(links) == INFINITY);
}

static void value_is_what_is_to_be_lost(void **state)
{
	const uint64_t half = 1000;
	const double one = value_of(64, 0, 5000, half);

	(void)state;
	assert_true(value_of(64, 1, 5000, half) ==
		    one + 1000); /* found once more: a half-life more */
	assert_true(value_of(32, 1, 5000, half) == one);
	assert_true(value_of(64, 3, 3000, half) == one);
	assert_true(value_of(0, 9, 5000, half) == VALUE_NONE);
	assert_true(value_sum(one, one, half) == one + 1000);
	assert_true(value_sum(one, VALUE_NONE, half) == one);
	assert_true(value_sum(VALUE_NONE, VALUE_NONE, half) == VALUE_NONE);
	assert_true(value_sum(one, one - 1e9, half) == one);
	assert_true(value_part(one, 2, half) == one - 1000);
}

/* A text of so many pages that no other begins like. */
static void say_pages(struct kvcache *c, uid_t uid, uint32_t which, uint32_t n_pages)
{
	uint32_t ids[16 * PAGE_TOKENS];

	for (uint32_t i = 0; i < n_pages * PAGE_TOKENS; i++)
		ids[i] = which * 1000 + i;
	say(c, uid, ids, n_pages * PAGE_TOKENS);
}

static uint32_t pages_left(struct kvcache *c, uid_t uid, uint32_t which, uint32_t n_pages)
{
	uint32_t ids[16 * PAGE_TOKENS];

	for (uint32_t i = 0; i < n_pages * PAGE_TOKENS; i++)
		ids[i] = which * 1000 + i;
	return found(c, uid, ids, n_pages * PAGE_TOKENS) / PAGE_TOKENS;
}

static void use(struct kvcache *c, uid_t uid, uint32_t which, uint32_t n_pages)
{
	const uint32_t n = n_pages * PAGE_TOKENS;
	struct kvcache_chain chain = { 0 };
	struct kvcache_held held;
	uint32_t ids[16 * PAGE_TOKENS];
	kv_page table[17];

	for (uint32_t i = 0; i < n; i++)
		ids[i] = which * 1000 + i;
	assert_int_equal(kvcache_hold(c, kvcache_root(c, uid, ""), uid, ids, n, table, &held),
			 n_pages);
	assert_int_equal(kvcache_settle(c, table, &held, &chain), 1);
	kvcache_drop(c, table, n_pages);
	kvcache_check(c);
}

/* Its last pages go first, and what was used comes after what was not. */
static void what_was_not_used_goes_first_from_its_end(void **state)
{
	struct kvcache *c = new_cache(12, -1, -1, "");
	kv_page table[12];

	(void)state;
	clock_fake(1000000, 1000000);
	for (uint32_t i = 1; i <= 3; i++) {
		say_pages(c, 5, i, 4);
		clock_advance(1000);
	}
	use(c, 5, 1, 4);
	assert_int_equal(kvcache_take(c, 5, 3, table), 0);
	assert_int_equal(pages_left(c, 5, 2, 4), 1);
	kvcache_drop(c, table, 3);
	assert_int_equal(kvcache_take(c, 5, 8, table), 0);
	assert_int_equal(pages_left(c, 5, 2, 4), 0);
	assert_int_equal(pages_left(c, 5, 3, 4), 0);
	assert_int_equal(pages_left(c, 5, 1, 4), 4);
	kvcache_drop(c, table, 8);
	kvcache_check(c);
	kvcache_free(c);
	clock_real();
}

static uint64_t weighed(const struct kvcache *c)
{
	struct kvcache_counts n;

	kvcache_count(c, &n);
	return n.n_weighed;
}

/* Two uids with @n_pages / 2 each, half of them held; all that can go goes. Returns the looks a page took. */
static double looks_a_page(uint32_t n_pages)
{
	struct kvcache *c = new_cache(n_pages, -1, -1, "");
	kv_page *table = calloc(n_pages, sizeof(*table));
	uint32_t n_held = 0, n_texts = n_pages / 8;
	uint64_t before;
	double looks;

	assert_non_null(table);
	for (uint32_t i = 0; i < n_texts; i++)
		say_pages(c, 5 + i % 2, i, 8);
	for (uint32_t i = 0; i < n_texts; i += 4, n_held += 8) {
		struct kvcache_held held;
		uint32_t ids[8 * PAGE_TOKENS];

		for (uint32_t k = 0; k < 8 * PAGE_TOKENS; k++)
			ids[k] = i * 1000 + k;
		assert_int_equal(kvcache_hold(c, kvcache_root(c, 5, ""), 5, ids, 8 * PAGE_TOKENS,
					      table + n_held, &held),
				 8);
	}
	before = weighed(c);
	for (uint32_t i = n_held; i < n_pages; i++)
		assert_int_equal(kvcache_take(c, 6, 1, &table[i]), 0);
	looks = (double)(weighed(c) - before) / (n_pages - n_held);
	assert_int_equal(kvcache_take(c, 6, 1, table), -EAGAIN);
	kvcache_drop(c, table, n_pages);
	kvcache_check(c);
	kvcache_free(c);
	free(table);
	return looks;
}

static void a_page_is_found_as_soon_among_many(void **state)
{
	(void)state;
	assert_true(looks_a_page(256) < 4);
	assert_true(looks_a_page(16384) < 4);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_first_is_the_least_whatever_comes_and_goes),
		cmocka_unit_test(value_is_what_is_to_be_lost),
		cmocka_unit_test(what_was_not_used_goes_first_from_its_end),
		cmocka_unit_test(a_page_is_found_as_soon_among_many),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
