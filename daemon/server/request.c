/* Requests: counted, held, worked on, and ended with exactly one frame. */
#include "daemon/server/looking.h"
#include "daemon/server/request.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "daemon/server/sleep.h"
#include "daemon/server/sessions.h"
#include "daemon/server/stream.h"
#include "daemon/server/transfer.h"

static bool wants_turn(const struct request *q)
{
	return q->msg.type == MSG_GENERATE || q->msg.type == MSG_SCORE;
}

uint64_t request_user_bytes(const struct server *s, const struct user *user)
{
	uint64_t bytes = user->held_bytes;
	const struct peer *p;

	TAILQ_FOREACH(p, &s->peers, link)
		bytes += p->user == user ? p->out.queued_bytes : 0;
	return bytes;
}

/* Of one request that has @own bytes already; one that is alone may be larger. */
static int check_held(const struct server *s, const struct user *user, uint64_t own, uint64_t bytes,
		      struct err *err)
{
	uint64_t is;

	if (bytes == 0)
		return 0;
	is = request_user_bytes(s, user);
	if (is == own || is + bytes <= SERVER_USER_HELD_BYTES_MAX)
		return 0;
	return err_set(err, -EAGAIN,
		       "uid %u has %llu bytes of requests waiting and of answers not read, and "
		       "this one wants %llu more; %u may be",
		       user->uid, (unsigned long long)is, (unsigned long long)bytes,
		       SERVER_USER_HELD_BYTES_MAX);
}

static int check_limits(struct peer *p, size_t held, struct err *err)
{
	const struct settings *s = p->server->settings;

	if (p->n_requests >= s->max_requests)
		return err_set(err, -EAGAIN, "%u requests are open on this connection; %u may be",
			       p->n_requests, s->max_requests);
	if (p->user->n_requests + p->user->n_left >= s->max_user_requests)
		return err_set(err, -EAGAIN, "uid %u has %u requests open; %u may be", p->uid,
			       p->user->n_requests + p->user->n_left, s->max_user_requests);
	return check_held(p->server, p->user, 0, held, err);
}

int request_hold(struct request *q, uint64_t bytes, struct err *err)
{
	const int r = check_held(q->server, q->user, q->held_bytes, bytes, err);

	if (r < 0)
		return r;
	q->held_bytes += bytes;
	q->user->held_bytes += bytes;
	return 0;
}

/* The copy decodes as the original did; only its spans point elsewhere. */
static int hold_bytes(struct request *q, struct span payload, struct err *err)
{
	q->bytes = malloc(payload.len);
	if (!q->bytes)
		return err_set(err, -ENOMEM, "out of memory");
	memcpy(q->bytes, payload.data, payload.len);
	q->held_bytes = payload.len;
	q->user->held_bytes += payload.len;
	return msg_decode(q->bytes, payload.len, true, &q->msg, err);
}

static void set_credit(struct request *q)
{
	switch (q->msg.type) {
	case MSG_GENERATE:
		q->limited = q->msg.generate.has_credit;
		q->credit = q->msg.generate.credit;
		break;
	case MSG_SCORE:
		q->limited = q->msg.score.has_credit;
		q->credit = q->msg.score.credit;
		break;
	case MSG_RESUME:
		q->limited = q->msg.resume.has_credit;
		q->credit = q->msg.resume.credit;
		break;
	default:
		break;
	}
}

int request_new(struct peer *p, const struct msg *m, struct span payload, bool hold,
		struct request **ret, struct err *err)
{
	struct request *q;
	int r;

	r = check_limits(p, hold ? payload.len : 0, err);
	if (r < 0)
		return r;
	q = calloc(1, sizeof(*q));
	if (!q)
		return err_set(err, -ENOMEM, "out of memory");
	q->server = p->server;
	q->peer = p;
	q->user = p->user;
	memcpy(q->label, p->label, sizeof(q->label));
	q->id = m->id;
	q->msg = *m;
	q->attached_fd = -1;
	q->received_us = clock_us();
	q->user->n_requests++;
	p->n_requests++;
	TAILQ_INSERT_TAIL(&p->requests, q, link);
	if (hold) {
		r = hold_bytes(q, payload, err);
		if (r < 0) {
			request_free(q);
			return r;
		}
	}
	set_credit(q);
	*ret = q;
	return 0;
}

/* What only the work needed: gone as soon as there is a turn. */
static void drop_input(struct request *q)
{
	q->user->held_bytes -= q->held_bytes;
	q->held_bytes = 0;
	free(q->bytes);
	q->bytes = NULL;
	ids_deinit(&q->ids);
	free(q->text);
	q->text = NULL;
	free(q->string_args);
	q->string_args = NULL;
	q->string_args_len = 0;
	store_begun_deinit(&q->begun);
	free(q->attached_text);
	q->attached_text = NULL;
	closep(&q->attached_fd);
	q->attached_fd = -1;
}

static void leave_peer(struct request *q)
{
	if (!q->peer)
		return;
	TAILQ_REMOVE(&q->peer->requests, q, link);
	q->peer->n_requests--;
	q->peer = NULL;
}

void request_free(struct request *q)
{
	struct server *s = q->server;
	struct stream *st = q->stream;

	if (q->is_waiting)
		TAILQ_REMOVE(&s->waiting, q, wait);
	q->is_waiting = false;
	looking_forget(q);
	sleep_forget(q);
	transfer_forget(q);
	leave_peer(q);
	if (st) {
		q->stream = NULL;
		st->request = NULL;
		stream_leave(st);
	}
	if (q->in_worker)
		return; /* the job's end comes back here */
	if (q->begun.session)
		sessions_abort(s, q->user->uid, q->begun.session, q->begun.turn);
	drop_input(q);
	q->user->n_requests--;
	server_user_drop(q->user);
	free(q);
	server_busy_changed(s);
}

void request_done(struct request *q, struct msg *m)
{
	m->id = q->id;
	if (q->peer)
		peer_send(q->peer, m);
	q->server->n_served++;
	request_free(q);
}

void request_fail(struct request *q, struct msg *m, int r, const struct err *err)
{
	uint32_t retry_after_ms = 0;

	m->id = q->id;
	if (r == -EHOSTDOWN)
		retry_after_ms = (uint32_t)MIN(server_retry_us(q->server) / US_PER_MS,
					       (uint64_t)UINT32_MAX);
	if (q->peer)
		peer_send_error(q->peer, m, r, err, retry_after_ms);
	q->server->n_served++;
	request_free(q);
}

void request_error(struct request *q, int r, const struct err *err)
{
	request_fail(q, &(struct msg){ 0 }, r, err);
}

void request_cancel(struct request *q)
{
	struct msg m = { .type = MSG_CANCELLED };

	if (q->stream) {
		stream_cancel(q->stream);
		return;
	}
	request_done(q, &m);
}

void request_progress(struct request *q, const char *state, uint32_t done, uint32_t total)
{
	struct msg m = { .type = MSG_PROGRESS, .id = q->id };
	char text[64];

	if (!q->peer || q->peer->out.queued_bytes > PEER_OUTPUT_MAX / 2)
		return;
	if (q->last_state == state && q->last_percent == done)
		return;
	q->last_state = state;
	q->last_percent = done;
	MSG_SET(&m.progress, state, span_of(state));
	if (total > 0) {
		snprintf(text, sizeof(text), "%s %u %%", state,
			 (uint32_t)((uint64_t)done * 100 / total));
		MSG_SET(&m.progress, text, span_of(text));
		MSG_SET(&m.progress, done, done);
		MSG_SET(&m.progress, total, total);
	}
	peer_send(q->peer, &m);
}

static void reply_ids(struct request *q)
{
	struct msg m = { .type = MSG_DONE };

	MSG_SET(&m.done, ids,
		(struct span){ (const char *)q->ids.at, q->ids.n * sizeof(*q->ids.at) });
	if (!m.done.ids.data)
		m.done.ids = SPAN("");
	request_done(q, &m);
}

static void reply_text(struct request *q)
{
	const struct span text = { q->text, q->text_len };
	struct msg m = { .type = MSG_DONE };

	if (q->msg.type == MSG_DETOKENIZE && q->msg.detokenize.has_each && q->msg.detokenize.each)
		MSG_SET(&m.done, data, text);
	else
		MSG_SET(&m.done, text, text);
	request_done(q, &m);
}

static void worked(struct request *q)
{
	struct err err = { 0 };
	int r = q->result;

	if (r < 0) {
		err = q->err;
		request_error(q, r, &err);
		return;
	}
	switch (q->msg.type) {
	case MSG_TOKENIZE:
		reply_ids(q);
		return;
	case MSG_DETOKENIZE:
	case MSG_RENDER:
		reply_text(q);
		return;
	default:
		r = generate_submit(q, &err);
		if (r < 0)
			request_error(q, r, &err);
		else if (q->stream)
			drop_input(q);
	}
}

static void on_work_run(void *userdata)
{
	request_work(userdata);
}

static void on_work_done(void *userdata)
{
	struct request *q = userdata;

	q->in_worker = false;
	if (q->peer)
		worked(q);
	else
		request_free(q);
}

static void wait_turn(void *userdata)
{
	(void)userdata;
}

/* What its user said before has been learnt: that was in the same queue. */
static void begin_long_work(void *userdata)
{
	struct request *q = userdata;
	struct err err = { 0 };

	if (q->peer && worker_push_for(q->server->long_worker, q->user->uid, on_work_run,
				       on_work_done, q) >= 0)
		return;
	q->in_worker = false;
	if (q->peer)
		request_error(q, err_set(&err, -ENOMEM, "out of memory"), &err);
	else
		request_free(q);
}

static uint32_t count_sources(const struct request *q)
{
	const struct msg *m = &q->msg;

	switch (m->type) {
	case MSG_GENERATE:
		return m->generate.has_messages + m->generate.has_prompt + m->generate.has_ids +
		       m->generate.has_attached;
	case MSG_SCORE:
		return m->score.has_prompt + m->score.has_ids + m->score.has_attached;
	case MSG_TOKENIZE:
		return m->tokenize.has_text + m->tokenize.has_attached;
	case MSG_DETOKENIZE:
		return m->detokenize.has_ids + m->detokenize.has_attached;
	case MSG_RENDER:
		return m->render.has_messages + m->render.has_attached;
	default:
		return 1;
	}
}

/* Everything that is known without the model. */
static int check_sources(const struct request *q, struct err *err)
{
	static const struct {
		enum msg_type type;
		const char *wanted;
	} names[] = {
		{ MSG_GENERATE, "messages, prompt, ids and attached" },
		{ MSG_SCORE, "prompt, ids and attached" },
		{ MSG_TOKENIZE, "text and attached" },
		{ MSG_DETOKENIZE, "ids and attached" },
		{ MSG_RENDER, "messages and attached" },
	};
	const uint32_t n = count_sources(q);

	if (n == 1)
		return 0;
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		if (names[i].type == q->msg.type)
			return err_set(err, -EINVAL, "%s wants exactly one of %s; %u came",
				       msg_name(q->msg.type), names[i].wanted, n);
	}
	return -EINVAL;
}

/* The model is open. */
static int begin_work(struct request *q, struct err *err)
{
	struct server *s = q->server;
	int r;

	if (q->msg.type == MSG_GENERATE && q->msg.generate.has_model &&
	    !textmodel_is_named(s->model, s->settings, q->msg.generate.model))
		return err_set(err, -ENOENT, "no model '%.*s'; '%s' is in service",
			       SPAN_ARG(q->msg.generate.model),
			       textmodel_name(s->model, s->settings));
	if (wants_turn(q)) {
		r = server_refuses(s, err);
		if (r < 0)
			return r;
	}
	if (q->msg.type == MSG_GENERATE && q->msg.generate.has_session)
		return sessions_begin(q, err);
	return request_start(q, err);
}

int request_start(struct request *q, struct err *err)
{
	struct server *s = q->server;
	const char *warning;
	int r;

	if (!s->model)
		return err_set(err, -EHOSTDOWN, "the model is being loaded again");
	q->model = s->model;
	q->layout = textmodel_layout(s->model, s->settings, &warning);
	if (q->held_bytes <= REQUEST_INLINE_BYTES) {
		request_work(q);
		worked(q);
		return 0;
	}
	r = q->held_bytes > REQUEST_LONG_BYTES
		    ? worker_push_for(s->worker, q->user->uid, wait_turn, begin_long_work, q)
		    : worker_push_for(s->worker, q->user->uid, on_work_run, on_work_done, q);
	if (r < 0)
		return err_set(err, r, "out of memory");
	q->in_worker = true;
	server_busy_changed(s);
	return 0;
}

int request_begin(struct request *q, struct err *err)
{
	struct server *s = q->server;
	int r;

	r = check_sources(q, err);
	if (r < 0)
		return r;
	if (s->model)
		return begin_work(q, err);
	r = server_refuses(s, err);
	if (r < 0)
		return r;
	q->is_waiting = true;
	TAILQ_INSERT_TAIL(&s->waiting, q, wait);
	request_progress(q, "loading", 0, 100);
	return 0;
}

void request_resume_waiting(struct server *s)
{
	struct request *q;

	while ((q = TAILQ_FIRST(&s->waiting))) {
		struct err err = { 0 };
		int r;

		TAILQ_REMOVE(&s->waiting, q, wait);
		q->is_waiting = false;
		if (q->msg.type == MSG_RESUME) {
			struct stream *st = stream_find(s, q->msg.resume.turn);

			if (st && st->turn.rec->uid == q->peer->uid)
				r = stream_attach(st, q, q->msg.resume.index, &err);
			else
				r = err_set(&err, -ENOENT, "no turn %llu to resume",
					    (unsigned long long)q->msg.resume.turn);
		} else {
			r = s->model ? begin_work(q, &err) : server_refuses(s, &err);
		}
		if (r < 0)
			request_error(q, r, &err);
	}
}
