/* Rotation of queries and keys, and the writing of the KV cache, by tokens. */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/bf16.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/ops.h"

#define TOKENS_WORTH_THREADS 2

struct rope_job {
	const struct ops_kernels *ops;
	float *q, *k;
	const float *v, *q_norm, *k_norm;
	float eps;
	uint32_t tokens, heads, layer, n_seqs;
	const struct rope_table *rope;
	const struct kv_cache *kv;
	const struct seq *seqs;
};

struct angles {
	float cos[KV_HEAD_DIM_MAX / 2], sin[KV_HEAD_DIM_MAX / 2];
};

static void angles_at(const struct rope_table *rope, uint32_t position, struct angles *ret)
{
	for (uint32_t i = 0; i < rope->rotary / 2; i++) {
		const float angle = (float)position * rope->inv_freq[i];
		double s, c;

		sincos(angle, &s, &c);
		ret->cos[i] = (float)c;
		ret->sin[i] = (float)s;
	}
}

static void turn_head(const struct rope_job *job, float *x, const float *norm,
		      const struct angles *angles)
{
	if (norm)
		job->ops->rmsnorm(x, x, norm, job->kv->head_dim, job->eps);
	job->ops->rotate(x, angles->cos, angles->sin, job->rope->rotary / 2);
}

static void store_row(const struct kv_cache *kv, void *row, const float *x)
{
	if (kv->type == DT_F32) {
		memcpy(row, x, kv->head_dim * sizeof(*x));
		return;
	}
	for (uint32_t i = 0; i < kv->head_dim; i++)
		((uint16_t *)row)[i] = bf16_narrow(x[i]);
}

static void turn_token(const struct rope_job *job, const struct seq *seq, uint32_t t)
{
	const struct kv_cache *kv = job->kv;
	const uint32_t position = seq->at + (t - seq->first), n = kv->head_dim;
	float *q = job->q + (size_t)t * job->heads * n;
	float *k = job->k + (size_t)t * kv->kv_heads * n;
	const float *v = job->v + (size_t)t * kv->kv_heads * n;
	struct angles angles;

	angles_at(job->rope, position, &angles);
	for (uint32_t h = 0; h < job->heads; h++)
		turn_head(job, q + h * n, job->q_norm, &angles);
	for (uint32_t h = 0; h < kv->kv_heads; h++) {
		turn_head(job, k + h * n, job->k_norm, &angles);
		store_row(kv, kv_row(kv, seq, job->layer, KV_K, h, position), k + h * n);
		store_row(kv, kv_row(kv, seq, job->layer, KV_V, h, position), v + h * n);
	}
}

static void turn_tokens(void *userdata, uint32_t thread, uint32_t n_threads)
{
	const struct rope_job *job = userdata;
	const struct seq *seq = job->seqs;
	uint32_t from, to;

	share_of(job->tokens, thread, n_threads, &from, &to);
	for (uint32_t t = from; t < to; t++) {
		while (t - seq->first >= seq->n_tokens)
			seq++;
		turn_token(job, seq, t);
	}
}

int op_rope_kv(struct stream *st, const struct tensor *q, const struct tensor *k,
	       const struct tensor *v, const struct tensor *q_norm, const struct tensor *k_norm,
	       float eps, const struct rope_table *rope, const struct kv_cache *kv, uint32_t layer,
	       const struct seq *seqs, uint32_t n_seqs)
{
	struct rope_job job = {
		.ops = ops_kernels(st->dev->isa),
		.q = q->data,
		.k = k->data,
		.v = v->data,
		.q_norm = q_norm->data,
		.k_norm = k_norm->data,
		.eps = eps,
		.tokens = q->shape[0],
		.heads = q->shape[1],
		.layer = layer,
		.n_seqs = n_seqs,
		.rope = rope,
		.kv = kv,
		.seqs = seqs,
	};

	if (st->dev->isa == ISA_REF)
		return ref_rope_kv(q, k, v, q_norm, k_norm, eps, rope, kv, layer, seqs, n_seqs);
	if (!rope_kv_fits(q, k, v, q_norm, k_norm, eps, rope, kv, layer, seqs, n_seqs))
		return -EINVAL;

	if (job.tokens < TOKENS_WORTH_THREADS)
		turn_tokens(&job, 0, 1);
	else
		pool_run(st->dev, turn_tokens, &job);
	return 0;
}
