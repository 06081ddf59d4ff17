/* The first words to an executor: how its socket is reached, and its configuration. */
#pragma once

#include "client/wire/control.h"
#include "client/wire/err.h"

#define CONTACT_FDS 4 /* arena, rings, bell down, bell up */

/* Connects to the socket of its unit. A descriptor, or a negative errno with a sentence. */
int contact_unit(const char *path, struct err *err);
/* Sends @configure and the descriptors. 0 or a negative errno. */
int contact_configure(int control_fd, const struct control_configure *configure,
		      const int fds[CONTACT_FDS]);
