/*
 * Which text's KV is where: a radix tree over pages for each namespace, and
 * below the pages of the shared one those of every namespace that continue
 * them. A node is a page's worth of tokens behind its parent's. Its KV is in a page of the
 * arena, or gone, and then the node only serves to explain a miss. Knows
 * nothing of who holds pages.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "daemon/kv/chain.h"
#include "daemon/kv/cheapest.h"
#include "daemon/kv/kvpool.h"

/* Whether a page's bytes are what its sum says. */
enum prefix_trust {
	PREFIX_UNCHECKED, /* not since this executor, or this broker, began */
	PREFIX_PENDING,	  /* being summed, or read from disk */
	PREFIX_CHECKED,
};

/* These numbers outlive the broker: see causes.h. */
enum prefix_gone { PREFIX_THERE, PREFIX_EVICTED, PREFIX_DAMAGED, PREFIX_MODEL_CHANGED };

struct prefix_node {
	struct prefix_node *parent; /* NULL: a namespace, which has no tokens */
	LIST_HEAD(prefix_children, prefix_node) children;
	LIST_ENTRY(prefix_node) sibling, bucket; /* sibling: a namespace's are the other ones */
	TAILQ_ENTRY(prefix_node) age;
	struct cheapest_link cheap; /* evict.c's */
	struct kv_hash hash, root;
	uint64_t sum[2];
	uint64_t used_us;
	kv_page page;	/* or KV_PAGE_NONE */
	uint32_t uid, n_tokens, depth, hits;
	uint32_t n_paged_children; /* with a page of the arena */
	uint8_t trust, gone;
	bool loading; /* from disk; trust is PENDING */
	bool passing; /* a part of a page, of a turn that goes on: not for the disk */
	uint32_t tokens[];
};

struct prefix;

int prefix_new(uint32_t page_tokens, uint32_t n_expected, struct prefix **ret);
struct prefix *prefix_free(struct prefix *p);

struct prefix_node *prefix_find(const struct prefix *p, struct kv_hash hash);
/* The namespace's own node, made if it is not there. NULL: out of memory. */
struct prefix_node *prefix_space(struct prefix *p, struct kv_hash root, uint32_t uid);
/* All namespaces, of all uids; NULL begins and ends. */
struct prefix_node *prefix_next_space(const struct prefix *p, const struct prefix_node *after);

/*
 * Whose the pages of a text are: the first @n_shared are of the shared
 * namespace, those behind them of the text's own.
 */
struct prefix_whose {
	struct kv_hash root, shared_root;
	uint32_t uid, n_shared;
};

static inline bool prefix_is_shared(const struct prefix_whose *w, uint32_t page)
{
	return page < w->n_shared;
}

static inline struct kv_hash prefix_root(const struct prefix_whose *w, uint32_t page)
{
	return prefix_is_shared(w, page) ? w->shared_root : w->root;
}

static inline uint32_t prefix_uid(const struct prefix_whose *w, uint32_t page)
{
	return prefix_is_shared(w, page) ? CHAIN_SHARED_UID : w->uid;
}

/*
 * The child of @parent that is exactly @tokens, made if it is not there: it is
 * gone until a page is set. Its namespace is @root, of @uid: its parent's, or
 * one that continues a page of the shared one. NULL: out of memory, or another
 * text has its hash.
 */
struct prefix_node *prefix_add(struct prefix *p, struct prefix_node *parent, struct kv_hash root,
			       uint32_t uid, struct kv_hash hash, const uint32_t *tokens,
			       uint32_t n_tokens);
/* Sets or clears (KV_PAGE_NONE) the page, and notes it in the tree. */
void prefix_set_page(struct prefix *p, struct prefix_node *node, kv_page page);
/* Removes a node with all below it; none may have a page. */
void prefix_remove(struct prefix *p, struct prefix_node *node);

/* How far the tree goes along a text. */
struct prefix_match {
	struct prefix_node *last; /* node of the last whole page found; the namespace: of none; NULL: no such namespace */
	uint32_t n_pages;	  /* whole pages found, all in the arena */
	struct prefix_node *part; /* a child of @last, in the arena, that has most of what follows, or NULL; of the text's own namespace */
	uint32_t part_tokens;	  /* how many of its tokens follow: at least 1 */
	struct prefix_node *gone; /* the child of @last that would be next if its KV were there, or NULL */
};
void prefix_match(const struct prefix *p, const struct prefix_whose *whose, const uint32_t *ids,
		  uint32_t n, struct prefix_match *ret);
/* The child of @last in the namespace @root that is a page of @ids, with or without KV; NULL: none. */
struct prefix_node *prefix_next_page(const struct prefix *p, const struct prefix_node *last,
				     struct kv_hash root, const uint32_t *ids);
/* How many of the first @n of @ids the node's tokens begin with. */
uint32_t prefix_common(const struct prefix_node *node, const uint32_t *ids, uint32_t n);

/* All nodes of the shared namespace, of every model; NULL begins and ends. */
struct prefix_node *prefix_next_shared(const struct prefix *p, const struct prefix_node *after);
/* All nodes, in the order in which they were added; NULL begins and ends. */
struct prefix_node *prefix_next(const struct prefix *p, const struct prefix_node *after);
uint32_t prefix_nodes(const struct prefix *p);

static inline void prefix_freep(struct prefix **p)
{
	*p = prefix_free(*p);
}
