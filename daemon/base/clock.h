/*
 * All time passes through here, so that a test can run a day in seconds.
 */
#pragma once

#include <stdint.h>

#define US_PER_S 1000000ull
#define US_PER_MS 1000ull

uint64_t clock_us(void);      /* monotonic; does not stop in suspend (CLOCK_BOOTTIME) */
uint64_t clock_wall_us(void); /* since 1970 */

/* Tests: from now on both clocks stand still but for clock_advance(). */
void clock_fake(uint64_t us, uint64_t wall_us);
void clock_advance(uint64_t us);
void clock_real(void);
