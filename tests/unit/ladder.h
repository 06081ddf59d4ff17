/*
 * The ladder over the real executor object and scheduler, with a toy executor
 * that obeys, and a clock of the test's own: no test waits.
 */
#pragma once

#include "daemon/power/power.h"
#include "tests/unit/world.h"

#define WEIGHTS 900ull	/* bytes that parking frees */
#define RESIDENT 1000ull /* bytes of the executor */

struct ladder {
	struct world world;
	struct power *power;
	uint64_t pages_bytes; /* that can be given up */
	uint32_t n_yields, n_seals, n_safe, n_done, n_progress;
	int done_r;
	enum executor_state sealed_in;
	bool disk_hangs;
	uint64_t us_per_byte;
};

/* On POWER_QUIET, with these settings in seconds; asserts. */
void ladder_open(struct ladder *l, uint32_t idle_park, uint32_t idle_exit);
void ladder_close(struct ladder *l);

/* Until nothing moves: @n_steps of the executor at most, orders as they come; settle: all of them. */
void ladder_run(struct ladder *l, uint64_t n_steps);
void ladder_settle(struct ladder *l);
/* The clock goes on; the timer is what is due meanwhile, each at its time. */
void ladder_pass(struct ladder *l, uint64_t seconds);
/* Asserts that it is there, and stays. */
void ladder_is_on(struct ladder *l, enum power_rung rung);

/* For wishes of the ladder opened last: counted in n_done and n_progress; for power_suspend(): in n_safe. */
void ladder_on_done(struct power_wish *w, int r, const struct err *err);
void ladder_on_progress(struct power_wish *w);
void ladder_on_safe(void *userdata);
struct power_wish ladder_sleep_to(enum power_rung rung);
