/* The read rate: plausible, and nothing but the memory that was given is read. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>
#include <sys/mman.h>

#include "daemon/exec/readrate.h"

#define ROOM ((size_t)4 << 20)
#define GUARD ((size_t)4096)

static int open_device(void **state)
{
	struct dev *dev;

	if (dev_open(ISA_PORTABLE, 2, &dev) < 0)
		return -1;
	*state = dev;
	return 0;
}

static int close_device(void **state)
{
	dev_close(*state);
	return 0;
}

static void nothing_is_read_at_no_rate(void **state)
{
	assert_int_equal(readrate_measure(*state, NULL, 0), 0);
	assert_int_equal(readrate_measure(*state, NULL, 255), 0); /* less than a line a pass */
}

static void only_the_memory_given_is_read(void **state)
{
	static const size_t sizes[] = { 256, 320, 1000, 4096, 1 << 20, (3 << 20) + 64, ROOM };
	char *memory = mmap(NULL, ROOM + 2 * GUARD, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_true(memory != MAP_FAILED);
	memset(memory + GUARD, 1, ROOM);
	assert_int_equal(mprotect(memory, GUARD, PROT_NONE), 0);
	assert_int_equal(mprotect(memory + GUARD + ROOM, GUARD, PROT_NONE), 0);
	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		/* lines at the very end, and at the very beginning */
		const size_t lines = sizes[i] / 64 * 64;

		assert_true(readrate_measure(*state, memory + GUARD + ROOM - lines, sizes[i]) > 0);
		assert_true(readrate_measure(*state, memory + GUARD, sizes[i]) > 0);
	}
	munmap(memory, ROOM + 2 * GUARD);
}

static void memory_beyond_the_caches_is_read_at_a_plausible_rate(void **state)
{
	const size_t bytes = (size_t)256 << 20;
	char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			    0);
	uint64_t rate;

	assert_true(memory != MAP_FAILED);
	memset(memory, 1, bytes);
	rate = readrate_measure(*state, memory, bytes);
	assert_true(rate > 100u << 20);
	assert_true(rate < 10ull << 40);
	munmap(memory, bytes);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nothing_is_read_at_no_rate),
		cmocka_unit_test(only_the_memory_given_is_read),
		cmocka_unit_test(memory_beyond_the_caches_is_read_at_a_plausible_rate),
	};

	return cmocka_run_group_tests(tests, open_device, close_device);
}
