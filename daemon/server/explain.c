/* Explanations as JSON objects, made when they are asked for or when a turn ends. */
#include "daemon/server/explain.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/server/sessions.h"
#include "daemon/server/stream.h"
#include "daemon/text/diverge.h"

struct explained {
	TAILQ_ENTRY(explained) link;
	uint64_t turn, session; /* session 0: of none */
	uid_t uid;
	char *json;
};

static const char *const causes[KV_MISS_N] = {
	[KV_MISS_WAITING] = "waiting",
	[KV_MISS_NONE] = "none",
	[KV_MISS_NEW] = "new",
	[KV_MISS_TEXT] = "text",
	[KV_MISS_END] = "end",
	[KV_MISS_EVICTED] = "evicted",
	[KV_MISS_DAMAGED] = "damaged",
	[KV_MISS_MODEL] = "model-changed",
	[KV_MISS_LABEL] = "other-namespace",
	[KV_MISS_PAGE] = "no-page",
	[KV_MISS_SCORE] = "scored",
};

/* What happened at the first token that was not found. */
static const char *const sentences[KV_MISS_N] = {
	[KV_MISS_WAITING] = "the turn waits; what is cached of it is looked for when it begins",
	[KV_MISS_NONE] = "all that could be cached was",
	[KV_MISS_NEW] = "nothing like it was cached under this user and label",
	[KV_MISS_TEXT] = "the text is another from there on",
	[KV_MISS_END] = "what was cached ends there; the rest is new",
	[KV_MISS_EVICTED] = "what follows was cached, and given up for other pages",
	[KV_MISS_DAMAGED] = "what follows was cached, and did not match its checksum",
	[KV_MISS_MODEL] = "what follows was cached for another model than the one in service",
	[KV_MISS_LABEL] = "another label of this user has it; labels share nothing",
	[KV_MISS_PAGE] = "what follows is cached, but there was no free page to copy it to",
	[KV_MISS_SCORE] = "a text to be scored is computed from its beginning",
};

static const char *const chat_sentences[DIVERGE_N] = {
	[DIVERGE_SYSTEM] = "the system prompt or the tools are others",
	[DIVERGE_REASONING_STRIPPED] = "the chat template took an earlier answer's reasoning out",
	[DIVERGE_REASONING_ADDED] = "an answer has reasoning now that it had not before",
	[DIVERGE_SPACE] = "the text differs in white space",
	[DIVERGE_TOKENS] = "the same text is in other tokens",
	[DIVERGE_TEXT] = "the text is another from there on",
};

/* A turn's explanation while it is being made. */
struct making {
	struct server *server;
	const struct turn_record *rec;
	const uint32_t *ids;
	const struct tokenizer *tokenizer; /* NULL: the model is not open */
	const char *cause, *sentence;
	struct divergence d; /* the texts on both sides */
};

static bool has_place(const struct turn_record *rec)
{
	const uint32_t cause = rec->miss.cause;

	return cause != KV_MISS_WAITING && cause != KV_MISS_NONE && cause != KV_MISS_SCORE &&
	       rec->miss.at < rec->n_prompt;
}

/* Both sides, and for a chat more exactly why they are not the same. */
static int compare(struct making *m)
{
	const struct kvcache_miss *miss = &m->rec->miss;
	const size_t n = miss->at + miss->n_ids;
	_cleanup_(freep) uint32_t *before = malloc(n * sizeof(*before) + 1);
	int r;

	if (!before)
		return -ENOMEM;
	memcpy(before, m->ids, miss->at * sizeof(*before));
	memcpy(before + miss->at, miss->ids, miss->n_ids * sizeof(*before));
	r = diverge_find(m->tokenizer, before, n, m->ids, m->rec->n_prompt, &m->d);
	if (r < 0 || miss->cause != KV_MISS_TEXT || m->rec->chat_layout == CHAT_NONE ||
	    m->d.cause == DIVERGE_NONE)
		return r;
	m->cause = diverge_cause_name(m->d.cause);
	m->sentence = chat_sentences[m->d.cause];
	return 0;
}

static json_t *token(const struct making *m, uint32_t id)
{
	_cleanup_(freep) char *text = NULL;
	size_t len = 0;

	if (m->tokenizer && tokenizer_decode(m->tokenizer, &id, 1, false, &text, &len) < 0)
		return NULL;
	return json_pack("{s:I, s:o}", "id", (json_int_t)id, "text",
			 json_stringn(text ? text : "", len));
}

static void put(json_t *o, const char *key, json_t *value)
{
	json_object_set_new(o, key, value); /* NULL is an error that json_dumps() survives */
}

static void put_place(const struct making *m, json_t *o)
{
	const struct kvcache_miss *miss = &m->rec->miss;

	if (!has_place(m->rec)) {
		put(o, "diverged_at", json_null());
		put(o, "prompt_token", json_null());
		put(o, "cached_token", json_null());
		return;
	}
	put(o, "diverged_at", json_integer(miss->at));
	put(o, "prompt_token", token(m, m->ids[miss->at]));
	put(o, "cached_token", miss->n_ids > 0 ? token(m, miss->ids[0]) : json_null());
	put(o, "prompt_text", json_stringn(m->d.now ? m->d.now : "", m->d.now_len));
	put(o, "cached_text", json_stringn(m->d.before ? m->d.before : "", m->d.before_len));
}

static void put_sentence(const struct making *m, json_t *o)
{
	const struct turn_record *rec = m->rec;
	char text[256];

	if (rec->miss.cause == KV_MISS_WAITING || rec->miss.cause == KV_MISS_SCORE)
		snprintf(text, sizeof(text), "%s", m->sentence);
	else
		snprintf(text, sizeof(text), "%u of %u tokens were cached: %s", rec->n_cached,
			 rec->n_prompt, m->sentence);
	put(o, "cause", json_string(m->cause));
	put(o, "text", json_string(text));
}

static json_t *counts(const struct turn_record *rec)
{
	const uint32_t n_disk = MIN(rec->n_cached_disk, rec->n_cached);
	json_t *o = json_object();
	char id[24];

	/* beyond 2^53, so that readers of JSON would round it as a number */
	snprintf(id, sizeof(id), "%llu", (unsigned long long)rec->id);
	put(o, "turn", json_string(id));
	if (rec->session) {
		snprintf(id, sizeof(id), "%016llx", (unsigned long long)rec->session);
		put(o, "session", json_string(id));
		put(o, "session_turn", json_integer(rec->session_turn));
	}
	put(o, "prompt_tokens", json_integer(rec->n_prompt));
	put(o, "cached_tokens", json_integer(rec->n_cached));
	put(o, "cached_arena", json_integer(rec->n_cached - n_disk));
	put(o, "cached_disk", json_integer(n_disk));
	put(o, "recomputed_tokens", json_integer(rec->n_recomputed));
	return o;
}

/* NULL: out of memory. */
static char *explain(const struct stream *st)
{
	struct server *s = st->server;
	const uint32_t cause = MIN(st->turn.rec->miss.cause, (uint32_t)KV_MISS_N - 1);
	struct making m = {
		.server = s,
		.rec = st->turn.rec,
		.ids = turn_ids(s->engine->turns, st->turn.rec),
		.tokenizer = s->model ? s->model->tokenizer : NULL,
		.cause = causes[cause],
		.sentence = sentences[cause],
	};
	char *text = NULL;
	json_t *o;

	if (!m.tokenizer || !has_place(m.rec) || compare(&m) == 0) {
		o = counts(m.rec);
		put_place(&m, o);
		put_sentence(&m, o);
		text = json_dumps(o, JSON_COMPACT);
		json_decref(o);
	}
	divergence_deinit(&m.d);
	return text;
}

static void forget(struct server *s, struct explained *e)
{
	TAILQ_REMOVE(&s->explained, e, link);
	s->n_explained--;
	free(e->json);
	free(e);
}

/* Room for one more of this uid: its own oldest goes first. */
static void make_room(struct server *s, uid_t uid)
{
	struct explained *e, *oldest = NULL;
	uint32_t n = 0;

	TAILQ_FOREACH(e, &s->explained, link) {
		if (e->uid != uid)
			continue;
		oldest = oldest ? oldest : e;
		n++;
	}
	if (n >= EXPLAIN_USER_MAX)
		forget(s, oldest);
	else if (s->n_explained >= EXPLAIN_MAX)
		forget(s, TAILQ_FIRST(&s->explained));
}

void explain_remember(const struct stream *st)
{
	struct server *s = st->server;
	struct explained *e = malloc(sizeof(*e));

	if (!e)
		return; /* then it is not known later */
	*e = (struct explained){
		.turn = st->turn.rec->id,
		.session = st->turn.rec->session,
		.uid = st->turn.rec->uid,
		.json = explain(st),
	};
	if (!e->json) {
		free(e);
		return;
	}
	make_room(s, e->uid);
	TAILQ_INSERT_TAIL(&s->explained, e, link);
	s->n_explained++;
}

void explain_forget_all(struct server *s)
{
	struct explained *e;

	while ((e = TAILQ_FIRST(&s->explained)))
		forget(s, e);
}

static int reply(struct request *q, const char *json)
{
	struct msg m = { .type = MSG_DONE };

	MSG_SET(&m.done, json, span_of(json));
	request_done(q, &m);
	return 0;
}

static int reply_stream(struct request *q, const struct stream *st)
{
	_cleanup_(freep) char *json = explain(st);

	return json ? reply(q, json) : -ENOMEM;
}

static int explain_turn(struct request *q, uint64_t turn, struct err *err)
{
	struct server *s = q->server;
	const struct stream *st = s->engine ? stream_find(s, turn) : NULL;
	const struct explained *e;

	if (st && st->turn.rec->uid == q->peer->uid)
		return reply_stream(q, st);
	TAILQ_FOREACH(e, &s->explained, link) {
		if (e->turn == turn && e->uid == q->peer->uid)
			return reply(q, e->json);
	}
	return err_set(err, -ENOENT,
		       "no turn %llu of yours is running or is among the last %d that ended",
		       (unsigned long long)turn, EXPLAIN_USER_MAX);
}

int explain_session(struct request *q, uint64_t session, struct err *err)
{
	struct server *s = q->server;
	const struct explained *e;
	const struct stream *st;

	TAILQ_FOREACH(st, &s->streams, link) {
		if (s->engine && !st->ended && st->turn.rec->session == session &&
		    st->turn.rec->uid == q->peer->uid)
			return reply_stream(q, st);
	}
	TAILQ_FOREACH_REVERSE(e, &s->explained, explaineds, link)
	{
		if (e->session == session && e->uid == q->peer->uid)
			return reply(q, e->json);
	}
	return err_set(err, -ENOENT,
		       "session '%.*s' has no turn that is running or is among the last %d of "
		       "yours that ended",
		       SPAN_ARG(q->msg.cache_explain.session), EXPLAIN_USER_MAX);
}

int explain_handle(struct request *q, struct err *err)
{
	const struct msg_cache_explain *m = &q->msg.cache_explain;

	if (m->has_turn + m->has_session != 1)
		return err_set(err, -EINVAL,
			       "cache_explain wants a turn or a session, one of them");
	return m->has_turn ? explain_turn(q, m->turn, err) : sessions_explain(q, err);
}
