/*
 * Ours: the code of kernels/cuda, put through a trace. A model's weights are a
 * region; its KV pages a pool that grows by groups when all pages are taken;
 * buffers of passes a static plan for the largest pass, one for the whole card
 * as only one pass runs at a time. Memory is asked back from pools when the
 * card has no more, or others want it: groups go that have the fewest pages.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/lifetimes.h"
#include "kernels/cuda/pagepool.h"
#include "tests/bench/replay.h"
#include "tests/unit/card.h"

#define ALIGN 256u
#define WEIGHTS_CHUNK ((size_t)1 << 30)
#define BUFFERS_CHUNK ((size_t)16 << 20)
#define BUFFERS_MAX 64

struct owner {
	size_t weights_bytes; /* of all tensors, as they are laid one after another */
	uint32_t n_weights;   /* that are there */
	struct vram_region *weights;
	size_t buffers_bytes; /* the plan of its largest pass */
	struct pagepool pool;
	uint32_t n_backed, n_live, n_pages;
	uint64_t *live;
	uint32_t *objects; /* by page */
};

struct ours {
	const struct trace *t;
	struct card card;
	uint64_t limit, leased, allocated;
	struct vram *v;
	struct vram_region *buffers;
	uint32_t n_buffers; /* in use */
	struct owner owners[OWNERS_MAX];
	uint32_t *pages; /* by object */
	struct page_move *moves;
};

/* The tensors of a model that are there together; a second time they are the same. */
static size_t weights_of(const struct trace *t, uint32_t owner)
{
	size_t bytes = 0, most = 0;

	for (uint32_t i = 0; i < t->n_events; i++) {
		const struct object *x = &t->objects[t->events[i].object];
		const size_t n = (x->bytes + ALIGN - 1) / ALIGN * ALIGN;

		if (t->kinds[x->kind].class != 'w' || t->kinds[x->kind].owner != owner)
			continue;
		bytes = t->events[i].comes ? bytes + n : bytes - n;
		most = bytes > most ? bytes : most;
	}
	return most;
}

/* The largest plan of any pass, each buffer as large as it may ever be. */
static size_t plan_buffers(const struct trace *t, uint32_t owner)
{
	struct lifetime l[BUFFERS_MAX];
	uint32_t of[BUFFERS_MAX]; /* the objects */
	uint32_t n = 0, alive = 0;
	size_t most = 0;

	for (uint32_t i = 0; i < t->n_events; i++) {
		const uint32_t object = t->events[i].object;
		const struct kind *k = &t->kinds[t->objects[object].kind];

		if (k->class != 't' || k->owner != owner)
			continue;
		if (t->events[i].comes) {
			if (n == BUFFERS_MAX)
				abort();
			l[n] = (struct lifetime){ .bytes = k->bytes * k->most, .first = i };
			of[n++] = object;
			alive++;
			continue;
		}
		for (uint32_t j = 0; j < n; j++)
			if (of[j] == object)
				l[j].last = i;
		if (--alive == 0) {
			const size_t bytes = lifetimes_place(l, n, ALIGN);

			most = bytes > most ? bytes : most;
			n = 0;
		}
	}
	return most;
}

static void learn_owner(struct ours *a, uint32_t index)
{
	struct owner *o = &a->owners[index];

	for (uint32_t k = 0; k < a->t->n_kinds; k++) {
		const struct kind *kind = &a->t->kinds[k];

		if (kind->owner != index || kind->class != 'k' || o->pool.region)
			continue;
		if (pagepool_init(&o->pool, a->v, "kv", kind->bytes, a->limit / kind->bytes + 1) <
		    0)
			abort();
		o->n_pages = o->pool.n_groups * o->pool.group_pages;
		o->live = calloc(o->n_pages / 64 + 1, sizeof(*o->live));
		o->objects = calloc(o->n_pages, sizeof(*o->objects));
		if (!o->live || !o->objects)
			abort();
	}
	o->weights_bytes = weights_of(a->t, index);
	o->buffers_bytes = plan_buffers(a->t, index);
	if (o->weights_bytes > 0 &&
	    vram_reserve(a->v, "weights", o->weights_bytes, WEIGHTS_CHUNK, &o->weights) < 0)
		abort();
}

static void *open_ours(const struct trace *t, uint64_t limit)
{
	struct ours *a = calloc(1, sizeof(*a));
	uint32_t most_pages = 0;
	size_t most = 0;

	if (!a)
		abort();
	a->t = t;
	a->limit = limit;
	card_init(&a->card, limit, false);
	if (vram_new(&card_ops, &a->card, UINT64_MAX, &a->v) < 0)
		abort();
	for (uint32_t i = 0; i < OWNERS_MAX; i++) {
		learn_owner(a, i);
		most = a->owners[i].buffers_bytes > most ? a->owners[i].buffers_bytes : most;
		most_pages = a->owners[i].n_pages > most_pages ? a->owners[i].n_pages : most_pages;
	}
	if (most > 0 && vram_reserve(a->v, "buffers", most, BUFFERS_CHUNK, &a->buffers) < 0)
		abort();
	a->pages = calloc(t->n_objects, sizeof(*a->pages));
	a->moves = calloc(most_pages + 1, sizeof(*a->moves));
	if (!a->pages || !a->moves)
		abort();
	return a;
}

static void close_ours(void *rival)
{
	struct ours *a = rival;

	vram_free(a->v);
	card_deinit(&a->card);
	for (uint32_t i = 0; i < OWNERS_MAX; i++) {
		free(a->owners[i].live);
		free(a->owners[i].objects);
	}
	free(a->pages);
	free(a->moves);
	free(a);
}

static int shrink(struct ours *a, struct owner *o, uint32_t n_groups)
{
	uint32_t n;
	const int r = pagepool_shrink(&o->pool, n_groups, o->live, a->moves, &n);

	for (uint32_t i = 0; i < n; i++) {
		const uint32_t from = a->moves[i].from, to = a->moves[i].to;

		o->live[from / 64] &= ~(1ull << from % 64);
		o->live[to / 64] |= 1ull << to % 64;
		o->objects[to] = o->objects[from];
		a->pages[o->objects[to]] = to;
	}
	if (r == 0)
		o->n_backed -= n_groups * o->pool.group_pages;
	return r;
}

/*
 * One group of the pool that has the most to spare goes; if none has, the
 * buffers of passes, unless one runs: the next pass takes them again. False:
 * there is nothing left.
 */
static bool reclaim(struct ours *a)
{
	struct owner *best = NULL;
	uint32_t most = 0;

	for (uint32_t i = 0; i < OWNERS_MAX; i++) {
		struct owner *o = &a->owners[i];
		const uint32_t spare = o->pool.region
					       ? (o->n_backed - o->n_live) / o->pool.group_pages
					       : 0;

		if (spare > most) {
			most = spare;
			best = o;
		}
	}
	if (best)
		return shrink(a, best, 1) == 0;
	if (!a->buffers || a->n_buffers > 0 || vram_backed(a->buffers) == 0)
		return false;
	return vram_unback(a->buffers, 0, vram_chunks(a->buffers)) == 0;
}

static int back(struct ours *a, struct vram_region *region, size_t bytes)
{
	const uint32_t n = (bytes + vram_chunk_bytes(region) - 1) / vram_chunk_bytes(region);
	int r = 0;

	for (uint32_t i = 0; i < n && r == 0; i++)
		do
			r = vram_back(region, i, 1);
		while (r == -ENOMEM && reclaim(a));
	return r;
}

static int add_page(struct ours *a, struct owner *o, uint32_t object)
{
	uint32_t page = 0;
	int r;

	if (o->n_live == o->n_backed) {
		do
			r = pagepool_grow(&o->pool, 1);
		while (r == -ENOMEM && reclaim(a));
		if (r < 0)
			return r;
		o->n_backed += o->pool.group_pages;
	}
	while (page_bit(o->live, page) || !pagepool_has(&o->pool, page))
		page = o->live[page / 64] == UINT64_MAX ? (page / 64 + 1) * 64 : page + 1;
	o->live[page / 64] |= 1ull << page % 64;
	o->objects[page] = object;
	o->n_live++;
	a->pages[object] = page;
	return 0;
}

static size_t buffers_wanted(const struct ours *a)
{
	size_t most = 0;

	for (uint32_t i = 0; i < OWNERS_MAX; i++)
		if (a->owners[i].n_weights > 0 && a->owners[i].buffers_bytes > most)
			most = a->owners[i].buffers_bytes;
	return most;
}

static int add(void *rival, uint32_t object)
{
	struct ours *a = rival;
	const struct kind *k = &a->t->kinds[a->t->objects[object].kind];
	struct owner *o = &a->owners[k->owner];
	int r = 0;

	if (k->class == 'k')
		r = add_page(a, o, object);
	else if (k->class == 'w' && o->n_weights++ == 0)
		r = back(a, o->weights, o->weights_bytes);
	else if (k->class == 't' && a->n_buffers++ == 0)
		r = back(a, a->buffers, buffers_wanted(a));
	if (r == 0)
		a->allocated += a->t->objects[object].bytes;
	return r;
}

static void unload(struct ours *a, struct owner *o)
{
	const uint32_t keep = (buffers_wanted(a) + BUFFERS_CHUNK - 1) / BUFFERS_CHUNK;

	vram_unback(o->weights, 0, vram_chunks(o->weights));
	if (a->buffers)
		vram_unback(a->buffers, keep, vram_chunks(a->buffers) - keep);
	if (o->pool.region)
		shrink(a, o, (o->n_backed - o->n_live) / o->pool.group_pages);
}

static void drop(void *rival, uint32_t object)
{
	struct ours *a = rival;
	const struct kind *k = &a->t->kinds[a->t->objects[object].kind];
	struct owner *o = &a->owners[k->owner];
	const uint32_t page = a->pages[object];

	a->allocated -= a->t->objects[object].bytes;
	if (k->class == 'k') {
		o->live[page / 64] &= ~(1ull << page % 64);
		o->n_live--;
	} else if (k->class == 'w' && --o->n_weights == 0) {
		unload(a, o);
	} else if (k->class == 't') {
		a->n_buffers--;
	}
}

static int lease(void *rival, uint64_t leased_bytes)
{
	struct ours *a = rival;

	a->card.bytes = a->limit - leased_bytes;
	a->leased = leased_bytes;
	while (a->card.taken_bytes + leased_bytes > a->limit)
		if (!reclaim(a))
			return -ENOMEM;
	return 0;
}

static void figures(void *rival, struct rival_figures *ret)
{
	const struct ours *a = rival;
	struct vram_figures f;

	vram_figures(a->v, &f);
	*ret = (struct rival_figures){ .reserved_bytes = f.taken_bytes,
				       .allocated_bytes = a->allocated,
				       .maps = f.calls[VRAM_CREATE],
				       .unmaps = f.calls[VRAM_RELEASE],
				       .copied_bytes = a->card.copied_bytes };
	for (int i = 0; i < VRAM_CALLS; i++)
		ret->calls += f.calls[i];
}

const struct rival rival_ours = { "steamd", open_ours, close_ours, add, drop, lease, figures };
