/* Pages of the KV cache copied, cleared and summed: the moves of a step. */
#pragma once

#include "client/wire/step.h"
#include "kernels/attention.h"

/*
 * Does @n checked moves on @kv with all threads of @dev, then takes the sums.
 *
 * moves	pages and token counts are within @kv; at most STEP_MOVES_MAX
 * ret		[n]
 */
void moves_run(struct dev *dev, const struct kv_cache *kv, const struct step_move *moves,
	       uint32_t n, struct step_moved *ret);
/* Only the sums: where the copies were made by daemon/exec/mirror.h. */
void moves_sum(struct dev *dev, const struct kv_cache *kv, const struct step_move *moves,
	       uint32_t n, struct step_moved *ret);
