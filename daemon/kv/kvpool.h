/*
 * The pages of the KV cache: one memfd (the arena), and who has which page.
 * Only the broker allocates page ids. Several may hold a page; one that is
 * kept stays when nobody holds it. A page named in a step is busy until the
 * step's result has been taken; let go of earlier, it is free only then.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "client/wire/err.h"

typedef uint32_t kv_page;
#define KV_PAGE_NONE UINT32_MAX

struct kvpool;

/*
 * Makes an arena of @n_pages of @page_bytes: a memfd, mode 0600, sealed against
 * resizing. Memory is taken as pages are first written. Behind the pages it says
 * what it is, and of which version. 0, -ENOMEM or memfd_create's error.
 */
int kvpool_new(uint32_t n_pages, uint64_t page_bytes, uint32_t page_tokens, struct kvpool **ret,
	       struct err *err);
/* Takes over an arena from an earlier life; all pages are free until kvpool_claim(). -EBADMSG: version, sizes or seals are wrong. */
int kvpool_adopt(int memfd, uint32_t n_pages, uint64_t page_bytes, uint32_t page_tokens,
		 struct kvpool **ret, struct err *err);
struct kvpool *kvpool_free(struct kvpool *pool);
int kvpool_fd(const struct kvpool *pool);

/* Takes @n pages for @uid, lowest free ids first, or none: -EAGAIN. */
int kvpool_take(struct kvpool *pool, uid_t uid, uint32_t n, kv_page *ret);
/* Marks pages as taken when a turn is adopted; kept ones are held. -EINVAL: out of range or taken already. */
int kvpool_claim(struct kvpool *pool, uid_t uid, const kv_page *pages, uint32_t n);
/* Named in step @step_id: not free before kvpool_step_done() of it or a later one. */
void kvpool_busy(struct kvpool *pool, const kv_page *pages, uint32_t n, uint64_t step_id);
void kvpool_step_done(struct kvpool *pool, uint64_t step_id);
/* The executor is gone: nothing is busy. */
void kvpool_idle(struct kvpool *pool);
/* Another holds them: each is taken or kept. */
void kvpool_hold(struct kvpool *pool, const kv_page *pages, uint32_t n);
/* One that held them does so no longer. */
void kvpool_drop(struct kvpool *pool, const kv_page *pages, uint32_t n);
/* @page, which is taken, outlives those who hold it, until kvpool_discard(). */
void kvpool_keep(struct kvpool *pool, kv_page page);
void kvpool_discard(struct kvpool *pool, kv_page page);
/* @page is @uid's from now on, whoever took it: see kvpool_user_pages(). */
void kvpool_give(struct kvpool *pool, kv_page page, uid_t uid);
uid_t kvpool_owner(const struct kvpool *pool, kv_page page); /* of one that is taken */
/* Marks a free page as kept, when an arena is adopted. */
void kvpool_restore(struct kvpool *pool, uid_t uid, kv_page page);
bool kvpool_is_free(const struct kvpool *pool, kv_page page);
/* Gives a free page's memory back to the machine; it reads as zeros. 0 or fallocate's error. */
int kvpool_punch(struct kvpool *pool, kv_page page);
uint32_t kvpool_holders(const struct kvpool *pool, kv_page page);

uint32_t kvpool_pages(const struct kvpool *pool);
uint32_t kvpool_page_tokens(const struct kvpool *pool);
uint32_t kvpool_free_pages(const struct kvpool *pool);	  /* takeable now */
uint32_t kvpool_dropped_pages(const struct kvpool *pool); /* free once their steps are done */
uint32_t kvpool_unheld_pages(const struct kvpool *pool);  /* kept, and nobody holds them */
uint32_t kvpool_user_pages(const struct kvpool *pool, uid_t uid);
uint32_t kvpool_largest_free_run(const struct kvpool *pool); /* of pages side by side */
uint64_t kvpool_resident_bytes(const struct kvpool *pool);   /* of the arena's; 0 if that cannot be known */
/*
 * Draws the pool, in id order: in each of @n characters of @ret an equal share
 * of the pages, '.' if all are free, 'o' if some are, '#' if none is, '+' if
 * moreover nobody holds any. With fewer pages than @n a character a page.
 * @ret	n + 1 bytes, ends in a NUL
 */
void kvpool_draw(const struct kvpool *pool, char *ret, uint32_t n);

static inline void kvpool_freep(struct kvpool **pool)
{
	*pool = kvpool_free(*pool);
}
