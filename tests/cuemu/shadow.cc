/*
 * Shared memory and its shadow: for every byte who wrote and read it last.
 *
 * Two accesses are in order if a barrier of the block is between them, or,
 * within a warp, if both threads have passed a __syncwarp() since the first.
 * (Of two __syncwarp() under different masks that counts too: more than a
 * device promises.)
 */
#include <algorithm>
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tests/cuemu/parts.h"

#define NOBODY 0xffff
#define MANY 0xff

struct cell {
	uint32_t serial; /* of the block that wrote it; another: never written */
	uint32_t write_epoch, read_epoch;
	uint32_t write_time, read_time;
	uint32_t readers; /* lanes of that warp, since its last order among all */
	uint16_t writer;
	uint8_t reader_warp; /* or MANY */
	bool atomic, in_flight;
};

/* Static __shared__ variables are thread-local ones of the program, see cuda_runtime.h. */
static thread_local char *statics;
static thread_local size_t statics_bytes;
static thread_local char *dynamic;
static thread_local struct cell *cells; /* [SHARED_MAX] for dynamic, then statics */

char *shadow_dynamic(void)
{
	if (!dynamic) {
		dynamic = (char *)mmap(NULL, SHARED_MAX, PROT_READ | PROT_WRITE,
				       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (dynamic == MAP_FAILED)
			abort();
	}
	return dynamic;
}

static int find_statics(struct dl_phdr_info *info, size_t, void *)
{
	if (!info->dlpi_tls_data)
		return 1;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		if (info->dlpi_phdr[i].p_type == PT_TLS) {
			statics = (char *)info->dlpi_tls_data;
			statics_bytes = info->dlpi_phdr[i].p_memsz;
		}
	}
	return 1; /* the first is the program itself */
}

void shadow_launch(void)
{
	if (cells)
		return;
	dl_iterate_phdr(find_statics, NULL);
	cells = (struct cell *)mmap(NULL, (SHARED_MAX + statics_bytes) * sizeof(*cells),
				    PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (cells == MAP_FAILED)
		abort();
}

bool shadow_covers(const void *p)
{
	const char *at = (const char *)p;

	return (dynamic && at >= dynamic && at < dynamic + SHARED_MAX) ||
	       (at >= statics && at < statics + statics_bytes);
}

/* What a block finds is whatever another left: not to be relied on. */
void shadow_fill(void)
{
	memset(dynamic, 0xff, std::min<size_t>(cuemu_block->shared_bytes, SHARED_MAX));
}

static struct cell *cells_of(const void *p, size_t bytes, const char *verb, const void *pc)
{
	const char *at = (const char *)p;

	if (at >= dynamic && at < dynamic + SHARED_MAX) {
		if ((size_t)(at - dynamic) + bytes > cuemu_block->shared_bytes)
			fault_in_kernel(pc, "%s %zu bytes at byte %zu of %zu of shared memory", verb,
					bytes, (size_t)(at - dynamic), cuemu_block->shared_bytes);
		return cells + (at - dynamic);
	}
	return cells + SHARED_MAX + (at - statics);
}

static bool in_order(const struct thread *a, const struct thread *b, uint32_t time)
{
	return time < std::min(a->sync_time, b->sync_time);
}

static void race(const struct cell *c, const char *verb, const char *verb_before, uint32_t before,
		 const void *at, const void *pc)
{
	(void)c;
	if (before == NOBODY)
		fault_in_kernel(pc, "race: %s shared memory at %p that other threads %s", verb, at,
				verb_before);
	fault_in_kernel(pc, "race: %s shared memory at %p that thread %u %s", verb, at, before,
			verb_before);
}

static void check_against_writer(const struct cell *c, const struct thread *t, bool atomic,
				 const char *verb, const void *at, const void *pc)
{
	const struct thread *writer = t - t->number + c->writer;

	if (c->write_epoch != cuemu_block->epoch || c->writer == t->number || (c->atomic && atomic))
		return;
	if (c->writer / WARP == t->number / WARP && in_order(writer, t, c->write_time))
		return;
	race(c, verb, "wrote", c->writer, at, pc);
}

static void check_against_readers(const struct cell *c, const struct thread *t, const char *verb,
				  const void *at, const void *pc)
{
	const uint32_t lane = t->number % WARP, warp = t->number / WARP;

	if (c->read_epoch != cuemu_block->epoch)
		return;
	if (c->reader_warp != warp)
		race(c, verb, "read", NOBODY, at, pc);
	for (uint32_t i = 0; i < WARP; i++)
		if (i != lane && (c->readers >> i & 1) &&
		    !in_order(t - lane + i, t, c->read_time))
			race(c, verb, "read", warp * WARP + i, at, pc);
}

static void note_read(struct cell *c, const struct thread *t)
{
	const uint32_t warp = t->number / WARP;

	if (c->read_epoch != cuemu_block->epoch) {
		c->read_epoch = cuemu_block->epoch;
		c->reader_warp = warp;
		c->readers = 0;
	} else if (c->reader_warp != warp) {
		c->reader_warp = MANY;
	} else if (c->read_time < t->sync_time) {
		/* readers from before this thread's last order are kept: one of them may not have been there */
		for (uint32_t i = 0; i < WARP; i++)
			if ((c->readers >> i & 1) &&
			    in_order(t - t->number % WARP + i, t, c->read_time))
				c->readers &= ~(1u << i);
	}
	c->readers |= 1u << t->number % WARP;
	c->read_time = cuemu_block->warps[warp].clock;
}

static void note_write(struct cell *c, const struct thread *t, bool atomic)
{
	c->serial = cuemu_block->serial;
	c->write_epoch = cuemu_block->epoch;
	c->writer = t->number;
	c->write_time = cuemu_block->warps[t->number / WARP].clock;
	c->atomic = atomic;
	c->read_epoch = 0;
}

void shadow_access(const void *p, size_t bytes, enum access access, const void *pc)
{
	static const char *const verbs[] = { "reads", "writes", "changes" };
	const char *verb = verbs[access], *at = (const char *)p;
	struct cell *c = cells_of(p, bytes, verb, pc);
	const struct thread *t = cuemu_block->self;

	for (size_t i = 0; i < bytes; i++, c++, at++) {
		if (c->serial != cuemu_block->serial) {
			if (access != ACCESS_WRITE)
				fault_in_kernel(pc, "%s shared memory at %p that nobody wrote", verb, at);
			*c = {};
		}
		if (c->in_flight)
			fault_in_kernel(pc, "%s shared memory at %p that a copy is still writing",
					verb, at);
		check_against_writer(c, t, access == ACCESS_ATOMIC, verb, at, pc);
		if (access != ACCESS_READ)
			check_against_readers(c, t, verb, at, pc);
		if (access == ACCESS_READ)
			note_read(c, t);
		else
			note_write(c, t, access == ACCESS_ATOMIC);
	}
}

void shadow_copy_begins(const void *p, size_t bytes, const void *pc)
{
	struct cell *c = cells_of(p, bytes, "copies", pc);

	shadow_access(p, bytes, ACCESS_WRITE, pc);
	for (size_t i = 0; i < bytes; i++)
		c[i].in_flight = true;
}

void shadow_copy_ends(const void *p, size_t bytes, const void *pc)
{
	struct cell *c = cells_of(p, bytes, "copies", pc);

	for (size_t i = 0; i < bytes; i++) {
		c[i].in_flight = false;
		note_write(&c[i], cuemu_block->self, false);
	}
}
