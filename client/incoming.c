/* What the daemon says: read, checked, laid out for the callbacks. */
#include <errno.h>
#include <stdlib.h>

#include "client/handle.h"
#include "client/wire/codes.h"
#include "client/wire/ownership.h"

struct handle_request *handle_request_free(struct handle_request *q)
{
	if (!q)
		return NULL;
	closep(&q->attached_fd);
	free(q->frame);
	free(q);
	return NULL;
}

void handle_end(struct steamd *s, struct handle_request *q, const struct steamd_result *result,
		const struct steamd_error *err)
{
	struct handle_request **at = &s->requests;
	struct steamd_result none = {
		.stop_id = STEAMD_UNSET,
		.n_completion = q->next_index,
		.turn = q->turn,
		.seed = q->seed,
		.session = "",
		.not_saved = "",
	};

	while (*at != q)
		at = &(*at)->next;
	*at = q->next;
	if (q->handler.on_end)
		q->handler.on_end(q->handler.userdata, result ? result : &none, err);
	handle_request_free(q);
}

void handle_end_all(struct steamd *s, const struct steamd_error *err)
{
	const uint64_t last = s->last_id; /* what callbacks start is not meant */

	while (s->requests && s->requests->id <= last)
		handle_end(s, s->requests, NULL, err);
}

struct handle_request *handle_find(struct steamd *s, uint64_t id)
{
	struct handle_request *q = s->requests;

	while (q && q->id != id)
		q = q->next;
	return q;
}

static int keep_string(char **to, struct span from)
{
	char *copy = strndup(from.data ? from.data : "", from.len);

	if (!copy)
		return -ENOMEM;
	free(*to);
	*to = copy;
	return 0;
}

static int on_hello(struct steamd *s, const struct msg_hello *m, struct err *err)
{
	if (s->state != HANDLE_HELLO)
		return err_set(err, -EPROTO, "steamd said hello twice");
	if (m->proto != MSG_PROTO)
		return err_set(err, -EPROTO, "steamd speaks protocol %u; this library speaks %d",
			       m->proto, MSG_PROTO);
	if (keep_string(&s->version, m->version) < 0 || keep_string(&s->boot_id, m->boot_id) < 0 ||
	    keep_string(&s->features, m->features) < 0 || keep_string(&s->model, m->model) < 0)
		return err_set(err, -ENOMEM, "out of memory");
	s->max_frame = m->has_max_frame ? m->max_frame : FRAME_BYTES_MAX;
	s->max_requests = m->max_requests;
	s->max_context = m->max_context;
	s->window = HANDLE_WINDOW_TOKENS;
	if (m->has_credit && m->credit > 0)
		s->window = MIN(m->credit, s->window);
	s->met = true;
	handle_up(s);
	return 0;
}

/* Room for @bytes; what was there is lost. */
static char *scratch(struct steamd *s, size_t bytes)
{
	if (bytes > s->scratch_bytes) {
		free(s->scratch);
		s->scratch = malloc(bytes);
		s->scratch_bytes = s->scratch ? bytes : 0;
	}
	return s->scratch;
}

/* Copies @from to *@at, terminated, and moves *@at on. */
static const char *lay_text(char **at, struct span from)
{
	char *to = *at;

	if (from.len > 0)
		memcpy(to, from.data, from.len);
	to[from.len] = '\0';
	*at += from.len + 1;
	return to;
}

/* The same for an array of 4-byte elements; those come first, so that they are aligned. */
static const void *lay_array(char **at, bool present, struct span from)
{
	void *to = *at;

	if (!present)
		return NULL;
	if (from.len > 0)
		memcpy(to, from.data, from.len);
	*at += from.len;
	return to;
}

static int check_tokens(const struct msg_tokens *m, struct err *err)
{
	const uint64_t n = m->ids.len / 4;

	if (m->ids.len % 4 != 0 || n > UINT32_MAX - m->index ||
	    (m->has_logprobs && m->logprobs.len != 4 * n) ||
	    (m->has_top_ids && m->top_ids.len != 4 * n * m->n_top) ||
	    (m->has_top_logprobs && m->top_logprobs.len != 4 * n * m->n_top))
		return err_set(err, -EPROTO, "tokens has arrays that do not fit one another");
	return 0;
}

static int show_delta(struct steamd *s, struct handle_request *q, const struct msg_tokens *m)
{
	struct steamd_delta d = { .index = m->index, .n_ids = m->ids.len / 4 };
	char *at;

	at = scratch(s, m->ids.len + m->logprobs.len + m->top_ids.len + m->top_logprobs.len +
				m->reasoning.len + m->content.len + m->tool_calls.len + 3);
	if (!at)
		return -ENOMEM;
	d.ids = lay_array(&at, true, m->ids);
	d.logprobs = lay_array(&at, m->has_logprobs, m->logprobs);
	d.n_top = m->has_top_ids && m->has_top_logprobs ? m->n_top : 0;
	d.top_ids = lay_array(&at, d.n_top > 0, m->top_ids);
	d.top_logprobs = lay_array(&at, d.n_top > 0, m->top_logprobs);
	d.reasoning_len = m->reasoning.len;
	d.reasoning = lay_text(&at, m->reasoning);
	d.content_len = m->content.len;
	d.content = lay_text(&at, m->content);
	if (m->has_tool_calls && m->tool_calls.len > 0) {
		d.tool_calls_len = m->tool_calls.len;
		d.tool_calls = lay_text(&at, m->tool_calls);
	}
	return q->handler.on_delta(q->handler.userdata, &d);
}

/* In halves of the window: not a frame a token. */
void handle_pay(struct steamd *s, struct handle_request *q)
{
	struct msg m = { .type = MSG_CREDIT, .id = q->id };

	if (q->held || q->unpaid == 0 || q->unpaid < s->window / 2)
		return;
	MSG_SET(&m.credit, n_tokens, q->unpaid);
	q->unpaid = 0;
	handle_send(s, &m, NULL);
}

static int on_tokens(struct steamd *s, struct handle_request *q, const struct msg_tokens *m,
		     struct err *err)
{
	const uint32_t n = m->ids.len / 4;
	int r;

	r = check_tokens(m, err);
	if (r < 0)
		return r;
	if (m->index != q->next_index)
		return err_set(err, -EPROTO, "tokens begin at %u; %u was to come next", m->index,
			       q->next_index);
	/* text held back until the end comes without tokens, and again if the end is resumed */
	if (n == 0 && q->flushed)
		return 0;
	q->flushed = n == 0;
	q->next_index += n;
	q->unpaid += n;
	if (q->handler.on_delta && !q->cancelling && show_delta(s, q, m) != 0)
		steamd_cancel(s, q->id);
	handle_pay(s, q);
	return 0;
}

static void on_accepted(struct handle_request *q, const struct msg_accepted *m)
{
	q->accepted = true;
	q->turn = m->turn;
	if (m->has_seed)
		q->seed = m->seed;
	free(steal(q->frame));
	closep(&q->attached_fd);
	q->attached_fd = -1;
}

static int on_progress(struct steamd *s, struct handle_request *q, const struct msg_progress *m)
{
	struct steamd_progress p = { .done = m->done, .total = m->total };
	char *at;

	if (!q->handler.on_progress)
		return 0;
	at = scratch(s, m->state.len + m->text.len + 2);
	if (!at)
		return -ENOMEM;
	p.state = lay_text(&at, m->state);
	p.text = lay_text(&at, m->text);
	q->handler.on_progress(q->handler.userdata, &p);
	return 0;
}

/* The caller's end of a file failed: it knows why. */
static void end_file(struct steamd *s, struct handle_request *q, int r)
{
	struct msg m = { .type = MSG_CANCEL, .id = q->id };
	struct steamd_error e;
	char text[128];

	snprintf(text, sizeof(text), "the session's file could not be %s: %s",
		 q->put ? "written" : "read", strerror(-r));
	handle_error(&e, r, STEAMD_CODE_LOCAL, text);
	handle_send(s, &m, NULL);
	handle_end(s, q, NULL, &e);
}

static int on_data(struct steamd *s, struct handle_request *q, struct span data, struct err *err)
{
	int r;

	if (!q->put)
		return err_set(err, -EPROTO, "steamd sent a file in answer to %s",
			       msg_name(q->type));
	q->moved = true;
	r = q->cancelling ? 0 : q->put(q->file_userdata, data.data, data.len);
	if (r < 0)
		end_file(s, q, r);
	return 0;
}

static int on_want(struct steamd *s, struct handle_request *q, uint32_t bytes, struct err *err)
{
	const size_t most = MIN((size_t)s->max_frame - HANDLE_OTHER_BYTES, (size_t)256 << 10);
	struct msg m = { .type = MSG_SESSION_DATA, .id = q->id };
	uint32_t left = bytes;
	long n = 1;
	int r = 0;

	if (!q->get)
		return err_set(err, -EPROTO, "steamd wants a file in answer to %s",
			       msg_name(q->type));
	q->moved = true;
	while (r == 0 && left > 0 && n > 0 && !q->cancelling) {
		const size_t max = MIN((size_t)left, most);
		char *at = scratch(s, max);

		if (!at)
			return err_set(err, -ENOMEM, "out of memory");
		n = q->get(q->file_userdata, at, max);
		if (n < 0 || (size_t)n > max) {
			end_file(s, q, n < 0 ? (int)n : -EINVAL);
			return 0;
		}
		MSG_SET(&m.session_data, data, ((struct span){ at, (size_t)n }));
		r = handle_send(s, &m, err);
		left -= (uint32_t)n;
	}
	return r;
}

static int on_done(struct steamd *s, struct handle_request *q, const struct msg_done *m,
		   struct err *err)
{
	struct steamd_result result = {
		.stop_id = m->has_stop_id ? m->stop_id : STEAMD_UNSET,
		.n_prompt = m->n_prompt,
		.n_cached = m->n_cached,
		.n_cached_disk = m->n_cached_disk,
		.n_recomputed = m->n_recomputed,
		.n_completion = m->n_completion,
		.prefill_us = m->prefill_us,
		.decode_us = m->decode_us,
		.turn = q->turn,
		.seed = q->seed,
		.session_turn = m->session_turn,
		.saved = m->saved,
	};
	char *at;

	if (m->ids.len % 4 != 0)
		return err_set(err, -EPROTO,
			       "done.ids has %zu bytes, which is no whole number of ids",
			       m->ids.len);
	at = scratch(s, m->ids.len + m->text.len + m->json.len + m->finish.len +
				m->stop_string.len + m->session.len + m->not_saved.len +
				m->data.len + 7);
	if (!at)
		return err_set(err, -ENOMEM, "out of memory");
	result.ids = lay_array(&at, m->has_ids, m->ids);
	result.n_ids = m->ids.len / 4;
	result.text = m->has_text ? lay_text(&at, m->text) : NULL;
	result.text_len = m->text.len;
	result.json = m->has_json ? lay_text(&at, m->json) : NULL;
	result.json_len = m->json.len;
	result.finish = m->has_finish ? lay_text(&at, m->finish) : NULL;
	result.stop_string = m->has_stop_string ? lay_text(&at, m->stop_string) : NULL;
	result.session = lay_text(&at, m->session);
	result.not_saved = lay_text(&at, m->not_saved);
	result.data = m->has_data ? lay_text(&at, m->data) : NULL;
	result.data_len = m->data.len;
	handle_end(s, q, &result, NULL);
	return 0;
}

static int errno_of_code(struct span code)
{
	static const struct {
		const char *code;
		int error;
	} known[] = {
		{ CODE_BAD_REQUEST, -EINVAL }, { CODE_BAD_STATE, -EPROTO },
		{ CODE_BAD_FRAME, -EPROTO },   { CODE_NO_SUCH, -ENOENT },
		{ CODE_DENIED, -EACCES },      { CODE_TOO_LONG, -EMSGSIZE },
		{ CODE_NO_CHAT, -ENOTSUP },    { CODE_BUSY, -EAGAIN },
		{ CODE_UNAVAILABLE, -EAGAIN }, { CODE_MODEL_REFUSED, -ENOTSUP },
		{ CODE_DEADLINE, -ETIME },     { CODE_NO_MEMORY, -ENOMEM },
		{ CODE_DAMAGED, -EUCLEAN },    { CODE_MOVED, -EREMCHG },
	};

	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		if (span_is(code, known[i].code))
			return known[i].error;
	return -EIO;
}

static void read_error(const struct msg_error *m, struct steamd_error *ret)
{
	struct err text;

	*ret = (struct steamd_error){ .error = errno_of_code(m->code) };
	memcpy(ret->code, m->code.data, MIN(m->code.len, sizeof(ret->code) - 1));
	err_set(&text, ret->error, "%.*s", SPAN_ARG(m->text)); /* makes it printable */
	memcpy(ret->text, text.text, sizeof(ret->text));
	ret->text[sizeof(ret->text) - 1] = '\0';
	ret->retryable = m->retryable;
	ret->retry_after_ms = m->retry_after_ms;
}

/* An error without a request is about the connection, which is about to be closed. */
static int on_connection_error(struct steamd *s, const struct msg_error *m, struct err *err)
{
	read_error(m, &s->refused);
	handle_end_all(s, &s->refused);
	return err_set(err, s->refused.error, "%s", s->refused.text);
}

/* What a turn cost that was not done: of @m, an error or a cancelled. */
#define COST_OF(q, m)                                                                              \
	{                                                                                          \
		.stop_id = STEAMD_UNSET, .n_prompt = (m)->n_prompt,                                \
		.n_completion = (m)->has_n_completion ? (m)->n_completion : (q)->next_index,       \
		.n_cached = (m)->n_cached, .n_cached_disk = (m)->n_cached_disk,                    \
		.n_recomputed = (m)->n_recomputed, .prefill_us = (m)->prefill_us,                  \
		.decode_us = (m)->decode_us, .turn = (q)->turn, .seed = (q)->seed, .session = "",  \
		.not_saved = "",                                                                   \
	}

static void on_error(struct steamd *s, struct handle_request *q, const struct msg_error *m)
{
	const struct steamd_result result = COST_OF(q, m);
	struct steamd_error e;

	read_error(m, &e);
	handle_end(s, q, &result, &e);
}

static void on_cancelled(struct steamd *s, struct handle_request *q, const struct msg_cancelled *m)
{
	const struct steamd_result result = COST_OF(q, m);
	struct steamd_error e;

	handle_error(&e, -ECANCELED, STEAMD_CODE_CANCELLED, "the request was cancelled");
	handle_end(s, q, &result, &e);
}

int handle_take(struct steamd *s, struct span payload, struct err *err)
{
	struct handle_request *q;
	struct msg m;
	int r;

	r = msg_decode(payload.data, payload.len, false, &m, err);
	if (r < 0)
		return err_wrap(err, -EPROTO, "steamd sent what is no message");
	if (m.type == MSG_ERROR && m.id == 0)
		return on_connection_error(s, &m.error, err);
	if (s->state != HANDLE_UP && m.type != MSG_HELLO)
		return err_set(err, -EPROTO, "steamd sent %s before hello", msg_name(m.type));
	if (m.type == MSG_HELLO)
		return on_hello(s, &m.hello, err);

	q = handle_find(s, m.id);
	if (!q)
		return 0; /* it ended here before it ended there */
	q->n_resends = 0;
	switch (m.type) {
	case MSG_ACCEPTED:
		on_accepted(q, &m.accepted);
		return 0;
	case MSG_PROGRESS:
		r = on_progress(s, q, &m.progress);
		return r < 0 ? err_set(err, r, "out of memory") : 0;
	case MSG_TOKENS:
		return on_tokens(s, q, &m.tokens, err);
	case MSG_SESSION_DATA:
		return on_data(s, q, m.session_data.data, err);
	case MSG_SESSION_WANT:
		return on_want(s, q, m.session_want.bytes, err);
	case MSG_DONE:
		return on_done(s, q, &m.done, err);
	case MSG_ERROR:
		on_error(s, q, &m.error);
		return 0;
	case MSG_CANCELLED:
		on_cancelled(s, q, &m.cancelled);
		return 0;
	default:
		return err_set(err, -EPROTO, "steamd sent %s in answer to %s", msg_name(m.type),
			       msg_name(q->type));
	}
}
