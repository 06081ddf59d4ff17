/*
 * Attention of rows that are nearly alone in their sequence. The keys of a row
 * are split over blocks, within a block over warps, each with tiles of its own
 * in flight; the block that comes last of a row's adds up in the order of keys.
 */
#pragma once

#include "kernels/cuda/attend.h"

#define DECODE_WARPS 4
#define DECODE_KEYS 16
#define DECODE_STAGES 3
#define DECODE_TILES_MIN 4     /* of a block: fewer are not worth one */
#define DECODE_SLOTS_MAX 256   /* shared memory holds a weight a row for each */

template <int D> constexpr uint32_t decode_tile_elements = 2 * DECODE_KEYS * D;

template <int D>
constexpr size_t decode_shared_bytes = (size_t)DECODE_WARPS * DECODE_STAGES * decode_tile_elements<D> * sizeof(uint16_t);

/* Floats of a part: sums, then the rows' largest scores, then their weights. */
template <int D> constexpr uint32_t decode_part = ATTEND_ROWS * (D + 2);

static __device__ __host__ __forceinline__ uint32_t decode_rows_of(uint32_t n_tokens)
{
	return n_tokens <= DECODE_TOKENS_MAX ? n_tokens : 0;
}

static __device__ __forceinline__ uint32_t decode_tiles_of(const struct batch_seq &s)
{
	return (s.at + s.n_tokens + DECODE_KEYS - 1) / DECODE_KEYS;
}

/* Tiles a block takes, so that all rows' blocks are at most the slots and one a row more. */
static __device__ __forceinline__ uint32_t decode_share(const struct attend_job &job)
{
	uint32_t total = 0, share;

	for (uint32_t s = threadIdx.x % 32; s < job.n_seqs; s += 32)
		total += decode_rows_of(job.batch.seqs[s].n_tokens) *
			 decode_tiles_of(job.batch.seqs[s]);
	total = __reduce_add_sync(WARP_ALL, total);
	share = (total + job.slots - 1) / job.slots;
	return share > DECODE_TILES_MIN ? share : DECODE_TILES_MIN;
}

struct decode_work {
	uint32_t token, position, at; /* of the row; and of its sequence's first in this step */
	uint32_t head, n_heads;	  /* the first of query heads, and how many */
	uint32_t split, n_splits, first, end; /* tiles */
	const uint32_t *pages;
};

static __device__ __forceinline__ bool find_work(const struct attend_job &job, uint32_t kv_head,
						 struct decode_work &ret)
{
	const uint32_t share = decode_share(job), tile = blockIdx.y % job.head_tiles;
	const struct found f = find_item(
		job.batch, job.n_seqs, blockIdx.x, [share](const struct batch_seq &s) {
			return decode_rows_of(s.n_tokens) *
			       ((decode_tiles_of(s) + share - 1) / share);
		});
	struct batch_seq s;
	uint32_t tiles;

	if (f.seq == job.n_seqs)
		return false;
	s = job.batch.seqs[f.seq];
	ret.n_splits = (decode_tiles_of(s) + share - 1) / share;
	ret.split = f.item % ret.n_splits;
	ret.token = s.first + f.item / ret.n_splits;
	ret.position = s.at + f.item / ret.n_splits;
	ret.at = s.at;
	ret.pages = job.batch.pages + s.pages;
	ret.head = kv_head * job.group + tile * ATTEND_ROWS;
	ret.n_heads = min(job.group - tile * ATTEND_ROWS, (uint32_t)ATTEND_ROWS);
	tiles = ret.position / DECODE_KEYS + 1;
	ret.first = tiles * ret.split / ret.n_splits;
	ret.end = tiles * (ret.split + 1) / ret.n_splits;
	return true;
}

/* Queues the copy of a tile's keys and values by one warp; what lies behind the position is zero. */
template <int D>
static __device__ __forceinline__ void decode_fetch(const struct attend_job &job,
						    const struct decode_work &work, uint32_t kv_head,
						    uint32_t tile, uint16_t *to)
{
	const uint32_t lane = threadIdx.x % 32, position = tile * DECODE_KEYS;
	const uint16_t *from = kv_at(job.kv, work.pages, kv_head, position);
	const uint32_t chunks = job.kv.head_dim / 8;

#pragma unroll 4
	for (uint32_t i = lane; i < DECODE_KEYS * (D / 8); i += 32) {
		const uint32_t row = i / (D / 8), chunk = i % (D / 8);
		uint16_t *key = chunk_at<D>(to, row, chunk);
		uint16_t *value = chunk_at<D>(to + DECODE_KEYS * D, row, chunk);

		if (position + row <= work.position && chunk < chunks) {
			const uint16_t *at = from + row * job.kv.head_dim + chunk * 8;

			copy_async(key, at);
			copy_async(value, at + job.kv.part);
		} else {
			*reinterpret_cast<uint4 *>(key) = make_uint4(0, 0, 0, 0);
			*reinterpret_cast<uint4 *>(value) = make_uint4(0, 0, 0, 0);
		}
	}
}

/* One element of a row: its sum over @n parts, divided by the sum of weights. */
struct merged {
	float4 sum;
	float most, weight;
};

template <int D>
static __device__ __forceinline__ struct merged merge_warps(const float *parts, uint32_t row, uint32_t d)
{
	struct merged m = { make_float4(0, 0, 0, 0), -INFINITY, 0 };

#pragma unroll
	for (int i = 0; i < DECODE_WARPS; i++)
		m.most = fmaxf(m.most, parts[i * decode_part<D> + ATTEND_ROWS * D + row]);
#pragma unroll
	for (int i = 0; i < DECODE_WARPS; i++) {
		const float *part = parts + i * decode_part<D>;
		const float most = part[ATTEND_ROWS * D + row];
		const float factor = most == -INFINITY ? 0 : exp2f(most - m.most);
		const float4 v = *reinterpret_cast<const float4 *>(part + row * D + d);

		m.weight += factor * part[ATTEND_ROWS * (D + 1) + row];
		m.sum.x += factor * v.x;
		m.sum.y += factor * v.y;
		m.sum.z += factor * v.z;
		m.sum.w += factor * v.w;
	}
	return m;
}

static __device__ __forceinline__ void write_row(const struct attend_job &job,
						 const struct decode_work &work, uint32_t row,
						 uint32_t d, float4 v, float weight)
{
	float *y = job.y + ((size_t)work.token * job.heads + work.head + row) * job.kv.head_dim + d;

	*reinterpret_cast<float4 *>(y) =
		make_float4(v.x / weight, v.y / weight, v.z / weight, v.w / weight);
}

/* A warp's rows to shared memory, in the layout of a part. */
template <int D>
static __device__ __forceinline__ void put_rows(float *part, const struct attend_rows<D> &w)
{
	const uint32_t lane = threadIdx.x % 32;

#pragma unroll
	for (int r = 0; r < 2; r++) {
		const uint32_t row = lane / 4 + r * 8;

#pragma unroll
		for (int i = 0; i < D / 8; i++)
			*reinterpret_cast<float2 *>(part + row * D + i * 8 + lane % 4 * 2) =
				make_float2(w.sums[i][2 * r], w.sums[i][2 * r + 1]);
		if (lane % 4 == 0) {
			part[ATTEND_ROWS * D + row] = w.most[r];
			part[ATTEND_ROWS * (D + 1) + row] = w.weight[r];
		}
	}
}

/* The last block of a row: factors of all parts to shared memory, then the sums. */
template <int D>
static __device__ __forceinline__ void merge_splits(const struct attend_job &job,
						    const struct decode_work &work, float *factors)
{
	const size_t stride = (size_t)gridDim.y * decode_part<D>;
	const float *parts = job.parts +
			     ((size_t)(blockIdx.x - work.split) * gridDim.y + blockIdx.y) *
				     decode_part<D>;

	constexpr uint32_t OWN = ATTEND_ROWS / DECODE_WARPS; /* rows of a warp, a lane a split */
	const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
	float scores[OWN], weights[OWN]; /* of the first 32 splits: all are on their way together */

#pragma unroll
	for (uint32_t i = 0; i < OWN; i++) {
		const uint32_t row = i * DECODE_WARPS + warp;
		const float *part = parts + lane * stride + ATTEND_ROWS * D + row;
		const bool is_there = row < work.n_heads && lane < work.n_splits;

		scores[i] = is_there ? __ldcg(part) : -INFINITY;
		weights[i] = is_there ? __ldcg(part + ATTEND_ROWS) : 0;
	}
#pragma unroll
	for (uint32_t i = 0; i < OWN; i++) {
		const uint32_t row = i * DECODE_WARPS + warp;
		const float *part = parts + ATTEND_ROWS * D + row;
		float most = scores[i], weight = 0;

		if (row >= work.n_heads)
			break;
		for (uint32_t s = lane + 32; s < work.n_splits; s += 32)
			most = fmaxf(most, __ldcg(part + s * stride));
		for (int bits = 16; bits > 0; bits /= 2)
			most = fmaxf(most, __shfl_xor_sync(WARP_ALL, most, bits));
		for (uint32_t s = lane; s < work.n_splits; s += 32) {
			const float own = s < 32 ? scores[i] : __ldcg(part + s * stride);
			const float factor = own == -INFINITY ? 0 : exp2f(own - most);

			weight += factor * (s < 32 ? weights[i] : __ldcg(part + s * stride + ATTEND_ROWS));
			factors[s * ATTEND_ROWS + row] = factor;
		}
		weight = sum_warp(weight);
		if (lane == 0)
			factors[work.n_splits * ATTEND_ROWS + row] = weight;
	}
	__syncthreads();
	for (uint32_t i = threadIdx.x; i < work.n_heads * (D / 4); i += DECODE_WARPS * 32) {
		const uint32_t row = i / (D / 4), d = i % (D / 4) * 4;
		float4 sum = make_float4(0, 0, 0, 0);

		if (d >= job.kv.head_dim)
			continue;
#pragma unroll 16
		for (uint32_t s = 0; s < work.n_splits; s++) {
			const float4 v = __ldcg(
				reinterpret_cast<const float4 *>(parts + s * stride + row * D + d));
			const float factor = factors[s * ATTEND_ROWS + row];

			sum.x += factor * v.x;
			sum.y += factor * v.y;
			sum.z += factor * v.z;
			sum.w += factor * v.w;
		}
		write_row(job, work, row, d, sum, factors[work.n_splits * ATTEND_ROWS + row]);
	}
}

template <int D>
static __global__ void __launch_bounds__(DECODE_WARPS * 32) k_attend_decode(const struct attend_job job)
{
	const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
	const uint32_t kv_head = blockIdx.y / job.head_tiles;
	uint16_t *stages = shared_memory<uint16_t>() +
			   warp * DECODE_STAGES * decode_tile_elements<D>;
	float *shared = shared_memory<float>();
	struct attend_rows<D> w;
	struct decode_work work;
	__shared__ uint32_t arrived;
	uint32_t fetched;
	const float *q;
	bool old;

	pdl_release();
	if (!find_work(job, kv_head, work)) {
		pdl_wait();
		return;
	}
	/*
	 * Keys of earlier steps are there before the kernel that writes this step's
	 * ends: op_rope_kv() releases its successor after its own wait.
	 */
	fetched = work.first + warp;
	old = (fetched + (DECODE_STAGES - 2) * DECODE_WARPS + 1) * DECODE_KEYS <= work.at;
	if (!old)
		pdl_wait();
#pragma unroll
	for (int i = 0; i < DECODE_STAGES - 1; i++, fetched += DECODE_WARPS) {
		if (fetched < work.end)
			decode_fetch<D>(job, work, kv_head, fetched,
					stages + i * decode_tile_elements<D>);
		copy_async_commit();
	}
	if (old)
		pdl_wait();
	q = job.q + ((size_t)work.token * job.heads + work.head) * job.kv.head_dim;
	rows_begin<D>(w, lane / 4 < work.n_heads ? q + lane / 4 * job.kv.head_dim : NULL,
		      lane / 4 + 8 < work.n_heads ? q + (lane / 4 + 8) * job.kv.head_dim : NULL,
		      job.kv.head_dim, job.scale);
	for (uint32_t tile = work.first + warp, n = 0; tile < work.end; tile += DECODE_WARPS, n++) {
		const int last = (int)(work.position - tile * DECODE_KEYS);
		uint16_t *at = stages + n % DECODE_STAGES * decode_tile_elements<D>;

		copy_async_wait<DECODE_STAGES - 2>();
		__syncwarp();
		if (fetched < work.end)
			decode_fetch<D>(job, work, kv_head, fetched,
					stages + (n + DECODE_STAGES - 1) % DECODE_STAGES *
							 decode_tile_elements<D>);
		fetched += DECODE_WARPS;
		copy_async_commit();
		attend_tile<D, DECODE_KEYS>(w, at, at + DECODE_KEYS * D, { last, last });
	}
	rows_end(w);
	copy_async_wait<0>();
	__syncthreads();
	put_rows<D>(shared + warp * decode_part<D>, w);
	__syncthreads();

	for (uint32_t i = threadIdx.x; i < work.n_heads * (D / 4); i += DECODE_WARPS * 32) {
		const uint32_t row = i / (D / 4), d = i % (D / 4) * 4;
		const struct merged m = merge_warps<D>(shared, row, d);
		float *part = job.parts +
			      ((size_t)blockIdx.x * gridDim.y + blockIdx.y) * decode_part<D>;

		if (work.n_splits == 1) {
			if (d < job.kv.head_dim)
				write_row(job, work, row, d, m.sum, m.weight);
			continue;
		}
		*reinterpret_cast<float4 *>(part + row * D + d) = m.sum;
		if (d == 0) {
			part[ATTEND_ROWS * D + row] = m.most;
			part[ATTEND_ROWS * (D + 1) + row] = m.weight;
		}
	}
	if (work.n_splits == 1)
		return;
	__threadfence();
	__syncthreads();
	if (threadIdx.x == 0)
		arrived = atomicInc(job.arrivals + (blockIdx.x - work.split) * gridDim.y + blockIdx.y,
				    work.n_splits - 1);
	__syncthreads();
	if (arrived != work.n_splits - 1)
		return;
	__threadfence();
	merge_splits<D>(job, work, shared);
}
