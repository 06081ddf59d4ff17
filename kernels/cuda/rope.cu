/* Rotation and the writing of the KV cache: a warp a head, some heads of one token a block. */
#include <string.h>

extern "C" {
#include "kernels/cpu/kv.h"
}
#include "kernels/cuda/rope.h"

#define ROPE_WARPS 8

static __global__ void __launch_bounds__(ROPE_WARPS * 32) k_rope_kv(const struct rope_job job)
{
	__shared__ float cosines[KV_HEAD_DIM_MAX / 2], sines[KV_HEAD_DIM_MAX / 2];
	__shared__ float rows[ROPE_WARPS][KV_HEAD_DIM_MAX];
	const uint32_t warp = threadIdx.x / 32;

	rope_angles(job, blockIdx.x, cosines, sines, threadIdx.x, ROPE_WARPS * 32);
	__syncthreads();
	pdl_wait();
	pdl_release(); /* not earlier: attention reads what older kernels wrote before it waits */
	rope_head(job, blockIdx.x, blockIdx.y * ROPE_WARPS + warp, rows[warp], cosines, sines);
}

int rope_job_of(struct rope_job *ret, const struct tensor *q, const struct tensor *k,
		const struct tensor *v, const struct tensor *q_norm, const struct tensor *k_norm,
		float eps, const struct rope_table *rope, const struct kv_cache *kv, uint32_t layer,
		const struct seq *seqs, uint32_t n_seqs)
{
	if (!rope_kv_fits(q, k, v, q_norm, k_norm, eps, rope, kv, layer, seqs, n_seqs) ||
	    kv->type != DT_BF16)
		return -EINVAL;
	ret->q = (float *)q->data;
	ret->k = (const float *)k->data;
	ret->v = (const float *)v->data;
	ret->q_norm = (const float *)q_norm->data;
	ret->k_norm = (const float *)k_norm->data;
	ret->eps = eps;
	ret->heads = q->shape[1];
	ret->kv_heads = kv->kv_heads;
	ret->half = rope->rotary / 2;
	ret->kv = layer_kv_of(kv, layer);
	memcpy(ret->inv_freq, rope->inv_freq, ret->half * sizeof(*ret->inv_freq));
	return 0;
}

int op_rope_kv(struct stream *st, const struct tensor *q, const struct tensor *k,
	       const struct tensor *v, const struct tensor *q_norm, const struct tensor *k_norm,
	       float eps, const struct rope_table *rope, const struct kv_cache *kv, uint32_t layer,
	       const struct seq *seqs, uint32_t n_seqs)
{
	const uint32_t tokens = q->shape[0];
	struct rope_job job;
	int r;

	r = rope_job_of(&job, q, k, v, q_norm, k_norm, eps, rope, kv, layer, seqs, n_seqs);
	if (r < 0 || tokens == 0)
		return r;
	r = stage_seqs(st, seqs, n_seqs, &job.batch);
	if (r < 0)
		return r;
	return launch(st, LAUNCH_PDL, k_rope_kv,
		      dim3(tokens, (job.heads + 2 * job.kv_heads + ROPE_WARPS - 1) / ROPE_WARPS),
		      dim3(ROPE_WARPS * 32), 0, job);
}
