/* That a process still runs, as an event when it does not. */
#pragma once

#include <stdint.h>
#include <sys/types.h>
#include <systemd/sd-event.h>

struct lease;

/* 0; -ESRCH: no such process; or another negative errno. @on_end comes once, from the loop. */
int lease_new(sd_event *loop, pid_t pid, void (*on_end)(struct lease *l, void *userdata),
	      void *userdata, struct lease **ret);
struct lease *lease_free(struct lease *l);
