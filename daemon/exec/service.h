/*
 * The executor's life as a process: configured over its control socket, loads
 * the checkpoint, runs steps, gives the weights back and loads them again when
 * it is told to, leaves when the broker is gone.
 */
#pragma once

#include "client/wire/err.h"

/* Exit codes, as in sysexits.h. */
enum service_exit {
	SERVICE_EXIT_USAGE = 64,
	SERVICE_EXIT_MODEL = 65,    /* the model's files were refused */
	SERVICE_EXIT_NO_GPU = 69,   /* there is none that can be used */
	SERVICE_EXIT_FAULT = 70,    /* the broker is gone, or a step failed */
	SERVICE_EXIT_SYSTEM = 71,   /* memory, threads */
	SERVICE_EXIT_PROTOCOL = 76, /* what came over the control socket makes no sense */
};

/*
 * Serves the broker at the other end of @control_fd (see client/wire/control.h)
 * until something fails. From the configuration on a thread reads the socket,
 * rings the steps' bell at an order, and leaves the process with
 * SERVICE_EXIT_FAULT at its end.
 *
 * Returns the exit code, with a sentence in @err; the broker has been told of
 * a refusal.
 */
int service_run(int control_fd, struct err *err);
