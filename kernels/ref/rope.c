/* Rotation and storing of keys and values, in double. */
#include <errno.h>
#include <math.h>

#include "kernels/cpu/bf16.h"
#include "kernels/cpu/kv.h"

static void normalise(double *x, uint32_t n, const float *w, float eps)
{
	double sum = 0, factor;

	for (uint32_t i = 0; i < n; i++)
		sum += x[i] * x[i];
	factor = 1 / sqrt(sum / n + (double)eps);
	for (uint32_t i = 0; i < n; i++)
		x[i] *= factor * w[i];
}

static void turn(double *x, const struct rope_table *rope, uint32_t position)
{
	const uint32_t half = rope->rotary / 2;

	for (uint32_t i = 0; i < half; i++) {
		const float angle = (float)position * rope->inv_freq[i];
		const double c = cos(angle), s = sin(angle), a = x[i], b = x[i + half];

		x[i] = a * c - b * s;
		x[i + half] = b * c + a * s;
	}
}

static void head(double *to, const float *from, const struct tensor *norm, float eps, uint32_t n,
		 const struct rope_table *rope, uint32_t position)
{
	for (uint32_t i = 0; i < n; i++)
		to[i] = from[i];
	if (norm->data)
		normalise(to, n, norm->data, eps);
	turn(to, rope, position);
}

static void store(void *row, enum dtype type, uint32_t i, double value)
{
	if (type == DT_F32)
		((float *)row)[i] = (float)value;
	else
		((uint16_t *)row)[i] = bf16_narrow((float)value);
}

int ref_rope_kv(const struct tensor *q, const struct tensor *k, const struct tensor *v,
		const struct tensor *q_norm, const struct tensor *k_norm, float eps,
		const struct rope_table *rope, const struct kv_cache *kv, uint32_t layer,
		const struct seq *seqs, uint32_t n_seqs)
{
	const uint32_t n = kv->head_dim, heads = q->shape[1];
	double x[KV_HEAD_DIM_MAX];

	if (!rope_kv_fits(q, k, v, q_norm, k_norm, eps, rope, kv, layer, seqs, n_seqs))
		return -EINVAL;

	for (uint32_t s = 0; s < n_seqs; s++) {
		for (uint32_t j = 0; j < seqs[s].n_tokens; j++) {
			const uint32_t position = seqs[s].at + j;
			const size_t t = seqs[s].first + j;

			for (uint32_t h = 0; h < heads; h++) {
				float *row = (float *)q->data + (t * heads + h) * n;

				head(x, row, q_norm, eps, n, rope, position);
				for (uint32_t i = 0; i < n; i++)
					row[i] = (float)x[i];
			}
			for (uint32_t h = 0; h < kv->kv_heads; h++) {
				const size_t at = (t * kv->kv_heads + h) * n;
				void *k_row = kv_row(kv, &seqs[s], layer, KV_K, h, position);
				void *v_row = kv_row(kv, &seqs[s], layer, KV_V, h, position);

				head(x, (float *)k->data + at, k_norm, eps, n, rope, position);
				for (uint32_t i = 0; i < n; i++) {
					store(k_row, kv->type, i, x[i]);
					store(v_row, kv->type, i, ((float *)v->data)[at + i]);
				}
			}
		}
	}
	return 0;
}
