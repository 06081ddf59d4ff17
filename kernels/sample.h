/*
 * From logits to tokens, on a device that is not the host. On CPUs the executor
 * samples itself (daemon/exec/sample/sampler.h): this is that, to the token. There
 * op_samples() is false, and the others return -ENOTSUP.
 */
#pragma once

#include "kernels/backend.h"

/* Whether this device samples from so many logits. */
bool op_samples(const struct dev *dev, uint32_t vocab);

/* How often a token is among a sequence's. */
struct sample_count {
	uint32_t prompt, output;
};

/*
 * How one row is sampled. All pointers are addresses of the device, and so is
 * that of the row itself: a recorded step finds what is written there later.
 *
 * temperature	below 1e-5: the largest is taken, the lowest id on ties, and nothing further
 * top_p, min_p	0 to 1; 1 and 0: off.  top_k: 0: off
 * repetition	positive; with @frequency, @presence as sampler.h has them; 1, 0, 0: off
 * position	of the token to be sampled: with @seed the only key of the draw
 * vocab_real	ids from here on are never sampled; 1 up to vocab
 * masked	ids that are not to be sampled
 * bias_ids	what is added to the logits of these ids, in this order
 * counts	[vocab] of the row's sequence, or NULL: no penalties
 */
struct sample_row {
	double temperature, top_p, min_p;
	double repetition, frequency, presence;
	uint64_t seed;
	uint32_t position, top_k, vocab_real, n_masked, n_bias, pad;
	const uint32_t *masked, *bias_ids;
	const float *bias_values;
	const struct sample_count *counts;
};

#define OP_SAMPLE_ROWS 128 /* at once, and not more than op_scratch() was asked about */

/*
 * ret_ids[i] = the token that row i of the logits is sampled to
 *
 * ret_ids	u32 [n], of the device; n at most OP_SAMPLE_ROWS
 * logits	F32 [1, n, vocab]
 * rows		[n], of the device
 *
 * The order of cuts is that of sampler.h. In double, but for the sums: where a
 * sum of probabilities decides, those of both samplers differ by roundings.
 * Returns 0, or -EINVAL for shapes or types outside the above.
 */
int op_sample(struct stream *st, uint32_t *ret_ids, const struct tensor *logits,
	      const struct sample_row *rows);

/*
 * counts[ids[i]] rises by one for each of n ids of the device that is below
 * vocab: as prompt, or as output. Several calls may be queued for one table.
 */
int op_count(struct stream *st, struct sample_count *counts, uint32_t vocab, const uint32_t *ids,
	     uint32_t n, bool output);
