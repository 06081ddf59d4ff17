/* What the scheduler's parts share: its state, and how turns move through it. */
#pragma once

#include "daemon/sched/pace.h"
#include "daemon/sched/sched.h"

/* One row of a step in flight, and whose it was when it was pushed. */
struct flight_row {
	struct turn *turn; /* NULL: ended or put back meanwhile; its result is ignored */
	uint16_t slot, kind, flags, n_tokens, n_top;
	uint32_t at; /* position of its first token */
};

/* A step in flight. */
struct flight {
	uint64_t id;
	uint32_t n_rows;
	bool is_move; /* then rows are none of a turn's */
	struct pace_load load;
	struct flight_row rows[STEP_ROWS_MAX];
};

struct sched {
	sd_event *loop;
	const struct settings *settings;
	struct kvcache *cache;
	struct kvpool *kv; /* the cache's */
	struct turns *turns;
	struct executor *executor;
	void (*on_applied)(void *userdata);
	void *userdata;

	struct turn *first, *last; /* queued and running ones, in the order they were accepted */
	uint32_t n_slots;
	struct turn *slots[STEP_ROWS_MAX];
	uint64_t slot_busy[STEP_ROWS_MAX]; /* newest step that names it; not given away before its end */
	uint64_t done;			   /* results up to this step were taken */

	struct flight flights[STEP_DEPTH_MAX]; /* oldest first */
	uint32_t n_flights;
	struct pace pace;
	uint32_t generation, deaths; /* of the executor, as last seen */
	uint64_t ring_ino;	     /* of the executor's ring; 0: none */
	bool unsettled;		     /* adopted turns may be at their end already */
	bool draining;		     /* an earlier life's steps are in the ring: nothing is pushed */

	uid_t admit_uid, feed_uid;   /* served last */
	uint32_t decode_slot;	     /* served last */
	sd_event_source *pump, *timer;
	uint64_t timer_at_us;
	uint64_t n_steps, n_deep_steps;
};

/* sched.c */
void sched_put_back(struct turn *turn); /* running to queued: slot and pages are given up */
uint32_t sched_pages(const struct sched *s, uint64_t n_tokens); /* that hold so many */

/* turn's view of itself; all in sched.c */
uint32_t sched_budget(const struct turn *turn);	 /* tokens that may be sampled in all */
uint32_t sched_to_feed(const struct turn *turn); /* tokens known that the executor must have */
/* How it ends by what its record holds; FINISH_NONE: not yet. */
enum turn_finish sched_verdict(const struct turn *turn);

/* What the turn's slot has computed is worth finding again; @tail: it computes no more. */
void sched_seal(struct turn *turn, bool tail);

/* admit.c */
/* Turns whose pages were being made sure of go on, or are put back; returns whether any was. */
bool sched_settle(struct sched *s);
void sched_admit(struct sched *s);
/* Makes the page table reach @n_tokens; preempts if it must. False: not now, or the turn itself was put back. */
bool sched_grow(struct turn *turn, uint64_t n_tokens);

/* batch.c: pushes steps while the ring has room and there is something to compute. */
void sched_push(struct sched *s);

/* results.c: applies what the ring holds. */
void sched_apply(struct sched *s);
