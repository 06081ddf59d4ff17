/*
 * What weights_load() has to read, in pieces, and the threads that read them
 * in the files' order and pack each as soon as it is there.
 */
#pragma once

#include "daemon/exec/weights/piece.h"
#include "daemon/exec/weights/weights.h"

/* Pieces are added in any order, then run. Zeroed it is empty. */
struct load_plan {
	struct piece *pieces;
	size_t n_pieces, room;
	uint64_t total_bytes;
};

int load_plan_add(struct load_plan *plan, struct piece p); /* 0 or -ENOMEM */
void load_plan_deinit(struct load_plan *plan);

/*
 * Runs the pieces on as many threads as the devices of all ranks have and a few
 * more, which wait for the disk while those pack; each adds what it read to
 * @fingerprint. @progress is called from this thread.
 * Returns 0, or what weights_load() says of bad or missing values.
 */
int load_plan_run(struct load_plan *plan, const struct checkpoint *c, struct weights *const *ranks,
		  struct fingerprint *fingerprint, weights_progress_fn progress, void *userdata,
		  struct err *err);
