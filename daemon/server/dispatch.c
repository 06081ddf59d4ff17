/* The table of handlers, and the rules that hold for all of them. */
#include "daemon/server/dispatch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/wire/codes.h"
#include "client/wire/utf8.h"
#include "daemon/base/log.h"
#include "daemon/server/explain.h"
#include "daemon/server/limits.h"
#include "daemon/server/looking.h"
#include "daemon/server/opening.h"
#include "daemon/server/report.h"
#include "daemon/server/sleep.h"
#include "daemon/server/sessions.h"
#include "daemon/server/stream.h"
#include "daemon/server/transfer.h"

#ifndef STEAMD_VERSION
#define STEAMD_VERSION "unknown"
#endif

static const char features[] =
	"resume cancel detach attached logprobs score chat sessions sleep class limits explain "
	"session-files";

static void copy_name(char *to, size_t size, struct span from)
{
	size_t len = MIN(from.len, size - 1);

	while (len < from.len && len > 0 && (from.data[len] & 0xc0) == 0x80)
		len--; /* not inside a character */
	memcpy(to, from.data, len);
	to[len] = '\0';
	/* they are shown by ps and in logs */
	for (size_t i = 0; i < len; i++)
		memset(to + i, '?', utf8_control(to + i, len - i));
}

static void on_hello(struct peer *p, const struct msg *m)
{
	const struct server *s = p->server;
	struct msg reply = { .type = MSG_HELLO };
	char text[128];

	if (p->greeted) {
		peer_refuse(p, 0, CODE_BAD_STATE, "hello came twice");
		return;
	}
	if (m->id != 0) {
		peer_refuse(p, 0, CODE_BAD_FRAME, "hello has a request id; it must be 0");
		return;
	}
	if (m->hello.proto < MSG_PROTO) {
		snprintf(text, sizeof(text),
			 "the client speaks protocol %u; %u is the oldest known here",
			 m->hello.proto, MSG_PROTO);
		peer_refuse(p, 0, CODE_BAD_STATE, text);
		return;
	}
	p->greeted = true;
	sd_event_source_set_enabled(p->deadline, SD_EVENT_OFF);
	p->deadline_us = 0;
	if (m->hello.has_name)
		copy_name(p->name, sizeof(p->name), m->hello.name);
	if (m->hello.has_label)
		copy_name(p->label, sizeof(p->label), m->hello.label);

	MSG_SET(&reply.hello, proto, MSG_PROTO);
	MSG_SET(&reply.hello, version, span_of(STEAMD_VERSION));
	MSG_SET(&reply.hello, boot_id, span_of(s->boot_id));
	MSG_SET(&reply.hello, features, span_of(features));
	if (s->model)
		MSG_SET(&reply.hello, model, span_of(textmodel_name(s->model, s->settings)));
	MSG_SET(&reply.hello, max_frame, p->in.max_bytes);
	MSG_SET(&reply.hello, max_requests, s->settings->max_requests);
	if (s->engine)
		MSG_SET(&reply.hello, max_context, s->engine->plan.max_context);
	MSG_SET(&reply.hello, credit, SERVER_CREDIT_TOKENS);
	peer_send(p, &reply);
}

static struct request *find_request(struct peer *p, uint64_t id)
{
	struct request *q;

	TAILQ_FOREACH(q, &p->requests, link) {
		if (q->id == id)
			return q;
	}
	return NULL;
}

/* Both are harmless for a request that has ended: its last frame may have crossed them. */
static void on_credit(struct peer *p, const struct msg *m)
{
	struct request *q = find_request(p, m->id);

	if (!q || !q->limited)
		return;
	q->credit = m->credit.n_tokens > UINT32_MAX - q->credit ? UINT32_MAX
								: q->credit + m->credit.n_tokens;
	if (q->stream)
		stream_pump(q->stream);
}

static void on_cancel(struct peer *p, const struct msg *m)
{
	struct request *q = find_request(p, m->id);

	if (q)
		request_cancel(q);
}

static void on_session_data(struct peer *p, const struct msg *m)
{
	struct request *q = find_request(p, m->id);
	struct err err = { 0 };
	int r;

	if (!q) /* it ended: the rest of its file crossed that */
		return;
	r = transfer_take(q, m->session_data.data, &err);
	if (r < 0)
		request_error(q, r, &err);
}

static int reply_json(struct request *q, char *json)
{
	_cleanup_(freep) char *owned = json;
	struct msg m = { .type = MSG_DONE };

	if (!owned)
		return -ENOMEM;
	MSG_SET(&m.done, json, span_of(owned));
	request_done(q, &m);
	return 0;
}

static int on_ps(struct request *q, struct err *err)
{
	(void)err;
	return reply_json(q, report_ps(q->server, q->peer));
}

/* The store knows how many sessions there are; without one it is left out. */
static int on_limits(struct request *q, struct err *err)
{
	(void)err;
	if (sessions_limits(q) >= 0)
		return 0;
	return reply_json(q, limits_report(q->peer, NULL, 0));
}

static int on_models(struct request *q, struct err *err)
{
	(void)err;
	return reply_json(q, report_models(q->server));
}

static int on_reload(struct request *q, struct err *err)
{
	char *json = NULL;
	int r;

	if (!peer_is_admin(q->peer))
		return err_set(
			err, -EACCES,
			"uid %u may not reload; root, the daemon's owner and the group '%s' may",
			q->peer->uid, q->server->settings->admin_group);
	r = server_reload(q->server, &json, err);
	if (r < 0)
		return r;
	return reply_json(q, json);
}

static int on_cancel_turn(struct request *q, struct err *err)
{
	static struct log_limit limit;
	const uint64_t turn = q->msg.cancel_turn.turn;
	struct stream *st = stream_find(q->server, turn);
	struct msg m = { .type = MSG_DONE };

	/* whose a turn is, is none of another user's business */
	if (!st || st->ended || (st->turn.rec->uid != q->peer->uid && !peer_is_admin(q->peer)))
		return err_set(err, -ENOENT, "no turn %llu of yours is running",
			       (unsigned long long)turn);
	if (log_allowed(&limit, 10))
		log_info("turn %llu of uid %u: cancelled by uid %u", (unsigned long long)turn,
			 st->turn.rec->uid, q->peer->uid);
	stream_cancel(st);
	request_done(q, &m);
	return 0;
}

static int on_resume(struct request *q, struct err *err)
{
	const struct msg_resume *req = &q->msg.resume;
	struct stream *st = stream_find(q->server, req->turn);

	/* until the model is opened, turns of the last life are not yet known */
	if (!st &&
	    (opening_is_under_way(q->server->opening) || opening_is_waiting(q->server->opening)))
		return request_begin(q, err);
	if (!st || st->turn.rec->uid != q->peer->uid)
		return err_set(err, -ENOENT, "no turn %llu to resume; it ended, or was never yours",
			       (unsigned long long)req->turn);
	return stream_attach(st, q, req->index, err);
}

/* A handler either ended the request, or keeps it open, or fails: then it is ended here. */
static const struct {
	enum msg_type type;
	bool hold; /* the frame's bytes are needed after the handler returned */
	int (*handle)(struct request *q, struct err *err);
} handlers[] = {
	{ MSG_GENERATE, true, request_begin },
	{ MSG_SCORE, true, request_begin },
	{ MSG_RESUME, true, on_resume },
	{ MSG_TOKENIZE, true, request_begin },
	{ MSG_DETOKENIZE, true, request_begin },
	{ MSG_RENDER, true, request_begin },
	{ MSG_STATUS, false, looking_on_status },
	{ MSG_PS, false, on_ps },
	{ MSG_MODELS, false, on_models },
	{ MSG_RELOAD, false, on_reload },
	{ MSG_CANCEL_TURN, false, on_cancel_turn },
	{ MSG_SLEEP, false, sleep_on_sleep },
	{ MSG_WAKE, false, sleep_on_wake },
	{ MSG_YIELD, false, sleep_on_yield },
	{ MSG_SESSION_LIST, true, sessions_handle },
	{ MSG_SESSION_SHOW, true, sessions_handle },
	{ MSG_SESSION_NEW, true, sessions_handle },
	{ MSG_SESSION_FORK, true, sessions_handle },
	{ MSG_SESSION_REWIND, true, sessions_handle },
	{ MSG_SESSION_RENAME, true, sessions_handle },
	{ MSG_SESSION_PIN, true, sessions_handle },
	{ MSG_SESSION_RM, true, sessions_handle },
	{ MSG_SESSION_EXPORT, true, sessions_handle },
	{ MSG_SESSION_IMPORT, true, sessions_handle },
	{ MSG_SESSION_GC, true, sessions_handle },
	{ MSG_LIMITS, false, on_limits },
	{ MSG_CACHE_EXPLAIN, true, explain_handle },
};

static bool wants_descriptor(const struct msg *m)
{
	switch (m->type) {
	case MSG_GENERATE:
		return m->generate.has_attached;
	case MSG_SCORE:
		return m->score.has_attached;
	case MSG_TOKENIZE:
		return m->tokenize.has_attached;
	case MSG_DETOKENIZE:
		return m->detokenize.has_attached;
	case MSG_RENDER:
		return m->render.has_attached;
	case MSG_SESSION_IMPORT:
		return m->session_import.has_attached;
	default:
		return false;
	}
}

static void open_request(struct peer *p, const struct msg *m, struct span payload, size_t i)
{
	_cleanup_(closep) int fd = -1;
	struct request *q = NULL;
	struct err err = { 0 };
	int r;

	if (wants_descriptor(m)) {
		fd = frame_in_take_fd(&p->in);
		if (fd < 0) {
			peer_refuse(p, m->id, CODE_BAD_FRAME,
				    "the message says that a memfd is attached; none came");
			return;
		}
	}
	r = request_new(p, m, payload, handlers[i].hold, &q, &err);
	if (r < 0) {
		peer_send_error(p, &(struct msg){ .id = m->id }, r, &err, 0);
		return;
	}
	if (fd >= 0) {
		r = attached_check(fd, p->server->settings->max_prompt_bytes, &q->attached_bytes,
				   &err);
		q->attached_fd = steal_fd(&fd);
		if (r >= 0)
			r = request_hold(q, q->attached_bytes, &err);
	}
	if (r >= 0)
		r = handlers[i].handle(q, &err);
	if (r < 0)
		request_error(q, r, &err);
}

void dispatch(struct peer *p, struct span payload)
{
	struct err err = { 0 };
	struct msg m = { 0 };
	char text[160];

	if (msg_decode(payload.data, payload.len, true, &m, &err) < 0) {
		peer_refuse(p, m.id, CODE_BAD_FRAME, err.text);
		return;
	}
	if (m.type == MSG_HELLO) {
		on_hello(p, &m);
	} else if (!p->greeted) {
		snprintf(text, sizeof(text), "%s came before hello", msg_name(m.type));
		peer_refuse(p, m.id, CODE_BAD_STATE, text);
	} else if (m.id == 0) {
		snprintf(text, sizeof(text), "%s has the request id 0, which is hello's",
			 msg_name(m.type));
		peer_refuse(p, 0, CODE_BAD_FRAME, text);
	} else if (m.type == MSG_CREDIT) {
		on_credit(p, &m);
	} else if (m.type == MSG_CANCEL) {
		on_cancel(p, &m);
	} else if (m.type == MSG_SESSION_DATA) {
		on_session_data(p, &m);
	} else if (find_request(p, m.id)) {
		snprintf(text, sizeof(text), "%s uses the id %llu of a request that is still open",
			 msg_name(m.type), (unsigned long long)m.id);
		peer_refuse(p, m.id, CODE_BAD_STATE, text);
	} else {
		for (size_t i = 0; i < ARRAY_SIZE(handlers); i++) {
			if (handlers[i].type == m.type) {
				open_request(p, &m, payload, i);
				break;
			}
		}
	}
}
