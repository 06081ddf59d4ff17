/* The worker without a thread: what only it can do. */
#pragma once

#include <stdbool.h>

/* From now on nothing is run at the end any more, as if the process had been killed; or it is again. */
void worker_inline_kill(bool yes);
