/*
 * One open request of a peer: from its frame to its terminal frame. Text work
 * (tokenising, rendering) is a job; long ones run on the worker.
 */
#pragma once

#include "daemon/server/peer.h"
#include "daemon/session/store.h"
#include "daemon/text/tokenizer.h"

#define REQUEST_INLINE_BYTES (16u << 10) /* shorter inputs are worked on by the loop itself */
#define REQUEST_LONG_BYTES (1u << 20)	 /* longer ones where they hold up nothing but each other */

struct request {
	struct server *server;
	struct peer *peer; /* NULL: the client is gone, the job still runs */
	struct user *user;
	char label[64]; /* the peer's */
	TAILQ_ENTRY(request) link, wait, look;
	uint64_t id;
	uint64_t received_us;
	char *bytes; /* the frame, which msg points into */
	uint64_t held_bytes; /* of it, of what is attached, and of the conversation before */
	struct msg msg;
	bool is_waiting, is_looking, in_worker;

	/* the job: input, on the worker, output */
	const struct textmodel *model;
	enum chat_layout layout;
	int attached_fd;
	uint64_t attached_bytes;
	char *attached_text; /* once the work has read it */
	struct ids ids;
	char *text;
	size_t text_len;
	bool thinking, in_reasoning;
	char *string_args; /* see struct chat_rendering */
	size_t string_args_len;
	int result;
	struct err err;

	struct transfer *transfer; /* a session's file on its way: see transfer.h */
	struct nap *nap; /* sleep, wake, yield: see sleep.h */
	struct store_begun begun; /* generate: the session's turn, until there is a stream; session 0: none */

	/* generate, score, resume */
	struct stream *stream;
	bool limited;	 /* credit counts */
	uint32_t credit; /* tokens that may be sent */
	const char *last_state;
	uint32_t last_percent;
};

/* Opens a request; counts it. -EAGAIN: a limit, with the numbers. @payload is copied if @hold. */
int request_new(struct peer *p, const struct msg *m, struct span payload, bool hold,
		struct request **ret, struct err *err);

/* What @user's requests hold until their work is done, and their answers until they are read. */
uint64_t request_user_bytes(const struct server *s, const struct user *user);
/* Counts @bytes that its work needs: -EAGAIN with the numbers if its user has too many. */
int request_hold(struct request *q, uint64_t bytes, struct err *err);

/* Forgets it, whatever state it is in; sends nothing. */
void request_free(struct request *q);

/* Does the text work, at once or on the worker, or waits for the model; then replies or submits. */
int request_begin(struct request *q, struct err *err);
/* The same from the text work on; the model is open. */
int request_start(struct request *q, struct err *err);
/* The model is open, or refused: those that waited for it go on. */
void request_resume_waiting(struct server *s);
/* Tells those that wait how the load goes. */
void request_progress(struct request *q, const char *state, uint32_t done, uint32_t total);

/* The terminal frame; the request is gone afterwards. */
void request_done(struct request *q, struct msg *m);
void request_error(struct request *q, int r, const struct err *err);
/* The same with the counts that are in @m's error. */
void request_fail(struct request *q, struct msg *m, int r, const struct err *err);

/* A client's CANCEL, in any state. */
void request_cancel(struct request *q);

/* The text work itself; touches nothing but @q. On the worker or the loop. */
void request_work(struct request *q);

/* Descriptors: only sealed memfds of at most @max_bytes. Returns 0, -EBADMSG, or -E2BIG. */
int attached_check(int fd, uint64_t max_bytes, uint64_t *ret_bytes, struct err *err);
int attached_read(int fd, uint64_t bytes, char **ret, struct err *err);

/* -EINVAL: one of @d is beyond what can be sampled with; it is named as a field of @of. */
struct textmodel_defaults;
int generate_check_samplers(const char *of, const struct textmodel_defaults *d, struct err *err);

/* Builds and submits the turn of a request whose text work is done. */
int generate_submit(struct request *q, struct err *err);
