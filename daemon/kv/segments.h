/*
 * The disk tier of the KV cache: pages of KV, one a record, in append-only
 * files (segments) of each user's own directory. What is here is derived data:
 * any of it may be gone at any time, by eviction, damage or a power cut, and
 * then is computed again. What is served is what was stored, or nothing.
 *
 * All calls block, and all on one store are made by one thread, the caller's
 * I/O thread. Nothing is logged and nothing is known here of clients.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "client/wire/err.h"

#define SEGMENTS_PAGE_TOKENS_MAX 992 /* they and the record's head are one block of 4 KiB */
#define SEGMENTS_PREFETCH_MAX 2
#define SEGMENTS_ALL ((uid_t)-1)

struct segments;
struct segments_ops; /* segments-ops.h: the system calls, for tests to fail them */

/* What a page is. Hashes are xxh3-128: low half, high half. */
struct segments_key {
	uint64_t hash[2];   /* of the chain up to and with this page */
	uint64_t parent[2]; /* of the chain before it */
	uint64_t root[2];   /* of its namespace */
	uint32_t uid;	    /* whose it is, and whose directory it is in */
	uint32_t n_tokens;  /* 1 up to page_tokens */
};

/* Where a record is. Names one record and never another as long as the store is open. */
struct segments_place {
	uint64_t segment; /* 0: nowhere */
	uint32_t slot, pad;
};

enum segments_why {
	SEGMENTS_EVICTED, /* its segment was given up for room */
	SEGMENTS_DAMAGED, /* it was found to be not what was written, or cannot be read */
	SEGMENTS_FAILED,  /* writing or syncing its segment failed: nothing in that file can be trusted */
};

/*
 * Both are called from within calls on the store. Every record is named once
 * when it comes, by segments_append() or @found, and once when it goes without
 * segments_forget*() having been called for it, by @gone. @tokens: nothing but
 * the head of a record is read before it is wanted, so @found has none.
 *
 * From @gone with SEGMENTS_EVICTED the record may still be read with
 * segments_read(), so that a hot one can be appended again after the call in
 * which it goes. No other call on the store is allowed from within them.
 */
typedef void (*segments_found_fn)(void *userdata, const struct segments_key *key,
				  struct segments_place place);
typedef void (*segments_gone_fn)(void *userdata, const struct segments_key *key,
				 struct segments_place place, enum segments_why why);

struct segments_limits {
	uint64_t total_bytes;	 /* of all files; 0: a tenth of the file system, at most 50 GB */
	uint64_t user_bytes;	 /* of one uid's files; 0: as total_bytes */
	uint32_t user_min_percent; /* of total_bytes, in whole files, that others leave it; at most an equal part */
	uint32_t keep_free;	 /* percent of the file system that stay free for others, 0 to 99 */
};

struct segments_options {
	const char *dir;	  /* made if it is not there, mode 0700; its parent must be */
	uint8_t fingerprint[16];  /* of the model */
	uint32_t layout;	  /* version of what is in a page */
	uint32_t page_tokens;	  /* 1 up to SEGMENTS_PAGE_TOKENS_MAX */
	uint64_t page_bytes;	  /* of a payload; any, best a multiple of 4096 */
	uint64_t segment_bytes;	  /* of a file; 0: 256 MiB. Never over a quarter of a limit, never under one record */
	struct segments_limits limits;
	segments_found_fn found;
	segments_gone_fn gone;
	void *userdata;
	const struct segments_ops *ops; /* NULL: the real ones */
};

struct segments_stats {
	uint64_t bytes;		/* of all files, those of other models included */
	uint64_t foreign_bytes; /* of them: files of another model, layout or format, or without a sound header */
	uint64_t least_bytes;	/* that others leave of one uid's: whole files */
	uint32_t n_segments, n_records;
	uint32_t n_foreign;	/* files counted in foreign_bytes */
	/* since the store was opened */
	uint64_t n_appended, n_read, n_evicted;
	uint64_t n_damaged;	/* headers, records and footers that were not as written, and were not served */
	uint64_t n_failed;	/* segments given up as a write or sync of them failed */
	uint64_t n_refused;	/* appends for which there was no room */
	bool direct;		/* false: the file system knows no O_DIRECT, all goes through the page cache */
};

/*
 * Opens the store and lists its files; reads none. One process at a time has a
 * directory. @opts and its strings need not outlive the call. Returns 0, or:
 *	-EINVAL		an option makes no sense
 *	-EBUSY		another process has this directory
 *	-ENOMEM, or errno of making or listing the directory
 */
int segments_open(const struct segments_options *opts, struct segments **ret, struct err *err);
/* Closes the files; neither syncs nor seals, see segments_flush(). Waits for prefetches. */
struct segments *segments_free(struct segments *s);

/*
 * Looks into the next file, newest first, and names its records with found().
 * Reads its header and its footer, or where it has none the head of each
 * record; never a payload. Files that are not ours or not sound are counted
 * and left for eviction. Between two calls, records found can be read.
 *
 * Returns 1 if there may be more files, 0 if there are no more, or -ENOMEM,
 * -EMFILE, …: not now, the next call tries the same file again.
 */
int segments_scan(struct segments *s, struct err *err);

/*
 * Stores a page; on the disk for certain after segments_flush(), or when its
 * segment is full. Makes room by eviction where a limit or the file system
 * asks for it: of what segments_outlive() was called for and of files that are
 * not ours first, then of the segments that are worth least (tokens x hits / age); for a limit of a uid only of its own, and
 * never so that another uid is left with less than user_min_percent.
 *
 * tokens	key->n_tokens ids
 * payload	page_bytes; written from where it is if it is aligned to 4096
 *		and page_bytes is a multiple of that, else copied
 * sum		xxh3-128 of the payload: not checked here, but by segments_read()
 *
 * After a write error the segment is given up (gone() names its records) and
 * the page is written once more, to a new one. Returns 0, or:
 *	-EINVAL		n_tokens out of range
 *	-EAGAIN		segments_scan() has not come to its end
 *	-ENOSPC, -EDQUOT no room, and nothing (more) to evict; nothing changed
 *	-ENOMEM, or errno of writing; whoever gets it waits before the next one
 */
int segments_append(struct segments *s, const struct segments_key *key, const uint32_t *tokens,
		    const void *payload, const uint64_t sum[2], struct segments_place *ret,
		    struct err *err);

/*
 * Reads a page and makes certain that it is the one: the record's head, its
 * key, its tokens and the sum of its payload.
 *
 * key, tokens	what is wanted
 * payload	room for page_bytes, aligned to 4096 or else copied to. Not to be
 *		looked at unless 0 is returned
 * ret_sum	of the payload; may be NULL
 *
 * Returns 0, or:
 *	-ENOENT		no record is at @place (any more), or one of another key
 *	-EBADMSG	it is damaged; what and where is in @err. It is forgotten
 *	-EIO		it cannot be read. It is forgotten
 *	-ENOMEM, -EMFILE, …: not now
 */
int segments_read(struct segments *s, struct segments_place place, const struct segments_key *key,
		  const uint32_t *tokens, void *payload, uint64_t ret_sum[2], struct err *err);

/*
 * Begins to read what segments_read() of the same place and payload will want,
 * and does not wait for it. The room is the store's until that call, or until
 * segments_cancel(). Returns 0, -EAGAIN if SEGMENTS_PREFETCH_MAX are under
 * way, -EINVAL if it would have to be copied, -ENOENT, or what opening the
 * file fails with: then read it without.
 */
int segments_prefetch(struct segments *s, struct segments_place place, void *payload);
/* Ends all prefetches; waits for those that are being read. */
void segments_cancel(struct segments *s);

/* Another record has all that this one has: where room is wanted it goes first, and alone. */
void segments_outlive(struct segments *s, struct segments_place place);

/*
 * Forgets one record, or all of a uid: their bytes are given back to the file
 * system, and after segments_flush() are not found again. Unknown places are
 * no error. Where this cannot be written, gone() is told of the whole segment.
 */
void segments_forget(struct segments *s, struct segments_place place);
void segments_forget_user(struct segments *s, uid_t uid); /* of other models too; SEGMENTS_ALL: everything */

/* All that was appended or forgotten is so on the disk when this returns 0. An error is that of the last segment which failed. */
int segments_flush(struct segments *s, struct err *err);

/*
 * Gives up whole segments, those worth least first, until @bytes are freed or
 * nothing is left. uid: only of this one, or SEGMENTS_ALL. Returns the bytes freed.
 */
uint64_t segments_evict(struct segments *s, uint64_t bytes, uid_t uid);
/* New limits; they are kept from the next append on. */
void segments_limit(struct segments *s, const struct segments_limits *limits);

void segments_stats(const struct segments *s, struct segments_stats *ret);
uint64_t segments_user_bytes(const struct segments *s, uid_t uid);

/* What each uid has: as its limit counts it. malloc'd; returns how many, 0 also without memory. */
struct segments_usage {
	uid_t uid;
	uint64_t bytes, evicted_bytes; /* evicted: for its own limit, since it was opened */
};
uint32_t segments_usage(const struct segments *s, struct segments_usage **ret);

static inline void segments_freep(struct segments **s)
{
	*s = segments_free(*s);
}
