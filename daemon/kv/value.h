/*
 * What KV is worth that nobody uses now, in every tier: what it would cost to
 * compute it again times how likely it is asked for. The tokens count as they
 * are, each time that it was found as much again, and every half-life since it
 * was last used halves it.
 *
 * It is kept as the time at which one token that was never found would be worth as much,
 * in microseconds: that changes only when it is used, so that what was
 * put in order stays in order.
 */
#pragma once

#include <math.h>
#include <stdint.h>

#define VALUE_NONE (-INFINITY)

static inline double value_of(uint32_t n_tokens, uint32_t hits, uint64_t used_us,
			      uint64_t half_life_us)
{
	return (double)used_us + (double)half_life_us * log2(n_tokens * (1.0 + hits));
}

/* Of both together. */
static inline double value_sum(double a, double b, uint64_t half_life_us)
{
	const double more = fmax(a, b), less = fmin(a, b);

	if (less == VALUE_NONE)
		return more;
	return more + (double)half_life_us * log2(1.0 + exp2((less - more) / (double)half_life_us));
}

/* Of one of @parts equal parts. */
static inline double value_part(double value, double parts, uint64_t half_life_us)
{
	return value - (double)half_life_us * log2(parts);
}
