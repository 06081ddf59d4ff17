/* The service manager's view of us. */
#include "daemon/server/health.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>

#include "daemon/base/clock.h"
#include "daemon/base/fdstore.h"

struct health {
	struct server *server;
	uint64_t watchdog_us; /* 0: the manager wants none */
	bool ready, armed;
	sd_event_source *ping;
	char status[256];
};

static void arm(struct health *h)
{
	fdstore_notify("WATCHDOG_USEC=%llu\nWATCHDOG=1", (unsigned long long)h->watchdog_us);
	h->armed = true;
}

/* Ticks at half the interval, and only until the work is done. */
static int on_ping(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct health *h = userdata;

	(void)usec;
	if (!server_is_busy(h->server)) {
		fdstore_notify("WATCHDOG_USEC=0");
		h->armed = false;
		return 0;
	}
	fdstore_notify("WATCHDOG=1");
	sd_event_source_set_time_relative(source, h->watchdog_us / 2);
	sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
	return 0;
}

int health_new(struct server *s, struct health **ret)
{
	struct health *h = calloc(1, sizeof(*h));
	int r;

	if (!h)
		return -ENOMEM;
	h->server = s;
	if (sd_watchdog_enabled(0, &h->watchdog_us) <= 0)
		h->watchdog_us = 0;
	if (h->watchdog_us > 0) {
		r = sd_event_add_time_relative(s->loop, &h->ping, CLOCK_MONOTONIC, 0, 0, on_ping,
					       h);
		if (r < 0) {
			free(h);
			return r;
		}
		sd_event_source_set_enabled(h->ping, SD_EVENT_OFF);
	}
	*ret = h;
	return 0;
}

struct health *health_free(struct health *h)
{
	if (!h)
		return NULL;
	sd_event_source_disable_unref(h->ping);
	free(h);
	return NULL;
}

void health_ready(struct health *h)
{
	h->ready = true;
	fdstore_notify("READY=1");
	if (h->watchdog_us > 0 && !h->armed)
		fdstore_notify("WATCHDOG_USEC=0");
}

void health_status(struct health *h, const char *format, ...)
{
	char text[sizeof(h->status)];
	va_list ap;

	va_start(ap, format);
	vsnprintf(text, sizeof(text), format, ap);
	va_end(ap);
	if (strcmp(text, h->status) == 0)
		return;
	memcpy(h->status, text, sizeof(text));
	fdstore_notify("STATUS=%s", text);
}

void health_busy(struct health *h)
{
	if (h->watchdog_us == 0 || h->armed)
		return;
	arm(h);
	sd_event_source_set_time_relative(h->ping, h->watchdog_us / 2);
	sd_event_source_set_enabled(h->ping, SD_EVENT_ONESHOT);
}
