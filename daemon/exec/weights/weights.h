/*
 * A checkpoint in the device's memory: read in the order of its files, past the
 * page cache unless that has it, packed by the threads that read it, sealed
 * when it is whole. Never mapped: a file that shrinks would be a SIGBUS.
 */
#pragma once

#include "daemon/exec/weights/checkpoint.h"
#include "daemon/exec/weights/fingerprint.h"
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
	struct config config;
	struct weight embed, head; /* tied: the same memory */
	struct tensor norm;
	struct layer_weights *layers;
	uint64_t bytes;		   /* resident */
	uint64_t decode_bytes;	   /* read per decoded token at batch 1 */
	struct fingerprint *fingerprint; /* of what was loaded; finished */
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
struct weights *weights_free(struct weights *w);

static inline void weights_freep(struct weights **w)
{
	*w = weights_free(*w);
}
