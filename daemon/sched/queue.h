/* What the scheduler's parts share: its state, and how turns move through it. */
#pragma once

#include "daemon/sched/fair.h"
#include "daemon/sched/pace.h"
#include "daemon/sched/sched.h"

/* One row of a step in flight, and whose it was when it was pushed. */
struct flight_row {
	struct turn *turn; /* NULL: ended or put back meanwhile; its result is ignored */
	struct fair_user *user;
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

/* See stuck.c: what was seen at the last tick, and how many have passed since it changed. */
struct stuck {
	sd_event_source *timer;
	bool was_busy;
	uint64_t done;
	uint32_t generation, n_ticks;
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
	uint32_t n_slots, n_rows; /* rows: of a step at most */
	struct turn *slots[STEP_ROWS_MAX];
	uint64_t slot_busy[STEP_ROWS_MAX]; /* newest step that names it; not given away before its end */
	uint64_t done;			   /* results up to this step were taken */

	struct flight flights[STEP_DEPTH_MAX]; /* oldest first */
	uint32_t n_flights;
	struct pace pace;
	struct fair fair;
	struct fair_user *least; /* of those that may have a row in the step being built */
	bool contended;		 /* they are more than one */
	uint64_t *page_seen;	 /* a bit a page, for counting */
	double paid_us;		 /* for turns put back because their users had more slots than their share */
	uint32_t generation, deaths; /* of the executor, as last seen */
	uint64_t ring_ino;	     /* of the executor's ring; 0: none */
	bool unsettled;		     /* adopted turns may be at their end already */
	bool draining;		     /* an earlier life's steps are in the ring: nothing is pushed */
	bool resting, halted;	     /* see sched_rest() */

	uint32_t decode_slot;	     /* served last */
	sd_event_source *pump, *timer;
	uint64_t timer_at_us;
	struct stuck stuck;
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
void sched_seal(struct turn *turn, enum kvcache_tail tail);

/* choose.c */
/* Who competes now: before any of the others of an event. */
void choose_look(struct sched *s);
/* The result of @f came. */
void choose_charge(struct sched *s, const struct flight *f, uint32_t device_us);
/* Whether @a is served before @b; if neither, the one that was accepted first. */
bool choose_before(const struct turn *a, const struct turn *b);
/* Who gets the next slot, of those that may have one, or take it from another; NULL: nobody. */
struct turn *choose_queued(struct sched *s, bool no_suspect);
/* Whether @t may have a slot that is free: the last is kept for users that have none. */
bool choose_may_take_slot(const struct sched *s, const struct turn *t);
/*
 * Who gives its slot and pages to @t; NULL: nobody.
 * @n_pages: that @t waits for; 0: it waits for a slot
 * @paid_us: what earlier ones given up for @t cost, 0 at first; grows
 */
struct turn *choose_loser(struct sched *s, const struct turn *t, uint32_t n_pages, double *paid_us);
/* Whether with @n_pages more for @t, which is not its user's only one with a place, the user would have too many. */
bool choose_exceeds(const struct turn *t, uint32_t n_pages);
/* Who gives pages to @t, which runs and needs @n_pages more; may be @t itself. */
struct turn *choose_page_loser(struct sched *s, const struct turn *t, uint32_t n_pages);
/* A step is built: between the two, choose_offer() for all that may have a row. */
void choose_begin(struct sched *s);
void choose_offer(struct turn *t, bool decodes);
void choose_offered(struct sched *s);
/* Whether @t has no row in this step, because its user is ahead of one that has work. */
bool choose_sits_out(const struct turn *t);
/* How many tokens of prompts a step takes in which nobody decodes. */
uint32_t choose_step_tokens(const struct sched *s);
/*
 * How many of the @n_tokens that are left of a step in which nobody decodes a
 * piece of the prompt of @t takes: what brings its user level with the next one.
 */
uint32_t choose_piece(const struct turn *t, uint32_t n_tokens);
/* A piece of its prompt is in the step: those that follow are chosen accordingly. */
void choose_fed(struct turn *t, uint32_t at, uint32_t n_tokens);

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

/* stuck.c */
int stuck_begin(struct sched *s); /* 0 or sd_event's error */
void stuck_end(struct sched *s);
/* There may be steps in flight now, or none: the clock runs while there are. */
void stuck_look(struct sched *s);
