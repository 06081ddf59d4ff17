/*
 * The ladder: what of the daemon stays in memory while nobody asks, and how it
 * comes back.
 *
 *	quiet	nothing outstanding: everything is there, nothing runs
 *	parked	the executor gave its weights' memory back; its process, its
 *		threads, the slots and the KV arena stay
 *	gone	the executor left; the broker and the KV arena stay
 *
 * Down it goes when nothing is to be computed and one of these wants it:
 *
 *	idleness	IdlePark= and IdleExit= seconds after the last work
 *	a wish		power_ask(): sleep, or yield until so many bytes are free: of the
 *			machine's memory, or of the devices' if it computes there
 *	a lease		what was yielded stays free: after work, POWER_GRACE_US; those
 *			of processes outlive the broker
 *	pressure	one step at each sign that the machine lacks memory: a rung or
 *			some KV pages, whichever is cheaper (prices.h); with work,
 *			pages
 *
 * and in any case, with work or without, before the machine is suspended: that
 * pauses answers, as a wish to sleep now does. Any other wish waits for them.
 *
 * On the way down, in this order: no step is begun, those in flight end, what
 * was computed is sealed to its last token, what is not on disk is written to
 * it, and then the executor gives its memory back or leaves; only then does the
 * machine sleep. POWER_SEAL_US is the time for all before the executor, and
 * before a suspend three quarters of what logind gives: what is not safe then
 * is computed again.
 *
 * Up it goes, straight to quiet, when there is work or somebody wishes it, and
 * never for anything else: not when a lease ends. Work that comes on the way
 * down waits until the way up, and what sealing there is left to do is left.
 *
 * One timer, armed for the next rung, or a lease's pages, or the end of the time
 * for sealing, and for nothing else: none while there is work, none when no idle
 * time is set, none on the last rung. Everything happens on the loop, and
 * nothing inside a caller's call but what is said so.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>
#include <systemd/sd-event.h>

#include "client/wire/err.h"
#include "daemon/base/settings.h"

#define POWER_SEAL_US (60 * 1000000ull) /* for all that is to be safe before the executor sleeps */
#define POWER_GRACE_US (5 * 1000000ull) /* under a lease, from the end of work to its rung */
#define POWER_PRESSURE_BYTES (1ull << 30) /* of KV pages, at each sign of pressure */
#define POWER_UP_BYTES_PER_US 10000.0 /* of KV pages from the arena to a device: what a PCIe 3.0 link of 16 lanes copies */
#define POWER_LEASES_MAX 32

enum power_rung { POWER_QUIET, POWER_PARKED, POWER_GONE, POWER_N_RUNGS };

const char *power_rung_name(enum power_rung rung);
int power_rung_parse(const char *name, enum power_rung *ret); /* -EINVAL */

struct executor;
struct power;

struct power_options {
	const struct settings *settings; /* outlives it; read as needed */
	/* Whether a turn wants to be computed: paused ones do not. */
	bool (*has_work)(void *userdata);
	/*
	 * Gives up KV pages that nobody uses, the cheapest to get back first, until
	 * about @bytes are free. Returns the bytes freed. NULL: there are none.
	 */
	uint64_t (*yield_pages)(uint64_t bytes, void *userdata);
	/* How much that could be at most, and what having all of it back would take. NULL: any amount for nothing. */
	void (*price_pages)(uint64_t *ret_bytes, uint64_t *ret_return_us, void *userdata);
	/*
	 * What was computed is to be made safe, within @timeout_us; @rung is where
	 * the executor goes. Called again, when power_look() was, until it returns
	 * true, or the time is over. NULL: it is safe.
	 */
	bool (*seal)(enum power_rung rung, uint64_t timeout_us, void *userdata);
	/* The executor is up again, or stays up: steps may be begun. NULL with seal. */
	void (*unseal)(void *userdata);
	/* Answers that are being computed pause; has_work() does not tell of them until unseal(), or others come. */
	void (*halt)(void *userdata);
	/* Something that power_look_at() tells has changed; may be NULL. */
	void (*on_change)(void *userdata);
	void *userdata;
	bool no_pressure, no_suspend; /* tests: neither PSI nor the system bus is looked for */
};

int power_new(sd_event *loop, const struct power_options *options, struct power **ret,
	      struct err *err);
struct power *power_free(struct power *p); /* wishes are told -ECANCELED; leases of processes stay parked */

/* The executor to look after; NULL: there is none now. It outlives that. */
void power_set_executor(struct power *p, struct executor *e);

/*
 * To be called when work came or went, the executor's state changed, or the
 * settings did. Cheap when there is nothing to do, and does nothing at once.
 */
void power_look(struct power *p);

/* What somebody wants of the ladder; embedded in who asks. Zeroed but for the first part. */
enum power_wish_kind { POWER_WISH_SLEEP, POWER_WISH_WAKE, POWER_WISH_YIELD };

struct power_wish {
	enum power_wish_kind kind;
	enum power_rung rung; /* SLEEP: at least so deep */
	bool now;	      /* SLEEP: answers pause; else they are waited for */
	uint64_t bytes;	      /* YIELD */
	pid_t pid;	      /* YIELD: the lease ends with it; 0: with power_withdraw() */
	/*
	 * It ended: @r is 0, -ECANCELED (somebody woke the daemon up instead; a lease
	 * without a process ends so, too), or says with @err why it cannot be. The
	 * wish is the asker's again.
	 */
	void (*on_done)(struct power_wish *w, int r, const struct err *err);
	/* Where it is, from time to time; a YIELD without pid: also once it holds. May be NULL. */
	void (*on_progress)(struct power_wish *w);
	void *userdata;

	/* power's own; the last two may be read */
	struct power *power; /* NULL: not asked, or ended */
	TAILQ_ENTRY(power_wish) link;
	struct power_lease *lease;
	enum power_rung want; /* YIELD: how deep it must be */
	uint64_t pages_bytes, before_bytes; /* YIELD: KV pages freed; the executor's memory when it was asked */
	bool holds;	      /* YIELD: what could be freed is, and stays so */
	uint64_t freed_bytes; /* YIELD: by it */
};

/*
 * Asks. on_done() comes later, never from inside. A WAKE ends all leases and
 * all other wishes. Returns 0, or with a sentence:
 *	-EAGAIN		there is no executor yet (a WAKE waits for it), or POWER_LEASES_MAX
 *			leases are held
 *	-ESRCH		no such process
 */
int power_ask(struct power *p, struct power_wish *w, struct err *err);
void power_refuse(struct power *p, int r, const struct err *err); /* the model cannot be: WAKEs end so */
/* Answers pause, as for a SLEEP now that an earlier broker was asked for: until there is a reason to be up. */
void power_halt(struct power *p);
void power_withdraw(struct power_wish *w); /* also ends the lease it holds; no on_done() */

/* To be called by what watches the machine; also for tests. */
void power_pressed(struct power *p);
/*
 * @asleep: down to gone, then @on_safe, once, and after @delay_us, which is how
 * long the machine waits, in any case early enough; false: up again if it was
 * up, or is needed.
 */
void power_suspend(struct power *p, bool asleep, uint64_t delay_us,
		   void (*on_safe)(void *userdata), void *userdata);

/* The time the timer is set to, by clock_us(); 0: none. For tests with a clock of their own: */
uint64_t power_next_us(const struct power *p);
void power_tick(struct power *p); /* what the timer does */

struct power_price {
	uint64_t freed_bytes, return_us; /* 0: not known */
	bool measured;			 /* else reckoned from the last load */
};

struct power_view {
	enum power_rung rung; /* the one it is on, or comes from */
	bool moving;	      /* between rungs, loading, or sealing */
	bool sealing;	      /* about to go down */
	enum power_rung next; /* where idleness leads */
	uint64_t next_in_us;  /* 0: nowhere */
	uint32_t n_leases;
	uint64_t leased_bytes;
	char pressure[160], suspend[160]; /* how it is watched, or why not */
	struct power_price prices[POWER_N_RUNGS];
};
void power_look_at(const struct power *p, struct power_view *ret);

static inline void power_freep(struct power **p)
{
	*p = power_free(*p);
}
