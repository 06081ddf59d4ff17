/* What the parts of the KV cache share. */
#pragma once

#include <sys/queue.h>

#include "daemon/kv/causes.h"
#include "daemon/kv/kvcache.h"
#include "daemon/kv/kvdir.h"
#include "daemon/kv/kvdisk.h"
#include "daemon/kv/prefix.h"
#include "daemon/kv/tiers.h"

enum move_purpose {
	MOVE_SEAL,  /* the sum, and with it a new sealed page */
	MOVE_CHECK, /* the sum, to be compared */
	MOVE_COPY,  /* of a page's beginning, for a turn that diverges in it */
	MOVE_CLEAR, /* before another uid writes to it */
};

/* A move and what it is for. Holds its page from beginning to end; MOVE_COPY its source. */
struct move {
	TAILQ_ENTRY(move) link;
	struct step_move order;
	enum move_purpose purpose;
	uid_t uid;
	bool passing;			   /* SEAL */
	struct kv_hash root, parent, hash; /* SEAL; CHECK: hash */
	uint32_t n_tokens, tokens[];	   /* SEAL */
};
TAILQ_HEAD(moves, move);
TAILQ_HEAD(tiers_flushes, tiers_flush);

/* A marked prompt: its whole pages. */
struct shared {
	char *name;
	uint32_t n_ids, n_pages;
	uint32_t ids[]; /* of whole pages */
};

/* Pages that a uid has sealed. */
struct owner {
	uid_t uid;
	uint32_t n_pages, n_unheld;
	struct cheapest may_go; /* its leaves that nobody holds; others, too, that were such */
};

struct kvcache {
	struct kvcache_options options;
	struct kvdisk *disk; /* or NULL */
	void (*on_moved)(void *userdata);
	uint32_t n_transfers; /* pages with the disk's thread */
	bool disk_is_behind;  /* pages were sealed while too many were waiting to be written */
	struct tiers_flushes flushes;
	uint32_t n_unsynced; /* pages written since a sync was last asked for */
	bool syncing;
	void *userdata;
	char *arena;	     /* mapped if there is a disk */
	struct kvpool *pool;
	struct kvdir *dir;
	struct causes *causes; /* of enum prefix_gone; NULL: no memory for it */
	struct prefix *prefix;
	struct prefix_node **by_page; /* [n_pages]; NULL: not sealed */
	struct moves waiting, under_way;
	struct shared **shared;
	uint32_t n_shared;
	struct owner *owners;
	uint32_t n_owners;
	uint32_t min_percent; /* of the arena, that others leave a uid */
	uint32_t room_pages;  /* see kvcache_set_room() */
	LIST_HEAD(, carry) carries;
	struct kvcache_counts counts; /* those that only rise */
};

/*
 * kvcache.c: the node that a new page of @uid in @root stands behind, whose hash is
 * @parent; the space itself, if that is @root. NULL: it or its page is not there,
 * or nothing of @uid may follow it; or out of memory.
 */
struct prefix_node *kvcache_parent(struct kvcache *c, struct kv_hash root, uid_t uid,
				   struct kv_hash parent);
/* A sealed page found for its node, and held; the directory is the caller's. */
int kvcache_own(struct kvcache *c, struct prefix_node *node, kv_page page);
/* One more holds the page, which is taken; kvcache_drop() ends it. */
void kvcache_hold_page(struct kvcache *c, kv_page page);
/* The bytes of the node's page are there, with this sum, and are checked: noted in node and directory. */
void kvcache_note_sealed(struct kvcache *c, struct prefix_node *node, const uint64_t sum[2]);
/* The node's KV is gone: out of index, directory and pool. */
void kvcache_forget(struct kvcache *c, struct prefix_node *node, enum prefix_gone why);

/* shared.c: whose the pages of the first @n of @ids are. */
struct prefix_whose shared_whose(const struct kvcache *c, struct kv_hash root, uid_t uid,
				 const uint32_t *ids, uint32_t n);
bool shared_is_root(const struct kvcache *c, struct kv_hash root);
/* Whether a page may be behind @parent: of the same namespace, or the first of its own behind shared ones. */
bool shared_may_follow(const struct kvcache *c, const struct prefix_node *parent,
		       struct kv_hash root, uid_t uid);
/* Whether it is a page of a prompt that is marked now. */
bool shared_is_marked(const struct kvcache *c, const struct prefix_node *node);
/* Whether nobody can find it, for the prompt that it is of, or continues, is marked no more. */
bool shared_is_lost(const struct kvcache *c, const struct prefix_node *node);
void shared_free(struct kvcache *c);

/* kvmoves.c */
int kvmoves_clear(struct kvcache *c, kv_page page, uid_t uid);
int kvmoves_copy(struct kvcache *c, kv_page from, kv_page to, uint32_t n_tokens);
/* Marks the node PENDING. */
int kvmoves_check(struct kvcache *c, struct prefix_node *node);
void kvmoves_end(struct kvcache *c); /* all of them: they were for another model */
void kvmoves_free(struct kvcache *c);

/* tiers.c: pages between arena and disk. */
void tiers_write(struct kvcache *c, struct prefix_node *node); /* a page that was sealed */
/* Whether the node's page is on disk. */
bool tiers_has_written(const struct kvcache *c, const struct prefix_node *node);
/* What of a text is on disk behind what the arena has. */
struct tiers_found {
	uint32_t n_pages;     /* whole ones */
	uint32_t part_tokens; /* of the part behind those, 0: there is none; of the text's own namespace */
	struct kv_hash part;  /* its hash */
};
/* @ids: those after what @m found; @n of them. */
void tiers_look(const struct kvcache *c, const struct prefix_whose *whose,
		const struct prefix_match *m, const uint32_t *ids, uint32_t n,
		struct tiers_found *ret);
/*
 * Has them read: the whole pages into pages put at @table, each held, of which
 * it returns the number; the part, if it has over @least tokens or whole pages
 * were found, into *ret_part, held, or KV_PAGE_NONE.
 */
uint32_t tiers_hold(struct kvcache *c, const struct prefix_whose *whose,
		    const struct prefix_match *m, const uint32_t *ids, uint32_t n, uint32_t least,
		    kv_page *table, kv_page *ret_part);

/* tiers-flush.c: something moved that flushes may have waited for. */
void tiers_moved(struct kvcache *c);

/* carry.c: the cache ends: what is under way ends by itself, without it. */
void carry_leave_all(struct kvcache *c);

/*
 * evict.c: the node's page can go now, as far as its holders, or what is
 * behind it, are concerned.
 */
void evict_offer(struct kvcache *c, struct prefix_node *node);
/* Its page is gone. */
void evict_withdraw(struct kvcache *c, struct prefix_node *node);
struct owner *evict_owner(struct kvcache *c, uid_t uid); /* NULL: it never had a page */
/* Gives up to @n pages back to the pool, on behalf of @uid; returns how many. */
uint32_t evict_pages(struct kvcache *c, uid_t uid, uint32_t n);
/* Gives up what nobody can find any more. */
void evict_lost(struct kvcache *c);
/* Whether @uid may not have its page although nobody holds it, because all share it. */
bool evict_spares(const struct kvcache *c, uid_t uid, const struct prefix_node *node);
