/*
 * One connection: frames in, frames out, hello, deadlines, and the table of
 * requests that are open on it.
 */
#pragma once

#include "client/wire/frame.h"
#include "client/wire/msg.h"
#include "daemon/server/server.h"

#define PEER_OUTPUT_MAX (1u << 20)	/* queued bytes above which nothing is added but ends */
#define PEER_HELLO_US (2 * 1000000ull)	/* from the connection to its hello */
#define PEER_FRAME_US (10 * 1000000ull) /* from a frame's first byte to its last */
#define PEER_LINGER_US (2 * 1000000ull) /* for a refused client to read why */
#define PEER_FLUSH_BYTES (256u << 10)	/* sent at once, so that one peer does not hold the loop */

struct peer {
	struct server *server;
	TAILQ_ENTRY(peer) link, held, take;
	int fd;
	uid_t uid;
	gid_t gid;
	pid_t pid;
	struct user *user;
	char name[64], label[64];
	bool greeted, closing, dead; /* closing: reads no more, dies when its output is sent */
	bool is_held;		     /* in the server's list of those to be flushed */
	bool is_taking;		     /* its frames wait for their turn, see taking.h */
	struct frame_in in;
	struct frame_out out;
	sd_event_source *io, *deadline;
	uint64_t deadline_us; /* 0: none */
	uint64_t n_frames, n_frames_at_deadline;
	TAILQ_HEAD(, request) requests;
	uint32_t n_requests;
	uint32_t n_told; /* turns whose end is in the output queue */
};

/* Takes @fd over on success. Returns 0 or a negative errno. */
int peer_new(struct server *s, int fd, struct user *user, struct peer **ret);
struct peer *peer_free(struct peer *p); /* ends what is open on it */

/* Queues @m and sends what can be sent. -EPIPE if the peer is gone; the peer dies on other failures. */
int peer_send(struct peer *p, const struct msg *m);

/*
 * From peer_hold() on messages are only queued, until peer_release() sends to
 * each peer at once what it got meanwhile. Holding twice is holding once.
 */
void peer_hold(struct server *s);
void peer_release(struct server *s);
/* Sends what can be sent, held or not. */
void peer_flush(struct peer *p);

/* Takes the next frame, if it is whole and the peer may have it taken. */
void peer_take_frame(struct peer *p);
/* After that: whether more is read, and until when what was begun must end. */
void peer_taken(struct peer *p);

/* The output queue holds as much as it may: streams wait. */
bool peer_is_full(const struct peer *p);

/* Root, the daemon's own uid, or a member of AdminGroup=. */
bool peer_is_admin(const struct peer *p);

/*
 * Makes an ERROR frame of @m, which has an id and the counts that are known, and
 * sends it: the code and whether a retry helps follow from @r.
 */
void peer_send_error(struct peer *p, struct msg *m, int r, const struct err *err,
		     uint32_t retry_after_ms);
/* The stable code string of an errno. */
const char *peer_error_code(int r);

/* The same with a code of codes.h, then closes once it is sent. */
void peer_refuse(struct peer *p, uint64_t id, const char *code, const char *text);
