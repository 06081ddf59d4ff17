/* What a wake-up costs here: a byte there and back between two processes over a Unix stream socket. */
#pragma once

#include "client/wire/err.h"

struct echo;

/* Starts the process that answers. 0 or a negative errno. */
int echo_open(struct echo **ret, struct err *err);
struct echo *echo_close(struct echo *e);

/* Seconds of one round trip: two wake-ups. Negative errno if the other process is gone. */
double echo_trip_s(struct echo *e);

static inline void echo_closep(struct echo **e)
{
	*e = echo_close(*e);
}
