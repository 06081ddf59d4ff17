/* How often a steamd and its executor wake up while nobody asks for anything. */
#pragma once

#include <stdint.h>

#include "client/wire/err.h"

#define WAKEUPS_SETTLE_MS 1500 /* after the last answer; the watchdog asks for a sign of life until then */

struct wakeups {
	uint64_t broker, executor; /* of all threads */
};

/*
 * Starts @program with its own executor and @model, under a watchdog, asks for
 * one token, sends it to sleep on @rung ("quiet", "parked", "gone": then there
 * is no executor to count), stays connected, and after WAKEUPS_SETTLE_MS counts
 * for @seconds how often a thread was put on a processor. Returns 0 or a
 * negative errno with a sentence.
 */
int wakeups_count(const char *program, const char *model, const char *rung, uint32_t seconds,
		  struct wakeups *ret, struct err *err);
