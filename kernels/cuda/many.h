/*
 * Products with more tokens than 4: a block has M strips for each of its warps
 * and NT times 8 tokens. Weights and split rows go through shared memory in
 * stages of 64 columns, as many under way as there is room for.
 */
#pragma once

#include "kernels/cuda/tile.h"

#define MANY_WARPS 8
#define MANY_THREADS (MANY_WARPS * 32)

/* Blocks that a multiprocessor takes: where it has 228 KiB of shared memory, two. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 900 && __CUDA_ARCH__ != 1000
#define MANY_BLOCKS 1
#else
#define MANY_BLOCKS 2
#endif
#define MANY_ROWS (MANY_WARPS * STRIP_ROWS) /* of a block, times M */
#define MANY_SHARED (96 << 10)		    /* what stages may take: one block fits into 99 KiB */
#define MANY_STAGES_MAX 8

template <int KIND, int M, int NT>
static constexpr uint32_t many_stage_bytes = MANY_WARPS *M *tile_bytes<KIND> + 2 * NT * 8 * TILE_COLS * 2;
template <int KIND, int M, int NT>
static constexpr uint32_t many_stages =
	MANY_SHARED / many_stage_bytes<KIND, M, NT> < MANY_STAGES_MAX
		? MANY_SHARED / many_stage_bytes<KIND, M, NT>
		: MANY_STAGES_MAX;
template <int KIND, int M, int NT>
static constexpr uint32_t many_shared_bytes = many_stages<KIND, M, NT> *many_stage_bytes<KIND, M, NT>;

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

/*
 * acc[m] += strip m of each warp, columns of tiles first … end, times the rows
 * of @x. All threads of the block call it; warps whose strips are not there only
 * help. Ends with a barrier: stages are free again.
 */
template <int KIND, int M, int NT>
static __device__ __forceinline__ void
many_product(float (&acc)[M][NT][4], const char *const (&strips)[M], bool is_there, uint32_t cols,
	     const struct many_rows &x, char *stages, uint32_t first, uint32_t end)
{
	constexpr uint32_t STAGES = many_stages<KIND, M, NT>, BYTES = many_stage_bytes<KIND, M, NT>;
	constexpr uint32_t COPIES = NT < 2 ? 1 : NT / 2; /* of rows, for each thread */
	const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, groups = groups_of(cols);
	const bool has_copies = threadIdx.x < NT * 128;
	char *const rows = stages + MANY_WARPS * M * tile_bytes<KIND>;
	char *const own = stages + warp * M * tile_bytes<KIND>;
	uint32_t at = 0, from[COPIES] = {}; /* in chunks */

	static_assert(STAGES >= 2, "one stage is copied while another one is used");
#pragma unroll
	for (uint32_t i = 0; i < COPIES; i++) {
		const uint32_t row = (i * MANY_THREADS + threadIdx.x) / 8;

		if (has_copies)
			from[i] = (x.which[row % (NT * 8)] * 2 + row / (NT * 8)) * (x.pitch / 8) +
				  threadIdx.x % 8;
	}
	const auto copy = [&](uint32_t number, uint32_t to) {
		if (number < end) {
			if (is_there)
#pragma unroll
				for (int m = 0; m < M; m++)
					copy_tile<KIND>(own + to + m * tile_bytes<KIND>, strips[m],
							groups, number, lane);
#pragma unroll
			for (uint32_t i = 0; i < COPIES; i++)
				if (has_copies)
					copy_async(rows + to +
							   many_at((i * MANY_THREADS + threadIdx.x) / 8,
								   threadIdx.x % 8),
						   x.split + (size_t)from[i] * 8 + number * TILE_COLS);
		}
		copy_async_commit();
	};

#pragma unroll 1
	for (uint32_t i = 0; i < STAGES - 1; i++)
		copy(first + i, i * BYTES);
#pragma unroll 1
	for (uint32_t number = first; number < end; number++) {
		copy_async_wait<(int)STAGES - 2>();
		__syncthreads();
		/* where the one before was read */
		copy(number + STAGES - 1, (at ? at : STAGES * BYTES) - BYTES);
		if (is_there)
			multiply<KIND, M, NT, 2>(
				acc, own + at, 2 * number + 1 < groups, lane,
				[&](int n, int part, int group) {
					return *(const uint4 *)(rows + at +
								many_at((part * NT + n) * 8 +
										lane / 4,
									group * 4 + lane % 4));
				});
		at = at + BYTES == STAGES * BYTES ? 0 : at + BYTES;
	}
	copy_async_wait<0>();
	__syncthreads();
}

/* Row of the warp's strip, and token, that element @i of acc[][@n] is for. */
static __device__ __forceinline__ uint32_t many_row(int i)
{
	return threadIdx.x % 32 / 4 + i / 2 * 8;
}

static __device__ __forceinline__ uint32_t many_token(int n, int i)
{
	return n * 8 + threadIdx.x % 4 * 2 + i % 2;
}
