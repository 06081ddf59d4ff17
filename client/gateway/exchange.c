/* From libmicrohttpd's callbacks to an exchange, and back. */
#include "client/gateway/exchange.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "client/gateway/entry.h"
#include "client/gateway/link.h"
#include "client/gateway/routes.h"

#define CHUNK_HEAD_BYTES 18   /* most that the size of a chunk takes, and its end of line */
#define STREAM_BLOCK_BYTES 64 /* what libmicrohttpd allocates with it is not used for chunks */
#define WAIT_S 1000000u	      /* a timeout that is never reached, but one of its own */

/* Answers. */

static void add_header(struct MHD_Response *response, const char *name, const char *value)
{
	MHD_add_response_header(response, name, value);
}

static void prepare(struct exchange *x, struct MHD_Response *response, unsigned status,
		    const char *type)
{
	char text[24];

	x->response = response;
	x->status = status;
	if (!response)
		return;
	add_header(response, "Content-Type", type);
	add_header(response, "X-Content-Type-Options", "nosniff");
	if (x->origin) {
		add_header(response, "Access-Control-Allow-Origin", x->origin);
		add_header(response, "Vary", "Origin");
		add_header(response, "Access-Control-Expose-Headers",
			   "Retry-After, X-Should-Retry");
	}
	if (x->retry_s > 0) {
		snprintf(text, sizeof(text), "%u", x->retry_s);
		add_header(response, "Retry-After", text);
	} else if (status >= 400) {
		add_header(response, "X-Should-Retry", "false");
	}
	if (status == 405)
		add_header(response, "Allow", x->allowed);
	if (status == 401)
		add_header(response, "WWW-Authenticate", "Bearer");
	if (x->close)
		add_header(response, "Connection", "close");
	x->g->counts.n_status[MIN(status / 100, 5u)]++;
}

/* Lets libmicrohttpd go on with the connection. */
static void wake(struct exchange *x)
{
	if (!x->suspended)
		return;
	x->suspended = false;
	MHD_resume_connection(x->http);
	gateway_kick(x->g);
}

void exchange_answer_as(struct exchange *x, unsigned status, const char *type,
			struct jsontext *text)
{
	struct MHD_Response *response = NULL;

	if (!text->failed) {
		response = MHD_create_response_from_buffer(text->n, text->at,
							   MHD_RESPMEM_MUST_FREE);
		if (response)
			text->at = NULL;
	}
	jsontext_deinit(text);
	prepare(x, response, status, type);
	x->state = EXCHANGE_ANSWERED;
	x->since_us = gateway_now_us();
	wake(x);
}

void exchange_answer(struct exchange *x, unsigned status, struct jsontext *text)
{
	exchange_answer_as(x, status, "application/json", text);
}

void exchange_refuse(struct exchange *x, const struct refusal *no)
{
	struct jsontext text = { 0 };

	x->retry_s = refusal_retry_s(no);
	refusal_write(no, &text);
	exchange_answer(x, no->status, &text);
}

/* @n bytes of what is in out are with the reader, or with libmicrohttpd. */
static void take_out(struct exchange *x, size_t n)
{
	const size_t left = x->out.n - x->out_at;

	x->out_at += n;
	x->since_us = gateway_now_us();
	if (x->out_at == x->out.n) {
		jsontext_clear(&x->out);
		x->out_at = 0;
	}
	if (x->on_room && left > EXCHANGE_STREAM_LOW && left - n <= EXCHANGE_STREAM_LOW)
		x->on_room(x);
}

/* Called by libmicrohttpd when the reader has room. */
static ssize_t read_stream(void *userdata, uint64_t pos, char *to, size_t max)
{
	struct exchange *x = userdata;
	const size_t n = MIN(x->out.n - x->out_at, max);

	(void)pos;
	if (x->reader_left || x->out.failed)
		return MHD_CONTENT_READER_END_WITH_ERROR;
	if (n == 0 && x->state == EXCHANGE_ANSWERED)
		return MHD_CONTENT_READER_END_OF_STREAM;
	if (n == 0) {
		x->suspended = true;
		MHD_suspend_connection(x->http);
		return 0;
	}
	memcpy(to, x->out.at + x->out_at, n);
	take_out(x, n);
	return (ssize_t)n;
}

void exchange_stream(struct exchange *x)
{
	struct MHD_Response *response = MHD_create_response_from_callback(
		MHD_SIZE_UNKNOWN, STREAM_BLOCK_BYTES, read_stream, x, NULL);

	prepare(x, response, 200, "text/event-stream");
	if (response)
		add_header(response, "Cache-Control", "no-cache");
	x->state = EXCHANGE_STREAMING;
	x->since_us = gateway_now_us();
	wake(x);
}

struct jsontext *exchange_out(struct exchange *x)
{
	/* what was taken makes room, once it is most of it */
	if (x->out_at > EXCHANGE_STREAM_LOW && x->out_at > x->out.n / 2) {
		x->out.n -= x->out_at;
		memmove(x->out.at + CHUNK_HEAD_BYTES, x->out.at + x->out_at, x->out.n);
		x->out.n += CHUNK_HEAD_BYTES;
		x->out_at = CHUNK_HEAD_BYTES;
	}
	if (x->out.n == 0) {
		jsontext_add(&x->out, (char[CHUNK_HEAD_BYTES]){ 0 }, CHUNK_HEAD_BYTES);
		x->out_at = x->out.n;
	}
	/* the reader stalls from now on, not since it took what there was before */
	if (exchange_is_drained(x))
		x->since_us = gateway_now_us();
	return &x->out;
}

static bool is_in_chunk(const struct exchange *x)
{
	return x->chunk_n > 0;
}

/* Its size goes into the room before what is in out, its end of line behind it: one piece for send(). */
static void open_chunk(struct exchange *x)
{
	const size_t n = x->out.n - x->out_at;

	jsontext_put(&x->out, "\r\n");
	x->out_at -= 2;
	memcpy(x->out.at + x->out_at, "\r\n", 2);
	for (size_t left = n; left > 0; left >>= 4)
		x->out.at[--x->out_at] = "0123456789abcdef"[left & 15];
	x->chunk_n = x->out.n - x->out_at;
}

/* Returns whether all of the chunk went. */
static bool send_chunk(struct exchange *x)
{
	const ssize_t n = send(x->visitor->fd, x->out.at + x->out_at, x->chunk_n,
			       MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n > 0) {
		x->chunk_n -= (size_t)n;
		take_out(x, (size_t)n);
	}
	/* libmicrohttpd ends it as it would after an error of its own */
	if (n < 0 && errno != EAGAIN && errno != EINTR)
		x->out.failed = true;
	return !is_in_chunk(x);
}

/*
 * When libmicrohttpd suspends a stream it has sent all that it was given, as
 * whole chunks. It need not know of those that we send until it goes on: half of
 * what a token costs on its way would be to wake it and let it suspend again.
 */
static void send_out(struct exchange *x)
{
	bool whole = true;

	while (whole && x->suspended && !exchange_is_drained(x)) {
		if (!is_in_chunk(x))
			open_chunk(x);
		whole = !x->out.failed && send_chunk(x);
	}
	door_want_room(x->visitor, !whole && !x->out.failed);
	if (x->out.failed || (x->state == EXCHANGE_ANSWERED && !is_in_chunk(x)))
		wake(x);
}

void exchange_send_more(struct exchange *x)
{
	if (is_in_chunk(x))
		send_out(x);
}

static void forget_unsent(struct exchange *x)
{
	if (x->is_unsent)
		LIST_REMOVE(x, unsent);
	x->is_unsent = false;
}

void exchange_send_all(struct gateway *g)
{
	struct exchange *x;

	while ((x = LIST_FIRST(&g->unsent))) {
		forget_unsent(x);
		/* or libmicrohttpd was woken since, and takes all */
		if (x->suspended && !is_in_chunk(x))
			send_out(x);
	}
}

void exchange_flush(struct exchange *x)
{
	if (!x->chunked || x->state != EXCHANGE_STREAMING) {
		wake(x);
		return;
	}
	if (!x->suspended || x->is_unsent)
		return;
	x->is_unsent = true;
	LIST_INSERT_HEAD(&x->g->unsent, x, unsent);
	if (!x->g->in_turn)
		exchange_send_all(x->g);
}

bool exchange_is_drained(const struct exchange *x)
{
	return x->out.n == x->out_at;
}

bool exchange_is_full(const struct exchange *x)
{
	return x->out.n - x->out_at > EXCHANGE_STREAM_HIGH;
}

void exchange_end(struct exchange *x)
{
	x->state = EXCHANGE_ANSWERED;
	if (!is_in_chunk(x))
		wake(x);
}

/* Lets go of what the route had. */
static void let_go(struct exchange *x)
{
	void (*on_left)(struct exchange *) = x->on_left;

	x->on_left = NULL;
	x->on_room = NULL;
	x->on_late = NULL;
	if (on_left)
		on_left(x);
	x->work = NULL;
}

void exchange_reader_left(struct exchange *x)
{
	if (x->reader_left)
		return;
	x->reader_left = true;
	if (x->state == EXCHANGE_WAITING || x->state == EXCHANGE_STREAMING)
		x->g->counts.n_cancelled++;
	let_go(x);
	wake(x);
}

void exchange_look(struct exchange *x, uint64_t now_us)
{
	void (*on_late)(struct exchange *) = x->on_late;

	if (!on_late || x->state == EXCHANGE_ANSWERED || now_us < x->until_us)
		return;
	x->on_late = NULL;
	on_late(x);
}

uint64_t exchange_allowed_s(const struct exchange *x)
{
	switch (x->state) {
	case EXCHANGE_BODY:
		return x->g->setup->body_timeout;
	case EXCHANGE_WAITING:
		return 0;
	case EXCHANGE_STREAMING:
		return exchange_is_drained(x) ? 0 : x->g->setup->stall_timeout;
	default:
		return x->g->setup->stall_timeout;
	}
}

uint64_t exchange_since_us(const struct exchange *x)
{
	return x->since_us;
}

/* Requests. */

static struct visitor *visitor_of(struct MHD_Connection *http)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(http, MHD_CONNECTION_INFO_SOCKET_CONTEXT);

	return info ? info->socket_context : NULL;
}

static void free_body(struct exchange *x)
{
	x->g->body_bytes -= x->body_cap;
	x->body_cap = x->body_bytes = 0;
	free(x->body);
	x->body = NULL;
}

void exchange_on_completed(void *userdata, struct MHD_Connection *http, void **context,
			   enum MHD_RequestTerminationCode code)
{
	struct exchange *x = *context;

	(void)userdata, (void)http;
	if (!x)
		return;
	if (code != MHD_REQUEST_TERMINATED_COMPLETED_OK)
		exchange_reader_left(x);
	let_go(x);
	forget_unsent(x);
	x->visitor->exchange = NULL;
	x->visitor->since_us = gateway_now_us();
	if (x->response)
		MHD_destroy_response(x->response);
	free_body(x);
	jsontext_deinit(&x->out);
	free(x->origin);
	free(x);
	*context = NULL;
}

/*
 * A connection that goes on is read before we are asked for its answer, and with
 * the end of what its client sends it would be dropped, answer and all. Those with
 * a timeout of their own are all looked at before anything is read.
 */
static void set_timeout(struct exchange *x, unsigned s)
{
	MHD_set_connection_option(x->http, MHD_CONNECTION_OPTION_TIMEOUT, s);
}

static enum MHD_Result queue(struct exchange *x)
{
	enum MHD_Result r;

	if (!x->response)
		return MHD_NO; /* out of memory: the connection is closed */
	set_timeout(x, 0);
	x->queued = true;
	r = MHD_queue_response(x->http, x->status, x->response);
	MHD_destroy_response(steal(x->response));
	return r;
}

/* A browser asks before it sends what it thinks may be dangerous. */
static void answer_preflight(struct exchange *x)
{
	struct jsontext none = { 0 };

	exchange_answer(x, 204, &none);
	if (!x->response)
		return;
	add_header(x->response, "Access-Control-Allow-Methods", "GET, POST, DELETE");
	/* the star is not for Authorization; OpenAI's own library sends a dozen of others */
	add_header(x->response, "Access-Control-Allow-Headers", "Authorization, *");
	add_header(x->response, "Access-Control-Max-Age", "600");
}

static enum MHD_Result begin(struct gateway *g, struct MHD_Connection *http, const char *method,
			     const char *url, const char *version, void **context)
{
	struct visitor *v = visitor_of(http);
	struct exchange *x;

	if (!v || v->gone || !(x = calloc(1, sizeof(*x))))
		return MHD_NO;
	*x = (struct exchange){ .g = g, .visitor = v, .http = http, .since_us = gateway_now_us() };
	x->chunked = strcmp(version, MHD_HTTP_VERSION_1_1) == 0;
	x->is_old = strcmp(version, MHD_HTTP_VERSION_1_0) == 0;
	*context = x;
	v->exchange = x;
	g->counts.n_requests++;
	x->close = v->no || ++v->n_requests >= g->setup->max_requests;
	if (v->no)
		x->no = *v->no;
	else if (entry_check(x, method, url) == 0 && !x->route)
		answer_preflight(x);
	/* what is refused now is not read: the connection ends with the answer */
	if (x->no.status &&
	    (entry_header(x, "Content-Length") || entry_header(x, "Transfer-Encoding"))) {
		x->close = true;
		exchange_refuse(x, &x->no);
		return queue(x);
	}
	return MHD_YES;
}

static void take_body(struct exchange *x, const char *bytes, size_t n)
{
	const size_t cap = MAX(x->body_cap * 2, x->body_bytes + n + 1);
	char *body;

	if (x->no.status)
		return;
	if (x->body_bytes + n > x->g->setup->max_body) {
		refusal_set(&x->no, 413, "too-long", NULL,
			    "the body has more than %llu bytes, which is what is allowed",
			    (unsigned long long)x->g->setup->max_body);
		return;
	}
	if (x->body_bytes + n + 1 > x->body_cap) {
		if (x->g->body_bytes - x->body_cap + cap > x->g->setup->max_bodies) {
			refusal_set(&x->no, 429, REFUSAL_BUSY, NULL,
				    "requests of %llu bytes are held; no more can be",
				    (unsigned long long)x->g->body_bytes);
			return;
		}
		body = realloc(x->body, cap);
		if (!body) {
			refusal_set(&x->no, 503, "no-memory", NULL, "out of memory");
			return;
		}
		x->g->body_bytes += cap - x->body_cap;
		x->body = body;
		x->body_cap = cap;
	}
	memcpy(x->body + x->body_bytes, bytes, n);
	x->body_bytes += n;
	x->body[x->body_bytes] = '\0';
}

void exchange_go_on(struct exchange *x)
{
	x->route->handle(x);
	/* what a route needs of it, it keeps as JSON */
	free_body(x);
}

static void handle(struct exchange *x)
{
	x->state = EXCHANGE_WAITING;
	if (x->no.status)
		exchange_refuse(x, &x->no);
	else if (x->route->api)
		link_await(x);
	else
		exchange_go_on(x);
}

enum MHD_Result exchange_on_request(void *userdata, struct MHD_Connection *http, const char *url,
				    const char *method, const char *version, const char *upload,
				    size_t *upload_bytes, void **context)
{
	struct exchange *x = *context;

	if (!x)
		return begin(userdata, http, method, url, version, context);
	if (*upload_bytes > 0) {
		take_body(x, upload, *upload_bytes);
		*upload_bytes = 0;
		return MHD_YES;
	}
	if (x->reader_left || x->queued)
		return MHD_NO;
	if (x->state == EXCHANGE_BODY)
		handle(x);
	if (x->response)
		return queue(x);
	if (x->state != EXCHANGE_WAITING)
		return MHD_NO; /* out of memory */
	x->suspended = true;
	set_timeout(x, WAIT_S);
	MHD_suspend_connection(http);
	return MHD_YES;
}
