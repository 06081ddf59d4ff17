/* How fast all threads of a device together read memory that no cache holds. */
#pragma once

#include "client/wire/err.h"
#include "kernels/backend.h"

struct bandwidth;

/*
 * Backs and fills 4 times the last level caches, at least 512 MiB, and finds
 * out which read loop is the fastest here: takes about a second. 0 or -ENOMEM.
 */
int bandwidth_new(struct dev *dev, struct bandwidth **ret, struct err *err);
struct bandwidth *bandwidth_free(struct bandwidth *b);

/* Bytes per second of one pass of the fastest loop over all of the memory. */
double bandwidth_pass(struct bandwidth *b);

static inline void bandwidth_freep(struct bandwidth **b)
{
	*b = bandwidth_free(*b);
}
