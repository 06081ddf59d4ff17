/* Loaded into a program before libc, for tests: its calendar is STEAMD_TEST_DAYS days ahead. */
#include <stddef.h>
#include <stdlib.h>
#include <time.h>

__attribute__((visibility("default"))) time_t time(time_t *ret)
{
	const char *days = getenv("STEAMD_TEST_DAYS");
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	t.tv_sec += days ? atol(days) * 86400 : 0;
	if (ret)
		*ret = t.tv_sec;
	return t.tv_sec;
}
