/*
 * Files of the disk tier that are not as they were written: cut off, with bits
 * flipped, with blocks from elsewhere. What is served is right, or refused.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

#include "tests/unit/segworld.h"

#define PAGE 4096
#define STRIDE (4096 + PAGE)
#define SLOT(i) (4096 + (i)*STRIDE)
#define FOOTER SLOT(3)
#define FIRST "1000/seg-0000000000000001.kv"  /* pages 0, 2, 4 */
#define SECOND "1001/seg-0000000000000002.kv" /* pages 1, 3, 5 */
#define THIRD "1000/seg-0000000000000003.kv"  /* page 6, and two slots */

/* Seven pages on a disk that is left alone, and a copy of it for every damage. */
struct fixture {
	struct segdisk *good, *disk;
	struct world w;
};

static int set_up(void **state)
{
	struct fixture *t = calloc(1, sizeof(*t));

	assert_non_null(t);
	t->good = segdisk_new();
	world_init(&t->w, t->good, PAGE);
	assert_int_equal(world_open(&t->w), 0);
	for (uint32_t i = 0; i < 7; i++)
		assert_int_equal(world_append(&t->w, i), 0);
	world_close(&t->w);
	*state = t;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *t = *state;

	world_deinit(&t->w);
	segdisk_free(t->disk);
	segdisk_free(t->good);
	free(t);
	return 0;
}

static struct segdisk_file *fresh(struct fixture *t, const char *name)
{
	world_close(&t->w);
	segdisk_free(t->disk);
	t->disk = segdisk_copy(t->good);
	t->w.disk = t->disk;
	t->w.opts.ops = &t->disk->ops;
	return name ? segdisk_find(t->disk, name) : NULL;
}

/* @n of the seven pages are right, and something was counted for the rest. New pages find a place. */
static void expect(struct fixture *t, uint32_t n)
{
	struct segments_stats stats;

	assert_int_equal(world_open(&t->w), 0);
	assert_int_equal(world_read_all(&t->w), n);
	stats = world_stats(&t->w);
	assert_int_equal(stats.n_records, n);
	assert_int_equal(world_held(&t->w), n); /* what was refused has been told to be gone */
	assert_int_equal(t->w.n_strangers, 0);
	assert_int_equal(world_append(&t->w, 8), 0);
	assert_int_equal(world_append(&t->w, 9), 0);
	assert_int_equal(world_read(&t->w, 8), 0);
	assert_int_equal(world_read(&t->w, 9), 0);
	assert_int_equal(segments_flush(t->w.s, NULL), 0);
	assert_int_equal(world_reopen(&t->w), 0);
	assert_int_equal(world_read_all(&t->w), n + 2);
}

static void undamaged_nothing_is_counted(void **state)
{
	struct fixture *t = *state;

	fresh(t, NULL);
	expect(t, 7);
	assert_int_equal(world_stats(&t->w).n_damaged, 0);
	assert_int_equal(world_stats(&t->w).n_foreign, 0);
}

/* Every byte around a block's end, and some between. */
static uint64_t next_cut(uint64_t bytes)
{
	const uint64_t in = bytes % 4096;

	return in < 9 || in > 4086 ? 1 : MIN(499, 4087 - in);
}

static void a_file_cut_off_anywhere_loses_only_that(void **state)
{
	struct fixture *t = *state;

	for (uint64_t bytes = 0; bytes < FOOTER + 4096; bytes += next_cut(bytes)) {
		const uint32_t whole = bytes < SLOT(1)	 ? 0
				       : bytes < SLOT(2) ? 1
				       : bytes < SLOT(3) ? 2
							 : 3;

		segdisk_resize(fresh(t, FIRST), bytes);
		expect(t, 4 + whole);
		segdisk_resize(fresh(t, THIRD), bytes);
		expect(t, 6 + (whole > 0));
	}
}

static void a_flipped_bit_in_a_header_loses_the_file(void **state)
{
	struct fixture *t = *state;

	for (uint32_t bit = 0; bit < 8 * 4096; bit += bit < 8 * 96 ? 1 : 61) {
		fresh(t, FIRST)->data[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_int_equal(world_open(&t->w), 0);
		assert_int_equal(world_stats(&t->w).n_damaged, 1);
		assert_int_equal(world_stats(&t->w).n_foreign, 1);
		assert_int_equal(world_read_all(&t->w), 4);
		world_close(&t->w);
	}
	expect(t, 4);
}

static void a_flipped_bit_in_a_footer_loses_nothing(void **state)
{
	struct fixture *t = *state;

	for (uint32_t bit = 0; bit < 8 * 4096; bit += bit < 8 * 220 ? 1 : 61) {
		fresh(t, FIRST)->data[FOOTER + bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_int_equal(world_open(&t->w), 0);
		assert_int_equal(world_stats(&t->w).n_damaged, 1);
		assert_int_equal(world_read_all(&t->w), 7);
		/* and is made good */
		assert_int_equal(segments_flush(t->w.s, NULL), 0);
		assert_int_equal(world_reopen(&t->w), 0);
		assert_int_equal(world_stats(&t->w).n_damaged, 0);
		assert_int_equal(world_read_all(&t->w), 7);
		world_close(&t->w);
	}
}

/* In a full file its footer names the record, and reading it finds out; in another the head is looked at at once. */
static void a_flipped_bit_in_a_record_loses_the_record(void **state)
{
	struct fixture *t = *state;

	for (uint32_t bit = 0; bit < 8 * STRIDE; bit += bit < 8 * 200 ? 1 : 251) {
		fresh(t, FIRST)->data[SLOT(1) + bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_int_equal(world_open(&t->w), 0);
		assert_int_equal(world_held(&t->w), 7);
		assert_int_equal(world_read(&t->w, 2), -EBADMSG);
		assert_false(t->w.pages[2].held);
		assert_int_equal(world_stats(&t->w).n_damaged, 1);
		world_close(&t->w);
		expect(t, 6);

		fresh(t, THIRD)->data[SLOT(0) + bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_int_equal(world_open(&t->w), 0);
		assert_int_equal(t->w.pages[6].held, bit >= 8 * 4096);
		world_read_all(&t->w);
		assert_int_equal(world_stats(&t->w).n_damaged, 1);
		world_close(&t->w);
		expect(t, 6);
	}
}

static void the_sentence_says_what_and_where(void **state)
{
	struct fixture *t = *state;
	char wanted[256];

	fresh(t, FIRST)->data[SLOT(2) + 4096 + 17] ^= 4;
	assert_int_equal(world_open(&t->w), 0);
	assert_int_equal(world_read(&t->w, 4), -EBADMSG);
	snprintf(wanted, sizeof(wanted), "record 2 of '%s/" FIRST "': the sum of its payload is ",
		 t->w.dir);
	assert_memory_equal(t->w.err.text, wanted, strlen(wanted));
	assert_int_equal(strlen(t->w.err.text), strlen(wanted) + 32 + strlen(", and not ") + 32);

	memset(fresh(t, FIRST)->data + SLOT(0), 0, 4096);
	assert_int_equal(world_open(&t->w), 0);
	assert_int_equal(world_read(&t->w, 0), -EBADMSG);
	snprintf(wanted, sizeof(wanted), "record 0 of '%s/" FIRST "': its head is empty", t->w.dir);
	assert_string_equal(t->w.err.text, wanted);
}

/* From @from's slot to @to's, with all sums right. */
static void move(struct fixture *t, const char *from, uint32_t from_slot, const char *to,
		 uint32_t to_slot)
{
	memcpy(segdisk_find(t->disk, to)->data + SLOT(to_slot),
	       segdisk_find(t->disk, from)->data + SLOT(from_slot), STRIDE);
}

static void without_footers(struct fixture *t)
{
	memset(segdisk_find(t->disk, FIRST)->data + FOOTER, 0, 4096);
	memset(segdisk_find(t->disk, SECOND)->data + FOOTER, 0, 4096);
}

static void a_record_from_elsewhere_is_refused(void **state)
{
	static const struct {
		const char *from;
		uint32_t from_slot;
		const char *to;
		uint32_t to_slot;
		const char *why;
	} moves[] = {
		{ FIRST, 0, FIRST, 1, "it is of offset 4096, and not of 12288" },
		{ FIRST, 1, SECOND, 1, "it is of another segment" }, /* and another user */
		{ FIRST, 1, THIRD, 1, "it is of another segment" },
		{ THIRD, 0, FIRST, 0, "it is of another segment" },
	};
	struct fixture *t = *state;
	char wanted[256];

	for (size_t i = 0; i < ARRAY_SIZE(moves); i++) {
		const bool is_free = strcmp(moves[i].to, THIRD) == 0;

		/* with a footer that still names what was there */
		fresh(t, NULL);
		move(t, moves[i].from, moves[i].from_slot, moves[i].to, moves[i].to_slot);
		assert_int_equal(world_open(&t->w), 0);
		for (uint32_t page = 0; page < 7; page++) {
			if (!t->w.pages[page].held || world_read(&t->w, page) == 0)
				continue;
			snprintf(wanted, sizeof(wanted), "record %u of '%s/%s': %s",
				 moves[i].to_slot, t->w.dir, moves[i].to, moves[i].why);
			assert_string_equal(t->w.err.text, wanted);
		}
		assert_int_equal(world_stats(&t->w).n_damaged, 1);
		world_close(&t->w);
		expect(t, is_free ? 7 : 6);

		/* and without any */
		fresh(t, NULL);
		move(t, moves[i].from, moves[i].from_slot, moves[i].to, moves[i].to_slot);
		without_footers(t);
		assert_int_equal(world_open(&t->w), 0);
		assert_int_equal(world_stats(&t->w).n_damaged, 1);
		assert_int_equal(world_held(&t->w), is_free ? 7 : 6);
		world_close(&t->w);
		expect(t, is_free ? 7 : 6);
	}
}

/* The head of one record before the payload of another, each good in itself. */
static void heads_and_payloads_belong_together(void **state)
{
	struct fixture *t = *state;
	struct segdisk_file *f = fresh(t, FIRST);

	memcpy(f->data + SLOT(0) + 4096, f->data + SLOT(1) + 4096, PAGE);
	assert_int_equal(world_open(&t->w), 0);
	assert_int_equal(world_read(&t->w, 0), -EBADMSG);
	assert_int_equal(world_read(&t->w, 2), 0);
}

static void copy(struct fixture *t, const char *from, const char *to)
{
	const struct segdisk_file *f = segdisk_find(t->disk, from);
	struct segdisk_file *g = segdisk_find(t->disk, to);

	if (!g)
		g = segdisk_add(t->disk, to, false);
	segdisk_resize(g, f->bytes);
	memcpy(g->data, f->data, f->bytes);
}

static void a_file_from_elsewhere_is_refused(void **state)
{
	struct fixture *t = *state;

	/* into another user's directory: a copy, then instead of its own */
	fresh(t, NULL);
	copy(t, FIRST, "1001/seg-0000000000000001.kv");
	assert_int_equal(world_open(&t->w), 0);
	assert_int_equal(world_stats(&t->w).n_damaged, 1);
	assert_int_equal(world_stats(&t->w).n_foreign, 1);
	for (uint32_t i = 0; i < 7; i++)
		assert_int_equal(t->w.pages[i].n_found, 1);
	assert_int_equal(world_read_all(&t->w), 7);
	world_close(&t->w);
	expect(t, 7);

	fresh(t, NULL);
	copy(t, FIRST, SECOND);
	assert_int_equal(world_open(&t->w), 0);
	assert_int_equal(world_stats(&t->w).n_damaged, 1);
	world_close(&t->w);
	expect(t, 4);

	/* under another name of the same user */
	fresh(t, NULL);
	copy(t, FIRST, "1000/seg-0000000000000009.kv");
	assert_int_equal(world_open(&t->w), 0);
	assert_int_equal(world_stats(&t->w).n_damaged, 1);
	assert_int_equal(t->w.pages[0].n_found, 1);
	world_close(&t->w);
	expect(t, 7);
}

/* With its sums made good by somebody who knows how, what it says is still not what is there. */
static void good_sums_do_not_make_it_right(void **state)
{
	struct fixture *t = *state;
	struct segfile_header *h = (struct segfile_header *)fresh(t, FIRST)->data;

	h->uid = 1001;
	segfile_header_seal(h);
	expect(t, 4);

	h = (struct segfile_header *)fresh(t, FIRST)->data;
	h->n_slots = 65537;
	segfile_header_seal(h);
	expect(t, 4);

	h = (struct segfile_header *)fresh(t, FIRST)->data;
	h->n_slots = 65536; /* most of them beyond the end; what was the footer is a slot */
	segfile_header_seal(h);
	expect(t, 7);

	h = (struct segfile_header *)fresh(t, FIRST)->data;
	h->n_slots = 2;
	segfile_header_seal(h);
	expect(t, 6);

	h = (struct segfile_header *)fresh(t, FIRST)->data;
	h->page_bytes = UINT64_MAX;
	segfile_header_seal(h);
	expect(t, 4);

	h = (struct segfile_header *)fresh(t, FIRST)->data;
	h->version = 2;
	h->sum[0]++; /* whatever a later version does with the rest */
	expect(t, 4);

	h = (struct segfile_header *)fresh(t, FIRST)->data;
	h->id[0]++;
	segfile_header_seal(h);
	expect(t, 4);
}

static void a_record_says_of_itself_what_it_is(void **state)
{
	struct fixture *t = *state;
	struct segfile_record *r;

	for (int kind = 0; kind < 6; kind++) {
		fresh(t, NULL);
		without_footers(t);
		r = (struct segfile_record *)(segdisk_find(t->disk, FIRST)->data + SLOT(1));
		r->key.uid += kind == 0;
		r->key.n_tokens = kind == 1 ? 0 : kind == 2 ? 17 : r->key.n_tokens;
		r->payload_bytes += kind == 3;
		r->tokens[1] += kind == 4;
		r->payload_sum[1] += kind == 5;
		segfile_record_seal(r);
		assert_int_equal(world_open(&t->w), 0);
		assert_int_equal(t->w.pages[2].held, kind >= 4);
		world_read_all(&t->w);
		assert_int_equal(world_stats(&t->w).n_damaged, 1); /* a footer of zeros is none */
		world_close(&t->w);
		expect(t, 6);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(undamaged_nothing_is_counted, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_file_cut_off_anywhere_loses_only_that, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(a_flipped_bit_in_a_header_loses_the_file, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(a_flipped_bit_in_a_footer_loses_nothing, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(a_flipped_bit_in_a_record_loses_the_record, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(the_sentence_says_what_and_where, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(a_record_from_elsewhere_is_refused, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(heads_and_payloads_belong_together, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(a_file_from_elsewhere_is_refused, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(good_sums_do_not_make_it_right, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_record_says_of_itself_what_it_is, set_up,
						tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
