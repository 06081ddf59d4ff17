/* Few enough sets to look at each. */
#include "daemon/power/prices.h"

#include <math.h>

#include "client/wire/ownership.h"

static uint64_t more(uint64_t to, uint64_t from)
{
	return to > from ? to - from : 0;
}

static uint64_t freed_by(const struct prices_offer *o, enum power_rung rung)
{
	return more(o->rungs[rung].freed_bytes, o->rungs[o->at].freed_bytes);
}

static double cost_of(const struct prices_offer *o, const struct prices_set *set)
{
	return (double)more(o->rungs[set->rung].return_us, o->rungs[o->at].return_us) +
	       (double)set->pages_bytes * o->us_per_byte;
}

struct prices_set prices_choose(const struct prices_offer *o, uint64_t bytes)
{
	struct prices_set best = { POWER_GONE, o->pages_bytes };
	double best_us = INFINITY;

	for (enum power_rung rung = o->at; rung <= POWER_GONE; rung++) {
		const struct prices_set set = { rung, more(bytes, freed_by(o, rung)) };

		if (set.pages_bytes > o->pages_bytes || cost_of(o, &set) >= best_us)
			continue;
		best = set;
		best_us = cost_of(o, &set);
	}
	return best;
}

struct prices_set prices_step(const struct prices_offer *o, uint64_t bytes)
{
	const struct prices_set none = { o->at, 0 };
	const struct prices_set pages = { o->at, MIN(bytes, o->pages_bytes) };
	const struct prices_set down = { MIN(o->at + 1u, POWER_GONE), 0 };
	const double freed = (double)freed_by(o, down.rung);

	if (down.rung == o->at || freed == 0)
		return pages.pages_bytes > 0 ? pages : down.rung == o->at ? none : down;
	return pages.pages_bytes > 0 && o->us_per_byte < cost_of(o, &down) / freed ? pages : down;
}
