/* The users of day.h: what they ask, what they hear, and what they hold it against. */
#include "tests/unit/day.h"

#include <errno.h>

#include "client/wire/codes.h"
#include "daemon/server/stream.h"

static bool is_session(const struct day_talk *t)
{
	return t->name[0];
}

/* What arrives. */

static void on_accepted(struct day_talk *t, const struct msg_accepted *a)
{
	struct stream *st = stream_find(day.server, a->turn);

	assert_true(!t->accepted || a->turn == t->turn);
	if (t->accepted)
		return;
	assert_int_equal(a->seed, t->seed);
	t->accepted = true;
	t->turn = a->turn;
	t->n_prompt = a->n_prompt;
	t->n_got = 0;
	/* where it was asked again, and had come to its end already, its record is gone */
	assert_true(st || t->again);
	t->prompt_is_known = st != NULL;
	if (!st)
		return;
	assert_int_equal(st->turn.rec->uid, t->uid);
	assert_int_equal(st->turn.rec->n_prompt, t->n_prompt);
	memcpy(t->ids, turn_ids(day.server->engine->turns, st->turn.rec),
	       t->n_prompt * sizeof(*t->ids));
}

/* Whole, in order, once; and what the toy model says after what the broker took for the prompt. */
static void on_told(struct day_talk *t, const struct msg_tokens *m)
{
	const uint32_t n = (uint32_t)(m->ids.len / 4);

	assert_true(t->accepted);
	assert_int_equal(m->index, t->n_got);
	/* what the end held back comes without tokens, and again to who resumes there */
	if (n == 0 && t->has_tail)
		return;
	t->has_tail = n == 0;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t *at = &t->ids[t->n_prompt + t->n_got];

		assert_true(t->n_prompt + t->n_got < DAY_CONTEXT + 1);
		memcpy(at, m->ids.data + 4 * i, 4);
		if (t->prompt_is_known)
			assert_int_equal(*at, day_say(t->seed, t->ids, t->n_prompt + t->n_got));
		t->n_got++;
	}
	if (m->has_reasoning)
		t->running.reasoning = day_append(t->running.reasoning, m->reasoning.data,
						  m->reasoning.len);
	if (m->has_content)
		t->running.content =
			day_append(t->running.content, m->content.data, m->content.len);
}

static void end(struct day_talk *t, bool sure)
{
	t->asked = false;
	t->loose_end = !sure;
	t->unsure = !sure && is_session(t);
	if (!t->unsure)
		day_turn_forget(&t->running);
}

static void on_done(struct day_talk *t, const struct msg_done *d)
{
	assert_true(t->accepted);
	assert_int_equal(d->n_completion, t->n_got);
	assert_int_equal(d->n_prompt, t->n_prompt);
	if (span_is(d->finish, "length")) {
		assert_int_equal(t->n_got, t->max_tokens);
	} else if (span_is(d->finish, "stop")) {
		assert_true(t->n_got > 0 && t->ids[t->n_prompt + t->n_got - 1] == DAY_STOP_ID);
		day.n.stops_at++;
	} else {
		assert_true(span_is(d->finish, "deadline") && t->has_deadline);
		day.n.deadlines++;
	}
	day.n.done++;
	day.n.prompt_tokens += t->n_prompt;
	day.n.cached += d->n_cached;
	day.n.cached_disk += d->n_cached_disk;
	day.n.sampled += t->n_got;
	t->running.n_tokens = t->n_prompt + t->n_got;
	if (is_session(t)) {
		assert_true(d->has_saved && d->saved);
		day_session_keep(t);
	} else if (t->prompt_is_known) {
		t->n_said = t->n_prompt + t->n_got;
		memcpy(t->said, t->ids, t->n_said * sizeof(*t->said));
	}
	end(t, true);
}

/* Only for what was done to it. */
static void on_error(struct day_talk *t, const struct msg_error *e)
{
	if (span_is(e->code, CODE_DEADLINE)) {
		assert_true(t->has_deadline);
		day.n.deadlines++;
	} else if (span_is(e->code, CODE_EXEC_FAULT)) {
		assert_true(day.n.kills > 1);
		day.n.faults++;
	} else if (span_is(e->code, CODE_UNAVAILABLE)) {
		assert_true(day.n.kills > 1 && e->retryable);
		day.n.refused++;
	} else if (span_is(e->code, CODE_NO_SUCH)) {
		assert_true(t->left || day.n.reboots > 0);
		day.n.lost++;
	} else if (span_is(e->code, CODE_MOVED) || span_is(e->code, CODE_BUSY)) {
		/* the first question had come to its end, or what it left behind has not */
		assert_true(is_session(t) && (t->again || t->loose_end));
		day.n.lost++;
	} else if (span_is(e->code, CODE_TOO_LONG)) {
		day.n.too_long++;
		t->n_said = 0;
		if (t->n_turns > 0)
			t->turns[t->n_turns - 1].n_tokens = DAY_CONTEXT;
	} else {
		fail_msg("%.*s: %.*s", SPAN_ARG(e->code), SPAN_ARG(e->text));
	}
	end(t, false);
}

static void on_message(struct day_talk *t, const struct msg *m)
{
	assert_true(t->asked);
	assert_int_equal(m->id, t->id);
	switch (m->type) {
	case MSG_ACCEPTED:
		on_accepted(t, &m->accepted);
		break;
	case MSG_PROGRESS:
		break;
	case MSG_TOKENS:
		on_told(t, &m->tokens);
		break;
	case MSG_DONE:
		on_done(t, &m->done);
		break;
	case MSG_CANCELLED:
		assert_true(t->cancelled || t->left);
		day.n.cancelled++;
		end(t, false);
		break;
	case MSG_ERROR:
		on_error(t, &m->error);
		break;
	default:
		fail_msg("a message of type %d", m->type);
	}
}

static bool hear(struct day_talk *t)
{
	struct msg m;
	bool any = false;
	int r;

	if (t->client.fd < 0)
		return false;
	while ((r = day_receive(&t->client, &m)) == 1) {
		any = true;
		on_message(t, &m);
	}
	assert_true(r == 0 || t->client.limited); /* nobody is thrown out */
	return any;
}

bool day_users_hear(void)
{
	bool any = false;

	for (uint32_t i = 0; i < DAY_TALKS; i++)
		any = hear(&day.talks[i]) || any;
	return any;
}

void day_users_died(void)
{
	for (uint32_t i = 0; i < DAY_TALKS; i++) {
		hear(&day.talks[i]);
		day_disconnect(&day.talks[i].client);
	}
}

/* What is asked. */

static void connect_talk(struct day_talk *t)
{
	if (t->client.fd < 0)
		day_connect(&t->client, t->uid, t->label);
}

static void send_request(struct day_talk *t)
{
	_cleanup_(freep) char *messages = NULL;
	struct msg m = { .type = MSG_GENERATE, .id = t->id };
	const uint32_t i = (uint32_t)(t - day.talks);
	const char *system = t->n_turns > 0 || i % 3 == 2 ? "" : day.system;

	if (is_session(t)) {
		assert_true(asprintf(&messages,
				     "{\"messages\":[%s%s%s{\"role\":\"user\",\"content\":\"%s\"}],"
				     "\"enable_thinking\":%s}",
				     system[0] ? "{\"role\":\"system\",\"content\":\"" : "", system,
				     system[0] ? "\"}," : "", t->running.question,
				     i % 2 ? "true" : "false") > 0);
		MSG_SET(&m.generate, messages, span_of(messages));
		MSG_SET(&m.generate, session, span_of(t->name));
		MSG_SET(&m.generate, session_create, true);
		MSG_SET(&m.generate, session_after, t->n_turns);
	} else {
		MSG_SET(&m.generate, ids, (struct span){ (const char *)t->said, t->n_said * 4ul });
	}
	MSG_SET(&m.generate, seed, t->seed);
	MSG_SET(&m.generate, max_tokens, t->max_tokens);
	if (t->stalls)
		MSG_SET(&m.generate, credit, 1 + day_random(4));
	if (t->has_deadline)
		MSG_SET(&m.generate, deadline_ms, t->deadline_ms);
	if (t->id % 3 == 0)
		MSG_SET(&m.generate, class, SPAN("batch"));
	day_send(&t->client, &m);
}

static struct day_talk *quiet_talk(void)
{
	const uint32_t from = day_random(DAY_TALKS);

	for (uint32_t i = 0; i < DAY_TALKS; i++) {
		if (!day.talks[(from + i) % DAY_TALKS].asked)
			return &day.talks[(from + i) % DAY_TALKS];
	}
	return NULL;
}

/* All begin with what their application always says; some take over what another said. */
static void say_more(struct day_talk *t)
{
	const struct day_talk *other = &day.talks[day_random(DAY_TALKS)];
	const uint32_t n_new = 1 + day_random(60);

	if (day_one_in(15) && !is_session(other) && other->uid == t->uid && !other->asked &&
	    other != t) {
		memcpy(t->said, other->said, sizeof(t->said));
		t->n_said = other->n_said;
	}
	if (t->n_said + n_new + t->max_tokens >= DAY_CONTEXT || day_one_in(40))
		t->n_said = 0;
	for (uint32_t i = 0; t->n_said < 70; i++)
		t->said[t->n_said++] = (i * 13 + t->uid) % COMPUTER_VOCAB;
	for (uint32_t i = 0; i < n_new; i++)
		t->said[t->n_said++] = day_random(COMPUTER_VOCAB);
}

void day_ask(void)
{
	struct day_talk *t = quiet_talk();

	if (!t)
		return;
	connect_talk(t);
	t->max_tokens = day_one_in(10) ? 1 + day_random(100) : 1 + day_random(30);
	if (is_session(t) && !day_session_prepare(t))
		return;
	if (!is_session(t))
		say_more(t);
	else
		t->running.question = strdup(day_question());
	t->asked = true;
	t->accepted = t->cancelled = t->left = t->again = t->has_tail = false;
	t->id = 100 + day.n_asked++;
	/* which tells whose it is in what the executor writes */
	t->seed = (1 + (uint64_t)day_random(1u << 30)) * DAY_USERS + (t->uid - DAY_UID);
	t->n_got = 0;
	t->stalls = day_one_in(12);
	day.n.stalls += t->stalls;
	t->has_deadline = day_one_in(25);
	t->deadline_ms = 100 + day_random(5000);
	send_request(t);
}

/* They come back. */

static void want_rest(struct day_talk *t)
{
	struct msg m = { .type = MSG_RESUME, .id = t->id };

	connect_talk(t);
	t->stalls = false;
	if (!t->accepted) {
		t->again = true;
		day.n.again++;
		send_request(t);
		return;
	}
	MSG_SET(&m.resume, turn, t->turn);
	MSG_SET(&m.resume, index, t->n_got);
	day_send(&t->client, &m);
	day.n.resumed++;
}

void day_users_return(void)
{
	for (uint32_t i = 0; i < DAY_TALKS; i++) {
		if (day.talks[i].asked)
			want_rest(&day.talks[i]);
	}
	day_sessions_check();
}

/* One that waits for an answer, at random; NULL: none. */
static struct day_talk *some_asked(void)
{
	const uint32_t from = day_random(DAY_TALKS);

	for (uint32_t i = 0; i < DAY_TALKS; i++) {
		if (day.talks[(from + i) % DAY_TALKS].asked)
			return &day.talks[(from + i) % DAY_TALKS];
	}
	return NULL;
}

void day_cancel(void)
{
	struct day_talk *t = some_asked();
	struct msg m = { .type = MSG_CANCEL };

	if (!t)
		return;
	m.id = t->id;
	t->cancelled = true;
	day_send(&t->client, &m);
}

/* Its connection breaks; it comes back at once, or not at all. */
void day_leave(void)
{
	struct day_talk *t = some_asked();

	if (!t)
		return;
	hear(t);
	if (!t->asked)
		return;
	day_disconnect(&t->client);
	t->left = true;
	if (day_one_in(2))
		want_rest(t);
	else
		end(t, false);
}

static void read_more(struct day_talk *t, uint32_t n)
{
	struct msg m = { .type = MSG_CREDIT, .id = t->id };

	MSG_SET(&m.credit, n_tokens, n);
	day_send(&t->client, &m);
}

void day_stall_or_read(void)
{
	struct day_talk *t = some_asked();

	if (t && t->stalls)
		read_more(t, 1 + day_random(20));
}

void day_all_read(void)
{
	for (uint32_t i = 0; i < DAY_TALKS; i++) {
		struct day_talk *t = &day.talks[i];

		if (t->asked && t->stalls)
			read_more(t, DAY_CONTEXT);
	}
}

bool day_is_waiting(void)
{
	return some_asked() != NULL;
}

void day_users_open(void)
{
	static const char *const labels[] = { "", "", "editor" };

	for (uint32_t i = 0; i < DAY_TALKS; i++) {
		struct day_talk *t = &day.talks[i];

		t->client.fd = -1;
		t->uid = DAY_UID + i % DAY_USERS;
		t->label = labels[i / DAY_USERS % ARRAY_SIZE(labels)];
		if (i < DAY_SESSIONS)
			snprintf(t->name, sizeof(t->name), "talk-%u", i);
	}
}

void day_users_close(void)
{
	for (uint32_t i = 0; i < DAY_TALKS; i++) {
		struct day_talk *t = &day.talks[i];

		assert_false(t->asked);
		day_disconnect(&t->client);
		day_turn_forget(&t->running);
		while (t->n_turns > 0)
			day_turn_forget(&t->turns[--t->n_turns]);
	}
}
