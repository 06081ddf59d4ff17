/* The directory's layout, its order of writes, and what is believed of it later. */
#include "daemon/kv/kvdir.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "client/wire/ownership.h"
#include "client/wire/sealed.h"

#define HEAD_BYTES 4096u
#define PAGE_TOKENS_MAX 65536u

enum entry_state { ENTRY_FREE, ENTRY_OPEN, ENTRY_SEALED };

struct head {
	uint64_t magic;
	uint32_t version, n_pages, page_tokens, entry_bytes;
	uint64_t fingerprint[2];
};
_Static_assert(sizeof(struct head) == 40, "the layout outlives its writer");

struct entry {
	_Atomic uint32_t state; /* enum entry_state */
	uint32_t hits;
	uint64_t used_us;
	uint32_t owner; /* whose bytes are in the page */
	/* from here on, and the tokens: what @check covers */
	uint32_t generation, n_tokens, depth;
	struct kv_hash hash, parent, root;
	uint64_t sum[2];
	uint64_t check;
	uint32_t tokens[];
};
_Static_assert(sizeof(struct entry) == 104, "the layout outlives its writer");
_Static_assert(offsetof(struct entry, generation) == 20, "the layout outlives its writer");

struct kvdir {
	int memfd;
	struct head *head;
	size_t bytes, entry_bytes;
	uint32_t n_pages, page_tokens;
};

static struct entry *entry_at(const struct kvdir *d, uint32_t page)
{
	assert(page < d->n_pages);
	return (struct entry *)((char *)d->head + HEAD_BYTES + page * d->entry_bytes);
}

static uint32_t state_of(const struct entry *e)
{
	return atomic_load_explicit(&((struct entry *)e)->state, memory_order_acquire);
}

static void set_state(struct entry *e, uint32_t state)
{
	atomic_store_explicit(&e->state, state, memory_order_release);
}

/* The owner is covered too, though it stays when the rest is forgotten. */
static uint64_t check_of(const struct entry *e)
{
	const size_t from = offsetof(struct entry, owner), to = offsetof(struct entry, check);
	const uint64_t fixed = XXH3_64bits((const char *)e + from, to - from);

	return XXH3_64bits_withSeed(e->tokens, e->n_tokens * sizeof(*e->tokens), fixed);
}

static int lay_out(struct kvdir *d, uint32_t n_pages, uint32_t page_tokens, struct err *err)
{
	if (n_pages == 0 || page_tokens == 0 || page_tokens > PAGE_TOKENS_MAX)
		return err_set(err, -EINVAL,
			       "a KV directory of %u pages of %u tokens makes no sense", n_pages,
			       page_tokens);
	d->n_pages = n_pages;
	d->page_tokens = page_tokens;
	d->entry_bytes = (sizeof(struct entry) + page_tokens * sizeof(uint32_t) + 63) & ~63ul;
	d->bytes = HEAD_BYTES + n_pages * d->entry_bytes;
	return 0;
}

static int map(struct kvdir *d, struct err *err)
{
	void *at = mmap(NULL, d->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, d->memfd, 0);

	if (at == MAP_FAILED)
		return err_wrap(err, -errno, "cannot map the KV directory");
	d->head = at;
	return 0;
}

static struct kvdir *kvdir_alloc(void)
{
	struct kvdir *d = calloc(1, sizeof(*d));

	if (d)
		d->memfd = -1;
	return d;
}

int kvdir_new(uint32_t n_pages, uint32_t page_tokens, struct kvdir **ret, struct err *err)
{
	_cleanup_(kvdir_freep) struct kvdir *d = kvdir_alloc();
	int r;

	if (!d)
		return err_set(err, -ENOMEM, "out of memory");
	r = lay_out(d, n_pages, page_tokens, err);
	if (r < 0)
		return r;
	d->memfd = sealed_memfd("steamd-kvdir", d->bytes);
	if (d->memfd < 0)
		return err_wrap(err, d->memfd, "cannot make a KV directory of %zu bytes", d->bytes);
	r = map(d, err);
	if (r < 0)
		return r;

	d->head->version = KVDIR_VERSION;
	d->head->n_pages = n_pages;
	d->head->page_tokens = page_tokens;
	d->head->entry_bytes = (uint32_t)d->entry_bytes;
	for (uint32_t i = 0; i < n_pages; i++)
		entry_at(d, i)->owner = KVDIR_NOBODY;
	atomic_thread_fence(memory_order_release);
	d->head->magic = KVDIR_MAGIC;
	*ret = steal(d);
	return 0;
}

static bool entry_holds(const struct kvdir *d, const struct entry *e)
{
	return e->n_tokens > 0 && e->n_tokens <= d->page_tokens && e->owner < KVDIR_MIXED &&
	       check_of(e) == e->check;
}

static uint32_t drop_unsealed(struct kvdir *d)
{
	uint32_t bad = 0;

	for (uint32_t i = 0; i < d->n_pages; i++) {
		struct entry *e = entry_at(d, i);
		const uint32_t state = state_of(e);

		if (state == ENTRY_FREE || (state == ENTRY_SEALED && entry_holds(d, e)))
			continue;
		set_state(e, ENTRY_FREE);
		if (state == ENTRY_OPEN)
			continue;
		e->owner = KVDIR_MIXED; /* it may be this that is damaged */
		bad++;
	}
	return bad;
}

int kvdir_adopt(int memfd, uint32_t n_pages, uint32_t page_tokens, struct kvdir **ret,
		uint32_t *ret_bad, struct err *err)
{
	_cleanup_(kvdir_freep) struct kvdir *d = kvdir_alloc();
	struct head head;
	struct stat st;
	ssize_t n;
	int r;

	if (!d)
		return err_set(err, -ENOMEM, "out of memory");
	r = lay_out(d, n_pages, page_tokens, err);
	if (r < 0)
		return r;
	n = sealed_head(memfd, &head, sizeof(head), &st);
	if (n < 0)
		return err_wrap(err, (int)n, "cannot read the KV directory");
	if (!S_ISREG(st.st_mode))
		return err_set(err, -EBADMSG, "the KV directory is no file");
	if (n != (ssize_t)sizeof(head))
		return err_set(err, -EBADMSG, "the KV directory ends in its head");
	if (head.magic != KVDIR_MAGIC || head.version != KVDIR_VERSION)
		return err_set(err, -EBADMSG, "the KV directory is not of this version of steamd");
	if (head.n_pages != n_pages || head.page_tokens != page_tokens ||
	    head.entry_bytes != d->entry_bytes || (uint64_t)st.st_size != d->bytes)
		return err_set(err, -EBADMSG,
			       "the KV directory is for %u pages of %u tokens in %lld bytes; %u, "
			       "%u and %zu are wanted",
			       head.n_pages, head.page_tokens, (long long)st.st_size, n_pages,
			       page_tokens, d->bytes);
	if (!sealed_is(memfd))
		return err_set(err, -EBADMSG, "the KV directory is not sealed against resizing");
	d->memfd = memfd;
	r = map(d, err);
	if (r < 0) {
		d->memfd = -1;
		return r;
	}
	*ret_bad = drop_unsealed(d);
	*ret = steal(d);
	return 0;
}

struct kvdir *kvdir_free(struct kvdir *d)
{
	if (!d)
		return NULL;
	if (d->head)
		munmap(d->head, d->bytes);
	closep(&d->memfd);
	free(d);
	return NULL;
}

int kvdir_fd(const struct kvdir *d)
{
	return d->memfd;
}

void kvdir_model(const struct kvdir *d, uint64_t ret[2])
{
	memcpy(ret, d->head->fingerprint, sizeof(d->head->fingerprint));
}

void kvdir_set_model(struct kvdir *d, const uint64_t fingerprint[2])
{
	memcpy(d->head->fingerprint, fingerprint, sizeof(d->head->fingerprint));
}

bool kvdir_open(struct kvdir *d, uint32_t page, uid_t uid)
{
	struct entry *e = entry_at(d, page);
	const bool others = e->owner == KVDIR_MIXED ||
			    (e->owner != uid && e->owner != KVDIR_NOBODY);

	set_state(e, ENTRY_FREE);
	e->generation++;
	e->owner = others ? KVDIR_MIXED : uid;
	e->hits = 0;
	set_state(e, ENTRY_OPEN);
	return others;
}

void kvdir_cleared(struct kvdir *d, uint32_t page, uid_t uid)
{
	struct entry *e = entry_at(d, page);

	if (state_of(e) == ENTRY_OPEN)
		e->owner = uid;
}

void kvdir_punched(struct kvdir *d, uint32_t page)
{
	struct entry *e = entry_at(d, page);

	assert(state_of(e) == ENTRY_FREE);
	e->owner = KVDIR_NOBODY;
}

void kvdir_seal(struct kvdir *d, uint32_t page, const struct kvdir_page *p)
{
	struct entry *e = entry_at(d, page);

	assert(state_of(e) == ENTRY_OPEN && p->n_tokens > 0 && p->n_tokens <= d->page_tokens);
	e->owner = p->uid;
	e->n_tokens = p->n_tokens;
	e->depth = p->depth;
	e->hash = p->hash;
	e->parent = p->parent;
	e->root = p->root;
	memcpy(e->sum, p->sum, sizeof(e->sum));
	memcpy(e->tokens, p->tokens, p->n_tokens * sizeof(*e->tokens));
	e->used_us = p->used_us;
	e->hits = p->hits;
	e->check = check_of(e);
	set_state(e, ENTRY_SEALED);
}

void kvdir_drop(struct kvdir *d, uint32_t page)
{
	set_state(entry_at(d, page), ENTRY_FREE);
}

void kvdir_touch(struct kvdir *d, uint32_t page, uint64_t now_us)
{
	struct entry *e = entry_at(d, page);

	e->used_us = now_us;
	if (e->hits < UINT32_MAX)
		e->hits++;
}

bool kvdir_get(const struct kvdir *d, uint32_t page, struct kvdir_page *ret)
{
	const struct entry *e = entry_at(d, page);

	if (state_of(e) != ENTRY_SEALED)
		return false;
	*ret = (struct kvdir_page){
		.uid = e->owner,
		.n_tokens = e->n_tokens,
		.depth = e->depth,
		.hits = e->hits,
		.hash = e->hash,
		.parent = e->parent,
		.root = e->root,
		.sum = { e->sum[0], e->sum[1] },
		.used_us = e->used_us,
		.tokens = e->tokens,
	};
	return true;
}

uint32_t kvdir_owner(const struct kvdir *d, uint32_t page)
{
	return entry_at(d, page)->owner;
}
