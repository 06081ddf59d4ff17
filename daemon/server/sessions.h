/*
 * Sessions as clients see them: the store on its own thread, the verbs of
 * `steamctl session`, and a turn's way through it: begun before its text work,
 * committed before its last frame. Belongs to the loop's thread; only the
 * store's calls run on the other.
 *
 * Two turns at once on one session are not queued: the second gets -EBUSY, as
 * what it says was written without knowing the first one's answer. Only the
 * same once more, while nobody reads the first, is taken for a client that came
 * back, and gets the first one's answer.
 */
#pragma once

#include <jansson.h>

#include "daemon/server/request.h"

#define SESSIONS_IDLE_US (2 * 1000000ull) /* after the last write: the log goes into the database */
#define SESSIONS_AGAIN_US (1 * 1000000ull)
#define SESSIONS_FILE_MAX ((size_t)128 << 20) /* as messages.def bounds the answer */
#define SESSIONS_JSON_MAX ((size_t)64 << 20)

struct sessions;
struct stream;

/*
 * Opens state.db in the server's state directory. A store that cannot be had is no
 * failure: sessions are refused with the reason, all else is served, and if the
 * reason may pass it is tried again when one is asked for, every SESSIONS_AGAIN_US.
 */
int sessions_new(struct server *s, struct sessions **ret);
/* Waits until what was to be written is written. */
struct sessions *sessions_free(struct sessions *x);

/* Every request of `steamctl session`. */
int sessions_handle(struct request *q, struct err *err);

/* Has the store take @file, taken over, for the SESSION_IMPORT @q: transfer_stored() follows. */
int sessions_import(struct request *q, struct bytes *file, struct err *err);

/* A limits request: answered when the sessions are counted. Negative: it is not begun. */
int sessions_limits(struct request *q);

/* A cache_explain request that names a session: explain_session() once it is found. */
int sessions_explain(struct request *q, struct err *err);

/* A generate request that names a session: begins its turn, then request_start() with q->begun. */
int sessions_begin(struct request *q, struct err *err);
void sessions_abort(struct server *s, uid_t uid, uint64_t session, uint32_t turn);
/* The turn of @st has ended: it is committed or forgotten; then stream_saved(), if it is still there. */
void sessions_end(struct stream *st);
/* Tells the store, once, which turns go on from an earlier life. */
void sessions_settle(struct server *s);

/* The model is open: what sessions said before is learned again, once for a tokenizer. */
void sessions_recall(struct server *s);

/* For status. */
json_t *sessions_describe(const struct sessions *x);

static inline void sessions_freep(struct sessions **x)
{
	*x = sessions_free(*x);
}
