/*
 * The samplers of an executor's slots on a device that is not the host: what
 * sampler.h does, by op_sample(). Logits stay where they are, and one id a row
 * comes back. A slot's parameters, and how often each token is in it, are in the
 * device's memory, all of it taken when the object is made.
 */
#pragma once

#include "client/wire/step.h"
#include "kernels/backend.h"

#define DEVSAMPLER_ROWS_MAX 128

struct devsampler;

/*
 * @n_slots samplers, on @st, which outlives it, for logits of @vocab ids after
 * sequences of at most @max_context tokens. Returns 0; -ENOTSUP: the device leaves
 * sampling to the host; or -ENOMEM.
 */
int devsampler_new(struct stream *st, uint32_t n_slots, uint32_t vocab, uint32_t max_context,
		   struct devsampler **ret);
struct devsampler *devsampler_free(struct devsampler *d);
/* What it takes of the device's memory, but for rounding. */
size_t devsampler_bytes(uint32_t n_slots, uint32_t vocab, uint32_t max_context);

/*
 * Slot @slot samples by @params from now on, which sampler_new() took. The arrays
 * are copied. 0 or -EIO.
 */
int devsampler_set(struct devsampler *d, uint32_t slot, const struct step_sampler *params,
		   const uint32_t *bias_ids, const float *bias_values);
/* The slot's tokens from @length on are others, or none. */
void devsampler_truncate(struct devsampler *d, uint32_t slot, uint32_t length);

/* A row of logits: of a slot, behind its tokens[0 … length). */
struct devsampler_row {
	uint32_t slot; /* DEVSAMPLER_NONE: nothing is sampled from this row */
	uint32_t length;
	const uint32_t *tokens;
};
#define DEVSAMPLER_NONE UINT32_MAX

/*
 * ret_ids[i] = what row i is sampled to
 *
 * logits	F32 [1, n, vocab], of the device; n at most DEVSAMPLER_ROWS_MAX
 * rows		[n]; a slot is in it once
 * ret_ids	[n], of the host; of rows of no slot worth nothing
 *
 * Waits for the device. 0 or -EIO.
 */
int devsampler_sample(struct devsampler *d, const struct tensor *logits,
		      const struct devsampler_row *rows, uint32_t *ret_ids);

static inline void devsampler_freep(struct devsampler **d)
{
	*d = devsampler_free(*d);
}
