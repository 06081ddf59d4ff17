/* What executor.c, -adopt and -devices share. Nobody else includes this. */
#pragma once

#include "client/wire/ownership.h"
#include "daemon/sched/child.h"
#include "daemon/sched/executor.h"

struct executor {
	sd_event *loop;
	struct executor_options options;
	enum executor_state state;
	int control_fd;
	struct ring ring;
	struct child *child; /* NULL: a unit's, or none */
	pid_t pid;
	uint32_t generation, deaths;
	bool adopted, dying;
	bool lacks_gpu;			/* it left for want of one, and waits */
	bool wake_wanted, leave_wanted; /* once it is parked, or gone */
	int record_fd;
	struct execrecord record;
	uint64_t began_us; /* the load under way; 0: not known */
	uint64_t pool_wanted, pool_told;
	bool resizing;			 /* it has not answered yet */
	struct control_seen seen[CONTROL_RANKS_MAX];
	uint32_t n_seen;
	bool looking; /* the last rank has not answered yet */
	int refusal;
	struct control_progress progress;
	char text[ERR_TEXT_MAX];
	uint64_t retry_at_us;
	sd_event_source *control, *bell, *retry, *tell;
};

/* Has its socket and bell wake the loop. */
int executor_watch(struct executor *e);
/* Lets go of what this life of the executor consists of, which lives on if it is parked. */
void executor_detach(struct executor *e);
/* Ends it wherever it is: all duplicates of the socket are at their end, a parked one too. */
void executor_end(struct executor *e);
void executor_order(struct executor *e, enum control_kind kind);
void executor_order_wake(struct executor *e);
/* Orders the KV cache on devices as large as is wanted, if it is at rest between orders. */
void executor_tell_pool(struct executor *e);
void executor_pooled(struct executor *e, const struct control_pooled *pooled);
/* What is said of one rank: whole when the last is there. */
void executor_was_seen(struct executor *e, const struct control_seen *seen);
/* States are told from the loop, never from inside a caller's call. */
void executor_tell(struct executor *e);
