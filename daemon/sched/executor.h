/*
 * The executor as the broker sees it: started (forked with a socketpair, or
 * by connecting to its unit's socket), configured, watched, started again when
 * it dies, adopted when the broker was. Never blocks the loop.
 */
#pragma once

#include <stdbool.h>
#include <systemd/sd-event.h>

#include "client/wire/control.h"
#include "client/wire/step.h"

enum executor_state {
	EXECUTOR_OFF,	   /* never started, or told to stop */
	EXECUTOR_LOADING,
	EXECUTOR_READY,
	EXECUTOR_BACKOFF,  /* died too often: waits, see executor_retry_us() */
	EXECUTOR_REFUSED,  /* the model's files were refused; until executor_start() again */
};

struct executor;

struct executor_options {
	const char *unit_socket; /* path to connect to; NULL: fork @program */
	const char *program;	 /* of steamd-exec-cpu */
	struct control_configure configure;
	int arena_fd;		 /* not taken; duplicated as needed */
	void (*on_state)(struct executor *e, void *userdata);	/* state changed, or progress was made */
	void (*on_results)(struct executor *e, void *userdata); /* results wait in executor_ring() */
	void *userdata;
};

int executor_new(sd_event *loop, const struct executor_options *options, struct executor **ret,
		 struct err *err);
struct executor *executor_free(struct executor *e); /* lets a parked executor live; a forked one sees EOF */

/*
 * Starts, or starts afresh with @options' configuration (NULL: the same). State
 * follows as events; a start that fails is a death. Returns 0.
 */
int executor_start(struct executor *e, const struct executor_options *options, struct err *err);
void executor_stop(struct executor *e); /* ends it: a parked one too */

/*
 * Takes over a running one whose control socket and ring were parked with
 * systemd. 0: it is READY or LOADING, on_results may follow at once; or a
 * negative errno: then both were closed and removed from the store.
 */
int executor_adopt(struct executor *e, int control_fd, struct ring *ring, struct err *err);

/* It computed nonsense or failed a step: ends it and counts a death, which says @why. */
void executor_fail(struct executor *e, const char *why);

enum executor_state executor_state(const struct executor *e);
const char *executor_state_name(enum executor_state state); /* "off", "loading", "ready", "waiting", "model-refused" */
struct ring *executor_ring(struct executor *e);		    /* NULL unless READY */
const struct control_ready *executor_ready(const struct executor *e); /* NULL unless READY */
const struct control_progress *executor_progress(const struct executor *e); /* of the load under way */
const char *executor_text(const struct executor *e);	    /* why it was refused or died; "" */
uint64_t executor_retry_us(const struct executor *e);	    /* until the next start; 0: none planned */
uint32_t executor_generation(const struct executor *e);	    /* rises with every start */
bool executor_is_dying(const struct executor *e);	    /* its last results are being taken */
bool executor_is_adopted(const struct executor *e);	    /* of an earlier life: steps of that may be in its ring */
uint32_t executor_deaths(const struct executor *e);	    /* consecutive; see executor_proved() */
void executor_proved(struct executor *e);		    /* a request was completed: deaths = 0 */
pid_t executor_pid(const struct executor *e);

static inline void executor_freep(struct executor **e)
{
	*e = executor_free(*e);
}
