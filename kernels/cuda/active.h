/* The experts that few tokens chose, each once, as every block of the kernels finds them for itself. */
#pragma once

#include "kernels/cuda/few.h"

#define ACTIVE_MAX 128 /* choices, and so experts */

struct active {
	uint16_t expert[ACTIVE_MAX];		/* rising */
	uint8_t tokens[ACTIVE_MAX];		/* bit t: token t chose it … */
	uint8_t choice[ACTIVE_MAX][FEW_TOKENS]; /* … as its choice of this number */
	uint32_t picked[ACTIVE_MAX], warps[FEW_WARPS];
};

/*
 * Fills @to in shared memory from tokens * top_k choices, at most ACTIVE_MAX,
 * and returns the number of experts. What is no expert counts for nothing.
 * All FEW_THREADS threads call it; it ends with a barrier.
 */
static __device__ __forceinline__ uint32_t active_find(struct active *to, const uint32_t *chosen,
						       uint32_t tokens, uint32_t top_k,
						       uint32_t experts)
{
	const uint32_t n = tokens * top_k, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
	uint32_t total = 0;

	if (threadIdx.x < n)
		to->picked[threadIdx.x] = chosen[threadIdx.x];
	__syncthreads();
#pragma unroll 1 /* here and below: registers are full of weights */
	for (uint32_t base = 0; base < experts && n; base += FEW_THREADS) {
		const uint32_t e = base + threadIdx.x;
		uint32_t mask = 0, ballot, before = 0;

#pragma unroll 1
		for (uint32_t t = 0, i = 0; t < tokens && e < experts; t++)
#pragma unroll 1
			for (uint32_t k = 0; k < top_k; k++, i++)
				mask |= (uint32_t)(to->picked[i] == e) << t;
		ballot = __ballot_sync(0xffffffffu, mask != 0);
		if (lane == 0)
			to->warps[warp] = __popc(ballot);
		__syncthreads();
#pragma unroll 1
		for (uint32_t w = 0; w < FEW_WARPS; w++) {
			if (w == warp)
				before = total + __popc(ballot & ((1u << lane) - 1));
			total += to->warps[w];
		}
		if (mask) {
			to->expert[before] = (uint16_t)e;
			to->tokens[before] = (uint8_t)mask;
		}
		__syncthreads();
	}
	if (threadIdx.x < n)
#pragma unroll 1
		for (uint32_t a = 0; a < total; a++)
			if (to->expert[a] == to->picked[threadIdx.x])
				to->choice[a][threadIdx.x / top_k] = (uint8_t)(threadIdx.x % top_k);
	__syncthreads();
	return total;
}
