/* Prompts that an administrator marked, and which pages they make everybody's. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/wire/ownership.h"
#include "daemon/kv/kvcache-parts.h"

static struct kv_hash shared_root(const struct kvcache *c)
{
	uint64_t fingerprint[2];

	kvdir_model(c->dir, fingerprint);
	return chain_shared_root(fingerprint, c->options.element_bytes);
}

static struct shared *copy(const struct kvcache_shared *from, uint32_t page_tokens)
{
	const uint32_t n_pages = from->n_ids / page_tokens;
	const size_t bytes = (size_t)n_pages * page_tokens * sizeof(*from->ids);
	struct shared *to = calloc(1, sizeof(*to) + bytes);

	if (!to)
		return NULL;
	to->name = strdup(from->name);
	if (!to->name) {
		free(to);
		return NULL;
	}
	to->n_ids = from->n_ids;
	to->n_pages = n_pages;
	if (bytes > 0)
		memcpy(to->ids, from->ids, bytes);
	return to;
}

static void free_list(struct shared **list, uint32_t n)
{
	for (uint32_t i = 0; list && i < n && list[i]; i++) {
		free(list[i]->name);
		free(list[i]);
	}
	free(list);
}

int kvcache_set_shared(struct kvcache *c, const struct kvcache_shared *list, uint32_t n)
{
	struct shared **copies = calloc(MAX(n, 1u), sizeof(struct shared *));

	if (!copies)
		return -ENOMEM;
	for (uint32_t i = 0; i < n; i++) {
		copies[i] = copy(&list[i], c->options.page_tokens);
		if (!copies[i]) {
			free_list(copies, n);
			return -ENOMEM;
		}
	}
	shared_free(c);
	c->shared = copies;
	c->n_shared = n;
	evict_lost(c);
	return 0;
}

void shared_free(struct kvcache *c)
{
	free_list(c->shared, c->n_shared);
	c->shared = NULL;
	c->n_shared = 0;
}

/* All whole pages of a prompt or none, so that nobody can find out word by word what it is. */
struct prefix_whose shared_whose(const struct kvcache *c, struct kv_hash root, uid_t uid,
				 const uint32_t *ids, uint32_t n)
{
	struct prefix_whose whose = { .root = root, .shared_root = shared_root(c), .uid = uid };

	for (uint32_t i = 0; i < c->n_shared; i++) {
		const struct shared *s = c->shared[i];
		const uint32_t n_ids = s->n_pages * c->options.page_tokens;

		if (s->n_pages > whose.n_shared && n_ids <= n &&
		    memcmp(ids, s->ids, n_ids * sizeof(*ids)) == 0)
			whose.n_shared = s->n_pages;
	}
	return whose;
}

bool shared_is_root(const struct kvcache *c, struct kv_hash root)
{
	return chain_equal(root, shared_root(c));
}

bool shared_may_follow(const struct kvcache *c, const struct prefix_node *parent,
		       struct kv_hash root, uid_t uid)
{
	if (chain_equal(parent->root, root))
		return parent->uid == uid;
	return parent->parent && shared_is_root(c, parent->root);
}

/* What is before it need not be compared: this decides only what goes first. */
static bool is_of(const struct kvcache *c, const struct prefix_node *node, const struct shared *s)
{
	const uint32_t page_tokens = c->options.page_tokens;

	return node->uid == CHAIN_SHARED_UID && node->depth > 0 && node->depth <= s->n_pages &&
	       memcmp(node->tokens, s->ids + (size_t)(node->depth - 1) * page_tokens,
		      page_tokens * sizeof(*s->ids)) == 0;
}

bool shared_is_marked(const struct kvcache *c, const struct prefix_node *node)
{
	for (uint32_t i = 0; i < c->n_shared; i++) {
		if (is_of(c, node, c->shared[i]))
			return true;
	}
	return false;
}

bool shared_is_lost(const struct kvcache *c, const struct prefix_node *node)
{
	const struct prefix_node *last = node; /* the marked prompt's last page before it */

	while (last && last->uid != CHAIN_SHARED_UID)
		last = last->parent;
	if (!last || last == node)
		return last && !shared_is_marked(c, node);
	for (uint32_t i = 0; i < c->n_shared; i++) {
		if (last->depth == c->shared[i]->n_pages && is_of(c, last, c->shared[i]))
			return false;
	}
	return true;
}

bool kvcache_shared_at(const struct kvcache *c, uint32_t i, struct kvcache_shared_state *ret)
{
	const struct kv_hash root = shared_root(c);
	struct prefix_whose whose = { .root = root, .shared_root = root };
	struct tiers_found found;
	struct prefix_match m;
	const struct shared *s;
	uint32_t n;

	if (i >= c->n_shared)
		return false;
	s = c->shared[i];
	n = s->n_pages * c->options.page_tokens;
	whose.n_shared = s->n_pages;
	prefix_match(c->prefix, &whose, s->ids, n, &m);
	*ret = (struct kvcache_shared_state){
		.name = s->name,
		.n_tokens = s->n_ids,
		.n_pages = s->n_pages,
		.n_arena = m.n_pages,
	};
	n -= m.n_pages * c->options.page_tokens;
	tiers_look(c, &whose, &m, s->ids + (size_t)m.n_pages * c->options.page_tokens, n, &found);
	ret->n_disk = found.n_pages;
	return true;
}
