/* What the parts of the ladder share: its state, and the wishes and leases on it. */
#pragma once

#include "daemon/power/lease.h"
#include "daemon/power/power.h"
#include "daemon/power/prices.h"
#include "daemon/sched/executor.h"

/* What a process or a wish was promised. */
struct power_lease {
	struct power *power;
	struct power_wish *wish; /* that it comes from, as long as that is not done */
	struct lease *process;	 /* NULL: it ends with the wish */
	pid_t pid;
	uint64_t bytes, pages_bytes; /* that it is of, and that KV pages were given up for */
	enum power_rung rung;
	TAILQ_ENTRY(power_lease) link;
};

struct power {
	sd_event *loop;
	struct power_options options;
	struct executor *executor;
	TAILQ_HEAD(, power_wish) wishes; /* outstanding, and YIELDs that hold */
	TAILQ_HEAD(, power_lease) leases;
	uint32_t n_leases;
	uint64_t idle_since_us; /* 0: there is work, or nothing to be idle */
	bool leases_kept;	/* since then */
	enum power_rung pressed;
	bool up_wanted;	      /* with nobody to tell */
	enum power_rung told; /* the rung that was logged last */
	bool suspended, was_up;
	bool sealed;		/* seal() was called and unseal() was not */
	bool sealing;		/* and the executor has not been told to go yet */
	enum power_rung sealing_at;
	uint64_t seal_until_us; /* while sealing */
	uint64_t safe_until_us; /* on_safe() comes then at the latest */
	void (*on_safe)(void *userdata);
	void *on_safe_userdata;
	sd_event_source *later, *timer;
	uint64_t timer_at_us;
	struct pressure *pressure;
	struct suspend *suspend;
	char no_pressure[160], no_suspend[160];
};

/* power.c */
void power_offer(const struct power *p, struct prices_offer *ret); /* what could be given up, from the rung it is on */
enum executor_state power_state(const struct power *p);
bool power_is_nothing(const struct power *p); /* there is no executor that could sleep or wake */
/* The rung it is on or on the way down to; on the way up, and at first, it is quiet already. */
enum power_rung power_rung_of(const struct power *p, bool *ret_moving);
void power_later(struct power *p); /* looks at everything again, from the loop */

/* wishes.c */
void power_serve_wishes(struct power *p); /* ends those that came true, tells the others how it goes */
void power_end_wishes(struct power *p, const char *why);
bool power_is_up_wanted(const struct power *p);
/*
 * Of an executor on devices, whose KV cache is not in the machine's memory: what
 * is leased of it stays given up, also when there is work, and comes back when
 * the lease ends.
 */
bool power_is_on_device(const struct power *p);
uint64_t power_pool_left(const struct power *p); /* bytes that could yet be leased of it */
void power_adopt_leases(struct power *p);
void power_drop_leases(struct power *p); /* they stay parked */
/* Gives pages up again that were leased and then grown into by work; at the time of power_keep_us(). */
void power_keep_leases(struct power *p);
uint64_t power_keep_us(const struct power *p); /* 0: there is none to give up */
