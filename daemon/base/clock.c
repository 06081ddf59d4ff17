/* Two clocks, real or standing still. */
#include "daemon/base/clock.h"

#include <stdbool.h>
#include <time.h>

static struct {
	bool fake;
	uint64_t us, wall_us;
} now;

static uint64_t read_clock(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return (uint64_t)ts.tv_sec * US_PER_S + (uint64_t)ts.tv_nsec / 1000;
}

uint64_t clock_us(void)
{
	return now.fake ? now.us : read_clock(CLOCK_BOOTTIME);
}

uint64_t clock_wall_us(void)
{
	return now.fake ? now.wall_us : read_clock(CLOCK_REALTIME);
}

void clock_fake(uint64_t us, uint64_t wall_us)
{
	now.fake = true;
	now.us = us;
	now.wall_us = wall_us;
}

void clock_advance(uint64_t us)
{
	now.us += us;
	now.wall_us += us;
}

void clock_real(void)
{
	now.fake = false;
}
