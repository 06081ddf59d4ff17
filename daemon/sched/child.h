/* A forked executor: started with its socket as descriptor 3, watched, reaped. */
#pragma once

#include <stdbool.h>
#include <systemd/sd-event.h>

#include "client/wire/err.h"

struct child;

/*
 * Starts @program with @control_fd (not taken) as descriptor CONTROL_FD and no
 * other of ours, in a process group of its own. @on_end is called on the loop
 * when it has ended, unless child_leave() came first. 0 or a negative errno.
 */
int child_start(sd_event *loop, const char *program, int control_fd, int (*on_end)(void *userdata),
		void *userdata, struct child **ret, struct err *err);
/* Forgets it; it is reaped when it ends. Returns NULL. */
struct child *child_leave(struct child *c);
/* Kills it if it still runs. Returns false if it was reaped already. */
bool child_kill(struct child *c);
pid_t child_pid(const struct child *c);
/* "the executor was killed by signal 9"; after its end. */
void child_describe(const struct child *c, char *ret, size_t size);
