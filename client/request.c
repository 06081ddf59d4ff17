/* Requests: made from the caller's structs, large texts moved into sealed memory. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/handle.h"
#include "client/wire/ownership.h"
#include "client/wire/utf8.h"

/* The one field of a request that may be too large for a frame. */
struct body {
	struct span *field; /* in the message */
	bool *has;
	struct span *attached; /* names the field if it travels in memory instead */
	bool *has_attached;
	const char *name;
	bool text;
};

#define BODY(sub, f, is_text)                                                                      \
	((struct body){ &(sub)->f, &(sub)->has_##f, &(sub)->attached, &(sub)->has_attached, #f,    \
			is_text })

static int write_all(int fd, struct span s)
{
	while (s.len > 0) {
		const ssize_t n = write(fd, s.data, MIN(s.len, (size_t)1 << 30));

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0)
			s = (struct span){ s.data + n, s.len - n };
	}
	return 0;
}

static int seal_into_memory(struct span s, int *ret)
{
	_cleanup_(closep) int fd = -1;
	int r;

	fd = memfd_create("steamd-prompt", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0 || fchmod(fd, 0600) < 0)
		return -errno;
	r = write_all(fd, s);
	if (r < 0)
		return r;
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) < 0)
		return -errno;
	*ret = steal_fd(&fd);
	return 0;
}

/* Sets @fd if the body went into memory. */
static int place_body(const struct steamd *s, const struct body *body, int *fd, struct err *err)
{
	const struct span bytes = *body->field;
	int r;

	if (body->text && utf8_valid_bytes(bytes) < bytes.len)
		return err_set(err, -EINVAL, "%s is not UTF-8 at byte %zu", body->name,
			       utf8_valid_bytes(bytes));
	if (bytes.len + HANDLE_OTHER_BYTES <= s->max_frame)
		return 0;
	r = seal_into_memory(bytes, fd);
	if (r < 0)
		return err_wrap(err, r, "cannot put %zu bytes of %s into shared memory", bytes.len,
				body->name);
	*body->has = false;
	*body->attached = span_of(body->name);
	*body->has_attached = true;
	return 0;
}

static int start(struct steamd *s, struct msg *m, const struct body *body,
		 const struct steamd_handler *handler, uint64_t *ret, struct steamd_error *e)
{
	struct handle_request *q, **last = &s->requests;
	struct err err = { 0 };
	int r;

	r = handle_check(s, e);
	if (r < 0)
		return r;
	q = calloc(1, sizeof(*q));
	if (!q)
		return handle_error(e, -ENOMEM, STEAMD_CODE_LOCAL, "out of memory");
	q->attached_fd = -1;
	q->type = m->type;
	q->id = m->id = s->last_id + 1;
	if (handler)
		q->handler = *handler;
	if (body)
		r = place_body(s, body, &q->attached_fd, &err);
	if (r == 0)
		r = msg_encode(m, &q->frame, &q->frame_bytes, &err);
	if (r < 0) {
		handle_request_free(q);
		return handle_error_of(
			e, r, r == -EINVAL ? STEAMD_CODE_BAD_REQUEST : STEAMD_CODE_LOCAL, &err);
	}

	s->last_id++;
	while (*last)
		last = &(*last)->next;
	*last = q;
	handle_send_request(s, q);
	if (ret)
		*ret = q->id;
	return 0;
}

static struct span bytes_of(const void *data, size_t n, size_t each)
{
	return (struct span){ n > 0 ? data : NULL, n * each };
}

static int refuse(struct steamd_error *err, const char *text)
{
	return handle_error(err, -EINVAL, STEAMD_CODE_BAD_REQUEST, text);
}

/* An option that was given: NAN and STEAMD_UNSET say that it was not. */
#define SET_NUMBER(sub, g, name)                                                                   \
	do {                                                                                       \
		if (!isnan((g)->name))                                                             \
			MSG_SET(sub, name, (g)->name);                                             \
	} while (0)
#define SET_UINT(sub, g, name)                                                                     \
	do {                                                                                       \
		if ((g)->name != STEAMD_UNSET)                                                     \
			MSG_SET(sub, name, (g)->name);                                             \
	} while (0)

static void set_sampler(struct msg_generate *m, const struct steamd_generate *g)
{
	SET_NUMBER(m, g, temperature);
	SET_NUMBER(m, g, top_p);
	SET_NUMBER(m, g, min_p);
	SET_NUMBER(m, g, repetition_penalty);
	SET_NUMBER(m, g, frequency_penalty);
	SET_NUMBER(m, g, presence_penalty);
	SET_UINT(m, g, top_k);
	SET_UINT(m, g, max_tokens);
	SET_UINT(m, g, min_tokens);
	if (g->has_seed)
		MSG_SET(m, seed, g->seed);
	if (g->ignore_eos)
		MSG_SET(m, ignore_eos, true);
	if (g->deadline_ms)
		MSG_SET(m, deadline_ms, g->deadline_ms);
	if (g->detach)
		MSG_SET(m, detach, true);
	if (g->batch)
		MSG_SET(m, class, span_of("batch"));
}

static void set_lists(struct msg_generate *m, const struct steamd_generate *g)
{
	if (g->n_stop > 0) {
		m->has_stop = true;
		m->stop.n = g->n_stop;
		for (size_t i = 0; i < MIN(g->n_stop, (size_t)MSG_STRS_MAX); i++)
			m->stop.at[i] = span_of(g->stop[i]);
	}
	if (g->n_stop_ids > 0)
		MSG_SET(m, stop_ids, bytes_of(g->stop_ids, g->n_stop_ids, sizeof(uint32_t)));
	if (g->n_bias > 0) {
		MSG_SET(m, bias_ids, bytes_of(g->bias_ids, g->n_bias, sizeof(uint32_t)));
		MSG_SET(m, bias_values, bytes_of(g->bias_values, g->n_bias, sizeof(float)));
	}
	if (g->logprobs || g->n_top > 0)
		MSG_SET(m, logprobs, true);
	if (g->n_top > 0)
		MSG_SET(m, n_top, g->n_top);
}

int steamd_start_generate(struct steamd *s, const struct steamd_generate *given,
			  const struct steamd_handler *handler, uint64_t *ret,
			  struct steamd_error *err)
{
	struct msg m = { .type = MSG_GENERATE };
	struct steamd_generate g;
	struct body body;

	steamd_generate_init(&g);
	if (given->struct_bytes < offsetof(struct steamd_generate, temperature) ||
	    given->struct_bytes > sizeof(g))
		return refuse(err, "struct steamd_generate is not from steamd_generate_init()");
	memcpy(&g, given, given->struct_bytes);
	if (!!g.messages + !!g.prompt + (g.ids || g.n_ids) != 1)
		return refuse(err, "exactly one of messages, prompt and ids is wanted");
	if (g.n_stop > MSG_STRS_MAX)
		return refuse(err, "more than 16 stop strings");

	if (g.messages) {
		MSG_SET(&m.generate, messages, bytes_of(g.messages, g.messages_len, 1));
		body = BODY(&m.generate, messages, true);
	} else if (g.prompt) {
		MSG_SET(&m.generate, prompt, bytes_of(g.prompt, g.prompt_len, 1));
		body = BODY(&m.generate, prompt, true);
	} else {
		MSG_SET(&m.generate, ids, bytes_of(g.ids, g.n_ids, sizeof(uint32_t)));
		body = BODY(&m.generate, ids, false);
	}
	if (g.model)
		MSG_SET(&m.generate, model, span_of(g.model));
	if (g.session) {
		MSG_SET(&m.generate, session, span_of(g.session));
		MSG_SET(&m.generate, session_create, !!g.session_create);
		SET_UINT(&m.generate, &g, session_after);
	}
	set_sampler(&m.generate, &g);
	set_lists(&m.generate, &g);
	MSG_SET(&m.generate, credit, s->window);
	return start(s, &m, &body, handler, ret, err);
}

int steamd_start_score(struct steamd *s, const struct steamd_score *given,
		       const struct steamd_handler *handler, uint64_t *ret,
		       struct steamd_error *err)
{
	struct msg m = { .type = MSG_SCORE };
	struct steamd_score q = { 0 };
	struct body body;

	if (given->struct_bytes == 0 || given->struct_bytes > sizeof(q))
		return refuse(err, "struct_bytes is not sizeof(struct steamd_score)");
	memcpy(&q, given, given->struct_bytes);
	if (!!q.prompt + (q.ids || q.n_ids) != 1)
		return refuse(err, "exactly one of prompt and ids is wanted");
	if (q.prompt) {
		MSG_SET(&m.score, prompt, bytes_of(q.prompt, q.prompt_len, 1));
		body = BODY(&m.score, prompt, true);
	} else {
		MSG_SET(&m.score, ids, bytes_of(q.ids, q.n_ids, sizeof(uint32_t)));
		body = BODY(&m.score, ids, false);
	}
	if (q.n_top > 0)
		MSG_SET(&m.score, n_top, q.n_top);
	if (q.deadline_ms > 0)
		MSG_SET(&m.score, deadline_ms, q.deadline_ms);
	MSG_SET(&m.score, credit, s->window);
	return start(s, &m, &body, handler, ret, err);
}

int steamd_start_tokenize(struct steamd *s, const char *text, size_t len, unsigned flags,
			  const struct steamd_handler *handler, uint64_t *ret,
			  struct steamd_error *err)
{
	struct msg m = { .type = MSG_TOKENIZE };
	const struct body body = BODY(&m.tokenize, text, true);

	MSG_SET(&m.tokenize, text, bytes_of(text, len, 1));
	if (flags & STEAMD_PLAIN)
		MSG_SET(&m.tokenize, plain, true);
	return start(s, &m, &body, handler, ret, err);
}

int steamd_start_detokenize(struct steamd *s, const uint32_t *ids, size_t n_ids, unsigned flags,
			    const struct steamd_handler *handler, uint64_t *ret,
			    struct steamd_error *err)
{
	struct msg m = { .type = MSG_DETOKENIZE };
	const struct body body = BODY(&m.detokenize, ids, false);

	MSG_SET(&m.detokenize, ids, bytes_of(ids, n_ids, sizeof(uint32_t)));
	if (flags & STEAMD_SKIP_SPECIAL)
		MSG_SET(&m.detokenize, skip_special, true);
	if (flags & STEAMD_EACH)
		MSG_SET(&m.detokenize, each, true);
	return start(s, &m, &body, handler, ret, err);
}

int steamd_start_render(struct steamd *s, const char *json, size_t len,
			const struct steamd_handler *handler, uint64_t *ret,
			struct steamd_error *err)
{
	struct msg m = { .type = MSG_RENDER };
	const struct body body = BODY(&m.render, messages, true);

	MSG_SET(&m.render, messages, bytes_of(json, len, 1));
	return start(s, &m, &body, handler, ret, err);
}

int steamd_start_query(struct steamd *s, enum steamd_query what,
		       const struct steamd_handler *handler, uint64_t *ret,
		       struct steamd_error *err)
{
	static const enum msg_type types[] = {
		[STEAMD_STATUS] = MSG_STATUS, [STEAMD_PS] = MSG_PS,
		[STEAMD_MODELS] = MSG_MODELS, [STEAMD_RELOAD] = MSG_RELOAD,
		[STEAMD_LIMITS] = MSG_LIMITS,
	};
	struct msg m = { 0 };

	if ((unsigned)what >= ARRAY_SIZE(types))
		return refuse(err, "there is no such query");
	m.type = types[what];
	return start(s, &m, NULL, handler, ret, err);
}

/* Which name, number or file a verb wants; NULL: it has all. */
static const char *find_missing(enum steamd_session_verb verb, const struct steamd_session *q)
{
	const bool of_one = verb != STEAMD_SESSION_LIST && verb != STEAMD_SESSION_NEW &&
			    verb != STEAMD_SESSION_IMPORT && verb != STEAMD_SESSION_GC;

	if (of_one && !q->session)
		return "a session's name or id is wanted";
	if ((verb == STEAMD_SESSION_FORK || verb == STEAMD_SESSION_RENAME) && !q->name)
		return "a new name is wanted";
	if (verb == STEAMD_SESSION_REWIND && q->turn == STEAMD_UNSET)
		return "the number of the last turn to keep is wanted";
	if (verb == STEAMD_SESSION_GC && q->days == STEAMD_UNSET)
		return "a number of days is wanted";
	if (verb == STEAMD_SESSION_IMPORT && !q->data == !q->get)
		return "a file's bytes, or what gives them, are wanted";
	if (verb == STEAMD_SESSION_EXPORT && !!q->kv != !!q->put)
		return "kv and what takes the file go together";
	return NULL;
}

static void fill_new(struct msg_session_new *m, const struct steamd_session *q)
{
	if (q->name)
		MSG_SET(m, session, span_of(q->name));
	SET_NUMBER(m, q, temperature);
	SET_NUMBER(m, q, top_p);
	SET_NUMBER(m, q, min_p);
	SET_NUMBER(m, q, repetition_penalty);
	SET_NUMBER(m, q, frequency_penalty);
	SET_NUMBER(m, q, presence_penalty);
	SET_UINT(m, q, top_k);
}

/* Returns whether there is such a verb. */
static bool fill_session(struct msg *m, enum steamd_session_verb verb,
			 const struct steamd_session *q)
{
	const struct span session = span_of(q->session);

	switch (verb) {
	case STEAMD_SESSION_LIST:
		m->type = MSG_SESSION_LIST;
		return true;
	case STEAMD_SESSION_SHOW:
		m->type = MSG_SESSION_SHOW;
		MSG_SET(&m->session_show, session, session);
		return true;
	case STEAMD_SESSION_NEW:
		m->type = MSG_SESSION_NEW;
		fill_new(&m->session_new, q);
		return true;
	case STEAMD_SESSION_FORK:
		m->type = MSG_SESSION_FORK;
		MSG_SET(&m->session_fork, session, session);
		MSG_SET(&m->session_fork, name, span_of(q->name));
		SET_UINT(&m->session_fork, q, turn);
		return true;
	case STEAMD_SESSION_REWIND:
		m->type = MSG_SESSION_REWIND;
		MSG_SET(&m->session_rewind, session, session);
		MSG_SET(&m->session_rewind, turn, q->turn);
		return true;
	case STEAMD_SESSION_RENAME:
		m->type = MSG_SESSION_RENAME;
		MSG_SET(&m->session_rename, session, session);
		MSG_SET(&m->session_rename, name, span_of(q->name));
		return true;
	case STEAMD_SESSION_PIN:
	case STEAMD_SESSION_UNPIN:
		m->type = MSG_SESSION_PIN;
		MSG_SET(&m->session_pin, session, session);
		MSG_SET(&m->session_pin, pinned, verb == STEAMD_SESSION_PIN);
		return true;
	case STEAMD_SESSION_RM:
		m->type = MSG_SESSION_RM;
		MSG_SET(&m->session_rm, session, session);
		return true;
	case STEAMD_SESSION_EXPORT:
		m->type = MSG_SESSION_EXPORT;
		MSG_SET(&m->session_export, session, session);
		if (q->kv)
			MSG_SET(&m->session_export, kv, true);
		return true;
	case STEAMD_SESSION_IMPORT:
		m->type = MSG_SESSION_IMPORT;
		if (q->get)
			MSG_SET(&m->session_import, pieces, true);
		else
			MSG_SET(&m->session_import, data, bytes_of(q->data, q->data_len, 1));
		if (q->name)
			MSG_SET(&m->session_import, name, span_of(q->name));
		return true;
	case STEAMD_SESSION_GC:
		m->type = MSG_SESSION_GC;
		MSG_SET(&m->session_gc, days, q->days);
		return true;
	}
	return false;
}

/* Nothing of it can have come yet: what comes is read by steamd_process(). */
static void set_file(struct steamd *s, uint64_t id, enum steamd_session_verb verb,
		     const struct steamd_session *from)
{
	struct handle_request *q = s->requests;

	while (q->id != id)
		q = q->next;
	q->put = verb == STEAMD_SESSION_EXPORT ? from->put : NULL;
	q->get = verb == STEAMD_SESSION_IMPORT ? from->get : NULL;
	q->file_userdata = from->userdata;
}

int steamd_start_session(struct steamd *s, enum steamd_session_verb verb,
			 const struct steamd_session *given, const struct steamd_handler *handler,
			 uint64_t *ret, struct steamd_error *err)
{
	struct steamd_session q;
	struct msg m = { 0 };
	struct body body;
	uint64_t id;
	int r;

	steamd_session_init(&q);
	if (given && (given->struct_bytes < offsetof(struct steamd_session, temperature) ||
		      given->struct_bytes > sizeof(q)))
		return refuse(err, "struct steamd_session is not from steamd_session_init()");
	if (given)
		memcpy(&q, given, given->struct_bytes);
	if (find_missing(verb, &q))
		return refuse(err, find_missing(verb, &q));
	if (!fill_session(&m, verb, &q))
		return refuse(err, "there is no such verb");
	body = BODY(&m.session_import, data, false);
	r = start(s, &m, m.type == MSG_SESSION_IMPORT && q.data ? &body : NULL, handler, &id, err);
	if (r < 0)
		return r;
	set_file(s, id, verb, &q);
	if (ret)
		*ret = id;
	return 0;
}

int steamd_start_cancel_turn(struct steamd *s, uint64_t turn, const struct steamd_handler *handler,
			     uint64_t *ret, struct steamd_error *err)
{
	struct msg m = { .type = MSG_CANCEL_TURN };

	MSG_SET(&m.cancel_turn, turn, turn);
	return start(s, &m, NULL, handler, ret, err);
}

int steamd_start_sleep(struct steamd *s, const char *rung, int now,
		       const struct steamd_handler *handler, uint64_t *ret,
		       struct steamd_error *err)
{
	struct msg m = { .type = MSG_SLEEP };

	if (rung)
		MSG_SET(&m.sleep, rung, span_of(rung));
	if (now)
		MSG_SET(&m.sleep, now, true);
	return start(s, &m, NULL, handler, ret, err);
}

int steamd_start_wake(struct steamd *s, const struct steamd_handler *handler, uint64_t *ret,
		      struct steamd_error *err)
{
	struct msg m = { .type = MSG_WAKE };

	return start(s, &m, NULL, handler, ret, err);
}

int steamd_start_yield(struct steamd *s, uint64_t bytes, uint32_t pid,
		       const struct steamd_handler *handler, uint64_t *ret,
		       struct steamd_error *err)
{
	struct msg m = { .type = MSG_YIELD };

	MSG_SET(&m.yield, bytes, bytes);
	if (pid)
		MSG_SET(&m.yield, pid, pid);
	return start(s, &m, NULL, handler, ret, err);
}

int steamd_start_cache_explain(struct steamd *s, uint64_t turn, const char *session,
			       const struct steamd_handler *handler, uint64_t *ret,
			       struct steamd_error *err)
{
	struct msg m = { .type = MSG_CACHE_EXPLAIN };

	if (session)
		MSG_SET(&m.cache_explain, session, span_of(session));
	else
		MSG_SET(&m.cache_explain, turn, turn);
	return start(s, &m, NULL, handler, ret, err);
}

int steamd_cancel(struct steamd *s, uint64_t request)
{
	struct msg m = { .type = MSG_CANCEL, .id = request };
	struct handle_request *q = handle_find(s, request);
	const int r = handle_check(s, NULL);

	if (r < 0)
		return r;
	if (!q || q->cancelling)
		return 0;
	q->cancelling = true;
	if (s->state == HANDLE_UP)
		return handle_send(s, &m, NULL);
	handle_wake(s);
	return 0;
}

int steamd_hold(struct steamd *s, uint64_t request, int on)
{
	struct handle_request *q = handle_find(s, request);
	const int r = handle_check(s, NULL);

	if (r < 0)
		return r;
	if (!q)
		return 0;
	q->held = on;
	/* without a connection there is nobody to pay: resuming begins with a whole window */
	if (s->state == HANDLE_UP)
		handle_pay(s, q);
	return 0;
}
