/*
 * One thread for what would hold up the loop: reading a tokenizer, encoding a
 * long prompt, rendering a long conversation. Jobs run one after the other;
 * their ends come home to the loop as events, in the order in which they ran.
 *
 * Jobs of users take turns, user by user, so that one who has many holds up no
 * other by more than one of them; those of one user run in their order.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include <systemd/sd-event.h>

struct worker;

/* Both get @userdata; @run on the worker's thread, @done on the loop. */
typedef void (*worker_run_fn)(void *userdata);
typedef void (*worker_done_fn)(void *userdata);

int worker_new(sd_event *loop, struct worker **ret);
struct worker *worker_free(struct worker *w); /* waits for the running job; the others' done is called unrun */

/* Behind all that was pushed before, and before all that will be. Returns 0, or -ENOMEM: then neither is called. */
int worker_push(struct worker *w, worker_run_fn run, worker_done_fn done, void *userdata);
/* The same, but in @uid's turn. */
int worker_push_for(struct worker *w, uid_t uid, worker_run_fn run, worker_done_fn done,
		    void *userdata);
size_t worker_waiting(const struct worker *w); /* pushed, and not yet run to their end */
/* On the loop, whenever ends have come home and no job waits: whoever looked at worker_waiting() may look again. */
void worker_on_idle(struct worker *w, worker_done_fn idle, void *userdata);
/* Blocks until all jobs pushed so far have run; their ends may still be to come. */
void worker_drain(struct worker *w);

static inline void worker_freep(struct worker **w)
{
	*w = worker_free(*w);
}
