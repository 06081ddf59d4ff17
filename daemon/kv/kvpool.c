/* The arena's memory and the book of its pages. */
#include "daemon/kv/kvpool.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "client/wire/ownership.h"
#include "client/wire/sealed.h"

#define ARENA_MAGIC 0x31616e6572616d73ull /* "smarena1" */
#define ARENA_VERSION 1			  /* of what is in a page, too: see kernels/cpu/kv.h */
#define TAIL_BYTES 4096u

/* What the arena is, behind its pages: they begin where the memory does. */
struct tail {
	uint64_t magic;
	uint32_t version, n_pages;
	uint64_t page_bytes;
	uint32_t page_tokens, pad;
};
_Static_assert(sizeof(struct tail) == 32, "the layout outlives its writer");

enum page_state {
	PAGE_FREE,
	PAGE_TAKEN,
	PAGE_DROPPED
}; /* DROPPED: free once its last step is done */

struct page {
	uint64_t busy_until; /* id of the newest step that names it; 0: none */
	uid_t uid;
	uint32_t n_holders;
	uint8_t state; /* enum page_state; TAKEN: held or kept */
	bool kept;
};

struct kvpool {
	int memfd;
	uint64_t page_bytes;
	uint32_t n_pages, page_tokens;
	uint32_t n_free, lowest_free; /* no free page is below lowest_free */
	uint32_t n_unheld;
	uint64_t done;	  /* all steps up to this one are */
	kv_page *dropped; /* those in state DROPPED */
	uint32_t n_dropped;
	struct page pages[];
};

static int book_new(int memfd, uint32_t n_pages, uint64_t page_bytes, uint32_t page_tokens,
		    struct kvpool **ret, struct err *err)
{
	struct kvpool *pool = calloc(1, sizeof(*pool) + (size_t)n_pages * sizeof(*pool->pages));

	if (pool)
		pool->dropped = calloc(n_pages, sizeof(*pool->dropped));
	if (!pool || !pool->dropped) {
		free(pool);
		return err_set(err, -ENOMEM, "no memory to keep book of %u KV pages", n_pages);
	}
	pool->memfd = memfd;
	pool->n_pages = n_pages;
	pool->page_bytes = page_bytes;
	pool->page_tokens = page_tokens;
	pool->n_free = n_pages;
	*ret = pool;
	return 0;
}

int kvpool_new(uint32_t n_pages, uint64_t page_bytes, uint32_t page_tokens, struct kvpool **ret,
	       struct err *err)
{
	const struct tail tail = { .magic = ARENA_MAGIC,
				   .version = ARENA_VERSION,
				   .n_pages = n_pages,
				   .page_bytes = page_bytes,
				   .page_tokens = page_tokens };
	_cleanup_(closep) int memfd = -1;
	uint64_t bytes;
	ssize_t n;
	int r;

	if (n_pages == 0 || n_pages >= KV_PAGE_NONE || page_tokens == 0 ||
	    __builtin_mul_overflow(n_pages, page_bytes, &bytes) || bytes == 0 ||
	    bytes > INT64_MAX - TAIL_BYTES)
		return err_set(err, -EINVAL, "a KV arena of %u pages of %llu bytes makes no sense",
			       n_pages, (unsigned long long)page_bytes);

	memfd = sealed_memfd("steamd-arena", bytes + TAIL_BYTES);
	if (memfd < 0)
		return err_wrap(err, memfd, "cannot make a KV arena of %llu bytes",
				(unsigned long long)bytes);
	n = pwrite(memfd, &tail, sizeof(tail), (off_t)bytes);
	if (n != (ssize_t)sizeof(tail))
		return err_wrap(err, n < 0 ? -errno : -ENOMEM,
				"cannot write to a KV arena of %llu bytes",
				(unsigned long long)bytes);

	r = book_new(memfd, n_pages, page_bytes, page_tokens, ret, err);
	if (r < 0)
		return r;
	steal_fd(&memfd);
	return 0;
}

int kvpool_adopt(int memfd, uint32_t n_pages, uint64_t page_bytes, uint32_t page_tokens,
		 struct kvpool **ret, struct err *err)
{
	const uint64_t bytes = n_pages * page_bytes;
	struct tail tail;
	struct stat st;
	ssize_t n;

	if (fstat(memfd, &st) < 0)
		return err_wrap(err, -errno, "cannot stat the KV arena");
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != bytes + TAIL_BYTES)
		return err_set(err, -EBADMSG, "the KV arena has %lld bytes; %llu are wanted",
			       (long long)st.st_size, (unsigned long long)bytes + TAIL_BYTES);
	n = pread(memfd, &tail, sizeof(tail), (off_t)bytes);
	if (n < 0)
		return err_wrap(err, -errno, "cannot read the KV arena's tail");
	if (n != (ssize_t)sizeof(tail) || tail.magic != ARENA_MAGIC ||
	    tail.version != ARENA_VERSION)
		return err_set(err, -EBADMSG, "the KV arena is not of this version of steamd");
	if (tail.n_pages != n_pages || tail.page_bytes != page_bytes ||
	    tail.page_tokens != page_tokens)
		return err_set(err, -EBADMSG,
			       "the KV arena is of %u pages of %llu bytes and %u tokens; %u, %llu "
			       "and %u are wanted",
			       tail.n_pages, (unsigned long long)tail.page_bytes, tail.page_tokens,
			       n_pages, (unsigned long long)page_bytes, page_tokens);
	if (!sealed_is(memfd))
		return err_set(err, -EBADMSG, "the KV arena is not sealed against resizing");
	return book_new(memfd, n_pages, page_bytes, page_tokens, ret, err);
}

struct kvpool *kvpool_free(struct kvpool *pool)
{
	if (!pool)
		return NULL;
	closep(&pool->memfd);
	free(pool->dropped);
	free(pool);
	return NULL;
}

int kvpool_fd(const struct kvpool *pool)
{
	return pool->memfd;
}

static void take(struct kvpool *pool, kv_page id, uid_t uid)
{
	pool->pages[id] = (struct page){ .uid = uid, .n_holders = 1, .state = PAGE_TAKEN };
	pool->n_free--;
}

static void let_go(struct kvpool *pool, kv_page id)
{
	pool->pages[id] = (struct page){ .state = PAGE_FREE };
	pool->n_free++;
	pool->lowest_free = MIN(pool->lowest_free, id);
}

int kvpool_take(struct kvpool *pool, uid_t uid, uint32_t n, kv_page *ret)
{
	kv_page id = pool->lowest_free;

	if (n > pool->n_free)
		return -EAGAIN;
	for (uint32_t i = 0; i < n; id++) {
		assert(id < pool->n_pages);
		if (pool->pages[id].state != PAGE_FREE)
			continue;
		take(pool, id, uid);
		ret[i++] = id;
	}
	pool->lowest_free = id;
	return 0;
}

static bool may_claim(const struct kvpool *pool, kv_page id)
{
	return id < pool->n_pages && (pool->pages[id].state == PAGE_FREE || pool->pages[id].kept);
}

int kvpool_claim(struct kvpool *pool, uid_t uid, const kv_page *pages, uint32_t n)
{
	uint32_t i;

	for (i = 0; i < n && may_claim(pool, pages[i]); i++) {
		if (pool->pages[pages[i]].kept)
			kvpool_hold(pool, &pages[i], 1);
		else
			take(pool, pages[i], uid);
	}
	if (i == n)
		return 0;
	kvpool_drop(pool, pages, i);
	return -EINVAL;
}

void kvpool_busy(struct kvpool *pool, const kv_page *pages, uint32_t n, uint64_t step_id)
{
	for (uint32_t i = 0; i < n; i++) {
		assert(pages[i] < pool->n_pages && pool->pages[pages[i]].state == PAGE_TAKEN);
		pool->pages[pages[i]].busy_until = MAX(pool->pages[pages[i]].busy_until, step_id);
	}
}

static void free_dropped(struct kvpool *pool)
{
	uint32_t kept = 0;

	for (uint32_t i = 0; i < pool->n_dropped; i++) {
		const kv_page id = pool->dropped[i];

		if (pool->pages[id].busy_until > pool->done)
			pool->dropped[kept++] = id;
		else
			let_go(pool, id);
	}
	pool->n_dropped = kept;
}

void kvpool_step_done(struct kvpool *pool, uint64_t step_id)
{
	pool->done = MAX(pool->done, step_id);
	free_dropped(pool);
}

void kvpool_idle(struct kvpool *pool)
{
	for (uint32_t i = 0; i < pool->n_pages; i++)
		pool->pages[i].busy_until = 0;
	pool->done = 0; /* the next executor counts its steps from 1 */
	free_dropped(pool);
}

/* Nobody holds it and nothing keeps it. */
static void leave(struct kvpool *pool, kv_page id)
{
	if (pool->pages[id].busy_until <= pool->done) {
		let_go(pool, id);
		return;
	}
	pool->pages[id].state = PAGE_DROPPED;
	pool->dropped[pool->n_dropped++] = id;
}

void kvpool_hold(struct kvpool *pool, const kv_page *pages, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		struct page *page = &pool->pages[pages[i]];

		assert(pages[i] < pool->n_pages && page->state == PAGE_TAKEN);
		pool->n_unheld -= page->n_holders++ == 0;
	}
}

void kvpool_drop(struct kvpool *pool, const kv_page *pages, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		struct page *page = &pool->pages[pages[i]];

		assert(pages[i] < pool->n_pages && page->state == PAGE_TAKEN && page->n_holders);
		if (--page->n_holders > 0)
			continue;
		if (page->kept)
			pool->n_unheld++;
		else
			leave(pool, pages[i]);
	}
}

void kvpool_keep(struct kvpool *pool, kv_page id)
{
	assert(id < pool->n_pages && pool->pages[id].n_holders > 0 && !pool->pages[id].kept);
	pool->pages[id].kept = true;
}

void kvpool_give(struct kvpool *pool, kv_page id, uid_t uid)
{
	assert(id < pool->n_pages && pool->pages[id].state == PAGE_TAKEN);
	pool->pages[id].uid = uid;
}

uid_t kvpool_owner(const struct kvpool *pool, kv_page id)
{
	return pool->pages[id].uid;
}

void kvpool_discard(struct kvpool *pool, kv_page id)
{
	assert(id < pool->n_pages && pool->pages[id].kept);
	pool->pages[id].kept = false;
	if (pool->pages[id].n_holders > 0)
		return;
	pool->n_unheld--;
	leave(pool, id);
}

void kvpool_restore(struct kvpool *pool, uid_t uid, kv_page id)
{
	assert(id < pool->n_pages && pool->pages[id].state == PAGE_FREE);
	take(pool, id, uid);
	kvpool_keep(pool, id);
	kvpool_drop(pool, &id, 1);
}

bool kvpool_is_free(const struct kvpool *pool, kv_page id)
{
	return pool->pages[id].state == PAGE_FREE;
}

int kvpool_punch(struct kvpool *pool, kv_page id)
{
	assert(kvpool_is_free(pool, id));
	return fallocate(pool->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			 (off_t)(id * pool->page_bytes), (off_t)pool->page_bytes) < 0
		       ? -errno
		       : 0;
}

uint32_t kvpool_holders(const struct kvpool *pool, kv_page id)
{
	return pool->pages[id].n_holders;
}

uint32_t kvpool_pages(const struct kvpool *pool)
{
	return pool->n_pages;
}

uint32_t kvpool_page_tokens(const struct kvpool *pool)
{
	return pool->page_tokens;
}

uint32_t kvpool_free_pages(const struct kvpool *pool)
{
	return pool->n_free;
}

uint32_t kvpool_dropped_pages(const struct kvpool *pool)
{
	return pool->n_dropped;
}

uint32_t kvpool_unheld_pages(const struct kvpool *pool)
{
	return pool->n_unheld;
}

uint32_t kvpool_user_pages(const struct kvpool *pool, uid_t uid)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < pool->n_pages; i++)
		n += pool->pages[i].state == PAGE_TAKEN && pool->pages[i].uid == uid;
	return n;
}

uint32_t kvpool_largest_free_run(const struct kvpool *pool)
{
	uint32_t largest = 0, run = 0;

	for (kv_page i = 0; i < pool->n_pages; i++) {
		run = kvpool_is_free(pool, i) ? run + 1 : 0;
		largest = MAX(largest, run);
	}
	return largest;
}

uint64_t kvpool_resident_bytes(const struct kvpool *pool)
{
	struct stat st;

	if (fstat(pool->memfd, &st) < 0)
		return 0;
	return (uint64_t)st.st_blocks * 512 -
	       MIN((uint64_t)st.st_blocks * 512, (uint64_t)TAIL_BYTES);
}

static char drawn(const struct kvpool *pool, kv_page first, kv_page end)
{
	uint32_t n_free = 0, n_held = 0;

	for (kv_page i = first; i < end; i++) {
		n_free += kvpool_is_free(pool, i);
		n_held += kvpool_holders(pool, i) > 0;
	}
	if (n_free > 0)
		return n_free == end - first ? '.' : 'o';
	return n_held > 0 ? '#' : '+';
}

void kvpool_draw(const struct kvpool *pool, char *ret, uint32_t n)
{
	const uint32_t n_drawn = MIN(n, pool->n_pages);

	for (uint32_t i = 0; i < n_drawn; i++)
		ret[i] = drawn(pool, (uint64_t)i * pool->n_pages / n_drawn,
			       (uint64_t)(i + 1) * pool->n_pages / n_drawn);
	ret[n_drawn] = '\0';
}
