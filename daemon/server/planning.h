/* steamd --plan: what a model would take of GPUs that need not be there. */
#pragma once

#include "daemon/base/settings.h"
#include "daemon/server/options.h"

/* Prints the plan; says on stderr what is wrong with it. Returns the exit code. */
int planning_run(const struct options *o, const struct settings *s);
