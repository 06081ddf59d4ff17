/*
 * The kernel's signs that the machine lacks memory: what the service manager
 * names in $MEMORY_PRESSURE_WATCH (and what to write there, in base64, in
 * $MEMORY_PRESSURE_WRITE), else a trigger on /proc/pressure/memory. No polling,
 * and no wake-up while there is memory.
 */
#pragma once

#include <systemd/sd-event.h>

#include "client/wire/err.h"

/* A fifth of two seconds that some task waited for memory; windows are multiples of 2 s for all but root. */
#define PRESSURE_TRIGGER "some 400000 2000000"

struct pressure;

/*
 * Returns 0; 0 with *@ret NULL if the manager says that none is wanted
 * (/dev/null); or a negative errno with a sentence: no such file, PSI off,
 * or not allowed.
 */
int pressure_new(sd_event *loop, void (*on_pressure)(void *userdata), void *userdata,
		 struct pressure **ret, struct err *err);
struct pressure *pressure_free(struct pressure *p);
const char *pressure_path(const struct pressure *p);
