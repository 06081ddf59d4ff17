/* The calls by which the event loop tells the time, before those of libc. */
#include "tests/unit/virtual-time.h"

#include <stdbool.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "client/wire/ownership.h"
#include "daemon/base/clock.h"

#define FDS_MAX 1024

static struct {
	bool on;
	uint64_t at_us[FDS_MAX]; /* that a timerfd is set to; 0: to none */
} fake;

void virtual_time_begin(void)
{
	memset(&fake, 0, sizeof(fake));
	fake.on = true;
}

void virtual_time_end(void)
{
	fake.on = false;
}

uint64_t virtual_time_next(void)
{
	uint64_t next = 0;

	for (int fd = 0; fd < FDS_MAX; fd++) {
		if (fake.at_us[fd] > 0 && (next == 0 || fake.at_us[fd] < next))
			next = fake.at_us[fd];
	}
	return next;
}

static bool is_fake(clockid_t id)
{
	return fake.on && (id == CLOCK_REALTIME || id == CLOCK_MONOTONIC || id == CLOCK_BOOTTIME ||
			   id == CLOCK_REALTIME_ALARM || id == CLOCK_BOOTTIME_ALARM);
}

int clock_gettime(clockid_t id, struct timespec *ret)
{
	uint64_t us;

	if (!is_fake(id))
		return (int)syscall(SYS_clock_gettime, id, ret);
	us = id == CLOCK_REALTIME || id == CLOCK_REALTIME_ALARM ? clock_wall_us() : clock_us();
	*ret = (struct timespec){ .tv_sec = (time_t)(us / US_PER_S),
				  .tv_nsec = (long)(us % US_PER_S * 1000) };
	return 0;
}

/* The event loop's are all absolute. */
int timerfd_settime(int fd, int flags, const struct itimerspec *to, struct itimerspec *old)
{
	if (!fake.on || fd < 0 || fd >= FDS_MAX || !(flags & TFD_TIMER_ABSTIME))
		return (int)syscall(SYS_timerfd_settime, fd, flags, to, old);
	fake.at_us[fd] = (uint64_t)to->it_value.tv_sec * US_PER_S +
			 (uint64_t)to->it_value.tv_nsec / 1000;
	return 0;
}
