/* The models of other allocators do what is known of them. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/bench/replay.h"

#define MIB (1ull << 20)
#define N 16

/* Objects of these sizes, to be added and dropped by hand. */
static void *opened(const struct rival *rival, struct trace *t, const uint64_t *bytes, uint32_t n,
		    uint64_t limit)
{
	static struct kind kinds[N];
	static struct object objects[N];

	for (uint32_t i = 0; i < n; i++) {
		kinds[i] = (struct kind){ .class = 'k', .bytes = bytes[i], .most = 1 };
		objects[i] = (struct object){ i, bytes[i] };
	}
	*t = (struct trace){ .kinds = kinds, .n_kinds = n, .objects = objects, .n_objects = n };
	return rival->open(t, limit);
}

static uint64_t reserved(const struct rival *rival, void *r)
{
	struct rival_figures f;

	rival->figures(r, &f);
	return f.reserved_bytes;
}

static void pytorch_takes_segments_by_size(void **state)
{
	static const uint64_t bytes[] = { 1, MIB, 10 * MIB, 23 * MIB / 2, MIB + 1, 3 * MIB };
	static const uint64_t wanted[] = { 2, 2, 12, 24, 44, 44 };
	struct trace t;
	void *r = opened(&rival_torch, &t, bytes, 6, 1024 * MIB);

	(void)state;
	for (uint32_t i = 0; i < 6; i++) {
		assert_int_equal(rival_torch.add(r, i), 0);
		assert_int_equal(reserved(&rival_torch, r), wanted[i] * MIB);
	}
	rival_torch.close(r);
}

static void pytorch_keeps_what_is_free_until_the_card_has_no_more(void **state)
{
	static const uint64_t bytes[] = { 40 * MIB, 12 * MIB, 12 * MIB, 60 * MIB, 30 * MIB };
	struct trace t;
	void *r = opened(&rival_torch, &t, bytes, 5, 100 * MIB);

	(void)state;
	assert_int_equal(rival_torch.add(r, 0), 0);
	rival_torch.drop(r, 0);
	assert_int_equal(rival_torch.add(r, 1), 0); /* out of the free 40 */
	assert_int_equal(rival_torch.add(r, 2), 0);
	assert_int_equal(reserved(&rival_torch, r), 40 * MIB);
	rival_torch.drop(r, 1);
	assert_int_equal(rival_torch.add(r, 3), 0);
	assert_int_equal(rival_torch.add(r, 4), -ENOMEM); /* 12 + 16 are free, and split */
	rival_torch.drop(r, 2);
	assert_int_equal(rival_torch.add(r, 4), 0);
	rival_torch.close(r);
}

static void expandable_segments_grow_by_granules_and_give_back_whole_ones(void **state)
{
	static const uint64_t bytes[] = { 15 * MIB, 15 * MIB, 15 * MIB, 45 * MIB };
	const struct rival *const e = &rival_torch_expandable;
	struct trace t;
	void *r = opened(e, &t, bytes, 4, 100 * MIB);

	(void)state;
	for (uint32_t i = 0; i < 3; i++)
		assert_int_equal(e->add(r, i), 0);
	assert_int_equal(reserved(e, r), 60 * MIB); /* 45 in granules of 20 */
	e->drop(r, 1);
	assert_int_equal(e->lease(r, 0), 0);
	assert_int_equal(reserved(e, r), 60 * MIB); /* no whole granule is free */
	e->drop(r, 0);
	assert_int_equal(e->add(r, 3), 0); /* what is free is too small where it is */
	assert_int_equal(reserved(e, r), 100 * MIB);
	e->drop(r, 2);
	e->drop(r, 3);
	assert_int_equal(e->lease(r, 0), 0);
	assert_int_equal(reserved(e, r), 0);
	e->close(r);
}

static void a_buddy_rounds_to_powers_of_two_and_joins_halves(void **state)
{
	static const uint64_t bytes[] = { 33 * MIB, 20 * MIB, 32 * MIB, 128 * MIB };
	struct trace t;
	void *r = opened(&rival_buddy, &t, bytes, 4, 128 * MIB);

	(void)state;
	assert_int_equal(rival_buddy.add(r, 0), 0);
	assert_int_equal(rival_buddy.add(r, 1), 0);
	assert_int_equal(rival_buddy.add(r, 2), 0);
	assert_int_equal(reserved(&rival_buddy, r), 128 * MIB);
	assert_int_equal(rival_buddy.add(r, 3), -ENOMEM);
	for (uint32_t i = 0; i < 3; i++)
		rival_buddy.drop(r, i);
	assert_int_equal(rival_buddy.add(r, 3), 0);
	rival_buddy.close(r);
}

static void best_fit_takes_the_smallest_hole_and_joins_neighbours(void **state)
{
	static const uint64_t bytes[] = {
		30 * MIB, MIB, 20 * MIB, MIB, 19 * MIB, 30 * MIB, 51 * MIB
	};
	struct trace t;
	void *r = opened(&rival_best_fit, &t, bytes, 7, 52 * MIB);

	(void)state;
	for (uint32_t i = 0; i < 4; i++)
		assert_int_equal(rival_best_fit.add(r, i), 0);
	rival_best_fit.drop(r, 0);
	rival_best_fit.drop(r, 2);
	assert_int_equal(rival_best_fit.add(r, 4), 0);
	assert_int_equal(rival_best_fit.add(r, 5), 0); /* the larger hole is whole still */
	for (uint32_t i = 1; i < 6; i += 2)
		rival_best_fit.drop(r, i);
	rival_best_fit.drop(r, 4);
	assert_int_equal(rival_best_fit.add(r, 6), 0);
	rival_best_fit.close(r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pytorch_takes_segments_by_size),
		cmocka_unit_test(pytorch_keeps_what_is_free_until_the_card_has_no_more),
		cmocka_unit_test(expandable_segments_grow_by_granules_and_give_back_whole_ones),
		cmocka_unit_test(a_buddy_rounds_to_powers_of_two_and_joins_halves),
		cmocka_unit_test(best_fit_takes_the_smallest_hole_and_joins_neighbours),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
