/* Files that are not tokenizers, or not ones that can be used: each refused with its sentence. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "client/wire/ownership.h"
#include "daemon/text/tokenizer.h"
#include "tests/unit/golden.h"

#define SMALL "tokenizer/tokenizer_small.json"

static char *dump_small(size_t *ret_len)
{
	json_t *file = golden_load(SMALL);
	char *text = json_dumps(file, JSON_COMPACT);

	json_decref(file);
	*ret_len = strlen(text);
	return text;
}

/* Parses the small tokenizer with "section"."member" (or "section" as a whole) replaced by @json. */
static int parse_with(const char *section, const char *member, const char *json, struct err *err)
{
	json_t *file = golden_load(SMALL);
	json_t *value = json ? json_loads(json, JSON_DECODE_ANY, NULL) : NULL;
	struct tokenizer *t = NULL;
	char *text;
	int r;

	if (json)
		assert_non_null(value);
	if (member && value)
		json_object_set_new(json_object_get(file, section), member, value);
	else if (member)
		json_object_del(json_object_get(file, section), member);
	else if (value)
		json_object_set_new(file, section, value);
	else
		json_object_del(file, section);
	text = json_dumps(file, JSON_COMPACT);
	r = tokenizer_parse(text, strlen(text), &t, err);
	tokenizer_free(t);
	free(text);
	json_decref(file);
	return r;
}

static void what_is_not_supported_is_named(void **state)
{
	static const struct {
		const char *section, *member, *json;
		int code;
		const char *sentence;
	} cases[] = {
		{ "version", NULL, "\"2.0\"", -ENOTSUP,
		  "version is \"2.0\"; only \"1.0\" is supported" },
		{ "normalizer", NULL, "{\"type\":\"NFC\"}", -ENOTSUP,
		  "normalizer is 'NFC'; only null is supported" },
		{ "decoder", NULL, "{\"type\":\"WordPiece\"}", -ENOTSUP,
		  "decoder is 'WordPiece'; only ByteLevel is supported" },
		{ "pre_tokenizer", NULL, "{\"type\":\"Whitespace\"}", -ENOTSUP,
		  "pre_tokenizer is 'Whitespace' of 0; a Sequence of Split and ByteLevel is "
		  "wanted" },
		{ "post_processor", NULL, "{\"type\":\"BertProcessing\"}", -ENOTSUP,
		  "post_processor is 'BertProcessing'; ByteLevel and TemplateProcessing are "
		  "supported" },
		{ "model", NULL, NULL, -EBADMSG, "there is no 'model'" },
		{ "model", "type", "\"Unigram\"", -ENOTSUP,
		  "model.type is \"Unigram\"; only \"BPE\" is supported" },
		{ "model", "dropout", "0.5", -ENOTSUP,
		  "model.dropout is 0.5; only null is supported" },
		{ "model", "end_of_word_suffix", "\"</w>\"", -ENOTSUP,
		  "model.continuing_subword_prefix and end_of_word_suffix must be empty" },
		{ "model", "ignore_merges", "1", -EBADMSG,
		  "model.ignore_merges is 1; true or false is wanted" },
		{ "model", "vocab", NULL, -EBADMSG, "model.vocab: it is missing" },
		{ "model", "vocab", "{\"a\":1}", -EBADMSG,
		  "model.vocab: there is no token for byte 0x00" },
		{ "model", "vocab", "{\"a\":1,\"b\":1}", -EBADMSG,
		  "model.vocab: token id 1 is given twice" },
		{ "model", "vocab", "{\"a\":16777216}", -EBADMSG,
		  "model.vocab: token id 16777216 is over the limit of 16777215" },
		{ "model", "vocab", "{\"a\":16777215}", -EBADMSG,
		  "model.vocab: the largest id is 16777215, but there are only 1 tokens" },
		{ "model", "vocab", "{\"\":1}", -EBADMSG, "model.vocab: token 1 is empty" },
		{ "model", "vocab", "{\"a\":1.5}", -EBADMSG,
		  "model.vocab: byte 6: a whole number is wanted" },
		{ "model", "merges", NULL, -EBADMSG, "model.merges is missing" },
		{ "model", "merges", "[\"qz\"]", -EBADMSG, "model.merges[0]: 'qz' is not a pair" },
		{ "model", "merges", "[[\"q\"]]", -EBADMSG, "model.merges[0]: it is not a pair" },
		{ "model", "merges", "[[\"q\",\"z\",\"q\"]]", -EBADMSG,
		  "model.merges[0]: it is not a pair" },
		{ "model", "merges", "[\"q qqqqq\"]", -EBADMSG,
		  "model.merges[0]: 'qqqqq' is not in the vocabulary" },
		{ "model", "merges", "[\"q z\"]", -EBADMSG,
		  "model.merges[0]: what it makes is not in the vocabulary" },
		{ "model", "merges", "[[\"\\u0120\",\"\\u0120\"],[\"\\u0120\",\"\\u0120\"]]",
		  -EBADMSG, "model.merges[1]: is the same as merges[0]" },
		{ "added_tokens", NULL, "[{\"id\":460}]", -EBADMSG,
		  "added_tokens[0]: its content is empty or missing" },
		{ "added_tokens", NULL,
		  "[{\"id\":460,\"content\":\"<x>\"},{\"id\":461,\"content\":\"<x>\"}]", -EBADMSG,
		  "added_tokens[1]: '<x>' is there twice" },
		{ "post_processor", NULL,
		  "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<b>\"}}"
		  "],"
		  "\"special_tokens\":{\"<b>\":{\"ids\":[9999]}}}",
		  -EBADMSG, "post_processor: id 9999 of '<b>' is not a token" },
		{ "post_processor", NULL, "{\"type\":\"TemplateProcessing\",\"single\":[]}",
		  -EBADMSG, "post_processor: the template leaves out the text" },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct err err = { 0 };

		assert_int_equal(parse_with(cases[i].section, cases[i].member, cases[i].json, &err),
				 cases[i].code);
		assert_string_equal(err.text, cases[i].sentence);
	}
}

static void another_split_pattern_is_named(void **state)
{
	struct err err = { 0 };

	(void)state;
	assert_int_equal(parse_with("pre_tokenizer", "pretokenizers",
				    "[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\p{N}\"},"
				    "\"behavior\":\"Isolated\",\"invert\":false},"
				    "{\"type\":\"ByteLevel\"}]",
				    &err),
			 -ENOTSUP);
	assert_non_null(strstr(err.text, "the split pattern is '\\p{N}'; only '(?i:'s|"));
}

static void a_missing_file_is_named(void **state)
{
	struct tokenizer *t = NULL;
	struct err err = { 0 };

	(void)state;
	assert_int_equal(tokenizer_open("/nonexistent/tokenizer.json", &t, &err), -ENOENT);
	assert_string_equal(err.text,
			    "cannot open '/nonexistent/tokenizer.json': No such file or directory");
	assert_null(t);
}

static void every_truncation_is_refused(void **state)
{
	size_t len;
	char *text = dump_small(&len);

	(void)state;
	for (size_t n = 0; n < len; n++) {
		_cleanup_(freep) char *cut = malloc(n + 1);
		struct tokenizer *t = NULL;
		struct err err = { 0 };

		memcpy(cut, text, n);
		assert_int_equal(tokenizer_parse(cut, n, &t, &err), -EBADMSG);
		assert_true(err.text[0]);
	}
	free(text);
}

static void a_flipped_bit_is_refused_or_harmless(void **state)
{
	size_t len;
	char *text = dump_small(&len);

	(void)state;
	for (size_t bit = 0; bit < len * 8; bit += 5) {
		struct tokenizer *t = NULL;
		struct err err = { 0 };
		struct ids ids = { 0 };
		int r;

		text[bit / 8] ^= 1 << bit % 8;
		r = tokenizer_parse(text, len, &t, &err);
		if (r == 0)
			assert_int_equal(tokenizer_encode(t, SPAN("a <|user|> b"),
							  TOKENIZER_ADDED_ALL, &ids),
					 0);
		else
			assert_true(err.text[0] && (r == -EBADMSG || r == -ENOTSUP));
		ids_deinit(&ids);
		tokenizer_free(t);
		text[bit / 8] ^= 1 << bit % 8;
	}
	free(text);
}

static void deep_nesting_is_refused(void **state)
{
	struct tokenizer *t = NULL;
	struct err err = { 0 };
	char text[256] = "{\"x\":";

	(void)state;
	memset(text + 5, '[', 100);
	assert_int_equal(tokenizer_parse(text, 105, &t, &err), -EBADMSG);
	assert_string_equal(err.text, "byte 69: values are nested too deep");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_not_supported_is_named),
		cmocka_unit_test(another_split_pattern_is_named),
		cmocka_unit_test(a_missing_file_is_named),
		cmocka_unit_test(every_truncation_is_refused),
		cmocka_unit_test(a_flipped_bit_is_refused_or_harmless),
		cmocka_unit_test(deep_nesting_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
