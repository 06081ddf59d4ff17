/*
 * Two allocators over one slab of the whole card: a buddy (powers of two) and
 * a best fit (multiples of 512 bytes, the smallest free block that will do,
 * merged when free). A slab cannot be lent: a lease is taken from it in pieces
 * like any other object, which is more than another process could use. What is
 * reserved is the slab up to the highest byte in use.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/bench/blockset.h"
#include "tests/bench/replay.h"

#define MIB (1ull << 20)
#define UNIT 512u
#define ORDERS 48
#define LEASE_PIECE (64 * MIB)
#define LEASE_PIECES_MAX 4096

struct place {
	uint64_t at, size;
	bool is_used;
	struct place *prev, *next; /* best fit: neighbours */
};

struct slab {
	const struct trace *t;
	bool is_buddy;
	uint64_t allocated, end; /* of what is in use */
	struct blockset free;	 /* best fit: by size; buddy: by size, which is a power of two */
	struct blockset used;	 /* by end, of address 0 */
	struct place **places;	 /* by object, then of leases */
	uint32_t n_leased;
};

static struct place *new_place(uint64_t at, uint64_t size)
{
	struct place *p = calloc(1, sizeof(*p));

	if (!p)
		abort();
	p->at = at;
	p->size = size;
	return p;
}

static void put(struct slab *s, struct place *p)
{
	blockset_add(&s->free, p->size, p->at, p);
}

static void take(struct slab *s, struct place *p)
{
	blockset_remove(&s->free, p->size, p->at);
}

static struct place *split(struct place *p, uint64_t size)
{
	struct place *rest = new_place(p->at + size, p->size - size);

	rest->prev = p;
	rest->next = p->next;
	if (rest->next)
		rest->next->prev = rest;
	p->next = rest;
	p->size = size;
	return rest;
}

static void swallow(struct slab *s, struct place *p, struct place *next)
{
	take(s, next);
	p->size += next->size;
	p->next = next->next;
	if (p->next)
		p->next->prev = p;
	free(next);
}

static uint64_t rounded(const struct slab *s, uint64_t bytes)
{
	uint64_t size = UNIT;

	if (!s->is_buddy)
		return (bytes + UNIT - 1) / UNIT * UNIT;
	while (size < bytes)
		size *= 2;
	return size;
}

static int get(struct slab *s, uint64_t bytes, struct place **ret)
{
	const uint64_t size = rounded(s, bytes);
	const uint32_t i = blockset_from(&s->free, size, 0);
	struct place *p;

	if (i == s->free.n)
		return -ENOMEM;
	p = s->free.keys[i].block;
	take(s, p);
	while (p->size > size)
		put(s, split(p, s->is_buddy ? p->size / 2 : size));
	p->is_used = true;
	s->allocated += bytes;
	blockset_add(&s->used, p->at + p->size, 0, p);
	*ret = p;
	return 0;
}

/* The other half of what @p was split from, if it is free and whole. */
static struct place *buddy_of(const struct place *p)
{
	struct place *other = p->at & p->size ? p->prev : p->next;

	if (!other || other->is_used || other->size != p->size || (other->at ^ p->at) != p->size)
		return NULL;
	return other;
}

static void give(struct slab *s, struct place *p, uint64_t bytes)
{
	struct place *other;

	blockset_remove(&s->used, p->at + p->size, 0);
	s->allocated -= bytes;
	p->is_used = false;
	for (;;) {
		if (s->is_buddy)
			other = buddy_of(p);
		else
			other = p->next && !p->next->is_used   ? p->next
				: p->prev && !p->prev->is_used ? p->prev
							       : NULL;
		if (!other)
			break;
		if (other == p->prev) {
			struct place *low = other;

			take(s, low);
			put(s, p);
			swallow(s, low, p);
			p = low;
		} else {
			swallow(s, p, other);
		}
	}
	put(s, p);
}

static int add(void *rival, uint32_t object)
{
	struct slab *s = rival;

	return get(s, s->t->objects[object].bytes, &s->places[object]);
}

static void drop(void *rival, uint32_t object)
{
	struct slab *s = rival;

	give(s, s->places[object], s->t->objects[object].bytes);
	s->places[object] = NULL;
}

static int lease(void *rival, uint64_t leased_bytes)
{
	struct slab *s = rival;
	const uint32_t n = (leased_bytes + LEASE_PIECE - 1) / LEASE_PIECE;

	while (s->n_leased > n) {
		struct place **piece = &s->places[s->t->n_objects + --s->n_leased];

		give(s, *piece, LEASE_PIECE);
		*piece = NULL;
	}
	while (s->n_leased < n) {
		if (get(s, LEASE_PIECE, &s->places[s->t->n_objects + s->n_leased]) < 0)
			return -ENOMEM;
		s->n_leased++;
	}
	return 0;
}

static void figures(void *rival, struct rival_figures *ret)
{
	const struct slab *s = rival;
	const uint64_t leased = s->n_leased * LEASE_PIECE; /* the caller adds leases itself */
	const uint64_t end = s->used.n ? s->used.keys[s->used.n - 1].size : 0;

	*ret = (struct rival_figures){ .reserved_bytes = end > leased ? end - leased : 0,
				       .allocated_bytes = s->allocated - leased,
				       .calls = 1,
				       .maps = 1 };
}

static void *open_as(const struct trace *t, uint64_t limit, bool is_buddy)
{
	struct slab *s = calloc(1, sizeof(*s));
	uint64_t at = 0;

	if (!s)
		abort();
	s->t = t;
	s->is_buddy = is_buddy;
	s->places = calloc(t->n_objects + LEASE_PIECES_MAX, sizeof(*s->places));
	if (!s->places)
		abort();
	/* a buddy's slab is cut into powers of two, the largest first */
	for (uint64_t size = is_buddy ? 1ull << ORDERS : limit; size >= UNIT; size /= 2) {
		if (at + size > limit)
			continue;
		put(s, new_place(at, size));
		at += size;
	}
	return s;
}

static void *open_buddy(const struct trace *t, uint64_t limit)
{
	return open_as(t, limit, true);
}

static void *open_best_fit(const struct trace *t, uint64_t limit)
{
	return open_as(t, limit / UNIT * UNIT, false);
}

static void close_slab(void *rival)
{
	struct slab *s = rival;

	for (uint32_t i = 0; i < s->free.n; i++)
		free(s->free.keys[i].block);
	for (uint32_t i = 0; i < s->t->n_objects + LEASE_PIECES_MAX; i++)
		free(s->places[i]);
	free(s->free.keys);
	free(s->used.keys);
	free(s->places);
	free(s);
}

const struct rival rival_buddy = { "buddy", open_buddy, close_slab, add, drop, lease, figures };
const struct rival rival_best_fit = { "best fit", open_best_fit, close_slab, add,
				      drop,	  lease,	 figures };
