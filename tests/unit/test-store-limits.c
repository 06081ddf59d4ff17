/* What a user may have, and what of a file is too much. */
#include "tests/unit/store-world.h"

#include <fcntl.h>
#include <jansson.h>

#include "daemon/session/store-parts.h"
#include "daemon/text/pyjson.h"

/* As the triggers have it; it must be what a fresh count finds. */
static uint64_t bytes_of(struct store *s, uid_t uid)
{
	_cleanup_(freep) struct store_usage *usage = NULL;
	struct err err = { 0 };
	size_t n = 0;

	assert_int_equal(store_usage(s, &usage, &n, &err), 0);
	for (size_t i = 0; i < n; i++) {
		if (usage[i].uid == uid)
			return usage[i].n_bytes;
	}
	return 0;
}

static void check_bytes(const struct folder *f, struct store **s, uint64_t wanted)
{
	assert_int_equal(bytes_of(*s, alice.uid), wanted);
	*s = store_free(*s);
	*s = open_store(f);
	assert_int_equal(bytes_of(*s, alice.uid), wanted);
}

static void bytes_of_sessions_are_counted_through_all_that_changes_them(void **state)
{
	const struct store_limits none = { .max_sessions = 100 };
	_cleanup_(store_begun_deinit) struct store_begun b = { 0 };
	_cleanup_(store_freep) struct store *s = NULL;
	struct bytes out = { 0 }, file = { 0 };
	struct err err = { 0 };
	uint64_t one, two, forked;
	struct folder f;

	(void)state;
	folder_open(&f);
	s = open_store(&f);
	say(s, &bob, "his", "what another says is not counted", "yes", 5, 2);
	check_bytes(&f, &s, 0);
	say(s, &alice, "a", "first", "one", 3, 2);
	one = bytes_of(s, alice.uid);
	assert_true(one > 2 * 256 + 5 * 4 && one < 1000);
	check_bytes(&f, &s, one);

	assert_int_equal(begin(s, &alice, "a", "second", &b, &err), 0);
	assert_true(bytes_of(s, alice.uid) > one + 256);
	assert_int_equal(store_abort(s, b.session, b.turn, &err), 0);
	check_bytes(&f, &s, one);

	say(s, &alice_at_work, "b", "h\xc3\xa4lf", "\xc3\xbc", 3, 2); /* of all labels, in bytes */
	two = bytes_of(s, alice.uid) - one;
	check_bytes(&f, &s, one + two);
	assert_int_equal(store_fork(s, &alice, SPAN("a"), SPAN("c"), 1, &none, &out, &err), 0);
	forked = bytes_of(s, alice.uid);
	check_bytes(&f, &s, forked);
	assert_int_equal(forked, 2 * one + two);
	bytes_clear(&out);
	assert_int_equal(store_rewind(s, &alice, SPAN("c"), 0, &out, &err), 0);
	check_bytes(&f, &s, one + two + 256 + strlen("{}"));
	bytes_clear(&out);
	assert_int_equal(store_rm(s, &alice, SPAN("c"), &out, &err), 0);
	check_bytes(&f, &s, one + two);
	assert_int_equal(store_export(s, &alice, SPAN("a"), &file, &err), 0);
	bytes_clear(&out);
	assert_int_equal(store_import(s, &alice, bytes_span(&file), SPAN("d"), VOCAB, 1u << 20,
				      &none, &out, &err),
			 0);
	check_bytes(&f, &s, 2 * one + two);
	bytes_deinit(&out);
	bytes_deinit(&file);
	s = store_free(s);
	folder_close(&f);
}

/* Whoever is refused again and again has all that it has read once. */
static void bytes_are_counted_once_and_not_for_each_refusal(void **state)
{
	const struct store_limits few = { .max_sessions = 100, .max_bytes = 300 };
	_cleanup_(store_begun_deinit) struct store_begun b = { 0 };
	_cleanup_(store_freep) struct store *s = NULL;
	struct bytes out = { 0 }, file = { 0 };
	struct err err = { 0 };
	struct folder f;

	(void)state;
	folder_open(&f);
	s = open_store(&f);
	say(s, &alice, "a", "first", "one", 3, 2);
	assert_int_equal(store_export(s, &alice, SPAN("a"), &file, &err), 0);
	for (int i = 0; i < 4; i++) {
		int64_t n = 0;
		int r;

		s = store_free(s);
		s = open_store(&f);
		if (i == 0)
			r = store_begin(s, &alice, SPAN("a"), false, &few, request_of("x"), VOCAB,
					&b, &err);
		else if (i == 1)
			r = store_new(s, &alice, SPAN("y"), SPAN("{}"), &few, &out, &err);
		else if (i == 2)
			r = store_fork(s, &alice, SPAN("a"), SPAN("y"), 1, &few, &out, &err);
		else
			r = store_import(s, &alice, bytes_span(&file), SPAN("y"), VOCAB, 1u << 20,
					 &few, &out, &err);
		assert_int_equal(r, -EDQUOT);
		assert_int_equal(store_ask(s, "SELECT count(*) FROM bytes_of", &n, &err), 0);
		assert_int_equal(n, 1);
	}
	bytes_deinit(&out);
	bytes_deinit(&file);
	s = store_free(s);
	folder_close(&f);
}

static void who_has_its_bytes_is_refused_more_with_the_numbers(void **state)
{
	struct store_limits few = { .max_sessions = 100 };
	_cleanup_(store_begun_deinit) struct store_begun b = { 0 };
	_cleanup_(store_freep) struct store *s = NULL;
	struct bytes out = { 0 }, file = { 0 };
	char text[128], long_answer[400];
	struct err err = { 0 };
	struct folder f;
	uint64_t had;

	(void)state;
	folder_open(&f);
	s = open_store(&f);
	say(s, &alice, "a", "first", "one", 3, 2);
	assert_int_equal(store_export(s, &alice, SPAN("a"), &file, &err), 0);
	had = bytes_of(s, alice.uid);
	few.max_bytes = had + 256;
	assert_int_equal(
		store_begin(s, &alice, SPAN("a"), false, &few, request_of("x"), VOCAB, &b, &err),
		-EDQUOT);
	snprintf(text, sizeof(text), "uid 1000 would have %zu bytes of sessions; %llu may be",
		 (size_t)had + 256 + request_of("x").len, (unsigned long long)few.max_bytes);
	assert_string_equal(err.text, text);
	assert_int_equal(
		store_begin(s, &alice, SPAN("new"), true, &few, request_of("x"), VOCAB, &b, &err),
		-EDQUOT);
	assert_int_equal(store_new(s, &alice, SPAN("y"), SPAN("{}"), &few, &out, &err), -EDQUOT);
	assert_int_equal(store_fork(s, &alice, SPAN("a"), SPAN("y"), 1, &few, &out, &err), -EDQUOT);
	assert_int_equal(store_import(s, &alice, bytes_span(&file), SPAN("y"), VOCAB, 1u << 20,
				      &few, &out, &err),
			 -EDQUOT);
	check_bytes(&f, &s, had);
	assert_int_equal(bytes_span(&out).len, 0);
	say(s, &bob, "his", "a", "b", 1, 2);

	/* what was begun is stored, and only then no more */
	few.max_bytes = had + 256 + request_of("x").len;
	assert_int_equal(
		store_begin(s, &alice, SPAN("a"), false, &few, request_of("x"), VOCAB, &b, &err),
		0);
	memset(long_answer, 'y', sizeof(long_answer) - 1);
	long_answer[sizeof(long_answer) - 1] = '\0';
	assert_int_equal(commit(s, &b, long_answer, 5, 2, &err), 0);
	assert_true(bytes_of(s, alice.uid) > few.max_bytes + 300);
	assert_int_equal(store_new(s, &alice, SPAN("y"), SPAN("{}"), &few, &out, &err), -EDQUOT);
	assert_int_equal(store_rewind(s, &alice, SPAN("a"), 1, &out, &err), 0);
	check_bytes(&f, &s, had);
	bytes_deinit(&out);
	bytes_deinit(&file);
	s = store_free(s);
	folder_close(&f);
}

static void sessions_are_limited_per_user_with_the_numbers(void **state)
{
	_cleanup_(store_begun_deinit) struct store_begun b = { 0 };
	_cleanup_(store_freep) struct store *s = NULL;
	struct bytes out = { 0 };
	struct err err = { 0 };
	struct folder f;
	char name[16];

	(void)state;
	folder_open(&f);
	s = open_store(&f);
	for (int i = 0; i < SESSIONS_MAX; i++) {
		snprintf(name, sizeof(name), "n%d", i);
		say(s, i % 2 ? &alice : &alice_at_work, name, "a", "b", 1, 2);
	}
	assert_int_equal(begin(s, &alice, "one-more", "x", &b, &err), -EDQUOT);
	assert_string_equal(err.text, "uid 1000 has 5 sessions; 5 may be");
	assert_int_equal(store_new(s, &alice, SPAN("y"), SPAN("{}"), &limits, &out, &err), -EDQUOT);
	assert_int_equal(store_fork(s, &alice, SPAN("n1"), SPAN("y"), 1, &limits, &out, &err),
			 -EDQUOT);
	say(s, &bob, "his", "a", "b", 1, 2);
	say(s, &alice, "n1", "goes on", "yes", 5, 2);
	bytes_deinit(&out);
	s = store_free(s);
	folder_close(&f);
}

/* The first thing that an import of alice's "talk" says it left; "": nothing. */
static const char *left_behind(struct store *s, char ret[128])
{
	const struct store_limits none = { .max_sessions = 100 };
	struct bytes file = { 0 }, out = { 0 };
	struct err err = { 0 };
	const json_t *first;
	json_t *o;

	assert_int_equal(store_export(s, &alice, SPAN("talk"), &file, &err), 0);
	assert_int_equal(store_import(s, &bob, bytes_span(&file), SPAN("talk"), VOCAB, 100, &none,
				      &out, &err),
			 0);
	o = load(&out);
	first = json_array_get(json_object_get(o, "not_taken"), 0);
	ret[0] = '\0';
	if (first)
		snprintf(ret, 128, "%s: %s", json_string_value(json_object_get(first, "what")),
			 json_string_value(json_object_get(first, "why")));
	json_decref(o);
	bytes_deinit(&file);
	return ret;
}

static void more_ids_than_are_taken_stay_behind(void **state)
{
	const uint32_t n = STORE_FILE_IDS_MAX / 2;
	_cleanup_(freep) uint32_t *ids = calloc(n + 1, sizeof(*ids));
	struct err err = { 0 };
	char text[128];
	struct store *s;
	struct folder f;

	(void)state;
	assert_non_null(ids);
	for (uint32_t over = 0; over < 2; over++) {
		folder_open(&f);
		s = open_store(&f);
		for (uint32_t i = 0; i < 2; i++) {
			_cleanup_(store_begun_deinit) struct store_begun b = { 0 };
			struct store_end end = { .answer = SPAN("{\"role\": \"assistant\"}"),
						 .finish = SPAN("stop"),
						 .ids = ids,
						 .n_prompt = n,
						 .n_ids = n + over * i,
						 .vocab = VOCAB };

			assert_int_equal(begin(s, &alice, "talk", "x", &b, &err), 0);
			end.session = b.session;
			end.turn = b.turn;
			ids[0] = i; /* nothing is shared with the turn before */
			assert_int_equal(store_commit(s, &end, &err), 0);
		}
		assert_string_equal(left_behind(s, text),
				    over ? "ids from turn 2 on: there are more ids than are taken; "
					   "the text was taken"
					 : "");
		s = store_free(s);
		folder_close(&f);
	}
}

static void defaults_that_no_turn_should_read_stay_behind(void **state)
{
	char object[STORE_DEFAULTS_MAX + 2], text[128];
	struct bytes out = { 0 };
	struct err err = { 0 };
	struct store *s;
	struct folder f;

	(void)state;
	for (size_t over = 0; over < 2; over++) {
		const size_t len = STORE_DEFAULTS_MAX + over;

		memset(object, 'x', len);
		memcpy(object, "{\"x\": \"", 7);
		memcpy(object + len - 2, "\"}", 2);
		folder_open(&f);
		s = open_store(&f);
		bytes_clear(&out);
		assert_int_equal(store_new(s, &alice, SPAN("talk"), (struct span){ object, len },
					   &limits, &out, &err),
				 0);
		assert_string_equal(left_behind(s, text),
				    over ? "the defaults: they are longer than sampler settings "
					   "can be"
					 : "");
		s = store_free(s);
		folder_close(&f);
	}
	bytes_deinit(&out);
}

/* Each turn can be read, and all of them would be one conversation. */
static void turns_of_too_many_json_values_stay_behind(void **state)
{
	_cleanup_(bytes_deinit) struct bytes request = { 0 }, file = { 0 };
	struct err err = { 0 };
	struct store *s;
	struct folder f;
	json_t *o;

	(void)state;
	bytes_append_string(&request, "{\"messages\": [{\"role\": \"user\"}], \"tools\": [0");
	for (size_t i = 0; i < PYJSON_VALUES_MAX * 2 / 3; i++)
		bytes_append_string(&request, ",0");
	bytes_append_string(&request, "]}");
	folder_open(&f);
	s = open_store(&f);
	for (uint32_t turn = 1; turn <= 2; turn++) {
		_cleanup_(store_begun_deinit) struct store_begun b = { 0 };
		struct store_end end = {
			.answer = SPAN("{}"), .finish = SPAN("stop"), .turn = turn, .vocab = VOCAB
		};

		assert_int_equal(store_begin(s, &alice, SPAN("talk"), true, &limits,
					     bytes_span(&request), VOCAB, &b, &err),
				 0);
		end.session = b.session;
		assert_int_equal(store_commit(s, &end, &err), 0);
	}
	export(s, &file);
	assert_int_equal(import(s, bytes_span(&file), "", VOCAB, 100, &o, &err), 0);
	assert_int_equal(json_integer_value(json_object_get(o, "turns")), 1);
	assert_int_equal(not_taken(o, "turn 2 and what follows",
				   "a conversation of so many JSON values could not go on"),
			 1);
	json_decref(o);
	store_free(s);
	folder_close(&f);
}

/* @n bytes of text in it. */
static void long_object(struct bytes *ret, const char *begin, size_t n, const char *end)
{
	bytes_append_string(ret, begin);
	for (size_t i = 0; i < n; i += 16)
		bytes_append_string(ret, "0123456789abcde ");
	bytes_append_string(ret, end);
}

/* What was answered is stored whatever its length; then the session goes on nowhere. */
static void sessions_of_too_many_bytes_cannot_go_on(void **state)
{
	static const size_t answers[] = { STORE_TEXT_BYTES_MAX / 2 + 1,
					  2 * STORE_TEXT_BYTES_MAX + 1 };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(answers); i++) {
		_cleanup_(bytes_deinit) struct bytes request = { 0 }, answer = { 0 }, file = { 0 };
		_cleanup_(store_begun_deinit) struct store_begun b = { 0 };
		struct store_end end = { .finish = SPAN("stop"), .turn = 1, .vocab = VOCAB };
		struct err err = { 0 };
		struct folder f;
		struct store *s;
		json_t *o;

		long_object(&request, "{\"messages\": [{\"role\": \"user\", \"content\": \"",
			    STORE_TEXT_BYTES_MAX / 2, "\"}]}");
		long_object(&answer, "{\"role\": \"assistant\", \"content\": \"", answers[i],
			    "\"}");
		folder_open(&f);
		s = open_store(&f);
		assert_int_equal(store_begin(s, &alice, SPAN("talk"), true, &limits,
					     bytes_span(&request), VOCAB, &b, &err),
				 0);
		end.session = b.session;
		end.answer = bytes_span(&answer);
		assert_int_equal(store_commit(s, &end, &err), 0);
		assert_int_equal(begin(s, &alice, "talk", "x", &b, &err), -E2BIG);
		assert_non_null(strstr(err.text, "with more than 8388608 it cannot go on"));
		export(s, &file);
		assert_int_equal(import(s, bytes_span(&file), "", VOCAB, 100, &o, &err), 0);
		assert_int_equal(json_integer_value(json_object_get(o, "turns")), 0);
		assert_int_equal(not_taken(o, "turn 1 and what follows",
					   "a conversation of so many bytes could not go on"),
				 1);
		json_decref(o);
		store_free(s);
		folder_close(&f);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(bytes_of_sessions_are_counted_through_all_that_changes_them),
		cmocka_unit_test(bytes_are_counted_once_and_not_for_each_refusal),
		cmocka_unit_test(who_has_its_bytes_is_refused_more_with_the_numbers),
		cmocka_unit_test(sessions_are_limited_per_user_with_the_numbers),
		cmocka_unit_test(more_ids_than_are_taken_stay_behind),
		cmocka_unit_test(defaults_that_no_turn_should_read_stay_behind),
		cmocka_unit_test(turns_of_too_many_json_values_stay_behind),
		cmocka_unit_test(sessions_of_too_many_bytes_cannot_go_on),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
