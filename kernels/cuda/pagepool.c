/* A pool of pages that grows and shrinks by groups; see pagepool.h. */
#include "kernels/cuda/pagepool.h"

#include <errno.h>
#include <stdlib.h>

uint32_t pagepool_group_pages(size_t page_bytes, uint32_t n_pages)
{
	size_t common =
		VRAM_GRANULE; /* a power of two, and so is what it has in common with anything */
	uint32_t fewest, times;

	while (page_bytes % common)
		common /= 2;
	fewest = VRAM_GRANULE / common;
	times = (PAGEPOOL_GROUP_BYTES - 1) / (fewest * page_bytes) + 1;
	if (times > n_pages / fewest)
		times = n_pages / fewest;
	return fewest * (times > 0 ? times : 1);
}

int pagepool_init(struct pagepool *p, struct vram *v, const char *name, size_t page_bytes,
		  uint32_t n_pages)
{
	struct pagepool pool = { .page_bytes = page_bytes };
	int r;

	if (page_bytes == 0 || page_bytes % PAGEPOOL_PAGE_ALIGN || n_pages == 0)
		return -EINVAL;
	pool.group_pages = pagepool_group_pages(page_bytes, n_pages);
	pool.n_groups = (n_pages - 1) / pool.group_pages + 1;
	if (pool.n_groups > UINT32_MAX / pool.group_pages ||
	    page_bytes > SIZE_MAX / 2 / pool.group_pages / pool.n_groups)
		return -EINVAL;
	r = vram_reserve(v, name, (size_t)pool.n_groups * pool.group_pages * page_bytes,
			 pool.group_pages * page_bytes, &pool.region);
	if (r < 0)
		return r;
	*p = pool;
	return 0;
}

int pagepool_deinit(struct pagepool *p)
{
	if (!p->region)
		return 0;
	p->region = vram_unreserve(p->region);
	return p->region ? -EIO : 0;
}

int pagepool_grow(struct pagepool *p, uint32_t n_groups)
{
	const uint32_t before = vram_backed(p->region);
	uint32_t added = 0, i;
	uint64_t *added_bits;
	int r = 0;

	if (n_groups > p->n_groups - before)
		return -ENOSPC;
	added_bits = calloc(p->n_groups / 64 + 1, sizeof(*added_bits));
	if (!added_bits)
		return -ENOMEM;
	for (i = 0; added < n_groups && r == 0; i++) {
		uint32_t run = 0;

		while (added + run < n_groups && i + run < p->n_groups &&
		       !vram_is_backed(p->region, i + run))
			run++;
		if (run == 0)
			continue;
		r = vram_back(p->region, i, run);
		for (uint32_t j = i; r == 0 && j < i + run; j++)
			added_bits[j / 64] |= 1ull << j % 64;
		added += run;
		i += run - 1;
	}
	for (i = 0; r < 0 && i < p->n_groups; i++)
		if (page_bit(added_bits, i))
			vram_unback(p->region, i, 1);
	free(added_bits);
	return r;
}

static uint32_t live_in(const struct pagepool *p, page_bits live, uint32_t group)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < p->group_pages; i++)
		n += page_bit(live, group * p->group_pages + i);
	return n;
}

/* The backed group with the fewest live pages of those that stay so far; of equals the highest. */
static uint32_t emptiest(const struct pagepool *p, page_bits live, const bool *goes)
{
	uint32_t best = UINT32_MAX, fewest = UINT32_MAX;

	for (uint32_t g = p->n_groups; g-- > 0 && fewest > 0;) {
		uint32_t n;

		if (goes[g] || !vram_is_backed(p->region, g))
			continue;
		n = live_in(p, live, g);
		if (n < fewest) {
			fewest = n;
			best = g;
		}
	}
	return best;
}

/* Chooses who goes. Returns 0, or -ENOSPC if the rest is too small for what is live. */
static int choose(const struct pagepool *p, uint32_t n_groups, page_bits live, bool *goes)
{
	uint32_t n_live = 0, n_backed = vram_backed(p->region);

	for (uint32_t g = 0; g < p->n_groups; g++)
		n_live += vram_is_backed(p->region, g) ? live_in(p, live, g) : 0;
	if (n_groups > n_backed || n_live > (n_backed - n_groups) * p->group_pages)
		return -ENOSPC;
	for (uint32_t i = 0; i < n_groups; i++)
		goes[emptiest(p, live, goes)] = true;
	return 0;
}

/* Copies what is live in the groups that go to free pages of those that stay. */
static int evacuate(const struct pagepool *p, page_bits live, const bool *goes,
		    struct page_move *moves, uint32_t *ret_n)
{
	const uint32_t n_pages = p->n_groups * p->group_pages;
	uint32_t n = 0, to = 0;

	for (uint32_t from = 0; from < n_pages; from++) {
		int r;

		if (!goes[from / p->group_pages] || !page_bit(live, from))
			continue;
		while (goes[to / p->group_pages] || !pagepool_has(p, to) || page_bit(live, to))
			to++;
		r = vram_copy(p->region, to * p->page_bytes, from * p->page_bytes, p->page_bytes);
		if (r < 0)
			return r;
		moves[n++] = (struct page_move){ from, to++ };
	}
	*ret_n = n;
	return 0;
}

int pagepool_shrink(struct pagepool *p, uint32_t n_groups, page_bits live,
		    struct page_move *ret_moves, uint32_t *ret_n_moves)
{
	bool *goes = calloc(p->n_groups, sizeof(*goes));
	int r;

	*ret_n_moves = 0;
	if (!goes)
		return -ENOMEM;
	r = choose(p, n_groups, live, goes);
	if (r == 0)
		r = evacuate(p, live, goes, ret_moves, ret_n_moves);
	for (uint32_t g = 0, end; r == 0 && g < p->n_groups; g = end) {
		for (end = g + 1; goes[g] && end < p->n_groups && goes[end];)
			end++;
		if (goes[g])
			r = vram_unback(p->region, g, end - g);
	}
	free(goes);
	return r;
}

int pagepool_pack(struct pagepool *p, struct page_move *ret_moves, uint32_t *ret_n_moves)
{
	uint32_t low = 0, high = p->n_groups, n = 0;
	int r = 0;

	*ret_n_moves = 0;
	while (r == 0) {
		while (low < high && vram_is_backed(p->region, low))
			low++;
		while (low < high && !vram_is_backed(p->region, high - 1))
			high--;
		if (low >= high)
			break;
		r = vram_remap(p->region, low, high - 1);
		for (uint32_t i = 0; r == 0 && i < p->group_pages; i++)
			ret_moves[n++] = (struct page_move){ (high - 1) * p->group_pages + i,
							     low * p->group_pages + i };
	}
	*ret_n_moves = n;
	return r;
}

void pagepool_figures(const struct pagepool *p, page_bits live, struct pagepool_figures *ret)
{
	struct pagepool_figures f = { 0 };
	uint32_t run = 0, beside_live = 0;

	for (uint32_t g = 0; g < p->n_groups; g++) {
		const bool backed = vram_is_backed(p->region, g);
		const uint32_t n = backed ? live_in(p, live, g) : 0;

		f.groups += backed;
		f.empty_groups += backed && n == 0;
		f.live_pages += n;
		if (n > 0)
			beside_live += p->group_pages - n;
		for (uint32_t i = 0; i < p->group_pages; i++) {
			run = backed && !page_bit(live, g * p->group_pages + i) ? run + 1 : 0;
			if (run > f.largest_free_run)
				f.largest_free_run = run;
		}
	}
	f.pages = f.groups * p->group_pages;
	if (f.pages > f.live_pages)
		f.fragmentation = (double)beside_live / (f.pages - f.live_pages);
	*ret = f;
}
