/*
 * PyTorch's caching allocator, as its documentation and statistics show it to
 * behave: sizes in multiples of 512 bytes; small requests (to 1 MiB) from
 * segments of 2 MiB, larger ones below 10 MiB from segments of 20 MiB, others
 * from segments of their own, in multiples of 2 MiB; best fit, split where the
 * rest is worth it, merged when free; whole free segments are given back when
 * the card has no more.
 *
 * With expandable segments one large range of addresses for each of the two
 * classes is backed by granules of 2 and 20 MiB, at the lowest hole that is
 * large enough; free granules are given back when the card has no more. With
 * max_split_size, free blocks of that size and more serve only requests of
 * that size and more, and those only if less than 20 MiB would be left over.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "tests/bench/blockset.h"
#include "tests/bench/replay.h"

#define MIB (1ull << 20)
#define UNIT 512u
#define SMALL_MAX MIB
#define SMALL_SEGMENT (2 * MIB)
#define LARGE_SEGMENT (20 * MIB)
#define LARGE_MIN (10 * MIB)
#define MAX_SPLIT (512 * MIB)
#define FRACTION_CARD                                                                              \
	(140ull << 30) /* an H200, of which set_per_process_memory_fraction() leaves some */

struct block {
	uint64_t at, size;
	bool is_allocated, is_mapped;
	struct pool *pool;
	struct block *prev, *next; /* neighbours of the same segment */
};

struct pool {
	bool is_small;
	struct blockset free;	  /* mapped */
	struct blockset unmapped; /* by address: all of size 0 there */
};

struct torch {
	const struct trace *t;
	bool is_expandable, is_fraction;
	uint64_t limit, leased, reserved, allocated, next_at;
	uint64_t calls, maps, unmaps;
	struct pool small, large;
	struct block **blocks; /* by object */
};

static struct block *new_block(struct pool *pool, uint64_t at, uint64_t size)
{
	struct block *b = calloc(1, sizeof(*b));

	if (!b)
		abort();
	b->at = at;
	b->size = size;
	b->pool = pool;
	b->is_mapped = true;
	return b;
}

static void put(struct block *b)
{
	if (b->is_mapped)
		blockset_add(&b->pool->free, b->size, b->at, b);
	else
		blockset_add(&b->pool->unmapped, 0, b->at, b);
}

static void take(struct block *b)
{
	if (b->is_mapped)
		blockset_remove(&b->pool->free, b->size, b->at);
	else
		blockset_remove(&b->pool->unmapped, 0, b->at);
}

/* What is behind the first @size bytes of @b becomes a block of its own, in no set. */
static struct block *split(struct block *b, uint64_t size)
{
	struct block *rest = new_block(b->pool, b->at + size, b->size - size);

	rest->is_mapped = b->is_mapped;
	rest->prev = b;
	rest->next = b->next;
	if (rest->next)
		rest->next->prev = rest;
	b->next = rest;
	b->size = size;
	return rest;
}

/* Takes @other, a neighbour of @b, into it if it is free and of the same kind. @b is in no set. */
static void merge(struct block *b, struct block *other)
{
	if (!other || other->is_allocated || other->is_mapped != b->is_mapped)
		return;
	take(other);
	if (b->prev == other) {
		b->at = other->at;
		b->prev = other->prev;
		if (b->prev)
			b->prev->next = b;
	} else {
		b->next = other->next;
		if (b->next)
			b->next->prev = b;
	}
	b->size += other->size;
	free(other);
}

static uint64_t segment_bytes(uint64_t size)
{
	if (size <= SMALL_MAX)
		return SMALL_SEGMENT;
	return size < LARGE_MIN ? LARGE_SEGMENT
				: (size + SMALL_SEGMENT - 1) / SMALL_SEGMENT * SMALL_SEGMENT;
}

static uint64_t max_split(const struct torch *a)
{
	return a->is_expandable ? MAX_SPLIT : UINT64_MAX;
}

/* How large a free block could become without moving. */
static uint64_t reach(const struct block *b)
{
	return b->size + (b->next && !b->next->is_mapped ? b->next->size : 0);
}

static struct block *find_free(struct torch *a, struct pool *pool, uint64_t size)
{
	const struct blockset *s = &pool->free;
	uint32_t i = blockset_from(s, size, 0);
	struct block *b;

	if (i == s->n)
		return NULL;
	while (a->is_expandable && i + 1 < s->n &&
	       reach(s->keys[i + 1].block) < reach(s->keys[i].block))
		i++;
	b = s->keys[i].block;
	if (size < max_split(a) ? b->size >= max_split(a) : b->size >= size + LARGE_SEGMENT)
		return NULL;
	take(b);
	return b;
}

static bool card_has(const struct torch *a, uint64_t bytes)
{
	return a->is_fraction || a->reserved + a->leased + bytes <= a->limit;
}

/* The lowest place with @size bytes that are free or have nothing behind them yet. */
static struct block *find_room(struct torch *a, struct pool *pool, uint64_t size)
{
	struct block *range;
	uint64_t card;

	for (uint32_t i = 0; i < pool->unmapped.n; i++) {
		struct block *b = pool->unmapped.keys[i].block;
		uint64_t bytes = 0;

		if (b->prev && !b->prev->is_allocated)
			b = b->prev;
		for (const struct block *c = b; c && !c->is_allocated && bytes < size; c = c->next)
			bytes += c->size;
		if (bytes >= size)
			return b;
	}
	/* an eighth more addresses than the card has memory */
	card = a->is_fraction ? FRACTION_CARD : a->limit;
	range = new_block(pool, a->next_at,
			  card / 8 * 9 / LARGE_SEGMENT * LARGE_SEGMENT + LARGE_SEGMENT);
	range->is_mapped = false;
	a->next_at += 2 * range->size;
	a->calls++;
	put(range);
	return range;
}

/* Backs the first @size bytes of a hole, which begins at a granule. False: no memory. */
static bool map(struct torch *a, struct block *b, uint64_t size)
{
	const uint64_t granule = b->pool->is_small ? SMALL_SEGMENT : LARGE_SEGMENT;
	const uint64_t n = (size + granule - 1) / granule;

	if (!card_has(a, n * granule))
		return false;
	take(b);
	if (n * granule < b->size)
		put(split(b, n * granule));
	b->is_mapped = true;
	merge(b, b->prev);
	merge(b, b->next);
	put(b);
	a->reserved += n * granule;
	a->calls += 2 * n + 1;
	a->maps++;
	return true;
}

static struct block *grow(struct torch *a, struct pool *pool, uint64_t size)
{
	struct block *b = find_room(a, pool, size);

	if (!b->is_mapped && !map(a, b, b->size < size ? b->size : size))
		return NULL;
	while (b->size < size) {
		struct block *hole = b->next;
		const uint64_t rest = size - b->size;

		/* what is mapped takes its neighbour before it in: @b is gone */
		if (!map(a, hole, hole->size < rest ? hole->size : rest))
			return NULL;
		b = hole;
	}
	take(b);
	return b;
}

static struct block *from_card(struct torch *a, struct pool *pool, uint64_t size)
{
	const uint64_t bytes = segment_bytes(size);
	struct block *b;

	if (a->is_fraction && a->reserved + bytes + a->leased > a->limit)
		return NULL;
	if (a->is_expandable)
		return grow(a, pool, size);
	if (!card_has(a, bytes))
		return NULL;
	b = new_block(pool, a->next_at, bytes);
	a->next_at += 2 * bytes;
	a->reserved += bytes;
	a->calls++;
	a->maps++;
	return b;
}

/* Gives back the whole granules within a free block. */
static void unmap(struct torch *a, struct block *b)
{
	const uint64_t granule = b->pool->is_small ? SMALL_SEGMENT : LARGE_SEGMENT;
	const uint64_t from = (b->at + granule - 1) / granule * granule;
	const uint64_t to = (b->at + b->size) / granule * granule;

	if (from >= to)
		return;
	take(b);
	if (to < b->at + b->size)
		put(split(b, to - b->at));
	if (from > b->at) {
		struct block *hole = split(b, from - b->at);

		put(b);
		b = hole;
	}
	b->is_mapped = false;
	merge(b, b->prev);
	merge(b, b->next);
	put(b);
	a->reserved -= to - from;
	a->calls += 2 * (to - from) / granule;
	a->unmaps++;
}

static void release(struct torch *a, struct pool *pool)
{
	struct block **list = calloc(pool->free.n + 1, sizeof(*list));
	const uint32_t n = pool->free.n;

	if (!list)
		abort();
	for (uint32_t i = 0; i < n; i++)
		list[i] = pool->free.keys[i].block;
	for (uint32_t i = 0; i < n; i++) {
		struct block *b = list[i];

		if (a->is_expandable) {
			unmap(a, b);
		} else if (!b->prev && !b->next) {
			take(b);
			a->reserved -= b->size;
			a->calls++;
			a->unmaps++;
			free(b);
		}
	}
	free(list);
}

static void release_all(struct torch *a)
{
	release(a, &a->large);
	release(a, &a->small);
}

static int add(void *rival, uint32_t object)
{
	struct torch *a = rival;
	const uint64_t size = (a->t->objects[object].bytes + UNIT - 1) / UNIT * UNIT;
	struct pool *pool = size <= SMALL_MAX ? &a->small : &a->large;
	struct block *b = find_free(a, pool, size);
	uint64_t rest;

	if (!b)
		b = from_card(a, pool, size);
	if (!b) {
		release_all(a);
		b = from_card(a, pool, size);
	}
	if (!b)
		return -ENOMEM;
	rest = b->size - size;
	if (pool->is_small || a->is_expandable ? rest >= UNIT
					       : size < max_split(a) && rest > SMALL_MAX)
		put(split(b, size));
	b->is_allocated = true;
	a->allocated += b->size;
	a->blocks[object] = b;
	return 0;
}

static void drop(void *rival, uint32_t object)
{
	struct torch *a = rival;
	struct block *b = a->blocks[object];

	b->is_allocated = false;
	a->allocated -= b->size;
	merge(b, b->prev);
	merge(b, b->next);
	put(b);
	a->blocks[object] = NULL;
}

/* Nothing is known of others that want memory: somebody empties the cache by hand, at both ends. */
static int lease(void *rival, uint64_t leased_bytes)
{
	struct torch *a = rival;

	release_all(a);
	a->leased = leased_bytes;
	return card_has(a, 0) ? 0 : -ENOMEM;
}

static void figures(void *rival, struct rival_figures *ret)
{
	const struct torch *a = rival;

	*ret = (struct rival_figures){ .reserved_bytes = a->reserved,
				       .allocated_bytes = a->allocated,
				       .calls = a->calls,
				       .maps = a->maps,
				       .unmaps = a->unmaps };
}

static void *open_as(const struct trace *t, uint64_t limit, bool is_expandable, bool is_fraction)
{
	struct torch *a = calloc(1, sizeof(*a));

	if (!a)
		abort();
	a->t = t;
	a->limit = limit;
	a->is_expandable = is_expandable;
	a->is_fraction = is_fraction;
	a->next_at = LARGE_SEGMENT;
	a->small.is_small = true;
	a->blocks = calloc(t->n_objects, sizeof(*a->blocks));
	if (!a->blocks)
		abort();
	return a;
}

static void *open_default(const struct trace *t, uint64_t limit)
{
	return open_as(t, limit, false, false);
}

static void *open_expandable(const struct trace *t, uint64_t limit)
{
	return open_as(t, limit, true, false);
}

static void *open_fraction(const struct trace *t, uint64_t limit)
{
	return open_as(t, limit, false, true);
}

static void *open_expandable_fraction(const struct trace *t, uint64_t limit)
{
	return open_as(t, limit, true, true);
}

static void free_pool(struct pool *p)
{
	for (uint32_t i = 0; i < p->free.n; i++)
		free(p->free.keys[i].block);
	for (uint32_t i = 0; i < p->unmapped.n; i++)
		free(p->unmapped.keys[i].block);
	free(p->free.keys);
	free(p->unmapped.keys);
}

static void close_torch(void *rival)
{
	struct torch *a = rival;

	for (uint32_t i = 0; i < a->t->n_objects; i++)
		free(a->blocks[i]);
	free_pool(&a->small);
	free_pool(&a->large);
	free(a->blocks);
	free(a);
}

#define RIVAL(symbol, text, open_it)                                                               \
	const struct rival symbol = { .name = text,                                                \
				      .open = open_it,                                             \
				      .close = close_torch,                                        \
				      .add = add,                                                  \
				      .drop = drop,                                                \
				      .lease = lease,                                              \
				      .figures = figures }

RIVAL(rival_torch, "PyTorch", open_default);
RIVAL(rival_torch_expandable, "PyTorch, expandable", open_expandable);
RIVAL(rival_torch_fraction, "PyTorch", open_fraction);
RIVAL(rival_torch_expandable_fraction, "PyTorch, expandable", open_expandable_fraction);
