/*
 * A steamd of the bench's own: the real program in a directory that goes with
 * it, started as a service manager starts it (NOTIFY_SOCKET, WATCHDOG_USEC),
 * so that the bench can stand in for the unit of its executor. What it gives the
 * manager to keep (FDSTORE=1) is kept, for the one that follows it.
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

#include "client/wire/err.h"

struct broker;

/* The strings live as long as the broker. */
struct broker_options {
	const char *program;	/* of steamd */
	const char *model;	/* directory of the checkpoint */
	bool computes_here;	/* the executor is whoever accepts broker_executor_fd() */
	unsigned watchdog_ms;	/* 0: none */
	const char *set;	/* a setting, KEY=VALUE; NULL: none */
};

/*
 * Returns when steamd has said READY=1, which does not wait for the model.
 * -EIO if it ended instead, -ETIMEDOUT after half a minute. Its log goes to stderr
 * if the environment has BENCH_LOG, else nowhere.
 */
int broker_start(const struct broker_options *options, struct broker **ret, struct err *err);
struct broker *broker_stop(struct broker *b); /* waits for its end */

/* Kills it (SIGKILL) and starts another with what was kept; errors and time as of broker_start(). */
int broker_restart(struct broker *b, struct err *err);

pid_t broker_pid(const struct broker *b);
const char *broker_socket(const struct broker *b);  /* for clients */
int broker_executor_fd(const struct broker *b);	    /* listens, SOCK_SEQPACKET; -1: it forks its own */

static inline void broker_stopp(struct broker **b)
{
	*b = broker_stop(*b);
}
