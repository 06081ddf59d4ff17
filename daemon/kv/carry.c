/*
 * Pages between the cache and a room of the caller's. What touches the arena's
 * bytes runs on a worker, through a descriptor of its own, so that nothing but
 * memory is left to it when the cache ends; the page is held until it is home.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "client/wire/ownership.h"
#include "daemon/base/worker.h"
#include "daemon/kv/kvcache-parts.h"

struct carry {
	LIST_ENTRY(carry) link;
	struct kvcache *cache; /* NULL: it ended */
	kvcache_carried_fn done;
	void *userdata;
	/* the arena's */
	int arena_fd;
	bool in;
	kv_page page; /* held; KV_PAGE_NONE: of the disk alone */
	uint64_t bytes, sum[2];
	char *room;
	int r;
	/* in: what it becomes */
	struct kv_hash root, parent, hash;
	uid_t uid;
	uint32_t n_tokens, tokens[];
};

void kvcache_walk(const struct kvcache *c, struct kv_hash root, uid_t uid, const uint32_t *ids,
		  uint32_t n, struct kvcache_walk *ret)
{
	*ret = (struct kvcache_walk){
		.whose = shared_whose(c, root, uid, ids, n),
		.ids = ids,
		.n_pages = n / c->options.page_tokens,
	};
	ret->parent = prefix_root(&ret->whose, 0);
}

static const uint32_t *tokens_at(const struct kvcache *c, const struct kvcache_walk *w)
{
	return w->ids + (size_t)w->at * c->options.page_tokens;
}

static struct kv_hash hash_at(const struct kvcache *c, const struct kvcache_walk *w)
{
	return chain_next(prefix_root(&w->whose, w->at), w->parent, tokens_at(c, w),
			  c->options.page_tokens);
}

void kvcache_walk_on(const struct kvcache *c, struct kvcache_walk *w)
{
	w->parent = hash_at(c, w);
	w->at++;
}

static struct kvdisk_key key_at(const struct kvcache *c, const struct kvcache_walk *w)
{
	return (struct kvdisk_key){
		.hash = hash_at(c, w),
		.parent = w->parent,
		.root = prefix_root(&w->whose, w->at),
		.uid = prefix_uid(&w->whose, w->at),
		.n_tokens = c->options.page_tokens,
		.tokens = tokens_at(c, w),
	};
}

/* Its node, if it is in the arena and its bytes can be read. */
static struct prefix_node *node_at(const struct kvcache *c, const struct kvdisk_key *key)
{
	struct prefix_node *node = prefix_find(c->prefix, key->hash);

	if (!node || node->page == KV_PAGE_NONE || node->loading ||
	    node->n_tokens != key->n_tokens ||
	    memcmp(node->tokens, key->tokens, key->n_tokens * sizeof(*key->tokens)) != 0)
		return NULL;
	return node;
}

static struct carry *carry_new(struct kvcache *c, const struct kvdisk_key *key, void *room,
			       kvcache_carried_fn done, void *userdata)
{
	struct carry *x = calloc(1, sizeof(*x) + key->n_tokens * sizeof(*key->tokens));

	if (!x)
		return NULL;
	x->cache = c;
	x->done = done;
	x->userdata = userdata;
	x->arena_fd = -1;
	x->page = KV_PAGE_NONE;
	x->bytes = c->options.page_bytes;
	x->room = room;
	x->r = -ECANCELED; /* unless it is run */
	x->root = key->root;
	x->parent = key->parent;
	x->hash = key->hash;
	x->uid = key->uid;
	x->n_tokens = key->n_tokens;
	memcpy(x->tokens, key->tokens, key->n_tokens * sizeof(*key->tokens));
	LIST_INSERT_HEAD(&c->carries, x, link);
	return x;
}

static void carry_free(struct carry *x)
{
	if (x->cache) {
		LIST_REMOVE(x, link);
		if (x->page != KV_PAGE_NONE)
			kvcache_drop(x->cache, &x->page, 1);
	}
	closep(&x->arena_fd);
	free(x);
}

void carry_leave_all(struct kvcache *c)
{
	struct carry *x;

	while ((x = LIST_FIRST(&c->carries))) {
		LIST_REMOVE(x, link);
		x->cache = NULL;
	}
}

static void end(struct carry *x, int r, const uint64_t sum[2])
{
	const uint64_t of[2] = { sum ? sum[0] : 0, sum ? sum[1] : 0 };
	const kvcache_carried_fn done = x->done;
	void *userdata = x->userdata;

	if (!x->cache)
		r = -ECANCELED;
	carry_free(x);
	done(r, of, userdata);
}

static void on_disk_done(int r, const uint64_t sum[2], void *userdata)
{
	end(userdata, r, sum);
}

/* On the worker. */
static void run(void *userdata)
{
	struct carry *x = userdata;
	const off_t at = (off_t)(x->page * x->bytes);
	uint64_t n_done = 0;
	XXH128_hash_t sum;

	while (n_done < x->bytes) {
		const ssize_t n = x->in ? pwrite(x->arena_fd, x->room + n_done, x->bytes - n_done,
						 at + (off_t)n_done)
					: pread(x->arena_fd, x->room + n_done, x->bytes - n_done,
						at + (off_t)n_done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			x->r = n < 0 ? -errno : -EIO;
			return;
		}
		n_done += (uint64_t)n;
	}
	x->r = 0;
	if (x->in)
		return;
	sum = XXH3_128bits(x->room, x->bytes);
	if (sum.low64 != x->sum[0] || sum.high64 != x->sum[1])
		x->r = -EBADMSG;
}

/* A page's bytes are there: it is found from now on, unless another was first or what is before it went. */
static int settle_in(struct carry *x)
{
	struct kvcache *c = x->cache;
	struct prefix_node *parent = kvcache_parent(c, x->root, x->uid, x->parent);
	struct prefix_node *node;

	if (!parent)
		return -ENOSPC;
	node = prefix_add(c->prefix, parent, x->root, x->uid, x->hash, x->tokens, x->n_tokens);
	if (!node)
		return -ENOMEM;
	if (node->page != KV_PAGE_NONE)
		return 0;
	if (kvcache_own(c, node, x->page) < 0)
		return -ENOMEM;
	kvcache_note_sealed(c, node, x->sum);
	kvpool_keep(c->pool, x->page);
	return 0;
}

static void home(void *userdata)
{
	struct carry *x = userdata;
	int r = x->r;

	if (x->cache && r == -EBADMSG && !x->in)
		x->cache->counts.n_damaged++;
	if (x->cache && r >= 0 && x->in)
		r = settle_in(x);
	end(x, r, x->sum);
}

static int push(struct carry *x, struct worker *worker)
{
	int r;

	x->arena_fd = fcntl(kvpool_fd(x->cache->pool), F_DUPFD_CLOEXEC, 3);
	r = x->arena_fd < 0 ? -errno : worker_push_for(worker, x->uid, run, home, x);
	if (r < 0)
		carry_free(x);
	return r;
}

int kvcache_carry_out(struct kvcache *c, const struct kvcache_walk *w, struct worker *worker,
		      void *room, kvcache_carried_fn done, void *userdata)
{
	const struct kvdisk_key key = key_at(c, w);
	const struct prefix_node *node = node_at(c, &key);
	struct carry *x;
	int r;

	if (!node && (!c->disk || !kvdisk_has(c->disk, &key)))
		return -ENOENT;
	x = carry_new(c, &key, room, done, userdata);
	if (!x)
		return -ENOMEM;
	if (node) {
		memcpy(x->sum, node->sum, sizeof(x->sum));
		x->page = node->page;
		kvcache_hold_page(c, x->page);
		return push(x, worker);
	}
	r = kvdisk_read(c->disk, &key, room, on_disk_done, x);
	if (r < 0)
		carry_free(x);
	return r;
}

/* As a page that a turn takes, which is written whole and so need not be cleared. */
static int carry_into_arena(struct carry *x, struct worker *worker, uint32_t most_pages)
{
	struct kvcache *c = x->cache;
	int r = 0;

	if (kvpool_user_pages(c->pool, x->uid) >= most_pages)
		r = -EDQUOT;
	if (r == 0 && kvpool_free_pages(c->pool) == 0)
		evict_pages(c, x->uid, 1);
	if (r == 0 && kvpool_take(c->pool, x->uid, 1, &x->page) < 0) {
		x->page = KV_PAGE_NONE;
		r = -ENOSPC;
	}
	if (r < 0) {
		carry_free(x);
		return r;
	}
	kvdir_open(c->dir, x->page, x->uid);
	return push(x, worker);
}

int kvcache_carry_in(struct kvcache *c, const struct kvcache_walk *w, struct worker *worker,
		     const void *room, const uint64_t sum[2], uint32_t most_pages,
		     kvcache_carried_fn done, void *userdata)
{
	const struct kvdisk_key key = key_at(c, w);
	struct carry *x;
	int r;

	if (prefix_is_shared(&w->whose, w->at))
		return -EPERM;
	if (node_at(c, &key) || (c->disk && kvdisk_has(c->disk, &key)))
		return -EALREADY;
	x = carry_new(c, &key, (void *)room, done, userdata);
	if (!x)
		return -ENOMEM;
	x->in = true;
	memcpy(x->sum, sum, sizeof(x->sum));
	if (!c->disk || kvdisk_text(c->disk)[0])
		return carry_into_arena(x, worker, most_pages);
	r = kvdisk_write(c->disk, &key, room, sum, on_disk_done, x);
	if (r < 0)
		carry_free(x);
	return r;
}

static bool are_numbers(const void *room, uint64_t bytes, uint32_t element_bytes)
{
	const uint32_t most =
		0x4b800000; /* KVCACHE_VALUE_MAX as a float's bits; above it are infinity and NaN, too */
	uint32_t high = 0;

	if (element_bytes == 4) {
		const uint32_t *at = room;

		for (uint64_t i = 0; i < bytes / 4; i++)
			high |= (at[i] & 0x7fffffff) > most;
	} else {
		const uint16_t *at = room;

		for (uint64_t i = 0; i < bytes / 2; i++)
			high |= (at[i] & 0x7fffu) > most >> 16;
	}
	return high == 0;
}

const char *kvcache_room_fault(const void *room, uint64_t bytes, uint32_t element_bytes,
			       const uint64_t sum[2])
{
	const XXH128_hash_t is = XXH3_128bits(room, bytes);

	if (is.low64 != sum[0] || is.high64 != sum[1])
		return "its bytes do not match their sum";
	if (!are_numbers(room, bytes, element_bytes))
		return "it holds what is no number, or one that no model computes";
	return NULL;
}
