/* A checkpoint loaded the real way, and how many tokens a second the model computes. */
#pragma once

#include "client/wire/err.h"
#include "kernels/backend.h"

#define FLOOR_PREFILL_TOKENS 512

struct floor;

/* Loads @dir with all threads of @dev, which outlives the floor. Returns 0 or an error of loading. */
int floor_open(struct dev *dev, const char *dir, struct floor **ret, struct err *err);
struct floor *floor_close(struct floor *f);

/* Bytes of weights that one token reads at batch 1. */
double floor_decode_bytes(const struct floor *f);

/*
 * One round of each, in tokens per second, or a negative errno.
 *
 * decode	a token at a time, each a random one, so that the experts
 *		change from step to step; logits for each; the median step counts
 * prefill	FLOOR_PREFILL_TOKENS random tokens as one batch, logits of the last
 */
int floor_decode(struct floor *f, double *ret);
int floor_prefill(struct floor *f, double *ret);

static inline void floor_closep(struct floor **f)
{
	*f = floor_close(*f);
}
