/*
 * The executor as the broker sees it: started (forked with a socketpair, or
 * by connecting to its unit's socket), configured, watched, put to sleep and
 * woken, started again when it dies, adopted when the broker was. Never blocks
 * the loop.
 *
 * Once it was ready, the model it had is the only one it may come back with:
 * one that changed on disk meanwhile is refused (-ESTALE) until a new object is
 * made. What may pass (err_may_pass()), such as a want of memory, is a death instead.
 */
#pragma once

#include <stdbool.h>
#include <systemd/sd-event.h>

#include "client/wire/control.h"
#include "client/wire/step.h"
#include "daemon/sched/execrecord.h"

enum executor_state {
	EXECUTOR_OFF,	   /* never started, or told to stop */
	EXECUTOR_LOADING,
	EXECUTOR_READY,
	EXECUTOR_BACKOFF,  /* died too often, or found no GPU: waits, see executor_retry_us() */
	EXECUTOR_REFUSED,  /* the model's files were refused; until executor_start() again */
	EXECUTOR_PARKING,  /* ends its steps, then gives the weights back; nothing new is pushed */
	EXECUTOR_PARKED,
	EXECUTOR_LEAVING,  /* ends its steps, then leaves; nothing new is pushed */
	EXECUTOR_GONE,	   /* left on purpose: executor_wake() starts it */
};

struct executor;

struct executor_options {
	const char *unit_socket; /* path to connect to; NULL: fork @program */
	const char *program;	 /* of steamd-exec-cpu or steamd-exec-cuda */
	struct control_configure configure;
	int arena_fd;		 /* not taken; duplicated as needed */
	void (*on_state)(struct executor *e, void *userdata);	/* state changed, or progress was made */
	void (*on_results)(struct executor *e, void *userdata); /* results wait in executor_ring() */
	void (*on_seen)(struct executor *e, void *userdata);	/* executor_seen() has the answer; may be NULL */
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
 * What an earlier broker knew of its executor, by the record that it parked
 * (execrecord.h); takes @record_fd over. It may be -1: there is none. Returns
 * 0; -ENOENT: there is none; -EBADMSG: it makes no sense; or why it cannot be read.
 */
int executor_recall(struct executor *e, int record_fd);

/*
 * Takes over a running one whose control socket and ring were parked with
 * systemd, after executor_recall(). 0: it is READY or LOADING, on_results may
 * follow at once; or a negative errno (-EBADMSG: nothing was recalled, or the
 * socket is none; -EPIPE: it is gone): then both were closed and removed from
 * the store. After what may pass they were only closed: it lives on, as parked.
 */
int executor_adopt(struct executor *e, int control_fd, struct ring *ring, struct err *err);

/*
 * The executor left before its broker did, on purpose, by what was recalled:
 * 0, and it is GONE. Else -ENOENT; what is known of the model holds
 * nevertheless.
 */
int executor_adopt_gone(struct executor *e);

/*
 * Sleep. Steps in flight are finished first, and their results taken; turns
 * keep slots and pages in a parked one, and lose them in one that is gone.
 * State follows as events. A death on the way is no death: it is GONE then.
 *
 * executor_park()	weights go, the rest stays. -EAGAIN unless READY
 * executor_leave()	all of it goes, whatever it is doing. -EAGAIN if OFF or REFUSED
 * executor_wake()	back to READY by way of LOADING; at once, or after what is
 *			under way. Nothing to do: nothing is done
 */
int executor_park(struct executor *e);
int executor_leave(struct executor *e);
void executor_wake(struct executor *e);

/*
 * On devices that are not the host: the KV cache there is to have @bytes, 0: all;
 * from now on, for its successors too. Told at once, or when it can hear it: then
 * executor_is_resizing() until it has answered. What it has: executor_known()->pool.
 */
void executor_set_pool(struct executor *e, uint64_t bytes);
bool executor_is_resizing(const struct executor *e);
/*
 * Asks what is to be said of its devices, unless it was and has not answered yet:
 * 0, and on_seen() follows while it lives;
 * -EAGAIN: it computes on the host, or is not there.
 */
int executor_look(struct executor *e);
/* The last answer: of rank @rank, or NULL. */
const struct control_seen *executor_seen(const struct executor *e, uint32_t rank);

/* It computed nonsense or failed a step: ends it and counts a death, which says @why. */
void executor_fail(struct executor *e, const char *why);

enum executor_state executor_state(const struct executor *e);
uint32_t executor_backoff_s(uint32_t n_failures);	    /* in a row, before the next start */
const char *executor_state_name(enum executor_state state); /* "off", "loading", "ready", "waiting", "model-refused", … */
struct ring *executor_ring(struct executor *e);		    /* NULL unless READY, PARKING or LEAVING */
const struct control_ready *executor_ready(const struct executor *e); /* NULL unless READY */
const struct control_ready *executor_known(const struct executor *e); /* what it last said, asleep too; NULL: never */
bool executor_uses_arena(const struct executor *e); /* when it last was ready: a page that it computed is in the arena at once */
const struct execrecord *executor_record(const struct executor *e);   /* what sleep freed and cost, as last measured */
bool executor_lacks_gpu(const struct executor *e);	    /* why it waits: executor_text() says more */
void executor_set_halted(struct executor *e, bool halted); /* for the record alone: a later broker finds it there */
int executor_refusal(const struct executor *e);		    /* the errno of REFUSED; else 0 */
const struct control_progress *executor_progress(const struct executor *e); /* of the load under way */
const char *executor_text(const struct executor *e);	    /* why it was refused or died; "" */
uint64_t executor_retry_us(const struct executor *e);	    /* until the next start; 0: none planned */
uint32_t executor_generation(const struct executor *e);	    /* rises with every start */
bool executor_is_dying(const struct executor *e);	    /* only its last results are being taken */
bool executor_is_adopted(const struct executor *e);	    /* of an earlier life: steps of that may be in its ring */
uint32_t executor_deaths(const struct executor *e);	    /* consecutive; see executor_proved() */
void executor_proved(struct executor *e);		    /* a request was completed: deaths = 0 */
pid_t executor_pid(const struct executor *e);

static inline void executor_freep(struct executor **e)
{
	*e = executor_free(*e);
}
