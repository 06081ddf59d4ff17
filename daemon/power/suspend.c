/* One match, one method call and one property of org.freedesktop.login1. */
#include "daemon/power/suspend.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-bus.h>

#include "client/wire/ownership.h"

#define LOGIND_NAME "org.freedesktop.login1"
#define LOGIND_PATH "/org/freedesktop/login1"
#define LOGIND_MANAGER "org.freedesktop.login1.Manager"
#define DELAY_DEFAULT_US 5000000ull

struct suspend {
	sd_bus *bus;
	sd_bus_slot *match, *call, *ask_delay;
	uint64_t delay_us;
	int inhibitor_fd;
	char text[128];
	void (*on_sleep)(bool asleep, void *userdata);
	void *userdata;
};

static int on_inhibited(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	struct suspend *s = userdata;
	int fd, r;

	(void)error;
	s->call = sd_bus_slot_unref(s->call);
	if (sd_bus_message_is_method_error(m, NULL)) {
		snprintf(s->text, sizeof(s->text), "off: logind: %s",
			 sd_bus_message_get_error(m)->message ? sd_bus_message_get_error(m)->message
							      : sd_bus_message_get_error(m)->name);
		return 0;
	}
	r = sd_bus_message_read(m, "h", &fd);
	if (r >= 0)
		fd = fcntl(fd, F_DUPFD_CLOEXEC, 3); /* the message's own goes with it */
	if (r < 0 || fd < 0) {
		snprintf(s->text, sizeof(s->text), "off: logind gave no inhibitor");
		return 0;
	}
	suspend_release(s);
	s->inhibitor_fd = fd;
	snprintf(s->text, sizeof(s->text), "logind waits for us");
	return 0;
}

/* InhibitDelayMaxSec= of the machine; without an answer the default is believed. */
static int on_delay(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	struct suspend *s = userdata;
	uint64_t us;

	(void)error;
	s->ask_delay = sd_bus_slot_unref(s->ask_delay);
	if (!sd_bus_message_is_method_error(m, NULL) && sd_bus_message_read(m, "v", "t", &us) >= 0)
		s->delay_us = us;
	return 0;
}

static int take(struct suspend *s)
{
	int r;

	s->ask_delay = sd_bus_slot_unref(s->ask_delay);
	r = sd_bus_call_method_async(s->bus, &s->ask_delay, LOGIND_NAME, LOGIND_PATH,
				     "org.freedesktop.DBus.Properties", "Get", on_delay, s, "ss",
				     LOGIND_MANAGER, "InhibitDelayMaxUSec");
	if (r < 0)
		return r;
	s->call = sd_bus_slot_unref(s->call);
	return sd_bus_call_method_async(s->bus, &s->call, LOGIND_NAME, LOGIND_PATH, LOGIND_MANAGER,
					"Inhibit", on_inhibited, s, "ssss", "sleep", "steamd",
					"conversations are made safe first", "delay");
}

static int on_prepare(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	struct suspend *s = userdata;
	int asleep;

	(void)error;
	if (sd_bus_message_read(m, "b", &asleep) < 0)
		return 0;
	if (!asleep)
		(void)take(s);
	s->on_sleep(asleep, s->userdata);
	return 0;
}

int suspend_new(sd_event *loop, void (*on_sleep)(bool asleep, void *userdata), void *userdata,
		struct suspend **ret, struct err *err)
{
	struct suspend *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return err_set(err, -ENOMEM, "out of memory");
	s->inhibitor_fd = -1;
	s->delay_us = DELAY_DEFAULT_US;
	s->on_sleep = on_sleep;
	s->userdata = userdata;
	snprintf(s->text, sizeof(s->text), "asking logind");
	r = sd_bus_open_system_with_description(&s->bus, "steamd");
	if (r >= 0)
		r = sd_bus_attach_event(s->bus, loop, SD_EVENT_PRIORITY_NORMAL);
	if (r >= 0)
		r = sd_bus_match_signal_async(s->bus, &s->match, LOGIND_NAME, LOGIND_PATH,
					      LOGIND_MANAGER, "PrepareForSleep", on_prepare, NULL,
					      s);
	if (r >= 0)
		r = take(s);
	if (r < 0) {
		suspend_free(s);
		return err_set(err, r, "no system bus: %s", strerror(-r));
	}
	*ret = s;
	return 0;
}

struct suspend *suspend_free(struct suspend *s)
{
	if (!s)
		return NULL;
	suspend_release(s);
	sd_bus_slot_unref(s->ask_delay);
	sd_bus_slot_unref(s->call);
	sd_bus_slot_unref(s->match);
	if (s->bus)
		sd_bus_detach_event(s->bus);
	sd_bus_close_unref(s->bus);
	free(s);
	return NULL;
}

uint64_t suspend_delay_us(const struct suspend *s)
{
	return s->delay_us;
}

void suspend_release(struct suspend *s)
{
	closep(&s->inhibitor_fd);
	s->inhibitor_fd = -1;
}

const char *suspend_text(const struct suspend *s)
{
	return sd_bus_is_open(s->bus) > 0 ? s->text : "off: the system bus is gone";
}
