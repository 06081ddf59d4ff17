/*
 * How long a token takes from the executor to its client, and what it costs
 * the broker, beside the same path of bare sockets.
 *
 * The executor and the clients are threads of the bench, the broker is a real
 * steamd, the clients use libsteamd. A step samples one token for each client
 * and takes DELIVERY_STEP_NS, asleep. A token's way begins before its result
 * is published in the step ring and ends in its client's on_delta(): the
 * broker wakes up for it, and then the client. The echo has these two wake-ups
 * and nothing else: a message of DELIVERY_ECHO_BYTES through a Unix stream
 * socket to another process, which sends it on through one to each client as
 * soon as it has read it; its way begins before the first send and ends after
 * the client's read. Steps and echoes come in turns, with half a step in
 * between: a machine that has slept wakes up more slowly, whatever for.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "client/wire/err.h"

#define DELIVERY_STEP_NS 4000000u
#define DELIVERY_STEPS 100 /* in a round, after some to warm up */
#define DELIVERY_ECHO_BYTES 64
#define DELIVERY_CLIENTS_MAX 16

struct delivery;

struct delivery_options {
	const char *program; /* of steamd */
	const char *model;   /* a checkpoint; only its vocabulary is used */
	uint32_t n_clients;  /* requests, one a client; at most DELIVERY_CLIENTS_MAX */
	bool one_connection; /* of all requests, instead of one each */
};

/* One round. Times in microseconds. */
struct delivery_round {
	double p50_us, p99_us;		 /* of the tokens */
	double echo_p50_us, echo_p99_us; /* of the echoes */
	double cpu_us;			 /* that the broker used, for a token */
	double echo_cpu_us;		 /* that the process in the middle used, for a message sent on */
};

/* Starts steamd, the clients and the echo. Returns 0 or a negative errno with a sentence. */
int delivery_open(const struct delivery_options *options, struct delivery **ret, struct err *err);
struct delivery *delivery_close(struct delivery *d);

/* -ETIMEDOUT: no step came for half a minute; else what an answer failed with. Only closing is left then. */
int delivery_round(struct delivery *d, struct delivery_round *ret, struct err *err);

static inline void delivery_closep(struct delivery **d)
{
	*d = delivery_close(*d);
}
