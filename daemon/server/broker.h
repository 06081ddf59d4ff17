/* The life of the steamd process: settings, loop, signals, server. */
#pragma once

#include "daemon/server/options.h"

enum broker_exit {
	BROKER_OK = 0,
	BROKER_USAGE = 64,
	BROKER_REFUSED = 65, /* the model's files */
	BROKER_NO_ROOM = 69, /* a plan that does not fit */
	BROKER_SYSTEM = 71,
	BROKER_CONFIG = 78,
};

/* Does what the options ask for; says on stderr what went wrong. Returns the exit code. */
int broker_run(const struct options *o);
