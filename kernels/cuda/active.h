/* The experts that few tokens chose, each once, as every block of the kernels finds them for itself. */
#pragma once

#include "kernels/cuda/few.h"

#define ACTIVE_MAX 32 /* choices, and so experts: one for each lane */

struct active {
	uint16_t expert[ACTIVE_MAX];		/* rising */
	uint8_t tokens[ACTIVE_MAX];		/* bit t: token t chose it … */
	uint8_t choice[ACTIVE_MAX][FEW_TOKENS]; /* … as its choice of this number */
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
	const uint32_t n = tokens * top_k, lane = threadIdx.x % 32;
	const uint32_t own = lane < n ? chosen[lane] : experts;
	uint32_t firsts, rank = 0, mask = 0;
	bool is_first = own < experts;

	for (uint32_t i = 0; i < n; i++)
		is_first &= __shfl_sync(0xffffffffu, own, i) != own || i >= lane;
	firsts = __ballot_sync(0xffffffffu, is_first);
	for (uint32_t i = 0; i < n; i++) {
		const uint32_t other = __shfl_sync(0xffffffffu, own, i);

		rank += (firsts >> i & 1) && other < own;
		mask |= (uint32_t)(other == own) << i / top_k;
	}
	if (threadIdx.x < n && own < experts) {
		to->choice[rank][lane / top_k] = (uint8_t)(lane % top_k);
		if (is_first) {
			to->expert[rank] = (uint16_t)own;
			to->tokens[rank] = (uint8_t)mask;
		}
	}
	__syncthreads();
	return __popc(firsts);
}
