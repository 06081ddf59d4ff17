/*
 * Who loses a page: the uid that has most sealed, and of its pages the one
 * that costs least to lose: few tokens, long not used, seldom found. Only
 * leaves go, so that what stays can be reached; never a page that is held, and
 * never one of another uid that has no more than what is its by right. What a
 * marked prompt has in the arena is everybody's: it goes last of all, and only
 * where nothing is left to others either.
 */
#include "client/wire/ownership.h"
#include "daemon/base/clock.h"
#include "daemon/kv/kvcache-parts.h"
#include "daemon/kv/shares.h"

#define GONE_MIN 1024u /* nodes kept for explanations at least */

static uint32_t pages_of(const struct kvcache *c, uid_t uid)
{
	for (uint32_t i = 0; i < c->n_owners; i++) {
		if (c->owners[i].uid == uid)
			return c->owners[i].n_pages;
	}
	return 0;
}

/* What @uid leaves each other that has pages; nobody in particular leaves nothing. */
static uint32_t left_to_others(const struct kvcache *c, uid_t uid)
{
	uint32_t n_users = 1;

	if (uid == KVCACHE_NOBODY)
		return 0;
	for (uint32_t i = 0; i < c->n_owners; i++)
		n_users += c->owners[i].n_pages > 0 && c->owners[i].uid != uid &&
			   c->owners[i].uid != CHAIN_SHARED_UID;
	return shares_of(c->options.n_pages, n_users, c->min_percent, 100).min_pages;
}

static double worth(const struct prefix_node *node, uint64_t now_us)
{
	const double age_s = now_us > node->used_us ? (double)(now_us - node->used_us) / 1e6 : 0;

	return (double)node->n_tokens * (1.0 + node->hits) / (1.0 + age_s);
}

static bool may_go(const struct kvcache *c, const struct prefix_node *node)
{
	return node && node->n_paged_children == 0 && node->trust != PREFIX_PENDING &&
	       kvpool_holders(c->pool, node->page) == 0;
}

/* Whose page goes first. */
struct place {
	struct prefix_node *node;
	enum { NOBODYS, USERS, MARKED } whose; /* nobody finds what is marked no more */
	uint32_t n_pages;		       /* of its uid */
	double worth;
};

static bool goes_before(const struct place *a, const struct place *b)
{
	if (!b->node || a->whose != b->whose)
		return !b->node || a->whose < b->whose;
	return a->n_pages != b->n_pages ? a->n_pages > b->n_pages : a->worth < b->worth;
}

/* Of the uid that has most, among @uid's own and those of uids with more than @left. */
static struct prefix_node *cheapest(const struct kvcache *c, uid_t uid, uint32_t left,
				    uint64_t now_us)
{
	struct place best = { 0 };

	for (kv_page page = 0; page < c->options.n_pages; page++) {
		struct prefix_node *node = c->by_page[page];
		struct place is = { .node = node, .whose = USERS };

		if (!may_go(c, node))
			continue;
		if (node->uid == CHAIN_SHARED_UID)
			is.whose = shared_is_marked(c, node) ? MARKED : NOBODYS;
		is.n_pages = best.node && node->uid == best.node->uid ? best.n_pages
								      : pages_of(c, node->uid);
		is.worth = worth(node, now_us);
		if (is.whose == MARKED && left > 0)
			continue;
		if (is.whose == USERS && node->uid != uid && is.n_pages <= left)
			continue;
		if (goes_before(&is, &best))
			best = is;
	}
	return best.node;
}

void evict_lost(struct kvcache *c)
{
	for (kv_page page = 0; page < c->options.n_pages; page++) {
		struct prefix_node *node = c->by_page[page];

		/* leaves first, and what is before them as it becomes one */
		while (may_go(c, node) && shared_is_lost(c, node)) {
			struct prefix_node *parent = node->parent;

			kvcache_forget(c, node, PREFIX_EVICTED);
			c->counts.n_evicted++;
			node = parent->page == KV_PAGE_NONE ? NULL : parent;
		}
	}
}

/* Nodes without KV are kept for explanations; no more than some. */
static void evict_gone(struct kvcache *c)
{
	const uint32_t most = MAX(GONE_MIN, c->options.n_pages) + c->options.n_pages;
	struct prefix_node *node = prefix_next(c->prefix, NULL), *next;

	for (; node && prefix_nodes(c->prefix) > most; node = next) {
		next = prefix_next(c->prefix, node);
		if (node->page == KV_PAGE_NONE && !node->loading && LIST_EMPTY(&node->children))
			prefix_remove(c->prefix, node);
	}
}

uint32_t evict_pages(struct kvcache *c, uid_t uid, uint32_t n)
{
	const uint64_t now_us = clock_us();
	const uint32_t left = left_to_others(c, uid);
	uint32_t i;

	for (i = 0; i < n; i++) {
		struct prefix_node *node = cheapest(c, uid, left, now_us);

		if (!node)
			break;
		kvcache_forget(c, node, PREFIX_EVICTED);
		c->counts.n_evicted++;
	}
	evict_gone(c);
	return i;
}

bool evict_spares(const struct kvcache *c, uid_t uid, const struct prefix_node *node)
{
	return node->uid == CHAIN_SHARED_UID && left_to_others(c, uid) > 0 &&
	       (node->n_paged_children > 0 || shared_is_marked(c, node));
}

/* Shared pages that nobody holds, and that are spared. */
static uint32_t spared(const struct kvcache *c, uid_t uid)
{
	uint32_t n = 0;

	for (kv_page page = 0; page < c->options.n_pages; page++)
		n += c->by_page[page] && kvpool_holders(c->pool, page) == 0 &&
		     evict_spares(c, uid, c->by_page[page]);
	return n;
}

/* Pages of others that nobody holds, and that @uid may not have all the same. */
static uint32_t kept_from(const struct kvcache *c, uid_t uid)
{
	const uint32_t left = left_to_others(c, uid);
	uint32_t n = 0;

	if (left == 0)
		return 0;
	for (uint32_t i = 0; i < c->n_owners; i++) {
		const struct owner *o = &c->owners[i];
		uint32_t n_unheld = 0, n_over = o->n_pages > left ? o->n_pages - left : 0;

		if (o->uid == uid || o->n_pages == 0)
			continue;
		if (o->uid == CHAIN_SHARED_UID) {
			n += spared(c, uid);
			continue;
		}
		for (kv_page page = 0; page < c->options.n_pages; page++)
			n_unheld += c->by_page[page] && c->by_page[page]->uid == o->uid &&
				    kvpool_holders(c->pool, page) == 0;
		n += n_unheld > n_over ? n_unheld - n_over : 0;
	}
	return n;
}

uint32_t kvcache_takeable(const struct kvcache *c, uid_t uid)
{
	return kvpool_free_pages(c->pool) + kvpool_unheld_pages(c->pool) - kept_from(c, uid);
}

uint32_t kvcache_available(const struct kvcache *c, uid_t uid)
{
	return kvcache_takeable(c, uid) + kvpool_dropped_pages(c->pool);
}

void kvcache_set_least(struct kvcache *c, uint32_t percent)
{
	c->min_percent = percent;
}

/* Returns the bytes that the machine has back: those of free pages that had memory. */
static uint64_t punch_free(struct kvcache *c, uint64_t bytes)
{
	uint64_t freed = 0;

	for (kv_page page = 0; page < c->options.n_pages && freed < bytes; page++) {
		if (!kvpool_is_free(c->pool, page) || kvdir_owner(c->dir, page) == KVDIR_NOBODY ||
		    kvpool_punch(c->pool, page) < 0)
			continue;
		kvdir_punched(c->dir, page);
		freed += c->options.page_bytes;
	}
	return freed;
}

void kvcache_count_unheld(const struct kvcache *c, struct kvcache_unheld *ret)
{
	*ret = (struct kvcache_unheld){ 0 };
	for (kv_page page = 0; page < c->options.n_pages; page++) {
		const struct prefix_node *node = c->by_page[page];

		if (kvpool_is_free(c->pool, page) && kvdir_owner(c->dir, page) != KVDIR_NOBODY) {
			ret->n_pages++;
			ret->n_empty++;
		}
		if (!node || kvpool_holders(c->pool, page) > 0)
			continue;
		ret->n_pages++;
		ret->n_disk += tiers_has_written(c, node);
	}
}

uint64_t kvcache_yield(struct kvcache *c, uint64_t bytes)
{
	uint64_t freed = punch_free(c, bytes);

	while (freed < bytes && evict_pages(c, KVCACHE_NOBODY, 1) > 0)
		freed += punch_free(c, bytes - freed);
	return freed;
}
