/* A walk along what was ever seen of a text, whether its KV is still there or not. */
#include "daemon/kv/miss.h"

#include <string.h>

#include "client/wire/ownership.h"
#include "daemon/kv/kvcache-parts.h"

#define LABELS_MAX 64 /* of a uid, that are looked at */

/*
 * next: what follows has most in common with it, n_common tokens of n_tokens; NULL: nothing follows.
 * gone: enum prefix_gone of the first on the way without KV; PREFIX_THERE: all have it.
 */
struct seen {
	uint32_t n_tokens, n_there, n_common; /* there: before the first that is gone */
	uint32_t gone, n_pages;		      /* pages: whole ones */
	struct kv_hash last;		      /* of these */
	const struct prefix_node *next;
};

/* Behind shared pages there are those of other users, too: they are not looked at. */
static void walk(const struct kvcache *c, const struct prefix_whose *whose,
		 const struct prefix_node *space, const uint32_t *ids, uint32_t n, struct seen *ret)
{
	const struct prefix_node *last = space, *node;

	*ret = (struct seen){ .last = space->hash };
	while (n - ret->n_tokens >= c->options.page_tokens) {
		node = prefix_next_page(c->prefix, last, prefix_root(whose, last->depth),
					ids + ret->n_tokens);
		if (!node)
			break;
		if (!ret->gone && node->page == KV_PAGE_NONE)
			ret->gone = node->gone;
		ret->n_tokens += node->n_tokens;
		ret->n_there += ret->gone ? 0 : node->n_tokens;
		ret->n_pages++;
		ret->last = node->hash;
		last = node;
	}
	LIST_FOREACH(node, &last->children, sibling)
	{
		const uint32_t k = prefix_common(node, ids + ret->n_tokens, n - ret->n_tokens);

		if (!chain_equal(node->root, whose->root))
			continue;
		if (!ret->next || k > ret->n_common) {
			ret->next = node;
			ret->n_common = k;
		}
	}
	ret->n_tokens += ret->n_common;
	if (!ret->gone && ret->n_common > 0 && ret->next->page == KV_PAGE_NONE)
		ret->gone = ret->next->gone;
	ret->n_there += ret->gone ? 0 : ret->n_common;
}

static void walk_root(const struct kvcache *c, const struct prefix_whose *whose,
		      const uint32_t *ids, uint32_t n, struct seen *ret)
{
	const struct prefix_node *space = prefix_find(c->prefix, prefix_root(whose, 0));

	*ret = (struct seen){ .last = prefix_root(whose, 0) };
	if (space && !space->parent)
		walk(c, whose, space, ids, n, ret);
}

/* What an earlier broker knew of the pages behind those that this one knows. */
static void recall(const struct kvcache *c, const struct prefix_whose *whose, const uint32_t *ids,
		   uint32_t n, struct seen *seen)
{
	const uint32_t page_tokens = c->options.page_tokens;
	uint32_t n_tokens = page_tokens, gone = 0;

	if (seen->gone)
		return;
	while (n_tokens == page_tokens && seen->n_pages * page_tokens < n) {
		const uint32_t at = seen->n_pages * page_tokens;
		const struct kv_hash root = prefix_root(whose, seen->n_pages);

		n_tokens = causes_find(c->causes, root, seen->last, ids + at,
				       MIN(n - at, page_tokens), MAX(seen->n_tokens, at) - at,
				       &gone);
		if (n_tokens == 0)
			return;
		if (!seen->gone)
			seen->gone = gone;
		seen->n_tokens = at + n_tokens;
		seen->n_pages++;
		if (n_tokens == page_tokens)
			seen->last = chain_next(root, seen->last, ids + at, page_tokens);
	}
}

/* The most that was known of the text under one of the models before. */
static uint32_t seen_by_models(const struct kvcache *c, uid_t uid, const char *label,
			       struct prefix_whose whose, const uint32_t *ids, uint32_t n)
{
	uint32_t most = 0;
	uint64_t model[2];
	struct seen seen;

	for (uint32_t i = 0; causes_model(c->causes, i, model); i++) {
		whose.root = chain_root(model, c->options.element_bytes, uid, label);
		whose.shared_root = chain_shared_root(model, c->options.element_bytes);
		walk_root(c, &whose, ids, n, &seen);
		recall(c, &whose, ids, n, &seen);
		most = MAX(most, seen.n_tokens);
	}
	return most;
}

static uint32_t seen_by_labels(const struct kvcache *c, uid_t uid, struct kv_hash own,
			       const uint32_t *ids, uint32_t n)
{
	const struct prefix_node *space = NULL;
	uint32_t most = 0, n_labels = 0;
	struct seen seen;

	while ((space = prefix_next_space(c->prefix, space)) && n_labels < LABELS_MAX) {
		if (space->uid != uid || chain_equal(space->root, own))
			continue;
		n_labels++;
		walk(c, &(struct prefix_whose){ .root = space->root }, space, ids, n, &seen);
		/* what is gone there, as after a change of the model, would not have been found either */
		most = MAX(most, seen.n_there);
	}
	return most;
}

/* What stands behind the tokens in common, down along the youngest. */
static void copy_other(const struct seen *seen, struct kvcache_miss *ret)
{
	const struct prefix_node *node = seen->next;
	uint32_t i = seen->n_common;

	for (; node && ret->n_ids < KV_MISS_IDS; node = LIST_FIRST(&node->children), i = 0) {
		for (; i < node->n_tokens && ret->n_ids < KV_MISS_IDS; i++)
			ret->ids[ret->n_ids++] = node->tokens[i];
	}
}

static enum kv_miss_cause cause_of_gone(const struct seen *seen)
{
	switch (seen->gone) {
	case PREFIX_THERE:
		return KV_MISS_PAGE;
	case PREFIX_DAMAGED:
		return KV_MISS_DAMAGED;
	case PREFIX_MODEL_CHANGED:
		return KV_MISS_MODEL;
	default:
		return KV_MISS_EVICTED;
	}
}

/* Whether most of what is missing had been seen there. */
static bool explains(uint32_t n_there, uint32_t n_here, uint32_t n)
{
	return n_there > n_here && n_there - n_here > (n - n_here) / 2;
}

void kvcache_explain(const struct kvcache *c, uid_t uid, const char *label, const uint32_t *ids,
		     uint32_t n, uint32_t n_found, struct kvcache_miss *ret)
{
	const struct kv_hash own = kvcache_root(c, uid, label);
	const struct prefix_whose whose = shared_whose(c, own, uid, ids, n);
	struct seen seen;

	*ret = (struct kvcache_miss){ .cause = KV_MISS_NONE, .at = n_found };
	if (n_found >= n)
		return;
	walk_root(c, &whose, ids, n, &seen);
	recall(c, &whose, ids, n, &seen);
	if (seen.n_tokens > n_found) {
		ret->cause = cause_of_gone(&seen);
	} else if (explains(seen_by_models(c, uid, label, whose, ids, n), n_found, n)) {
		ret->cause = KV_MISS_MODEL;
	} else if (explains(seen_by_labels(c, uid, own, ids, n), n_found, n)) {
		ret->cause = KV_MISS_LABEL;
	} else if (n_found == 0) {
		ret->cause = KV_MISS_NEW;
	} else if (seen.next && seen.n_common < seen.next->n_tokens) {
		ret->cause = KV_MISS_TEXT;
		copy_other(&seen, ret);
	} else {
		ret->cause = KV_MISS_END;
	}
}
