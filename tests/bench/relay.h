/*
 * The least that a program between steamd and a TCP client can take: a process
 * that blocks, copies what one socket has into the other and blocks again. It
 * is a fork, and ends with whoever started it.
 */
#pragma once

#include <stdint.h>
#include <time.h>

#include "client/wire/err.h"

struct relay;

/* Starts it before steamd's socket at @path and connects to it over TCP. 0 or a negative errno. */
int relay_open(const char *path, struct relay **ret, struct err *err);
struct relay *relay_close(struct relay *r);

/* Has steamd send @n_tokens tokens through it, one answer. -EPROTO: steamd said something else. */
int relay_stream(struct relay *r, uint32_t n_tokens, struct err *err);

/* Of its processor time. */
clockid_t relay_clock(const struct relay *r);

static inline void relay_closep(struct relay **r)
{
	*r = relay_close(*r);
}
