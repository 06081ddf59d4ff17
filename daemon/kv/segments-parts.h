/*
 * What the files of the disk tier share: segments.c (the calls), -files (a
 * segment's file), -scan (what is on the disk at start), -evict (who has to
 * go), -read (reading, also ahead). Nobody else includes this.
 */
#pragma once

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>

#include "daemon/kv/segfile.h"
#include "daemon/kv/segments-ops.h"
#include "daemon/kv/segments.h"

#define SEGMENTS_OPEN_MAX 64 /* files kept open */

/* No room: nothing has been lost by it. */
static inline bool segments_is_full(int r)
{
	return r == -ENOSPC || r == -EDQUOT;
}

/* It may go well another time; the file is not to blame. */
static inline bool segments_is_passing(int r)
{
	return r == -ENOMEM || r == -EMFILE || r == -ENFILE || r == -EAGAIN || r == -EINTR;
}

struct segments_record {
	struct segments_key key; /* n_tokens 0: nothing is in this slot, and nothing will be */
	uint64_t used_us;	 /* by the wall clock */
	uint32_t hits;
	bool outlived;		 /* another has all of it */
};

struct segments_name {
	char text[SEGFILE_NAME_MAX];
};

enum segments_state {
	SEGMENT_LISTED,	 /* its name has been seen */
	SEGMENT_SOUND,	 /* ours: records can be in it */
	SEGMENT_FOREIGN, /* of others, or without a sound header: only to be deleted */
	SEGMENT_STUCK,	 /* the same, but it cannot be deleted: tried once */
	SEGMENT_LEAVING, /* gone() is being told of its records, which can still be read */
};

struct segments_file {
	enum segments_state state;
	uint32_t uid;
	uint64_t seq, bytes;	  /* bytes: what counts against limits */
	struct segfile_header *h; /* in a block of its own; SOUND and LEAVING only, like the rest */
	struct segfile_layout layout;
	struct segments_record *records; /* [layout.n_slots] */
	uint32_t next, n_live;		 /* next: slot to be written; n_slots: full */
	uint32_t n_outlived;		 /* of n_live */
	bool footer;			 /* there is one, or was: it has to follow changes */
	bool dirty;			 /* written to since the last sync */
	bool direct;			 /* fd is O_DIRECT */
	int fd;				 /* -1: not open */
	uint64_t fd_used;		 /* for who has been closed longest */
	uint32_t reads;			 /* prefetches of it; its file stays open */
};

struct segments_user {
	uint32_t uid;
	uint64_t bytes;
	uint64_t evicted_bytes; /* for its own limit */
	bool has_dir;
	bool unlinked; /* files, since its directory was last synced */
	struct segments_file *active; /* where records are appended, or NULL */
};

enum segments_ahead_state { AHEAD_NONE, AHEAD_ASKED, AHEAD_READING, AHEAD_READ };

/* A prefetch. state and r under the mutex, the rest belongs to who the state says. */
struct segments_ahead {
	enum segments_ahead_state state;
	struct segments_place place;
	struct segments_file *file;
	int fd;
	void *payload;
	struct segfile_record *head; /* a block */
	uint64_t at, bytes;
	uint64_t turn; /* first asked, first read */
	int r;
};

/* The thread that reads ahead; started at the first prefetch. */
struct segments_reader {
	pthread_mutex_t mutex; /* guards states and results of ahead[], turn and quit */
	pthread_cond_t asked, done;
	pthread_t thread;
	bool runs, quit;
	uint64_t turn;
	struct segments_ahead ahead[SEGMENTS_PREFETCH_MAX];
};

struct segments {
	struct segments_options opts; /* dir and ops are ours */
	const struct segments_ops *ops;
	char *dir;
	int dir_fd;
	bool direct, scanned;
	struct segfile_layout layout; /* of files to come */
	uint64_t next_seq, fd_turn;
	uint32_t n_open;

	struct segments_file **files; /* by seq */
	uint32_t n_files, files_room;
	struct segments_user **users;
	uint32_t n_users, users_room;

	struct segfile_record *head; /* a block */
	void *bounce;		     /* a payload in whole blocks, or a footer; made when first wanted */
	uint64_t bounce_bytes;

	struct segments_stats stats; /* the counters; the rest is counted when asked for */
	struct segments_reader reader;
};

/* segments-files.c */
/* NULL: none. A place's file is never FOREIGN or LISTED. */
struct segments_file *segments_file_at(const struct segments *s, struct segments_place place);
struct segments_user *segments_user_of(struct segments *s, uint32_t uid); /* NULL: -ENOMEM */
/* Adds a file that is on the disk already. */
int segments_file_add(struct segments *s, uint32_t uid, uint64_t seq, struct segments_file **ret);
/* Makes one for @u to append to; the header is written, not synced. Room for it is the caller's care. */
int segments_file_make(struct segments *s, struct segments_user *u, struct segments_file **ret,
		       struct err *err);
/* Sets what only sound files have; takes @h. -ENOMEM. */
int segments_file_sound(struct segments_file *f, struct segfile_header **h,
			const struct segfile_layout *layout);
/* Opens the file if it is not open. */
int segments_file_open(struct segments *s, struct segments_file *f);
/* Whole blocks at block offsets, in full or not at all. -ENODATA: the file ends before. */
int segments_read_blocks(const struct segments_ops *ops, int fd, const struct iovec *to, int n,
			 uint64_t at);
int segments_file_read(struct segments *s, struct segments_file *f, const struct iovec *to, int n,
		       uint64_t at);
int segments_file_write(struct segments *s, struct segments_file *f, const void *data,
			uint64_t bytes, uint64_t at);
int segments_file_sync(struct segments *s, struct segments_file *f);
int segments_sync_dir(struct segments *s, const struct segments_user *u);
/* Syncs, having written behind its slots what is in them, if there is room for that. */
int segments_file_seal(struct segments *s, struct segments_file *f);
/* Names its records if it has any and @gone, deletes the file, frees @f. Returns the bytes that this gave back. */
uint64_t segments_file_drop(struct segments *s, struct segments_file *f, bool gone,
			    enum segments_why why);
/*
 * Takes a record out of its file, and tells of it if @gone. May free @f: when
 * nothing is left in it, or when this could not be written.
 */
void segments_file_forget(struct segments *s, struct segments_file *f, uint32_t slot, bool gone,
			  enum segments_why why);
struct segments_file *segments_file_free(struct segments *s, struct segments_file *f); /* not the one on the disk */
/* Writing or syncing it failed: it is given up. */
void segments_file_fail(struct segments *s, struct segments_file *f);
/* Its name below the directory. */
struct segments_name segments_file_name(const struct segments_file *f);
/* Room of @bytes in whole blocks, aligned to one; the next call's content. NULL: -ENOMEM. */
void *segments_bounce(struct segments *s, uint64_t bytes);

/* segments-scan.c */
int segments_list(struct segments *s, struct err *err);

/* segments-evict.c */
enum segments_whose {
	WHOSE_OWN,    /* only those of the uid itself */
	WHOSE_SHARED, /* and what is nobody's any more, and what others have above their minimum */
	WHOSE_ANY,
};
/*
 * What others leave of a uid's: whole files, so that what is less than one
 * protects nobody, and there is always room for one more.
 */
uint64_t segments_left_to_others(const struct segments *s);
/* Room for a file of @bytes of @u: -EDQUOT or -ENOSPC if there is none. */
int segments_make_room(struct segments *s, struct segments_user *u, uint64_t bytes,
		       struct err *err);
/* Gives one up for @uid, other than @but. Bytes freed; 0: there is none to give up. */
uint64_t segments_evict_one(struct segments *s, uint32_t uid, enum segments_whose whose,
			    const struct segments_file *but);
void segments_set_limits(struct segments *s, const struct segments_limits *limits);

/* segments-read.c */
int segments_reader_init(struct segments_reader *r);
void segments_reader_deinit(struct segments_reader *r);
/* Ends the prefetches of @f, or all for NULL; waits for those that are being read. */
void segments_reader_end(struct segments *s, const struct segments_file *f);
