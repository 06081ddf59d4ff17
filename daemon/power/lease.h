/*
 * What a process was promised: bytes that stay free until it ends. Known by a
 * pidfd, which never means another process, and parked with the service
 * manager once it is kept, so that it outlives the broker.
 */
#pragma once

#include <stdint.h>
#include <sys/types.h>
#include <systemd/sd-event.h>

struct lease;

/* @on_end comes once, from the loop: the process ended. 0; -ESRCH: there is none; or another negative errno. */
int lease_new(sd_event *loop, pid_t pid, void (*on_end)(void *userdata), void *userdata,
	      struct lease **ret);
/* Parks it under a name that tells all of it. */
void lease_keep(struct lease *l, uint32_t rung, uint64_t bytes, uint64_t pages_bytes);
/* The next one that an earlier broker kept. -ENOENT: there is no other. */
int lease_take(sd_event *loop, void (*on_end)(void *userdata), void *userdata, struct lease **ret,
	       pid_t *ret_pid, uint32_t *ret_rung, uint64_t *ret_bytes, uint64_t *ret_pages_bytes);

/* Lets go of it; it stays parked. */
struct lease *lease_free(struct lease *l);
/* It is over: nobody will find it again. */
void lease_forget(struct lease *l);
