/* Who gets a slot and pages, and who has to give them back. */
#include <stdatomic.h>

#include "daemon/sched/queue.h"

static bool is_queued(const struct turn *t)
{
	return t->rec->slot == TURN_NO_SLOT;
}

static bool is_suspect(const struct turn *t)
{
	return t->rec->n_faults > 0;
}

/* A paused one does not count: it kills nobody, and others need not wait for its reader. */
static bool suspect_runs(const struct sched *s)
{
	for (const struct turn *t = s->first; t; t = t->next) {
		if (is_suspect(t) && !is_queued(t) && !t->paused)
			return true;
	}
	return false;
}

static uint32_t free_slot(const struct sched *s)
{
	for (uint32_t i = 0; i < s->n_slots; i++) {
		if (!s->slots[i] && s->slot_busy[i] <= s->done)
			return i;
	}
	return TURN_NO_SLOT;
}

/* What a stalled reader holds is given to those who read: the youngest such. */
static struct turn *paused_one(const struct sched *s)
{
	struct turn *t = s->last;

	while (t && (is_queued(t) || !t->paused))
		t = t->prev;
	return t;
}

/* A slot of nobody's whose last step is still in flight. */
static bool slot_comes_free(const struct sched *s)
{
	for (uint32_t i = 0; i < s->n_slots; i++) {
		if (!s->slots[i] && s->slot_busy[i] > s->done)
			return true;
	}
	return false;
}

static uint64_t wanted_pages(const struct sched *s, const struct turn *t)
{
	return sched_pages(s, (uint64_t)sched_to_feed(t) + 1);
}

/* Whether the pages not yet promised to running turns hold what is known of @t. */
static bool has_pages(const struct sched *s, const struct turn *t)
{
	uint64_t wanted = wanted_pages(s, t);

	for (const struct turn *i = s->first; i; i = i->next) {
		const uint64_t n = is_queued(i) ? 0 : wanted_pages(s, i);

		wanted += n > i->rec->n_pages ? n - i->rec->n_pages : 0;
	}
	/* a lone turn at the context's end wants one page more than it will use */
	return MIN(wanted, (uint64_t)kvpool_pages(s->kv)) <=
	       (uint64_t)kvpool_free_pages(s->kv) + kvpool_dropped_pages(s->kv);
}

static void place(struct turn *t, uint32_t slot)
{
	struct sched *s = t->sched;

	t->n_fed = t->n_pages_sent = t->n_in_flight = 0;
	t->sampling = false;
	t->rec->slot = (uint16_t)slot;
	t->rec->ring_ino = s->ring_ino;
	s->slots[slot] = t;
	atomic_store_explicit(&t->rec->state, TURN_RUNNING, memory_order_release);
	if (t->on_state)
		t->on_state(t);
}

/* Makes room for @t by putting another back. False: it waits. */
static bool make_room(struct sched *s, const struct turn *t, uint32_t slot, double *paid_us)
{
	struct turn *loser = paused_one(s);

	if (!loser && slot == TURN_NO_SLOT && slot_comes_free(s) && choose_may_take_slot(s, t))
		return false;
	if (!loser)
		loser = choose_loser(s, t, paid_us);
	if (loser)
		sched_put_back(loser);
	return loser != NULL;
}

void sched_admit(struct sched *s)
{
	double paid_us = 0;
	struct turn *t;

	if (!executor_ring(s->executor) || s->draining || executor_is_dying(s->executor))
		return;
	choose_look(s);
	while ((t = choose_queued(s, suspect_runs(s)))) {
		const uint32_t slot = choose_may_take_slot(s, t) ? free_slot(s) : TURN_NO_SLOT;
		const enum turn_finish finish = sched_verdict(t);

		if (finish != FINISH_NONE)
			sched_finish(t, finish);
		else if (slot != TURN_NO_SLOT && has_pages(s, t))
			place(t, slot);
		else if (!make_room(s, t, slot, &paid_us)) {
			if (choose_may_take_slot(s, t))
				return;
			t->user->waits = true; /* others may have the slot that is kept */
		}
	}
}

bool sched_grow(struct turn *t, uint64_t n_tokens)
{
	struct sched *s = t->sched;
	struct turn_record *rec = t->rec;
	const uint32_t wanted = sched_pages(s, n_tokens);
	uint32_t n;

	if (wanted <= rec->n_pages)
		return true;
	n = wanted - rec->n_pages;
	while (kvpool_free_pages(s->kv) < n || choose_exceeds(t, n)) {
		struct turn *loser;

		if (!choose_exceeds(t, n) &&
		    kvpool_free_pages(s->kv) + kvpool_dropped_pages(s->kv) >= n)
			return false; /* enough are on their way */
		loser = choose_page_loser(s, t, n);
		sched_put_back(loser);
		if (loser == t)
			return false;
	}
	if (kvpool_take(s->kv, rec->uid, n, turn_page_table(s->turns, rec) + rec->n_pages) < 0)
		return false;
	rec->n_pages = wanted; /* after the ids: a later life believes only these */
	return true;
}
