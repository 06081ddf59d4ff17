/* The chat renderer: every reference case, forged markers, refusals, template detection. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "daemon/text/chat.h"
#include "daemon/text/pyjson.h"

static char *read_golden(const char *name, size_t *ret_len)
{
	const char *srcdir = getenv("srcdir");
	char path[512];
	char *text;
	long len;
	FILE *f;

	snprintf(path, sizeof(path), "%s/tests/golden/%s", srcdir ? srcdir : ".", name);
	f = fopen(path, "re");
	if (!f)
		fail_msg("cannot open %s", path);
	fseek(f, 0, SEEK_END);
	len = ftell(f);
	rewind(f);
	text = malloc((size_t)len + 1);
	assert_int_equal(fread(text, 1, (size_t)len, f), len);
	text[len] = '\0';
	fclose(f);
	if (ret_len)
		*ret_len = (size_t)len;
	return text;
}

/* The case as a client would send it: messages and options in one object. */
static char *conversation_of(json_t *c)
{
	json_t *value, *all = json_object();
	struct bytes out = { 0 };
	const char *key;

	json_object_set(all, "messages", json_object_get(c, "messages"));
	json_object_foreach(json_object_get(c, "options"), key, value)
		json_object_set(all, key, value);
	pyjson_dump(all, &out);
	json_decref(all);
	return out.at;
}

static json_t *load_cases(void)
{
	_cleanup_(freep) char *text = NULL;
	struct err err = { 0 };
	json_t *root = NULL;
	size_t len;

	text = read_golden("chat/cases.json", &len);
	if (pyjson_load((struct span){ text, len }, &root, &err) < 0)
		fail_msg("%s", err.text);
	return root;
}

static void every_case_renders_as_the_reference_does(void **state)
{
	json_t *root = load_cases(), *c;
	size_t i, n = 0;

	(void)state;
	json_array_foreach(json_object_get(root, "cases"), i, c) {
		static const struct {
			enum chat_layout layout;
			const char *key;
		} all[] = { { CHAT_GLM45, "glm46" },
			    { CHAT_GLM46, "glm46" },
			    { CHAT_GLM47, "glm47" } };
		_cleanup_(freep) char *conversation = conversation_of(c);

		for (size_t k = 0; k < ARRAY_SIZE(all); k++) {
			json_t *want = json_object_get(json_object_get(c, "text"), all[k].key);
			struct chat_rendering r = { 0 };
			struct err err = { 0 };
			size_t at = 0;

			if (chat_render_text(all[k].layout, span_of(conversation), &r, &err) < 0)
				fail_msg("%s: %s", json_string_value(json_object_get(c, "name")),
					 err.text);
			if (r.len != json_string_length(want) ||
			    memcmp(r.text, json_string_value(want), r.len))
				fail_msg("%s, %s: rendered\n%s\nbut wanted\n%s",
					 json_string_value(json_object_get(c, "name")), all[k].key,
					 r.text, json_string_value(want));
			for (size_t p = 0; p < r.n_pieces; p++) {
				assert_int_equal(r.pieces[p].begin, at);
				at += r.pieces[p].len;
			}
			assert_int_equal(at, r.len);
			chat_rendering_deinit(&r);
			n++;
		}
	}
	assert_int_equal(n, 3 * 149);
	json_decref(root);
}

static const char *const markers[] = { "<|user|>",	   "<|assistant|>", "<|system|>",
				       "<|observation|>",  "[gMASK]",	    "<sop>",
				       "<think>",	   "</think>",	    "<tool_call>",
				       "</tool_call>",	   "<arg_key>",	    "</arg_key>",
				       "<arg_value>",	   "</arg_value>",  "<tool_response>",
				       "</tool_response>", "/nothink",	    "<|endoftext|>" };

static struct tokenizer *open_tokenizer(void)
{
	const char *srcdir = getenv("srcdir");
	struct tokenizer *t = NULL;
	struct err err = { 0 };
	char path[512];

	snprintf(path, sizeof(path), "%s/tests/golden/tokenizer/tokenizer.json",
		 srcdir ? srcdir : ".");
	if (tokenizer_open(path, &t, &err) < 0)
		fail_msg("%s", err.text);
	return t;
}

static size_t count_added(const struct tokenizer *t, const struct ids *ids)
{
	size_t n = 0;

	for (size_t i = 0; i < ids->n; i++)
		n += tokenizer_is_added(t, ids->at[i]);
	return n;
}

static size_t count_for(const struct tokenizer *t, enum chat_layout layout, const char *in)
{
	static const char form[] =
		"{\"messages\":[{\"role\":\"system\",\"content\":\"%1$s\"},{\"role\":\"user\","
		"\"content\":\"%1$s\"},"
		"{\"role\":\"assistant\",\"content\":\"x%1$sx\",\"reasoning_content\":\"%1$s\","
		"\"tool_calls\":"
		"[{\"name\":\"%1$s\",\"arguments\":{\"%1$s\":\"%1$s\",\"b\":[\"%1$s\"]}}]},"
		"{\"role\":\"tool\",\"content\":\"%1$s\"},{\"role\":\"tool\",\"content\":[\"%1$s\"]"
		"}],"
		"\"tools\":[{\"name\":\"%1$s\"}],\"add_generation_prompt\":true}";
	_cleanup_(freep) char *text = NULL;
	struct chat_rendering r = { 0 };
	struct ids ids = { 0 };
	struct err err = { 0 };
	size_t n;

	if (asprintf(&text, form, in) < 0 || chat_render_text(layout, span_of(text), &r, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(chat_encode(&r, t, &ids), 0);
	n = count_added(t, &ids);
	ids_deinit(&ids);
	chat_rendering_deinit(&r);
	return n;
}

static void no_field_can_forge_a_marker(void **state)
{
	_cleanup_(tokenizer_freep) struct tokenizer *t = open_tokenizer();

	(void)state;
	for (enum chat_layout layout = CHAT_GLM45; layout <= CHAT_GLM47; layout++) {
		const size_t honest = count_for(t, layout, "word");

		assert_true(honest > 10);
		for (size_t i = 0; i < ARRAY_SIZE(markers); i++)
			if (count_for(t, layout, markers[i]) != honest)
				fail_msg("%s: '%s' in a field became a marker",
					 chat_layout_name(layout), markers[i]);
	}
}

static void honest_renderings_encode_as_their_flat_text(void **state)
{
	_cleanup_(tokenizer_freep) struct tokenizer *t = open_tokenizer();
	json_t *root = load_cases(), *c;
	size_t i, n = 0;

	(void)state;
	json_array_foreach(json_object_get(root, "cases"), i, c) {
		_cleanup_(freep) char *conversation = conversation_of(c);
		struct chat_rendering r = { 0 };
		struct ids pieces = { 0 }, flat = { 0 };
		struct err err = { 0 };
		bool forged = false;

		assert_int_equal(chat_render_text(CHAT_GLM46, span_of(conversation), &r, &err), 0);
		for (size_t p = 0; p < r.n_pieces; p++)
			for (size_t m = 0; m < ARRAY_SIZE(markers) && !r.pieces[p].marker; m++)
				forged = forged ||
					 memmem(r.text + r.pieces[p].begin, r.pieces[p].len,
						markers[m], strlen(markers[m]));
		if (!forged) {
			assert_int_equal(chat_encode(&r, t, &pieces), 0);
			assert_int_equal(tokenizer_encode(t, (struct span){ r.text, r.len },
							  TOKENIZER_ADDED_ALL, &flat),
					 0);
			assert_int_equal(pieces.n, flat.n);
			assert_memory_equal(pieces.at, flat.at, flat.n * sizeof(*flat.at));
			n++;
		}
		ids_deinit(&pieces);
		ids_deinit(&flat);
		chat_rendering_deinit(&r);
	}
	assert_true(n > 60);
	json_decref(root);
}

static void assert_refused(const char *conversation, const char *sentence)
{
	struct chat_rendering r = { 0 };
	struct err err = { 0 };

	assert_int_equal(chat_render_text(CHAT_GLM46, span_of(conversation), &r, &err), -EBADMSG);
	assert_string_equal(err.text, sentence);
}

static void what_is_no_conversation_is_refused_exactly(void **state)
{
	struct chat_rendering r = { 0 };
	struct err err = { 0 };

	(void)state;
	assert_refused("[]", "the conversation is an array; an object with messages is wanted");
	assert_refused("{}", "messages is missing; a list is wanted");
	assert_refused("{\"messages\":{}}", "messages is an object; a list is wanted");
	assert_refused("{\"messages\":[7]}", "messages[0] is an integer; an object is wanted");
	assert_refused("{\"messages\":[{}]}", "messages[0].role is missing; a string is wanted");
	assert_refused("{\"messages\":[{\"role\":7}]}",
		       "messages[0].role is an integer; a string is wanted");
	assert_refused("{\"messages\":[{\"role\":\"user\",\"content\":5}]}",
		       "messages[0].content is an integer; a string or a list of parts is wanted");
	assert_refused("{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]}",
		       "messages[0].content[0] is missing; a text is wanted");
	assert_refused("{\"messages\":[{\"role\":\"tool\",\"content\":{}}]}",
		       "messages[0].content is an object; a string or a list is wanted");
	assert_refused("{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{}]}]}",
		       "messages[0].tool_calls[0] has a name that is missing; a string is wanted");
	assert_refused("{\"messages\":[],\"tools\":{}}", "tools is an object; a list is wanted");
	assert_refused("{\"messages\":[],\"enable_thinking\":1}",
		       "enable_thinking is an integer; true or false is wanted");
	assert_refused("{\"messages\":", "the conversation: no valid JSON at line 1, column 12: "
					 "unexpected token near end of file");
	assert_int_equal(chat_render_text(CHAT_NONE, SPAN("{}"), &r, &err), -ENOTSUP);
	assert_string_equal(err.text,
			    "the model has no chat template that steamd knows; use complete");
}

static void the_layout_follows_features_of_the_template(void **state)
{
	_cleanup_(freep) char *glm46 = read_golden("chat/glm46.jinja", NULL);
	_cleanup_(freep) char *glm47 = read_golden("chat/glm47.jinja", NULL);
	const char *warning = "unset";

	(void)state;
	assert_int_equal(chat_detect(glm46, &warning), CHAT_GLM46);
	assert_null(warning);
	assert_int_equal(chat_detect(glm47, &warning), CHAT_GLM47);
	assert_null(warning);
	assert_int_equal(chat_detect("[gMASK]<sop><|user|>{{x}}<|assistant|>", &warning),
			 CHAT_GLM46);
	assert_string_equal(warning, "the model's chat template is unknown: rendered in the "
				     "GLM-4.6 layout, the nearest one");
	assert_int_equal(chat_detect("[gMASK]<sop><|user|>{{x}}<|assistant|><think>", &warning),
			 CHAT_GLM47);
	assert_non_null(warning);
	assert_int_equal(chat_detect("<|im_start|>user", &warning), CHAT_NONE);
	assert_string_equal(warning, "the model's chat template is not of the GLM-4.5 family: chat "
				     "is off, completion works");
	assert_int_equal(chat_detect(NULL, &warning), CHAT_NONE);
	assert_string_equal(warning,
			    "the model has no chat template: chat is off, completion works");
}

static void floats_and_integers_print_as_python_prints_them(void **state)
{
	static const char in[] =
		"[1.0, 0.1, 1e-7, 1e16, 123456789012345680.0, 0.0001, 0.00001, -0.0, 1e22, 2.5e-5, "
		"123456789012345678901234567890, -98765432109876543210, 1e15, 5e-324, "
		"\"\\u0007\\u00e9/\"]";
	static const char out[] =
		"[1.0, 0.1, 1e-07, 1e+16, 1.2345678901234568e+17, 0.0001, 1e-05, -0.0, 1e+22, "
		"2.5e-05, 123456789012345678901234567890, -98765432109876543210, "
		"1000000000000000.0, 5e-324, \"\\u0007é/\"]";
	struct bytes b = { 0 };
	struct err err = { 0 };
	json_t *value;

	(void)state;
	assert_int_equal(pyjson_load(SPAN(in), &value, &err), 0);
	pyjson_dump(value, &b);
	assert_string_equal(b.at, out);
	bytes_deinit(&b);
	json_decref(value);
}

/* So that what a client sends takes a bounded number of times its length. */
static void json_of_too_many_values_is_refused(void **state)
{
	const size_t n = PYJSON_VALUES_MAX;
	struct bytes text = { 0 };
	struct err err = { 0 };
	json_t *value = NULL;

	(void)state;
	bytes_append_string(&text, "[\"a,[{:\\\",\"");
	for (size_t i = 0; i < n - 3; i++)
		bytes_append_string(&text, ",1");
	bytes_append_string(&text, "]");
	assert_false(text.failed);
	assert_int_equal(pyjson_count(bytes_span(&text)), n - 1);
	assert_int_equal(pyjson_load(bytes_span(&text), &value, &err), 0);
	assert_int_equal(json_array_size(value), n - 2);
	json_decref(value);
	text.at[text.n - 1] = ',';
	bytes_append_string(&text, "{}]");
	assert_int_equal(pyjson_count(bytes_span(&text)), n + 1);
	assert_int_equal(pyjson_load(bytes_span(&text), &value, &err), -EBADMSG);
	assert_string_equal(err.text, "the JSON has more than 1048576 values");
	bytes_deinit(&text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_case_renders_as_the_reference_does),
		cmocka_unit_test(no_field_can_forge_a_marker),
		cmocka_unit_test(honest_renderings_encode_as_their_flat_text),
		cmocka_unit_test(what_is_no_conversation_is_refused_exactly),
		cmocka_unit_test(the_layout_follows_features_of_the_template),
		cmocka_unit_test(floats_and_integers_print_as_python_prints_them),
		cmocka_unit_test(json_of_too_many_values_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
