/* Error sentences and UTF-8: always one printable line, always whole. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "client/wire/err.h"
#include "client/wire/utf8.h"

static void a_sentence_and_its_code_are_kept(void **state)
{
	struct err err = { 0 };

	(void)state;
	assert_int_equal(err_set(&err, -EINVAL, "top_k is %d", 7), -EINVAL);
	assert_int_equal(err.code, -EINVAL);
	assert_string_equal(err.text, "top_k is 7");
	assert_int_equal(err_set(NULL, -EIO, "nobody listens"), -EIO);
}

static void wrapping_puts_what_the_caller_knows_in_front(void **state)
{
	struct err err = { 0 };

	(void)state;
	err_set(&err, -EBADMSG, "too short");
	assert_int_equal(err_wrap(&err, -EIO, "file '%s'", "x"), -EIO);
	assert_string_equal(err.text, "file 'x': too short");
	err = (struct err){ 0 };
	err_wrap(&err, -ENOENT, "cannot open 'y'");
	assert_string_equal(err.text, "cannot open 'y': No such file or directory");
}

static void foreign_bytes_cannot_break_the_line(void **state)
{
	struct err err = { 0 };

	(void)state;
	err_set(&err, -EINVAL, "'%s'", "a\nb\033[2J\xff\xc2\x9b\x7f\xc3\xa4");
	assert_string_equal(err.text, "'a?b?[2J????\xc3\xa4'");
}

static void a_long_sentence_is_cut_and_not_overrun(void **state)
{
	char word[2 * ERR_TEXT_MAX];
	struct err err = { 0 };

	(void)state;
	memset(word, 'x', sizeof(word) - 1);
	word[sizeof(word) - 1] = '\0';
	err_set(&err, -EINVAL, "%s", word);
	assert_int_equal(strlen(err.text), ERR_TEXT_MAX - 1);
	err_wrap(&err, -EINVAL, "%s", word);
	assert_int_equal(strlen(err.text), ERR_TEXT_MAX - 1);
}

static void well_formed_is_what_unicode_says(void **state)
{
	static const struct {
		const char *bytes;
		size_t len, good;
	} cases[] = {
		{ "abc", 3, 3 },
		{ "12345678\xe2\x82\xac", 11, 11 },
		{ "a\0b", 3, 3 },
		{ "\xf4\x8f\xbf\xbf", 4, 4 }, /* U+10FFFF */
		{ "\xf4\x90\x80\x80", 4, 0 }, /* one above */
		{ "\xed\x9f\xbf", 3, 3 },     /* before the surrogates */
		{ "\xed\xa0\x80", 3, 0 },     /* the first of them */
		{ "\xc0\x80", 2, 0 },	      /* overlong */
		{ "\xc1\xbf", 2, 0 },
		{ "\xe0\x9f\xbf", 3, 0 },
		{ "\xf0\x8f\xbf\xbf", 4, 0 },
		{ "a\xe2\x82", 3, 1 }, /* cut off */
		{ "1234567\x80", 8, 7 },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
		assert_int_equal(utf8_valid_bytes((struct span){ cases[i].bytes, cases[i].len }),
				 cases[i].good);
}

static void each_broken_part_becomes_one_replacement(void **state)
{
	static const struct {
		const char *from, *to;
	} cases[] = {
		{ "fine \xc3\xa4", "fine \xc3\xa4" },
		{ "a\xff\xfe"
		  "b",
		  "a\xef\xbf\xbd\xef\xbf\xbd"
		  "b" },
		{ "\xe2\x82", "\xef\xbf\xbd" }, /* one prefix, one mark */
		{ "\xe2\x82x", "\xef\xbf\xbdx" },
		{ "\xf0\x9f\x98\xe2\x82\xac", "\xef\xbf\xbd\xe2\x82\xac" },
		{ "\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd" },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		_cleanup_(freep) char *got = NULL;
		size_t len;

		assert_int_equal(utf8_repair(span_of(cases[i].from), &got, &len), 0);
		assert_string_equal(got, cases[i].to);
		assert_int_equal(len, strlen(cases[i].to));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_sentence_and_its_code_are_kept),
		cmocka_unit_test(wrapping_puts_what_the_caller_knows_in_front),
		cmocka_unit_test(foreign_bytes_cannot_break_the_line),
		cmocka_unit_test(a_long_sentence_is_cut_and_not_overrun),
		cmocka_unit_test(well_formed_is_what_unicode_says),
		cmocka_unit_test(each_broken_part_becomes_one_replacement),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
