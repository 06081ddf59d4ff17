/* Regions and the chunks behind them; see vram.h. */
#include "kernels/cuda/vram.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

/* How far a chunk has come; on the way back it passes the same states. */
enum state {
	NONE,
	MADE,	/* there is a physical chunk */
	MAPPED, /* at its address, perhaps without access */
	BACKED,
};

struct chunk {
	uint64_t handle;
	enum state state;
};

struct vram_region {
	struct vram *v;
	char name[VRAM_NAME_MAX];
	uint64_t at;
	size_t bytes, chunk_bytes;
	uint32_t n_chunks;
	struct chunk chunks[];
};

struct vram {
	const struct vram_ops *ops;
	void *card;
	bool serving;
	struct vram_figures figures;
	struct vram_region *regions[VRAM_REGIONS_MAX];
};

/* Counts a call that is about to be made. */
static void *called(struct vram *v, enum vram_call call)
{
	assert(!v->serving || call == VRAM_COPY);
	v->figures.calls[call]++;
	return v->card;
}

static uint64_t at_of(const struct vram_region *r, uint32_t i)
{
	return r->at + (uint64_t)i * r->chunk_bytes;
}

static size_t bytes_of(const struct vram_region *r, uint32_t i)
{
	return i + 1 < r->n_chunks ? r->chunk_bytes : r->bytes - (size_t)i * r->chunk_bytes;
}

int vram_new(const struct vram_ops *ops, void *card, uint64_t limit_bytes, struct vram **ret)
{
	struct vram *v = calloc(1, sizeof(*v));

	if (!v)
		return -ENOMEM;
	v->ops = ops;
	v->card = card;
	v->figures.limit_bytes = limit_bytes;
	*ret = v;
	return 0;
}

struct vram *vram_free(struct vram *v)
{
	if (!v)
		return NULL;
	v->serving = false;
	for (uint32_t i = VRAM_REGIONS_MAX; i-- > 0;)
		free(v->regions[i] ? vram_unreserve(v->regions[i]) : NULL);
	free(v);
	return NULL;
}

void vram_figures(const struct vram *v, struct vram_figures *ret)
{
	*ret = v->figures;
	for (uint32_t i = 0; i < v->figures.n_regions; i++) {
		const struct vram_region *r = v->regions[i];

		for (uint32_t c = 0; c < r->n_chunks; c++)
			if (r->chunks[c].state == MADE || r->chunks[c].state == MAPPED)
				ret->stuck_bytes += bytes_of(r, c);
	}
}

void vram_set_serving(struct vram *v, bool serving)
{
	v->serving = serving;
}

int vram_reserve(struct vram *v, const char *name, size_t bytes, size_t chunk_bytes,
		 struct vram_region **ret)
{
	struct vram_region *r;
	size_t n_chunks;
	int error;

	if (bytes == 0 || bytes > SIZE_MAX - VRAM_GRANULE || chunk_bytes == 0 ||
	    chunk_bytes % VRAM_GRANULE)
		return -EINVAL;
	if (v->figures.n_regions == VRAM_REGIONS_MAX)
		return -ENOSPC;
	n_chunks = (vram_round(bytes) - 1) / chunk_bytes + 1;
	if (n_chunks > UINT32_MAX)
		return -EINVAL;
	r = calloc(1, sizeof(*r) + n_chunks * sizeof(*r->chunks));
	if (!r)
		return -ENOMEM;
	r->v = v;
	r->bytes = vram_round(bytes);
	r->chunk_bytes = chunk_bytes;
	r->n_chunks = n_chunks;
	snprintf(r->name, sizeof(r->name), "%s", name);
	error = v->ops->reserve(called(v, VRAM_RESERVE), r->bytes, &r->at);
	if (error < 0) {
		free(r);
		return error;
	}
	v->figures.reserved_bytes += r->bytes;
	v->regions[v->figures.n_regions++] = r;
	*ret = r;
	return 0;
}

struct vram_region *vram_unreserve(struct vram_region *r)
{
	struct vram *v;
	uint32_t i = 0;

	if (!r)
		return NULL;
	v = r->v;
	if (vram_unback(r, 0, r->n_chunks) < 0 ||
	    v->ops->unreserve(called(v, VRAM_UNRESERVE), r->at, r->bytes) < 0)
		return r;
	while (v->regions[i] != r)
		i++;
	v->figures.reserved_bytes -= r->bytes;
	v->figures.n_regions--;
	for (; i < v->figures.n_regions; i++)
		v->regions[i] = v->regions[i + 1];
	v->regions[i] = NULL;
	free(r);
	return NULL;
}

const char *vram_name(const struct vram_region *r)
{
	return r->name;
}

uint64_t vram_at(const struct vram_region *r)
{
	return r->at;
}

size_t vram_bytes(const struct vram_region *r)
{
	return r->bytes;
}

size_t vram_chunk_bytes(const struct vram_region *r)
{
	return r->chunk_bytes;
}

uint32_t vram_chunks(const struct vram_region *r)
{
	return r->n_chunks;
}

bool vram_is_backed(const struct vram_region *r, uint32_t chunk)
{
	return chunk < r->n_chunks && r->chunks[chunk].state == BACKED;
}

uint32_t vram_backed(const struct vram_region *r)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < r->n_chunks; i++)
		n += r->chunks[i].state == BACKED;
	return n;
}

const struct vram_region *vram_region_at(const struct vram *v, uint32_t i)
{
	return i < v->figures.n_regions ? v->regions[i] : NULL;
}

/* Takes a chunk back as far as the card lets it. */
static int undo(struct vram_region *r, uint32_t i)
{
	struct vram *v = r->v;
	struct chunk *c = &r->chunks[i];
	int error;

	if (c->state == BACKED || c->state == MAPPED) {
		c->state = MAPPED; /* whatever happens, nobody may count on it any more */
		error = v->ops->unmap(called(v, VRAM_UNMAP), at_of(r, i), bytes_of(r, i));
		if (error < 0)
			return error;
		c->state = MADE;
	}
	if (c->state == MADE) {
		error = v->ops->release(called(v, VRAM_RELEASE), c->handle);
		if (error < 0)
			return error;
		v->figures.taken_bytes -= bytes_of(r, i);
		c->state = NONE;
	}
	return 0;
}

/* Counts a chunk that is there now, whoever made it. */
static void made(struct vram_region *r, uint32_t i)
{
	struct vram_figures *f = &r->v->figures;

	r->chunks[i].state = MADE;
	f->taken_bytes += bytes_of(r, i);
	if (f->taken_bytes > f->peak_bytes)
		f->peak_bytes = f->taken_bytes;
}

static bool over_limit(const struct vram_region *r, uint32_t i)
{
	return r->v->figures.taken_bytes + bytes_of(r, i) > r->v->figures.limit_bytes;
}

/* From nothing, or from where the last attempt stuck, to MAPPED. */
static int make(struct vram_region *r, uint32_t i)
{
	struct vram *v = r->v;
	struct chunk *c = &r->chunks[i];
	const size_t bytes = bytes_of(r, i);
	int error;

	if (c->state == NONE) {
		if (over_limit(r, i))
			return -ENOMEM;
		error = v->ops->create(called(v, VRAM_CREATE), bytes, &c->handle);
		if (error < 0)
			return error;
		made(r, i);
	}
	if (c->state == MADE) {
		error = v->ops->map(called(v, VRAM_MAP), at_of(r, i), c->handle, bytes);
		if (error < 0)
			return error;
		c->state = MAPPED;
	}
	return 0;
}

static int set_access(struct vram_region *r, uint32_t first, uint32_t n, enum vram_access access)
{
	const uint64_t at = at_of(r, first);
	const size_t bytes = at_of(r, first + n - 1) + bytes_of(r, first + n - 1) - at;

	return r->v->ops->access(called(r->v, VRAM_ACCESS), at, bytes, access);
}

/* The run of chunks from @i on, below @end, that are in @state. */
static uint32_t run_of(const struct vram_region *r, uint32_t i, uint32_t end, enum state state)
{
	uint32_t n = 0;

	while (i + n < end && r->chunks[i + n].state == state)
		n++;
	return n;
}

static bool within(const struct vram_region *r, uint32_t first, uint32_t n)
{
	return first <= r->n_chunks && n <= r->n_chunks - first;
}

int vram_back(struct vram_region *r, uint32_t first, uint32_t n)
{
	const uint32_t end = first + n;
	size_t wanted = 0;
	int error = 0;

	if (!within(r, first, n))
		return -EINVAL;
	for (uint32_t i = first; i < end; i++)
		wanted += r->chunks[i].state == NONE ? bytes_of(r, i) : 0;
	for (uint32_t i = first; i < end && error == 0; i++)
		if (r->chunks[i].state != BACKED)
			error = make(r, i);
	/* what is MAPPED now is new, and stays so until all of it can be used */
	for (uint32_t i = first, run; i < end && error == 0; i += run > 0 ? run : 1) {
		run = run_of(r, i, end, MAPPED);
		if (run > 0)
			error = set_access(r, i, run, VRAM_READ_WRITE);
	}
	for (uint32_t i = first; i < end; i++) {
		if (r->chunks[i].state == BACKED)
			continue;
		if (error < 0)
			undo(r, i);
		else
			r->chunks[i].state = BACKED;
	}
	if (error == -ENOMEM)
		r->v->figures.refused_bytes = wanted;
	return error;
}

int vram_unback(struct vram_region *r, uint32_t first, uint32_t n)
{
	int first_error = 0;

	if (!within(r, first, n))
		return -EINVAL;
	for (uint32_t i = first; i < first + n; i++) {
		const int error = undo(r, i);

		if (error < 0 && first_error == 0)
			first_error = error;
	}
	return first_error;
}

/* Puts a chunk that is MADE behind @to, which is NONE, in the place of @from. */
static int place(struct vram_region *r, uint32_t to, uint32_t from)
{
	const struct chunk moving = r->chunks[from];
	int error;

	r->chunks[from] = (struct chunk){ .state = NONE };
	r->chunks[to] = moving;
	error = make(r, to);
	if (error == 0)
		error = set_access(r, to, 1, VRAM_READ_WRITE);
	if (error == 0)
		r->chunks[to].state = BACKED;
	return error;
}

int vram_remap(struct vram_region *r, uint32_t to, uint32_t from)
{
	struct vram *v = r->v;
	int error;

	if (to >= r->n_chunks || from >= r->n_chunks || bytes_of(r, to) != bytes_of(r, from) ||
	    r->chunks[to].state != NONE || r->chunks[from].state != BACKED)
		return -EINVAL;
	error = v->ops->unmap(called(v, VRAM_UNMAP), at_of(r, from), bytes_of(r, from));
	if (error < 0)
		return error;
	r->chunks[from].state = MADE;
	error = place(r, to, from);
	if (error < 0 &&
	    (r->chunks[to].state == MADE ||
	     v->ops->unmap(called(v, VRAM_UNMAP), at_of(r, to), bytes_of(r, to)) == 0)) {
		r->chunks[to].state = MADE;
		place(r, from, to); /* the contents are still in it */
	}
	return error;
}

int vram_seal(struct vram_region *r, uint32_t first, uint32_t n)
{
	if (!within(r, first, n))
		return -EINVAL;
	for (uint32_t i = first, run; i<first + n; i += run> 0 ? run : 1) {
		run = run_of(r, i, first + n, BACKED);
		if (run > 0) {
			const int error = set_access(r, i, run, VRAM_READ);

			if (error < 0)
				return error;
		}
	}
	return 0;
}

int vram_export(struct vram_region *r, uint32_t chunk, int *ret_fd)
{
	if (!vram_is_backed(r, chunk))
		return -EINVAL;
	return r->v->ops->export_fd(called(r->v, VRAM_EXPORT), r->chunks[chunk].handle, ret_fd);
}

int vram_adopt(struct vram_region *r, uint32_t chunk, int fd)
{
	struct vram *v = r->v;
	int error;

	if (chunk >= r->n_chunks || r->chunks[chunk].state != NONE)
		return -EINVAL;
	if (over_limit(r, chunk))
		return -ENOMEM;
	error = v->ops->import_fd(called(v, VRAM_IMPORT), fd, bytes_of(r, chunk),
				  &r->chunks[chunk].handle);
	if (error < 0)
		return error;
	made(r, chunk);
	error = make(r, chunk);
	if (error == 0)
		error = set_access(r, chunk, 1, VRAM_READ);
	if (error < 0)
		undo(r, chunk);
	else
		r->chunks[chunk].state = BACKED;
	return error;
}

int vram_copy(struct vram_region *r, size_t to, size_t from, size_t bytes)
{
	return r->v->ops->copy(called(r->v, VRAM_COPY), r->at + to, r->at + from, bytes);
}
