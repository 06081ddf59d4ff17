/*
 * An executor without a model: speaks the control protocol and the step ring
 * as the real one does, and takes a fixed time for each step, asleep. When a
 * step was done can be read from the ids that it sampled.
 */
#pragma once

#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

#include "client/wire/err.h"
#include "client/wire/step.h"

#define STEPPER_IDS 1024 /* steps that are told apart, and ids used for it; each model has more */

/* Of the newest step whose sampled tokens are the id that this is found under. */
struct stepper_step {
	_Atomic uint64_t done_ns; /* stepper_now_ns(), just before its result is published */
	uint64_t cpu_ns;	  /* that the broker had used until then */
	uint32_t n_rows;
};

struct stepper {
	int control_fd;
	struct ring ring;
	clockid_t broker_cpu;
	uint64_t last_id;		  /* of the newest step done */
	uint32_t length[STEP_ROWS_MAX]; /* of the slots */
	struct stepper_step steps[STEPPER_IDS];
};

/*
 * Accepts the broker @broker_pid at @listen_fd, takes its configuration and
 * says that the model is there. Waits for it, for half a minute at most.
 */
int stepper_open(int listen_fd, pid_t broker_pid, struct stepper *ret, struct err *err);
void stepper_close(struct stepper *s);

/*
 * Does steps until @n_tokens were sampled in all. A step takes @step_ns from
 * the end of the one before, or from when it was pushed; @halfway is called in
 * the middle of each. -ETIMEDOUT if none comes for half a minute, or what
 * @halfway returned if that is negative.
 */
typedef int (*stepper_halfway_fn)(void *userdata);
int stepper_run(struct stepper *s, uint32_t n_tokens, uint64_t step_ns, stepper_halfway_fn halfway,
		void *userdata, struct err *err);

/* Monotonic, as clients read it too. */
uint64_t stepper_now_ns(void);
