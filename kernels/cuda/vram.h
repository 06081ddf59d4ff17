/*
 * A card's memory: addresses that are reserved for life, and physical chunks
 * that come and go behind them. Chunks are multiples of VRAM_GRANULE, any
 * chunk serves any address, so free memory is never fragmented; what is lost
 * is less than a granule a region. Driver-free: everything that touches a card
 * goes through a table, each of whose calls may fail.
 *
 * Not for several threads at once.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VRAM_GRANULE ((size_t)2 << 20)
#define VRAM_REGIONS_MAX 1024
#define VRAM_NAME_MAX 24

enum vram_access { VRAM_NO_ACCESS, VRAM_READ, VRAM_READ_WRITE };

/* Each returns 0 or a negative errno, and has then done nothing. All block until they are done. */
struct vram_ops {
	/* A physical chunk; -ENOMEM: the card has none left, which is ordinary. */
	int (*create)(void *card, size_t bytes, uint64_t *ret_chunk);
	int (*release)(void *card, uint64_t chunk);
	/* Addresses, aligned to VRAM_GRANULE. */
	int (*reserve)(void *card, size_t bytes, uint64_t *ret_at);
	int (*unreserve)(void *card, uint64_t at, size_t bytes);
	/* A whole chunk at an address with nothing behind it; of no use before access(). */
	int (*map)(void *card, uint64_t at, uint64_t chunk, size_t bytes);
	int (*unmap)(void *card, uint64_t at, size_t bytes);
	/* Of one or more chunks that are mapped side by side. */
	int (*access)(void *card, uint64_t at, size_t bytes, enum vram_access access);
	/* From one mapped place to another that does not overlap it. */
	int (*copy)(void *card, uint64_t to, uint64_t from, size_t bytes);
	/* A descriptor, the caller's, that keeps the chunk and its contents beyond this process. */
	int (*export_fd)(void *card, uint64_t chunk, int *ret_fd);
	/* The chunk of such a descriptor, which stays the caller's. */
	int (*import_fd)(void *card, int fd, size_t bytes, uint64_t *ret_chunk);
};

enum vram_call {
	VRAM_CREATE, VRAM_RELEASE, VRAM_RESERVE, VRAM_UNRESERVE, VRAM_MAP, VRAM_UNMAP, VRAM_ACCESS,
	VRAM_COPY, VRAM_EXPORT, VRAM_IMPORT, VRAM_CALLS,
};

struct vram;
struct vram_region;

struct vram_figures {
	uint64_t limit_bytes;	   /* what may be taken; UINT64_MAX: only the card says no */
	uint64_t taken_bytes;	   /* in chunks, mapped or not */
	uint64_t peak_bytes;	   /* the most that was taken at a time */
	uint64_t reserved_bytes;   /* of addresses */
	uint64_t stuck_bytes;	   /* in chunks that could not be given back; the next try may do it */
	uint64_t refused_bytes;	   /* wanted by the last vram_back() that said -ENOMEM; 0: none did */
	uint64_t calls[VRAM_CALLS]; /* made, failed ones too */
	uint32_t n_regions;
};

/* @ops, @card outlive it. 0 or -ENOMEM (of the host). */
int vram_new(const struct vram_ops *ops, void *card, uint64_t limit_bytes, struct vram **ret);
/*
 * Gives everything back. Should the card refuse, what it refused is lost with
 * the process; returns NULL anyway.
 */
struct vram *vram_free(struct vram *v);
void vram_figures(const struct vram *v, struct vram_figures *ret);

/*
 * From here on, until told otherwise, no memory is asked for or given back:
 * who does so has made a mistake (assert). For the time of a step.
 */
void vram_set_serving(struct vram *v, bool serving);

/*
 * Reserves addresses for the life of the region, with nothing behind them.
 *
 * name		cut to VRAM_NAME_MAX - 1; for people
 * bytes	rounded up to VRAM_GRANULE; more than 0
 * chunk_bytes	a multiple of VRAM_GRANULE: the unit in which memory comes and goes; the last
 *		chunk is what is left of bytes
 *
 * Returns 0, -EINVAL, -ENOSPC: VRAM_REGIONS_MAX regions, -ENOMEM, or what the card says.
 */
int vram_reserve(struct vram *v, const char *name, size_t bytes, size_t chunk_bytes,
		 struct vram_region **ret);
/* Gives back memory and addresses. Returns NULL, or the region if the card refused: try again. */
struct vram_region *vram_unreserve(struct vram_region *r);

const char *vram_name(const struct vram_region *r);
uint64_t vram_at(const struct vram_region *r);	  /* the first address */
size_t vram_bytes(const struct vram_region *r);
size_t vram_chunk_bytes(const struct vram_region *r);
uint32_t vram_chunks(const struct vram_region *r);
bool vram_is_backed(const struct vram_region *r, uint32_t chunk);
uint32_t vram_backed(const struct vram_region *r); /* chunks */
/* Regions by index, for maps; NULL past the last. */
const struct vram_region *vram_region_at(const struct vram *v, uint32_t i);

/*
 * Puts memory behind chunks @first … @first + @n - 1 that have none, readable
 * and writable; those that have some keep it. All or nothing.
 *
 * Returns 0; -EINVAL; -ENOMEM: over the limit, or the card has no more (see
 * refused_bytes); or what the card says.
 */
int vram_back(struct vram_region *r, uint32_t first, uint32_t n);
/*
 * Gives it back; the contents are lost, the addresses stay. Goes on after a
 * refusal and returns the first: what could not be given back is no longer
 * backed, counts as stuck, and is tried again by the next vram_unback() or
 * vram_back() there.
 */
int vram_unback(struct vram_region *r, uint32_t first, uint32_t n);
/*
 * What is behind chunk @from, contents and all, is behind @to from now on,
 * where there was nothing. Returns 0; -EINVAL; or what the card says: then it
 * is where it was, or, should the card refuse that too, stuck at one of them.
 */
int vram_remap(struct vram_region *r, uint32_t to, uint32_t from);
/* What of @n chunks is backed: read-only from here on, until it is backed anew. 0, -EINVAL or what the card says. */
int vram_seal(struct vram_region *r, uint32_t first, uint32_t n);
/*
 * A descriptor of a backed chunk, which is the caller's: while anybody holds it
 * the contents stay, whatever becomes of this process. 0, -EINVAL or what the card says.
 */
int vram_export(struct vram_region *r, uint32_t chunk, int *ret_fd);
/*
 * Puts what another process exported behind a chunk that has nothing, to be
 * read only; it is the same size. @fd stays the caller's. Returns 0; -EINVAL;
 * -ENOMEM: over the limit; or what the card says: then nothing is there.
 */
int vram_adopt(struct vram_region *r, uint32_t chunk, int fd);
/* Between backed places of a region. */
int vram_copy(struct vram_region *r, size_t to, size_t from, size_t bytes);

static inline size_t vram_round(size_t bytes)
{
	return (bytes + VRAM_GRANULE - 1) / VRAM_GRANULE * VRAM_GRANULE;
}

static inline void vram_freep(struct vram **v)
{
	*v = vram_free(*v);
}
