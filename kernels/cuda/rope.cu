/* Rotation and the writing of the KV cache: a warp a head, some heads of one token a block. */
#include <string.h>

#include "kernels/cuda/kv.h"
#include "kernels/cuda/ptx.h"
#include "kernels/cuda/sum.h"

extern "C" {
#include "kernels/cpu/kv.h"
}

#define ROPE_WARPS 8
#define ROPE_LANE_DIMS (KV_HEAD_DIM_MAX / 32)

struct rope_job {
	float *q;
	const float *k, *v, *q_norm, *k_norm; /* norms: both or neither NULL */
	float eps;
	uint32_t heads, kv_heads, half;
	struct layer_kv kv;
	struct batch batch;
	float inv_freq[KV_HEAD_DIM_MAX / 2];
};

/* Normalises and rotates one head: lane l has dims l, l + 32, …; partners are in @row. */
static __device__ __forceinline__ void turn(float (&x)[ROPE_LANE_DIMS], float *row,
					    const float *norm, const struct rope_job &job,
					    const float *cosines, const float *sines)
{
	const uint32_t lane = threadIdx.x % 32, n = job.kv.head_dim, half = job.half;
	float sum = 0, factor;

	if (norm) {
#pragma unroll
		for (int i = 0; i < ROPE_LANE_DIMS; i++)
			if (lane + i * 32 < n)
				sum += x[i] * x[i];
		factor = 1 / sqrtf(sum_warp(sum) / (float)n + job.eps);
#pragma unroll
		for (int i = 0; i < ROPE_LANE_DIMS; i++)
			if (lane + i * 32 < n)
				x[i] = x[i] * factor * norm[lane + i * 32];
	}
#pragma unroll
	for (int i = 0; i < ROPE_LANE_DIMS; i++)
		if (lane + i * 32 < n)
			row[lane + i * 32] = x[i];
	__syncwarp();
#pragma unroll
	for (int i = 0; i < ROPE_LANE_DIMS; i++) {
		const uint32_t d = lane + i * 32;

		if (d < half)
			x[i] = x[i] * cosines[d] - row[d + half] * sines[d];
		else if (d < 2 * half)
			x[i] = x[i] * cosines[d - half] + row[d - half] * sines[d - half];
	}
}

static __device__ __forceinline__ void load(float (&x)[ROPE_LANE_DIMS], const float *from, uint32_t n)
{
	const uint32_t lane = threadIdx.x % 32;

#pragma unroll
	for (int i = 0; i < ROPE_LANE_DIMS; i++)
		if (lane + i * 32 < n)
			x[i] = from[lane + i * 32];
}

static __device__ __forceinline__ void store(uint16_t *to, const float (&x)[ROPE_LANE_DIMS], uint32_t n)
{
	const uint32_t lane = threadIdx.x % 32;

#pragma unroll
	for (int i = 0; i < ROPE_LANE_DIMS; i++)
		if (lane + i * 32 < n)
			to[lane + i * 32] = (uint16_t)bf16_pair(x[i], 0);
}

/* Heads of a token: those of q, then of k, then of v. */
static __global__ void __launch_bounds__(ROPE_WARPS * 32) k_rope_kv(const struct rope_job job)
{
	__shared__ float cosines[KV_HEAD_DIM_MAX / 2], sines[KV_HEAD_DIM_MAX / 2];
	__shared__ float rows[ROPE_WARPS][KV_HEAD_DIM_MAX];
	const uint32_t token = blockIdx.x, warp = threadIdx.x / 32, n = job.kv.head_dim;
	const struct batch_row at = job.batch.rows[token];
	uint32_t head = blockIdx.y * ROPE_WARPS + warp;
	float x[ROPE_LANE_DIMS];
	uint16_t *to;

	for (uint32_t i = threadIdx.x; i < job.half; i += ROPE_WARPS * 32) {
		const float angle = (float)at.position * job.inv_freq[i];
		double s, c;

		sincos((double)angle, &s, &c);
		cosines[i] = (float)c;
		sines[i] = (float)s;
	}
	__syncthreads();
	pdl_wait();
	pdl_release(); /* not earlier: attention reads what older kernels wrote before it waits */

	if (head < job.heads) {
		float *q = job.q + ((size_t)token * job.heads + head) * n;

		load(x, q, n);
		turn(x, rows[warp], job.q_norm, job, cosines, sines);
#pragma unroll
		for (int i = 0; i < ROPE_LANE_DIMS; i++)
			if (threadIdx.x % 32 + i * 32 < n)
				q[threadIdx.x % 32 + i * 32] = x[i];
		return;
	}
	head -= job.heads;
	if (head >= 2 * job.kv_heads)
		return;
	to = kv_at(job.kv, job.batch.pages + job.batch.seqs[at.seq].pages, head % job.kv_heads,
		   at.position);
	if (head < job.kv_heads) {
		load(x, job.k + ((size_t)token * job.kv_heads + head) * n, n);
		turn(x, rows[warp], job.k_norm, job, cosines, sines);
		store(to, x, n);
	} else {
		load(x, job.v + ((size_t)token * job.kv_heads + head - job.kv_heads) * n, n);
		store(to + job.kv.part, x, n);
	}
}

int op_rope_kv(struct stream *st, const struct tensor *q, const struct tensor *k,
	       const struct tensor *v, const struct tensor *q_norm, const struct tensor *k_norm,
	       float eps, const struct rope_table *rope, const struct kv_cache *kv, uint32_t layer,
	       const struct seq *seqs, uint32_t n_seqs)
{
	const uint32_t tokens = q->shape[0];
	struct rope_job job;
	int r;

	if (!rope_kv_fits(q, k, v, q_norm, k_norm, eps, rope, kv, layer, seqs, n_seqs) ||
	    kv->type != DT_BF16)
		return -EINVAL;
	if (tokens == 0)
		return 0;
	job.q = (float *)q->data;
	job.k = (const float *)k->data;
	job.v = (const float *)v->data;
	job.q_norm = (const float *)q_norm->data;
	job.k_norm = (const float *)k_norm->data;
	job.eps = eps;
	job.heads = q->shape[1];
	job.kv_heads = kv->kv_heads;
	job.half = rope->rotary / 2;
	job.kv = layer_kv_of(kv, layer);
	memcpy(job.inv_freq, rope->inv_freq, job.half * sizeof(*job.inv_freq));
	r = stage_seqs(st, seqs, n_seqs, &job.batch);
	if (r < 0)
		return r;
	return launch(st, LAUNCH_PDL, k_rope_kv,
		      dim3(tokens, (job.heads + 2 * job.kv_heads + ROPE_WARPS - 1) / ROPE_WARPS),
		      dim3(ROPE_WARPS * 32), 0, job);
}
