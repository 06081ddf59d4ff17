/* Turns, pages and weights, given up and taken back. */
#include "daemon/power/sleeper.h"

#include "daemon/base/log.h"
#include "daemon/kv/kvcache.h"
#include "daemon/sched/sched.h"

void sleeper_leave(struct sleeper *s)
{
	tiers_flush_withdraw(&s->flush);
	s->flushing = s->flushed = false;
}

bool sleeper_has_work(const struct sleeper *s)
{
	if (!s->sched)
		return false;
	/* what moves while it is made safe is no reason not to sleep */
	return sched_work(s->sched) > 0 ||
	       (!sched_is_resting(s->sched) && kvcache_is_moving(s->kv));
}

static bool has_work(void *userdata)
{
	return sleeper_has_work(userdata);
}

static uint64_t yield_pages(uint64_t bytes, void *userdata)
{
	const struct sleeper *s = userdata;

	return s->sched ? kvcache_yield(s->kv, bytes) : 0;
}

/* Computed again, or read at the rate at which weights were when the executor last came back. */
static void price_pages(uint64_t *ret_bytes, uint64_t *ret_return_us, void *userdata)
{
	const struct sleeper *s = userdata;
	struct kvcache_unheld n = { 0 };
	struct power_view view;
	double us;

	*ret_bytes = *ret_return_us = 0;
	if (!s->sched)
		return;
	kvcache_count_unheld(s->kv, &n);
	*ret_bytes = (uint64_t)n.n_pages * s->page_bytes;
	power_look_at(s->power, &view);
	us = (double)(n.n_pages - n.n_empty - n.n_disk) *
	     sched_prompt_us(s->sched, 0, s->page_tokens);
	if (view.prices[POWER_GONE].freed_bytes > 0)
		us += (double)n.n_disk * (double)s->page_bytes *
		      (double)view.prices[POWER_GONE].return_us /
		      (double)view.prices[POWER_GONE].freed_bytes;
	*ret_return_us = (uint64_t)us;
}

static void on_flushed(struct tiers_flush *f)
{
	struct sleeper *s = f->userdata;

	s->flushed = true;
	if (f->n_left > 0)
		log_info("%u pages of the KV cache are not on disk%s", f->n_left,
			 f->late ? ": there was no time for more" : "");
	power_look(s->power);
}

/* Turns give up their places, sealed; then all goes to disk, for not every machine wakes up. */
static bool seal(enum power_rung rung, uint64_t timeout_us, void *userdata)
{
	struct sleeper *s = userdata;

	(void)rung;
	if (!s->sched)
		return true;
	sched_rest(s->sched, false);
	if (!sched_is_at_rest(s->sched))
		return false;
	if (!s->flushing) {
		s->flush = (struct tiers_flush){ .on_flushed = on_flushed, .userdata = s };
		s->flushing = true;
		s->flushed = tiers_flush(s->kv, s->loop, timeout_us, &s->flush) < 0;
	}
	return s->flushed;
}

static void unseal(void *userdata)
{
	struct sleeper *s = userdata;

	sleeper_leave(s);
	if (!s->sched)
		return;
	sched_go_on(s->sched);
	executor_set_halted(s->executor, false);
}

static void halt(void *userdata)
{
	const struct sleeper *s = userdata;

	if (!s->sched)
		return;
	sched_rest(s->sched, true);
	executor_set_halted(s->executor, true);
}

void sleeper_options(struct sleeper *s, struct power_options *ret)
{
	ret->has_work = has_work;
	ret->yield_pages = yield_pages;
	ret->price_pages = price_pages;
	ret->seal = seal;
	ret->unseal = unseal;
	ret->halt = halt;
	ret->userdata = s;
}
