/* Static plans of buffers: nothing that is alive together overlaps. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/cuda/lifetimes.h"

static void nothing_overlaps(const struct lifetime *l, uint32_t n, size_t total)
{
	for (uint32_t i = 0; i < n; i++) {
		assert_true(l[i].at + l[i].bytes <= total);
		for (uint32_t j = 0; j < i; j++)
			assert_true(l[i].last < l[j].first || l[j].last < l[i].first ||
				    l[i].bytes == 0 || l[j].bytes == 0 ||
				    l[i].at + l[i].bytes <= l[j].at ||
				    l[j].at + l[j].bytes <= l[i].at);
	}
}

static void what_follows_one_another_shares_a_place(void **state)
{
	struct lifetime l[] = {
		{ .bytes = 1000, .first = 0, .last = 1 },
		{ .bytes = 900, .first = 2, .last = 3 },
		{ .bytes = 24, .first = 0, .last = 3 },
	};

	(void)state;
	assert_int_equal(lifetimes_place(l, 3, 256), 1024 + 256);
	nothing_overlaps(l, 3, 1280);
	assert_int_equal(l[0].at, 0);
	assert_int_equal(l[1].at, 0);
	assert_int_equal(l[2].at, 1024);
}

static void a_gap_between_two_is_used(void **state)
{
	struct lifetime l[] = {
		{ .bytes = 300, .first = 0, .last = 9 },
		{ .bytes = 200, .first = 0, .last = 2 },
		{ .bytes = 100, .first = 0, .last = 9 },
		{ .bytes = 200, .first = 5, .last = 9 },
	};

	(void)state;
	assert_int_equal(lifetimes_place(l, 4, 1), 600);
	nothing_overlaps(l, 4, 600);
}

static void ends_count_as_alive(void **state)
{
	struct lifetime l[] = { { .bytes = 8, .first = 0, .last = 1 },
				{ .bytes = 8, .first = 1, .last = 2 } };

	(void)state;
	assert_int_equal(lifetimes_place(l, 2, 1), 16);
}

static void nothing_takes_no_room(void **state)
{
	struct lifetime l[] = { { .bytes = 0, .first = 0, .last = 9 },
				{ .bytes = 5, .first = 0, .last = 9 } };

	(void)state;
	assert_int_equal(lifetimes_place(NULL, 0, 256), 0);
	assert_int_equal(lifetimes_place(l, 2, 256), 256);
}

static void what_no_memory_could_hold_is_said_to_be_so(void **state)
{
	struct lifetime l[] = { { .bytes = SIZE_MAX - 3 }, { .bytes = 5 } };

	(void)state;
	assert_true(lifetimes_place(l, 2, 256) == SIZE_MAX);
}

/* Buffers at random, as many as passes have: the plan stays near what no plan can beat. */
static void plans_of_random_lifetimes_are_sound_and_tight(void **state)
{
	uint64_t x = 88172645463325252ull;
	double worst = 0, sum = 0;

	(void)state;
	for (int round = 0; round < 300; round++) {
		struct lifetime l[24];
		size_t total, floor;

		for (int i = 0; i < 24; i++) {
			x ^= x << 13, x ^= x >> 7, x ^= x << 17;
			l[i].bytes = 1 + x % 100000;
			l[i].first = x >> 20 & 31;
			l[i].last = l[i].first + (x >> 30 & 7);
		}
		total = lifetimes_place(l, 24, 256);
		floor = lifetimes_floor(l, 24, 256);
		nothing_overlaps(l, 24, total);
		assert_true(total >= floor);
		sum += (double)total / floor;
		worst = (double)total / floor > worst ? (double)total / floor : worst;
	}
	assert_true(sum / 300 < 1.05);
	assert_true(worst < 1.35);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_follows_one_another_shares_a_place),
		cmocka_unit_test(a_gap_between_two_is_used),
		cmocka_unit_test(ends_count_as_alive),
		cmocka_unit_test(nothing_takes_no_room),
		cmocka_unit_test(what_no_memory_could_hold_is_said_to_be_so),
		cmocka_unit_test(plans_of_random_lifetimes_are_sound_and_tight),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
