/*
 * Turns to steps: admission, slots, pages, batches, results, replay. Decoding
 * rows first in each step, then pieces of prompts up to the token budget, and
 * beside decoding rows up to the time that pace.h finds for them. Slots and
 * steps go to the user that has had the least (fair.h, choose.c): of two that
 * are busy each has 45 to 55 % of any 10 s, by equal weights and while the arena
 * holds a turn of each. Inside one, interactive turns come before batch, then
 * the oldest. Knows nothing of clients or text; both come in through struct
 * turn's callbacks.
 *
 * When the executor dies, the turns in flight are suspects. They are computed
 * again one at a time, among others, until each has come past the steps that
 * were in flight; so a turn that kills the executor is alone when it does it
 * again, and it alone ends (FINISH_FAULT). At the third death in a row, with no
 * request completed between, all suspects end: then it is no turn's fault.
 *
 * A turn whose record says tidy computes its prompt for one that may come, and
 * is there only while there is no other: it ends (FINISH_CANCELLED) when
 * another is submitted or the executor goes, and when there is no room for it
 * (FINISH_FAULT). What it sealed is found later; its user is charged. Its steps
 * are of a page or of what TokenGap allows, one at a time, so that who comes
 * waits for no more than one of them. It counts in no limit.
 */
#pragma once

#include "daemon/base/settings.h"
#include "daemon/kv/kvcache.h"
#include "daemon/kv/shares.h"
#include "daemon/sched/executor.h"
#include "daemon/session/turns.h"

struct sched;
struct fair;
struct fair_user;

/* One turn in this life of the broker. Embedded in whatever owns it. */
struct turn {
	struct turn_record *rec;
	void (*on_tokens)(struct turn *turn); /* rec->n_ids or n_scored rose; may call sched_finish() */
	void (*on_state)(struct turn *turn);  /* queued, running, restarting: for progress frames */
	void (*on_end)(struct turn *turn);    /* rec->state is ENDED, rec->finish says how; once */
	/* the scheduler's own */
	struct sched *sched;	    /* NULL: not with one, or ended */
	struct fair_user *user;	    /* while it is with one */
	struct turns *turns;	    /* where its record is, once it was submitted */
	struct turn *next, *prev;   /* accepted before it, after it */
	uint32_t n_fed;		    /* tokens whose KV the executor has or is about to have */
	uint32_t n_known;	    /* of those, found in the cache */
	uint32_t n_lost;	    /* that it had when it was put back */
	struct kv_hash root;	    /* of its namespace */
	struct kvcache_chain chain;
	struct kvcache_held held;
	bool settling;		    /* what is held is not sure yet: no rows */
	uint32_t n_pages_sent;	    /* of its page table, to the slot */
	uint32_t n_in_flight;	    /* steps that name it */
	uint64_t last_pushed;	    /* id of the newest of them */
	uint32_t cleared_at;	    /* a suspect (rec->n_faults) until it has so many ids */
	bool waits;		    /* queued: another computes what it wants, or its user has pages enough */
	bool saved_others; /* what others may lose to it was brought to the disk, as far as possible */
	bool paused, sampling;	    /* sampling: all that is known was fed, CONT rows follow */
	bool replaying, untold;	    /* fed again after its KV was lost; on_state is still to be called */
};

struct sched_options {
	const struct settings *settings; /* outlives the scheduler; limits are read as needed */
	struct kvcache *kv;		 /* these three outlive it too */
	struct turns *turns;
	struct executor *executor;
	void (*on_applied)(void *userdata); /* after on_tokens of all that results were for; or NULL */
	void *userdata;
};

/*
 * How many turns have a slot. A step computes MaxBatch of them at most; with
 * fewer than SCHED_SLOTS_LEAST those beyond are for users that have none.
 */
#define SCHED_SLOTS_LEAST 8
static inline uint32_t sched_slots(const struct settings *s)
{
	return MAX(s->max_batch, (uint32_t)SCHED_SLOTS_LEAST);
}

int sched_new(sd_event *loop, const struct sched_options *options, struct sched **ret);
struct sched *sched_free(struct sched *s);

/*
 * Queues a turn whose record is complete (state OPEN; becomes QUEUED).
 *
 * Returns 0; -EAGAIN: queue or token limits of the uid or of all, with the
 * numbers; -ENOSPC: more pages than there are, or than the uid may have; -EBUSY: a tidy
 * one, and there are others. The record is then still OPEN.
 */
int sched_submit(struct sched *s, struct turn *turn, struct err *err);
/* Puts an adopted turn back (QUEUED or RUNNING in the record). */
int sched_adopt(struct sched *s, struct turn *turn, struct err *err);

/*
 * Ends a turn now; on_end is called before this returns, and may free the turn
 * after sched_release(). Tokens still being sampled are discarded. Ended turns
 * are left as they are.
 */
void sched_finish(struct turn *turn, enum turn_finish finish);
/* A paused turn keeps slot and pages and gets no rows: its reader is behind. */
void sched_pause(struct turn *turn, bool paused);
/* Frees an ended turn's record; the scheduler has let go of the turn before on_end. */
void sched_release(struct turn *turn);

/*
 * Before the executor goes to sleep. At rest, no step computes: those in flight
 * end, then turns give slot and pages up, and what they computed is sealed to
 * its last token; afterwards they go on from there, and nothing is computed
 * again. sched_work() does not count @halted ones: those that are there now,
 * until another is submitted or the rest ends.
 */
void sched_rest(struct sched *s, bool halted);
void sched_go_on(struct sched *s);
bool sched_is_resting(const struct sched *s);
/* All of the above has happened, or the executor cannot do more of it. */
bool sched_is_at_rest(const struct sched *s);
/* Turns that want to be computed: not those that are paused or halted. */
uint32_t sched_work(const struct sched *s);

/* To be called from the executor's on_results and on_state. */
void sched_results(struct sched *s);
void sched_executor_changed(struct sched *s);

struct sched_counts {
	uint32_t n_queued, n_running, n_paused;
	uint64_t queued_tokens;
};
/* Without a tidy one. (uid_t)-1: all */
void sched_count(const struct sched *s, uid_t uid, struct sched_counts *ret);
bool sched_is_idle(const struct sched *s); /* nothing queued, running, tidied or in flight */
bool sched_is_tidying(const struct sched *s);
void sched_end_tidying(struct sched *s);
/*
 * What so many tokens of a prompt take, see pace_prompt_us(). Where this broker
 * has seen none yet, as turns of an earlier one go on: what it takes to decode as many.
 */
double sched_prompt_us(const struct sched *s, uint32_t at, uint32_t n_tokens);
uint64_t sched_steps(const struct sched *s);	  /* pushed in this life */
uint64_t sched_deep_steps(const struct sched *s); /* of those, pushed while another was in flight */

/* Of the arena, for each of the users that have turns now. */
struct kv_shares sched_shares(const struct sched *s);
/* What is left to @uid of what it has by those that have pages now, and by one more that may come. */
struct kv_shares sched_user_shares(const struct sched *s, uid_t uid);
const struct fair *sched_fair(const struct sched *s);	  /* what each user has had */

static inline void sched_freep(struct sched **s)
{
	*s = sched_free(*s);
}
