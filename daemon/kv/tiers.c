/*
 * Pages between arena and disk: written when they are sealed, a turn's last
 * one when the turn has ended; read when a turn wants them. A page that is being read is in the index already, so that
 * others wait for it rather than read it too; it is sealed when it is right.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "client/wire/ownership.h"
#include "daemon/kv/kvcache-parts.h"

/* A page with the disk's thread: it is held. */
struct transfer {
	struct kvcache *cache;
	kv_page page;
	struct kv_hash hash; /* of what is in it, or is to be */
};

/* What is in the arena still is not missed. */
static void on_record_gone(const struct segments_key *key, enum segments_why why, void *userdata)
{
	struct kvcache *c = userdata;
	const struct kv_hash hash = { key->hash[0], key->hash[1] };
	const struct kv_hash parent = { key->parent[0], key->parent[1] };
	const enum prefix_gone gone = why == SEGMENTS_DAMAGED ? PREFIX_DAMAGED : PREFIX_EVICTED;
	struct prefix_node *node = prefix_find(c->prefix, hash);

	if (why == SEGMENTS_FAILED || (node && node->page != KV_PAGE_NONE))
		return;
	if (node)
		node->gone = gone;
	causes_note(c->causes, node ? node->root : parent, parent, hash, node ? node->tokens : NULL,
		    key->n_tokens, gone);
}

int kvcache_set_disk(struct kvcache *c, struct kvdisk *disk, void (*on_moved)(void *userdata),
		     void *userdata)
{
	if (disk && !c->arena) {
		void *at = mmap(NULL, c->options.n_pages * c->options.page_bytes,
				PROT_READ | PROT_WRITE, MAP_SHARED, kvpool_fd(c->pool), 0);

		if (at == MAP_FAILED)
			return -errno;
		c->arena = at;
	}
	if (c->disk)
		kvdisk_watch(c->disk, NULL, NULL);
	if (disk)
		kvdisk_watch(disk, on_record_gone, c);
	c->disk = disk;
	c->on_moved = on_moved;
	c->userdata = userdata;
	tiers_moved(c);
	return 0;
}

bool kvcache_is_ready(const struct kvcache *c)
{
	return !c->disk || kvdisk_is_ready(c->disk);
}

static struct kvdisk_key key_of(const struct kvcache *c, const struct prefix_node *node)
{
	return (struct kvdisk_key){
		.hash = node->hash,
		.parent = node->parent->hash,
		.root = node->root,
		.uid = node->uid,
		.n_tokens = node->n_tokens,
		.n_strips = c->options.n_strips,
		.tokens = node->tokens,
	};
}

bool tiers_has_written(const struct kvcache *c, const struct prefix_node *node)
{
	const struct kvdisk_key key = key_of(c, node);

	return c->disk && kvdisk_is_written(c->disk, &key);
}

static struct transfer *begin(struct kvcache *c, kv_page page, struct kv_hash hash)
{
	struct transfer *t = calloc(1, sizeof(*t));

	if (!t)
		return NULL;
	t->cache = c;
	t->page = page;
	t->hash = hash;
	c->n_transfers++;
	kvcache_hold_page(c, page);
	return t;
}

static void end(struct transfer *t)
{
	t->cache->n_transfers--;
	kvcache_drop(t->cache, &t->page, 1);
	free(t);
}

static void on_written(int r, const uint64_t sum[2], void *userdata)
{
	struct transfer *t = userdata;
	struct kvcache *c = t->cache;

	(void)sum;
	c->counts.n_written += r >= 0;
	c->n_unsynced += r >= 0;
	end(t);
	/* not after a failure: a full disk would be asked again and again */
	if (c->disk_is_behind && c->n_transfers == 0) {
		c->disk_is_behind = false;
		if (r >= 0)
			kvcache_disk_ready(c);
	}
	tiers_moved(c);
	if (c->on_moved)
		c->on_moved(c->userdata);
}

void tiers_write(struct kvcache *c, struct prefix_node *node)
{
	const struct kvdisk_key key = key_of(c, node);
	struct transfer *t;
	int r;

	if (!c->disk || node->passing || kvdisk_has(c->disk, &key))
		return;
	t = begin(c, node->page, node->hash);
	if (!t)
		return;
	r = kvdisk_write(c->disk, &key, c->arena + node->page * c->options.page_bytes, node->sum,
			 on_written, t);
	if (r < 0)
		end(t); /* it stays in the arena alone, for now */
	c->disk_is_behind |= r == -EAGAIN;
}

void kvcache_disk_ready(struct kvcache *c)
{
	c->disk_is_behind = false;
	for (kv_page page = 0; page < c->options.n_pages; page++) {
		if (c->by_page[page] && !c->by_page[page]->loading)
			tiers_write(c, c->by_page[page]);
	}
	tiers_moved(c);
}

bool kvcache_save(struct kvcache *c)
{
	if (c->disk)
		kvcache_disk_ready(c);
	return c->n_transfers > 0;
}

/* Page @i of a text. */
static struct kvdisk_key next_key(const struct kvcache *c, const struct prefix_whose *whose,
				  uint32_t i, struct kv_hash parent, const uint32_t *ids)
{
	const struct kv_hash root = prefix_root(whose, i);

	return (struct kvdisk_key){
		.hash = chain_next(root, parent, ids, c->options.page_tokens),
		.parent = parent,
		.root = root,
		.uid = prefix_uid(whose, i),
		.n_tokens = c->options.page_tokens,
		.n_strips = c->options.n_strips,
		.tokens = ids,
	};
}

void tiers_look(const struct kvcache *c, const struct prefix_whose *whose,
		const struct prefix_match *m, const uint32_t *ids, uint32_t n,
		struct tiers_found *ret)
{
	struct kv_hash parent = m->last ? m->last->hash : prefix_root(whose, 0);

	*ret = (struct tiers_found){ 0 };
	for (; c->disk && n >= c->options.page_tokens; n -= c->options.page_tokens) {
		const struct kvdisk_key key = next_key(c, whose, m->n_pages + ret->n_pages, parent,
						       ids);

		if (!kvdisk_has(c->disk, &key))
			break;
		parent = key.hash;
		ids += c->options.page_tokens;
		ret->n_pages++;
	}
	if (c->disk && m->n_pages + ret->n_pages >= whose->n_shared)
		ret->part_tokens = kvdisk_find_part(c->disk, whose->root, whose->uid, parent, ids,
						    n, &ret->part);
}

/* It was computed while it was being read from a record that is no more: it is written anew. */
static void write_again(struct kvcache *c, struct kv_hash hash)
{
	struct prefix_node *node = prefix_find(c->prefix, hash);

	if (node && node->page != KV_PAGE_NONE && !node->loading)
		tiers_write(c, node);
}

static void on_read(int r, const uint64_t sum[2], void *userdata)
{
	struct transfer *t = userdata;
	struct kvcache *c = t->cache;
	struct prefix_node *node = c->by_page[t->page];

	c->counts.n_damaged += r == -EBADMSG;
	/* the model may have changed meanwhile, or the page been computed */
	if (node && node->loading) {
		node->loading = false;
		c->counts.n_read += r >= 0;
		if (r >= 0)
			kvcache_note_sealed(c, node, sum);
		else
			kvcache_forget(c, node, r == -EBADMSG ? PREFIX_DAMAGED : PREFIX_EVICTED);
	} else if (r < 0) {
		write_again(c, t->hash);
	}
	end(t);
	tiers_moved(c);
	if (c->on_moved)
		c->on_moved(c->userdata);
}

/* A page for the node, and the read begun. The caller's hold on it comes with it. */
static int load(struct kvcache *c, struct prefix_node *node, kv_page *ret)
{
	const struct kvdisk_key key = key_of(c, node);
	struct transfer *t;
	kv_page page;
	int r;

	node->loading = true; /* so that it is not let go of for being gone */
	if (kvpool_free_pages(c->pool) == 0)
		evict_pages(c, node->uid, 1);
	r = kvpool_take(c->pool, node->uid, 1, &page);
	if (r < 0) {
		node->loading = false;
		return r;
	}
	kvdir_open(c->dir, page, node->uid); /* all of it is written: no need to clear it */
	t = begin(c, page, node->hash);
	r = t ? kvcache_own(c, node, page) : -ENOMEM;
	if (r >= 0) {
		kvpool_keep(c->pool, page);
		node->trust = PREFIX_PENDING;
		r = kvdisk_read(c->disk, &key, c->arena + page * c->options.page_bytes, on_read, t);
		if (r >= 0) {
			*ret = page;
			return 0;
		}
		kvcache_forget(c, node, PREFIX_EVICTED);
	}
	node->loading = false;
	if (t)
		end(t);
	kvcache_drop(c, &page, 1);
	return r;
}

/* The part that was found behind @parent, which begins with what is at @ids. */
static kv_page hold_part(struct kvcache *c, const struct prefix_whose *whose,
			 struct prefix_node *parent, const uint32_t *ids,
			 const struct tiers_found *found)
{
	struct prefix_node *node;
	kv_page page;

	if (!shared_may_follow(c, parent, whose->root, whose->uid))
		return KV_PAGE_NONE;
	node = prefix_add(c->prefix, parent, whose->root, whose->uid, found->part, ids,
			  found->part_tokens);
	if (!node || node->page != KV_PAGE_NONE || load(c, node, &page) < 0)
		return KV_PAGE_NONE;
	return page;
}

uint32_t tiers_hold(struct kvcache *c, const struct prefix_whose *whose,
		    const struct prefix_match *m, const uint32_t *ids, uint32_t n, uint32_t least,
		    kv_page *table, kv_page *ret_part)
{
	struct prefix_node *node = m->last;
	struct tiers_found found = { 0 };
	uint32_t i;

	*ret_part = KV_PAGE_NONE;
	if (m->last)
		tiers_look(c, whose, m, ids, n, &found);
	for (i = 0; i < found.n_pages; i++) {
		const struct kvdisk_key key = next_key(c, whose, m->n_pages + i, node->hash, ids);

		node = prefix_add(c->prefix, node, key.root, key.uid, key.hash, ids,
				  c->options.page_tokens);
		if (!node || node->page != KV_PAGE_NONE || load(c, node, &table[i]) < 0)
			return i;
		ids += c->options.page_tokens;
	}
	if (found.part_tokens > (i > 0 ? 0 : least))
		*ret_part = hold_part(c, whose, node, ids, &found);
	return i;
}
