/* The store: turns whole or absent, whose is whose, limits, old formats, damage, files. */
#include "tests/unit/store-world.h"

#include <fcntl.h>
#include <jansson.h>

#include "daemon/session/export.h"
#include "daemon/session/store-parts.h"

static json_t *load(struct bytes *b)
{
	json_t *o = json_loadb(b->at, b->n, 0, NULL);

	assert_non_null(o);
	bytes_deinit(b);
	return o;
}

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
		{ "a\xc2\x9b", "a session's name has no white space and no control characters; byte 1 "
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
		cmocka_unit_test(bytes_of_sessions_are_counted_through_all_that_changes_them),
		cmocka_unit_test(bytes_are_counted_once_and_not_for_each_refusal),
		cmocka_unit_test(who_has_its_bytes_is_refused_more_with_the_numbers),
		cmocka_unit_test(sessions_are_limited_per_user_with_the_numbers),
		cmocka_unit_test(more_ids_than_are_taken_stay_behind),
		cmocka_unit_test(defaults_that_no_turn_should_read_stay_behind),
		cmocka_unit_test(names_that_would_confuse_are_refused),
		cmocka_unit_test(a_fork_has_a_life_of_its_own_and_rewind_forgets),
		cmocka_unit_test(gc_spares_what_is_pinned_or_was_used),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
