/*
 * From logits to a token, on the host, in double.
 *
 * Order: ids from vocab_real on are dropped; stop ids are dropped before
 * min_tokens; logit_bias z += b; repetition penalty r over distinct tokens of
 * prompt and output: z > 0 ? z / r : z * r; frequency z -= f * count and
 * presence z -= q * (count > 0) over the output; temperature z /= T, or below
 * 1e-5 the largest (lowest id on ties) and nothing further; min_p keeps
 * p >= m * max p; top_k keeps z >= the k-th largest (ties stay); top_p keeps,
 * in falling order, those whose predecessors' mass among the survivors is
 * below p, at least one; softmax; one draw.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "client/wire/step.h"

struct sampler;

/* @params and the bias arrays are copied. 0 or -ENOMEM, -EINVAL for values outside the definitions. */
int sampler_new(const struct step_sampler *params, const uint32_t *bias_ids,
		const float *bias_values, uint32_t vocab, struct sampler **ret);
struct sampler *sampler_free(struct sampler *s);

/* Tells it the slot's tokens as they come: the first n_prompt are prompt. Truncating forgets. */
int sampler_push(struct sampler *s, const uint32_t *ids, uint32_t n);
void sampler_truncate(struct sampler *s, uint32_t length);

/*
 * Samples from @logits [vocab]; @position is that of the token to be sampled,
 * and with the seed the only key of the draw (Philox 4x32-10, one uniform of
 * 53 bits, inverted over ids in falling probability, then rising id).
 */
uint32_t sampler_sample(struct sampler *s, const float *logits, uint32_t position);

/*
 * The distribution itself, for tests: fills probs[vocab] (0 for what is cut).
 * Greedy: 1 for the choice.
 */
void sampler_probs(struct sampler *s, const float *logits, double *probs);

/*
 * Log-probability of @id (NAN if @id is UINT32_MAX) and of the @n_top best ids
 * (ties: lowest id first) from raw logits over ids below @vocab_real.
 */
void sampler_logprobs(const float *logits, uint32_t vocab_real, uint32_t id, uint32_t n_top,
		      float *ret_logprob, uint32_t *ret_ids, float *ret_logprobs);

/* 53-bit uniform in [0, 1) of Philox 4x32-10 at (seed, position). */
double sampler_uniform(uint64_t seed, uint64_t position);

static inline void sampler_freep(struct sampler **s)
{
	*s = sampler_free(*s);
}
