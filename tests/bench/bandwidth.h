/* How fast all threads of a device together read, and copy, memory that no cache holds. */
#pragma once

#include <stddef.h>

#include "client/wire/err.h"
#include "kernels/backend.h"

struct bandwidth;

/*
 * Backs and fills bandwidth_least_bytes() and finds out which read and copy
 * loops are the fastest here: takes a second or two. 0 or -ENOMEM.
 */
int bandwidth_new(struct dev *dev, struct bandwidth **ret, struct err *err);
struct bandwidth *bandwidth_free(struct bandwidth *b);

/* What must be passed over so that no cache helps: 4 times the last level caches, at least 512 MiB. */
size_t bandwidth_least_bytes(void);

/* Bytes per second of one pass of the fastest read loop over all of the memory. */
double bandwidth_pass(struct bandwidth *b);
/* Of copying one half of the memory over the other: bytes copied, each read and written. */
double bandwidth_copy(struct bandwidth *b);

static inline void bandwidth_freep(struct bandwidth **b)
{
	*b = bandwidth_free(*b);
}
