/* Time and logs: a fake clock stands still, levels and limits hold. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"

static void a_fake_clock_moves_only_when_told(void **state)
{
	(void)state;
	clock_fake(5, 7);
	assert_int_equal(clock_us(), 5);
	clock_advance(10 * US_PER_S);
	assert_int_equal(clock_us(), 10000005);
	assert_int_equal(clock_wall_us(), 10000007);
	clock_real();
	assert_true(clock_us() != 10000005);
	assert_true(clock_wall_us() > 1600000000 * US_PER_S);
}

static void a_peer_cannot_flood_the_log(void **state)
{
	struct log_limit limit = { 0 };
	int n = 0;

	(void)state;
	clock_fake(100 * US_PER_S, 0);
	log_set_level(LOG_ERR);
	for (int i = 0; i < 1000; i++)
		n += log_allowed(&limit, 5);
	assert_int_equal(n, 5);
	clock_advance(US_PER_S);
	assert_true(log_allowed(&limit, 5));
	clock_real();
}

static void levels_have_the_names_of_the_setting(void **state)
{
	(void)state;
	assert_int_equal(log_level_of("error"), LOG_ERR);
	assert_int_equal(log_level_of("warning"), LOG_WARNING);
	assert_int_equal(log_level_of("info"), LOG_INFO);
	assert_int_equal(log_level_of("debug"), LOG_DEBUG);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_fake_clock_moves_only_when_told),
		cmocka_unit_test(a_peer_cannot_flood_the_log),
		cmocka_unit_test(levels_have_the_names_of_the_setting),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
