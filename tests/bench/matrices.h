/* Random matrices, packed as those of a model are, in huge pages. */
#pragma once

#include "client/wire/err.h"
#include "kernels/linear.h"

struct matrices {
	struct dev *dev;
	void *memory;
	size_t backed_bytes;
	size_t bytes; /* of one, as packed */
	uint32_t n;
	struct weight *at; /* [n] */
};

/*
 * @n of them, of WEIGHT_BF16 or WEIGHT_INT4. Every thread of @dev makes its
 * share of the rows of each, so that they lie near to it. 0 or -ENOMEM.
 */
int matrices_new(struct dev *dev, enum weight_kind kind, uint32_t rows, uint32_t cols, uint32_t n,
		 struct matrices **ret, struct err *err);
struct matrices *matrices_free(struct matrices *m);

static inline void matrices_freep(struct matrices **m)
{
	*m = matrices_free(*m);
}
