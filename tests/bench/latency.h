/* How steady answers are while a long prompt comes in: pauses between tokens as clients see them. */
#pragma once

#include <stdint.h>

#include "client/wire/err.h"

struct latency_options {
	const char *socket;
	uint32_t n_streams;	    /* answers that are written meanwhile, at most LATENCY_STREAMS_MAX */
	uint32_t n_prompt_tokens;   /* of the prompt that comes in */
	double quiet_s, disturbed_s; /* how long to listen without it, and at most with it */
};
#define LATENCY_STREAMS_MAX 32

struct latency {
	double quiet_p50_ms, quiet_p99_ms;	   /* pauses in an answer, without the prompt */
	double disturbed_p50_ms, disturbed_p99_ms; /* and with it */
	uint32_t n_quiet, n_disturbed;		   /* how many pauses those are of */
	uint32_t n_read;    /* tokens of the prompt read meanwhile */
	double read_s;	    /* from its sending to its first token, or disturbed_s */
};

/*
 * Asks the daemon at options->socket for answers, again and again, listens, sends
 * a prompt, and listens until its first token or for disturbed_s. Ids are
 * random ones below 1000, which every model has.
 *
 * Returns 0, or a negative errno: the daemon's refusal; -ENODATA if fewer than
 * 20 pauses were heard.
 */
int latency_measure(const struct latency_options *options, struct latency *ret, struct err *err);
