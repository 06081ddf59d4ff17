/* The answer parser: sections by token id, tool calls, stop strings, whole characters, any cut. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/text/answer.h"
#include "daemon/text/bytes.h"

static struct tokenizer *tokenizer;

static int open_tokenizer(void **state)
{
	const char *srcdir = getenv("srcdir");
	struct err err = { 0 };
	char path[512];

	(void)state;
	snprintf(path, sizeof(path), "%s/tests/golden/tokenizer/tokenizer.json",
		 srcdir ? srcdir : ".");
	return tokenizer_open(path, &tokenizer, &err);
}

static int close_tokenizer(void **state)
{
	(void)state;
	tokenizer = tokenizer_free(tokenizer);
	return 0;
}

struct result {
	struct bytes reasoning, content, calls;
	int r;
	char stop[64];
};

static void result_free(struct result *res)
{
	bytes_deinit(&res->reasoning);
	bytes_deinit(&res->content);
	bytes_deinit(&res->calls);
}

static void take_delta(struct answer *a, struct result *res)
{
	struct answer_delta d;

	answer_delta(a, &d);
	bytes_append_span(&res->reasoning, d.reasoning);
	bytes_append_span(&res->content, d.content);
	bytes_append_span(&res->calls, d.tool_calls);
	answer_clear(a);
}

/* Pushes the ids of @text (markers recognised); the delta is taken after every @step ids. */
static struct result run(const struct answer_options *options, const char *text, size_t step)
{
	_cleanup_(answer_freep) struct answer *a = NULL;
	struct result res = { 0 };
	struct ids ids = { 0 };
	struct span stop;

	assert_int_equal(tokenizer_encode(tokenizer, span_of(text), TOKENIZER_ADDED_ALL, &ids), 0);
	assert_int_equal(answer_new(options, &a), 0);
	for (size_t i = 0; i < ids.n && res.r == 0; i++) {
		res.r = answer_push(a, ids.at[i]);
		assert_true(res.r >= 0);
		if ((i + 1) % step == 0)
			take_delta(a, &res);
	}
	assert_int_equal(answer_finish(a), 0);
	take_delta(a, &res);
	stop = answer_stop_string(a);
	snprintf(res.stop, sizeof(res.stop), "%.*s", SPAN_ARG(stop));
	ids_deinit(&ids);
	return res;
}

static void assert_answer(const struct answer_options *options, const char *text,
			  const char *reasoning, const char *content, const char *calls)
{
	for (size_t step = 1; step < 5; step++) {
		struct result res = run(options, text, step);

		assert_string_equal(res.reasoning.n ? res.reasoning.at : "", reasoning);
		assert_string_equal(res.content.n ? res.content.at : "", content);
		assert_string_equal(res.calls.n ? res.calls.at : "", calls);
		result_free(&res);
	}
}

static struct answer_options chat(void)
{
	return (struct answer_options){
		.tokenizer = tokenizer, .layout = CHAT_GLM46, .thinking = true, .trim = true
	};
}

static void reasoning_and_content_come_apart(void **state)
{
	struct answer_options o = chat();

	(void)state;
	assert_answer(&o, "\n<think>\nfirst\n\nthen\n</think>\n\nThe answer.\n", "first\n\nthen",
		      "The answer.", "");
	assert_answer(&o, "\n<think></think>\nHello", "", "Hello", "");
	assert_answer(&o, "No thoughts.", "", "No thoughts.", "");
	assert_answer(&o, "\n\n", "", "", "");
	assert_answer(&o, "", "", "", "");
}

static void an_answer_cut_off_in_its_reasoning_is_reasoning(void **state)
{
	struct answer_options o = chat();

	(void)state;
	assert_answer(&o, "\n<think>so far", "so far", "", "");
}

static void a_prompt_that_opened_reasoning_starts_in_it(void **state)
{
	struct answer_options o = chat();

	(void)state;
	o.layout = CHAT_GLM47;
	o.in_reasoning = true;
	assert_answer(&o, "why</think>because", "why", "because", "");
}

static void without_thinking_everything_is_content(void **state)
{
	struct answer_options o = chat();

	(void)state;
	o.thinking = false;
	assert_answer(&o, "\nHello.", "", "Hello.", "");
}

static void raw_text_keeps_everything(void **state)
{
	struct answer_options o = { .tokenizer = tokenizer, .layout = CHAT_NONE, .trim = true };

	(void)state;
	assert_answer(&o, "\n<think>a</think><|user|>\n", "", "\n<think>a</think><|user|>\n", "");
}

static void tool_calls_are_read_with_their_types(void **state)
{
	struct answer_options o = chat();
	static const char args[] = "get\0zip\0other\0n";

	(void)state;
	assert_answer(
		&o,
		"Let me "
		"look.\n<tool_call>get\n<arg_key>zip</arg_key>\n<arg_value>12345</arg_value>\n"
		"<arg_key>n</arg_key>\n<arg_value>3</arg_value>\n<arg_key>o</arg_key>\n"
		"<arg_value>{\"a\": [1, true, "
		"null]}</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>",
		"", "Let me look.",
		"[{\"name\": \"get\", \"arguments\": {\"zip\": 12345, \"n\": 3, \"o\": {\"a\": [1, "
		"true, null]}}}]"
		"[{\"name\": \"now\", \"arguments\": {}}]");
	o.string_args = (struct span){ args, sizeof(args) };
	assert_answer(
		&o,
		"<tool_call>get\n<arg_key>zip</arg_key>\n<arg_value>12345</arg_value>\n<arg_key>n</"
		"arg_key>\n"
		"<arg_value>Zürich</arg_value></tool_call>after",
		"", "after",
		"[{\"name\": \"get\", \"arguments\": {\"zip\": \"12345\", \"n\": \"Zürich\"}}]");
}

static void the_glm47_form_of_a_call_is_read_too(void **state)
{
	struct answer_options o = chat();

	(void)state;
	o.layout = CHAT_GLM47;
	assert_answer(
		&o, "x</think><tool_call>f<arg_key>k</arg_key><arg_value>v</arg_value></tool_call>",
		"", "x", "[{\"name\": \"f\", \"arguments\": {\"k\": \"v\"}}]");
}

static void a_truncated_call_is_told_as_such(void **state)
{
	struct answer_options o = chat();

	(void)state;
	assert_answer(&o, "<tool_call>f\n<arg_key>k</arg_key>\n<arg_value>par", "", "",
		      "[{\"name\": \"f\", \"arguments\": {\"k\": \"par\"}, \"truncated\": true}]");
	assert_answer(&o, "<tool_call>f\n<arg_key>k", "", "",
		      "[{\"name\": \"f\", \"arguments\": {}, \"truncated\": true}]");
	assert_answer(&o, "<tool_call>", "", "", "");
}

static void text_that_spells_a_marker_is_text(void **state)
{
	_cleanup_(answer_freep) struct answer *a = NULL;
	struct answer_options o = chat();
	struct result res = { 0 };
	struct ids ids = { 0 };

	(void)state;
	assert_int_equal(tokenizer_encode(tokenizer, SPAN("a</think><tool_call>b</tool_call>"),
					  TOKENIZER_ADDED_NONE, &ids),
			 0);
	assert_int_equal(answer_new(&o, &a), 0);
	for (size_t i = 0; i < ids.n; i++)
		assert_int_equal(answer_push(a, ids.at[i]), 0);
	assert_int_equal(answer_finish(a), 0);
	take_delta(a, &res);
	assert_string_equal(res.content.at, "a</think><tool_call>b</tool_call>");
	assert_int_equal(res.calls.n, 0);
	result_free(&res);
	ids_deinit(&ids);
}

static void stop_strings_cut_where_they_begin(void **state)
{
	struct answer_options o = { .tokenizer = tokenizer, .layout = CHAT_NONE, .n_stops = 2 };

	(void)state;
	o.stops[0] = SPAN("lazy dog");
	o.stops[1] = SPAN("\n\n");
	for (size_t step = 1; step < 5; step++) {
		struct result res = run(&o, "The quick brown fox jumps over the lazy dog. And on.",
					step);

		assert_int_equal(res.r, 1);
		assert_string_equal(res.content.at, "The quick brown fox jumps over the ");
		assert_string_equal(res.stop, "lazy dog");
		result_free(&res);
		res = run(&o, "one\n\ntwo", step);
		assert_string_equal(res.content.at, "one");
		assert_string_equal(res.stop, "\n\n");
		result_free(&res);
		res = run(&o, "the lazy do", step);
		assert_int_equal(res.r, 0);
		assert_string_equal(res.content.at, "the lazy do");
		assert_string_equal(res.stop, "");
		result_free(&res);
	}
}

static void no_piece_ends_inside_a_character(void **state)
{
	static const char text[] = "naïve 你好 🎉🎉 ünïcödé";
	_cleanup_(answer_freep) struct answer *a = NULL;
	struct answer_options o = { .tokenizer = tokenizer, .layout = CHAT_NONE };
	struct result res = { 0 };
	struct ids ids = { 0 };

	(void)state;
	assert_int_equal(tokenizer_encode(tokenizer, SPAN(text), TOKENIZER_ADDED_NONE, &ids), 0);
	assert_int_equal(answer_new(&o, &a), 0);
	for (size_t i = 0; i < ids.n; i++) {
		assert_int_equal(answer_push(a, ids.at[i]), 0);
		take_delta(a, &res);
		/* the next byte of the text begins a character */
		assert_true((text[res.content.n] & 0xc0) != 0x80);
	}
	assert_int_equal(answer_finish(a), 0);
	take_delta(a, &res);
	assert_string_equal(res.content.at, text);
	result_free(&res);
	ids_deinit(&ids);
}

static void options_outside_the_contract_are_refused(void **state)
{
	struct answer_options o = { .tokenizer = tokenizer, .n_stops = 1 };
	struct answer *a = NULL;

	(void)state;
	assert_int_equal(answer_new(&o, &a), -EINVAL);
	o.n_stops = ANSWER_STOPS_MAX + 1;
	assert_int_equal(answer_new(&o, &a), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reasoning_and_content_come_apart),
		cmocka_unit_test(an_answer_cut_off_in_its_reasoning_is_reasoning),
		cmocka_unit_test(a_prompt_that_opened_reasoning_starts_in_it),
		cmocka_unit_test(without_thinking_everything_is_content),
		cmocka_unit_test(raw_text_keeps_everything),
		cmocka_unit_test(tool_calls_are_read_with_their_types),
		cmocka_unit_test(the_glm47_form_of_a_call_is_read_too),
		cmocka_unit_test(a_truncated_call_is_told_as_such),
		cmocka_unit_test(text_that_spells_a_marker_is_text),
		cmocka_unit_test(stop_strings_cut_where_they_begin),
		cmocka_unit_test(no_piece_ends_inside_a_character),
		cmocka_unit_test(options_outside_the_contract_are_refused),
	};

	return cmocka_run_group_tests(tests, open_tokenizer, close_tokenizer);
}
