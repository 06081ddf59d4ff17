/*
 * One request and its answer. A route answers at once, or keeps the exchange and
 * answers later: whole, or as a stream of events that is written while
 * the reader takes it. In between the connection is suspended and costs nothing.
 */
#pragma once

#include "client/gateway/door.h"
#include "client/gateway/jsontext.h"
#include "client/gateway/refusal.h"
#include "client/gateway/routes.h"

#define EXCHANGE_STREAM_HIGH (256u << 10) /* bytes not yet taken: what fills it is held back … */
#define EXCHANGE_STREAM_LOW (64u << 10)	  /* … until so few are left */

enum exchange_state {
	EXCHANGE_BODY,	    /* its body is coming */
	EXCHANGE_WAITING,   /* a route has it */
	EXCHANGE_STREAMING, /* answered; events follow */
	EXCHANGE_ANSWERED,  /* all is said */
};

struct exchange {
	LIST_ENTRY(exchange) unsent;  /* while is_unsent */
	TAILQ_ENTRY(exchange) parked; /* see link_await() */
	struct gateway *g;
	struct visitor *visitor;
	struct MHD_Connection *http;
	const struct route *route;
	char id[128];	     /* what stood for {id} in the path */
	const char *label;   /* of its key; NULL: none */
	char *origin;	     /* of an allowed web page; NULL: none */
	char allowed[ROUTES_ALLOWED_BYTES]; /* the methods that its path is for, if not this one */
	enum exchange_state state;
	bool suspended, queued, reader_left, close, is_unsent;
	bool is_old;	   /* HTTP/1.0 */
	bool chunked;	   /* the protocol has chunks */
	uint64_t since_us; /* when it began, or its reader last took something */

	char *body; /* terminated */
	size_t body_bytes, body_cap;
	struct refusal no; /* what was found before the body had come */

	struct MHD_Response *response; /* to be queued */
	unsigned status;
	unsigned retry_s;
	struct jsontext out; /* of a stream: what was not taken yet begins at out_at */
	size_t out_at;
	size_t chunk_n; /* of a chunk under way: what was not sent yet, with its size and end of line */

	/*
	 * The route's part of it, while WAITING or STREAMING.
	 *
	 * on_left	the reader left, or everything is over: @work is let go; once
	 * on_room	a stream has room again; may be NULL
	 * on_late	it is until_us, and not all was answered; NULL: it may take as long
	 *		as it likes
	 */
	void *work;
	void (*on_left)(struct exchange *x);
	void (*on_room)(struct exchange *x);
	void (*on_late)(struct exchange *x);
	uint64_t until_us;
};

/* libmicrohttpd's callbacks. */
enum MHD_Result exchange_on_request(void *userdata, struct MHD_Connection *http, const char *url,
				    const char *method, const char *version, const char *upload,
				    size_t *upload_bytes, void **context);
void exchange_on_completed(void *userdata, struct MHD_Connection *http, void **context,
			   enum MHD_RequestTerminationCode code);

/* Answers with JSON, or with text of another type; takes @text over and leaves it empty. */
void exchange_answer(struct exchange *x, unsigned status, struct jsontext *text);
void exchange_answer_as(struct exchange *x, unsigned status, const char *type,
			struct jsontext *text);
void exchange_refuse(struct exchange *x, const struct refusal *no);
/* Its body is there, and what its route needs to know: the route gets it. */
void exchange_go_on(struct exchange *x);

/* Begins a stream of events: status and headers go out. */
void exchange_stream(struct exchange *x);
/* Where events are appended to; then exchange_flush(). */
struct jsontext *exchange_out(struct exchange *x);
void exchange_flush(struct exchange *x);
/* What was flushed in this turn of the loop, of all streams, is sent: one call for each. */
void exchange_send_all(struct gateway *g);
/* The socket has room again. */
void exchange_send_more(struct exchange *x);
/* Whether the reader has all that there was. */
bool exchange_is_drained(const struct exchange *x);
/* Whether so much was not taken yet that whoever writes should wait for on_room. */
bool exchange_is_full(const struct exchange *x);
/* The stream ends when everything was taken. */
void exchange_end(struct exchange *x);

/* The reader hung up, or took too long. */
void exchange_reader_left(struct exchange *x);

/* For the sweep: what is late is told so. */
void exchange_look(struct exchange *x, uint64_t now_us);
/* How long it may be at what it is at, in seconds (0: as it likes), and since when. */
uint64_t exchange_allowed_s(const struct exchange *x);
uint64_t exchange_since_us(const struct exchange *x);
