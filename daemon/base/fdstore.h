/*
 * Descriptors parked with the service manager, so that a restarted broker
 * finds them again. Without a manager every call succeeds and does nothing.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Reads LISTEN_FDS once and clears it; all descriptors are made close-on-exec. */
void fdstore_init(void);

/* Takes the received descriptor named @name (the listening socket is "api"); -1: there is none. */
int fdstore_take(const char *name);
/* The next one whose name begins with @prefix; its name goes to @name. -1: there is no other. */
int fdstore_take_next(const char *prefix, char *name, size_t size);
/*
 * Removes what nobody took from the store and closes it. Call when adoption is
 * over. @on_discard, or NULL, hears the name of each.
 */
void fdstore_discard_rest(void (*on_discard)(const char *name));

/*
 * Between the two, what was not yet taken is kept: what is taken is duplicated
 * before, and fdstore_give_back() has it all again to be taken, as the one who
 * took it failed. 0 or a negative errno: then nothing was kept.
 */
int fdstore_keep(void);
void fdstore_give_back(void);

/* Tests: as if these had been received; both arrays, and what they hold, are taken over. */
void fdstore_receive(char **names, int *fds, int n);

/* Parks a duplicate of @fd under @name (FDPOLL=0 unless @watch). Returns 0 or a negative errno. */
int fdstore_put(const char *name, int fd, int watch);
void fdstore_remove(const char *name);

/* sd_notify() with a format; ignores a missing manager. */
void fdstore_notify(const char *format, ...) __attribute__((format(printf, 1, 2)));

/*
 * Blocks until the manager has read all that was sent, at most @timeout_us:
 * what a process sent that is gone by then may be dropped. 0 or a negative errno.
 */
int fdstore_barrier(uint64_t timeout_us);
