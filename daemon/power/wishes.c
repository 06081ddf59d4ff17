/* Who wants what of the ladder, and what was promised to whom. */
#include "daemon/power/power-parts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/wire/ownership.h"
#include "daemon/base/clock.h"
#include "daemon/base/log.h"

bool power_is_on_device(const struct power *p)
{
	const struct control_ready *known = p->executor ? executor_known(p->executor) : NULL;

	return known && !known->in_arena;
}

static uint64_t leased_pages_bytes(const struct power *p)
{
	const struct power_lease *l;
	uint64_t bytes = 0;

	TAILQ_FOREACH(l, &p->leases, link)
		bytes += l->pages_bytes;
	return bytes;
}

uint64_t power_pool_left(const struct power *p)
{
	const struct control_ready *known = executor_known(p->executor);
	const uint64_t leased = leased_pages_bytes(p);

	if (power_state(p) != EXECUTOR_READY ||
	    known->pool.most_bytes < known->pool.least_bytes + leased)
		return 0;
	/* where the device had not memory for all of it, that is gone already */
	return MIN(known->pool.most_bytes - known->pool.least_bytes - leased,
		   known->pool.bytes - MIN(known->pool.bytes, known->pool.least_bytes));
}

/* Tells the executor what the leases leave of it; does nothing if it knows. */
static void settle_pool(const struct power *p)
{
	uint64_t leased, most;

	if (!power_is_on_device(p))
		return;
	leased = leased_pages_bytes(p);
	most = executor_known(p->executor)->pool.most_bytes;
	/* leases may be of an earlier, larger one: it keeps what it cannot do without */
	executor_set_pool(p->executor, leased ? MAX(most - MIN(most, leased), 1) : 0);
}

/* Whole groups of it, for @w; returns the bytes, which are free when the executor has answered. */
static uint64_t lease_pool(const struct power *p, const struct power_wish *w, uint64_t bytes)
{
	const uint64_t group = MAX(executor_known(p->executor)->pool.group_bytes, 1);

	bytes = MIN((bytes + group - 1) / group * group, power_pool_left(p) / group * group);
	w->lease->pages_bytes += bytes;
	settle_pool(p);
	return bytes;
}

/* The executor's own memory: on a device that of the KV cache, too. */
static uint64_t executor_bytes(const struct power *p)
{
	const struct control_ready *known = p->executor ? executor_known(p->executor) : NULL;
	const struct execrecord *record;

	if (!known || power_is_nothing(p) || power_state(p) == EXECUTOR_GONE)
		return 0;
	record = executor_record(p->executor);
	if (power_state(p) == EXECUTOR_PARKED)
		return known->resident_bytes -
		       MIN(known->resident_bytes, record->parked.freed_bytes);
	return known->resident_bytes;
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
	const struct power *p = l->power;

	lease_forget(l->process);
	drop_lease(l);
	settle_pool(p);
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
	power_later(p);
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

void power_drop_leases(struct power *p)
{
	while (!TAILQ_EMPTY(&p->leases))
		drop_lease(TAILQ_FIRST(&p->leases));
}

/* Those that an earlier broker granted hold. */
void power_adopt_leases(struct power *p)
{
	while (p->n_leases < POWER_LEASES_MAX) {
		struct power_lease *l = calloc(1, sizeof(*l));
		uint32_t rung = 0;

		if (!l || lease_take(p->loop, on_process_end, l, &l->process, &l->pid, &rung,
				     &l->bytes, &l->pages_bytes) < 0) {
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
void power_end_wishes(struct power *p, const char *why)
{
	struct err err = { 0 };
	struct power_wish *w;

	err_set(&err, -ECANCELED, "%s", why);
	while ((w = TAILQ_FIRST(&p->wishes)))
		end_wish(w, -ECANCELED, &err);
}

static void forget_wishes(struct power *p)
{
	power_end_wishes(p, "it was woken up");
	while (!TAILQ_EMPTY(&p->leases))
		end_lease(TAILQ_FIRST(&p->leases));
	p->pressed = POWER_QUIET;
}

void power_refuse(struct power *p, int r, const struct err *err)
{
	struct power_wish *w;

	do {
		TAILQ_FOREACH(w, &p->wishes, link) {
			if (w->kind == POWER_WISH_WAKE)
				break;
		}
		if (w)
			end_wish(w, r, err); /* may withdraw others */
	} while (w);
}

void power_halt(struct power *p)
{
	if (!p->options.halt)
		return;
	p->sealed = true; /* until there is a reason to be up */
	p->options.halt(p->options.userdata);
	power_later(p);
}

int power_ask(struct power *p, struct power_wish *w, struct err *err)
{
	int r;

	if (!p->executor && w->kind != POWER_WISH_WAKE)
		return err_set(err, -EAGAIN, "there is no executor yet: the model is being opened");
	if (w->kind == POWER_WISH_WAKE)
		forget_wishes(p);
	if (w->kind == POWER_WISH_SLEEP && w->now)
		power_halt(p);
	if (w->kind == POWER_WISH_YIELD) {
		r = new_lease(p, w, err);
		if (r < 0)
			return r;
		w->before_bytes = executor_bytes(p);
	}
	w->power = p;
	TAILQ_INSERT_TAIL(&p->wishes, w, link);
	p->up_wanted &= w->kind == POWER_WISH_WAKE;
	power_later(p);
	return 0;
}

void power_withdraw(struct power_wish *w)
{
	if (!w->power)
		return;
	power_later(w->power);
	TAILQ_REMOVE(&w->power->wishes, w, link);
	w->power = NULL;
	if (w->lease)
		end_lease(w->lease);
}

/* Whether all that it wants is free, or all there is; else goes for the cheapest that is left. */
static bool is_yielded(struct power *p, struct power_wish *w, enum power_rung at, bool moving)
{
	const uint64_t now_bytes = executor_bytes(p);
	struct prices_offer offer;
	struct prices_set give;
	uint64_t pages = 0;

	w->freed_bytes = w->before_bytes - MIN(w->before_bytes, now_bytes);
	if (!power_is_on_device(p)) /* whose pages are the executor's own */
		w->freed_bytes += w->pages_bytes;
	if (p->executor && executor_is_resizing(p->executor))
		return false;
	if (w->freed_bytes >= w->bytes)
		return true;
	if (moving || at < w->want)
		return false;
	power_offer(p, &offer);
	give = prices_choose(&offer, w->bytes - w->freed_bytes);
	w->want = give.rung;
	if (give.pages_bytes > 0 && power_is_on_device(p))
		pages = lease_pool(p, w, give.pages_bytes);
	else if (give.pages_bytes > 0 && p->options.yield_pages)
		pages = p->options.yield_pages(give.pages_bytes, p->options.userdata);
	w->pages_bytes += pages;
	w->freed_bytes += pages;
	if (p->executor && executor_is_resizing(p->executor))
		return false; /* it is asked again when they are free */
	if (w->freed_bytes < w->bytes && give.rung == at && at < POWER_GONE)
		w->want = at + 1; /* pages were fewer than they seemed */
	if (w->freed_bytes >= w->bytes || (at == POWER_GONE && pages == 0))
		return true;
	if (pages > 0)
		power_later(p); /* whether there are more: nothing else may happen now */
	return false;
}

static void hold(struct power_wish *w)
{
	w->holds = true;
	w->lease->rung = w->want;
	w->lease->pages_bytes = w->pages_bytes;
	if (w->pid)
		lease_keep(w->lease->process, w->want, w->bytes, w->pages_bytes);
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
		if (power_is_nothing(p))
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
void power_serve_wishes(struct power *p)
{
	struct power_wish *w;
	enum power_rung at;
	bool moving, again;

	settle_pool(p);
	do {
		again = false;
		at = power_rung_of(p, &moving);
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

bool power_is_up_wanted(const struct power *p)
{
	const struct power_wish *w;

	TAILQ_FOREACH(w, &p->wishes, link) {
		if (w->kind == POWER_WISH_WAKE)
			return true;
	}
	return p->up_wanted;
}

uint64_t power_keep_us(const struct power *p)
{
	if (p->leases_kept || !p->idle_since_us || !p->options.yield_pages ||
	    power_is_on_device(p) || leased_pages_bytes(p) == 0)
		return 0;
	return p->idle_since_us + POWER_GRACE_US;
}

void power_keep_leases(struct power *p)
{
	const uint64_t at_us = power_keep_us(p);

	if (at_us == 0 || clock_us() < at_us)
		return;
	p->leases_kept = true;
	p->options.yield_pages(leased_pages_bytes(p), p->options.userdata);
}
