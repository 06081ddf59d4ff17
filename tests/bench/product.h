/*
 * The matrix products of a model, one class at a time, over random matrices of
 * the model's dimensions: so many that when one comes again no cache has it.
 */
#pragma once

#include "tests/bench/bench.h"

enum product_class { PRODUCT_EXPERTS, PRODUCT_QKV, PRODUCT_O, PRODUCT_HEAD };

struct product;

/* What was done, added up. */
struct work {
	double bytes; /* of weights */
	double flops;
	double seconds;
};

/*
 * @max_tokens	rows of one product, at most
 *
 * Returns 0, -ENOENT if the model has no experts, -ENOMEM, or what opening the
 * model failed with.
 */
int product_new(struct bench *b, enum product_class class, uint32_t max_tokens,
		struct product **ret, struct err *err);
struct product *product_free(struct product *p);

/*
 * Computes products with @tokens rows, each with the next matrices (EXPERTS:
 * of the next layer, for every row as many different experts as it chooses,
 * drawn afresh), until @seconds have passed. Adds to *@work.
 */
int product_run(struct product *p, uint32_t tokens, double seconds, struct work *work);

enum weight_kind product_kind(const struct product *p);

static inline void product_freep(struct product **p)
{
	*p = product_free(*p);
}
