/* Attention over the paged KV cache, in double. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "kernels/cpu/bf16.h"
#include "kernels/cpu/kv.h"

static double load(const void *row, enum dtype type, uint32_t i)
{
	return type == DT_F32 ? ((const float *)row)[i] : bf16_widen(((const uint16_t *)row)[i]);
}

/* @scores: room for position + 1 */
static void attend(float *y, const float *q, const struct kv_cache *kv, uint32_t layer,
		   const struct seq *seq, uint32_t kv_head, uint32_t position, double *scores)
{
	const uint32_t n = kv->head_dim;
	double acc[KV_HEAD_DIM_MAX] = { 0 }, most = -INFINITY, sum = 0;

	for (uint32_t p = 0; p <= position; p++) {
		const void *row = kv_row(kv, seq, layer, KV_K, kv_head, p);
		double dot = 0;

		for (uint32_t i = 0; i < n; i++)
			dot += q[i] * load(row, kv->type, i);
		scores[p] = dot / sqrt(n);
		most = fmax(most, scores[p]);
	}
	for (uint32_t p = 0; p <= position; p++) {
		const void *row = kv_row(kv, seq, layer, KV_V, kv_head, p);
		const double weight = exp(scores[p] - most);

		sum += weight;
		for (uint32_t i = 0; i < n; i++)
			acc[i] += weight * load(row, kv->type, i);
	}
	for (uint32_t i = 0; i < n; i++)
		y[i] = (float)(acc[i] / sum);
}

int ref_attention(const struct tensor *y, const struct tensor *q, const struct kv_cache *kv,
		  uint32_t layer, const struct seq *seqs, uint32_t n_seqs)
{
	const uint32_t heads = q->shape[1], group = heads / (kv->kv_heads ? kv->kv_heads : 1);
	uint32_t longest = 0;
	double *scores;

	if (!attention_fits(y, q, kv, layer, seqs, n_seqs))
		return -EINVAL;
	for (uint32_t s = 0; s < n_seqs; s++)
		if (seqs[s].n_tokens > 0 && seqs[s].at + seqs[s].n_tokens > longest)
			longest = seqs[s].at + seqs[s].n_tokens;
	scores = malloc((longest + (size_t)1) * sizeof(*scores));
	if (!scores)
		return -ENOMEM;

	for (uint32_t s = 0; s < n_seqs; s++) {
		for (uint32_t j = 0; j < seqs[s].n_tokens; j++) {
			for (uint32_t h = 0; h < heads; h++) {
				const size_t at = ((seqs[s].first + (size_t)j) * heads + h) *
						  kv->head_dim;

				attend((float *)y->data + at, (const float *)q->data + at, kv,
				       layer, &seqs[s], h / group, seqs[s].at + j, scores);
			}
		}
	}
	free(scores);
	return 0;
}
