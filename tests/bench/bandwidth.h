/* How fast all threads of a device together read memory that no cache holds. */
#pragma once

#include "client/wire/err.h"
#include "kernels/backend.h"

struct bandwidth;

/* Backs and fills 4 times the last level caches, at least 512 MiB. 0 or -ENOMEM. */
int bandwidth_new(struct dev *dev, struct bandwidth **ret, struct err *err);
struct bandwidth *bandwidth_free(struct bandwidth *b);

/* Bytes per second of the fastest loop, the median of a few passes each. Takes about half a second. */
double bandwidth_measure(struct bandwidth *b);

static inline void bandwidth_freep(struct bandwidth **b)
{
	*b = bandwidth_free(*b);
}
