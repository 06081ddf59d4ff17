/* Series of measurements, and the rows printed of them: for people, or a JSON object a line. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/bench/bench.h"

#define BUDGET_S 8 /* of one figure; a round under way is finished */

void bench_add(struct bench_series *s, double value)
{
	if (s->n < BENCH_ROUNDS_MAX)
		s->values[s->n++] = value;
}

static int compare(const void *a, const void *b)
{
	const double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

double bench_quantile(const struct bench_series *s, double part)
{
	struct bench_series sorted = *s;
	double at, under;

	if (s->n == 0)
		return NAN;
	qsort(sorted.values, sorted.n, sizeof(*sorted.values), compare);
	at = part * (sorted.n - 1);
	under = floor(at);
	if (under >= sorted.n - 1)
		return sorted.values[sorted.n - 1];
	return sorted.values[(int)under] +
	       (at - under) * (sorted.values[(int)under + 1] - sorted.values[(int)under]);
}

double bench_median(const struct bench_series *s)
{
	return bench_quantile(s, 0.5);
}

double bench_spread(const struct bench_series *s)
{
	return (bench_quantile(s, 0.75) - bench_quantile(s, 0.25)) / fabs(bench_median(s));
}

double bench_now_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

int bench_rounds(const struct bench *b, uint32_t times, bench_once_fn once, void *userdata,
		 struct bench_row *row)
{
	struct bench_series values = { .n = 0 }, limits = { .n = 0 }, ratios = { .n = 0 };
	const uint32_t wanted = MIN(b->rounds * times, BENCH_ROUNDS_MAX);
	const double until = bench_now_s() + BUDGET_S;

	do {
		double value, limit = NAN;
		const int r = once(userdata, &value, &limit);

		if (r < 0)
			return r;
		bench_add(&values, value);
		bench_add(&limits, limit);
		bench_add(&ratios, value / limit);
	} while (values.n < wanted && bench_now_s() < until);
	row->value = bench_median(&values);
	row->spread = bench_spread(&values);
	row->limit = bench_median(&limits);
	row->ratio = bench_median(&ratios);
	return 0;
}

static void print_number(const char *key, double value)
{
	if (isfinite(value))
		printf(",\"%s\":%.6g", key, value);
	else
		printf(",\"%s\":null", key);
}

static void print_beside(const char *key, double value)
{
	if (value > 0)
		print_number(key, value);
}

static bool has_bar(const struct bench_row *row)
{
	return row->at_most > 0 || row->at_least > 0;
}

bool bench_is_short(const struct bench_row *row)
{
	return (row->at_most > 0 && !(row->ratio <= row->at_most)) ||
	       (row->at_least > 0 && !(row->ratio >= row->at_least));
}

static void print_json(const struct bench_row *row)
{
	const bool limited = row->kind != LIMIT_NONE;

	printf("{\"name\":\"%s\"", row->name);
	print_number("value", row->value);
	printf(",\"unit\":\"%s\"", row->unit);
	print_number("limit", limited ? row->limit : NAN);
	if (limited)
		printf(",\"limit_name\":\"%s\"", row->limit_name);
	else
		printf(",\"limit_name\":null");
	print_number("ratio", limited ? row->ratio : NAN);
	print_number("spread", row->spread);
	print_beside("at_most", row->at_most);
	print_beside("at_least", row->at_least);
	if (has_bar(row))
		printf(",\"bar\":\"%s\"", bench_is_short(row) ? "short" : "ok");
	print_beside("gbs", row->gbs);
	print_beside("gflops", row->gflops);
	print_beside("tokens_per_s", row->tokens);
	printf("}\n");
}

static void print_table(const struct bench_row *row)
{
	printf("%-21s %9.2f %-8s %5.1f %%", row->name, row->value, row->unit, 100 * row->spread);
	if (row->kind != LIMIT_NONE)
		printf("  %5.3f of %.2f, %s", row->ratio, row->limit, row->limit_name);
	if (row->gbs > 0 && strcmp(row->unit, "GB/s") != 0)
		printf("; %.2f GB/s", row->gbs);
	if (row->gflops > 0 && strcmp(row->unit, "GFLOP/s") != 0)
		printf("; %.1f GFLOP/s", row->gflops);
	if (row->tokens > 0 && strcmp(row->unit, "tokens/s") != 0)
		printf("; %.1f tokens/s", row->tokens);
	if (has_bar(row))
		printf("; %s: at %s %.2f", bench_is_short(row) ? "short" : "ok",
		       row->at_most > 0 ? "most" : "least",
		       row->at_most > 0 ? row->at_most : row->at_least);
	printf("\n");
}

static bool is_impossible(const struct bench_row *row)
{
	return (row->kind == LIMIT_CEILING && row->ratio > BENCH_RATIO_MAX) ||
	       (row->kind == LIMIT_FLOOR && row->ratio < 1 / BENCH_RATIO_MAX);
}

void bench_print(struct bench *b, const struct bench_row *row)
{
	if (!b->json && b->n_rows == 0)
		printf("%-21s %9s %-8s %7s  %s\n", "name", "value", "unit", "spread",
		       "ratio to the limit; the same otherwise");
	b->n_rows++;
	if (b->json)
		print_json(row);
	else
		print_table(row);
	fflush(stdout);
	if (!is_impossible(row))
		return;
	b->n_errors++;
	fprintf(stderr,
		"bench: %s cannot be %.3f of its limit, %s: one of the two is measured wrongly\n",
		row->name, row->ratio, row->limit_name);
}

int bench_skip(const char *name, const char *format, ...)
{
	va_list ap;

	fprintf(stderr, "bench: %s is left out: ", name);
	va_start(ap, format);
	vfprintf(stderr, format, ap);
	va_end(ap);
	fprintf(stderr, "\n");
	return 0;
}
