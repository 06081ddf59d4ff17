/* What asking through the command costs over asking through the library. */
#pragma once

#include "client/wire/err.h"
#include "tests/bench/bench.h"

#define OVERHEAD_PAIRS 50

/*
 * Asks the daemon at @socket for one token OVERHEAD_PAIRS times: with
 * `steamctl complete`, from its start to its end, and in turns with
 * steamd_generate() on an open connection. The differences of the pairs, in
 * milliseconds, go to *ret.
 *
 * steamctl	the program; sought in PATH if it has no slash. A libtool
 *		wrapper would be measured as well: give the program itself
 *
 * Returns 0, or a negative errno: the daemon's refusal, a program that
 * cannot be started, -EIO if it failed.
 */
int overhead_measure(const char *socket, const char *steamctl, struct bench_series *ret,
		     struct err *err);
