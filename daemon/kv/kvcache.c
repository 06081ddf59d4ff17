/* The cache's life, and turns that hold, take and drop pages. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "client/wire/ownership.h"
#include "daemon/base/clock.h"
#include "daemon/kv/kvcache-parts.h"

static struct owner *owner_of(struct kvcache *c, uid_t uid)
{
	struct owner *owners, *owner = evict_owner(c, uid);

	if (owner)
		return owner;
	owners = reallocarray(c->owners, c->n_owners + 1, sizeof(*owners));
	if (!owners)
		return NULL;
	c->owners = owners;
	owners[c->n_owners] = (struct owner){ .uid = uid };
	return &owners[c->n_owners++];
}

int kvcache_own(struct kvcache *c, struct prefix_node *node, kv_page page)
{
	struct owner *owner = owner_of(c, node->uid);

	if (!owner)
		return -ENOMEM;
	owner->n_pages++;
	prefix_set_page(c->prefix, node, page);
	c->by_page[page] = node;
	return 0;
}

void kvcache_note_sealed(struct kvcache *c, struct prefix_node *node, const uint64_t sum[2])
{
	struct kvdir_page entry;

	memcpy(node->sum, sum, sizeof(node->sum));
	node->trust = PREFIX_CHECKED;
	node->used_us = clock_us();
	causes_drop(c->causes, node->root, node->parent->hash, node->tokens, node->n_tokens);
	entry = (struct kvdir_page){
		.uid = node->uid,
		.n_tokens = node->n_tokens,
		.depth = node->depth,
		.hits = node->hits,
		.hash = node->hash,
		.parent = node->parent->hash,
		.root = node->root,
		.sum = { sum[0], sum[1] },
		.used_us = node->used_us,
		.tokens = node->tokens,
	};
	kvdir_seal(c->dir, node->page, &entry);
}

void kvcache_hold_page(struct kvcache *c, kv_page page)
{
	const struct prefix_node *node = c->by_page[page];

	if (node && kvpool_holders(c->pool, page) == 0)
		evict_owner(c, node->uid)->n_unheld--;
	kvpool_hold(c->pool, &page, 1);
}

void kvcache_forget(struct kvcache *c, struct prefix_node *node, enum prefix_gone why)
{
	struct owner *owner = evict_owner(c, node->uid);
	const kv_page page = node->page;

	assert(page != KV_PAGE_NONE);
	owner->n_pages--;
	owner->n_unheld -= kvpool_holders(c->pool, page) == 0;
	evict_withdraw(c, node);
	prefix_set_page(c->prefix, node, KV_PAGE_NONE);
	node->gone = why;
	node->trust = PREFIX_UNCHECKED;
	node->loading = false;
	c->by_page[page] = NULL;
	kvdir_drop(c->dir, page);
	kvpool_discard(c->pool, page);
	evict_offer(c, node->parent);
	/* what it begins with went before it, or with it */
	causes_drop(c->causes, node->root, node->parent->hash, node->tokens, node->n_tokens);
	causes_note(c->causes, node->root, node->parent->hash, node->hash, node->tokens,
		    node->n_tokens, why);
}

struct prefix_node *kvcache_parent(struct kvcache *c, struct kv_hash root, uid_t uid,
				   struct kv_hash parent)
{
	struct prefix_node *node = chain_equal(parent, root) ? prefix_space(c->prefix, root, uid)
							     : prefix_find(c->prefix, parent);

	if (!node || (node->parent && node->page == KV_PAGE_NONE) ||
	    !shared_may_follow(c, node, root, uid))
		return NULL;
	return node;
}

/* Puts an adopted page into the index; false: what is before it is not there, or it is not what it says. */
static bool restore(struct kvcache *c, kv_page page, const struct kvdir_page *p)
{
	struct prefix_node *parent, *node;

	if (!chain_equal(p->hash, chain_next(p->root, p->parent, p->tokens, p->n_tokens)))
		return false;
	parent = kvcache_parent(c, p->root, p->uid, p->parent);
	if (!parent || parent->depth + 1 != p->depth ||
	    (p->depth > 1 && parent->n_tokens != c->options.page_tokens))
		return false;
	node = prefix_add(c->prefix, parent, p->root, p->uid, p->hash, p->tokens, p->n_tokens);
	if (!node || node->page != KV_PAGE_NONE || kvcache_own(c, node, page) < 0)
		return false;
	memcpy(node->sum, p->sum, sizeof(node->sum));
	node->used_us = p->used_us;
	node->hits = p->hits;
	kvpool_restore(c->pool, p->uid, page);
	evict_owner(c, p->uid)->n_unheld++;
	evict_offer(c, node);
	return true;
}

struct by_depth {
	uint32_t depth;
	kv_page page;
};

static int compare_depth(const void *a, const void *b)
{
	const struct by_depth *x = a, *y = b;

	return x->depth < y->depth ? -1 : x->depth > y->depth;
}

/* Parents first. */
static int restore_all(struct kvcache *c)
{
	const uint32_t n_pages = c->options.n_pages;
	_cleanup_(freep) struct by_depth *sealed = calloc(n_pages, sizeof(*sealed));
	struct kvdir_page p;
	uint32_t n = 0;

	if (!sealed)
		return -ENOMEM;
	for (kv_page page = 0; page < n_pages; page++) {
		if (kvdir_get(c->dir, page, &p))
			sealed[n++] = (struct by_depth){ p.depth, page };
	}
	qsort(sealed, n, sizeof(*sealed), compare_depth);
	for (uint32_t i = 0; i < n; i++) {
		kvdir_get(c->dir, sealed[i].page, &p);
		if (restore(c, sealed[i].page, &p))
			continue;
		kvdir_drop(c->dir, sealed[i].page);
		c->counts.n_damaged++;
	}
	return 0;
}

/* 0, and what is no cache of ours is lost; or a negative errno that may pass, and nothing is lost. */
static int adopt(struct kvcache *c, struct err *ret_lost)
{
	const struct kvcache_options *o = &c->options;
	uint32_t bad = 0;
	int r;

	r = kvdir_adopt(o->dir_fd, o->n_pages, o->page_tokens, &c->dir, &bad, ret_lost);
	if (r >= 0) {
		c->options.dir_fd = -1;
		r = kvpool_adopt(o->arena_fd, o->n_pages, o->page_bytes, o->page_tokens, &c->pool,
				 ret_lost);
	}
	if (r >= 0) {
		c->options.arena_fd = -1;
		c->counts.n_damaged += bad;
		return 0;
	}
	c->dir = kvdir_free(c->dir);
	return err_may_pass(r) ? r : 0;
}

static int make(struct kvcache *c, struct err *err)
{
	const struct kvcache_options *o = &c->options;
	int r;

	r = kvpool_new(o->n_pages, o->page_bytes, o->page_tokens, &c->pool, err);
	return r < 0 ? r : kvdir_new(o->n_pages, o->page_tokens, &c->dir, err);
}

/* Without causes all works, but for explanations after a restart. */
static int make_causes(struct kvcache *c, bool adopted, struct err *err)
{
	int *fd = &c->options.causes_fd, r = 0;

	if (adopted && *fd >= 0) {
		r = causes_adopt(*fd, &c->causes, err);
		*fd = r < 0 ? *fd : -1;
	}
	if (!c->causes && !err_may_pass(r))
		causes_new(&c->causes, NULL);
	/* only now: the caller tells a new one by its number, which must not be the old one's */
	closep(fd);
	*fd = -1;
	return err_may_pass(r) ? r : 0;
}

int kvcache_new(const struct kvcache_options *options, struct kvcache **ret, struct err *ret_lost,
		struct err *err)
{
	_cleanup_(kvcache_freep) struct kvcache *c = calloc(1, sizeof(*c));
	struct err lost = { 0 };
	int r = 0;

	if (!c) {
		closep(&(int){ options->arena_fd });
		closep(&(int){ options->dir_fd });
		closep(&(int){ options->causes_fd });
		return err_set(err, -ENOMEM, "out of memory");
	}
	c->options = *options;
	TAILQ_INIT(&c->waiting);
	TAILQ_INIT(&c->under_way);
	TAILQ_INIT(&c->flushes);
	LIST_INIT(&c->carries);
	if (options->arena_fd >= 0 && options->dir_fd >= 0)
		r = adopt(c, &lost);
	/* what was not taken over is given back to the machine before as much is made again */
	closep(&c->options.arena_fd);
	closep(&c->options.dir_fd);
	c->options.arena_fd = c->options.dir_fd = -1;
	if (r < 0) {
		closep(&c->options.causes_fd);
		return err_set(err, r, "%s", lost.text);
	}
	if (ret_lost)
		*ret_lost = lost;
	r = make_causes(c, c->pool != NULL, err);
	if (r >= 0 && !c->pool)
		r = make(c, err);
	if (r < 0)
		return r;
	c->by_page = calloc(options->n_pages, sizeof(struct prefix_node *));
	if (!c->by_page || prefix_new(options->page_tokens, 2 * options->n_pages, &c->prefix) < 0 ||
	    restore_all(c) < 0)
		return err_set(err, -ENOMEM, "no memory to keep book of %u KV pages",
			       options->n_pages);
	*ret = steal(c);
	return 0;
}

struct kvcache *kvcache_free(struct kvcache *c)
{
	if (!c)
		return NULL;
	carry_leave_all(c);
	kvmoves_free(c);
	tiers_moved(c); /* without a disk, flushes end */
	prefix_free(c->prefix);
	if (c->arena)
		munmap(c->arena, c->options.n_pages * c->options.page_bytes);
	kvpool_free(c->pool);
	kvdir_free(c->dir);
	causes_free(c->causes);
	free(c->by_page);
	free(c->owners);
	shared_free(c);
	free(c);
	return NULL;
}

int kvcache_arena_fd(const struct kvcache *c)
{
	return kvpool_fd(c->pool);
}

int kvcache_dir_fd(const struct kvcache *c)
{
	return kvdir_fd(c->dir);
}

int kvcache_causes_fd(const struct kvcache *c)
{
	return causes_fd(c->causes);
}

struct kvpool *kvcache_pool(struct kvcache *c)
{
	return c->pool;
}

void kvcache_set_model(struct kvcache *c, const uint64_t fingerprint[2])
{
	uint64_t before[2];

	kvdir_model(c->dir, before);
	if (memcmp(before, fingerprint, sizeof(before)) == 0)
		return;
	kvmoves_end(c);
	for (kv_page page = 0; page < c->options.n_pages; page++) {
		if (c->by_page[page])
			kvcache_forget(c, c->by_page[page], PREFIX_MODEL_CHANGED);
	}
	causes_note_model(c->causes, before);
	kvdir_set_model(c->dir, fingerprint);
}

struct kv_hash kvcache_root(const struct kvcache *c, uid_t uid, const char *label)
{
	uint64_t fingerprint[2];

	kvdir_model(c->dir, fingerprint);
	return chain_root(fingerprint, c->options.element_bytes, uid, label);
}

/* What is on disk is found from its namespace on, which an earlier life knew. */
static void match(struct kvcache *c, const struct prefix_whose *whose, const uint32_t *ids,
		  uint32_t n, struct prefix_match *ret)
{
	prefix_match(c->prefix, whose, ids, n, ret);
	if (!ret->last && c->disk)
		ret->last = prefix_space(c->prefix, prefix_root(whose, 0), prefix_uid(whose, 0));
}

void kvcache_look(struct kvcache *c, struct kv_hash root, uid_t uid, const uint32_t *ids,
		  uint32_t n, struct kvcache_found *ret)
{
	const struct prefix_whose whose = shared_whose(c, root, uid, ids, n);
	struct tiers_found disk;
	struct prefix_match m;

	match(c, &whose, ids, n, &m);
	tiers_look(c, &whose, &m, ids + m.n_pages * c->options.page_tokens,
		   n - m.n_pages * c->options.page_tokens, &disk);
	*ret = (struct kvcache_found){
		.n_tokens = (m.n_pages + disk.n_pages) * c->options.page_tokens,
		.n_pages = m.n_pages,
	};
	ret->n_tokens += disk.n_pages > 0 ? disk.part_tokens : MAX(disk.part_tokens, m.part_tokens);
	for (const struct prefix_node *node = m.last; node && node->parent; node = node->parent)
		ret->n_unheld += kvpool_holders(c->pool, node->page) == 0 &&
				 !evict_spares(c, uid, node);
}

static void touch(struct kvcache *c, struct prefix_node *node)
{
	node->used_us = clock_us();
	node->hits += node->hits < UINT32_MAX;
	kvdir_touch(c->dir, node->page, node->used_us);
	if (node->trust == PREFIX_UNCHECKED)
		kvmoves_check(c, node); /* if there is no memory for it, settling tries again */
}

/*
 * @source, which is held, is what to copy from if a page to copy to can be had.
 * Returns the tokens in it, or 0.
 */
static uint32_t hold_part(struct kvcache *c, uid_t uid, kv_page source, uint32_t n_tokens,
			  kv_page *table, struct kvcache_held *ret)
{
	if (kvcache_take(c, uid, 1, &table[ret->n_pages]) < 0) {
		kvcache_drop(c, &source, 1);
		return 0;
	}
	ret->source = source;
	ret->source_tokens = n_tokens;
	ret->n_tokens += n_tokens;
	return n_tokens;
}

uint32_t kvcache_hold(struct kvcache *c, struct kv_hash root, uid_t uid, const uint32_t *ids,
		      uint32_t n, kv_page *table, struct kvcache_held *ret)
{
	const struct prefix_whose whose = shared_whose(c, root, uid, ids, n);
	struct prefix_match m;
	uint32_t n_disk;
	kv_page part;

	match(c, &whose, ids, n, &m);
	*ret = (struct kvcache_held){
		.n_tokens = m.n_pages * c->options.page_tokens,
		.n_pages = m.n_pages,
		.n_shared = whose.n_shared,
		.source = KV_PAGE_NONE,
	};
	for (struct prefix_node *node = m.last; node && node->parent; node = node->parent) {
		table[node->depth - 1] = node->page;
		kvcache_hold_page(c, node->page);
		touch(c, node);
	}
	n_disk = tiers_hold(c, &whose, &m, ids + ret->n_tokens, n - ret->n_tokens, m.part_tokens,
			    table + ret->n_pages, &part);
	ret->n_pages += n_disk;
	ret->n_tokens += n_disk * c->options.page_tokens;
	ret->n_disk_tokens = n_disk * c->options.page_tokens;
	if (part != KV_PAGE_NONE) {
		ret->n_disk_tokens += hold_part(c, uid, part, c->by_page[part]->n_tokens, table,
						ret);
	} else if (m.part && n_disk == 0) {
		match(c, &whose, ids, n, &m); /* a read that failed may have cost it */
		if (m.part) {
			kvcache_hold_page(c, m.part->page);
			touch(c, m.part);
			hold_part(c, uid, m.part->page, m.part_tokens, table, ret);
		}
	}
	c->counts.n_found_tokens += ret->n_tokens;
	return ret->n_pages + (ret->source != KV_PAGE_NONE);
}

/* 1: its bytes are what its sum says; 0: not known yet; -EBADMSG: it was found to be damaged. */
static int is_sure(struct kvcache *c, kv_page page)
{
	struct prefix_node *node = c->by_page[page];

	if (!node)
		return -EBADMSG;
	if (node->trust == PREFIX_UNCHECKED)
		kvmoves_check(c, node);
	return node->trust == PREFIX_CHECKED;
}

int kvcache_settle(struct kvcache *c, const kv_page *table, struct kvcache_held *held,
		   struct kvcache_chain *chain)
{
	int sure = 1, r;

	for (uint32_t i = 0; i < held->n_pages && sure >= 0; i++) {
		r = is_sure(c, table[i]);
		sure = r < 0 ? r : MIN(sure, r);
	}
	if (held->source != KV_PAGE_NONE && sure >= 0) {
		r = is_sure(c, held->source);
		sure = r < 0 ? r : MIN(sure, r);
	}
	if (sure == 0)
		return 0;
	if (sure > 0 && held->source != KV_PAGE_NONE &&
	    kvmoves_copy(c, held->source, table[held->n_pages], held->source_tokens) < 0)
		return 0;
	if (sure > 0) {
		chain->n_pages = held->n_pages;
		chain->n_shared = held->n_shared;
		chain->hash = held->n_pages ? c->by_page[table[held->n_pages - 1]]->hash
					    : (struct kv_hash){ 0 };
	}
	kvcache_unsettle(c, held);
	return sure;
}

void kvcache_unsettle(struct kvcache *c, struct kvcache_held *held)
{
	if (held->source == KV_PAGE_NONE)
		return;
	kvcache_drop(c, &held->source, 1);
	held->source = KV_PAGE_NONE;
}

int kvcache_take(struct kvcache *c, uid_t uid, uint32_t n, kv_page *ret)
{
	const uint32_t n_free = kvpool_free_pages(c->pool);
	int r;

	if (n > n_free)
		evict_pages(c, uid, n - n_free);
	r = kvpool_take(c->pool, uid, n, ret);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < n && r >= 0; i++) {
		if (kvdir_open(c->dir, ret[i], uid))
			r = kvmoves_clear(c, ret[i], uid);
	}
	if (r < 0)
		kvcache_drop(c, ret, n);
	return r < 0 ? -EAGAIN : 0;
}

void kvcache_drop(struct kvcache *c, const kv_page *pages, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		struct prefix_node *node = c->by_page[pages[i]];

		kvpool_drop(c->pool, &pages[i], 1);
		if (kvpool_holders(c->pool, pages[i]) > 0)
			continue;
		if (!node) {
			kvdir_drop(c->dir, pages[i]);
			continue;
		}
		evict_owner(c, node->uid)->n_unheld++;
		evict_offer(c, node);
	}
}

/* Whether page @i of a turn's table can be the sealed one that it is. */
static bool may_share(const struct kvcache *c, const struct prefix_node *node, struct kv_hash root,
		      uint32_t i, uint32_t n_kv)
{
	return (chain_equal(node->root, root) || shared_is_root(c, node->root)) &&
	       node->depth == i + 1 && node->n_tokens == c->options.page_tokens &&
	       (uint64_t)(i + 1) * c->options.page_tokens <= n_kv;
}

int kvcache_claim(struct kvcache *c, struct kv_hash root, uid_t uid, const kv_page *table,
		  uint32_t n, uint32_t n_kv)
{
	for (uint32_t i = 0; i < n; i++) {
		const struct prefix_node *node;
		uint32_t owner;

		if (table[i] >= c->options.n_pages)
			return -EINVAL;
		node = c->by_page[table[i]];
		owner = kvdir_owner(c->dir, table[i]);
		if (node ? !may_share(c, node, root, i, n_kv)
			 : owner != uid && owner != KVDIR_MIXED)
			return -EINVAL;
	}
	if (kvpool_claim(c->pool, uid, table, n) < 0)
		return -EINVAL;
	for (uint32_t i = 0; i < n; i++) {
		const struct prefix_node *node = c->by_page[table[i]];

		if (node)
			evict_owner(c, node->uid)->n_unheld -= kvpool_holders(c->pool, table[i]) ==
							       1;
		else
			kvdir_open(c->dir, table[i], uid);
	}
	return 0;
}

int kvcache_claimed(struct kvcache *c, uid_t uid, const kv_page *table, uint32_t n, uint32_t n_kv)
{
	int r = 0;

	for (uint32_t i = 0; i < n && r >= 0; i++) {
		if (kvdir_owner(c->dir, table[i]) != KVDIR_MIXED)
			continue;
		/* where something was computed, the order to clear it came before */
		if ((uint64_t)i * c->options.page_tokens < n_kv)
			kvdir_cleared(c->dir, table[i], uid);
		else
			r = kvmoves_clear(c, table[i], uid);
	}
	return r;
}

void kvcache_count(const struct kvcache *c, struct kvcache_counts *ret)
{
	*ret = c->counts;
	ret->n_pages = c->options.n_pages;
	ret->n_free = kvpool_free_pages(c->pool) + kvpool_dropped_pages(c->pool);
	ret->n_kept = kvpool_unheld_pages(c->pool);
	ret->n_held = ret->n_pages - ret->n_free - ret->n_kept;
}

void kvcache_check(const struct kvcache *c)
{
	uint32_t n_paged = 0, n_owned = 0, n_unheld = 0, n_let_go = 0;

	for (kv_page page = 0; page < c->options.n_pages; page++) {
		const struct prefix_node *node = c->by_page[page];
		struct kvdir_page p;

		n_paged += node != NULL;
		n_let_go += node && kvpool_holders(c->pool, page) == 0;
		assert(!node || node->n_paged_children > 0 || kvpool_holders(c->pool, page) > 0 ||
		       node->cheap.is_in);
		assert(kvdir_get(c->dir, page, &p) == (node && !node->loading));
		if (!node || node->loading)
			continue;
		assert(node->page == page && node->uid == p.uid && p.n_tokens == node->n_tokens);
		assert(chain_equal(p.hash, node->hash) && chain_equal(p.root, node->root));
		assert(memcmp(p.tokens, node->tokens, p.n_tokens * sizeof(*p.tokens)) == 0);
	}
	for (uint32_t i = 0; i < c->n_owners; i++) {
		n_owned += c->owners[i].n_pages;
		n_unheld += c->owners[i].n_unheld;
	}
	assert(n_owned == n_paged && n_unheld == n_let_go);
}
