/*
 * state.db: what sessions are made of. One thread at a time owns a store (the
 * server's store thread); every call blocks. A turn is one row: it is there
 * with its user's messages from store_begin() on, and complete from
 * store_commit() on; what was begun and never committed is as if it had never
 * been. Every row carries an xxh3 sum; a row that does not match it is counted
 * and never used.
 *
 * What damage does: a wrong bit in the log is put right where it can be, see walfile.h; a row
 * that is damaged is passed over and said to be; where the pages of the file do
 * not fit together, or more than a bit of the log is wrong, every row that can
 * be read and matches its sum goes into a new file, and when that is whole the old
 * one goes aside as PATH.damaged-N. Only damage does that: what a disk fails to
 * read or write once, or has no room for, leaves all as it was. What was removed since the last checkpoint may then be there
 * again. A number of the format that one flipped bit made is told from that of
 * a newer steamd: it is written twice, in PRAGMA user_version and in the table
 * format. All of it is counted; nothing of it refuses to open.
 *
 * Returned everywhere, beside what is said at a call: -ENOSPC (no room), -EIO,
 * -EUCLEAN (damaged) and -ENOMEM for what SQLite says about the file; -EINVAL for
 * what the caller got wrong.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "client/wire/err.h"
#include "client/wire/span.h"
#include "daemon/text/bytes.h"

#define STORE_FORMAT 4		     /* PRAGMA user_version, and the row of the table format */
#define STORE_NAME_MAX 64	     /* bytes of a session's name */
#define STORE_DEFAULTS_MAX 4096	     /* bytes of its sampler settings, which each turn of it reads */
#define STORE_TURNS_MAX 65536	     /* of one session */
/* Requests and answers of a session that can go on: far more than a context holds, and worked on in no time that others would feel. */
#define STORE_TEXT_BYTES_MAX (8u << 20)
#define STORE_FILE_IDS_MAX (4u << 20) /* of a file's turns: each verb on the session reads or writes all of them */
#define STORE_WAL_BYTES_MAX (64u << 20) /* then a checkpoint does not wait until all is idle */

struct store;

/* Whose sessions; nothing of another namespace is ever seen, or told from what does not exist. */
struct store_who {
	uid_t uid;
	const char *label; /* "": none */
};

/*
 * Opens or makes the database at @path, whose folder exists, and brings it to
 * STORE_FORMAT. One that cannot be read as such is set aside as PATH.damaged-N;
 * what can be read of it goes into a new one, see store_check().
 *
 * @vfs		SQLite's name of the file system to use; NULL: the usual one
 *
 * Returns 0; -ENOTSUP: written by a newer steamd; -EBUSY: another process has it open.
 */
int store_open(const char *path, const char *vfs, struct store **ret, struct err *err);
struct store *store_free(struct store *s);

/*
 * Reads the whole database, and mends it where its pages do not fit together.
 * Returns 0 or 1: the old one was set aside. If it fails it is to be called again:
 * until it succeeds other calls may fail with -EUCLEAN or -EIO.
 */
bool store_is_checked(const struct store *s); /* it has succeeded */
bool store_is_open(const struct store *s); /* false: it is damaged, and mending it failed: all calls do, with why */
int store_check(struct store *s, struct err *err);

/* Writes what the log holds into the database. @now: even if it is short of STORE_WAL_BYTES_MAX. */
int store_checkpoint(struct store *s, bool now, struct err *err);

struct store_counts {
	uint64_t n_damaged;   /* rows found not to match their sum, each time they are met */
	uint64_t n_set_aside; /* databases, in this life */
	uint64_t n_kept;      /* rows that were read out of those */
	uint64_t n_log_mended; /* frames of the log in which one bit was wrong, and is right again */
	uint64_t n_log_lost;   /* frames in which one bit was wrong, and it is not known which */
	uint64_t n_log_torn;   /* frames with other damage, as a power cut leaves it: they and what follows them are not read */
	uint64_t n_unfinished; /* turns that were begun in an earlier life and are gone */
	uint64_t n_saved;     /* turns committed */
	uint64_t n_changes;   /* rows written, of all kinds */
};
void store_count(const struct store *s, struct store_counts *ret);

/*
 * What a uid may have, of all its labels; a call that makes it more is refused
 * with -EDQUOT and the numbers, and leaves all as it was. A turn that was begun
 * is stored whatever its answer's length.
 */
struct store_limits {
	uint32_t max_sessions;
	uint64_t max_bytes; /* texts, ids and 256 for each turn and session; 0: no limit */
};

/* What each uid has, as its limits count it. malloc'd. */
struct store_usage {
	uid_t uid;
	uint32_t n_sessions;
	uint64_t n_bytes;
};
int store_usage(struct store *s, struct store_usage **ret, size_t *ret_n, struct err *err);

/* What a turn begins with. */
struct store_begun {
	uint64_t session;
	uint32_t turn; /* from 1 */
	/* {"messages":[…],…}: everything said before, then what is new, and the options last given */
	char *conversation;
	size_t conversation_len;
	uint32_t *ids; /* prompt and answer of the turn before; none: NULL */
	size_t n_ids, n_prompt; /* n_prompt: of these, its prompt */
	char *defaults; /* JSON object of sampler settings; "{}": none */
};
void store_begun_deinit(struct store_begun *b);

/*
 * Begins a turn of the session that @name names: its name, or its id as 16
 * hexadecimal digits. Stores @request; not yet proof against a power cut.
 *
 * create	makes the session if there is none, to be forgotten again if its
 *		first turn is never committed
 * request	{"messages":[…],…}: the new messages, and options that stay for later turns
 * vocab	of the tokenizer: ids of another one are not given back
 *
 * Returns 0, or:
 *	-ENOENT		no such session
 *	-EBUSY		a turn of it is running
 *	-EALREADY	… that was begun with the same @request: @ret has session and
 *			turn, and nothing else
 *	-EDQUOT		the namespace's uid would have more than @limits
 *	-E2BIG		it has STORE_TURNS_MAX turns, or would have more than STORE_TEXT_BYTES_MAX
 *	-EUCLEAN	one of its turns is damaged
 *	-EINVAL		the name or the request makes no sense
 */
int store_begin(struct store *s, const struct store_who *who, struct span name, bool create,
		const struct store_limits *limits, struct span request, uint64_t vocab,
		struct store_begun *ret, struct err *err);

struct store_end {
	uint64_t session;
	uint32_t turn;
	struct span answer; /* the assistant's message, a JSON object */
	struct span finish;
	const uint32_t *ids; /* the prompt as it was fed, then what was sampled */
	uint32_t n_prompt, n_ids;
	uint32_t n_cached, n_reasoning; /* of the prompt, and of what was sampled */
	uint64_t vocab;
};

/*
 * Completes a turn, for good: when this returns 0 the turn survives a power cut.
 * One that is complete already is left as it is. -ENOENT: it was not begun, or
 * its session is gone. Whatever is returned, the turn does not run any more.
 */
int store_commit(struct store *s, const struct store_end *end, struct err *err);

/* Forgets a turn that was begun; also one that is not there. */
int store_abort(struct store *s, uint64_t session, uint32_t turn, struct err *err);

/*
 * Says which turns of an earlier life go on: they count as running. All others
 * that were begun there and not committed are forgotten. Until it succeeds.
 */
struct store_live {
	uint64_t session;
	uint32_t turn;
};
int store_settle(struct store *s, const struct store_live *live, size_t n, struct err *err);

/*
 * What users do with their sessions. @ret becomes one JSON object; what it says
 * was done is proof against a power cut. -ENOENT: no such session; -EEXIST: the
 * name is taken; -EBUSY: a turn is running that would lose its session.
 */

/* Its id alone. */
int store_find(struct store *s, const struct store_who *who, struct span name, uint64_t *ret,
	       struct err *err);
/* {"sessions":[{"id":…,"name":…,"turns":n,"tokens":n,"pinned":bool,"created":s,"used":s,…}]} */
int store_list(struct store *s, const struct store_who *who, struct bytes *ret, struct err *err);
/* The same of one, and "turn":[{"n":…,"request":{…},"answer":{…},"finish":…,…}]; damaged ones say so. */
int store_show(struct store *s, const struct store_who *who, struct span name, struct bytes *ret,
	       struct err *err);
/* @defaults: JSON object; @name empty: the id serves as name. */
int store_new(struct store *s, const struct store_who *who, struct span name, struct span defaults,
	      const struct store_limits *limits, struct bytes *ret, struct err *err);
/* A copy up to turn @turn, UINT32_MAX: all that is complete. */
int store_fork(struct store *s, const struct store_who *who, struct span name, struct span to,
	       uint32_t turn, const struct store_limits *limits, struct bytes *ret, struct err *err);
/* Forgets what came after turn @turn; 0: everything. */
int store_rewind(struct store *s, const struct store_who *who, struct span name, uint32_t turn,
		 struct bytes *ret, struct err *err);
int store_rename(struct store *s, const struct store_who *who, struct span name, struct span to,
		 struct bytes *ret, struct err *err);
/* A pinned session is spared by store_gc(). */
int store_pin(struct store *s, const struct store_who *who, struct span name, bool pinned,
	      struct bytes *ret, struct err *err);
int store_rm(struct store *s, const struct store_who *who, struct span name, struct bytes *ret,
	     struct err *err);
/* Removes those of the namespace that are not pinned and were not used for @days. */
int store_gc(struct store *s, const struct store_who *who, uint32_t days, struct bytes *ret,
	     struct err *err);

/* The last complete turn's prompt and answer, malloc'd; n 0: none, or of another vocabulary. */
int store_ids(struct store *s, const struct store_who *who, struct span name, uint64_t vocab,
	      uint32_t **ret, size_t *ret_n, struct err *err);
/* The same of a session of whomever: as store_recent() names it. *@ret_n_prompt: of these, the prompt's. */
struct store_name;
int store_ids_of(struct store *s, const struct store_name *name, uint64_t vocab, uint32_t **ret,
		 size_t *ret_n, size_t *ret_n_prompt, struct err *err);

/* All sessions, the last used first; at most STORE_RECENT_MAX. malloc'd. */
#define STORE_RECENT_MAX 65536
struct store_name {
	uint64_t id;
	uid_t uid;
	char label[64];
};
int store_recent(struct store *s, struct store_name **ret, size_t *ret_n, struct err *err);

/*
 * One session as one file, and back; see export.h for its form. Import makes a
 * new session, named @name or as the file says (with a number behind it if that
 * is taken), and says in "not_taken" what it left out and why.
 */
int store_export(struct store *s, const struct store_who *who, struct span name,
		 struct bytes *ret, struct err *err);
int store_import(struct store *s, const struct store_who *who, struct span file, struct span name,
		 uint64_t vocab, uint32_t vocab_size, const struct store_limits *limits,
		 struct bytes *ret, struct err *err);

static inline void store_freep(struct store **s)
{
	*s = store_free(*s);
}
