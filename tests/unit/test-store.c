/* The store: turns whole or absent, and whose is whose. */
#include "tests/unit/store-world.h"

#include <fcntl.h>
#include <jansson.h>

#include "daemon/session/store-parts.h"

static json_t *show(struct store *s, const struct store_who *who, const char *name)
{
	struct bytes out = { 0 };
	struct err err = { 0 };

	if (store_show(s, who, span_of(name), &out, &err) < 0)
		fail_msg("%s", err.text);
	return load(&out);
}

static size_t count_sessions(struct store *s, const struct store_who *who)
{
	struct bytes out = { 0 };
	json_t *o;
	size_t n;

	assert_int_equal(store_list(s, who, &out, NULL), 0);
	o = load(&out);
	n = json_array_size(json_object_get(o, "sessions"));
	json_decref(o);
	return n;
}

static const char *string_at(const json_t *o, const char *key)
{
	return json_string_value(json_object_get(o, key));
}

static int integer_at(const json_t *o, const char *key)
{
	return (int)json_integer_value(json_object_get(o, key));
}

static void a_turn_begins_with_all_that_was_said_and_its_ids(void **state)
{
	_cleanup_(store_begun_deinit) struct store_begun b = { 0 };
	_cleanup_(store_freep) struct store *s = NULL;
	struct err err = { 0 };
	struct folder f;

	(void)state;
	folder_open(&f);
	s = open_store(&f);
	say(s, &alice, "talk", "hello", "hi", 10, 4);
	say(s, &alice, "talk", "more", "yes", 20, 6);
	s = store_free(s);
	s = open_store(&f);
	assert_int_equal(begin(s, &alice, "talk", "on", &b, &err), 0);
	assert_int_equal(b.turn, 3);
	assert_string_equal(b.conversation,
			    "{\"messages\": [{\"role\": \"user\", \"content\": \"hello\"}, "
			    "{\"role\": \"assistant\", \"content\": \"hi\"}, "
			    "{\"role\": \"user\", \"content\": \"more\"}, "
			    "{\"role\": \"assistant\", \"content\": \"yes\"}, "
			    "{\"role\": \"user\", \"content\": \"on\"}]}");
	assert_int_equal(b.n_ids, 10);
	assert_int_equal(b.ids[0], 10);
	assert_int_equal(b.ids[3], 13);
	assert_int_equal(b.ids[4], 20);
	assert_int_equal(b.ids[9], 25);
	s = store_free(s);
	folder_close(&f);
}

static void ids_of_another_tokenizer_are_not_given_back(void **state)
{
	_cleanup_(store_begun_deinit) struct store_begun b = { 0 };
	_cleanup_(store_freep) struct store *s = NULL;
	uint32_t *ids = NULL;
	struct err err = { 0 };
	struct folder f;
	size_t n = 9;

	(void)state;
	folder_open(&f);
	s = open_store(&f);
	say(s, &alice, "talk", "hello", "hi", 10, 4);
	assert_int_equal(store_ids(s, &alice, SPAN("talk"), VOCAB + 1, &ids, &n, &err), 0);
	assert_true(n == 0 && !ids);
	assert_int_equal(store_ids(s, &alice, SPAN("talk"), VOCAB, &ids, &n, &err), 0);
	assert_true(n == 4 && ids[0] == 10 && ids[3] == 13);
	free(ids);
	assert_int_equal(store_begin(s, &alice, SPAN("talk"), false, &limits, request_of("x"),
				     VOCAB + 1, &b, &err),
			 0);
	assert_int_equal(b.n_ids, 0);
	assert_null(b.ids);
	/* a turn that runs has none yet: those before it are the last ones */
	assert_int_equal(store_ids(s, &alice, SPAN("talk"), VOCAB, &ids, &n, &err), 0);
	assert_int_equal(n, 4);
	free(ids);
	s = store_free(s);
	folder_close(&f);
}

static void all_sessions_of_all_users_are_told_with_the_ids_of_each(void **state)
{
	static const struct {
		const struct store_who *who;
		const char *name;
		uint32_t first;
	} said[] = { { &alice, "a", 10 }, { &alice_at_work, "b", 20 }, { &bob, "c", 30 } };
	struct store_name *names = NULL;
	struct err err = { 0 };
	struct folder f;
	struct store *s;
	size_t n = 0;

	(void)state;
	folder_open(&f);
	s = open_store(&f);
	assert_int_equal(store_recent(s, &names, &n, &err), 0);
	assert_int_equal(n, 0);
	free(names);
	for (size_t i = 0; i < 3; i++)
		say(s, said[i].who, said[i].name, "hello", "hi", said[i].first, 4);
	assert_int_equal(store_recent(s, &names, &n, &err), 0);
	assert_int_equal(n, 3);
	for (size_t i = 0; i < n; i++) {
		uint32_t *ids = NULL;
		size_t n_ids, n_prompt, k = 0;

		while (said[k].who->uid != names[i].uid ||
		       strcmp(said[k].who->label, names[i].label) != 0)
			k++;
		assert_int_equal(store_ids_of(s, &names[i], VOCAB, &ids, &n_ids, &n_prompt, &err),
				 0);
		assert_int_equal(n_ids, 4);
		assert_true(n_prompt > 0 && n_prompt < 4);
		assert_int_equal(ids[0], said[k].first);
		free(ids);
	}
	free(names);
	s = store_free(s);
	folder_close(&f);
}

static void options_stay_until_they_are_given_anew(void **state)
{
	static const char first[] = "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}], "
				    "\"enable_thinking\": false, \"tools\": [1]}";
	static const char second[] = "{\"messages\": [{\"role\": \"user\", \"content\": \"b\"}], "
				     "\"enable_thinking\": true}";
	_cleanup_(store_begun_deinit) struct store_begun b = { 0 }, c = { 0 };
	_cleanup_(store_freep) struct store *s = NULL;
	struct err err = { 0 };
	struct folder f;

	(void)state;
	folder_open(&f);
	s = open_store(&f);
	assert_int_equal(
		store_begin(s, &alice, SPAN("t"), true, &limits, span_of(first), 0, &b, &err), 0);
	assert_int_equal(commit(s, &b, "x", 1, 2, &err), 0);
	assert_int_equal(
		store_begin(s, &alice, SPAN("t"), true, &limits, span_of(second), 0, &c, &err), 0);
	assert_non_null(strstr(c.conversation, "\"enable_thinking\": true, \"tools\": [1]}"));
	s = store_free(s);
	folder_close(&f);
}

static void one_turn_at_a_time(void **state)
{
	_cleanup_(store_begun_deinit) struct store_begun b = { 0 }, c = { 0 };
	_cleanup_(store_freep) struct store *s = NULL;
	struct bytes out = { 0 };
	struct err err = { 0 };
	struct folder f;

	(void)state;
	folder_open(&f);
	s = open_store(&f);
	say(s, &alice, "talk", "a", "b", 1, 2);
	assert_int_equal(begin(s, &alice, "talk", "c", &b, &err), 0);
	assert_int_equal(begin(s, &alice, "talk", "d", &c, &err), -EBUSY);
	assert_string_equal(err.text,
			    "a turn of session 'talk' is running; it takes one after the other");
	/* the same once more is told by what runs */
	assert_int_equal(begin(s, &alice, "talk", "c", &c, &err), -EALREADY);
	assert_true(c.session == b.session && c.turn == b.turn && !c.conversation);
	assert_int_equal(store_rm(s, &alice, SPAN("talk"), &out, &err), -EBUSY);
	assert_string_equal(err.text, "a turn of session 'talk' is running; cancel it first");
	assert_int_equal(store_rewind(s, &alice, SPAN("talk"), 0, &out, &err), -EBUSY);
	assert_int_equal(commit(s, &b, "e", 3, 2, &err), 0);
	assert_int_equal(begin(s, &alice, "talk", "d", &c, &err), 0);
	bytes_deinit(&out);
	s = store_free(s);
	folder_close(&f);
}

static void what_was_begun_and_given_up_was_never_there(void **state)
{
	_cleanup_(store_begun_deinit) struct store_begun b = { 0 }, c = { 0 };
	_cleanup_(store_freep) struct store *s = NULL;
	struct err err = { 0 };
	struct folder f;
	json_t *o;

	(void)state;
	folder_open(&f);
	s = open_store(&f);
	say(s, &alice, "talk", "a", "b", 1, 2);
	assert_int_equal(begin(s, &alice, "talk", "c", &b, &err), 0);
	assert_int_equal(begin(s, &alice, "fresh", "c", &c, &err), 0);
	assert_int_equal(count_sessions(s, &alice), 2);
	assert_int_equal(store_abort(s, b.session, b.turn, &err), 0);
	assert_int_equal(store_abort(s, c.session, c.turn, &err), 0);
	assert_int_equal(count_sessions(s, &alice), 1);
	o = show(s, &alice, "talk");
	assert_int_equal(json_array_size(json_object_get(o, "turn")), 1);
	json_decref(o);
	assert_int_equal(commit(s, &b, "x", 3, 2, &err), -ENOENT);
	s = store_free(s);
	folder_close(&f);
}

static void a_new_life_keeps_the_turns_that_go_on_and_forgets_the_others(void **state)
{
	_cleanup_(store_begun_deinit) struct store_begun b = { 0 }, c = { 0 }, d = { 0 };
	_cleanup_(store_freep) struct store *s = NULL;
	struct store_counts counts;
	struct err err = { 0 };
	struct folder f;
	json_t *o;

	(void)state;
	folder_open(&f);
	s = open_store(&f);
	say(s, &alice, "lost", "a", "b", 1, 2);
	assert_int_equal(begin(s, &alice, "lost", "c", &b, &err), 0);
	assert_int_equal(begin(s, &alice, "live", "c", &c, &err), 0);
	s = store_free(s);

	s = open_store(&f);
	assert_int_equal(store_settle(s, &(struct store_live){ c.session, c.turn }, 1, &err), 0);
	store_count(s, &counts);
	assert_int_equal(counts.n_unfinished, 1);
	o = show(s, &alice, "lost");
	assert_int_equal(json_array_size(json_object_get(o, "turn")), 1);
	json_decref(o);
	assert_int_equal(begin(s, &alice, "live", "d", &d, &err), -EBUSY);
	assert_int_equal(commit(s, &c, "said", 5, 2, &err), 0);
	/* told twice, as after a crash between the commit and the turn's end */
	assert_int_equal(commit(s, &c, "other", 7, 2, &err), 0);
	o = show(s, &alice, "live");
	assert_string_equal(
		string_at(json_object_get(json_array_get(json_object_get(o, "turn"), 0), "answer"),
			  "content"),
		"said");
	json_decref(o);
	s = store_free(s);
	folder_close(&f);
}

/* Where it failed at the start, it is done again when turns of this life run already. */
static void to_settle_late_forgets_no_turn_of_this_life(void **state)
{
	_cleanup_(store_begun_deinit) struct store_begun b = { 0 }, c = { 0 };
	_cleanup_(store_freep) struct store *s = NULL;
	struct store_counts counts;
	struct err err = { 0 };
	struct folder f;

	(void)state;
	folder_open(&f);
	s = open_store(&f);
	assert_int_equal(begin(s, &alice, "lost", "a", &b, &err), 0);
	s = store_free(s);
	s = open_store(&f);
	assert_int_equal(begin(s, &alice, "live", "a", &c, &err), 0);
	assert_int_equal(store_settle(s, NULL, 0, &err), 0);
	store_count(s, &counts);
	assert_int_equal(counts.n_unfinished, 1);
	assert_int_equal(count_sessions(s, &alice), 1);
	assert_int_equal(commit(s, &c, "said", 5, 2, &err), 0);
	s = store_free(s);
	folder_close(&f);
}

static void nobody_can_tell_anothers_session_from_none(void **state)
{
	_cleanup_(store_begun_deinit) struct store_begun b = { 0 };
	_cleanup_(store_freep) struct store *s = NULL;
	struct bytes out = { 0 };
	struct err err = { 0 }, missing = { 0 };
	struct folder f;
	char id[17];
	json_t *o;

	(void)state;
	folder_open(&f);
	s = open_store(&f);
	say(s, &alice, "mine", "a", "b", 1, 2);
	o = show(s, &alice, "mine");
	snprintf(id, sizeof(id), "%s", string_at(o, "id"));
	json_decref(o);
	o = show(s, &alice, id); /* by its id, too */
	assert_string_equal(string_at(o, "name"), "mine");
	json_decref(o);
	for (int i = 0; i < 2; i++) {
		const struct store_who *who = i ? &alice_at_work : &bob;

		assert_int_equal(count_sessions(s, who), 0);
		assert_int_equal(store_show(s, who, SPAN("none"), &out, &missing), -ENOENT);
		assert_string_equal(missing.text, "no session 'none'");
		assert_int_equal(store_show(s, who, SPAN("mine"), &out, &err), -ENOENT);
		assert_string_equal(err.text, "no session 'mine'");
		assert_int_equal(store_show(s, who, span_of(id), &out, &err), -ENOENT);
		assert_int_equal(store_rm(s, who, span_of(id), &out, &err), -ENOENT);
		assert_int_equal(
			store_fork(s, who, SPAN("mine"), SPAN("x"), 1, &limits, &out, &err),
			-ENOENT);
		assert_int_equal(store_export(s, who, span_of(id), &out, &err), -ENOENT);
		assert_int_equal(store_begin(s, who, span_of(id), false, &limits, request_of("x"),
					     VOCAB, &b, &err),
				 -ENOENT);
	}
	/* the same name is free to everybody */
	say(s, &bob, "mine", "c", "d", 1, 2);
	say(s, &alice_at_work, "mine", "e", "f", 1, 2);
	assert_int_equal(count_sessions(s, &alice), 1);
	bytes_deinit(&out);
	s = store_free(s);
	folder_close(&f);
}

static void names_that_would_confuse_are_refused(void **state)
{
	static const struct {
		const char *name, *why;
	} bad[] = {
		{ "0123456789abcdef",
		  "'0123456789abcdef' looks like a session's id; another name is wanted" },
		{ "-rf", "a session's name does not begin with '-'" },
		{ "a b", "a session's name has no white space and no control characters; byte 1 "
			 "is 0x20" },
		{ "a\n", "a session's name has no white space and no control characters; byte 1 "
			 "is 0x0a" },
		{ "a\xc2\x9b",
		  "a session's name has no white space and no control characters; byte 1 "
		  "is 0xc2" },
	};
	_cleanup_(store_freep) struct store *s = NULL;
	struct store_begun b = { 0 };
	struct bytes out = { 0 };
	struct err err = { 0 };
	char longest[STORE_NAME_MAX + 2];
	struct folder f;

	(void)state;
	folder_open(&f);
	s = open_store(&f);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_int_equal(begin(s, &alice, bad[i].name, "x", &b, &err), -EINVAL);
		assert_string_equal(err.text, bad[i].why);
	}
	memset(longest, 'x', sizeof(longest));
	longest[STORE_NAME_MAX + 1] = '\0';
	assert_int_equal(begin(s, &alice, longest, "x", &b, &err), -EINVAL);
	longest[STORE_NAME_MAX] = '\0';
	say(s, &alice, longest, "x", "y", 1, 2);
	say(s, &alice, "a\xc2\xa9", "x", "y", 1, 2);
	assert_int_equal(store_rename(s, &alice, span_of(longest), SPAN("a b"), &out, &err),
			 -EINVAL);
	say(s, &alice, "other", "x", "y", 1, 2);
	assert_int_equal(store_rename(s, &alice, SPAN("other"), span_of(longest), &out, &err),
			 -EEXIST);
	assert_int_equal(store_rename(s, &alice, SPAN("other"), SPAN("third"), &out, &err), 0);
	assert_int_equal(store_show(s, &alice, SPAN("other"), &out, &err), -ENOENT);
	bytes_deinit(&out);
	s = store_free(s);
	folder_close(&f);
}

static void a_fork_has_a_life_of_its_own_and_rewind_forgets(void **state)
{
	_cleanup_(store_begun_deinit) struct store_begun b = { 0 };
	_cleanup_(store_freep) struct store *s = NULL;
	struct bytes out = { 0 };
	struct err err = { 0 };
	struct folder f;
	json_t *o;

	(void)state;
	folder_open(&f);
	s = open_store(&f);
	say(s, &alice, "a", "1", "one", 10, 4);
	say(s, &alice, "a", "2", "two", 20, 4);
	say(s, &alice, "a", "3", "three", 30, 4);
	assert_int_equal(store_fork(s, &alice, SPAN("a"), SPAN("b"), 2, &limits, &out, &err), 0);
	o = load(&out);
	assert_int_equal(integer_at(o, "turns"), 2);
	assert_int_equal(integer_at(o, "tokens"), 8);
	json_decref(o);
	assert_int_equal(store_fork(s, &alice, SPAN("a"), SPAN("c"), 4, &limits, &out, &err),
			 -EINVAL);
	assert_string_equal(err.text, "session 'a' has 3 turns; it cannot fork at 4");
	assert_int_equal(store_rewind(s, &alice, SPAN("a"), 1, &out, &err), 0);
	bytes_deinit(&out);
	assert_int_equal(begin(s, &alice, "b", "x", &b, &err), 0);
	assert_int_equal(b.n_ids, 8);
	assert_int_equal(b.ids[7], 23);
	store_begun_deinit(&b);
	assert_int_equal(begin(s, &alice, "a", "x", &b, &err), 0);
	assert_int_equal(b.turn, 2);
	assert_int_equal(b.n_ids, 4);
	assert_int_equal(store_rewind(s, &alice, SPAN("b"), 9, &out, &err), -EBUSY);
	s = store_free(s);
	folder_close(&f);
}

static void gc_spares_what_is_pinned_or_was_used(void **state)
{
	_cleanup_(store_freep) struct store *s = NULL;
	struct bytes out = { 0 };
	struct err err = { 0 };
	struct folder f;
	json_t *o;

	(void)state;
	folder_open(&f);
	s = open_store(&f);
	say(s, &alice, "old", "1", "one", 1, 2);
	say(s, &alice, "kept", "1", "one", 1, 2);
	say(s, &bob, "his", "1", "one", 1, 2);
	assert_int_equal(store_pin(s, &alice, SPAN("kept"), true, &out, &err), 0);
	bytes_deinit(&out);
	assert_int_equal(store_gc(s, &alice, 1, &out, &err), 0);
	o = load(&out);
	assert_int_equal(json_array_size(json_object_get(o, "removed")), 0);
	json_decref(o);
	assert_int_equal(store_gc(s, &alice, 0, &out, &err), 0);
	o = load(&out);
	assert_int_equal(json_array_size(json_object_get(o, "removed")), 1);
	json_decref(o);
	assert_int_equal(count_sessions(s, &alice), 1);
	assert_int_equal(count_sessions(s, &bob), 1);
	s = store_free(s);
	folder_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_turn_begins_with_all_that_was_said_and_its_ids),
		cmocka_unit_test(ids_of_another_tokenizer_are_not_given_back),
		cmocka_unit_test(all_sessions_of_all_users_are_told_with_the_ids_of_each),
		cmocka_unit_test(options_stay_until_they_are_given_anew),
		cmocka_unit_test(one_turn_at_a_time),
		cmocka_unit_test(what_was_begun_and_given_up_was_never_there),
		cmocka_unit_test(a_new_life_keeps_the_turns_that_go_on_and_forgets_the_others),
		cmocka_unit_test(to_settle_late_forgets_no_turn_of_this_life),
		cmocka_unit_test(nobody_can_tell_anothers_session_from_none),
		cmocka_unit_test(names_that_would_confuse_are_refused),
		cmocka_unit_test(a_fork_has_a_life_of_its_own_and_rewind_forgets),
		cmocka_unit_test(gc_spares_what_is_pinned_or_was_used),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
