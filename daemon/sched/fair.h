/*
 * What each user has had of the executor: virtual time. A step's measured time
 * is divided between the users of its rows and added to their vt, times
 * FAIR_WEIGHT over the user's weight; so the shares of a step sum to what it
 * took, and who has the least vt has had the least. A row counts for
 *
 *	a * tokens + b * tokens * context
 *
 * with the prices of pace.h: those of prompts for what a step feeds, and for
 * rows that decode, their part of what a step of decoding rows takes. Tokens
 * that were not computed, because their KV was there, cost nothing.
 *
 * A user competes while it has a turn that is not paused. When one begins to,
 * its vt is raised to the least of those that do: time not used is not saved
 * up, and who comes pays for nothing that went before. Who competes and has to
 * wait all the same (for pages, for an executor that died) is owed the time, but
 * no more than FAIR_OWED_US: nobody stands still longer for that. Steps in flight
 * count at their expected price until they are measured.
 *
 * Accounts live as long as the broker: after its restart, all begin at 0.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "daemon/sched/pace.h"

#define FAIR_WEIGHT 100	    /* of a user that UserWeights does not name */
#define FAIR_WEIGHT_MAX 10000 /* as settings.c checks it */
#define FAIR_OWED_US 60e6
#define FAIR_USERS_MAX 1024 /* at least TURNS_MAX, for those with turns; the others have been idle */

/* One user's account. Of the fair's own array: pointers hold while the user has a turn or a row. */
struct fair_user {
	uid_t uid;
	uint32_t weight, n_turns; /* queued and running */
	bool competes, seen;	  /* seen: in this look, to compete from its end on */
	bool sits_out;		  /* of the step being built */
	uint32_t n_slots;	  /* its share of them while it competes */
	bool waits;		  /* for a slot, which none of its turns can have now */
	double vt, pending;	  /* us at FAIR_WEIGHT; pending: of steps in flight, as expected */
	double used_us;		  /* of the executor, as measured, since steamd started */
	/* choose.c counts these anew whenever it chooses */
	uint32_t n_running, n_batch; /* turns with a slot, those of class batch */
	uint32_t n_pages;	     /* of all of them; shared ones count as often, unless is_exact */
	bool is_exact;
	uint32_t n_decoding, n_feeding; /* rows that it could have in the step being built */
};

struct fair {
	struct fair_user users[FAIR_USERS_MAX];
	uint32_t n_users;
	double floor;	     /* the least vt of those that competed last; never falls */
	double measured_us;  /* of all steps; used_us of all users and forgotten_us sum to it */
	double forgotten_us; /* of users whose account was given to others */
};

/* A row of a step, as far as accounts go. */
struct fair_row {
	struct fair_user *user;
	bool decodes;
	uint32_t n_tokens, at; /* at: position of the first */
};

/* A turn of @uid came: its account, made on demand, with the weight that @weights (UserWeights) has now. */
struct fair_user *fair_enter(struct fair *f, uid_t uid, const char *weights);
/* It went. */
void fair_leave(struct fair_user *u);
/* NULL: nothing is known of it */
const struct fair_user *fair_find(const struct fair *f, uid_t uid);

/* Who competes from now on: between the two, fair_competes() for each turn that is not paused. */
void fair_look(struct fair *f);
void fair_competes(struct fair_user *u);
void fair_looked(struct fair *f);

/* Forgets what is expected of steps in flight; then fair_expect() for each of them. */
void fair_expect_nothing(struct fair *f);
void fair_expect(const struct pace *pace, const struct fair_row *rows, uint32_t n_rows);
/* The step, which had these rows, took @device_us. */
void fair_charge(struct fair *f, const struct pace *pace, const struct fair_row *rows,
		 uint32_t n_rows, uint32_t device_us);

/* Whether @a has had less than @b: it is served first. */
bool fair_before(const struct fair_user *a, const struct fair_user *b);
/* Executor time, in us, that @a has had beyond what its weight gives it beside @b; negative: less. */
double fair_lead_us(const struct fair_user *a, const struct fair_user *b);
