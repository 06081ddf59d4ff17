/*
 * The disk tier beside the loop: one thread that owns the segments, what it is
 * asked to write and read, and the index of what is there. While it reads and
 * sums a page, the next one that is wanted is read ahead. All is called on the
 * loop; ends come home to it as events, in order.
 */
#pragma once

#include <systemd/sd-event.h>

#include "daemon/kv/chain.h"
#include "daemon/kv/segments.h"

struct kvdisk;

/*
 * A page: whose, behind which, and of which tokens. One with fewer than a
 * page's tokens is a part: of each of its strips only what those tokens have
 * is written and read, and its sum is over that. When a page has been written
 * that begins with all of a part behind the same parent, the part is the first
 * to go when room is wanted.
 */
struct kvdisk_key {
	struct kv_hash hash, parent, root;
	uid_t uid;
	uint32_t n_tokens;
	uint32_t n_strips;	/* that the page's bytes are divided into, each of all its positions; 0: 1 */
	const uint32_t *tokens; /* copied */
};

/*
 * 0; or what segments_append() or segments_read() failed with: the page is not
 * on disk, or the room's bytes are worth nothing. @sum: of what was read.
 */
typedef void (*kvdisk_done_fn)(int r, const uint64_t sum[2], void *userdata);

/*
 * Opens the store that @options says; its found, gone and userdata are not used.
 * Opening, and looking into its files, happens on the thread: until that has
 * ended nothing is written, and what was found so far can be read. If it fails
 * kvdisk_text() says why, and everything asked for fails.
 *
 * @on_ready	is called when that has ended, either way; may be NULL
 *
 * Returns 0 or a negative errno.
 */
int kvdisk_new(sd_event *loop, const struct segments_options *options,
	       void (*on_ready)(void *userdata), void *userdata, struct kvdisk **ret);
/*
 * Ends: what has begun is finished and what was written made to last, which
 * blocks as long as that takes; what has not begun fails with -ECANCELED.
 */
struct kvdisk *kvdisk_free(struct kvdisk *d);

/*
 * Has @on_gone told of what the store gave up by itself, or found damaged, once
 * it is found no more. On the loop; no call on the disk from within. NULL: nobody.
 */
typedef void (*kvdisk_gone_fn)(const struct segments_key *key, enum segments_why why,
			       void *userdata);
void kvdisk_watch(struct kvdisk *d, kvdisk_gone_fn on_gone, void *userdata);

/* Whether the page is there; one whose writing was asked for counts. */
bool kvdisk_has(const struct kvdisk *d, const struct kvdisk_key *key);
bool kvdisk_is_written(const struct kvdisk *d, const struct kvdisk_key *key); /* such a one does not */
/*
 * How many of the first @n of @ids the longest part has that they begin with,
 * behind @parent in @root of @uid: 0 if there is none that can be read. Sets
 * *ret_hash to its hash.
 */
uint32_t kvdisk_find_part(const struct kvdisk *d, struct kv_hash root, uid_t uid,
			  struct kv_hash parent, const uint32_t *ids, uint32_t n,
			  struct kv_hash *ret_hash);
/* Whether all files were looked into, or nothing will come of it. */
bool kvdisk_is_ready(const struct kvdisk *d);
/*
 * Writes the page at @payload, which stays as it is until @done, and has the
 * sum @sum. -EAGAIN: too much is waiting; -ENOMEM: then @done is not called.
 */
int kvdisk_write(struct kvdisk *d, const struct kvdisk_key *key, const void *payload,
		 const uint64_t sum[2], kvdisk_done_fn done, void *userdata);
/* Reads the page into @payload, which is the thread's until @done. -ENOENT, -ENOMEM: @done is not called. */
int kvdisk_read(struct kvdisk *d, const struct kvdisk_key *key, void *payload, kvdisk_done_fn done,
		void *userdata);
/*
 * What was written so far is made to last when all before it is done: at a quiet
 * moment. @done may be NULL; -ENODEV: the disk failed, -ENOMEM: it is not called.
 */
int kvdisk_flush(struct kvdisk *d, kvdisk_done_fn done, void *userdata);

/* New limits, for what is written from now on. */
void kvdisk_limit(struct kvdisk *d, const struct segments_limits *limits);

struct kvdisk_counts {
	struct segments_stats store; /* as of the last end of a job */
	uint64_t n_pages;
	uint32_t n_waiting; /* jobs */
};
void kvdisk_count(const struct kvdisk *d, struct kvdisk_counts *ret);
uint64_t kvdisk_user_bytes(const struct kvdisk *d, uid_t uid); /* likewise; what its limit counts */
uint64_t kvdisk_user_evicted(const struct kvdisk *d, uid_t uid); /* bytes that went for its own limit, in this life */
const char *kvdisk_text(const struct kvdisk *d); /* why there is none; "" */

static inline void kvdisk_freep(struct kvdisk **d)
{
	*d = kvdisk_free(*d);
}
