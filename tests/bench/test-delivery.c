/* What the bench measures a broker with: whole rounds through a real steamd, and wake-ups at rest. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <math.h>
#include <string.h>

#include "tests/bench/delivery.h"
#include "tests/bench/wakeups.h"

static char program[512], model[512];

static void find_files(void)
{
	const char *src = getenv("srcdir"), *build = getenv("builddir");

	snprintf(program, sizeof(program), "%s/steamd", build ? build : ".");
	snprintf(model, sizeof(model), "%s/tests/golden/air", src ? src : ".");
}

static void assert_us(double us)
{
	assert_true(isfinite(us));
	assert_true(us > 0.1);
	assert_true(us < 10e6);
}

static void measure(uint32_t n_clients, bool one_connection)
{
	const struct delivery_options options = {
		.program = program,
		.model = model,
		.n_clients = n_clients,
		.one_connection = one_connection,
	};
	struct delivery_round round;
	struct err err = { 0 };
	struct delivery *d;

	if (delivery_open(&options, &d, &err) < 0)
		fail_msg("%s", err.text);
	for (int i = 0; i < 2; i++) {
		if (delivery_round(d, &round, &err) < 0)
			fail_msg("%s", err.text);
		assert_us(round.p50_us);
		assert_us(round.echo_p50_us);
		assert_us(round.cpu_us);
		assert_us(round.echo_cpu_us);
		assert_true(round.p99_us >= round.p50_us);
		assert_true(round.echo_p99_us >= round.echo_p50_us);
	}
	delivery_close(d);
}

static void a_token_and_an_echo_arrive(void **state)
{
	(void)state;
	measure(1, false);
}

static void tokens_of_many_clients_arrive(void **state)
{
	(void)state;
	measure(5, false);
}

static void tokens_of_many_requests_of_one_client_arrive(void **state)
{
	(void)state;
	measure(5, true);
}

static void a_program_that_is_not_steamd_is_named(void **state)
{
	const struct delivery_options options = {
		.program = "/bin/false",
		.model = model,
		.n_clients = 1,
	};
	struct err err = { 0 };
	struct delivery *d;

	(void)state;
	assert_int_equal(delivery_open(&options, &d, &err), -EIO);
	assert_non_null(strstr(err.text, "/bin/false"));
}

static void nobody_wakes_up_while_nobody_asks(void **state)
{
	static const char *const rungs[] = { "quiet", "parked", "gone" };
	struct err err = { 0 };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(rungs); i++) {
		struct wakeups w = { 1, 1 };

		if (wakeups_count(program, model, rungs[i], 2, &w, &err) < 0)
			fail_msg("%s: %s", rungs[i], err.text);
		assert_int_equal(w.broker, 0);
		assert_int_equal(w.executor, 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_token_and_an_echo_arrive),
		cmocka_unit_test(tokens_of_many_clients_arrive),
		cmocka_unit_test(tokens_of_many_requests_of_one_client_arrive),
		cmocka_unit_test(a_program_that_is_not_steamd_is_named),
		cmocka_unit_test(nobody_wakes_up_while_nobody_asks),
	};

	find_files();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
