/* Series, and what the bench makes of ratios that cannot be. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <math.h>
#include <string.h>
#include <cmocka.h>

#include "tests/bench/bench.h"

static void the_median_is_between_the_middle_values(void **state)
{
	struct bench_series s = { .n = 0 };

	(void)state;
	assert_true(isnan(bench_median(&s)));
	bench_add(&s, 7);
	assert_true(bench_median(&s) == 7 && bench_spread(&s) == 0);
	bench_add(&s, 1);
	assert_true(bench_median(&s) == 4);
	bench_add(&s, 2);
	assert_true(bench_median(&s) == 2);
	assert_true(bench_quantile(&s, 0) == 1 && bench_quantile(&s, 1) == 7);
	assert_true(bench_spread(&s) == (4.5 - 1.5) / 2);
}

static void a_series_that_is_full_drops_values(void **state)
{
	struct bench_series s = { .n = 0 };

	(void)state;
	for (int i = 0; i <= BENCH_ROUNDS_MAX; i++)
		bench_add(&s, i);
	assert_int_equal(s.n, BENCH_ROUNDS_MAX);
	assert_true(bench_quantile(&s, 1) == BENCH_ROUNDS_MAX - 1);
}

static void print(struct bench *b, enum bench_limit kind, double ratio)
{
	bench_print(b, &(struct bench_row){ .name = "row",
					    .unit = "GB/s",
					    .kind = kind,
					    .limit_name = "limit",
					    .value = ratio,
					    .limit = 1,
					    .ratio = ratio });
}

static void what_is_beyond_its_limit_is_an_error(void **state)
{
	struct bench b = { .json = true };

	(void)state;
	print(&b, LIMIT_CEILING, 1.02);
	print(&b, LIMIT_CEILING, 0.001);
	print(&b, LIMIT_FLOOR, 0.99);
	print(&b, LIMIT_FLOOR, 1000);
	print(&b, LIMIT_WANTED, 2);
	print(&b, LIMIT_NONE, 2);
	assert_int_equal(b.n_errors, 0);
	print(&b, LIMIT_CEILING, 1.03);
	assert_int_equal(b.n_errors, 1);
	print(&b, LIMIT_FLOOR, 0.97);
	assert_int_equal(b.n_errors, 2);
	assert_int_equal(b.n_rows, 8);
}

static void a_bar_is_held_or_the_row_is_short_of_it(void **state)
{
	(void)state;
	assert_false(bench_is_short(&(struct bench_row){ .ratio = 5 }));
	assert_false(bench_is_short(&(struct bench_row){ .ratio = 1, .at_most = 1 }));
	assert_true(bench_is_short(&(struct bench_row){ .ratio = 1.01, .at_most = 1 }));
	assert_false(bench_is_short(&(struct bench_row){ .ratio = 0.7, .at_least = 0.7 }));
	assert_true(bench_is_short(&(struct bench_row){ .ratio = 0.69, .at_least = 0.7 }));
	assert_true(bench_is_short(&(struct bench_row){ .ratio = NAN, .at_most = 1 }));
}

/* Twice its limit, then half of it. */
static int once(void *userdata, double *ret_value, double *ret_limit)
{
	int *n = userdata;

	++*n;
	*ret_limit = *n;
	*ret_value = *n * (*n % 2 ? 2 : 0.5);
	return *n == 9 ? -5 : 0;
}

static void rounds_take_the_median_of_their_own_ratios(void **state)
{
	const struct bench b = { .rounds = 1 };
	struct bench_row row = { .name = "row" };
	int n = 0;

	(void)state;
	assert_int_equal(bench_rounds(&b, 3, once, &n, &row), 0);
	assert_int_equal(n, 3);
	assert_true(row.value == 2 && row.limit == 2 && row.ratio == 2);
	assert_int_equal(bench_rounds(&b, 100, once, &n, &row), -5);
	assert_int_equal(n, 9);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_median_is_between_the_middle_values),
		cmocka_unit_test(a_series_that_is_full_drops_values),
		cmocka_unit_test(what_is_beyond_its_limit_is_an_error),
		cmocka_unit_test(a_bar_is_held_or_the_row_is_short_of_it),
		cmocka_unit_test(rounds_take_the_median_of_their_own_ratios),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
