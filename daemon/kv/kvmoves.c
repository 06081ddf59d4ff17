/* Moves wait, are under way, and end: first in, first out. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/wire/ownership.h"
#include "daemon/kv/kvcache-parts.h"

static struct move *push(struct kvcache *c, enum move_purpose purpose, struct step_move order,
			 const uint32_t *tokens, uint32_t n_tokens)
{
	struct move *m = calloc(1, sizeof(*m) + n_tokens * sizeof(*tokens));

	if (!m)
		return NULL;
	m->purpose = purpose;
	m->order = order;
	m->n_tokens = n_tokens;
	if (n_tokens > 0)
		memcpy(m->tokens, tokens, n_tokens * sizeof(*tokens));
	TAILQ_INSERT_TAIL(&c->waiting, m, link);
	return m;
}

int kvmoves_clear(struct kvcache *c, kv_page page, uid_t uid)
{
	const struct step_move order = { STEP_NO_PAGE, page, c->options.page_tokens, 0 };
	struct move *m = push(c, MOVE_CLEAR, order, NULL, 0);

	if (!m)
		return -ENOMEM;
	m->uid = uid;
	kvcache_hold_page(c, page);
	return 0;
}

int kvmoves_copy(struct kvcache *c, kv_page from, kv_page to, uint32_t n_tokens)
{
	const struct step_move order = { from, to, n_tokens, 0 };

	if (!push(c, MOVE_COPY, order, NULL, 0))
		return -ENOMEM;
	kvcache_hold_page(c, from);
	/* this one too: its turn may end before this is done, and another get the page */
	kvcache_hold_page(c, to);
	return 0;
}

int kvmoves_check(struct kvcache *c, struct prefix_node *node)
{
	const struct step_move order = { node->page, node->page, node->n_tokens, STEP_MOVE_CHECK };
	struct move *m = push(c, MOVE_CHECK, order, NULL, 0);

	if (!m)
		return -ENOMEM;
	m->hash = node->hash;
	kvcache_hold_page(c, node->page);
	node->trust = PREFIX_PENDING;
	return 0;
}

static void queue_seal(struct kvcache *c, const struct move *what, kv_page page,
		       const uint32_t *tokens, uint32_t n_tokens)
{
	const struct step_move order = { page, page, n_tokens, 0 };
	struct move *m = push(c, MOVE_SEAL, order, tokens, n_tokens);

	if (!m)
		return; /* then it will not be found */
	m->uid = what->uid;
	m->passing = what->passing;
	m->root = what->root;
	m->parent = what->parent;
	m->hash = what->hash;
	kvcache_hold_page(c, page);
}

void kvcache_seal(struct kvcache *c, struct kv_hash root, uid_t uid, const uint32_t *ids,
		  uint32_t n_ids, const kv_page *table, uint32_t n_kv, enum kvcache_tail tail,
		  struct kvcache_chain *chain)
{
	const uint32_t page_tokens = c->options.page_tokens;
	struct prefix_whose whose = shared_whose(c, root, uid, ids,
						 chain->n_pages == 0 ? n_ids : 0);
	struct move what = { 0 };
	uint32_t left;

	/* whose the pages of a text are is decided once */
	if (chain->n_pages == 0) {
		chain->n_shared = whose.n_shared;
		chain->hash = prefix_root(&whose, 0);
	}
	whose.n_shared = chain->n_shared;
	for (; chain->n_pages < n_kv / page_tokens; chain->n_pages++) {
		const uint32_t *tokens = ids + (size_t)chain->n_pages * page_tokens;
		const kv_page page = table[chain->n_pages];

		what.parent = chain->hash;
		what.root = prefix_root(&whose, chain->n_pages);
		what.uid = prefix_uid(&whose, chain->n_pages);
		what.hash = chain->hash = chain_next(what.root, chain->hash, tokens, page_tokens);
		if (!c->by_page[page])
			queue_seal(c, &what, page, tokens, page_tokens);
	}
	left = n_kv % page_tokens;
	if (tail == KVCACHE_TAIL_GROWS || left == 0 || c->by_page[table[chain->n_pages]])
		return;
	what.parent = chain->hash;
	ids += (size_t)chain->n_pages * page_tokens;
	what.root = root;
	what.uid = uid;
	what.hash = chain_next(root, chain->hash, ids, left);
	what.passing = tail == KVCACHE_TAIL_RESTS;
	queue_seal(c, &what, table[chain->n_pages], ids, left);
}

/* Whether all of @a's tokens are the beginning of @b's. */
static bool begins(const struct prefix_node *a, const struct prefix_node *b)
{
	return a->n_tokens <= b->n_tokens &&
	       memcmp(a->tokens, b->tokens, a->n_tokens * sizeof(*a->tokens)) == 0;
}

/* What a longer page of the same namespace holds too need not be kept. Returns false if the longer one was there before @node. */
static bool supersede(struct kvcache *c, struct prefix_node *node)
{
	struct prefix_node *other, *next;

	for (other = LIST_FIRST(&node->parent->children); other; other = next) {
		next = LIST_NEXT(other, sibling);
		if (other == node || other->page == KV_PAGE_NONE ||
		    !chain_equal(other->root, node->root))
			continue;
		if (begins(node, other))
			return false;
		if (!begins(other, node) || kvpool_holders(c->pool, other->page) > 0)
			continue;
		kvcache_forget(c, other, PREFIX_EVICTED);
		if (LIST_EMPTY(&other->children))
			prefix_remove(c->prefix, other);
	}
	return true;
}

/* A turn ended on what one that went on had left there. */
static void note_rest(struct kvcache *c, struct prefix_node *node, const struct move *m)
{
	if (!node || node->page == KV_PAGE_NONE || node->loading || !node->passing || m->passing)
		return;
	node->passing = false;
	tiers_write(c, node);
}

static void sealed(struct kvcache *c, const struct move *m, const uint64_t sum[2])
{
	const kv_page page = m->order.to;
	struct prefix_node *parent = kvcache_parent(c, m->root, m->uid, m->parent);
	struct prefix_node *node = NULL;

	if (parent)
		node = prefix_add(c->prefix, parent, m->root, m->uid, m->hash, m->tokens,
				  m->n_tokens);
	if (!node || c->by_page[page]) {
		note_rest(c, node, m);
		return; /* what is before it was given up */
	}
	/* this is there; what is being read may yet prove damaged */
	if (node->loading)
		kvcache_forget(c, node, PREFIX_EVICTED);
	if (node->page != KV_PAGE_NONE) {
		note_rest(c, node, m);
		return; /* another turn was first */
	}
	if (!supersede(c, node) || kvcache_own(c, node, page) < 0) {
		if (LIST_EMPTY(&node->children))
			prefix_remove(c->prefix, node);
		return;
	}
	node->passing = m->passing;
	kvcache_note_sealed(c, node, sum);
	kvpool_keep(c->pool, page);
	kvpool_give(c->pool, page, m->uid);
	c->counts.n_sealed++;
	tiers_write(c, node);
}

static void checked(struct kvcache *c, const struct move *m, const uint64_t sum[2])
{
	struct prefix_node *node = c->by_page[m->order.to];

	if (!node || !chain_equal(node->hash, m->hash))
		return;
	if (memcmp(node->sum, sum, sizeof(node->sum)) == 0) {
		node->trust = PREFIX_CHECKED;
		return;
	}
	c->counts.n_damaged++;
	kvcache_forget(c, node, PREFIX_DAMAGED);
}

static void end(struct kvcache *c, struct move *m)
{
	if (m->purpose == MOVE_COPY)
		kvcache_drop(c, &m->order.from, 1);
	kvcache_drop(c, &m->order.to, 1);
	free(m);
}

uint32_t kvcache_moves(struct kvcache *c, struct step_move *ret, uint32_t max)
{
	struct move *m;
	uint32_t n = 0;

	while (n < max && (m = TAILQ_FIRST(&c->waiting))) {
		TAILQ_REMOVE(&c->waiting, m, link);
		TAILQ_INSERT_TAIL(&c->under_way, m, link);
		ret[n++] = m->order;
	}
	return n;
}

void kvcache_moved(struct kvcache *c, const struct step_moved *sums, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		struct move *m = TAILQ_FIRST(&c->under_way);

		if (!m)
			return;
		TAILQ_REMOVE(&c->under_way, m, link);
		if (m->purpose == MOVE_SEAL)
			sealed(c, m, sums[i].sum);
		else if (m->purpose == MOVE_CHECK)
			checked(c, m, sums[i].sum);
		else if (m->purpose == MOVE_CLEAR)
			kvdir_cleared(c->dir, m->order.to, m->uid);
		c->counts.n_cleared += m->purpose == MOVE_CLEAR;
		end(c, m);
	}
	tiers_moved(c);
}

void kvmoves_free(struct kvcache *c)
{
	struct move *m;

	TAILQ_CONCAT(&c->under_way, &c->waiting, link);
	while ((m = TAILQ_FIRST(&c->under_way))) {
		TAILQ_REMOVE(&c->under_way, m, link);
		free(m);
	}
}

/* Ends what waits or is under way, but for seals if @keep_seals: those wait again, in their order. */
static void end_all(struct kvcache *c, bool keep_seals)
{
	struct moves all = TAILQ_HEAD_INITIALIZER(all);
	struct move *m;

	TAILQ_CONCAT(&all, &c->under_way, link);
	TAILQ_CONCAT(&all, &c->waiting, link);
	while ((m = TAILQ_FIRST(&all))) {
		TAILQ_REMOVE(&all, m, link);
		if (keep_seals && m->purpose == MOVE_SEAL)
			TAILQ_INSERT_TAIL(&c->waiting, m, link);
		else
			end(c, m);
	}
}

void kvcache_executor_lost(struct kvcache *c, bool in_arena)
{
	/* before holds end: who waits for its sum cannot go */
	for (kv_page page = 0; page < c->options.n_pages; page++) {
		if (c->by_page[page] && !c->by_page[page]->loading)
			c->by_page[page]->trust = PREFIX_UNCHECKED;
	}
	/* in the arena it is whole: it gave the results of the steps that wrote it */
	end_all(c, in_arena);
	tiers_moved(c);
}

void kvmoves_end(struct kvcache *c)
{
	end_all(c, false);
}

/* Whether a page behind @parent is being sealed that begins as @ids do. */
static bool is_sealing_behind(const struct moves *moves, struct kv_hash root, struct kv_hash parent,
			      uint32_t id)
{
	const struct move *m;

	TAILQ_FOREACH(m, moves, link) {
		if (m->purpose == MOVE_SEAL && chain_equal(m->root, root) &&
		    chain_equal(m->parent, parent) && m->tokens[0] == id)
			return true;
	}
	return false;
}

static bool any_seals(const struct moves *moves, const struct prefix_whose *whose)
{
	const struct move *m;

	TAILQ_FOREACH(m, moves, link) {
		if (m->purpose == MOVE_SEAL &&
		    (chain_equal(m->root, whose->root) ||
		     (whose->n_shared > 0 && chain_equal(m->root, whose->shared_root))))
			return true;
	}
	return false;
}

bool kvcache_is_sealing(const struct kvcache *c, struct kv_hash root, uid_t uid,
			const uint32_t *ids, uint32_t n)
{
	const uint32_t page_tokens = c->options.page_tokens;
	const struct prefix_whose whose = shared_whose(c, root, uid, ids, n);
	struct kv_hash at = prefix_root(&whose, 0);

	if (!any_seals(&c->waiting, &whose) && !any_seals(&c->under_way, &whose))
		return false;
	for (uint32_t i = 0; n > 0; i++, ids += page_tokens, n -= page_tokens) {
		const struct kv_hash page_root = prefix_root(&whose, i);

		if (is_sealing_behind(&c->waiting, page_root, at, ids[0]) ||
		    is_sealing_behind(&c->under_way, page_root, at, ids[0]))
			return true;
		if (n < page_tokens)
			return false;
		at = chain_next(page_root, at, ids, page_tokens);
	}
	return false;
}

bool kvcache_has_orders(const struct kvcache *c)
{
	return !TAILQ_EMPTY(&c->waiting) || !TAILQ_EMPTY(&c->under_way);
}

bool kvcache_is_moving(const struct kvcache *c)
{
	return kvcache_has_orders(c) || c->n_transfers > 0;
}
