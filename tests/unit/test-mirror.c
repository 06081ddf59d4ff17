/* The KV cache of a device beside the arena: what goes up, what comes down, and when. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/exec/mirror.h"

#define PAGES 6
#define TOKENS 8

/* A device that is the host will do: the mirror does not look. */
struct fixture {
	struct dev *dev;
	struct stream *st;
	struct kv_cache arena, kv;
	struct mirror *mirror;
	size_t page_bytes;
	uint32_t frames[3]; /* of the pages used last */
};

#define GROUP 2

static void open_mirror(struct fixture *f)
{
	const struct mirror_size size = { .group_pages = GROUP, .least_pages = 3 };

	assert_int_equal(mirror_new(f->dev, &f->arena, &size, &f->mirror, &f->kv, NULL), 0);
	assert_int_equal(mirror_resize(f->mirror, f->st, UINT64_MAX), 0);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	f->arena = (struct kv_cache){ .type = DT_BF16,
				      .n_pages = PAGES,
				      .page_tokens = TOKENS,
				      .layers = 2,
				      .kv_heads = 2,
				      .head_dim = 16 };
	f->page_bytes = kv_page_bytes(&f->arena);
	f->arena.base = malloc(PAGES * f->page_bytes);
	assert_non_null(f->arena.base);
	for (uint32_t i = 0; i < PAGES; i++)
		memset((char *)f->arena.base + i * f->page_bytes, 'A' + (int)i, f->page_bytes);
	assert_int_equal(dev_open(ISA_PORTABLE, 1, &f->dev), 0);
	assert_int_equal(st_open(f->dev, 64, &f->st), 0);
	open_mirror(f);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	mirror_free(f->mirror);
	st_close(f->st);
	dev_close(f->dev);
	free(f->arena.base);
	free(f);
	return 0;
}

static char *at(const struct kv_cache *kv, uint32_t page)
{
	return (char *)kv->base + page * kv_page_bytes(kv);
}

/* All of a page has one byte's value. */
static void holds(const struct kv_cache *kv, uint32_t page, char value)
{
	for (size_t i = 0; i < kv_page_bytes(kv); i++)
		assert_int_equal(at(kv, page)[i], value);
}

static void fill(const struct kv_cache *kv, uint32_t page, char value)
{
	memset(at(kv, page), value, kv_page_bytes(kv));
}

static void do_move(struct fixture *f, uint32_t from, uint32_t to, uint32_t flags)
{
	const struct step_move move = { from, to, TOKENS, flags };

	assert_int_equal(mirror_move(f->mirror, f->st, &move, 1), 0);
}

static void use(struct fixture *f, uint32_t at_position, uint32_t n, const uint32_t *pages)
{
	const struct seq seq = { 0, n, at_position, (at_position + n + TOKENS - 1) / TOKENS,
				 pages };
	const struct seq *on_device;

	assert_int_equal(mirror_use(f->mirror, f->st, &seq, 1, &on_device), 0);
	assert_int_equal(on_device->at, at_position);
	memcpy(f->frames, on_device->pages, seq.n_pages * sizeof(*f->frames));
}

/* The device's frame of a page; it is used for that. */
static uint32_t frame_of(struct fixture *f, uint32_t page)
{
	use(f, TOKENS - 1, 1, &page);
	return f->frames[0];
}

static struct mirror_figures look(struct fixture *f, const char *map)
{
	struct mirror_figures figures;
	char got[PAGES + 1];

	mirror_look(f->mirror, &figures, got, PAGES);
	assert_string_equal(got, map);
	return figures;
}

static void resize(struct fixture *f, uint32_t frames)
{
	assert_int_equal(mirror_resize(f->mirror, f->st, frames * f->page_bytes), 0);
	assert_int_equal(mirror_frames(f->mirror), frames);
}

static void pages_before_the_position_come_up_once(void **state)
{
	struct fixture *f = *state;
	const uint32_t pages[] = { 4, 2, 0 };

	use(f, TOKENS + 1, TOKENS, pages); /* 4 is whole, 2 has a token, 0 is to be written */
	holds(&f->kv, f->frames[0], 'E');
	holds(&f->kv, f->frames[1], 'C');
	holds(&f->kv, f->frames[2], 0);
	fill(&f->arena, 4, 'x');
	fill(&f->kv, f->frames[2], 'w'); /* computed */
	use(f, 2 * TOKENS + 1, 1, pages);
	holds(&f->kv, f->frames[0], 'E');
	holds(&f->kv, f->frames[2], 'w');
	look(f, "###...");
}

static void what_is_summed_comes_down(void **state)
{
	struct fixture *f = *state;
	const uint32_t pages[] = { 3 };

	use(f, 0, TOKENS, pages);
	fill(&f->kv, f->frames[0], 'n');
	do_move(f, 3, 3, 0);
	holds(&f->arena, 3, 'n');
}

static void what_is_checked_goes_up_whatever_the_device_had(void **state)
{
	struct fixture *f = *state;
	const uint32_t pages[] = { 3 };

	use(f, 0, TOKENS, pages);
	fill(&f->kv, f->frames[0], 'o'); /* of an earlier owner */
	fill(&f->arena, 3, 'd');	 /* read from the disk since */
	do_move(f, 3, 3, STEP_MOVE_CHECK);
	holds(&f->arena, 3, 'd');
	holds(&f->kv, frame_of(f, 3), 'd');
}

static void a_copy_is_in_both(void **state)
{
	struct fixture *f = *state;

	do_move(f, 1, 5, 0); /* from a page that only the arena had */
	holds(&f->arena, 5, 'B');
	holds(&f->kv, frame_of(f, 5), 'B');
	fill(&f->kv, frame_of(f, 5), 'k');
	do_move(f, 5, 2, 0);
	holds(&f->kv, frame_of(f, 2), 'k');
	holds(&f->arena, 2, 'k');
}

static void a_cleared_page_is_zero_in_both(void **state)
{
	struct fixture *f = *state;

	do_move(f, 0, 0, STEP_MOVE_CHECK);
	do_move(f, STEP_NO_PAGE, 0, 0);
	holds(&f->arena, 0, 0);
	holds(&f->kv, frame_of(f, 0), 0);
}

static void the_next_executor_finds_what_was_summed(void **state)
{
	struct fixture *f = *state;
	const uint32_t pages[] = { 3, 1 };

	use(f, 0, TOKENS, pages);
	fill(&f->kv, f->frames[0], 'n');
	do_move(f, 3, 3, 0);
	f->mirror = mirror_free(f->mirror);
	open_mirror(f);
	use(f, TOKENS, 1, pages);
	holds(&f->kv, f->frames[0], 'n');
}

static void what_was_used_longest_ago_gives_way_and_comes_back(void **state)
{
	struct fixture *f = *state;
	const uint32_t first[] = { 0, 1 }, second[] = { 2, 3 }, third[] = { 4 };
	uint32_t kept;

	resize(f, 4);
	assert_true(mirror_is_short(f->mirror));
	use(f, 0, 2 * TOKENS, first);
	fill(&f->kv, f->frames[0], 'p'); /* only the device has it: nothing was summed */
	kept = f->frames[1];
	fill(&f->kv, kept, 'q');
	use(f, 0, 2 * TOKENS, second);
	assert_int_equal(frame_of(f, 1), kept);
	use(f, 0, TOKENS, third); /* page 0 was used longest ago */
	holds(&f->arena, 0, 'p');
	holds(&f->arena, 1, 'B');
	holds(&f->kv, kept, 'q');
	holds(&f->kv, frame_of(f, 0), 'p');
	assert_int_equal(look(f, "####  ").n_down, 2);
}

static void a_frame_of_another_page_is_zeroed(void **state)
{
	struct fixture *f = *state;
	const uint32_t secret[] = { 0, 1, 2 }, next[] = { 3, 4, 5 };

	resize(f, 4);
	use(f, 0, 3 * TOKENS, secret);
	for (uint32_t i = 0; i < 3; i++)
		fill(&f->kv, f->frames[i], 's');
	use(f, 0, 2 * TOKENS + 1, next);
	for (uint32_t i = 0; i < 3; i++)
		holds(&f->kv, f->frames[i], 0);
	do_move(f, 5, 5, 0);
	holds(&f->arena, 5, 0);
}

static void more_pages_than_frames_are_refused(void **state)
{
	struct fixture *f = *state;
	const uint32_t pages[] = { 0, 1, 2 };
	const struct seq seq = { 0, 3 * TOKENS, 0, 3, pages };
	const struct seq *on_device;

	resize(f, 2);
	assert_int_equal(mirror_use(f->mirror, f->st, &seq, 1, &on_device), -ENOSPC);
	resize(f, 4);
	assert_int_equal(mirror_use(f->mirror, f->st, &seq, 1, &on_device), 0);
}

static void it_shrinks_by_groups_and_keeps_what_was_used_last(void **state)
{
	struct fixture *f = *state;
	const uint32_t old[] = { 0, 1, 2 }, pages[] = { 3, 4 };
	struct mirror_figures figures;

	use(f, 0, 3 * TOKENS, old);
	use(f, 0, 2 * TOKENS, pages);
	fill(&f->kv, f->frames[0], 'x');
	fill(&f->kv, f->frames[1], 'y');
	figures = look(f, "#####.");
	assert_int_equal(figures.largest_free_run, 1);
	assert_true(figures.fragmentation == 1);
	resize(f, 2);
	figures = look(f, "  ##  ");
	assert_int_equal(figures.bytes, 2 * f->page_bytes);
	assert_int_equal(figures.n_moved, 1); /* within the device; what is older went down */
	holds(&f->arena, 3, 'D');
	use(f, 2 * TOKENS - 1, 1, pages);
	holds(&f->kv, f->frames[0], 'x');
	holds(&f->kv, f->frames[1], 'y');
	resize(f, 6);
	look(f, "..##..");
}

static void nothing_is_lost_while_it_has_no_memory(void **state)
{
	struct fixture *f = *state;
	const uint32_t pages[] = { 5, 1 };

	use(f, 0, TOKENS + 1, pages);
	fill(&f->kv, f->frames[0], 'm');
	fill(&f->kv, f->frames[1], 'n'); /* of which one position is computed */
	resize(f, 0);
	look(f, "      ");
	holds(&f->arena, 1, 'n');
	resize(f, 6);
	use(f, TOKENS + 1, 1, pages);
	holds(&f->kv, f->frames[0], 'm');
	holds(&f->kv, f->frames[1], 'n');
}

/* The second of two heads alone: of a page it is every other strip. */
static void a_rank_mirrors_its_heads_and_leaves_the_others(void **state)
{
	struct fixture *f = *state;
	const struct kv_cache own = kv_heads_of(&f->arena, 1, 1);
	const struct mirror_size size = { .group_pages = GROUP };
	const size_t strip = kv_head_bytes(&f->arena);
	const uint32_t pages[] = { 3, 1 };

	f->mirror = mirror_free(f->mirror);
	assert_int_equal(mirror_new(f->dev, &own, &size, &f->mirror, &f->kv, NULL), 0);
	assert_int_equal(kv_page_bytes(&f->kv), f->page_bytes / 2);
	for (size_t i = 0; i < f->page_bytes; i++)
		at(&f->arena, 3)[i] = i / strip % 2 ? 's' : 'f';
	use(f, TOKENS, 1, pages);
	holds(&f->kv, f->frames[0], 's');
	fill(&f->kv, f->frames[0], 'n');
	do_move(f, 3, 3, 0);
	for (size_t i = 0; i < f->page_bytes; i++)
		assert_int_equal(at(&f->arena, 3)[i], i / strip % 2 ? 'n' : 'f');
	do_move(f, STEP_NO_PAGE, 3, 0);
	for (size_t i = 0; i < f->page_bytes; i++)
		assert_int_equal(at(&f->arena, 3)[i], i / strip % 2 ? 0 : 'f');
	holds(&f->kv, frame_of(f, 3), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(pages_before_the_position_come_up_once, setup,
						teardown),
		cmocka_unit_test_setup_teardown(what_is_summed_comes_down, setup, teardown),
		cmocka_unit_test_setup_teardown(what_is_checked_goes_up_whatever_the_device_had,
						setup, teardown),
		cmocka_unit_test_setup_teardown(a_copy_is_in_both, setup, teardown),
		cmocka_unit_test_setup_teardown(a_cleared_page_is_zero_in_both, setup, teardown),
		cmocka_unit_test_setup_teardown(the_next_executor_finds_what_was_summed, setup,
						teardown),
		cmocka_unit_test_setup_teardown(what_was_used_longest_ago_gives_way_and_comes_back,
						setup, teardown),
		cmocka_unit_test_setup_teardown(a_frame_of_another_page_is_zeroed, setup, teardown),
		cmocka_unit_test_setup_teardown(more_pages_than_frames_are_refused, setup,
						teardown),
		cmocka_unit_test_setup_teardown(it_shrinks_by_groups_and_keeps_what_was_used_last,
						setup, teardown),
		cmocka_unit_test_setup_teardown(nothing_is_lost_while_it_has_no_memory, setup,
						teardown),
		cmocka_unit_test_setup_teardown(a_rank_mirrors_its_heads_and_leaves_the_others,
						setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
