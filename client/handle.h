/*
 * The inside of struct steamd: one connection that comes back, and the
 * requests on it. connection.c moves bytes, incoming.c reads messages,
 * request.c makes them, calls.c blocks.
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

#include "client/steamd.h"
#include "client/wire/frame.h"
#include "client/wire/msg.h"

/* Arrays of u32 and f32 travel little-endian; those of the caller are sent as they lie. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "arrays are sent without conversion");

#define HANDLE_HELLO_MS 10000	/* for the daemon to answer hello */
#define HANDLE_LOST_MS 30000	/* for a lost connection to come back */
#define HANDLE_BACKOFF_MS 10	/* before the first new attempt; doubled up to … */
#define HANDLE_BACKOFF_MAX_MS 1000
#define HANDLE_RESENDS_MAX 5	/* of one request that never got a frame in between */
#define HANDLE_WINDOW_TOKENS 1024 /* credit, unless the daemon wants less */
#define HANDLE_OTHER_BYTES 16384 /* of all fields of a request but its text, and more */

enum handle_state {
	HANDLE_DOWN,	/* no connection and nobody who needs one */
	HANDLE_BACKOFF,	/* the timer will try again */
	HANDLE_HELLO,	/* connected; the daemon has not answered yet */
	HANDLE_UP,
};

struct handle_request {
	struct handle_request *next;
	uint64_t id;
	enum msg_type type;
	struct steamd_handler handler;
	char *frame; /* kept until the daemon has accepted it, for a new connection */
	size_t frame_bytes;
	int attached_fd; /* -1: none */
	bool accepted, cancelling, flushed;
	bool held; /* no credit is given back */
	uint64_t turn, seed;
	uint32_t next_index; /* first token not yet delivered */
	uint32_t unpaid;     /* tokens delivered for which no credit was given back */
	uint32_t n_resends;
	/* a session's file, see struct steamd_session */
	int (*put)(void *userdata, const void *data, size_t len);
	long (*get)(void *userdata, void *data, size_t max);
	void *file_userdata;
	bool moved; /* pieces of it went: it cannot be asked again */
};

struct steamd {
	unsigned owner; /* see handle_check() */
	enum handle_state state;
	int epoll_fd, timer_fd, socket_fd; /* socket_fd: -1 while down */
	char *path, *name, *label;
	bool default_path, writing, processing;
	bool met; /* the daemon has said hello at least once */
	struct frame_in in;
	struct frame_out out;
	struct handle_request *requests;
	uint64_t last_id;
	uint64_t hello_end_ms; /* when steamd should have said hello */
	uint64_t lost_ms; /* when the connection was last known to be needed and missing */
	uint32_t backoff_ms;
	uint32_t window;
	uint32_t max_frame, max_requests, max_context;
	char *version, *boot_id, *features, *model; /* NULL or terminated */
	struct steamd_error refused; /* what the daemon said before it closed the connection */
	char *scratch;	  /* what a callback sees, aligned and terminated */
	size_t scratch_bytes;
};

/* Fills @err (may be NULL) and returns @r. */
int handle_error(struct steamd_error *err, int r, const char *code, const char *text);
/* The same from the wire's sentence. */
int handle_error_of(struct steamd_error *err, int r, const char *code, const struct err *from);

/* connection.c */

/* 0, or -ECHILD in a process that did not open the handle. */
int handle_check(const struct steamd *s, struct steamd_error *err);
/* Encodes and queues. The connection's own failures show up when it is read. 0, -EINVAL or -ENOMEM. */
int handle_send(struct steamd *s, const struct msg *m, struct err *err);
/* Queues the first frame of @q, or its resumption, if there is a connection; else starts one. */
void handle_send_request(struct steamd *s, struct handle_request *q);
/* The daemon has said hello: everything open is asked again. */
void handle_up(struct steamd *s);
/* Makes the next steamd_process() look after requests that wait to be ended. */
void handle_wake(struct steamd *s);

/* incoming.c */

/* Reads one message. Negative: the peer makes no sense, and the sentence says why. */
int handle_take(struct steamd *s, struct span payload, struct err *err);
/* Takes @q off the list, tells its owner and frees it. @err NULL: it succeeded. */
void handle_end(struct steamd *s, struct handle_request *q, const struct steamd_result *result,
		const struct steamd_error *err);
void handle_end_all(struct steamd *s, const struct steamd_error *err);
/* NULL: there is none, or it ended. */
struct handle_request *handle_find(struct steamd *s, uint64_t id);
/* Gives back what was consumed, unless it is little or the request is held. */
void handle_pay(struct steamd *s, struct handle_request *q);
struct handle_request *handle_request_free(struct handle_request *q);
