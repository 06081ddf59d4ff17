/*
 * Who loses a page: the uid that has most sealed, and of its pages the one
 * that costs least to lose: few tokens, long not used, seldom found. Only
 * leaves go, so that what stays can be reached; never a page that is held, and
 * never one of another uid that has no more than what is its by right. What a
 * marked prompt has in the arena is everybody's: it goes last of all, and only
 * where nothing is left to others either.
 */
#include "client/wire/ownership.h"
#include "daemon/kv/kvcache-parts.h"
#include "daemon/kv/shares.h"
#include "daemon/kv/value.h"

#define GONE_MIN 1024u			    /* nodes kept for explanations at least */
#define HALF_LIFE_US (10 * 60 * 1000000ull) /* of what a page is worth */

struct owner *evict_owner(struct kvcache *c, uid_t uid)
{
	for (uint32_t i = 0; i < c->n_owners; i++) {
		if (c->owners[i].uid == uid)
			return &c->owners[i];
	}
	return NULL;
}

uint32_t kvcache_users(const struct kvcache *c, uid_t uid)
{
	uint32_t n = 1;

	for (uint32_t i = 0; i < c->n_owners; i++)
		n += c->owners[i].n_pages > 0 && c->owners[i].uid != uid &&
		     c->owners[i].uid != CHAIN_SHARED_UID;
	return n;
}

static uint32_t marked_pages(const struct kvcache *c)
{
	for (uint32_t i = 0; i < c->n_owners; i++) {
		if (c->owners[i].uid == CHAIN_SHARED_UID)
			return c->owners[i].n_pages;
	}
	return 0;
}

/* What @uid leaves each other that has pages; nobody in particular leaves nothing. */
static uint32_t left_to_others(const struct kvcache *c, uid_t uid)
{
	uint32_t room = c->room_pages;

	if (uid == KVCACHE_NOBODY)
		return 0;
	/* what others are left may continue these, and then they cannot go either */
	if (room > 0)
		room = MIN(room + marked_pages(c), c->options.n_pages);
	return shares_of(c->options.n_pages, kvcache_users(c, uid), room, c->min_percent, 100)
		.min_pages;
}

/* Whether @uid takes nothing of a marked prompt. */
static bool spares_marked(const struct kvcache *c, uid_t uid)
{
	return c->room_pages == 0 && left_to_others(c, uid) > 0;
}

/* What is shared and marked no more is of no use to anybody. */
static double worth(const struct kvcache *c, const struct prefix_node *node)
{
	if (node->uid == CHAIN_SHARED_UID && !shared_is_marked(c, node))
		return VALUE_NONE;
	return value_of(node->n_tokens, node->hits, node->used_us, HALF_LIFE_US);
}

static bool may_go(const struct kvcache *c, const struct prefix_node *node)
{
	return node && node->n_paged_children == 0 && node->trust != PREFIX_PENDING &&
	       kvpool_holders(c->pool, node->page) == 0;
}

void evict_offer(struct kvcache *c, struct prefix_node *node)
{
	if (node->page == KV_PAGE_NONE || node->cheap.is_in || !may_go(c, node))
		return;
	node->cheap.value = worth(c, node);
	cheapest_add(&evict_owner(c, node->uid)->may_go, &node->cheap);
}

void evict_withdraw(struct kvcache *c, struct prefix_node *node)
{
	if (node->cheap.is_in)
		cheapest_remove(&evict_owner(c, node->uid)->may_go, &node->cheap);
}

/*
 * What is first may have been held meanwhile, or continued: then it is offered
 * again when that ends. Or it was used, and is worth more than it was.
 */
static struct prefix_node *cheapest_of(struct kvcache *c, struct owner *owner)
{
	for (;;) {
		struct cheapest_link *first = owner->may_go.first;
		struct prefix_node *node;
		double value;

		if (!first)
			return NULL;
		c->counts.n_weighed++;
		node = (void *)((char *)first - offsetof(struct prefix_node, cheap));
		value = worth(c, node);
		if (may_go(c, node) && value <= first->value)
			return node;
		cheapest_remove(&owner->may_go, first);
		evict_offer(c, node);
	}
}

/* Whose page goes first. */
struct place {
	struct prefix_node *node;
	enum { NOBODYS, USERS, MARKED } whose; /* nobody finds what is marked no more */
	uint32_t n_pages;		       /* of its uid */
};

static bool goes_before(const struct place *a, const struct place *b)
{
	if (!b->node || a->whose != b->whose)
		return !b->node || a->whose < b->whose;
	return a->n_pages != b->n_pages ? a->n_pages > b->n_pages
					: a->node->cheap.value < b->node->cheap.value;
}

/* Of the uid that has most, among @uid's own and those of uids with more than @left. */
static struct prefix_node *cheapest(struct kvcache *c, uid_t uid, uint32_t left)
{
	struct place best = { 0 };

	for (uint32_t i = 0; i < c->n_owners; i++) {
		struct owner *owner = &c->owners[i];
		struct place is = { .whose = USERS, .n_pages = owner->n_pages };

		if (owner->uid != CHAIN_SHARED_UID && owner->uid != uid && owner->n_pages <= left)
			continue;
		is.node = cheapest_of(c, owner);
		if (!is.node)
			continue;
		if (owner->uid == CHAIN_SHARED_UID)
			is.whose = shared_is_marked(c, is.node) ? MARKED : NOBODYS;
		if (is.whose == MARKED && spares_marked(c, uid))
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

		if (node && node->uid == CHAIN_SHARED_UID) {
			evict_withdraw(c, node); /* it may be worth something else now */
			evict_offer(c, node);
		}
		/* leaves first, and what is before them as it becomes one */
		while (may_go(c, node) && shared_is_lost(c, node)) {
			struct prefix_node *parent = node->parent;

			kvcache_forget(c, node, PREFIX_EVICTED);
			c->counts.n_evicted++;
			node = parent->page == KV_PAGE_NONE ? NULL : parent;
		}
	}
}

/* Nodes without KV are kept for explanations; no more than some. Many go at once: to find them takes a while. */
static void evict_gone(struct kvcache *c)
{
	const uint32_t most = MAX(GONE_MIN, c->options.n_pages) + c->options.n_pages;
	struct prefix_node *node, *next;

	if (prefix_nodes(c->prefix) <= most + most / 8)
		return;
	for (node = prefix_next(c->prefix, NULL); node && prefix_nodes(c->prefix) > most;
	     node = next) {
		next = prefix_next(c->prefix, node);
		if (node->page == KV_PAGE_NONE && !node->loading && LIST_EMPTY(&node->children))
			prefix_remove(c->prefix, node);
	}
}

uint32_t evict_pages(struct kvcache *c, uid_t uid, uint32_t n)
{
	const uint32_t left = left_to_others(c, uid);
	uint32_t i;

	for (i = 0; i < n; i++) {
		struct prefix_node *node = cheapest(c, uid, left);

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
	return node->uid == CHAIN_SHARED_UID && spares_marked(c, uid) &&
	       (node->n_paged_children > 0 || shared_is_marked(c, node));
}

/* Shared pages that nobody holds, and that are spared. */
static uint32_t spared(const struct kvcache *c, uid_t uid)
{
	const struct prefix_node *node = prefix_next_shared(c->prefix, NULL);
	uint32_t n = 0;

	for (; node; node = prefix_next_shared(c->prefix, node))
		n += node->page != KV_PAGE_NONE && kvpool_holders(c->pool, node->page) == 0 &&
		     evict_spares(c, uid, node);
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
		const uint32_t n_over = o->n_pages > left ? o->n_pages - left : 0;

		if (o->uid == uid || o->n_unheld == 0)
			continue;
		if (o->uid == CHAIN_SHARED_UID)
			n += spared(c, uid);
		else
			n += o->n_unheld > n_over ? o->n_unheld - n_over : 0;
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
	c->room_pages = 0;
}

void kvcache_set_room(struct kvcache *c, uint32_t n_pages)
{
	c->room_pages = MIN(n_pages, c->options.n_pages);
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
	const uint64_t page_bytes = c->options.page_bytes;
	uint64_t freed = punch_free(c, bytes), n;

	/* what goes may be busy still: then others go for it */
	while (freed < bytes) {
		n = MIN((bytes - freed - 1) / page_bytes + 1, (uint64_t)c->options.n_pages);
		if (evict_pages(c, KVCACHE_NOBODY, (uint32_t)n) == 0)
			break;
		freed += punch_free(c, bytes - freed);
	}
	return freed;
}
