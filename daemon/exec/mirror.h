/*
 * The KV cache of a device that is not the host: as many pages as the arena
 * has, each for the one of its number, with the heads of the device's rank. What
 * the device computed of a page goes
 * down to the arena when the page is summed; what the arena has comes up when
 * a sequence needs it and the device has not got it. So the arena holds all
 * that is sealed, and the next executor finds it there.
 */
#pragma once

#include "client/wire/err.h"
#include "client/wire/step.h"
#include "kernels/attention.h"

struct mirror;

/*
 * @arena	the pages in the host's memory, or the heads of a rank in them
 *		(kv_heads_of()); copied, its memory outlives the mirror
 * ret_kv	the same cache on the device, of those heads alone
 *
 * Returns 0, or -ENOMEM with the bytes wanted.
 */
int mirror_new(struct dev *dev, const struct kv_cache *arena, struct mirror **ret,
	       struct kv_cache *ret_kv, struct err *err);
struct mirror *mirror_free(struct mirror *m);

/*
 * Before a sequence is computed from position @at on: brings up what its pages
 * hold before that, and counts them all as the device's from then on. Queued
 * on @st. 0 or -EIO.
 */
int mirror_use(struct mirror *m, struct stream *st, const struct seq *seq);

/*
 * Does moves in order: clears and copies in both memories, brings up what is
 * to be checked (STEP_MOVE_CHECK), brings down what is to be summed. Waits:
 * then the arena's bytes may be summed. 0 or -EIO.
 */
int mirror_move(struct mirror *m, struct stream *st, const struct step_move *moves, uint32_t n);

static inline void mirror_freep(struct mirror **m)
{
	*m = mirror_free(*m);
}
