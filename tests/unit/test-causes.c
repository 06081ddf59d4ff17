/* The ring of causes: what is told of which text, what is forgotten, and what a later broker believes of it. */
#include "daemon/kv/causes.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "client/wire/ownership.h"

#define ALL_BYTES (128 + 4096 * 184)

/* Where things are, in literals: another program wrote what is adopted. */
enum { AT_MAGIC = 0, AT_VERSION = 8, AT_N_ENTRIES = 12, AT_ENTRY_BYTES = 16, AT_NEXT = 20 };

static const struct kv_hash root = { 11, 12 };

static struct causes *new_causes(void)
{
	struct causes *c = NULL;
	struct err err = { 0 };

	assert_int_equal(causes_new(&c, &err), 0);
	return c;
}

static uint8_t *map_of(const struct causes *c)
{
	uint8_t *at = mmap(NULL, ALL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, causes_fd(c), 0);

	assert_true(at != MAP_FAILED);
	return at;
}

/* The page of the first @n of @ids behind the root. */
static void note(struct causes *c, const uint32_t *ids, uint32_t n, uint32_t cause)
{
	causes_note(c, root, root, chain_next(root, root, ids, n), ids, n, cause);
}

static void assert_cause(const struct causes *c, const uint32_t *ids, uint32_t n, uint32_t tokens,
			 uint32_t cause)
{
	uint32_t got = 0;

	assert_int_equal(causes_find(c, root, root, ids, n, 0, &got), tokens);
	assert_int_equal(got, cause);
}

static struct causes *next_life(struct causes *c)
{
	const int fd = dup(causes_fd(c));
	struct err err = { 0 };

	causes_free(c);
	c = NULL;
	assert_int_equal(causes_adopt(fd, &c, &err), 0);
	return c;
}

static void the_longest_beginning_is_told(void **state)
{
	static const uint32_t ids[4] = { 1, 2, 3, 4 }, other[4] = { 1, 2, 9, 9 };
	struct causes *c = new_causes();
	uint32_t cause = 0;

	(void)state;
	assert_cause(c, ids, 4, 0, 0);
	note(c, ids, 2, 1);
	note(c, ids, 4, 2);
	for (uint32_t life = 0; life < 2; life++) {
		assert_cause(c, ids, 4, 4, 2);
		assert_cause(c, ids, 3, 3, 2);
		assert_cause(c, ids, 1, 1, 2); /* ends in both: the last is told */
		assert_cause(c, other, 4, 2, 1);
		assert_cause(c, ids + 1, 3, 0, 0);
		assert_int_equal(causes_find(c, root, root, other, 4, 2, &cause), 0);
		assert_int_equal(causes_find(c, root, root, other, 4, 1, &cause), 2);
		/* of another namespace, or behind another page */
		assert_int_equal(
			causes_find(c, (struct kv_hash){ 11, 13 }, root, ids, 4, 0, &cause), 0);
		assert_int_equal(
			causes_find(c, root, (struct kv_hash){ 11, 13 }, ids, 4, 0, &cause), 0);
		c = next_life(c);
	}
	note(c, ids, 4, 3); /* went again */
	assert_cause(c, ids, 4, 4, 3);
	causes_drop(c, root, root, other, 4);
	assert_cause(c, other, 4, 0, 0);
	c = next_life(c);
	assert_cause(c, ids, 4, 4, 3);
	causes_drop(c, root, root, ids, 4);
	assert_cause(c, ids, 4, 0, 0);
	c = next_life(c);
	assert_cause(c, ids, 4, 0, 0);
	causes_free(c);
}

static void the_oldest_make_room(void **state)
{
	struct causes *c = new_causes();
	uint32_t ids[2] = { 0 };

	(void)state;
	for (uint32_t i = 0; i < 4096 + 100; i++) {
		ids[0] = i;
		note(c, ids, 2, 1 + i % 3);
		if (i % 1500 == 0)
			c = next_life(c);
	}
	for (uint32_t i = 0; i < 4096 + 100; i++) {
		ids[0] = i;
		assert_cause(c, ids, 2, i < 100 ? 0 : 2, i < 100 ? 0 : 1 + i % 3);
	}
	causes_free(c);
}

/* Whatever bit is another one than was written: what is believed is what was noted, or nothing. */
static void an_entry_that_is_not_whole_says_nothing(void **state)
{
	static const uint32_t ids[2] = { 7, 8 };
	uint32_t cause;

	(void)state;
	for (uint32_t bit = 0; bit < 184 * 8; bit++) {
		struct causes *c = new_causes();
		uint8_t *map = map_of(c);

		note(c, ids, 2, 1);
		map[128 + bit / 8] ^= (uint8_t)(1u << bit % 8);
		munmap(map, ALL_BYTES);
		c = next_life(c);
		assert_cause(c, ids, 2, 0, 0);
		note(c, ids, 2, 2);
		assert_int_equal(causes_find(c, root, root, ids, 2, 0, &cause), 2);
		assert_int_equal(cause, 2);
		causes_free(c);
	}
}

static void assert_refused(struct causes *c, uint32_t at, const char *text)
{
	struct causes *got = NULL;
	uint8_t *map = map_of(c);
	struct err err = { 0 };

	map[at] ^= 1;
	assert_int_equal(causes_adopt(causes_fd(c), &got, &err), -EBADMSG);
	assert_string_equal(err.text, text);
	assert_null(got);
	map[at] ^= 1;
	munmap(map, ALL_BYTES);
}

static void another_kind_of_memory_is_refused(void **state)
{
	struct causes *c = new_causes(), *got = NULL;
	struct err err = { 0 };
	uint8_t *map = map_of(c);
	int fd, pipes[2];

	(void)state;
	assert_memory_equal(map + AT_MAGIC, "smtcaus1", 8);
	assert_refused(c, AT_MAGIC, "the causes of lost KV are not of this version of steamd");
	assert_refused(c, AT_VERSION, "the causes of lost KV are not of this version of steamd");
	assert_refused(
		c, AT_N_ENTRIES,
		"the causes of lost KV are 4097 of 184 bytes in 753792; 4096, 184 and 753792 "
		"are wanted");
	assert_refused(
		c, AT_ENTRY_BYTES,
		"the causes of lost KV are 4096 of 185 bytes in 753792; 4096, 184 and 753792 "
		"are wanted");
	/* where it goes on is only where it goes on */
	memset(map + AT_NEXT, 0xff, 4);
	c = next_life(c);
	note(c, (const uint32_t[]){ 1 }, 1, 1);
	assert_cause(c, (const uint32_t[]){ 1 }, 1, 1, 1);

	fd = memfd_create("other", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_int_equal(causes_adopt(fd, &got, &err), -EBADMSG);
	assert_string_equal(err.text, "the causes of lost KV end in their head");
	assert_int_equal(pipe(pipes), 0);
	assert_int_equal(causes_adopt(pipes[0], &got, &err), -EBADMSG);
	close(pipes[0]);
	close(pipes[1]);
	assert_int_equal(write(fd, map, ALL_BYTES), ALL_BYTES);
	err.text[0] = 0;
	assert_int_equal(causes_adopt(fd, &got, &err), -EBADMSG);
	assert_string_equal(err.text, "the causes of lost KV are not sealed against resizing");
	close(fd);
	munmap(map, ALL_BYTES);
	causes_free(c);
}

/* As long as it ends among the first tokens of it, and in the same namespace, behind the same page. */
static void a_text_that_ends_in_a_page_recognises_it(void **state)
{
	const struct kv_hash elsewhere = { 11, 13 };
	struct causes *c = new_causes();
	uint32_t ids[100], other[100], cause;

	(void)state;
	for (uint32_t i = 0; i < 100; i++)
		ids[i] = other[i] = 3 * i;
	note(c, ids, 100, 2);
	for (uint32_t life = 0; life < 2; life++) {
		for (uint32_t n = 1; n <= 64; n++) {
			assert_cause(c, ids, n, n, 2);
			other[n - 1]++;
			assert_cause(c, other, n, 0, 0);
			other[n - 1]--;
			assert_int_equal(causes_find(c, elsewhere, root, ids, n, 0, &cause), 0);
			assert_int_equal(causes_find(c, root, elsewhere, ids, n, 0, &cause), 0);
			assert_int_equal(causes_find(c, root, root, ids, n, n, &cause), 0);
		}
		assert_cause(c, ids, 65, 0, 0);
		assert_cause(c, ids, 99, 0, 0);
		assert_cause(c, ids, 100, 100, 2);
		c = next_life(c);
	}
	/* of one whose tokens nobody knew any more only its whole text tells */
	causes_note(c, root, root, chain_next(root, root, ids, 100), NULL, 100, 3);
	assert_cause(c, ids, 64, 0, 0);
	assert_cause(c, ids, 100, 100, 3);
	causes_free(c);
}

static void the_models_before_are_known(void **state)
{
	static const uint64_t none[2];
	struct causes *c = new_causes();
	uint64_t model[2];

	(void)state;
	assert_false(causes_model(c, 0, model));
	causes_note_model(c, none); /* there was none */
	assert_false(causes_model(c, 0, model));
	for (uint64_t i = 1; i <= 5; i++) {
		causes_note_model(c, (const uint64_t[2]){ i, 7 });
		c = next_life(c);
	}
	causes_note_model(c, (const uint64_t[2]){ 4, 7 }); /* once more */
	for (uint32_t i = 0; i < 3; i++) {
		static const uint64_t want[3] = { 4, 5, 3 };

		assert_true(causes_model(c, i, model));
		assert_int_equal(model[0], want[i]);
		assert_int_equal(model[1], 7);
	}
	assert_false(causes_model(c, 3, model));
	causes_free(c);
}

static void without_memory_for_it_nothing_is_known(void **state)
{
	static const uint32_t ids[1];
	uint64_t model[2] = { 1, 2 };
	uint32_t cause;

	(void)state;
	note(NULL, ids, 1, 1);
	causes_drop(NULL, root, root, ids, 1);
	causes_note_model(NULL, model);
	assert_false(causes_model(NULL, 0, model));
	assert_int_equal(causes_find(NULL, root, root, ids, 1, 0, &cause), 0);
	assert_int_equal(causes_fd(NULL), -1);
	assert_null(causes_free(NULL));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_longest_beginning_is_told),
		cmocka_unit_test(the_oldest_make_room),
		cmocka_unit_test(an_entry_that_is_not_whole_says_nothing),
		cmocka_unit_test(another_kind_of_memory_is_refused),
		cmocka_unit_test(a_text_that_ends_in_a_page_recognises_it),
		cmocka_unit_test(the_models_before_are_known),
		cmocka_unit_test(without_memory_for_it_nothing_is_known),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
