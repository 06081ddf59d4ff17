/* The turns' memory: what a later life of the broker believes of it. */
#include "daemon/session/turns.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>
#include <sys/mman.h>

#include "client/wire/ownership.h"

static struct turns *turns_of(void)
{
	struct turns *t = NULL;
	struct err err = { 0 };

	assert_int_equal(turns_new(64, 8, &t, &err), 0);
	return t;
}

static struct turn_record *open_record(struct turns *t)
{
	struct turn_record *rec = turns_take(t);

	assert_non_null(rec);
	rec->n_prompt = rec->n_ids = 3;
	memcpy(turn_ids(t, rec), (uint32_t[]){ 11, 12, 13 }, 12);
	turn_restart(rec);
	return rec;
}

static struct turns *adopt(struct turns *t)
{
	struct turns *next = NULL;
	struct err err = { 0 };

	assert_int_equal(turns_adopt(dup(turns_fd(t)), &next, &err), 0);
	return next;
}

static void records_are_taken_found_and_dropped(void **state)
{
	struct turns *t = turns_of();
	struct turn_record *a = open_record(t), *b = open_record(t);

	(void)state;
	assert_int_equal(a->state, TURN_OPEN);
	assert_int_equal(a->slot, TURN_NO_SLOT);
	assert_true(a->id != 0 && a->id != b->id);
	assert_ptr_equal(turns_find(t, b->id), b);
	assert_ptr_equal(turns_next(t, NULL), a);
	assert_ptr_equal(turns_next(t, a), b);
	assert_null(turns_next(t, b));
	turns_drop(t, a);
	assert_ptr_equal(turns_next(t, NULL), b);
	assert_int_equal(turn_ids(t, a)[0], 0); /* no prompt stays behind */
	assert_int_equal(turn_ids(t, b)[0], 11);
	turns_free(t);
}

static void there_are_512_and_no_more(void **state)
{
	struct turns *t = turns_of();

	(void)state;
	for (int i = 0; i < 512; i++)
		assert_non_null(turns_take(t));
	assert_null(turns_take(t));
	turns_drop(t, turns_next(t, NULL));
	assert_non_null(turns_take(t));
	turns_free(t);
}

static void the_arrays_of_neighbours_do_not_touch(void **state)
{
	struct turns *t = turns_of();
	struct turn_record *a = open_record(t), *b = open_record(t);

	(void)state;
	turn_ids(t, a)[64] = 1;
	turn_page_table(t, a)[7] = 2;
	turn_logprobs(t, a)[64] = 3;
	turn_top_ids(t, a)[65 * STEP_TOP_MAX - 1] = 4;
	turn_top_logprobs(t, a)[65 * STEP_TOP_MAX - 1] = 5;
	assert_int_equal(turn_ids(t, a)[64], 1);
	assert_int_equal(turn_page_table(t, a)[7], 2);
	assert_true(turn_logprobs(t, a)[64] == 3);
	assert_int_equal(turn_top_ids(t, a)[65 * STEP_TOP_MAX - 1], 4);
	assert_int_equal(b->state, TURN_OPEN);
	assert_int_equal(turn_ids(t, b)[0], 11);
	turns_free(t);
}

static void a_later_life_finds_what_was_published(void **state)
{
	struct turns *t = turns_of(), *next;
	struct turn_record *rec = open_record(t);

	(void)state;
	rec->slot = 2;
	rec->state = TURN_RUNNING;
	turn_advance(rec, 3, 0, 41);
	turn_append(t, rec, 99, 42);
	/* half an append: the id is written, and not published */
	turn_ids(t, rec)[4] = 100;
	rec->n_ids = 77;
	rec->last_step = 43;

	next = adopt(t);
	rec = turns_next(next, NULL);
	assert_non_null(rec);
	assert_int_equal(rec->n_ids, 4);
	assert_int_equal(rec->n_kv, 3);
	assert_int_equal(rec->last_step, 42);
	assert_int_equal(rec->sampled, 1);
	assert_int_equal(rec->slot, 2);
	assert_int_equal(turn_ids(next, rec)[3], 99);
	assert_int_equal(turns_max_context(next), 64);
	turns_free(next);
	turns_free(t);
}

static void a_queued_turn_has_neither_slot_nor_pages(void **state)
{
	struct turns *t = turns_of(), *next;
	struct turn_record *rec = open_record(t);

	(void)state;
	rec->slot = 3;
	rec->n_pages = 2;
	rec->state = TURN_QUEUED; /* put back, and died before the rest was undone */
	next = adopt(t);
	rec = turns_next(next, NULL);
	assert_int_equal(rec->slot, TURN_NO_SLOT);
	assert_int_equal(rec->n_pages, 0);
	turns_free(next);
	turns_free(t);
}

static void break_prompt(struct turn_record *rec)
{
	rec->n_prompt = 65;
}
static void break_nothing_asked(struct turn_record *rec)
{
	rec->n_prompt = 0;
}
static void break_ids(struct turn_record *rec)
{
	rec->marks[rec->mark].n_ids = 66;
}
static void break_few_ids(struct turn_record *rec)
{
	rec->marks[rec->mark].n_ids = 2;
}
static void break_kv(struct turn_record *rec)
{
	rec->marks[rec->mark].n_kv = 4;
}
static void break_scores(struct turn_record *rec)
{
	rec->marks[rec->mark].n_scored = 4;
}
static void break_pages(struct turn_record *rec)
{
	rec->n_pages = 9;
}
static void break_slot(struct turn_record *rec)
{
	rec->slot = 64;
}
static void break_top(struct turn_record *rec)
{
	rec->n_top = 21;
}
static void break_bias(struct turn_record *rec)
{
	rec->n_bias = 1025;
}
static void break_stop_ids(struct turn_record *rec)
{
	rec->sampler.n_stop_ids = 33;
}
static void break_stops(struct turn_record *rec)
{
	rec->stops_len = 4097;
}
static void break_stop_count(struct turn_record *rec)
{
	rec->n_stops = 1;
}
static void break_stop_end(struct turn_record *rec)
{
	memcpy(rec->stops, "a\0b", 3);
	rec->stops_len = 3;
	rec->n_stops = 1;
}
static void break_label(struct turn_record *rec)
{
	memset(rec->label, 'x', sizeof(rec->label));
}
static void break_client(struct turn_record *rec)
{
	memset(rec->client, 'x', sizeof(rec->client));
}
static void break_miss(struct turn_record *rec)
{
	rec->miss.n_ids = KV_MISS_IDS + 1;
}
static void break_miss_at(struct turn_record *rec)
{
	rec->miss.at = rec->n_ids + 1;
}
static void break_finish(struct turn_record *rec)
{
	rec->finish = FINISH_N;
}
static void break_id(struct turn_record *rec)
{
	rec->id = 0;
}
static void break_state(struct turn_record *rec)
{
	rec->state = 99;
}
static void leave_open(struct turn_record *rec)
{
	rec->state = TURN_OPEN;
}

static void a_record_out_of_bounds_is_freed(void **state)
{
	static void (*const breaks[])(struct turn_record *) = {
		break_prompt,	break_nothing_asked, break_ids,	       break_few_ids,  break_kv,
		break_scores,	break_pages,	     break_slot,       break_top,      break_bias,
		break_stop_ids, break_stops,	     break_stop_count, break_stop_end, break_label,
		break_client,	break_finish,	     break_id,	       break_state,    leave_open,
		break_miss,	break_miss_at,
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(breaks); i++) {
		struct turns *t = turns_of(), *next;
		struct turn_record *bad = open_record(t), *good = open_record(t);
		const uint64_t good_id = good->id;

		bad->state = good->state = TURN_RUNNING;
		bad->slot = 1;
		good->slot = 63;
		breaks[i](bad);
		next = adopt(t);
		assert_int_equal(turns_next(next, NULL)->id, good_id);
		assert_null(turns_next(next, turns_next(next, NULL)));
		turns_free(next);
		turns_free(t);
	}
}

static void foreign_memory_is_refused(void **state)
{
	static const struct {
		off_t at;
		const char *text;
	} cases[] = {
		{ 0, "the turns' memory is not of this version of steamd" },
		{ 8, "the turns' memory is not of this version of steamd" },
		{ 12, "the turns' memory is not of this version of steamd" },
		{ 19, "the turns' memory is for 4278190144 tokens and 8 pages" },
		{ 40, "the turns' memory is from another boot" },
	};
	struct turns *t = turns_of(), *next = NULL;
	struct err err = { 0 };
	uint8_t byte, bad = 0xff;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		assert_int_equal(pread(turns_fd(t), &byte, 1, cases[i].at), 1);
		assert_int_equal(pwrite(turns_fd(t), &bad, 1, cases[i].at), 1);
		assert_int_equal(turns_adopt(turns_fd(t), &next, &err), -EBADMSG);
		assert_string_equal(err.text, cases[i].text);
		assert_int_equal(pwrite(turns_fd(t), &byte, 1, cases[i].at), 1);
	}
	assert_null(next);
	turns_free(adopt(t));
	turns_free(t);
}

static void memory_without_seals_or_of_another_size_is_refused(void **state)
{
	_cleanup_(closep) int copy = memfd_create("copy", MFD_CLOEXEC);
	struct turns *t = turns_of(), *next = NULL;
	struct err err = { 0 };
	off_t bytes = lseek(turns_fd(t), 0, SEEK_END);
	char head[4096];
	int pipes[2];

	(void)state;
	assert_int_equal(pread(turns_fd(t), head, sizeof(head), 0), sizeof(head));
	assert_int_equal(pwrite(copy, head, sizeof(head), 0), sizeof(head));
	assert_int_equal(turns_adopt(copy, &next, &err), -EBADMSG);
	assert_non_null(strstr(err.text, "the turns' memory has 4096 bytes; "));
	assert_int_equal(ftruncate(copy, bytes), 0);
	assert_int_equal(turns_adopt(copy, &next, &err), -EBADMSG);
	assert_string_equal(err.text, "the turns' memory is not sealed against resizing");
	assert_int_equal(pipe(pipes), 0);
	assert_int_equal(turns_adopt(pipes[0], &next, &err), -EBADMSG); /* no memory at all */
	close(pipes[0]);
	close(pipes[1]);
	turns_free(t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(records_are_taken_found_and_dropped),
		cmocka_unit_test(there_are_512_and_no_more),
		cmocka_unit_test(the_arrays_of_neighbours_do_not_touch),
		cmocka_unit_test(a_later_life_finds_what_was_published),
		cmocka_unit_test(a_queued_turn_has_neither_slot_nor_pages),
		cmocka_unit_test(a_record_out_of_bounds_is_freed),
		cmocka_unit_test(foreign_memory_is_refused),
		cmocka_unit_test(memory_without_seals_or_of_another_size_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
