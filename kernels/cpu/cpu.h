/*
 * What the operations of the CPU backend share: the device with its threads,
 * the stream with its scratch, and the rules of files for one instruction set.
 *
 * Such a file is named <family>-<isa>.c (linear-avx2.c). It is compiled with
 * the flags of that instruction set, so it defines no symbol but its table
 * (struct linear_kernels) and calls nothing inline from elsewhere that another
 * file might share. The table is chosen by dev->isa.
 */
#pragma once

#include "kernels/backend.h"

struct pool;
struct linear_kernels;
struct reservation;
struct topology;

typedef void (*pool_fn)(void *userdata, uint32_t thread, uint32_t n_threads);

struct dev {
	enum isa isa;
	uint32_t n_threads;
	struct pool *pool;
	const struct linear_kernels *linear;
	struct reservation *_Atomic reservations; /* walked by any thread; added to by its own */
	bool in_turn; /* see multiply_strips() */
};

struct stream {
	struct dev *dev;
	uint8_t *scratch; /* aligned to 64; op_scratch() bytes. Each operation has all of it to itself */
	size_t scratch_bytes;
};

/*
 * Starts n_threads - 1 workers (0: see topology.h) on the part of the nodes that is rank
 * @rank's of @n_ranks, and sets the calling thread up as the first.
 */
int pool_new(uint32_t n_threads, uint32_t rank, uint32_t n_ranks, struct pool **ret);
struct pool *pool_free(struct pool *pool);
uint32_t pool_threads(const struct pool *pool);
const struct topology *pool_topology(const struct pool *pool);
/* Threads of node @node begin at this one and end before that of node + 1; up to TOPOLOGY_NODES_MAX. */
uint32_t pool_first_thread(const struct pool *pool, uint32_t node);
/* Moves the calling thread to where worker @index, modulo their number, is at home. */
void pool_settle(const struct pool *pool, uint32_t index);

/*
 * Calls @run once for each thread number, the calling thread being number 0,
 * and returns when all are done. The calling thread also takes the numbers of
 * those who did not begin in time.
 */
void pool_run(struct dev *dev, pool_fn run, void *userdata);

/* Takes @bytes off the scratch at *@at (offset, rounded up to 64); NULL if it does not fit. */
static inline void *scratch_take(const struct stream *st, size_t *at, size_t bytes)
{
	const size_t begin = *at;

	bytes = (bytes + 63) & ~(size_t)63;
	if (bytes > st->scratch_bytes || begin > st->scratch_bytes - bytes)
		return NULL;
	*at = begin + bytes;
	return st->scratch + begin;
}

/* Cuts [0, n) into n_threads runs that differ by one at most: this thread's is [*from, *to). */
static inline void share_of(uint32_t n, uint32_t thread, uint32_t n_threads, uint32_t *from,
			    uint32_t *to)
{
	*from = (uint32_t)((uint64_t)n * thread / n_threads);
	*to = (uint32_t)((uint64_t)n * (thread + 1) / n_threads);
}

/* Scratch of the operations that are not matrix products (norm, rotation, attention, router). */
size_t ops_scratch(uint32_t n_threads, const struct op_limits *limits);
