/* What is wanted, where it is, and the next move. */
#include "daemon/power/power-parts.h"

#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include "client/wire/ownership.h"
#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/power/pressure.h"
#include "daemon/power/suspend.h"

#define TIMER_LEAST_US 1000

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

enum executor_state power_state(const struct power *p)
{
	return p->executor ? executor_state(p->executor) : EXECUTOR_OFF;
}

/* Nothing is there that could sleep or wake. */
bool power_is_nothing(const struct power *p)
{
	return power_state(p) == EXECUTOR_OFF || power_state(p) == EXECUTOR_REFUSED;
}

/* The rung it is on or on the way down to; on the way up, and at first, it is quiet already. */
enum power_rung power_rung_of(const struct power *p, bool *ret_moving)
{
	if (!p->executor || p->sealing) {
		*ret_moving = true;
		return p->executor ? p->sealing_at : POWER_QUIET;
	}
	switch (power_state(p)) {
	case EXECUTOR_PARKING:
	case EXECUTOR_PARKED:
		*ret_moving = power_state(p) == EXECUTOR_PARKING;
		return POWER_PARKED;
	case EXECUTOR_OFF:
	case EXECUTOR_REFUSED:
	case EXECUTOR_LEAVING:
	case EXECUTOR_GONE:
		*ret_moving = power_state(p) == EXECUTOR_LEAVING;
		return POWER_GONE;
	default:
		*ret_moving = power_state(p) != EXECUTOR_READY;
		return POWER_QUIET;
	}
}

static bool has_work(const struct power *p)
{
	return p->options.has_work(p->options.userdata);
}

void power_later(struct power *p)
{
	sd_event_source_set_enabled(p->later, SD_EVENT_ONESHOT);
}

static void note_idleness(struct power *p, bool work)
{
	switch (work ? EXECUTOR_LOADING : power_state(p)) {
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

/* Whether nothing is lost if the executor goes to @rung. Else there is more to wait for. */
static bool is_sealed(struct power *p, enum power_rung at, enum power_rung rung)
{
	const uint64_t now = clock_us();

	if (!p->options.seal)
		return true;
	if (!p->sealing) {
		p->seal_until_us = now + POWER_SEAL_US;
		p->sealing_at = at;
	}
	if (p->safe_until_us)
		p->seal_until_us = MIN(p->seal_until_us, p->safe_until_us);
	p->sealing = p->sealed = true;
	if (now < p->seal_until_us &&
	    !p->options.seal(rung, p->seal_until_us - now, p->options.userdata))
		return false;
	p->sealing = false;
	return true;
}

static void stop_sealing(struct power *p)
{
	if (p->sealing)
		power_later(p); /* until now it was on the move, for all that asked */
	p->sealing = false;
}

/* There is nothing to be sealed for: the executor stays up, or comes. */
static void unseal(struct power *p)
{
	stop_sealing(p);
	if (p->sealed && p->options.unseal)
		p->options.unseal(p->options.userdata);
	p->sealed = false;
}

static enum power_rung real_rung(const struct power *p)
{
	bool moving;

	return p->sealing ? p->sealing_at : power_rung_of(p, &moving);
}

static void go_down(struct power *p, enum power_rung rung)
{
	const enum power_rung at = real_rung(p);

	if (!p->executor)
		return;
	if (rung <= at) {
		if (at == POWER_QUIET)
			unseal(p);
		else if (p->sealing)
			stop_sealing(p);
		return;
	}
	if (!is_sealed(p, at, rung))
		return;
	if (rung == POWER_PARKED)
		(void)executor_park(
			p->executor); /* -EAGAIN: it loads, and is asked again when it has */
	else
		(void)executor_leave(p->executor); /* a load, too: nobody waits for it */
}

/* Safe are those that cannot be hurt: nothing computes, and what was computed is in the arena. */
static void tell_safe(struct power *p)
{
	void (*const on_safe)(void *userdata) = p->on_safe;

	if (!on_safe || (!power_is_nothing(p) && power_state(p) != EXECUTOR_GONE &&
			 clock_us() < p->safe_until_us))
		return;
	p->on_safe = NULL;
	p->safe_until_us = 0;
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
	const enum power_rung at = power_rung_of(p, &moving);
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

/* 0: never */
static uint64_t earlier(uint64_t a_us, uint64_t b_us)
{
	return a_us == 0 ? b_us : b_us == 0 ? a_us : MIN(a_us, b_us);
}

static void tell_arrival(struct power *p)
{
	bool moving;
	const enum power_rung at = power_rung_of(p, &moving);
	struct power_view view;

	if (moving || at == p->told || power_is_nothing(p))
		return;
	p->told = at;
	if (at == POWER_QUIET)
		return; /* that the model is served says who serves it */
	power_look_at(p, &view);
	log_info("asleep: %s, %llu MiB given back", power_rung_name(at),
		 (unsigned long long)view.prices[at].freed_bytes >> 20);
}

static void go_up(struct power *p)
{
	unseal(p);
	executor_wake(p->executor);
}

static void settle(struct power *p)
{
	const bool work = has_work(p);
	enum power_rung next;
	uint64_t next_us;

	tell_arrival(p);
	note_idleness(p, work);
	power_serve_wishes(p);
	if (power_state(p) == EXECUTOR_READY || power_is_nothing(p))
		p->up_wanted = false;
	power_keep_leases(p);
	if (p->suspended)
		go_down(p, POWER_GONE);
	else if (p->executor && (work || power_is_up_wanted(p)))
		go_up(p);
	else
		go_down(p, wanted_rung(p));
	tell_safe(p);
	next_us = earlier(find_next(p, &next), power_keep_us(p));
	next_us = earlier(next_us, p->sealing ? p->seal_until_us : 0);
	arm_timer(p, earlier(next_us, p->safe_until_us));
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
	if (power_state(p) == EXECUTOR_READY && p->idle_since_us == 0 && p->timer_at_us == 0 &&
	    TAILQ_EMPTY(&p->wishes) && !p->suspended && !p->sealed && has_work(p))
		return;
	power_later(p);
}

void power_offer(const struct power *p, struct prices_offer *ret)
{
	struct power_view view;
	uint64_t return_us = 0;

	power_look_at(p, &view);
	*ret = (struct prices_offer){ .at = view.rung };
	memcpy(ret->rungs, view.prices, sizeof(ret->rungs));
	if (power_is_on_device(p)) {
		ret->pages_bytes = power_pool_left(p);
		ret->us_per_byte = 1 / POWER_UP_BYTES_PER_US;
		return;
	}
	if (p->options.yield_pages)
		ret->pages_bytes = UINT64_MAX;
	if (p->options.price_pages)
		p->options.price_pages(&ret->pages_bytes, &return_us, p->options.userdata);
	if (ret->pages_bytes > 0)
		ret->us_per_byte = (double)return_us / (double)ret->pages_bytes;
}

void power_pressed(struct power *p)
{
	struct prices_set give = { .pages_bytes = POWER_PRESSURE_BYTES };
	struct prices_offer offer;
	bool moving;
	const enum power_rung at = power_rung_of(p, &moving);
	uint64_t bytes = 0;

	if (moving)
		return; /* the last step shows yet */
	malloc_trim(0);
	power_offer(p, &offer);
	/* what sleeps on a device is not what the machine lacks */
	if (!has_work(p) && !power_is_on_device(p))
		give = prices_step(&offer, POWER_PRESSURE_BYTES);
	if (give.rung > at) {
		p->pressed = give.rung;
		log_info("the machine lacks memory: from %s to %s", power_rung_name(at),
			 power_rung_name(p->pressed));
		power_later(p);
		return;
	}
	if (p->options.yield_pages && give.pages_bytes > 0)
		bytes = p->options.yield_pages(give.pages_bytes, p->options.userdata);
	if (bytes > 0)
		log_info("the machine lacks memory: %llu MiB of the KV cache given up",
			 (unsigned long long)bytes >> 20);
}

void power_suspend(struct power *p, bool asleep, uint64_t delay_us, void (*on_safe)(void *userdata),
		   void *userdata)
{
	bool moving;

	if (asleep == p->suspended)
		return;
	p->suspended = asleep;
	p->on_safe = on_safe;
	p->on_safe_userdata = userdata;
	p->safe_until_us = asleep ? clock_us() + delay_us / 4 * 3 : 0;
	if (asleep)
		p->was_up = p->executor && power_rung_of(p, &moving) == POWER_QUIET;
	else
		p->up_wanted = p->was_up;
	log_info(asleep ? "the machine is about to be suspended" : "the machine is back");
	power_later(p);
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
	struct power *p = userdata;

	power_suspend(p, asleep, suspend_delay_us(p->suspend), asleep ? on_safe : NULL, p);
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
	power_adopt_leases(p);
	*ret = steal(p);
	return 0;
}

struct power *power_free(struct power *p)
{
	if (!p)
		return NULL;
	power_end_wishes(p, "the daemon is leaving");
	power_drop_leases(p);
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
	unseal(p);
	p->executor = e;
	p->idle_since_us = 0;
	p->pressed = POWER_QUIET;
	p->up_wanted = false;
	if (e)
		power_later(p);
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
	ret->rung = power_rung_of(p, &ret->moving);
	ret->sealing = p->sealing;
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
