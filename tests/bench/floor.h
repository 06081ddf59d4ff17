/* A checkpoint loaded the real way, and how many tokens a second the model computes. */
#pragma once

#include "client/wire/err.h"
#include "kernels/backend.h"

#define FLOOR_DECODE_TOKENS 64
#define FLOOR_PREFILL_TOKENS 512

struct floor;

/* Loads @dir with all threads of @dev, which outlives the floor. Returns 0 or an error of loading. */
int floor_open(struct dev *dev, const char *dir, struct floor **ret, struct err *err);
struct floor *floor_close(struct floor *f);

/* Bytes of weights that one token reads at batch 1. */
double floor_decode_bytes(const struct floor *f);

/*
 * Each in tokens per second, of random tokens; 0 or a negative errno.
 *
 * decode	one more token, so that the experts change from step to step;
 *		the sequence begins anew after FLOOR_DECODE_TOKENS of them
 * prefill	FLOOR_PREFILL_TOKENS as one batch, logits of the last
 */
int floor_decode(struct floor *f, double *ret);
int floor_prefill(struct floor *f, double *ret);

static inline void floor_closep(struct floor **f)
{
	*f = floor_close(*f);
}
