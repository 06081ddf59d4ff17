/*
 * Products with more tokens than 8: a block has a strip for each of its warps
 * and NT times 8 tokens, whose split rows go through shared memory in stages
 * of 64 columns.
 */
#pragma once

#include "kernels/cuda/tile.h"

#define MANY_WARPS 8
#define MANY_THREADS (MANY_WARPS * 32)

/* Blocks that a multiprocessor takes: before sm_90 they would have too few registers each. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define MANY_BLOCKS 1
#else
#define MANY_BLOCKS 2
#endif
#define MANY_ROWS (MANY_WARPS * STRIP_ROWS)
#define MANY_STAGES 4

/* Tiles of a warp that are under way: as many as there are registers for. */
template <int KIND, int NT>
static constexpr int many_depth = KIND == WEIGHT_F32 || KIND == WEIGHT_INT4_F32 || NT > 4 ? 1 : 2;

template <int NT> static constexpr uint32_t many_stage_bytes = 2 * NT * 8 * TILE_COLS * 2;
template <int NT> static constexpr uint32_t many_shared_bytes = MANY_STAGES *many_stage_bytes<NT>;

/* Rows of the split form, see matrix.h. */
struct many_rows {
	const uint16_t *split;
	uint32_t pitch;	       /* columns of a row, padded */
	const uint32_t *which; /* shared: [NT * 8] rows of it */
};

/* Every other row has its halves swapped, so that two rows use all banks. */
static __device__ __forceinline__ uint32_t many_at(uint32_t row, uint32_t chunk)
{
	return row * (TILE_COLS * 2) + (chunk ^ (row & 1) << 2) * 16;
}

template <int NT>
static __device__ __forceinline__ void many_copy(char *stage, const struct many_rows &x,
						 uint32_t tile)
{
	for (uint32_t i = threadIdx.x; i < 2 * NT * 8 * 8; i += MANY_THREADS) {
		const uint32_t row = i / 8, chunk = i % 8, part = row / (NT * 8);

		copy_async(stage + many_at(row, chunk),
			   x.split + ((size_t)x.which[row % (NT * 8)] * 2 + part) * x.pitch +
				   tile * TILE_COLS + chunk * 8);
	}
}

/*
 * acc += a strip of @matrix for each warp, columns of tiles first … end, times
 * the rows of @x. All threads of the block call it; those of a strip that is
 * not there only help. Ends with a barrier: stages are free again.
 */
template <int KIND, int NT>
static __device__ __forceinline__ void
many_product(float (&acc)[NT][4], const char *matrix, uint32_t number, bool is_there, uint32_t cols,
	     const struct many_rows &x, char *stages, uint32_t first, uint32_t end)
{
	constexpr int DEPTH = many_depth<KIND, NT>;
	const uint32_t lane = threadIdx.x % 32;
	const struct strip from = strip_of<KIND>(matrix, number, groups_of(cols), lane);
	struct tile<KIND> ring[DEPTH];

	for (uint32_t i = 0; i < MANY_STAGES - 1; i++) {
		if (first + i < end)
			many_copy<NT>(stages + i * many_stage_bytes<NT>, x, first + i);
		copy_async_commit();
	}
#pragma unroll
	for (int i = 0; i < DEPTH; i++)
		if (is_there && first + i < end)
			load_tile(ring[i], from, first + i, lane);

	for (uint32_t base = first; base < end; base += DEPTH) {
#pragma unroll
		for (int i = 0; i < DEPTH; i++) {
			const uint32_t tile = base + i, ahead = tile + MANY_STAGES - 1;
			const char *stage = stages +
					    (tile - first) % MANY_STAGES * many_stage_bytes<NT>;

			if (tile >= end)
				break;
			copy_async_wait<MANY_STAGES - 2>();
			__syncthreads();
			if (ahead < end)
				many_copy<NT>(stages + (ahead - first) % MANY_STAGES *
							       many_stage_bytes<NT>,
					      x, ahead);
			copy_async_commit();
			if (!is_there)
				continue;
			multiply<KIND, NT, 2>(acc, ring[i], [&](int n, int part, int group) {
				return *(const uint4 *)(stage +
							many_at((part * NT + n) * 8 + lane / 4,
								group * 4 + lane % 4));
			});
			if (tile + DEPTH < end)
				load_tile(ring[i], from, tile + DEPTH, lane);
		}
	}
	copy_async_wait<0>();
	__syncthreads();
}

/* Row of the block's, and token, that element @i of acc[@n] is for. */
static __device__ __forceinline__ uint32_t many_row(int i)
{
	return threadIdx.x / 32 * STRIP_ROWS + threadIdx.x % 32 / 4 + i / 2 * 8;
}

static __device__ __forceinline__ uint32_t many_token(int n, int i)
{
	return n * 8 + threadIdx.x % 4 * 2 + i % 2;
}
