/*
 * One turn in this life of the broker and who reads it. Frames are made from
 * the turn's record at the reader's pace: nothing is buffered for a slow one,
 * its turn pauses instead.
 *
 * How long a turn is kept that nobody reads:
 *
 *	detached		until it ends, then SERVER_KEEP_US
 *	its client left		it is cancelled, unless it had ended: an end that may not
 *				have arrived can be resumed, or asked for by the same
 *				question again, for ResumeTimeout=
 *	an earlier broker's	ResumeTimeout=, then as if its client had left
 *
 * Of those that have ended the oldest go earlier when there is no record left
 * for a new turn. They hold a record, and no pages.
 */
#pragma once

#include "daemon/server/request.h"
#include "daemon/text/answer.h"

#define STREAM_BATCH_TOKENS 256 /* most tokens in one frame */

struct stream {
	struct turn turn;
	struct server *server;
	TAILQ_ENTRY(stream) link;
	struct user *user;	 /* counts it while it has no reader */
	struct request *request; /* NULL: nobody reads */
	struct peer *told;	 /* its end is in this peer's queue; NULL: in none's */
	struct answer *answer;	 /* NULL when scoring */
	uint32_t n_read;	 /* tokens taken from the record so far */
	bool stopped;		 /* a stop string matched at n_read */
	bool submitted;		 /* the scheduler knows it */
	bool ended, flushed, pumping, paused, left, dropped, cancelled; /* left: counted as without reader */
	bool saving, saved;	 /* a session's turn: it is being committed, and its end waits; it was */
	struct err not_saved;
	int fault;		 /* errno that explains the end instead of the record's finish */
	struct err err;
	size_t conversation_len; /* of the record's, counted for the user while it may be worth tidying: see tidy.h */
	sd_event_source *expiry;
};

/* Wraps @rec, which stays the caller's on failure. */
int stream_new(struct server *s, struct turn_record *rec, struct stream **ret);
void stream_free(struct stream *st); /* releases the record */

/*
 * Queues it with the scheduler and makes @q its reader. On failure it is freed
 * and @q goes on without one. Returns what sched_submit() does.
 */
int stream_submit(struct stream *st, struct request *q, struct err *err);

/* Gives it a reader from token @index on; the one before is told that it lost it. */
int stream_attach(struct stream *st, struct request *q, uint32_t index, struct err *err);
/* The reader's connection is gone: ends the turn unless it is detached. */
void stream_leave(struct stream *st);
/* Nobody reads: give up after @us. */
void stream_expire(struct stream *st, uint64_t us);

/* Sends what can be sent now. */
void stream_pump(struct stream *st);
/* Ends it with an error instead of what the record says. */
void stream_fail(struct stream *st, int r, const struct err *err);
/* Its reader gets an error; the scheduler is not asked, as it goes too. */
void stream_abandon(struct stream *st, int r, const struct err *err);
void stream_cancel(struct stream *st);
/* All that @p was told has arrived, or (@gone) never will: of turns whose end was among it. */
void stream_arrived(struct peer *p, bool gone);
/* For PROGRESS frames: where it is. */
void stream_progress(struct stream *st);

/* A session's turn was committed, or (@r < 0) could not be: its end may be told. */
void stream_saved(struct stream *st, int r, const struct err *err);

struct stream *stream_find(struct server *s, uint64_t turn);
/* Wraps what turns_next() finds after an adoption. */
void stream_adopt_all(struct server *s);
/* Frees an ended turn that nobody reads, the oldest first. Returns whether there was one. */
bool stream_evict(struct server *s);
