/*
 * Attention of many tokens of a sequence: a block has rows of (token, query
 * head) that share a kv head, 16 a warp, and goes over the keys once, two tiles
 * of them in shared memory.
 */
#pragma once

#include "kernels/cuda/attend.h"

#define PREFILL_WARPS 8
#define PREFILL_ROWS (PREFILL_WARPS * ATTEND_ROWS)

/* Larger heads leave fewer registers for scores. */
template <int D> constexpr int prefill_keys = D > 64 ? 32 : 64;

template <int D>
constexpr size_t prefill_shared_bytes = (size_t)2 * 2 * prefill_keys<D> * D * sizeof(uint16_t);

/* Copies keys (part 0) or values (1) of a tile; what lies behind @end is zero. */
template <int D>
static __device__ __forceinline__ void prefill_fetch(const struct attend_job &job,
						     const uint32_t *pages, uint32_t kv_head,
						     uint32_t position, uint32_t end, uint32_t part,
						     uint16_t *to)
{
	const uint32_t chunks = job.kv.head_dim / 8;

#pragma unroll
	for (uint32_t i = threadIdx.x; i < prefill_keys<D> * (D / 8); i += PREFILL_WARPS * 32) {
		const uint32_t row = i / (D / 8), chunk = i % (D / 8);
		uint16_t *at = chunk_at<D>(to, row, chunk);

		if (position + row < end && chunk < chunks)
			copy_async(at, kv_at(job.kv, pages, kv_head, position + row) +
					       part * job.kv.part + chunk * 8);
		else
			*reinterpret_cast<uint4 *>(at) = make_uint4(0, 0, 0, 0);
	}
}

static __device__ __host__ __forceinline__ uint32_t prefill_tiles_of(uint32_t n_tokens, uint32_t group)
{
	return n_tokens > DECODE_TOKENS_MAX ? (n_tokens * group + PREFILL_ROWS - 1) / PREFILL_ROWS :
					      0;
}

/* Where row @row, of (token, query head) pairs, is in q and y. */
static __device__ __forceinline__ size_t element_of(const struct attend_job &job,
						    const struct batch_seq &s, uint32_t kv_head,
						    uint32_t row)
{
	const uint32_t token = s.first + row / job.group;
	const uint32_t head = kv_head * job.group + row % job.group;

	return ((size_t)token * job.heads + head) * job.kv.head_dim;
}

template <int D>
static __global__ void __launch_bounds__(PREFILL_WARPS * 32, 1)
	k_attend_prefill(const struct attend_job job)
{
	constexpr int keys = prefill_keys<D>;
	const uint32_t lane = threadIdx.x % 32, kv_head = blockIdx.y, group = job.group;
	uint16_t *stages = shared_memory<uint16_t>(); /* [2][K, V][keys][D] */
	/* the last rows have the most keys: they go first */
	const struct found f = find_item(job.batch, job.n_seqs, gridDim.x - 1 - blockIdx.x,
					 [group](const struct batch_seq &s) {
						 return prefill_tiles_of(s.n_tokens, group);
					 });
	struct attend_rows<D> w;
	const float *q[2];
	struct batch_seq s;
	uint32_t row, last_row, end, n_tiles;
	const uint32_t *pages;
	int position[2];

	pdl_release();
	pdl_wait();
	if (f.seq == job.n_seqs)
		return;
	s = job.batch.seqs[f.seq];
	pages = job.batch.pages + s.pages;
	row = f.item * PREFILL_ROWS;
	last_row = min(row + PREFILL_ROWS, s.n_tokens * group) - 1;
	end = s.at + last_row / group + 1;
	n_tiles = (end + keys - 1) / keys;

	prefill_fetch<D>(job, pages, kv_head, 0, end, 0, stages);
	prefill_fetch<D>(job, pages, kv_head, 0, end, 1, stages + keys * D);
	copy_async_commit();
#pragma unroll
	for (int r = 0; r < 2; r++) {
		const uint32_t own = row + threadIdx.x / 32 * ATTEND_ROWS + lane / 4 + r * 8;

		position[r] = own <= last_row ? (int)(s.at + own / group) : -1;
		q[r] = own <= last_row ? job.q + element_of(job, s, kv_head, own) : NULL;
	}
	rows_begin<D>(w, q[0], q[1], job.kv.head_dim, job.scale);

	for (uint32_t tile = 0; tile < n_tiles; tile++) {
		uint16_t *now = stages + tile % 2 * 2 * keys * D;
		uint16_t *next = stages + (tile + 1) % 2 * 2 * keys * D;
		const int first = (int)(tile * keys);

		copy_async_wait<0>();
		__syncthreads();
		if (tile + 1 < n_tiles) {
			prefill_fetch<D>(job, pages, kv_head, (tile + 1) * keys, end, 0, next);
			prefill_fetch<D>(job, pages, kv_head, (tile + 1) * keys, end, 1,
					 next + keys * D);
		}
		copy_async_commit();
		attend_tile<D, keys>(w, now, now + keys * D,
				     { position[0] - first, position[1] - first });
	}
	rows_end(w);
#pragma unroll
	for (int r = 0; r < 2; r++) {
		const uint32_t own = row + threadIdx.x / 32 * ATTEND_ROWS + lane / 4 + r * 8;
		float *y = job.y + element_of(job, s, kv_head, own);

		if (own > last_row)
			continue;
#pragma unroll
		for (int i = 0; i < D / 8; i++) {
			const uint32_t d = i * 8 + lane % 4 * 2;

			if (d < job.kv.head_dim)
				*reinterpret_cast<float2 *>(y + d) =
					make_float2(w.sums[i][2 * r] / w.weight[r],
						    w.sums[i][2 * r + 1] / w.weight[r]);
		}
	}
}
