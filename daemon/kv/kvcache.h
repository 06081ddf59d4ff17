/*
 * The KV cache: pages for turns, and what earlier turns left in them. A turn
 * holds the pages of its table; pages that are full, and the last one when it
 * ends, are sealed: summed by the executor, noted in the directory, found by
 * later turns of the same namespace. Sealed pages are never written again.
 *
 * Prompts that an administrator marked are shared: the whole pages of a text
 * that begins with all whole pages of such a prompt are found and sealed in the
 * shared namespace, which no client has, and what follows them in the text's
 * own. A text that begins with less of it gets nothing from there.
 *
 * What has to be done to pages (summing, copying, clearing) are moves: the
 * owner takes them with kvcache_moves(), has the executor do them in order, and
 * gives back the sums.
 */
#pragma once

#include "client/wire/step.h"
#include "daemon/kv/chain.h"
#include "daemon/kv/kvpool.h"
#include "daemon/kv/prefix.h"

#define KVCACHE_NOBODY ((uid_t)-1)

struct kvcache;
struct worker;

struct kvcache_options {
	uint32_t n_pages, page_tokens;
	uint64_t page_bytes;
	uint32_t element_bytes; /* of one K or V */
	uint32_t n_strips; /* of a page, each of all its positions: as in struct kvdisk_key */
	int arena_fd, dir_fd;	/* of an earlier life, both or none (-1); taken in any case */
	int causes_fd; /* likewise: why more was not kept; of no use without the others */
};

/*
 * Makes arena and directory, or takes both over. What cannot be taken over is
 * made afresh, and *@ret_lost says why (""; it is no failure). Pages taken over
 * are found again; they are summed before they are served. Causes that cannot
 * be taken over are none, silently: kvcache_causes_fd() is then another one, or -1.
 * Returns 0 or a negative errno with a sentence; where it may pass (err_may_pass()),
 * what was to be taken over is as it was.
 */
int kvcache_new(const struct kvcache_options *options, struct kvcache **ret, struct err *ret_lost,
		struct err *err);
struct kvcache *kvcache_free(struct kvcache *c);
int kvcache_arena_fd(const struct kvcache *c);
int kvcache_dir_fd(const struct kvcache *c);
int kvcache_causes_fd(const struct kvcache *c);
struct kvpool *kvcache_pool(struct kvcache *c); /* to count, and to name in steps */

/* The model whose KV it is from now on; of another one's nothing is served. */
void kvcache_set_model(struct kvcache *c, const uint64_t fingerprint[2]);
struct kv_hash kvcache_root(const struct kvcache *c, uid_t uid, const char *label);

/* A marked prompt. */
struct kvcache_shared {
	const char *name;
	const uint32_t *ids;
	uint32_t n_ids;
};
/*
 * The marked prompts from now on; copied. Turns under way go on as they began.
 * Returns 0 or -ENOMEM: then they are as they were.
 */
int kvcache_set_shared(struct kvcache *c, const struct kvcache_shared *list, uint32_t n);

/* One of them, as it is now. */
struct kvcache_shared_state {
	const char *name; /* the cache's */
	uint32_t n_tokens, n_pages; /* those of whole pages are shared */
	uint32_t n_arena, n_disk;   /* of these pages, from the first on: in the arena, and behind those on disk */
};
/* The @i'th; false: there are no more. */
bool kvcache_shared_at(const struct kvcache *c, uint32_t i, struct kvcache_shared_state *ret);

/*
 * The disk behind the arena, or NULL: pages that are sealed are written to it,
 * and found there again. Before it is freed the cache is told NULL; it is freed
 * before the cache is, for what it has begun ends with calls on the cache.
 *
 * @on_moved	is called when a page was read or written, or could not be: turns
 *		may settle, and pages may be had
 *
 * Returns 0 or mmap's error.
 */
struct kvdisk;
int kvcache_set_disk(struct kvcache *c, struct kvdisk *disk, void (*on_moved)(void *userdata),
		     void *userdata);
/* Its files have been looked into, or it failed: what is in the arena and not on it is written now, if it can be. */
void kvcache_disk_ready(struct kvcache *c);
/*
 * What is in the arena alone is written to the disk now, as far as the disk takes
 * it. Returns whether any is on its way; kvcache_is_moving() tells when it is over.
 */
bool kvcache_save(struct kvcache *c);
/* Whether all that there is can be found: not while files of the disk are looked into. */
bool kvcache_is_ready(const struct kvcache *c);

/* What there is of a text. */
struct kvcache_found {
	uint32_t n_tokens; /* whose KV need not be computed */
	uint32_t n_pages;  /* whole ones, to be shared */
	uint32_t n_unheld; /* of these, held by nobody now, and counted in kvcache_takeable() */
};
void kvcache_look(struct kvcache *c, struct kv_hash root, uid_t uid, const uint32_t *ids,
		  uint32_t n, struct kvcache_found *ret);
/* Whether pages of this text are being sealed: a look will soon find more. */
bool kvcache_is_sealing(const struct kvcache *c, struct kv_hash root, uid_t uid,
			const uint32_t *ids, uint32_t n);
/* Whether any page is to be moved, to or from the disk too: what holds it is soon over. */
bool kvcache_is_moving(const struct kvcache *c);
/* Whether the executor is to move any. */
bool kvcache_has_orders(const struct kvcache *c);

/* How far the pages of a turn are chained. Zeroed, it is at the beginning. */
struct kvcache_chain {
	struct kv_hash hash;
	uint32_t n_pages;
	uint32_t n_shared; /* of the text's pages; known once it has begun */
};

/* A turn's hold on what was found, until it is settled. */
struct kvcache_held {
	uint32_t n_tokens, n_pages;
	uint32_t n_shared;	/* of the text's pages: see struct kvcache_chain */
	uint32_t n_disk_tokens; /* of those, being read from disk */
	kv_page source;		/* to be copied to the page after those, or KV_PAGE_NONE */
	uint32_t source_tokens; /* of it */
};

/*
 * Holds what there is of the first @n of @ids: puts the shared pages into
 * @table, and the one to be copied to, if there is one and a page is to be had.
 * Nothing may be read or fed before kvcache_settle() said so.
 *
 * Returns the pages in @table: ret->n_pages, or one more.
 */
uint32_t kvcache_hold(struct kvcache *c, struct kv_hash root, uid_t uid, const uint32_t *ids,
		      uint32_t n, kv_page *table, struct kvcache_held *ret);
/*
 * Returns 1 when all that is held is sure, and the copy queued: the first
 * held->n_tokens are there for every step pushed after the moves now queued;
 * 0: not yet; -EBADMSG: something was not what it should be: drop all and hold
 * again. After 1 or failure the source is let go of.
 */
int kvcache_settle(struct kvcache *c, const kv_page *table, struct kvcache_held *held,
		   struct kvcache_chain *chain);
/* Lets go of the source; the table's pages are dropped by whoever holds them. */
void kvcache_unsettle(struct kvcache *c, struct kvcache_held *held);

/* Takes @n pages, evicting what costs least; all or none: -EAGAIN. */
int kvcache_take(struct kvcache *c, uid_t uid, uint32_t n, kv_page *ret);
/* Pages that @uid could have now; those, and what steps under way will leave. */
uint32_t kvcache_takeable(const struct kvcache *c, uid_t uid);
uint32_t kvcache_available(const struct kvcache *c, uid_t uid);
/*
 * Percent of the arena that others leave of a uid's sealed pages (shares.h); less
 * if there are too many uids for it. Marked prompts are spared before those.
 */
void kvcache_set_least(struct kvcache *c, uint32_t percent);
/*
 * As much less of it that one can have @n_pages, with what it holds and marked
 * prompts included; until kvcache_set_least().
 */
void kvcache_set_room(struct kvcache *c, uint32_t n_pages);
/* How many users have sealed pages, with @uid, who need not. */
uint32_t kvcache_users(const struct kvcache *c, uid_t uid);
void kvcache_drop(struct kvcache *c, const kv_page *pages, uint32_t n);
/* Holds the pages of a turn of an earlier life, which has @n_kv tokens in them. -EINVAL: they cannot be its. */
int kvcache_claim(struct kvcache *c, struct kv_hash root, uid_t uid, const kv_page *table,
		  uint32_t n, uint32_t n_kv);
/*
 * Pages that were claimed have @n_kv tokens in them, and no step of the earlier
 * life is under way. One that was granted to be cleared first, and is behind
 * those tokens, may hold another's bytes: whether the earlier life came to
 * order it is not known, so it is queued. 0 or -ENOMEM: the pages are not fit to be fed.
 */
int kvcache_claimed(struct kvcache *c, uid_t uid, const kv_page *table, uint32_t n, uint32_t n_kv);

/* What becomes of the page behind a turn's last whole one: its tail. */
enum kvcache_tail {
	KVCACHE_TAIL_GROWS, /* not sealed */
	KVCACHE_TAIL_RESTS, /* sealed, and found in the arena */
	KVCACHE_TAIL_ENDS,  /* and written to disk: the turn has come to its end */
};
/*
 * Queues the sealing of what a turn's table holds: its whole pages below @n_kv
 * of its @n_ids tokens, from @chain on, and as @tail says what is in the next one.
 */
void kvcache_seal(struct kvcache *c, struct kv_hash root, uid_t uid, const uint32_t *ids,
		  uint32_t n_ids, const kv_page *table, uint32_t n_kv, enum kvcache_tail tail,
		  struct kvcache_chain *chain);

/* Takes the oldest moves that are to be done: at most @max. They are then under way. */
uint32_t kvcache_moves(struct kvcache *c, struct step_move *ret, uint32_t max);
/* The oldest @n of those under way were done. */
void kvcache_moved(struct kvcache *c, const struct step_moved *sums, uint32_t n);
/*
 * The executor is gone, with the moves. What is sealed is to be summed again; copies are nobody's.
 * What was to be sealed is in the arena if it was computed there, and waits for the next executor
 * to sum it; else it is lost.
 */
void kvcache_executor_lost(struct kvcache *c, bool in_arena);

/* Gives up pages that nobody holds, those that cost least first; returns the bytes given back to the machine. */
uint64_t kvcache_yield(struct kvcache *c, uint64_t bytes);

/*
 * A way along the whole pages of a text, which carries them out of the cache
 * and into it, one after the other. It is in force for one model: see
 * kvcache_set_model(). The text stays the caller's, and longer than the way.
 */
struct kvcache_walk {
	struct prefix_whose whose;
	struct kv_hash parent; /* of the page that comes next */
	const uint32_t *ids;
	uint32_t n_pages, at; /* whole ones; the one that comes next */
};
void kvcache_walk(const struct kvcache *c, struct kv_hash root, uid_t uid, const uint32_t *ids,
		  uint32_t n, struct kvcache_walk *ret);
/* Passes over the next page. */
void kvcache_walk_on(const struct kvcache *c, struct kvcache_walk *w);

/* 0; or why the page was not carried: what its room holds is then worth nothing. @sum: of its bytes. */
typedef void (*kvcache_carried_fn)(int r, const uint64_t sum[2], void *userdata);
/*
 * Both carry the next page between the cache and @room, which has a page's
 * bytes, aligned to 4096, and is the cache's until @done. @done comes from the
 * loop, later, and with -ECANCELED also when the cache ends meanwhile; at the
 * end of @worker, or of the disk, it comes from there.
 *
 * kvcache_carry_out()	from arena or disk, checked against its sum: -EBADMSG. -ENOENT:
 *			it is in neither (any more)
 * kvcache_carry_in()	to the disk, or, if none works, to the arena, by the rules for a
 *			page that @uid computed. @sum is right: see kvcache_room_fault().
 *			Marked prompts are everybody's: none of their pages comes in,
 *			-EPERM. -EDQUOT, -ENOSPC: no room for the user, for all; -EAGAIN:
 *			not now. -EALREADY: it is there
 * @most_pages		of the arena, that @uid may have
 *
 * 0; or a negative errno, and @done does not come. The walk stays where it is.
 */
int kvcache_carry_out(struct kvcache *c, const struct kvcache_walk *w, struct worker *worker,
		      void *room, kvcache_carried_fn done, void *userdata);
int kvcache_carry_in(struct kvcache *c, const struct kvcache_walk *w, struct worker *worker,
		     const void *room, const uint64_t sum[2], uint32_t most_pages,
		     kvcache_carried_fn done, void *userdata);

#define KVCACHE_VALUE_MAX 16777216.0f /* magnitude of a K or V; what models compute is far below */
/*
 * Whether a page that came from a file can be served: NULL, or what is wrong. Its
 * bytes have the sum @sum, and hold numbers within KVCACHE_VALUE_MAX: not to
 * spoil what is computed from them is the least that can be asked. For any thread.
 */
const char *kvcache_room_fault(const void *room, uint64_t bytes, uint32_t element_bytes,
			       const uint64_t sum[2]);

/* Pages that kvcache_yield() could give up. */
struct kvcache_unheld {
	uint32_t n_pages, n_empty; /* empty: of these, with memory that nobody needs */
	uint32_t n_disk;	   /* of these, on disk too */
};
void kvcache_count_unheld(const struct kvcache *c, struct kvcache_unheld *ret);

struct kvcache_counts {
	uint32_t n_pages, n_free, n_held, n_kept; /* kept: sealed, found, and held by nobody */
	uint64_t n_found_tokens, n_sealed, n_evicted, n_damaged, n_cleared;
	uint64_t n_written, n_read; /* pages, to disk and from it */
	uint64_t n_weighed;	    /* pages that were looked at to find one that goes */
};
void kvcache_count(const struct kvcache *c, struct kvcache_counts *ret);

/* Asserts that the books agree with each other: for tests. */
void kvcache_check(const struct kvcache *c);

static inline void kvcache_freep(struct kvcache **c)
{
	*c = kvcache_free(*c);
}
