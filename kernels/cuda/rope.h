/* Rotation of one head by a warp, and its way into the KV cache. Behind kernels/cpu/kv.h. */
#pragma once

#include "kernels/cuda/kv.h"
#include "kernels/cuda/ptx.h"
#include "kernels/cuda/sum.h"

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
			x[i] = __ldcg(from + lane + i * 32); /* which another block may have written */
}

static __device__ __forceinline__ void store(uint16_t *to, const float (&x)[ROPE_LANE_DIMS], uint32_t n)
{
	const uint32_t lane = threadIdx.x % 32;

#pragma unroll
	for (int i = 0; i < ROPE_LANE_DIMS; i++)
		if (lane + i * 32 < n)
			to[lane + i * 32] = (uint16_t)bf16_pair(x[i], 0);
}

/* cos and sin of a token's angles, by all threads of the block. */
static __device__ __forceinline__ void rope_angles(const struct rope_job &job, uint32_t token,
						   float *cosines, float *sines, uint32_t thread,
						   uint32_t n_threads)
{
	const uint32_t position = job.batch.rows[token].position;

	for (uint32_t i = thread; i < job.half; i += n_threads) {
		const float angle = (float)position * job.inv_freq[i];
		double s, c;

		sincos((double)angle, &s, &c);
		cosines[i] = (float)c;
		sines[i] = (float)s;
	}
}

/* Head @head of a token, those of q first, then of k, then of v; @row: KV_HEAD_DIM_MAX floats of the warp. */
static __device__ __forceinline__ void rope_head(const struct rope_job &job, uint32_t token,
						 uint32_t head, float *row, const float *cosines,
						 const float *sines)
{
	const struct batch_row at = job.batch.rows[token];
	const uint32_t n = job.kv.head_dim;
	float x[ROPE_LANE_DIMS];
	uint16_t *to;

	if (head < job.heads) {
		float *q = job.q + ((size_t)token * job.heads + head) * n;

		load(x, q, n);
		turn(x, row, job.q_norm, job, cosines, sines);
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
		turn(x, row, job.k_norm, job, cosines, sines);
		store(to, x, n);
	} else {
		load(x, job.v + ((size_t)token * job.kv_heads + head - job.kv_heads) * n, n);
		store(to + job.kv.part, x, n);
	}
}

/* What is refused, and the job but for its batch. On the host. */
int rope_job_of(struct rope_job *ret, const struct tensor *q, const struct tensor *k,
		const struct tensor *v, const struct tensor *q_norm, const struct tensor *k_norm,
		float eps, const struct rope_table *rope, const struct kv_cache *kv, uint32_t layer,
		const struct seq *seqs, uint32_t n_seqs);
