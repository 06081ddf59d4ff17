/*
 * What the parts of the speed bench share: series of measurements, and the
 * rows that are printed of them.
 */
#pragma once

#include <stdint.h>

#define BENCH_ROUNDS_MAX 101

/* The same thing measured again and again. */
struct bench_series {
	double values[BENCH_ROUNDS_MAX];
	uint32_t n; /* beyond BENCH_ROUNDS_MAX values are dropped */
};

void bench_add(struct bench_series *s, double value);
/* The middle value, or NAN if there is none. */
double bench_median(const struct bench_series *s);
/* The width of the middle half of the values, over the median; 0 for a single value. */
double bench_spread(const struct bench_series *s);

/* Monotonic. */
double bench_now_s(void);

/*
 * One line of the table. @ratio is the median of the rounds' own ratios where
 * figure and limit are taken side by side in each round, so that it means
 * more than value / limit on a machine that does other things as well.
 */
struct bench_row {
	const char *name, *unit;
	double value;
	const char *limit_name; /* NULL: none, and limit and ratio are NAN */
	double limit, ratio;
	double spread;	   /* of the value over the rounds, see bench_spread() */
	const char *floor; /* what the ratio should be, for people; or NULL */
};
