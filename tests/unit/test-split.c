/* The split scanner against the reference's pieces, the tables against its classes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/text/split.h"
#include "daemon/text/unicode.h"
#include "tests/unit/golden.h"

static void every_code_point_has_the_classes_of_the_reference(void **state)
{
	static const struct {
		const char *name;
		uint8_t class;
	} classes[] = { { "L", UNICODE_L }, { "N", UNICODE_N }, { "S", UNICODE_S } };
	static uint8_t wanted[UNICODE_END];
	json_t *golden = golden_load("tokenizer/unicode_classes.json");
	json_t *range;
	size_t i;

	(void)state;
	for (size_t k = 0; k < 3; k++)
		json_array_foreach(json_object_get(golden, classes[k].name), i, range)
			for (json_int_t c = json_integer_value(json_array_get(range, 0));
			     c <= json_integer_value(json_array_get(range, 1)); c++)
				wanted[c] |= classes[k].class;
	for (uint32_t c = 0; c < UNICODE_END; c++)
		if ((unicode_classes()[c] & (UNICODE_L | UNICODE_N | UNICODE_S)) != wanted[c])
			fail_msg("U+%04X has classes %d, not %d", c, unicode_classes()[c],
				 wanted[c]);
	json_decref(golden);
}

static void words_are_letters_marks_decimals_and_connectors(void **state)
{
	const uint8_t *classes = unicode_classes();

	(void)state;
	assert_true(classes['a'] & UNICODE_W);
	assert_true(classes['_'] & UNICODE_W);
	assert_true(classes['7'] & UNICODE_W);
	assert_true(classes[0x301] & UNICODE_W);  /* combining acute */
	assert_true(classes[0x2167] & UNICODE_W); /* roman eight: a letter number */
	assert_true(classes[0x200d] & UNICODE_W); /* zero width joiner */
	assert_false(classes[0xb2] & UNICODE_W);  /* superscript two: an other number */
	assert_false(classes['-'] & UNICODE_W);
	assert_false(classes[0xa0] & UNICODE_W);
}

static void every_text_splits_as_the_reference_does(void **state)
{
	json_t *golden = golden_load("tokenizer/splits.json");
	json_t *test, *piece;
	size_t i, k;

	(void)state;
	assert_string_equal(json_string_value(json_object_get(golden, "pattern")), SPLIT_PATTERN);
	assert_true(json_array_size(json_object_get(golden, "cases")) > 100);
	json_array_foreach(json_object_get(golden, "cases"), i, test) {
		const json_t *text = json_object_get(test, "text");
		const size_t len = json_string_length(text);
		size_t at = 0;

		json_array_foreach(json_object_get(test, "pieces"), k, piece) {
			size_t end;

			assert_true(at < len);
			end = split_next(unicode_classes(), json_string_value(text), len, at);
			if (end - at != json_string_length(piece) ||
			    memcmp(json_string_value(text) + at, json_string_value(piece),
				   end - at))
				fail_msg("case %zu: piece %zu is '%.*s', not '%s'", i, k,
					 (int)(end - at), json_string_value(text) + at,
					 json_string_value(piece));
			at = end;
		}
		assert_int_equal(at, len);
	}
	json_decref(golden);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_code_point_has_the_classes_of_the_reference),
		cmocka_unit_test(words_are_letters_marks_decimals_and_connectors),
		cmocka_unit_test(every_text_splits_as_the_reference_does),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
