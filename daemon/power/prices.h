/*
 * What to give up, so that it costs least to have it back.
 *
 * There are two kinds of measures: KV pages that nobody holds, as many as one
 * likes, and the rungs below the one that the daemon is on, one of them. A
 * measure's price is the time that it takes to undo, all of it:
 *
 *	a rung	return_us: what the way back from it took when it was last gone,
 *		less the same of the rung that the daemon is on
 *	pages	bytes * us_per_byte: to compute them again, or to read those that are
 *		on disk, as if all of them were wanted again
 *
 * and a set's is the sum of its members'.
 */
#pragma once

#include "daemon/power/power.h"

struct prices_offer {
	enum power_rung at;
	struct power_price rungs[POWER_N_RUNGS]; /* in all: from quiet to there */
	uint64_t pages_bytes;			 /* that could be given up */
	double us_per_byte;			 /* of them */
};

struct prices_set {
	enum power_rung rung;
	uint64_t pages_bytes;
};

/* The cheapest set that frees @bytes; where all there is is less, all there is. */
struct prices_set prices_choose(const struct prices_offer *o, uint64_t bytes);
/* One measure only: the next rung or up to @bytes of pages, whichever is cheaper for each byte. Nothing left: nothing. */
struct prices_set prices_step(const struct prices_offer *o, uint64_t bytes);
