/* What the store must have of the sessions of day.h, and what users do with them between turns. */
#include "tests/unit/day.h"

#include <errno.h>
#include <jansson.h>

#include "client/wire/codes.h"

char *day_append(char *to, const char *text, size_t len)
{
	const size_t n = to ? strlen(to) : 0;
	char *longer = realloc(to, n + len + 1);

	assert_non_null(longer);
	for (size_t i = 0; i < len; i++)
		longer[n + i] = text[i] ? text[i] : '?'; /* C strings serve */
	longer[n + len] = '\0';
	return longer;
}

const char *day_question(void)
{
	static char text[512];
	size_t n = 0;

	n += (size_t)snprintf(text, sizeof(text), "question %u:", day.n_asked);
	for (uint32_t i = 1 + day_random(20); i > 0; i--)
		n += (size_t)snprintf(text + n, sizeof(text) - n, " word%u", day_random(100));
	return text;
}

void day_turn_forget(struct day_turn *turn)
{
	free(turn->question);
	free(turn->reasoning);
	free(turn->content);
	memset(turn, 0, sizeof(*turn));
}

static void add_turn(struct day_talk *t, struct day_turn turn)
{
	assert_true(t->n_turns < DAY_TURNS_MAX);
	t->turns[t->n_turns++] = turn;
}

void day_session_keep(struct day_talk *t)
{
	add_turn(t, t->running);
	memset(&t->running, 0, sizeof(t->running));
}

static struct msg call(struct day_talk *t, struct msg *m)
{
	struct msg got;

	if (t->client.fd < 0)
		day_connect(&t->client, t->uid, t->label);
	day_call(&t->client, m, &got);
	return got;
}

/* NULL: there is no such session. */
static json_t *show(struct day_talk *t)
{
	struct day_client c;
	struct msg m = { .type = MSG_SESSION_SHOW }, got;
	json_t *o = NULL;

	/* what waits on the talk's own connection is not disturbed */
	day_connect(&c, t->uid, t->label);
	MSG_SET(&m.session_show, session, span_of(t->name));
	day_call(&c, &m, &got);
	if (got.type == MSG_ERROR) {
		assert_true(span_is(got.error.code, CODE_NO_SUCH));
	} else {
		o = json_loadb(got.done.json.data, got.done.json.len, JSON_ALLOW_NUL, NULL);
		assert_non_null(o);
	}
	day_disconnect(&c);
	return o;
}

static char *text_of(const json_t *turn, const char *key)
{
	const json_t *text = json_object_get(json_object_get(turn, "answer"), key);

	return day_append(NULL, json_string_value(text), json_string_length(text));
}

static const char *question_of(const json_t *turn)
{
	const json_t *messages = json_object_get(json_object_get(turn, "request"), "messages");

	return json_string_value(json_object_get(
		json_array_get(messages, json_array_size(messages) - 1), "content"));
}

static void assert_same(const char *found, const char *wanted)
{
	assert_string_equal(found, wanted ? wanted : "");
}

static void assert_begins(const char *found, const char *wanted)
{
	if (wanted && strncmp(found, wanted, strlen(wanted)) != 0)
		fail_msg("'%s' does not begin with '%s'", found, wanted);
}

static void check_turn(const json_t *turn, const struct day_turn *wanted)
{
	_cleanup_(freep) char *reasoning = text_of(turn, "reasoning_content");
	_cleanup_(freep) char *content = text_of(turn, "content");

	assert_null(json_object_get(turn, "running"));
	assert_null(json_object_get(turn, "damaged"));
	assert_same(question_of(turn), wanted->question);
	assert_same(reasoning, wanted->reasoning);
	assert_same(content, wanted->content);
	day.n.checked++;
}

/* A turn whose end nobody was told of: it is there whole, or not at all. */
static void take_in(struct day_talk *t, const json_t *turn)
{
	char *reasoning = text_of(turn, "reasoning_content"), *content = text_of(turn, "content");

	assert_true(t->unsure);
	assert_same(question_of(turn), t->running.question);
	assert_begins(reasoning, t->running.reasoning);
	assert_begins(content, t->running.content);
	add_turn(t,
		 (struct day_turn){
			 .question = strdup(question_of(turn)),
			 .reasoning = reasoning,
			 .content = content,
			 .n_tokens = (uint32_t)json_integer_value(json_object_get(turn, "n_ids")),
		 });
	day.n.appeared++;
}

/* Whether there is nothing more than what is known: no turn that runs. */
static bool check_session(struct day_talk *t)
{
	json_t *o = show(t);
	const json_t *turns = json_object_get(o, "turn"), *more;
	bool still = true;

	assert_true(json_array_size(turns) >= t->n_turns);
	assert_true(json_array_size(turns) <= t->n_turns + 1);
	for (uint32_t i = 0; i < t->n_turns; i++)
		check_turn(json_array_get(turns, i), &t->turns[i]);
	more = json_array_get(turns, t->n_turns);
	if (json_object_get(more, "running")) {
		assert_true(t->asked || t->loose_end);
		still = false;
	} else if (!t->asked) {
		if (more)
			take_in(t, more);
		if (t->unsure)
			day_turn_forget(&t->running);
		t->unsure = false;
	} /* else it ended, and that is on its way */
	json_decref(o);
	return still;
}

void day_sessions_check(void)
{
	for (uint32_t i = 0; i < DAY_SESSIONS; i++)
		check_session(&day.talks[i]);
}

static void cut(struct day_talk *t, uint32_t n)
{
	while (t->n_turns > n)
		day_turn_forget(&t->turns[--t->n_turns]);
}

static void rewind_session(struct day_talk *t, uint32_t n)
{
	struct msg m = { .type = MSG_SESSION_REWIND }, got;

	MSG_SET(&m.session_rewind, session, span_of(t->name));
	MSG_SET(&m.session_rewind, turn, n);
	got = call(t, &m);
	assert_int_equal(got.type, MSG_DONE);
	cut(t, n);
	day.n.rewinds++;
}

static void remove_session(struct day_talk *t)
{
	struct msg m = { .type = MSG_SESSION_RM }, got;

	MSG_SET(&m.session_rm, session, span_of(t->name));
	got = call(t, &m);
	if (got.type == MSG_ERROR)
		assert_true(span_is(got.error.code, CODE_NO_SUCH) && t->n_turns == 0);
	cut(t, 0);
	day.n.removed++;
}

/* It becomes a copy of another one of the same user and label, up to some turn. */
static void fork_session(struct day_talk *t)
{
	struct day_talk *from = &day.talks[day_random(DAY_SESSIONS)];
	struct msg m = { .type = MSG_SESSION_FORK }, got;
	uint32_t n;

	if (from == t || from->uid != t->uid || strcmp(from->label, t->label) != 0 || from->asked ||
	    from->n_turns == 0 || !check_session(from))
		return;
	remove_session(t);
	n = 1 + day_random(from->n_turns);
	MSG_SET(&m.session_fork, session, span_of(from->name));
	MSG_SET(&m.session_fork, name, span_of(t->name));
	MSG_SET(&m.session_fork, turn, n);
	got = call(t, &m);
	assert_int_equal(got.type, MSG_DONE);
	for (uint32_t i = 0; i < n; i++) {
		const struct day_turn *turn = &from->turns[i];

		add_turn(t, (struct day_turn){ strdup(turn->question),
					       strdup(turn->reasoning ? turn->reasoning : ""),
					       strdup(turn->content ? turn->content : ""),
					       turn->n_tokens });
	}
	day.n.forks++;
}

bool day_session_prepare(struct day_talk *t)
{
	const uint32_t n_tokens = t->n_turns > 0 ? t->turns[t->n_turns - 1].n_tokens : 0;

	if ((t->unsure || t->loose_end || day_one_in(10)) && !check_session(t))
		return false;
	t->loose_end = false;
	if (day_one_in(30))
		remove_session(t);
	else if (day_one_in(10))
		fork_session(t);
	else if (n_tokens > DAY_CONTEXT - 220)
		rewind_session(t, day_random(2) * t->n_turns / 2);
	else if (t->n_turns > 0 && day_one_in(15))
		rewind_session(t, day_random(t->n_turns));
	return true;
}

/* Questions that no answer changes. A user is told of nobody else. */
void day_query(struct day_talk *t)
{
	static const enum msg_type types[] = { MSG_STATUS, MSG_PS, MSG_LIMITS, MSG_SESSION_LIST };
	struct msg m = { .type = types[day_random(ARRAY_SIZE(types))] }, got;
	json_t *o;

	if (t->asked)
		return;
	got = call(t, &m);
	assert_int_equal(got.type, MSG_DONE);
	o = json_loadb(got.done.json.data, got.done.json.len, JSON_ALLOW_NUL, NULL);
	assert_non_null(o);
	if (m.type == MSG_LIMITS) {
		const json_t *users = json_object_get(o, "users");

		assert_int_equal(json_array_size(users), 1);
		assert_int_equal(
			json_integer_value(json_object_get(json_array_get(users, 0), "uid")),
			t->uid);
	}
	json_decref(o);
	day.n.queries++;
}
