/* Turns to frames, at the reader's pace. */
#include "daemon/server/stream.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/server/explain.h"
#include "daemon/server/said.h"
#include "daemon/server/sessions.h"
#include "daemon/server/tidy.h"

static struct turns *turns_of(const struct stream *st)
{
	return st->server->engine->turns;
}

/* Tokens there are to read: of the answer, or of the text when scoring. */
static uint32_t available(const struct stream *st)
{
	const struct turn_record *rec = st->turn.rec;

	return rec->score ? rec->n_scored : rec->n_ids - rec->n_prompt;
}

static void drop(struct stream *st)
{
	st->dropped = true;
	server_reap_later(st->server);
}

static int on_expiry(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct stream *st = userdata;

	(void)source, (void)usec;
	st->expiry = sd_event_source_disable_unref(st->expiry);
	if (st->request)
		return 0;
	if (st->ended)
		drop(st);
	else if (!st->turn.rec->detach)
		stream_cancel(st);
	return 0;
}

void stream_expire(struct stream *st, uint64_t us)
{
	st->expiry = sd_event_source_disable_unref(st->expiry);
	if (sd_event_add_time_relative(st->server->loop, &st->expiry, CLOCK_MONOTONIC, us, US_PER_S,
				       on_expiry, st) < 0)
		drop(st);
}

static void set_reader(struct stream *st, struct request *q)
{
	st->request = q;
	if (q)
		q->stream = st;
	if (st->left == !q)
		return;
	st->left = !q;
	st->user->n_left += st->left ? 1 : -1;
}

/* @p: in whose queue its end is, or NULL */
static void set_told(struct stream *st, struct peer *p)
{
	if (st->told)
		st->told->n_told--;
	st->told = p;
	if (p)
		p->n_told++;
}

void stream_arrived(struct peer *p, bool gone)
{
	struct stream *st;

	TAILQ_FOREACH(st, &p->server->streams, link) {
		if (st->told != p)
			continue;
		set_told(st, NULL);
		if (!gone)
			drop(st);
	}
}

/* Takes up to @n tokens from the record through the parser. Returns how many. */
static uint32_t take(struct stream *st, uint32_t n)
{
	struct turn_record *rec = st->turn.rec;
	const uint32_t *ids = turn_ids(turns_of(st), rec) + rec->n_prompt + st->n_read;

	for (uint32_t i = 0; st->answer && i < n; i++) {
		int r;

		if (said_is_stop_id(st, ids[i]))
			continue;
		r = answer_push(st->answer, ids[i]);
		if (r < 0) {
			st->fault = r;
			st->stopped = true;
		} else if (r == 1) {
			st->stopped = true;
			n = i + 1;
		}
	}
	st->n_read += n;
	return n;
}

static bool is_all_read(const struct stream *st)
{
	return st->stopped || (st->ended && st->n_read == available(st));
}

static struct span floats(const float *at, size_t n)
{
	return (struct span){ (const char *)at, n * sizeof(*at) };
}

static void send_tokens(struct stream *st, uint32_t index, uint32_t n)
{
	struct turns *turns = turns_of(st);
	struct turn_record *rec = st->turn.rec;
	struct msg m = { .type = MSG_TOKENS, .id = st->request->id };
	struct answer_delta delta = { 0 };
	const uint32_t base = rec->score ? 0 : rec->n_prompt;

	if (st->answer)
		answer_delta(st->answer, &delta);
	if (n == 0 && !delta.reasoning.len && !delta.content.len && !delta.tool_calls.len)
		return;
	MSG_SET(&m.tokens, index, index);
	MSG_SET(&m.tokens, ids,
		(struct span){ (const char *)(turn_ids(turns, rec) + base + index), n * 4ul });
	if (delta.reasoning.len)
		MSG_SET(&m.tokens, reasoning, delta.reasoning);
	if (delta.content.len)
		MSG_SET(&m.tokens, content, delta.content);
	if (delta.tool_calls.len)
		MSG_SET(&m.tokens, tool_calls, delta.tool_calls);
	if (rec->logprobs && n > 0) {
		MSG_SET(&m.tokens, logprobs, floats(turn_logprobs(turns, rec) + index, n));
		if (rec->n_top > 0) {
			const size_t at = (size_t)index * rec->n_top, all = (size_t)n * rec->n_top;

			MSG_SET(&m.tokens, n_top, rec->n_top);
			MSG_SET(&m.tokens, top_ids,
				(struct span){ (const char *)(turn_top_ids(turns, rec) + at),
					       all * 4 });
			MSG_SET(&m.tokens, top_logprobs,
				floats(turn_top_logprobs(turns, rec) + at, all));
		}
	}
	peer_send(st->request->peer, &m);
}

/* How many tokens may be read now. */
static uint32_t allowance(const struct stream *st)
{
	const struct request *q = st->request;
	uint32_t n = available(st) - st->n_read;

	if (st->stopped)
		return 0;
	if (!q)
		return n;
	if (peer_is_full(q->peer) || q->peer->dead)
		return 0;
	if (q->limited)
		n = MIN(n, q->credit);
	return MIN(n, (uint32_t)STREAM_BATCH_TOKENS);
}

static void send_some(struct stream *st, uint32_t index, uint32_t n)
{
	struct request *q = st->request;

	if (q && q->limited)
		q->credit -= n;
	if (q)
		send_tokens(st, index, n);
	if (st->answer)
		answer_clear(st->answer);
}

/*
 * Reads one batch and, if that was all, what the parser held back: in a frame of
 * its own, by which who resumes behind the last token knows what it has already.
 * Returns whether it did anything.
 */
static bool step(struct stream *st)
{
	const uint32_t index = st->n_read, n = take(st, allowance(st));

	if (n > 0)
		send_some(st, index, n);
	if (!st->answer || !is_all_read(st) || st->flushed)
		return n > 0;
	st->flushed = true;
	if (answer_finish(st->answer) < 0)
		st->fault = -ENOMEM;
	send_some(st, st->n_read, 0);
	return true;
}

static const char *finish_of(const struct stream *st)
{
	if (st->stopped)
		return "stop";
	if (st->turn.rec->finish == FINISH_STOP && st->answer &&
	    answer_n_tool_calls(st->answer) > 0)
		return "tool_calls";
	return turn_finish_name((enum turn_finish)st->turn.rec->finish);
}

static void fill_session(const struct stream *st, struct msg_done *d, char id[17])
{
	const struct turn_record *rec = st->turn.rec;

	if (!rec->session)
		return;
	snprintf(id, 17, "%016llx", (unsigned long long)rec->session);
	MSG_SET(d, session, span_of(id));
	MSG_SET(d, session_turn, rec->session_turn);
	MSG_SET(d, saved, st->saved);
	if (!st->saved && st->not_saved.text[0])
		MSG_SET(d, not_saved, span_of(st->not_saved.text));
}

/* What it cost, however it ended: @m is a done, a cancelled or an error. */
#define FILL_USAGE(m, rec)                                                                         \
	do {                                                                                       \
		MSG_SET(m, n_prompt, (rec)->n_prompt);                                             \
		MSG_SET(m, n_cached, (rec)->n_cached);                                             \
		MSG_SET(m, n_cached_disk, (rec)->n_cached_disk);                                   \
		MSG_SET(m, n_recomputed, (rec)->n_recomputed);                                     \
		if ((rec)->first_token_us < (rec)->accepted_us || (rec)->first_token_us == 0)      \
			break;                                                                     \
		MSG_SET(m, prefill_us, (rec)->first_token_us - (rec)->accepted_us);                \
		if ((rec)->ended_us >= (rec)->first_token_us)                                      \
			MSG_SET(m, decode_us, (rec)->ended_us - (rec)->first_token_us);            \
	} while (0)

static void fill_cancelled(const struct stream *st, struct msg_cancelled *c)
{
	const struct turn_record *rec = st->turn.rec;

	FILL_USAGE(c, rec);
	MSG_SET(c, n_completion, rec->score ? 0 : st->n_read);
}

static void tell_error(struct stream *st, int r, const struct err *err)
{
	const struct turn_record *rec = st->turn.rec;
	struct request *q = st->request;
	struct msg m = { .type = MSG_ERROR };

	FILL_USAGE(&m.error, rec);
	MSG_SET(&m.error, n_completion, rec->score ? 0 : st->n_read);
	set_reader(st, NULL);
	q->stream = NULL;
	request_fail(q, &m, r, err);
}

static void fill_done(struct stream *st, struct msg_done *d)
{
	const struct turn_record *rec = st->turn.rec;

	FILL_USAGE(d, rec);
	if (rec->score)
		return;
	MSG_SET(d, finish, span_of(finish_of(st)));
	MSG_SET(d, n_completion, st->n_read);
	if (st->stopped) {
		const struct span stop = answer_stop_string(st->answer);

		if (stop.len)
			MSG_SET(d, stop_string, stop);
	} else if (rec->finish == FINISH_STOP && rec->stop_id != UINT32_MAX) {
		MSG_SET(d, stop_id, rec->stop_id);
	}
}

/* The terminal frame. The turn stays for a while if it may not have reached its reader. */
static void tell_end(struct stream *st)
{
	struct request *q = st->request;
	struct peer *peer = q->peer;
	const struct turn_record *rec = st->turn.rec;
	struct server *s = st->server;
	struct msg m = { .type = MSG_DONE };
	struct err err = st->err;
	char session[17];
	int r = st->fault;

	s->n_prompt_tokens += rec->n_prompt;
	s->n_completion_tokens += rec->score ? 0 : st->n_read;
	if (r == 0 && !st->stopped && rec->finish == FINISH_FAULT)
		r = err_set(
			&err, -EFAULT,
			rec->n_faults > 1
				? "the executor died twice while it computed this request"
				: "the executor died three times in a row, once while it computed "
				  "this request");
	if (r == 0 && !st->stopped && rec->finish == FINISH_DEADLINE && available(st) == 0)
		r = err_set(&err, -ETIME, "the deadline passed before the first token");

	if (r < 0) {
		tell_error(st, r, &err);
	} else {
		if (st->cancelled || (!st->stopped && rec->finish == FINISH_CANCELLED)) {
			m.type = MSG_CANCELLED;
			fill_cancelled(st, &m.cancelled);
		} else {
			fill_done(st, &m.done);
			fill_session(st, &m.done, session);
		}
		set_reader(st, NULL);
		q->stream = NULL;
		request_done(q, &m);
	}

	peer_flush(peer);
	if (!peer->dead && peer->out.queued_bytes == 0) {
		drop(st);
		return;
	}
	if (!peer->dead)
		set_told(st, peer);
	stream_expire(st, st->server->settings->resume_timeout * US_PER_S);
}

static bool ends_at_once(const struct stream *st)
{
	return st->ended && !st->stopped &&
	       (st->fault < 0 || st->turn.rec->finish == FINISH_CANCELLED);
}

void stream_pump(struct stream *st)
{
	bool blocked;

	if (st->pumping || st->dropped)
		return;
	st->pumping = true; /* the scheduler may call back while it is told to finish */
	while (!ends_at_once(st) && step(st))
		;
	if (st->stopped && !st->ended)
		sched_finish(&st->turn, FINISH_STOP_STRING);
	st->pumping = false;

	if (st->ended && (is_all_read(st) || ends_at_once(st))) {
		if (st->saving)
			return; /* what is said to be saved, is */
		if (st->request)
			tell_end(st);
		else if (!st->expiry && st->turn.rec->detach)
			stream_expire(st, SERVER_KEEP_US);
		else if (!st->expiry)
			drop(st);
		return;
	}
	blocked = !st->ended && st->request &&
		  (peer_is_full(st->request->peer) ||
		   (st->request->limited && st->request->credit == 0));
	if (blocked != st->paused) {
		st->paused = blocked;
		sched_pause(&st->turn, blocked);
	}
}

static struct stream *stream_of(struct turn *turn)
{
	return (struct stream *)((char *)turn - offsetof(struct stream, turn));
}

/* Comes for each turn of a step; what they say is sent when all have been heard, see peer_release(). */
static void on_tokens(struct turn *turn)
{
	peer_hold(stream_of(turn)->server);
	stream_pump(stream_of(turn));
}

static void on_state(struct turn *turn)
{
	stream_progress(stream_of(turn));
}

static void on_end(struct turn *turn)
{
	struct stream *st = stream_of(turn);

	st->ended = true;
	server_busy_changed(st->server);
	said_remember(st);
	tidy_ended(st);
	if (st->turn.rec->session)
		sessions_end(st);
	stream_pump(st);
	explain_remember(st); /* its reader does not wait for that */
}

void stream_saved(struct stream *st, int r, const struct err *err)
{
	st->saving = false;
	st->saved = r >= 0;
	st->turn.rec->session_told = r >= 0 ? TURN_TOLD_AND_SAVED : TURN_TOLD;
	if (r < 0)
		st->not_saved = *err;
	stream_pump(st);
}

void stream_progress(struct stream *st)
{
	const struct turn_record *rec = st->turn.rec;
	const struct executor *e = st->server->engine->executor;
	const struct control_progress *progress;

	if (!st->request || st->ended)
		return;
	if (sched_is_resting(st->server->engine->sched)) {
		request_progress(st->request, "asleep", 0, 0);
	} else if (executor_state(e) != EXECUTOR_READY) {
		progress = executor_state(e) == EXECUTOR_LOADING ? executor_progress(e) : NULL;
		request_progress(st->request,
				 st->server->was_ready && !st->server->waking ? "restarting"
									      : "loading",
				 progress ? progress->percent : 0, 100);
	} else if (available(st) == 0 && st->turn.replaying) {
		request_progress(st->request, "restarting", 0, 0);
	} else if (available(st) == 0 && rec->state == TURN_QUEUED) {
		request_progress(st->request, "queued", 0, 0);
	} else if (available(st) == 0 && rec->state == TURN_RUNNING) {
		request_progress(st->request, "prefill", MIN(st->turn.n_fed, rec->n_prompt),
				 rec->n_prompt);
	}
}

int stream_new(struct server *s, struct turn_record *rec, struct stream **ret)
{
	struct stream *st = calloc(1, sizeof(*st));
	int r;

	if (!st)
		return -ENOMEM;
	st->server = s;
	st->turn.rec = rec;
	st->turn.on_tokens = on_tokens;
	st->turn.on_state = on_state;
	st->turn.on_end = on_end;
	st->user = server_user(s, rec->uid);
	r = st->user ? 0 : -ENOMEM;
	if (r >= 0 && !rec->score)
		r = said_parser(st, &st->answer);
	if (r < 0) {
		if (st->user)
			server_user_drop(st->user);
		free(st);
		return r;
	}
	st->left = true;
	st->user->n_left++;
	TAILQ_INSERT_TAIL(&s->streams, st, link);
	*ret = st;
	return 0;
}

void stream_free(struct stream *st)
{
	struct server *s = st->server;

	assert(!st->request);
	set_told(st, NULL);
	sd_event_source_disable_unref(st->expiry);
	tidy_forget(st);
	TAILQ_REMOVE(&s->streams, st, link);
	if (s->engine && st->submitted)
		sched_release(&st->turn);
	else if (s->engine)
		turns_drop(s->engine->turns, st->turn.rec);
	if (st->left)
		st->user->n_left--;
	server_user_drop(st->user);
	answer_free(st->answer);
	free(st);
	server_busy_changed(s);
}

static void send_accepted(struct stream *st)
{
	const struct turn_record *rec = st->turn.rec;
	struct msg m = { .type = MSG_ACCEPTED, .id = st->request->id };

	MSG_SET(&m.accepted, turn, rec->id);
	MSG_SET(&m.accepted, n_prompt, rec->n_prompt);
	if (!rec->score) {
		MSG_SET(&m.accepted, max_tokens, rec->max_tokens);
		MSG_SET(&m.accepted, seed, rec->sampler.seed);
	}
	peer_send(st->request->peer, &m);
}

int stream_submit(struct stream *st, struct request *q, struct err *err)
{
	int r;

	/* before a later broker can find the turn, and nothing that would wake it up */
	executor_set_halted(st->server->engine->executor, false);
	r = sched_submit(st->server->engine->sched, &st->turn, err);
	if (r < 0) {
		stream_free(st);
		return r;
	}
	st->submitted = true;
	q->begun.session = 0; /* the record's from now on */
	set_reader(st, q);
	server_busy_changed(st->server);
	send_accepted(st);
	stream_progress(st);
	stream_pump(st);
	return 0;
}

/* Parses again what the reader has already, so that the next piece of text fits on. */
static int rewind_to(struct stream *st, uint32_t index, struct err *err)
{
	_cleanup_(answer_freep) struct answer *fresh = NULL;
	struct answer *old = st->answer;
	const uint32_t n_old = st->n_read, n = available(st);
	const bool stopped = st->stopped;
	int r;

	if (index > n)
		return err_set(err, -EINVAL, "turn %llu has %u tokens; it cannot go on at %u",
			       (unsigned long long)st->turn.rec->id, n, index);
	if (old) {
		r = said_parser(st, &fresh);
		if (r < 0)
			return err_set(err, r, "out of memory");
	}
	st->answer = fresh;
	st->n_read = 0;
	st->stopped = false;
	take(st, index);
	if (st->n_read < index) {
		st->answer = old;
		st->n_read = n_old;
		st->stopped = stopped;
		return err_set(err, -EINVAL, "turn %llu ended at its stop string, before token %u",
			       (unsigned long long)st->turn.rec->id, index);
	}
	if (st->answer)
		answer_clear(st->answer);
	fresh = old; /* to be freed */
	st->flushed = false;
	return 0;
}

int stream_attach(struct stream *st, struct request *q, uint32_t index, struct err *err)
{
	struct request *before = st->request;
	int r;

	if (st->dropped)
		return err_set(err, -ENOENT, "no turn %llu to resume",
			       (unsigned long long)st->turn.rec->id);
	r = rewind_to(st, index, err);
	if (r < 0)
		return r;
	if (before) {
		struct err gone = { 0 };

		set_reader(st, NULL);
		before->stream = NULL;
		err_set(&gone, -EPROTO, "the turn was resumed by another request");
		request_error(before, -EPROTO, &gone);
	}
	st->expiry = sd_event_source_disable_unref(st->expiry);
	set_told(st, NULL);
	set_reader(st, q);
	send_accepted(st);
	stream_progress(st);
	stream_pump(st);
	return 0;
}

void stream_leave(struct stream *st)
{
	set_reader(st, NULL);
	if (st->dropped)
		return;
	if (st->turn.rec->detach) {
		if (st->ended)
			stream_expire(st, SERVER_KEEP_US);
		else
			stream_pump(st); /* nobody holds it up any more */
	} else if (st->ended) {
		drop(st);
	} else {
		stream_cancel(st);
	}
}

void stream_cancel(struct stream *st)
{
	st->cancelled = true;
	if (!st->ended)
		sched_finish(&st->turn, FINISH_CANCELLED);
	else if (st->request)
		tell_end(st); /* its reader does not want the rest */
}

void stream_fail(struct stream *st, int r, const struct err *err)
{
	st->fault = r;
	st->err = *err;
	st->stopped = false;
	if (!st->ended)
		sched_finish(&st->turn, FINISH_CANCELLED);
	else
		stream_pump(st);
}

void stream_abandon(struct stream *st, int r, const struct err *err)
{
	st->dropped = true;
	if (st->turn.rec->session && !st->ended)
		sessions_abort(st->server, st->turn.rec->uid, st->turn.rec->session,
			       st->turn.rec->session_turn);
	if (st->request)
		tell_error(st, r, err);
}

struct stream *stream_find(struct server *s, uint64_t turn)
{
	struct stream *st;

	TAILQ_FOREACH(st, &s->streams, link) {
		if (st->turn.rec->id == turn && !st->dropped)
			return st;
	}
	return NULL;
}

static void adopt(struct server *s, struct turn_record *rec)
{
	struct err err = { 0 };
	struct stream *st;
	int r;

	r = stream_new(s, rec, &st);
	if (r < 0) {
		log_warning("turn %llu is lost: %s", (unsigned long long)rec->id, strerror(-r));
		if (rec->session)
			sessions_abort(s, rec->uid, rec->session, rec->session_turn);
		turns_drop(s->engine->turns, rec);
		return;
	}
	st->ended = rec->state == TURN_ENDED;
	if (!st->ended) {
		tidy_adopt(st);
		r = sched_adopt(s->engine->sched, &st->turn, &err);
		if (r < 0) {
			log_warning("turn %llu is lost: %s", (unsigned long long)rec->id, err.text);
			if (rec->session)
				sessions_abort(s, rec->uid, rec->session, rec->session_turn);
			stream_free(st);
			return;
		}
		st->submitted = true;
	}
	if (st->ended)
		said_remember(st);
	if (st->ended && rec->session)
		sessions_end(st);
	if (st->ended || !rec->detach)
		stream_expire(st, s->settings->resume_timeout * US_PER_S);
	stream_pump(st);
}

void stream_adopt_all(struct server *s)
{
	struct turn_record *rec = turns_next(s->engine->turns, NULL), *next;
	uint32_t n = 0;

	for (; rec; rec = next) {
		next = turns_next(s->engine->turns, rec);
		if (rec->state == TURN_OPEN || rec->tidy) {
			turns_drop(s->engine->turns, rec);
			continue;
		}
		adopt(s, rec);
		n++;
	}
	log_info("%u turns taken over; they wait %u s for their clients", n,
		 s->settings->resume_timeout);
}

bool stream_evict(struct server *s)
{
	struct stream *st;

	TAILQ_FOREACH(st, &s->streams, link) {
		if (st->ended && !st->request && !st->pumping) {
			stream_free(st);
			return true;
		}
	}
	return false;
}
