/* From an ended turn to the prompt that the next one will begin with, and its computing. */
#include "daemon/server/tidy.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "daemon/power/power.h"
#include "daemon/server/said.h"
#include "daemon/server/stream.h"
#include "daemon/text/pyjson.h"
#include "daemon/text/spans.h"

/* A conversation on its way. */
struct chat {
	struct tidy *tidy;
	TAILQ_ENTRY(chat) link;
	struct turn turn;
	uid_t uid;
	char label[64];
	size_t held_bytes; /* counted for the user */
	uint32_t n_tries;
	/* for the worker: what was asked, what was answered, and both as they were computed */
	const struct textmodel *model;
	enum chat_layout layout;
	char *conversation, *answer;
	size_t conversation_len;
	uint32_t *computed, n_computed;
	/* from it */
	int result;
	struct ids ids;	 /* what the next prompt begins with */
	uint32_t n_same; /* of those, computed */
};

struct tidy {
	struct server *server;
	TAILQ_HEAD(, chat) waiting;
	uint32_t n_waiting;
	struct chat *running;
	bool stopping;
	sd_event_source *look;
	uint64_t n_done, n_cut_short, n_tokens; /* tokens: computed */
};

/* Memory held for @uid becomes more or less. */
static int hold(struct server *s, uid_t uid, size_t *held, size_t bytes)
{
	struct user *user = server_user(s, uid);

	if (!user)
		return -ENOMEM;
	user->held_bytes += bytes;
	user->held_bytes -= *held;
	*held = bytes;
	server_user_drop(user);
	return 0;
}

static void chat_free(struct chat *c)
{
	/* does not fail: a user that holds bytes is there */
	(void)hold(c->tidy->server, c->uid, &c->held_bytes, 0);
	free(c->conversation);
	free(c->answer);
	free(c->computed);
	ids_deinit(&c->ids);
	free(c);
}

/* What was asked. */

static uint64_t least_us(const struct server *s)
{
	return s->settings->tidy_ms * US_PER_MS;
}

static struct span conversation_of(const struct request *q)
{
	if (q->begun.conversation)
		return (struct span){ q->begun.conversation, q->begun.conversation_len };
	if (q->attached_text)
		return (struct span){ q->attached_text, q->attached_bytes };
	return q->msg.generate.messages;
}

void tidy_keep(struct stream *st, const struct request *q)
{
	const struct span said = conversation_of(q);
	struct turn_record *rec = st->turn.rec;

	if (q->msg.type != MSG_GENERATE || q->layout == CHAT_NONE || least_us(q->server) == 0 ||
	    said.len > TURN_CONVERSATION_BYTES ||
	    q->user->held_bytes + said.len > TIDY_USER_BYTES_MAX ||
	    hold(q->server, q->user->uid, &st->conversation_len, said.len) < 0)
		return;
	memcpy(turn_conversation(q->server->engine->turns, rec), said.data, said.len);
	rec->conversation_len = (uint32_t)said.len;
}

void tidy_adopt(struct stream *st)
{
	/* without memory it is not tidied */
	(void)hold(st->server, st->user->uid, &st->conversation_len,
		   st->turn.rec->conversation_len);
}

void tidy_forget(struct stream *st)
{
	/* at the end its record is gone already */
	(void)hold(st->server, st->user->uid, &st->conversation_len, 0);
}

/* What the next prompt begins with. */

/* The next turn's user says something: all behind its marker is not known. */
static int cut_behind_marker(struct chat_rendering *r)
{
	static const char marker[] = "<|user|>";

	for (size_t i = r->n_pieces; i > 0; i--) {
		const struct chat_piece *p = &r->pieces[i - 1];

		if (p->marker && p->len == strlen(marker) &&
		    memcmp(r->text + p->begin, marker, p->len) == 0) {
			r->n_pieces = i;
			r->len = p->begin + p->len;
			return 0;
		}
	}
	return -ENODATA;
}

/* The conversation with the answer, and a user that goes on. */
static int render_next(const struct chat *c, struct chat_rendering *ret)
{
	json_t *conversation = NULL, *answer = NULL, *messages;
	struct err err = { 0 };
	int r;

	r = pyjson_load((struct span){ c->conversation, c->conversation_len }, &conversation, &err);
	if (r == 0)
		r = pyjson_load(span_of(c->answer), &answer, &err);
	messages = json_object_get(conversation, "messages");
	if (r == 0 && json_object_get(answer, "tool_calls"))
		r = -ENODATA;
	if (r == 0 && (json_array_append(messages, answer) < 0 ||
		       json_array_append_new(messages, json_pack("{s:s, s:s}", "role", "user",
								 "content", "")) < 0))
		r = -ENOMEM;
	if (r == 0) {
		json_object_del(conversation, "add_generation_prompt");
		r = chat_render(c->layout, conversation, ret, &err);
	}
	json_decref(conversation);
	json_decref(answer);
	return r;
}

static int find_next(struct chat *c)
{
	const struct spans_who who = { c->uid, c->label };
	_cleanup_(chat_rendering_deinit) struct chat_rendering rendering = { 0 };
	int r;

	r = render_next(c, &rendering);
	if (r == 0)
		r = cut_behind_marker(&rendering);
	if (r == 0)
		r = spans_encode(c->tidy->server->spans, &who, &rendering, c->model->tokenizer,
				 &c->ids);
	if (r < 0)
		return r;
	while (c->n_same < MIN(c->ids.n, (size_t)c->n_computed) &&
	       c->ids.at[c->n_same] == c->computed[c->n_same])
		c->n_same++;
	return 0;
}

static void run_find(void *userdata)
{
	struct chat *c = userdata;

	c->result = find_next(c);
}

static void drop_input(struct chat *c)
{
	free(c->conversation);
	free(c->answer);
	free(c->computed);
	c->conversation = c->answer = NULL;
	c->computed = NULL;
}

static bool is_worth(const struct chat *c)
{
	const struct server *s = c->tidy->server;

	return c->result == 0 && !s->leaving && s->engine && c->model == s->model &&
	       sched_prompt_us(s->engine->sched, c->n_same, (uint32_t)c->ids.n - c->n_same) >
		       (double)least_us(s);
}

static void enqueue(struct chat *c)
{
	struct tidy *t = c->tidy;

	if (t->n_waiting == TIDY_WAITING_MAX) {
		struct chat *oldest = TAILQ_FIRST(&t->waiting);

		TAILQ_REMOVE(&t->waiting, oldest, link);
		chat_free(oldest);
		t->n_waiting--;
	}
	TAILQ_INSERT_TAIL(&t->waiting, c, link);
	t->n_waiting++;
	tidy_look(t);
}

static void found(void *userdata)
{
	struct chat *c = userdata;

	drop_input(c);
	if (!is_worth(c) ||
	    hold(c->tidy->server, c->uid, &c->held_bytes, c->ids.n * sizeof(*c->ids.at)) < 0)
		chat_free(c);
	else
		enqueue(c);
}

/* Without having looked at its text. */
static bool may_be_worth(const struct stream *st)
{
	const struct turn_record *rec = st->turn.rec;
	const struct server *s = st->server;
	const bool finished = rec->finish == FINISH_STOP || rec->finish == FINISH_STOP_STRING ||
			      rec->finish == FINISH_LENGTH;

	return st->conversation_len > 0 && finished && s->model && !s->leaving && least_us(s) > 0 &&
	       sched_prompt_us(s->engine->sched, 0, rec->n_ids) > (double)least_us(s);
}

static int take(struct stream *st, struct chat *c)
{
	struct turns *turns = st->server->engine->turns;
	struct turn_record *rec = st->turn.rec;
	const char *finish;
	uint32_t n_ids, n_reasoning;
	int r;

	memcpy(c->label, rec->label, sizeof(c->label));
	c->computed = malloc(rec->n_ids * sizeof(*c->computed));
	c->conversation = malloc(st->conversation_len);
	if (!c->computed || !c->conversation)
		return -ENOMEM;
	c->n_computed = rec->n_ids;
	memcpy(c->computed, turn_ids(turns, rec), rec->n_ids * sizeof(*c->computed));
	memcpy(c->conversation, turn_conversation(turns, rec), st->conversation_len);
	r = said_whole(st, &c->answer, &finish, &n_ids, &n_reasoning);
	if (r == 0 && strcmp(finish, "tool_calls") == 0)
		r = -ENODATA; /* spares the worker those of agents, which come one after the other */
	if (r < 0)
		return r;
	c->held_bytes = c->conversation_len = st->conversation_len;
	st->conversation_len = 0; /* counted for the chat from now on */
	return hold(st->server, c->uid, &c->held_bytes,
		    c->conversation_len + rec->n_ids * sizeof(*c->computed));
}

void tidy_ended(struct stream *st)
{
	struct server *s = st->server;
	struct chat *c = NULL;

	if (may_be_worth(st))
		c = calloc(1, sizeof(*c));
	if (c) {
		c->tidy = s->tidy;
		c->uid = st->turn.rec->uid;
		c->model = s->model;
		c->layout = (enum chat_layout)st->turn.rec->chat_layout;
		c->result = -ECANCELED; /* unless it is run */
		if (take(st, c) < 0 || worker_push_for(s->worker, c->uid, run_find, found, c) < 0)
			chat_free(c);
	}
	st->turn.rec->conversation_len = 0;
	tidy_forget(st);
}

/* Its computing. */

static struct chat *chat_of(struct turn *turn)
{
	return (struct chat *)((char *)turn - offsetof(struct chat, turn));
}

static void on_end(struct turn *turn)
{
	struct chat *c = chat_of(turn);
	struct tidy *t = c->tidy;
	const struct turn_record *rec = turn->rec;
	const bool cut_short = rec->finish == FINISH_CANCELLED;

	t->running = NULL;
	t->n_done += rec->finish == FINISH_LENGTH;
	t->n_cut_short += cut_short;
	t->n_tokens += rec->n_kv > rec->n_cached ? rec->n_kv - rec->n_cached : 0;
	sched_release(turn);
	if (cut_short && !t->stopping && ++c->n_tries < TIDY_TRIES_MAX)
		enqueue(c);
	else
		chat_free(c);
	server_busy_changed(t->server);
}

static void fill(const struct chat *c, struct turns *turns, struct turn_record *rec)
{
	rec->tidy = 1;
	rec->uid = c->uid;
	memcpy(rec->label, c->label, sizeof(rec->label));
	rec->accepted_us = clock_us();
	rec->slot = TURN_NO_SLOT;
	rec->stop_id = UINT32_MAX;
	rec->n_prompt = rec->n_ids = (uint32_t)c->ids.n;
	rec->sampler.n_prompt = rec->n_prompt;
	rec->sampler.vocab_real = c->model->vocab_real;
	rec->sampler.repetition = 1;
	rec->sampler.top_p = 1;
	memcpy(turn_ids(turns, rec), c->ids.at, c->ids.n * sizeof(*c->ids.at));
}

/* 0, -EBUSY: not now; or why it will not be. */
static int begin(struct chat *c)
{
	struct engine *e = c->tidy->server->engine;
	struct turn_record *rec;
	struct err err = { 0 };
	int r;

	if (c->ids.n > turns_max_context(e->turns))
		return -E2BIG;
	rec = turns_take(e->turns);
	if (!rec)
		return -EAGAIN;
	fill(c, e->turns, rec);
	c->turn = (struct turn){ .rec = rec, .on_end = on_end };
	r = sched_submit(e->sched, &c->turn, &err);
	if (r < 0)
		turns_drop(e->turns, rec);
	return r;
}

static void forget_waiting(struct tidy *t)
{
	struct chat *c;

	while ((c = TAILQ_FIRST(&t->waiting))) {
		TAILQ_REMOVE(&t->waiting, c, link);
		chat_free(c);
	}
	t->n_waiting = 0;
}

/* Requests are on their way to the scheduler. */
static bool others_come(const struct server *s)
{
	return !TAILQ_EMPTY(&s->waiting) || server_has_jobs(s);
}

/* Nobody asked for it: it wakes nothing, and takes no memory that was given up for another. */
static bool is_wanted(const struct server *s)
{
	struct power_view view;

	power_look_at(s->power, &view);
	return server_state(s) == SERVER_READY && view.n_leases == 0 && least_us(s) > 0;
}

static int on_look(sd_event_source *source, void *userdata)
{
	struct tidy *t = userdata;
	struct chat *c = TAILQ_FIRST(&t->waiting);
	int r;

	(void)source;
	if (!c || t->running || others_come(t->server))
		return 0;
	if (!is_wanted(t->server)) {
		forget_waiting(t);
		return 0;
	}
	r = begin(c);
	if (r == -EBUSY)
		return 0; /* whoever ends has us look again */
	TAILQ_REMOVE(&t->waiting, c, link);
	t->n_waiting--;
	if (r < 0) {
		chat_free(c);
		tidy_look(t);
		return 0;
	}
	t->running = c;
	server_busy_changed(t->server);
	return 0;
}

void tidy_look(struct tidy *t)
{
	if (t && !TAILQ_EMPTY(&t->waiting))
		sd_event_source_set_enabled(t->look, SD_EVENT_ONESHOT);
}

void tidy_stop(struct tidy *t)
{
	t->stopping = true;
	if (t->running)
		sched_finish(&t->running->turn, FINISH_CANCELLED);
	t->stopping = false;
	forget_waiting(t);
}

int tidy_new(struct server *s, struct tidy **ret)
{
	_cleanup_(tidy_freep) struct tidy *t = calloc(1, sizeof(*t));
	int r;

	if (!t)
		return -ENOMEM;
	t->server = s;
	TAILQ_INIT(&t->waiting);
	r = sd_event_add_defer(s->loop, &t->look, on_look, t);
	if (r >= 0)
		r = sd_event_source_set_enabled(t->look, SD_EVENT_OFF);
	if (r >= 0)
		r = sd_event_source_set_priority(t->look, SD_EVENT_PRIORITY_IDLE);
	if (r < 0)
		return r;
	*ret = steal(t);
	return 0;
}

struct tidy *tidy_free(struct tidy *t)
{
	if (!t)
		return NULL;
	tidy_stop(t);
	sd_event_source_disable_unref(t->look);
	free(t);
	return NULL;
}

json_t *tidy_describe(const struct tidy *t)
{
	return json_pack("{s:b, s:i, s:I, s:I, s:I}", "running", t->running != NULL, "waiting",
			 (int)t->n_waiting, "done", (json_int_t)t->n_done, "cut_short",
			 (json_int_t)t->n_cut_short, "tokens", (json_int_t)t->n_tokens);
}
