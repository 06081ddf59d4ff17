/* Who gets a slot and pages, and who has to give them back. */
#include <stdatomic.h>

#include "client/wire/ownership.h"
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

/* The last token is computed, for the one that follows it; of a tidy turn none does. */
static uint32_t to_find(const struct turn *t)
{
	return t->rec->tidy ? t->rec->n_ids : t->rec->n_ids - 1;
}

/* What a queued turn would find. A text to be scored is computed from its beginning. */
static void look(const struct sched *s, struct turn *t, struct kvcache_found *ret)
{
	*ret = (struct kvcache_found){ 0 };
	if (t->rec->score)
		return;
	t->root = kvcache_root(s->cache, t->rec->uid, t->rec->label);
	kvcache_look(s->cache, t->root, t->rec->uid, turn_ids(s->turns, t->rec), to_find(t), ret);
}

static uint32_t common_tokens(const struct sched *s, struct turn *a, struct turn *b)
{
	const uint32_t *x = turn_ids(s->turns, a->rec), *y = turn_ids(s->turns, b->rec);
	const uint32_t n = MIN(a->rec->n_ids, b->rec->n_ids - 1);
	uint32_t i = 0;

	while (i < n && x[i] == y[i])
		i++;
	return i;
}

/* Whether pages that @t would compute too are about to be found. */
static bool soon_found(const struct sched *s, struct turn *t, const struct kvcache_found *found)
{
	const uint32_t page_tokens = kvpool_page_tokens(s->kv);

	if (t->rec->score)
		return false;
	/* files of the disk are being looked into: more may be in one */
	if (!kvcache_is_ready(s->cache) && to_find(t) > found->n_tokens)
		return true;
	if (kvcache_is_sealing(s->cache, t->root, t->rec->uid, turn_ids(s->turns, t->rec),
			       to_find(t)))
		return true;
	for (struct turn *r = s->first; r; r = r->next) {
		uint32_t n;

		if (is_queued(r) || r->paused || r->rec->score || !chain_equal(r->root, t->root))
			continue;
		n = common_tokens(s, r, t) / page_tokens * page_tokens;
		if (n > found->n_tokens && r->rec->n_kv < n)
			return true;
	}
	return false;
}

/* How many pages are missing, beside those promised to running turns, for what is known of @t. */
static uint32_t missing_pages(const struct sched *s, const struct turn *t,
			      const struct kvcache_found *found)
{
	const uint64_t had = (uint64_t)kvcache_available(s->cache, t->rec->uid) + found->n_pages -
			     found->n_unheld;
	uint64_t wanted = wanted_pages(s, t);

	for (const struct turn *i = s->first; i; i = i->next) {
		const uint64_t n = is_queued(i) ? 0 : wanted_pages(s, i);

		wanted += n > i->rec->n_pages ? n - i->rec->n_pages : 0;
	}
	/* a lone turn at the context's end wants one page more than it will use */
	wanted = MIN(wanted, (uint64_t)kvpool_pages(s->kv));
	return wanted > had ? (uint32_t)(wanted - had) : 0;
}

static void note_miss(const struct sched *s, const struct turn *t)
{
	struct turn_record *rec = t->rec;

	if (rec->score)
		rec->miss = (struct kvcache_miss){ .cause = KV_MISS_SCORE };
	else
		kvcache_explain(s->cache, rec->uid, rec->label, turn_ids(s->turns, rec), to_find(t),
				t->n_known, &rec->miss);
}

/* Puts what there is of its text into its table. */
static void hold(struct sched *s, struct turn *t)
{
	struct turn_record *rec = t->rec;

	t->held = (struct kvcache_held){ .source = KV_PAGE_NONE };
	if (!rec->score)
		rec->n_pages = kvcache_hold(s->cache, t->root, rec->uid, turn_ids(s->turns, rec),
					    to_find(t), turn_page_table(s->turns, rec), &t->held);
	t->n_known = t->held.n_tokens;
	t->settling = t->n_known > 0;
	if (!t->replaying) {
		rec->n_cached = t->n_known;
		rec->n_cached_disk = t->held.n_disk_tokens;
		note_miss(s, t);
	}
	rec->n_recomputed += t->n_lost > t->n_known ? t->n_lost - t->n_known : 0;
	t->n_lost = 0;
}

static void place(struct turn *t, uint32_t slot)
{
	struct sched *s = t->sched;

	t->n_fed = t->n_pages_sent = t->n_in_flight = 0;
	t->sampling = false;
	hold(s, t);
	t->rec->slot = (uint16_t)slot;
	t->rec->ring_ino = s->ring_ino;
	s->slots[slot] = t;
	atomic_store_explicit(&t->rec->state, TURN_RUNNING, memory_order_release);
	if (t->on_state)
		t->on_state(t);
}

/* Makes room for @t, which lacks @n_pages or a slot, by putting another back. False: it waits. */
static bool make_room(struct sched *s, const struct turn *t, uint32_t slot, uint32_t n_pages,
		      double *paid_us)
{
	struct turn *loser = paused_one(s);

	if (!loser && slot == TURN_NO_SLOT && slot_comes_free(s) && choose_may_take_slot(s, t))
		return false;
	if (!loser)
		loser = choose_loser(s, t, slot == TURN_NO_SLOT ? 0 : n_pages, paid_us);
	if (loser)
		sched_put_back(loser);
	return loser != NULL;
}

bool sched_settle(struct sched *s)
{
	bool any = false;

	for (struct turn *t = s->first; t; t = t->next) {
		int r;

		if (!t->settling)
			continue;
		r = kvcache_settle(s->cache, turn_page_table(s->turns, t->rec), &t->held,
				   &t->chain);
		if (r == 0)
			continue;
		if (r < 0) {
			t->n_lost = MAX(t->n_lost, t->n_known); /* it counted on those */
			sched_put_back(t);
		}
		t->settling = false;
		any |= r < 0;
	}
	return any;
}

/*
 * What others are left is less for a turn that could not be computed at all else,
 * but no less than it takes, @n_pages; and what it takes is on the disk first: see shares.h.
 */
static bool take_what_there_is(struct sched *s, struct turn *t, uint64_t n_pages)
{
	if (t->rec->tidy)
		return false;
	for (const struct turn *i = s->first; i; i = i->next) {
		if (i != t && !is_queued(i))
			return false;
	}
	if (kvcache_is_moving(s->cache))
		return false;
	/* asked for once: a disk that takes nothing is not waited for again and again */
	if (!t->saved_others) {
		t->saved_others = true;
		if (kvcache_save(s->cache))
			return false;
	}
	kvcache_set_room(s->cache, (uint32_t)MIN(n_pages, (uint64_t)kvpool_pages(s->kv)));
	return true;
}

/* A tidy one is alone: if nothing is under way, there will be no room for it later either. */
static bool is_stuck(const struct sched *s, const struct turn *t)
{
	return t->rec->tidy && s->n_flights == 0 && !kvcache_is_moving(s->cache);
}

void sched_admit(struct sched *s)
{
	double paid_us = 0;
	struct turn *t;

	if (!executor_ring(s->executor) || s->draining || s->resting ||
	    executor_is_dying(s->executor))
		return;
	for (t = s->first; t; t = t->next)
		t->waits = false;
	kvcache_set_least(s->cache, s->settings->min_user_cache);
	choose_look(s);
	while ((t = choose_queued(s, suspect_runs(s)))) {
		const uint32_t slot = choose_may_take_slot(s, t) ? free_slot(s) : TURN_NO_SLOT;
		const enum turn_finish finish = sched_verdict(t);
		struct kvcache_found found;
		uint32_t missing;

		if (finish != FINISH_NONE) {
			sched_finish(t, finish);
			continue;
		}
		look(s, t, &found);
		t->waits = soon_found(s, t, &found) ||
			   choose_exceeds(t, (uint32_t)wanted_pages(s, t) -
						     (found.n_pages - found.n_unheld));
		if (t->waits)
			continue;
		missing = missing_pages(s, t, &found);
		if (slot != TURN_NO_SLOT && missing > 0 &&
		    take_what_there_is(s, t, wanted_pages(s, t)))
			missing = missing_pages(s, t, &found);
		if (slot != TURN_NO_SLOT && missing == 0)
			place(t, slot);
		else if (is_stuck(s, t))
			sched_finish(t, FINISH_FAULT);
		else if (!make_room(s, t, slot, missing, &paid_us)) {
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
	while (kvcache_takeable(s->cache, rec->uid) < n || choose_exceeds(t, n)) {
		struct turn *loser;

		if (!choose_exceeds(t, n) && take_what_there_is(s, t, wanted) &&
		    kvcache_takeable(s->cache, rec->uid) >= n)
			break;

		if (!choose_exceeds(t, n) &&
		    (kvcache_available(s->cache, rec->uid) >= n || kvcache_is_moving(s->cache)))
			return false; /* enough are on their way */
		loser = choose_page_loser(s, t, n);
		sched_put_back(loser);
		if (loser == t)
			return false;
	}
	if (kvcache_take(s->cache, rec->uid, n, turn_page_table(s->turns, rec) + rec->n_pages) < 0)
		return false;
	rec->n_pages = wanted; /* after the ids: a later life believes only these */
	return true;
}
