/*
 * Pages of one size in a region of their own, which grows and shrinks by whole
 * groups: as many pages as fill a whole number of granules. Page p is at
 * vram_at() + p * page_bytes for ever, whether it is backed or not. Whose a
 * page is, and which one is taken next, others decide: they say which pages
 * are live when the pool is to shrink.
 */
#pragma once

#include "kernels/cuda/vram.h"

#define PAGEPOOL_PAGE_ALIGN 4096u /* of page_bytes */

struct pagepool {
	struct vram_region *region;
	size_t page_bytes;
	uint32_t group_pages, n_groups; /* that have addresses; the region's chunks */
};

/*
 * Pages in a group: the fewest that fill whole granules and make
 * PAGEPOOL_GROUP_BYTES, for each group costs the driver a few calls; fewer if
 * @n_pages would not fill one. 4 of 11.5 MiB: 46 MiB.
 */
#define PAGEPOOL_GROUP_BYTES ((size_t)32 << 20)
uint32_t pagepool_group_pages(size_t page_bytes, uint32_t n_pages);

/*
 * Reserves addresses for @n_pages, rounded up to groups.
 * Returns 0; -EINVAL: no pages, or page_bytes is no multiple of
 * PAGEPOOL_PAGE_ALIGN; or what vram_reserve() does.
 */
int pagepool_init(struct pagepool *p, struct vram *v, const char *name, size_t page_bytes,
		  uint32_t n_pages);
/* 0, or -EIO: the card refused something, which is still there to be tried again. */
int pagepool_deinit(struct pagepool *p);

static inline bool pagepool_has(const struct pagepool *p, uint32_t page)
{
	return vram_is_backed(p->region, page / p->group_pages);
}

/* One bit a page, 64 to a word; as many as n_groups * group_pages says. */
typedef const uint64_t *page_bits;
static inline bool page_bit(page_bits bits, uint32_t page)
{
	return bits[page / 64] >> page % 64 & 1;
}

/*
 * Backs the @n_groups lowest groups that are not. All or nothing.
 * Returns 0; -ENOSPC: there are not so many; or what vram_back() does.
 */
int pagepool_grow(struct pagepool *p, uint32_t n_groups);

/* A page whose contents stand elsewhere from now on. */
struct page_move {
	uint32_t from, to;
};

/*
 * Gives @n_groups groups back: those with the fewest live pages, whose contents
 * are copied to free pages of the groups that stay, lowest first.
 *
 * live		the pages that must be kept
 * ret_moves	room for @n_groups * group_pages; how many there are is in *@ret_n_moves.
 *		They hold whatever is returned. Nobody may use the pool meanwhile
 *
 * Returns 0; -ENOSPC: fewer groups are backed, or what is live does not fit
 * into the rest (then nothing was done); an error of a copy (nothing was
 * moved); or what vram_unback() does: some groups are stuck.
 */
int pagepool_shrink(struct pagepool *p, uint32_t n_groups, page_bits live,
		    struct page_move *ret_moves, uint32_t *ret_n_moves);

/*
 * Makes the backed groups the lowest ones, without copying: the highest ones
 * are remapped to the lowest holes, live or not. Moves as above, of whole
 * groups: @ret_moves has room for all pages. 0 or what vram_remap() says.
 */
int pagepool_pack(struct pagepool *p, struct page_move *ret_moves, uint32_t *ret_n_moves);

struct pagepool_figures {
	uint32_t pages, live_pages;	  /* backed; of those live */
	uint32_t groups, empty_groups;	  /* backed; of those without a live page: they go without a copy */
	uint32_t largest_free_run;	  /* of free backed pages side by side */
	double fragmentation;		  /* share of the free pages that stand in groups with live ones; 0: none */
};
void pagepool_figures(const struct pagepool *p, page_bits live, struct pagepool_figures *ret);
