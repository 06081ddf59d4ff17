/* What is wanted, where it is, and the next move. */
#include "daemon/power/power.h"

#include <assert.h>
#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include "client/wire/ownership.h"
#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/power/lease.h"
#include "daemon/power/pressure.h"
#include "daemon/power/suspend.h"
#include "daemon/sched/executor.h"

#define TIMER_LEAST_US 1000

/* What a process or a wish was promised. */
struct power_lease {
	struct power *power;
	struct power_wish *wish; /* that it comes from, as long as that is not done */
	struct lease *process;	 /* NULL: it ends with the wish */
	pid_t pid;
	uint64_t bytes;
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
	void (*on_safe)(void *userdata);
	void *on_safe_userdata;
	sd_event_source *later, *timer;
	uint64_t timer_at_us;
	struct pressure *pressure;
	struct suspend *suspend;
	char no_pressure[160], no_suspend[160];
};

static const char *const rung_names[] = { "quiet", "parked", "gone" };

const char *power_rung_name(enum power_rung rung)
{
	return rung_names[rung];
}

int power_rung_parse(const char *name, enum power_rung *ret)
{
	for (size_t i = 0; i < ARRAY_SIZE(rung_names); i++) {
		if (strcmp(rung_names[i], name) == 0) {
			*ret = (enum power_rung)i;
			return 0;
		}
	}
	return -EINVAL;
}

static enum executor_state state_of(const struct power *p)
{
	return p->executor ? executor_state(p->executor) : EXECUTOR_OFF;
}

/* Nothing is there that could sleep or wake. */
static bool is_nothing(const struct power *p)
{
	return state_of(p) == EXECUTOR_OFF || state_of(p) == EXECUTOR_REFUSED;
}

/* The rung it is on or on the way down to; on the way up, and at first, it is quiet already. */
static enum power_rung rung_of(const struct power *p, bool *ret_moving)
{
	if (!p->executor) {
		*ret_moving = true;
		return POWER_QUIET;
	}
	switch (state_of(p)) {
	case EXECUTOR_PARKING:
	case EXECUTOR_PARKED:
		*ret_moving = state_of(p) == EXECUTOR_PARKING;
		return POWER_PARKED;
	case EXECUTOR_OFF:
	case EXECUTOR_REFUSED:
	case EXECUTOR_LEAVING:
	case EXECUTOR_GONE:
		*ret_moving = state_of(p) == EXECUTOR_LEAVING;
		return POWER_GONE;
	default:
		*ret_moving = state_of(p) != EXECUTOR_READY;
		return POWER_QUIET;
	}
}

/* The executor's own memory. */
static uint64_t executor_bytes(const struct power *p)
{
	const struct control_ready *known = p->executor ? executor_known(p->executor) : NULL;
	const struct execrecord *record;

	if (!known || is_nothing(p) || state_of(p) == EXECUTOR_GONE)
		return 0;
	record = executor_record(p->executor);
	if (state_of(p) == EXECUTOR_PARKED)
		return known->resident_bytes -
		       MIN(known->resident_bytes, record->parked.freed_bytes);
	return known->resident_bytes;
}

static bool has_work(const struct power *p)
{
	return p->options.has_work(p->options.userdata);
}

static void later(struct power *p)
{
	sd_event_source_set_enabled(p->later, SD_EVENT_ONESHOT);
}

static void drop_lease(struct power_lease *l)
{
	if (l->wish)
		l->wish->lease = NULL;
	TAILQ_REMOVE(&l->power->leases, l, link);
	l->power->n_leases--;
	lease_free(l->process);
	free(l);
}

static void end_lease(struct power_lease *l)
{
	lease_forget(l->process);
	drop_lease(l);
}

static void end_wish(struct power_wish *w, int r, const struct err *err)
{
	struct power *p = w->power;

	TAILQ_REMOVE(&p->wishes, w, link);
	w->power = NULL;
	if (w->lease)
		w->lease->wish = NULL;
	if (w->lease && r < 0)
		end_lease(w->lease);
	w->lease = NULL;
	w->on_done(w, r, err);
}

static void on_process_end(void *userdata)
{
	struct power_lease *l = userdata;
	struct power *p = l->power;
	struct power_wish *w = l->wish;
	struct err err = { 0 };

	log_info("the lease of process %d on %llu MiB ended with it", (int)l->pid,
		 (unsigned long long)l->bytes >> 20);
	if (w)
		end_wish(w, err_set(&err, -ESRCH, "process %d ended before it was so", (int)w->pid),
			 &err);
	else
		end_lease(l);
	later(p);
}

static int new_lease(struct power *p, struct power_wish *w, struct err *err)
{
	struct power_lease *l;
	int r;

	if (p->n_leases >= POWER_LEASES_MAX)
		return err_set(err, -EAGAIN, "%u leases are held; %u may be", p->n_leases,
			       POWER_LEASES_MAX);
	l = calloc(1, sizeof(*l));
	if (!l)
		return err_set(err, -ENOMEM, "out of memory");
	*l = (struct power_lease){ .power = p, .wish = w, .pid = w->pid, .bytes = w->bytes };
	r = w->pid ? lease_new(p->loop, w->pid, on_process_end, l, &l->process) : 0;
	if (r < 0) {
		free(l);
		return err_set(err, r, "process %d: %s", (int)w->pid, strerror(-r));
	}
	TAILQ_INSERT_TAIL(&p->leases, l, link);
	p->n_leases++;
	w->lease = l;
	return 0;
}

/* Those that an earlier broker granted hold. */
static void adopt_leases(struct power *p)
{
	while (p->n_leases < POWER_LEASES_MAX) {
		struct power_lease *l = calloc(1, sizeof(*l));
		uint32_t rung = 0;

		if (!l || lease_take(p->loop, on_process_end, l, &l->process, &l->pid, &rung,
				     &l->bytes) < 0) {
			free(l);
			return;
		}
		l->power = p;
		l->rung = (enum power_rung)MIN(rung, (uint32_t)POWER_GONE);
		TAILQ_INSERT_TAIL(&p->leases, l, link);
		p->n_leases++;
	}
}

/* Nobody's wish stands against it any more. */
static void end_wishes(struct power *p, const char *why)
{
	struct err err = { 0 };
	struct power_wish *w;

	err_set(&err, -ECANCELED, "%s", why);
	while ((w = TAILQ_FIRST(&p->wishes)))
		end_wish(w, -ECANCELED, &err);
}

static void forget_wishes(struct power *p)
{
	end_wishes(p, "it was woken up");
	while (!TAILQ_EMPTY(&p->leases))
		end_lease(TAILQ_FIRST(&p->leases));
	p->pressed = POWER_QUIET;
}

int power_ask(struct power *p, struct power_wish *w, struct err *err)
{
	int r;

	if (!p->executor)
		return err_set(err, -EAGAIN, "there is no executor yet: the model is being opened");
	if (w->kind == POWER_WISH_WAKE)
		forget_wishes(p);
	if (w->kind == POWER_WISH_YIELD) {
		r = new_lease(p, w, err);
		if (r < 0)
			return r;
		w->before_bytes = executor_bytes(p);
	}
	w->power = p;
	TAILQ_INSERT_TAIL(&p->wishes, w, link);
	p->up_wanted &= w->kind == POWER_WISH_WAKE;
	later(p);
	return 0;
}

void power_withdraw(struct power_wish *w)
{
	if (!w->power)
		return;
	later(w->power);
	TAILQ_REMOVE(&w->power->wishes, w, link);
	w->power = NULL;
	if (w->lease)
		end_lease(w->lease);
}

/* Whether all that it wants is free, or all there is; else goes for more. */
static bool is_yielded(struct power *p, struct power_wish *w, enum power_rung at, bool moving)
{
	const uint64_t now_bytes = executor_bytes(p);

	if (!w->asked_pages && p->options.yield_pages)
		w->pages_bytes = p->options.yield_pages(w->bytes, p->options.userdata);
	w->asked_pages = true;
	w->freed_bytes = w->pages_bytes + (w->before_bytes - MIN(w->before_bytes, now_bytes));
	if (w->freed_bytes >= w->bytes || (at == POWER_GONE && !moving))
		return true;
	if (at >= w->want && !moving)
		w->want = MIN(at + 1u, POWER_GONE);
	return false;
}

static void hold(struct power_wish *w)
{
	w->holds = true;
	w->lease->rung = w->want;
	if (w->pid)
		lease_keep(w->lease->process, w->want, w->bytes);
	log_info("%llu MiB of %llu MiB yielded", (unsigned long long)w->freed_bytes >> 20,
		 (unsigned long long)w->bytes >> 20);
	if (w->pid)
		end_wish(w, 0, NULL);
	else if (w->on_progress)
		w->on_progress(w);
}

/* Returns true if it ended, or holds: then there may be others that did not. */
static bool serve_wish(struct power *p, struct power_wish *w, enum power_rung at, bool moving)
{
	struct err err = { 0 };

	switch (w->kind) {
	case POWER_WISH_SLEEP:
		if (moving || at < w->rung)
			return false;
		end_wish(w, 0, NULL);
		return true;
	case POWER_WISH_WAKE:
		if (!p->executor)
			return false; /* there will be another */
		if (is_nothing(p))
			end_wish(w,
				 err_set(&err,
					 executor_refusal(p->executor) < 0
						 ? executor_refusal(p->executor)
						 : -EHOSTDOWN,
					 "%s", executor_text(p->executor)),
				 &err);
		else if (at == POWER_QUIET && !moving)
			end_wish(w, 0, NULL);
		else
			return false;
		return true;
	case POWER_WISH_YIELD:
		if (w->holds || !is_yielded(p, w, at, moving))
			return false;
		hold(w);
		return true;
	}
	return false;
}

/* Callbacks may withdraw any of them: after each that ended the list is begun again. */
static void serve_wishes(struct power *p)
{
	struct power_wish *w;
	enum power_rung at;
	bool moving, again;

	do {
		again = false;
		at = rung_of(p, &moving);
		TAILQ_FOREACH(w, &p->wishes, link) {
			again = serve_wish(p, w, at, moving);
			if (again)
				break;
		}
	} while (again);
	TAILQ_FOREACH(w, &p->wishes, link) {
		if (!w->holds && w->on_progress)
			w->on_progress(w);
	}
}

static void note_idleness(struct power *p, bool work)
{
	switch (work ? EXECUTOR_LOADING : state_of(p)) {
	case EXECUTOR_READY:
	case EXECUTOR_PARKED:
	case EXECUTOR_GONE:
		if (p->idle_since_us == 0)
			p->idle_since_us = MAX(clock_us(), 1);
		break;
	case EXECUTOR_PARKING:
	case EXECUTOR_LEAVING:
		break;
	default:
		p->idle_since_us = 0;
		p->leases_kept = false;
		break;
	}
	if (work)
		p->pressed = POWER_QUIET;
}

/* When idleness leads to @rung; UINT64_MAX: never. */
static uint64_t due_us(const struct power *p, enum power_rung rung)
{
	const struct settings *s = p->options.settings;
	const uint64_t idle_s = rung == POWER_PARKED ? s->idle_park : s->idle_exit;
	const struct power_lease *l;
	uint64_t at_us = idle_s ? p->idle_since_us + idle_s * US_PER_S : UINT64_MAX;

	TAILQ_FOREACH(l, &p->leases, link) {
		if (!l->wish || l->wish->holds)
			if (l->rung == rung)
				at_us = MIN(at_us, p->idle_since_us + POWER_GRACE_US);
	}
	return at_us;
}

static bool is_up_wanted(const struct power *p)
{
	const struct power_wish *w;

	TAILQ_FOREACH(w, &p->wishes, link) {
		if (w->kind == POWER_WISH_WAKE)
			return true;
	}
	return p->up_wanted;
}

static enum power_rung wanted_rung(const struct power *p)
{
	enum power_rung rung = p->pressed;
	const struct power_wish *w;

	TAILQ_FOREACH(w, &p->wishes, link) {
		if (w->kind == POWER_WISH_SLEEP)
			rung = MAX(rung, w->rung);
		else if (w->kind == POWER_WISH_YIELD && !w->holds)
			rung = MAX(rung, w->want);
	}
	for (enum power_rung i = POWER_PARKED; p->idle_since_us && i <= POWER_GONE; i++) {
		if (due_us(p, i) <= clock_us())
			rung = MAX(rung, i);
	}
	return rung;
}

static void go_down(struct power *p, enum power_rung rung)
{
	bool moving;
	const enum power_rung at = rung_of(p, &moving);

	if (!p->executor || rung <= at)
		return;
	if (rung == POWER_PARKED)
		(void)executor_park(
			p->executor); /* -EAGAIN: it loads, and is asked again when it has */
	else
		(void)executor_leave(p->executor); /* a load, too: nobody waits for it */
}

/* What was leased was grown into while there was work. */
static void keep_leases(struct power *p)
{
	const struct power_lease *l;
	uint64_t bytes = 0;

	if (p->leases_kept || !p->idle_since_us || clock_us() < p->idle_since_us + POWER_GRACE_US)
		return;
	p->leases_kept = true;
	TAILQ_FOREACH(l, &p->leases, link)
		bytes += l->wish && !l->wish->holds ? 0 : l->bytes;
	if (bytes > 0 && p->options.yield_pages)
		p->options.yield_pages(bytes, p->options.userdata);
}

/* Safe are those that cannot be hurt: nothing computes, and what was computed is in the arena. */
static void tell_safe(struct power *p)
{
	void (*const on_safe)(void *userdata) = p->on_safe;

	if (!on_safe || !(is_nothing(p) || state_of(p) == EXECUTOR_GONE))
		return;
	p->on_safe = NULL;
	if (p->options.seal)
		p->options.seal(p->options.userdata);
	on_safe(p->on_safe_userdata);
}

static int on_timer(sd_event_source *source, uint64_t usec, void *userdata)
{
	(void)source, (void)usec;
	power_tick(userdata);
	return 0;
}

static void arm_timer(struct power *p, uint64_t at_us)
{
	const uint64_t now = clock_us();

	if (p->timer_at_us == at_us)
		return;
	p->timer = sd_event_source_disable_unref(p->timer);
	p->timer_at_us = 0;
	if (at_us == 0)
		return;
	if (sd_event_add_time_relative(p->loop, &p->timer, CLOCK_BOOTTIME,
				       MAX(at_us > now ? at_us - now : 0, (uint64_t)TIMER_LEAST_US),
				       0, on_timer, p) >= 0)
		p->timer_at_us = at_us;
}

/* The next rung that idleness leads to, and when; 0: to none. */
static uint64_t find_next(const struct power *p, enum power_rung *ret)
{
	bool moving;
	const enum power_rung at = rung_of(p, &moving);
	uint64_t next_us = UINT64_MAX;

	if (p->idle_since_us == 0 || moving || p->suspended)
		return 0;
	for (enum power_rung i = at + 1; i <= POWER_GONE; i++) {
		if (due_us(p, i) >= next_us)
			continue;
		next_us = due_us(p, i);
		*ret = i;
	}
	return next_us == UINT64_MAX ? 0 : next_us;
}

static void tell_arrival(struct power *p)
{
	bool moving;
	const enum power_rung at = rung_of(p, &moving);
	struct power_view view;

	if (moving || at == p->told || is_nothing(p))
		return;
	p->told = at;
	if (at == POWER_QUIET)
		return; /* that the model is served says who serves it */
	power_look_at(p, &view);
	log_info("asleep: %s, %llu MiB given back", power_rung_name(at),
		 (unsigned long long)view.prices[at].freed_bytes >> 20);
}

static void settle(struct power *p)
{
	const bool work = has_work(p);
	enum power_rung next;

	tell_arrival(p);
	note_idleness(p, work);
	serve_wishes(p);
	if (state_of(p) == EXECUTOR_READY || is_nothing(p))
		p->up_wanted = false;
	keep_leases(p);
	if (p->suspended)
		go_down(p, POWER_GONE);
	else if (p->executor && (work || is_up_wanted(p)))
		executor_wake(p->executor);
	else
		go_down(p, wanted_rung(p));
	tell_safe(p);
	arm_timer(p, find_next(p, &next));
	if (p->options.on_change)
		p->options.on_change(p->options.userdata);
}

static int on_later(sd_event_source *source, void *userdata)
{
	(void)source;
	settle(userdata);
	return 0;
}

void power_tick(struct power *p)
{
	p->timer_at_us = 0;
	settle(p);
}

void power_look(struct power *p)
{
	/* in the midst of work there is nothing to decide */
	if (state_of(p) == EXECUTOR_READY && p->idle_since_us == 0 && p->timer_at_us == 0 &&
	    TAILQ_EMPTY(&p->wishes) && !p->suspended && has_work(p))
		return;
	later(p);
}

void power_pressed(struct power *p)
{
	bool moving;
	const enum power_rung at = rung_of(p, &moving);
	uint64_t bytes = 0;

	if (moving)
		return; /* the last step shows yet */
	malloc_trim(0);
	if (!has_work(p) && at < POWER_GONE) {
		p->pressed = at + 1;
		log_info("the machine lacks memory: from %s to %s", power_rung_name(at),
			 power_rung_name(p->pressed));
		later(p);
		return;
	}
	if (p->options.yield_pages)
		bytes = p->options.yield_pages(POWER_PRESSURE_BYTES, p->options.userdata);
	if (bytes > 0)
		log_info("the machine lacks memory: %llu MiB of the KV cache given up",
			 (unsigned long long)bytes >> 20);
}

void power_suspend(struct power *p, bool asleep, void (*on_safe)(void *userdata), void *userdata)
{
	bool moving;

	if (asleep == p->suspended)
		return;
	p->suspended = asleep;
	p->on_safe = on_safe;
	p->on_safe_userdata = userdata;
	if (asleep)
		p->was_up = p->executor && rung_of(p, &moving) == POWER_QUIET;
	else
		p->up_wanted = p->was_up;
	log_info(asleep ? "the machine is about to be suspended" : "the machine is back");
	later(p);
}

static void on_pressure(void *userdata)
{
	power_pressed(userdata);
}

static void on_safe(void *userdata)
{
	struct power *p = userdata;

	suspend_release(p->suspend);
}

static void on_sleep(bool asleep, void *userdata)
{
	power_suspend(userdata, asleep, asleep ? on_safe : NULL, userdata);
}

/* Neither is needed: what is not to be had is told by power_look_at(). */
static void watch_machine(struct power *p)
{
	struct err err = { 0 };
	int r = 0;

	snprintf(p->no_pressure, sizeof(p->no_pressure), "off: the service manager wants none");
	if (!p->options.no_pressure)
		r = pressure_new(p->loop, on_pressure, p, &p->pressure, &err);
	if (r < 0)
		snprintf(p->no_pressure, sizeof(p->no_pressure), "off: %.150s", err.text);
	snprintf(p->no_suspend, sizeof(p->no_suspend), "off");
	r = p->options.no_suspend ? 0 : suspend_new(p->loop, on_sleep, p, &p->suspend, &err);
	if (r < 0)
		snprintf(p->no_suspend, sizeof(p->no_suspend), "off: %.150s", err.text);
}

int power_new(sd_event *loop, const struct power_options *options, struct power **ret,
	      struct err *err)
{
	_cleanup_(power_freep) struct power *p = calloc(1, sizeof(*p));
	int r;

	if (!p)
		return err_set(err, -ENOMEM, "out of memory");
	p->loop = sd_event_ref(loop);
	p->options = *options;
	TAILQ_INIT(&p->wishes);
	TAILQ_INIT(&p->leases);
	r = sd_event_add_defer(loop, &p->later, on_later, p);
	if (r >= 0)
		r = sd_event_source_set_enabled(p->later, SD_EVENT_OFF);
	if (r < 0)
		return err_set(err, r, "cannot set up the event loop: %s", strerror(-r));
	watch_machine(p);
	adopt_leases(p);
	*ret = steal(p);
	return 0;
}

struct power *power_free(struct power *p)
{
	if (!p)
		return NULL;
	end_wishes(p, "the daemon is leaving");
	while (!TAILQ_EMPTY(&p->leases))
		drop_lease(TAILQ_FIRST(&p->leases));
	suspend_free(p->suspend);
	pressure_free(p->pressure);
	sd_event_source_disable_unref(p->later);
	sd_event_source_disable_unref(p->timer);
	sd_event_unref(p->loop);
	free(p);
	return NULL;
}

void power_set_executor(struct power *p, struct executor *e)
{
	p->executor = e;
	p->idle_since_us = 0;
	p->pressed = POWER_QUIET;
	p->up_wanted = false;
	if (e)
		later(p);
}

uint64_t power_next_us(const struct power *p)
{
	return p->timer_at_us;
}

static struct power_price price_of(const struct execrecord_price *measured, uint64_t bytes,
				   uint64_t load_us)
{
	return (struct power_price){
		.freed_bytes = measured->freed_bytes ? measured->freed_bytes : bytes,
		.return_us = measured->return_us ? measured->return_us : load_us,
		.measured = measured->freed_bytes && measured->return_us,
	};
}

void power_look_at(const struct power *p, struct power_view *ret)
{
	const struct control_ready *known = p->executor ? executor_known(p->executor) : NULL;
	const struct power_lease *l;
	uint64_t next_us;

	*ret = (struct power_view){ .n_leases = p->n_leases };
	ret->rung = rung_of(p, &ret->moving);
	next_us = find_next(p, &ret->next);
	if (next_us)
		ret->next_in_us = MAX(next_us, clock_us() + 1) - clock_us();
	TAILQ_FOREACH(l, &p->leases, link)
		ret->leased_bytes += l->bytes;
	if (p->pressure)
		snprintf(ret->pressure, sizeof(ret->pressure), "%.150s",
			 pressure_path(p->pressure));
	else
		snprintf(ret->pressure, sizeof(ret->pressure), "%s", p->no_pressure);
	snprintf(ret->suspend, sizeof(ret->suspend), "%s",
		 p->suspend ? suspend_text(p->suspend) : p->no_suspend);
	ret->prices[POWER_QUIET].measured = true;
	if (!known)
		return;
	ret->prices[POWER_PARKED] = price_of(&executor_record(p->executor)->parked,
					     known->weight_bytes, known->load_us);
	ret->prices[POWER_GONE] = price_of(&executor_record(p->executor)->gone,
					   known->resident_bytes, known->load_us);
}
