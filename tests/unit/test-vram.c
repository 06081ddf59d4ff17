/* Memory of a card: regions, pools, and any call of the driver failing. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/cuda/pagepool.h"
#include "tests/unit/card.h"

#define MIB ((size_t)1 << 20)
#define PAGE (23 * MIB / 2)

struct world {
	struct card card;
	struct vram *v;
};

static int set_up(void **state)
{
	struct world *w = calloc(1, sizeof(*w));

	card_init(&w->card, 2048 * MIB, true);
	assert_int_equal(vram_new(&card_ops, &w->card, UINT64_MAX, &w->v), 0);
	*state = w;
	return 0;
}

static int tear_down(void **state)
{
	struct world *w = *state;

	vram_free(w->v);
	assert_int_equal(w->card.taken_bytes, 0);
	assert_int_equal(w->card.reserved_bytes, 0);
	assert_int_equal(w->card.n_chunks, 0);
	card_deinit(&w->card);
	free(w);
	return 0;
}

static struct vram_figures figures(struct world *w)
{
	struct vram_figures f;

	vram_figures(w->v, &f);
	assert_int_equal(f.taken_bytes, w->card.taken_bytes);
	return f;
}

static void a_region_is_rounded_to_granules_and_its_last_chunk_is_what_is_left(void **state)
{
	struct world *w = *state;
	struct vram_region *r;

	assert_int_equal(vram_reserve(w->v, "weights", 101 * MIB - 1, 32 * MIB, &r), 0);
	assert_int_equal(vram_bytes(r), 102 * MIB);
	assert_int_equal(vram_chunks(r), 4);
	assert_int_equal(figures(w).taken_bytes, 0);
	assert_int_equal(vram_back(r, 0, 4), 0);
	assert_int_equal(figures(w).taken_bytes, 102 * MIB);
	assert_int_equal(vram_back(r, 0, 4), 0); /* what is there stays */
	assert_int_equal(w->card.n_calls, 1 + 4 + 4 + 1);
	*card_word(&w->card, vram_at(r) + 102 * MIB - 1) = 7;
}

static void what_makes_no_region_is_refused(void **state)
{
	struct world *w = *state;
	struct vram_region *r = NULL;

	assert_int_equal(vram_reserve(w->v, "x", 0, VRAM_GRANULE, &r), -EINVAL);
	assert_int_equal(vram_reserve(w->v, "x", SIZE_MAX, VRAM_GRANULE, &r), -EINVAL);
	assert_int_equal(vram_reserve(w->v, "x", MIB, MIB, &r), -EINVAL);
	assert_int_equal(vram_reserve(w->v, "x", MIB, 0, &r), -EINVAL);
	for (int i = 0; i < VRAM_REGIONS_MAX; i++)
		assert_int_equal(vram_reserve(w->v, "x", MIB, VRAM_GRANULE, &r), 0);
	assert_int_equal(vram_reserve(w->v, "x", MIB, VRAM_GRANULE, &r), -ENOSPC);
	assert_int_equal(vram_back(r, 1, 1), -EINVAL);
	assert_int_equal(vram_back(r, 0, UINT32_MAX), -EINVAL);
	assert_int_equal(vram_unback(r, 2, 0), -EINVAL);
}

static void memory_comes_back_at_the_same_addresses(void **state)
{
	struct world *w = *state;
	struct vram_region *a, *b;
	uint64_t at;

	assert_int_equal(vram_reserve(w->v, "weights", 1024 * MIB, 256 * MIB, &a), 0);
	assert_int_equal(vram_reserve(w->v, "others", 1536 * MIB, 256 * MIB, &b), 0);
	at = vram_at(a);
	assert_int_equal(vram_back(a, 0, 4), 0);
	assert_int_equal(vram_seal(a, 0, vram_chunks(a)), 0);
	/* asleep: all of it serves somebody else, addresses stay */
	assert_int_equal(vram_unback(a, 0, 4), 0);
	assert_int_equal(figures(w).taken_bytes, 0);
	assert_int_equal(figures(w).reserved_bytes, 2560 * MIB);
	assert_int_equal(vram_back(b, 0, 6), 0);
	assert_int_equal(vram_unback(b, 0, 6), 0);
	assert_int_equal(vram_back(a, 0, 4), 0);
	assert_int_equal(vram_at(a), at);
	*card_word(&w->card, at) = 1;
}

static void out_of_memory_takes_nothing_and_says_how_much_was_wanted(void **state)
{
	struct world *w = *state;
	struct vram_region *r;
	struct vram_figures f;

	assert_int_equal(vram_reserve(w->v, "kv", 4096 * MIB, 64 * MIB, &r), 0);
	assert_int_equal(vram_back(r, 0, 8), 0);
	assert_int_equal(vram_back(r, 4, 40), -ENOMEM);
	f = figures(w);
	assert_int_equal(f.taken_bytes, 512 * MIB);
	assert_int_equal(f.refused_bytes, 36 * 64 * MIB);
	assert_int_equal(f.peak_bytes, 2048 * MIB);
	for (uint32_t i = 0; i < vram_chunks(r); i++)
		assert_int_equal(vram_is_backed(r, i), i < 8);
	assert_int_equal(vram_back(r, 8, 24), 0); /* all there is */
}

static void a_limit_is_kept_although_the_card_has_more(void **state)
{
	struct world *w = *state;
	struct vram_region *r;
	struct vram *v;

	assert_int_equal(vram_new(&card_ops, &w->card, 100 * MIB, &v), 0);
	assert_int_equal(vram_reserve(v, "kv", 200 * MIB, 50 * MIB, &r), 0);
	assert_int_equal(vram_back(r, 0, 3), -ENOMEM);
	assert_int_equal(vram_back(r, 1, 2), 0);
	assert_int_equal(vram_back(r, 0, 1), -ENOMEM);
	vram_free(v);
}

static void four_pages_of_air_fill_whole_granules(void **state)
{
	(void)state;
	assert_int_equal(pagepool_group_pages(PAGE, 2048), 4);	    /* 46 MiB */
	assert_int_equal(pagepool_group_pages(PAGE / 2, 2048), 8);  /* of one of two ranks */
	assert_int_equal(pagepool_group_pages(PAGE / 4, 2048), 16); /* of one of four */
	assert_int_equal(pagepool_group_pages(10 * MIB, 2048), 4);
	assert_int_equal(pagepool_group_pages(10 * MIB, 3), 3);
	assert_int_equal(pagepool_group_pages(48 * MIB, 3), 1);
	assert_int_equal(pagepool_group_pages(PAGE, 2), 4); /* whole granules before all */
	assert_int_equal(pagepool_group_pages(PAGEPOOL_PAGE_ALIGN, 1000), 512);
	assert_int_equal(pagepool_group_pages(PAGEPOOL_PAGE_ALIGN, 100000), 8192);
}

/* A bitmap with one page in @step live, from @first on, below @n. */
static void mark(uint64_t *live, uint32_t first, uint32_t step, uint32_t n)
{
	memset(live, 0, 64 * sizeof(*live));
	for (uint32_t i = first; i < n; i += step)
		live[i / 64] |= 1ull << i % 64;
}

/* Writes to each page of the bitmap, at its beginning and its end, which page it is. */
static void write_pages(struct world *w, const struct pagepool *p, const uint64_t *live)
{
	for (uint32_t i = 0; i < p->n_groups * p->group_pages; i++)
		if (page_bit(live, i)) {
			*card_word(&w->card, vram_at(p->region) + i * p->page_bytes) = i + 1;
			*card_word(&w->card, vram_at(p->region) + (i + 1) * p->page_bytes - 1) = i +
												 1;
		}
}

/* That each page of the bitmap is where the moves say, whole, and nowhere twice. */
static void find_pages(struct world *w, const struct pagepool *p, const uint64_t *live,
		       const struct page_move *moves, uint32_t n)
{
	bool taken[4096] = { false };

	for (uint32_t i = 0; i < p->n_groups * p->group_pages; i++) {
		uint32_t at = i;

		if (!page_bit(live, i))
			continue;
		for (uint32_t m = 0; m < n; m++)
			at = moves[m].from == i ? moves[m].to : at;
		assert_true(pagepool_has(p, at));
		assert_false(taken[at]);
		taken[at] = true;
		assert_int_equal(*card_word(&w->card, vram_at(p->region) + at * p->page_bytes),
				 i + 1);
		assert_int_equal(
			*card_word(&w->card, vram_at(p->region) + (at + 1) * p->page_bytes - 1),
			i + 1);
	}
}

static void a_pool_gives_back_groups_by_moving_the_fewest_pages(void **state)
{
	struct world *w = *state;
	struct page_move moves[160];
	struct pagepool_figures f;
	uint64_t live[64];
	struct pagepool p;
	uint32_t n;

	assert_int_equal(pagepool_init(&p, w->v, "kv", PAGE, 158), 0);
	assert_int_equal(p.n_groups, 40);
	assert_int_equal(pagepool_grow(&p, 41), -ENOSPC);
	assert_int_equal(pagepool_grow(&p, 10), 0);
	assert_int_equal(figures(w).taken_bytes, 460 * MIB);

	mark(live, 0, 3, 40); /* 14 of 40: two in each fourth group, one in the others */
	write_pages(w, &p, live);
	pagepool_figures(&p, live, &f);
	assert_int_equal(f.live_pages, 14);
	assert_int_equal(f.empty_groups, 0);
	assert_int_equal(f.largest_free_run, 2);
	assert_true(f.fragmentation == 1.0);

	assert_int_equal(pagepool_shrink(&p, 7, live, moves, &n),
			 -ENOSPC); /* 14 need four groups */
	assert_int_equal(n, 0);
	assert_int_equal(pagepool_shrink(&p, 6, live, moves, &n), 0);
	assert_int_equal(n, 6);
	assert_int_equal(figures(w).taken_bytes, 184 * MIB);
	assert_int_equal(w->card.copied_bytes, 6 * PAGE);
	find_pages(w, &p, live, moves, n);
	assert_int_equal(pagepool_deinit(&p), 0);
}

static void groups_without_a_live_page_go_without_a_copy(void **state)
{
	struct world *w = *state;
	struct page_move moves[160];
	uint64_t live[64] = { 0 };
	struct pagepool p;
	uint32_t n;

	assert_int_equal(pagepool_init(&p, w->v, "kv", PAGE, 40), 0);
	assert_int_equal(pagepool_grow(&p, 10), 0);
	live[0] = 0xf0ff; /* groups 0, 1 and 3 */
	write_pages(w, &p, live);
	assert_int_equal(pagepool_shrink(&p, 7, live, moves, &n), 0);
	assert_int_equal(n, 0);
	assert_false(vram_is_backed(p.region, 2));
	find_pages(w, &p, live, moves, n);
	/* and come back where they were, the lowest first */
	assert_int_equal(pagepool_grow(&p, 2), 0);
	assert_true(vram_is_backed(p.region, 2) && vram_is_backed(p.region, 4));
	assert_false(vram_is_backed(p.region, 5));
}

static void a_pool_with_holes_is_packed_without_a_copy(void **state)
{
	struct world *w = *state;
	struct page_move moves[160];
	uint64_t live[64] = { 0 };
	struct pagepool p;
	uint32_t n;

	assert_int_equal(pagepool_init(&p, w->v, "kv", PAGE, 40), 0);
	assert_int_equal(pagepool_grow(&p, 10), 0);
	live[0] = 0xf00f000ff0; /* groups 1, 2, 6 and 9 */
	write_pages(w, &p, live);
	assert_int_equal(pagepool_shrink(&p, 6, live, moves, &n), 0);
	assert_int_equal(pagepool_pack(&p, moves, &n), 0);
	assert_int_equal(n, 8);
	for (uint32_t i = 0; i < 10; i++)
		assert_int_equal(vram_is_backed(p.region, i), i < 4);
	assert_int_equal(w->card.copied_bytes, 0);
	find_pages(w, &p, live, moves, n);
}

/* Marks at random which backed pages are live, @percent of them; writes to each which it is. */
static void fill_at_random(struct world *w, const struct pagepool *p, uint64_t *live,
			   uint64_t *random, uint32_t percent)
{
	memset(live, 0, 64 * sizeof(*live));
	for (uint32_t i = 0; i < p->n_groups * p->group_pages; i++) {
		*random ^= *random << 13, *random ^= *random >> 7, *random ^= *random << 17;
		if (pagepool_has(p, i) && (*random >> 20) % 100 < percent)
			live[i / 64] |= 1ull << i % 64;
	}
	write_pages(w, p, live);
}

static void no_page_is_lost_however_often_a_pool_grows_and_shrinks(void **state)
{
	struct world *w = *state;
	struct page_move moves[160];
	uint64_t live[64], random = 88172645463325252ull;
	struct pagepool p;
	uint32_t n;

	assert_int_equal(pagepool_init(&p, w->v, "kv", PAGE, 160), 0);
	for (uint32_t round = 0; round < 200; round++) {
		const uint32_t backed = vram_backed(p.region);
		struct pagepool_figures f;
		uint32_t spare;

		assert_int_equal(pagepool_grow(&p, (random >> 30) % (p.n_groups - backed + 1)), 0);
		fill_at_random(w, &p, live, &random, round % 101);
		pagepool_figures(&p, live, &f);
		spare = (f.pages - f.live_pages) / p.group_pages;
		assert_int_equal(pagepool_shrink(&p, spare + 1, live, moves, &n), -ENOSPC);
		assert_int_equal(pagepool_shrink(&p, spare, live, moves, &n), 0);
		assert_int_equal(vram_backed(p.region), f.groups - spare);
		find_pages(w, &p, live, moves, n);
		fill_at_random(w, &p, live, &random, 70);
		assert_int_equal(pagepool_pack(&p, moves, &n), 0);
		find_pages(w, &p, live, moves, n);
		for (uint32_t g = 0; g < p.n_groups; g++)
			assert_int_equal(vram_is_backed(p.region, g), g < f.groups - spare);
		figures(w);
	}
}

/* All that an executor does with a card's memory, once; stops at the first error. */
static int live_a_life(struct world *w)
{
	struct page_move moves[64];
	struct vram_region *weights;
	uint64_t live[64];
	struct pagepool p;
	uint32_t n;
	int fd, r;

	if ((r = vram_reserve(w->v, "weights", 100 * MIB, 64 * MIB, &weights)) < 0 ||
	    (r = pagepool_init(&p, w->v, "kv", PAGE, 24)) < 0 ||
	    (r = vram_back(weights, 0, 2)) < 0 || (r = vram_seal(weights, 0, 2)) < 0 ||
	    (r = pagepool_grow(&p, 2)) < 0 || (r = pagepool_grow(&p, 3)) < 0)
		return r;
	mark(live, 1, 4, 20);
	write_pages(w, &p, live);
	r = pagepool_shrink(&p, 3, live, moves, &n);
	find_pages(w, &p, live, moves, n);
	if (r < 0)
		return r;
	mark(live, 2, 4, 20);
	for (uint32_t i = 0; i < 24; i++)
		if (!pagepool_has(&p, i))
			live[0] &= ~(1ull << i);
	write_pages(w, &p, live);
	if ((r = pagepool_pack(&p, moves, &n)) < 0)
		return r;
	find_pages(w, &p, live, moves, n);
	if ((r = vram_export(weights, 1, &fd)) < 0)
		return r;
	r = vram_unback(weights, 0, 2);
	if (r == 0)
		r = vram_adopt(weights, 1, fd);
	card_close(&w->card, fd);
	if (r < 0 || (r = vram_back(weights, 0, 2)) < 0 || (r = pagepool_deinit(&p)) < 0)
		return r;
	return vram_unreserve(weights) ? -EIO : 0;
}

static void whichever_call_fails_nothing_is_lost_and_nothing_leaks(void **state)
{
	static const int errors[] = { -EIO, -ENOMEM };
	uint32_t n_calls = 0, n_failed = 0;

	(void)state;
	for (uint32_t at = 0; at <= n_calls; at++)
		for (size_t e = 0; e < 2; e++)
			for (uint32_t n = 1; n <= 3; n++) {
				void *world;
				struct world *w;
				int r;

				set_up(&world);
				w = world;
				w->card.fail_at = at;
				w->card.fail_n = n;
				w->card.fail_with = errors[e];
				r = live_a_life(w);
				if (at == 0) {
					assert_int_equal(r, 0);
					n_calls = w->card.n_calls;
				}
				n_failed += r < 0;
				figures(w);
				w->card.fail_at =
					0; /* the card has recovered; tear_down() counts */
				tear_down(&world);
			}
	assert_true(n_calls > 40);
	assert_int_equal(n_failed, 2 * 3 * n_calls);
}

static void after_any_failure_the_same_life_can_be_lived(void **state)
{
	(void)state;
	for (uint32_t at = 1; at < 90; at++) {
		void *world;
		struct world *w;

		set_up(&world);
		w = world;
		w->card.fail_at = at;
		live_a_life(w);
		w->card.fail_at = 0;
		w->card.bytes = 4096 * MIB;
		assert_int_equal(live_a_life(w), 0);
		tear_down(&world);
	}
}

static void what_the_card_will_not_take_back_is_stuck_and_tried_again(void **state)
{
	struct world *w = *state;
	struct vram_region *r;

	assert_int_equal(vram_reserve(w->v, "kv", 128 * MIB, 32 * MIB, &r), 0);
	assert_int_equal(vram_back(r, 0, 4), 0);
	w->card.fail_at = w->card.n_calls + 1;
	assert_int_equal(vram_unback(r, 0, 4), -EIO);
	assert_int_equal(figures(w).stuck_bytes, 32 * MIB);
	assert_int_equal(vram_backed(r), 0);
	assert_int_equal(vram_back(r, 0, 1), 0); /* it is there still: no new one is made */
	assert_int_equal(figures(w).calls[VRAM_CREATE], 4);
	assert_int_equal(figures(w).stuck_bytes, 0);
}

static void pages_that_must_move_stay_where_they_were_when_a_copy_fails(void **state)
{
	struct world *w = *state;
	struct page_move moves[40];
	uint64_t live[64];
	struct pagepool p;
	uint32_t n = 99;

	assert_int_equal(pagepool_init(&p, w->v, "kv", PAGE, 40), 0);
	assert_int_equal(pagepool_grow(&p, 10), 0);
	mark(live, 0, 4, 40);
	write_pages(w, &p, live);
	w->card.fail_at = w->card.n_calls + 3;
	assert_int_equal(pagepool_shrink(&p, 5, live, moves, &n), -EIO);
	assert_int_equal(n, 0);
	assert_int_equal(vram_backed(p.region), 10);
	find_pages(w, &p, live, moves, 0);
}

static void weights_outlive_who_loaded_them(void **state)
{
	struct world *w = *state;
	struct vram_region *weights;
	struct vram *next;
	int fds[2];

	assert_int_equal(vram_reserve(w->v, "weights", 100 * MIB, 64 * MIB, &weights), 0);
	assert_int_equal(vram_export(weights, 0, &fds[0]), -EINVAL);
	assert_int_equal(vram_back(weights, 0, 2), 0);
	*card_word(&w->card, vram_at(weights)) = 5;
	*card_word(&w->card, vram_at(weights) + 100 * MIB - 1) = 6;
	assert_int_equal(vram_export(weights, 0, &fds[0]), 0);
	assert_int_equal(vram_export(weights, 1, &fds[1]), 0);
	w->v = vram_free(w->v);
	assert_int_equal(w->card.taken_bytes, 100 * MIB);

	assert_int_equal(vram_new(&card_ops, &w->card, UINT64_MAX, &next), 0);
	assert_int_equal(vram_reserve(next, "weights", 100 * MIB, 64 * MIB, &weights), 0);
	assert_int_equal(vram_adopt(weights, 0, fds[1]), -EINVAL); /* another size */
	assert_int_equal(vram_adopt(weights, 0, fds[0]), 0);
	assert_int_equal(vram_adopt(weights, 0, fds[0]), -EINVAL);
	w->card.fail_at = w->card.n_calls + 3; /* to be read */
	assert_int_equal(vram_adopt(weights, 1, fds[1]), -EIO);
	assert_false(vram_is_backed(weights, 1));
	w->card.fail_at = 0;
	assert_int_equal(vram_adopt(weights, 1, fds[1]), 0);
	card_close(&w->card, fds[0]);
	card_close(&w->card, fds[1]);
	assert_int_equal(*card_word(&w->card, vram_at(weights)), 5);
	assert_int_equal(*card_word(&w->card, vram_at(weights) + 100 * MIB - 1), 6);
	vram_free(next);
	assert_int_equal(w->card.taken_bytes, 0);
}

static void asking_for_memory_while_serving_is_a_mistake(void **state)
{
	struct world *w = *state;
	struct vram_region *r;
	int status;
	pid_t pid;

	assert_int_equal(vram_reserve(w->v, "kv", 64 * MIB, 32 * MIB, &r), 0);
	assert_int_equal(vram_back(r, 0, 1), 0);
	vram_set_serving(w->v, true);
	assert_int_equal(vram_copy(r, 0, 16 * MIB, 16 * MIB), 0); /* asks for none */
	pid = fork();
	if (pid == 0) {
		signal(SIGABRT, SIG_DFL);
		fclose(stderr);
		vram_back(r, 1, 1);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
	vram_set_serving(w->v, false);
	assert_int_equal(vram_back(r, 1, 1), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(weights_outlive_who_loaded_them, set_up, tear_down),
		cmocka_unit_test_setup_teardown(asking_for_memory_while_serving_is_a_mistake,
						set_up, tear_down),
		cmocka_unit_test_setup_teardown(
			a_region_is_rounded_to_granules_and_its_last_chunk_is_what_is_left, set_up,
			tear_down),
		cmocka_unit_test_setup_teardown(what_makes_no_region_is_refused, set_up, tear_down),
		cmocka_unit_test_setup_teardown(memory_comes_back_at_the_same_addresses, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(
			out_of_memory_takes_nothing_and_says_how_much_was_wanted, set_up,
			tear_down),
		cmocka_unit_test_setup_teardown(a_limit_is_kept_although_the_card_has_more, set_up,
						tear_down),
		cmocka_unit_test(four_pages_of_air_fill_whole_granules),
		cmocka_unit_test_setup_teardown(a_pool_gives_back_groups_by_moving_the_fewest_pages,
						set_up, tear_down),
		cmocka_unit_test_setup_teardown(groups_without_a_live_page_go_without_a_copy,
						set_up, tear_down),
		cmocka_unit_test_setup_teardown(
			no_page_is_lost_however_often_a_pool_grows_and_shrinks, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_pool_with_holes_is_packed_without_a_copy, set_up,
						tear_down),
		cmocka_unit_test(whichever_call_fails_nothing_is_lost_and_nothing_leaks),
		cmocka_unit_test(after_any_failure_the_same_life_can_be_lived),
		cmocka_unit_test_setup_teardown(
			what_the_card_will_not_take_back_is_stuck_and_tried_again, set_up,
			tear_down),
		cmocka_unit_test_setup_teardown(
			pages_that_must_move_stay_where_they_were_when_a_copy_fails, set_up,
			tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
