/* Nodes are found by their hash, which folds in all that is before them; tokens decide. */
#include "daemon/kv/prefix.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/wire/ownership.h"

LIST_HEAD(bucket, prefix_node);
TAILQ_HEAD(ages, prefix_node);

struct prefix {
	uint32_t page_tokens, n_nodes;
	uint32_t n_buckets; /* a power of two */
	struct ages ages;
	struct prefix_children spaces;
	struct bucket buckets[];
};

int prefix_new(uint32_t page_tokens, uint32_t n_expected, struct prefix **ret)
{
	uint32_t n_buckets = 1024;
	struct prefix *p;

	while (n_buckets < n_expected && n_buckets < 1u << 24)
		n_buckets *= 2;
	p = calloc(1, sizeof(*p) + n_buckets * sizeof(*p->buckets));
	if (!p)
		return -ENOMEM;
	p->page_tokens = page_tokens;
	p->n_buckets = n_buckets;
	TAILQ_INIT(&p->ages);
	LIST_INIT(&p->spaces);
	*ret = p;
	return 0;
}

static void unlink_node(struct prefix *p, struct prefix_node *node)
{
	LIST_REMOVE(node, bucket);
	LIST_REMOVE(node, sibling);
	TAILQ_REMOVE(&p->ages, node, age);
	p->n_nodes--;
	free(node);
}

struct prefix *prefix_free(struct prefix *p)
{
	struct prefix_node *node;

	if (!p)
		return NULL;
	/* children come after their parents */
	while ((node = TAILQ_LAST(&p->ages, ages)))
		unlink_node(p, node);
	free(p);
	return NULL;
}

static struct bucket *bucket_of(const struct prefix *p, struct kv_hash hash)
{
	return (struct bucket *)&p->buckets[hash.lo & (p->n_buckets - 1)];
}

struct prefix_node *prefix_find(const struct prefix *p, struct kv_hash hash)
{
	struct prefix_node *node;

	LIST_FOREACH(node, bucket_of(p, hash), bucket)
	{
		if (chain_equal(node->hash, hash))
			return node;
	}
	return NULL;
}

static struct prefix_node *make(struct prefix *p, struct kv_hash hash, const uint32_t *tokens,
				uint32_t n_tokens)
{
	struct prefix_node *node = calloc(1, sizeof(*node) + n_tokens * sizeof(*tokens));

	if (!node)
		return NULL;
	node->hash = hash;
	node->n_tokens = n_tokens;
	node->page = KV_PAGE_NONE;
	node->gone = PREFIX_EVICTED;
	memcpy(node->tokens, tokens, n_tokens * sizeof(*tokens));
	LIST_INSERT_HEAD(bucket_of(p, hash), node, bucket);
	TAILQ_INSERT_TAIL(&p->ages, node, age);
	p->n_nodes++;
	return node;
}

struct prefix_node *prefix_space(struct prefix *p, struct kv_hash root, uint32_t uid)
{
	static const uint32_t none[1];
	struct prefix_node *node = prefix_find(p, root);

	if (node)
		return node->parent ? NULL : node;
	node = make(p, root, none, 0);
	if (!node)
		return NULL;
	node->root = root;
	node->uid = uid;
	LIST_INSERT_HEAD(&p->spaces, node, sibling);
	return node;
}

struct prefix_node *prefix_next_space(const struct prefix *p, const struct prefix_node *after)
{
	return after ? LIST_NEXT(after, sibling) : LIST_FIRST(&p->spaces);
}

static bool is_child(const struct prefix_node *node, const struct prefix_node *parent,
		     struct kv_hash root, const uint32_t *tokens, uint32_t n_tokens)
{
	return node->parent == parent && chain_equal(node->root, root) &&
	       node->n_tokens == n_tokens &&
	       memcmp(node->tokens, tokens, n_tokens * sizeof(*tokens)) == 0;
}

struct prefix_node *prefix_add(struct prefix *p, struct prefix_node *parent, struct kv_hash root,
			       uint32_t uid, struct kv_hash hash, const uint32_t *tokens,
			       uint32_t n_tokens)
{
	struct prefix_node *node = prefix_find(p, hash);

	if (node)
		return is_child(node, parent, root, tokens, n_tokens) ? node : NULL;
	node = make(p, hash, tokens, n_tokens);
	if (!node)
		return NULL;
	node->parent = parent;
	node->root = root;
	node->uid = uid;
	node->depth = parent->depth + 1;
	LIST_INSERT_HEAD(&parent->children, node, sibling);
	return node;
}

void prefix_set_page(struct prefix *p, struct prefix_node *node, kv_page page)
{
	(void)p;
	assert(node->parent);
	node->parent->n_paged_children += (page != KV_PAGE_NONE) - (node->page != KV_PAGE_NONE);
	node->page = page;
	node->gone = page == KV_PAGE_NONE ? PREFIX_EVICTED : PREFIX_THERE;
}

void prefix_remove(struct prefix *p, struct prefix_node *node)
{
	struct prefix_node *at = node, *next;

	/* down to a leaf, which goes, and up again: no recursion on what a client made deep */
	for (;;) {
		while (!LIST_EMPTY(&at->children))
			at = LIST_FIRST(&at->children);
		assert(at->page == KV_PAGE_NONE);
		next = at == node ? NULL : at->parent;
		unlink_node(p, at);
		if (!next)
			return;
		at = next;
	}
}

static bool has_kv(const struct prefix_node *node)
{
	return node->page != KV_PAGE_NONE;
}

uint32_t prefix_common(const struct prefix_node *node, const uint32_t *ids, uint32_t n)
{
	const uint32_t most = MIN(node->n_tokens, n);
	uint32_t i = 0;

	while (i < most && node->tokens[i] == ids[i])
		i++;
	return i;
}

struct prefix_node *prefix_next_page(const struct prefix *p, const struct prefix_node *last,
				     struct kv_hash root, const uint32_t *ids)
{
	struct prefix_node *node;

	node = prefix_find(p, chain_next(root, last->hash, ids, p->page_tokens));
	return node && is_child(node, last, root, ids, p->page_tokens) ? node : NULL;
}

/* The child in the namespace @root that has most of what follows. */
static void match_part(struct prefix_match *m, struct kv_hash root, const uint32_t *ids, uint32_t n)
{
	struct prefix_node *node;

	LIST_FOREACH(node, &m->last->children, sibling)
	{
		const bool may = has_kv(node) && chain_equal(node->root, root);
		const uint32_t k = may ? prefix_common(node, ids, n) : 0;

		if (k > m->part_tokens) {
			m->part = node;
			m->part_tokens = k;
		}
	}
}

void prefix_match(const struct prefix *p, const struct prefix_whose *whose, const uint32_t *ids,
		  uint32_t n, struct prefix_match *ret)
{
	struct prefix_node *node = prefix_find(p, prefix_root(whose, 0));

	*ret = (struct prefix_match){ 0 };
	if (!node || node->parent)
		return;
	ret->last = node;
	while (n >= p->page_tokens) {
		node = prefix_next_page(p, ret->last, prefix_root(whose, ret->n_pages), ids);
		if (!node)
			break;
		if (!has_kv(node)) {
			ret->gone = node;
			break;
		}
		ret->last = node;
		ret->n_pages++;
		ids += p->page_tokens;
		n -= p->page_tokens;
	}
	match_part(ret, whose->root, ids, n);
}

static struct prefix_node *shared_or_next(struct prefix_node *node)
{
	while (node && node->uid != CHAIN_SHARED_UID)
		node = LIST_NEXT(node, sibling);
	return node;
}

/* Down first: what is behind a node of another namespace is not shared either. */
struct prefix_node *prefix_next_shared(const struct prefix *p, const struct prefix_node *after)
{
	struct prefix_node *next = shared_or_next(after ? LIST_FIRST(&after->children)
							: LIST_FIRST(&p->spaces));

	for (; !next && after; after = after->parent)
		next = shared_or_next(LIST_NEXT(after, sibling));
	return next;
}

struct prefix_node *prefix_next(const struct prefix *p, const struct prefix_node *after)
{
	return after ? TAILQ_NEXT(after, age) : TAILQ_FIRST(&p->ages);
}

uint32_t prefix_nodes(const struct prefix *p)
{
	return p->n_nodes;
}
