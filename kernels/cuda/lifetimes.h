/*
 * Where buffers stand that are needed one after another: a static plan. Those
 * that are alive at the same time do not overlap, all others may.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct lifetime {
	size_t bytes;	      /* 0: takes no room */
	uint32_t first, last; /* the first and the last point in time at which it is needed */
	size_t at;	      /* lifetimes_place() says where */
};

/*
 * Gives every buffer a place at a multiple of @align (a power of two): the
 * largest first, each as low as those allow that are placed already.
 *
 * Returns the bytes that all of it takes, or SIZE_MAX if that cannot be said.
 */
size_t lifetimes_place(struct lifetime *l, uint32_t n, size_t align);

/* The most that is alive at a time, each rounded up to @align: no plan takes less. */
size_t lifetimes_floor(const struct lifetime *l, uint32_t n, size_t align);
