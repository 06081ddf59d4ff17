/*
 * A checkpoint, or one rank's share of it, in the device's memory: read in the order of its files, past the
 * page cache unless that has it, packed by the threads that read it, sealed
 * when it is whole. Never mapped: a file that shrinks would be a SIGBUS.
 */
#pragma once

#include "daemon/exec/weights/checkpoint.h"
#include "daemon/exec/weights/fingerprint.h"
#include "daemon/exec/weights/share.h"
#include "kernels/linear.h"
#include "kernels/moe.h"

struct layer_weights {
	struct tensor input_norm, post_norm, q_norm, k_norm;  /* F32 [1, 1, n]; q_norm.data NULL: none */
	struct weight q, k, v, o;
	struct tensor q_bias, k_bias, v_bias, o_bias;	      /* F32 [1, 1, rows] or data NULL */
	bool dense;
	struct weight gate, up, down;
	struct tensor router, router_bias;		      /* F32 [1, experts, dim], [1, 1, experts] */
	struct moe_weights moe;
};

struct weights {
	struct config config;	   /* of the whole model */
	struct share share;	   /* what of it is here */
	struct weight embed, head; /* tied: the same memory */
	struct tensor norm;
	struct layer_weights *layers;
	uint64_t bytes;		   /* resident */
	uint64_t decode_bytes;	   /* read per decoded token at batch 1 */
	struct fingerprint *fingerprint; /* of what was loaded; finished. Rank 0 has it for all */
	void *memory;
	size_t reserved_bytes;
	struct dev *dev;	   /* outlives the weights */
};

/* Called from time to time while loading, from the calling thread. */
typedef void (*weights_progress_fn)(uint64_t done_bytes, uint64_t total_bytes, void *userdata);

/*
 * Loads @c with as many threads as @dev has and a few more. The files are
 * statx'ed before and after; staging memory is bounded (8 MiB a thread, or one
 * run of 16 rows), never a whole file. The fingerprint is made on the way.
 *
 * Returns 0; -EBADMSG naming file and tensor: NaN, infinite, zero or negative
 * scales, non-finite norms or biases, weight_shape that disagrees, a file that
 * changed or got shorter; -ENOMEM naming bytes wanted.
 */
int weights_load(const struct checkpoint *c, struct dev *dev, weights_progress_fn progress,
		 void *userdata, struct weights **ret, struct err *err);
/*
 * The same for all ranks at once: each gets its share (daemon/exec/weights/share.h)
 * into its own device, and what several have parts of is read once. A bias of
 * o, which is added to a sum, is rank 0's.
 *
 * devs		[n_ranks], of one instruction set
 * ret		[n_ranks]
 *
 * Returns also -ENOTSUP with the numbers where the model cannot be divided so.
 */
int weights_load_ranks(const struct checkpoint *c, struct dev *const *devs, uint32_t n_ranks,
		       weights_progress_fn progress, void *userdata, struct weights **ret,
		       struct err *err);
struct weights *weights_free(struct weights *w);

/*
 * Gives the memory back and keeps the addresses: whoever points at the weights
 * need not be told, but may not look until weights_reload().
 */
void weights_drop(struct weights *w);
/*
 * Loads them again, as weights_load() did, to where they stood. @c must be the
 * checkpoint that they were loaded from, or a copy of it.
 *
 * Returns 0, or what weights_load() does, or -ESTALE with what differs: found
 * from the headers before anything is read, else from the contents. After a
 * failure they are dropped, as before.
 */
int weights_reload(struct weights *w, const struct checkpoint *c, weights_progress_fn progress,
		   void *userdata, struct err *err);
/* The same for all that weights_load_ranks() gave, in that order. */
int weights_reload_ranks(struct weights *const *ranks, const struct checkpoint *c,
			 weights_progress_fn progress, void *userdata, struct err *err);

static inline void weights_freep(struct weights **w)
{
	*w = weights_free(*w);
}
