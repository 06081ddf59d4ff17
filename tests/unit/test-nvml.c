/* Facts of a GPU from a library that makes them up; and there being none. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/cuda/nvml.h"

#define BUS_ID "0000:65:00.0"

static void no_library_is_told_by_its_name(void **state)
{
	struct nvml_facts facts;
	char why[160] = "";

	(void)state;
	nvml_library = "/nonexistent/libnvidia-ml.so.1";
	assert_int_equal(nvml_read(BUS_ID, &facts, why, sizeof(why)), -ENOENT);
	assert_non_null(strstr(why, "/nonexistent/libnvidia-ml.so.1"));
	nvml_library = "libm.so.6";
	assert_int_equal(nvml_read(BUS_ID, &facts, why, sizeof(why)), -ENOENT);
	assert_string_equal(why, "'libm.so.6' has no nvmlInit_v2");
}

/* A library that came late is found; it is asked each time. */
static void facts_are_read_when_asked(void **state)
{
	struct nvml_facts facts;
	char why[160] = "";

	(void)state;
	nvml_library = "tests/cuemu/.libs/fake-nvml.so";
	assert_int_equal(nvml_read(BUS_ID, &facts, why, sizeof(why)), 0);
	assert_int_equal(facts.known, NVML_KNOWS_MEMORY | NVML_KNOWS_POWER | NVML_KNOWS_LIMIT |
					      NVML_KNOWS_TEMPERATURE);
	assert_true(facts.total_bytes == 80ull << 30 && facts.free_bytes == (20ull << 30) + 1);
	assert_int_equal(facts.power_mw, 123456);
	assert_int_equal(facts.power_limit_mw, 700000);
	assert_int_equal(facts.temperature_c, 54);
	assert_int_equal(nvml_read(BUS_ID, &facts, why, sizeof(why)), 0);
	assert_true(facts.free_bytes == (20ull << 30) + 2);
}

static void what_a_card_does_not_tell_is_not_known(void **state)
{
	struct nvml_facts facts;
	char why[160] = "";

	(void)state;
	setenv("FAKE_NVML", "blind", 1);
	assert_int_equal(nvml_read(BUS_ID, &facts, why, sizeof(why)), 0);
	assert_int_equal(facts.known,
			 NVML_KNOWS_MEMORY | NVML_KNOWS_LIMIT | NVML_KNOWS_TEMPERATURE);
	unsetenv("FAKE_NVML");
	assert_int_equal(nvml_read("0000:66:00.0", &facts, why, sizeof(why)), -EIO);
	assert_string_equal(why, "nvmlDeviceGetHandleByPciBusId_v2: Not Found");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(no_library_is_told_by_its_name),
		cmocka_unit_test(facts_are_read_when_asked),
		cmocka_unit_test(what_a_card_does_not_tell_is_not_known),
	};
	const char *build = getenv("builddir");

	if (build && chdir(build) < 0)
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
