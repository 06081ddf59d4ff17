/*
 * Products with 1 to 4 tokens, whose high and low halves share one B, the low ones
 * in its columns 4 and on. A block has its activations in shared memory,
 * split; its warps take the tiles of a strip in turn, so each has a sum of its
 * own of every output, and these are added up in the order of the warps.
 */
#pragma once

#include "kernels/cuda/sum.h"
#include "kernels/cuda/tile.h"

#define FEW_TOKENS 4
#define FEW_WARPS 8
#define FEW_THREADS (FEW_WARPS * 32)

#define FEW_FILL 4	 /* vectors of activations that a thread reads at a time */
#define FEW_SLOTS 4	 /* strips whose sums are kept, at most, until they are added up */
#define FEW_ACC (16 * 8) /* sums of a warp for a strip: a mma's d */
#define FEW_SLOT (FEW_WARPS * FEW_ACC)

/* Bytes of shared memory for tiles that are under way, @depth of each warp in each of @m matrices. */
template <int KIND, int M, int DEPTH>
static constexpr uint32_t few_ring_bytes = FEW_WARPS *M *DEPTH *tile_bytes<KIND>;

/* Bytes from row to row of @cols activations: two rows use all banks. */
LAYOUT_FN uint32_t few_pitch(uint32_t cols)
{
	return cols * 2 + 64;
}

/* How rows are normalised as they are filled in: x * factor * weight; weights NULL: not at all. */
struct few_norm {
	const float *weights; /* [cols], aligned to 16 bytes; cols a multiple of 4 */
	const float *factors; /* shared: [tokens] */
};

/* Columns first … first + n (a multiple of 64) of all tokens, split: rows of high halves, then of low ones. */
static __device__ __forceinline__ void few_fill(char *rows, uint32_t pitch, const float *x,
						uint32_t cols, uint32_t tokens, uint32_t first,
						uint32_t n, const struct few_norm &norm)
{
	const bool is_aligned = cols % 4 == 0 && ((uintptr_t)x & 15) == 0;
	const uint32_t quads = n / 4, all = tokens * quads;

#pragma unroll 1
	for (uint32_t base = threadIdx.x; base < all; base += FEW_FILL * FEW_THREADS) {
		float4 v[FEW_FILL]; /* on their way together: each waits for the second cache */

#pragma unroll
		for (uint32_t j = 0; j < FEW_FILL; j++) {
			const uint32_t i = base + j * FEW_THREADS;

			if (i < all)
				v[j] = four_columns(x + (size_t)(i / quads) * cols,
						   first + i % quads * 4, cols, is_aligned);
		}
#pragma unroll
		for (uint32_t j = 0; j < FEW_FILL; j++) {
			const uint32_t i = base + j * FEW_THREADS;
			char *to = rows + i / quads * pitch + i % quads * 8;
			uint2 high, low;

			if (i >= all)
				continue;
			if (norm.weights && first + i % quads * 4 < cols)
				v[j] = normed(v[j], norm.factors[i / quads],
					      __ldg((const float4 *)(norm.weights + first +
								     i % quads * 4)));
			split_pair(&high.x, &low.x, v[j].x, v[j].y);
			split_pair(&high.y, &low.y, v[j].z, v[j].w);
			*(uint2 *)to = high;
			*(uint2 *)(to + tokens * pitch) = low;
		}
	}
}

/* What a lane reads of rows as few_fill() leaves them. */
struct few_rows {
	const char *at; /* NULL: no token */

	__device__ __forceinline__ few_rows(const char *rows, uint32_t pitch, uint32_t tokens,
					    uint32_t lane)
	{
		const uint32_t g = lane / 4, token = g % FEW_TOKENS;
		const uint32_t row = g / FEW_TOKENS * tokens + token;

		at = token < tokens ? rows + row * pitch + lane % 4 * 16 : NULL;
	}

	__device__ __forceinline__ uint4 columns(uint32_t tile, int group) const
	{
		if (!at)
			return make_uint4(0, 0, 0, 0);
		return *(const uint4 *)(at + tile * (TILE_COLS * 2) + group * 64);
	}
};

/* Leaves a warp's sums of a strip in its slot, or adds them to what an earlier run over columns left. */
static __device__ __forceinline__ void few_leave(float *sums, uint32_t slot, bool is_first,
						 float (&acc)[4])
{
	float4 *to = (float4 *)sums + (size_t)slot * FEW_THREADS + threadIdx.x;
	float4 v = make_float4(acc[0], acc[1], acc[2], acc[3]);

	if (!is_first) {
		const float4 was = *to;

		v = make_float4(was.x + v.x, was.y + v.y, was.z + v.z, was.w + v.w);
	}
	*to = v;
	acc[0] = acc[1] = acc[2] = acc[3] = 0;
}

/* The sum of all warps for a row of the strip and a token. */
static __device__ __forceinline__ float few_total(const float *sums, uint32_t slot, uint32_t row,
						  uint32_t token)
{
	const float *at = sums + (size_t)slot * FEW_SLOT + (row % 8 * 4 + token / 2) * 4 +
			  row / 8 * 2 + token % 2;
	float sum = 0;

	for (uint32_t w = 0; w < FEW_WARPS; w++)
		sum += at[w * FEW_ACC];
	for (uint32_t w = 0; w < FEW_WARPS; w++)
		sum += at[w * FEW_ACC + 2 * 4]; /* low halves: two lanes on */
	return sum;
}

/* The share of block @i of @n of [0, total). */
static __device__ __forceinline__ uint32_t few_share(uint32_t total, uint32_t i, uint32_t n)
{
	return (uint32_t)((uint64_t)total * i / n);
}

/* Items that a block computes one after another; each has a strip of M matrices. */
struct few_span {
	uint32_t first, last, batch; /* batch: items that have slots */
	uint32_t n_tiles, run_tiles; /* of a row: all, and those in shared memory at a time */
};

/* Where a block is: in the columns of a run, the items of a batch, the runs of a row, the batches. */
struct few_place {
	uint32_t item, tile; /* the first warp's */
	uint32_t run, batch; /* where these begin */
};

static __device__ __forceinline__ struct few_place
few_after(const struct few_place &p, const struct few_span &s, uint32_t round)
{
	const uint32_t run_end = min(p.run + s.run_tiles, s.n_tiles);
	struct few_place next = p;

	next.tile += round;
	if (next.tile < run_end)
		return next;
	next.item++;
	if (next.item == min(p.batch + s.batch, s.last)) {
		next.run = run_end < s.n_tiles ? run_end : 0;
		if (next.run)
			next.item = p.batch;
		else
			next.batch = next.item;
	}
	next.tile = next.run;
	return next;
}

/*
 * Computes the items of @s. Each warp has tiles under way in a ring of its own, the
 * next ones across the ends of strips, runs and batches.
 *
 * ring			few_ring_bytes<KIND, M, DEPTH>
 * distance		bytes from a strip of an item to that of its second matrix
 * find(item)		the first strip
 * ready()		called once weights are on their way: fills the rows of the first run
 * fill(tile, n)	fills rows anew, with columns from that tile on
 * finish(item, n)	adds up the slots of these items
 */
template <int KIND, int M, int DEPTH, typename FIND, typename READY, typename FILL, typename FINISH>
static __device__ __forceinline__ void few_run(const struct few_span &s, const few_rows &x,
					       float *sums, char *ring, uint32_t groups,
					       ptrdiff_t distance, FIND find, READY ready,
					       FILL fill, FINISH finish)
{
	constexpr uint32_t BYTES = M * tile_bytes<KIND>;
	const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
	char *const own = ring + warp * DEPTH * BYTES;
	struct few_place at = { s.first, 0, 0, s.first }, ahead = at;
	uint32_t slot = 0, to = 0;
	const char *from = NULL;
	float acc[M][1][4] = {};
	const auto copy = [&] {
		if (ahead.item < s.last) {
			const struct few_place next = few_after(ahead, s, FEW_WARPS);
			const uint32_t number = ahead.tile + warp;

			if (number < min(ahead.run + s.run_tiles, s.n_tiles))
#pragma unroll
				for (int m = 0; m < M; m++)
					copy_tile<KIND>(own + to + m * tile_bytes<KIND>,
							from + m * distance, groups, number, lane);
			if (next.item != ahead.item && next.item < s.last)
				from = find(next.item);
			ahead = next;
		}
		copy_async_commit();
		to = to + BYTES == DEPTH * BYTES ? 0 : to + BYTES;
	};

	static_assert(DEPTH >= 2, "one tile is copied while another one is used");
	if (s.first < s.last)
		from = find(s.first);
#pragma unroll 1
	for (int i = 0; i < DEPTH - 1; i++)
		copy();
	ready();

#pragma unroll 1
	while (at.item < s.last) {
		const struct few_place next = few_after(at, s, FEW_WARPS);
		const uint32_t number = at.tile + warp;
		const uint32_t next_end = next.item < s.last
						  ? min(next.run + s.run_tiles, s.n_tiles)
						  : 0;

		copy_async_wait<DEPTH - 2>();
		__syncwarp();
		copy();
		if (number < min(at.run + s.run_tiles, s.n_tiles))
			multiply<KIND, M, 1, 1>(acc, own + slot, 2 * number + 1 < groups, lane,
						[&](int, int, int group) {
							return x.columns(number - at.run, group);
						});
		slot = slot + BYTES == DEPTH * BYTES ? 0 : slot + BYTES;
		if (next.tile == next.run)
#pragma unroll
			for (int m = 0; m < M; m++)
				few_leave(sums, (at.item - at.batch) * M + m, at.run == 0,
					  acc[m][0]);
		if (next.run != at.run || next.batch != at.batch) {
			__syncthreads();
			if (next.batch != at.batch)
				finish(at.batch, next.batch - at.batch);
			if (next.item < s.last && s.run_tiles < s.n_tiles)
				fill(next.run, next_end - next.run);
			__syncthreads();
		}
		at = next;
	}
	copy_async_wait<0>();
	__syncwarp();
}

/* Shared memory of a block: slots, the ring, then rows; and how much of a row fits. On the host. */
struct few_plan {
	uint32_t blocks, slots, run_tiles;
	size_t shared_bytes;
};

/*
 * @n_items, @m strips each, for at most @blocks blocks; a run is all of a row,
 * or whole rounds of FEW_WARPS tiles. The block may have @room bytes of shared
 * memory, with @ring_bytes of them for the ring.
 */
static inline struct few_plan few_plan_of(size_t room, size_t ring_bytes, uint32_t n_items,
					  uint32_t m, uint32_t max_slots, uint32_t blocks,
					  uint32_t tokens, uint32_t n_tiles)
{
	struct few_plan p = {};
	size_t others;
	uint32_t fit;

	p.blocks = n_items < blocks ? n_items : blocks;
	p.slots = (n_items / p.blocks + (n_items % p.blocks != 0)) * m;
	if (p.slots > max_slots)
		p.slots = max_slots;
	others = ring_bytes + p.slots * FEW_SLOT * sizeof(float);
	fit = (uint32_t)(((room - others) / (2 * tokens) - 64) / (TILE_COLS * 2));
	p.run_tiles = n_tiles <= fit ? n_tiles : fit > FEW_WARPS ? fit / FEW_WARPS * FEW_WARPS : fit;
	p.shared_bytes = others + (size_t)2 * tokens * few_pitch(p.run_tiles * TILE_COLS);
	return p;
}
