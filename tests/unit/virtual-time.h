/*
 * The program's time, that of libsystemd's event loops included, is the fake one
 * of daemon/base/clock.h: it stands still but for clock_advance(), and timers
 * are remembered instead of armed.
 */
#pragma once

#include <stdint.h>

/* From now on; timers of event loops that are gone are forgotten. */
void virtual_time_begin(void);
void virtual_time_end(void);

/* When the first timer of the event loop is due, by clock_us(); 0: none is armed. */
uint64_t virtual_time_next(void);
