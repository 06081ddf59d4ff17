/*
 * Whose turn it is: users by what they have had (fair.h), inside one the class
 * interactive before batch, then the oldest.
 */
#include <math.h>
#include <string.h>

#include "client/wire/ownership.h"
#include "daemon/base/clock.h"
#include "daemon/sched/queue.h"

/*
 * One slot is kept for a user that comes, where there are enough of them: it
 * need not wait for the end of a long answer, nor cost one its place.
 */
#define RESERVE_FROM_SLOTS 8

/*
 * A turn loses its place to one of another user in two cases.
 *
 * Its user has more slots than its share, and the other one fewer than its own:
 * then as long as computing such turns again takes no more than a part in
 * SHARE_PRICES of all time.
 *
 * The other user has nothing that runs, and this one is ahead of it by
 * TAKE_LEAD_US and TAKE_PRICES times what computing the turn again takes: so of
 * all time at most a third goes to computing things again. What takes half of
 * FAIR_OWED_US to be computed again loses its place to nobody.
 */
#define SHARE_PRICES 20
#define TAKE_LEAD_US US_PER_S
#define TAKE_PRICES 2

/* A step of prompts alone takes at most so long while several users have work. */
#define STEP_US (US_PER_S * 4 / 10)

/* Less is noise, and no step is worth to be computed for it alone. */
#define LEAD_LEAST_US 1000.0

bool choose_before(const struct turn *a, const struct turn *b)
{
	if (a->user != b->user)
		return fair_before(a->user, b->user);
	return !a->rec->batch && b->rec->batch;
}

static bool is_queued(const struct turn *t)
{
	return t->rec->slot == TURN_NO_SLOT;
}

static struct fair_row as_row(const struct flight_row *row)
{
	return (struct fair_row){
		.user = row->user,
		.decodes = row->kind == ROW_CONT,
		.n_tokens = row->flags & ROW_KNOWN
				    ? 0
				    : row->n_tokens, /* what was found costs nothing */
		.at = row->at,
	};
}

static uint32_t as_rows(const struct flight *f, struct fair_row *rows)
{
	const uint32_t n = f->is_move ? 0 : f->n_rows; /* moves are nobody's */

	for (uint32_t i = 0; i < n; i++)
		rows[i] = as_row(&f->rows[i]);
	return n;
}

static void expect_flights(struct sched *s)
{
	struct fair_row rows[STEP_ROWS_MAX];

	fair_expect_nothing(&s->fair);
	for (uint32_t i = 0; i < s->n_flights; i++)
		fair_expect(&s->pace, rows, as_rows(&s->flights[i], rows));
}

static uint32_t reserve(const struct sched *s)
{
	return s->n_slots >= RESERVE_FROM_SLOTS ? 1 : 0;
}

/* Slots by weight, of all users with turns that are not paused; everybody has one. */
static uint32_t share_of_slots(const struct sched *s, const struct fair_user *u)
{
	const uint64_t n_slots = s->n_slots - reserve(s);
	uint64_t weights = 0;

	for (uint32_t i = 0; i < s->fair.n_users; i++)
		weights += s->fair.users[i].competes ? s->fair.users[i].weight : 0;
	return MAX((uint32_t)(weights > 0 ? n_slots * u->weight / weights : 0), 1u);
}

static void share_slots(struct sched *s)
{
	for (uint32_t i = 0; i < s->fair.n_users; i++) {
		struct fair_user *u = &s->fair.users[i];

		u->waits = false;
		if (u->competes)
			u->n_slots = share_of_slots(s, u);
	}
}

void choose_look(struct sched *s)
{
	expect_flights(s);
	fair_look(&s->fair);
	for (struct turn *t = s->first; t; t = t->next) {
		if (!t->paused)
			fair_competes(t->user);
	}
	fair_looked(&s->fair);
	share_slots(s);
}

void choose_charge(struct sched *s, const struct flight *f, uint32_t device_us)
{
	struct fair_row rows[STEP_ROWS_MAX];

	fair_charge(&s->fair, &s->pace, rows, as_rows(f, rows), device_us);
}

static void count_places(struct sched *s)
{
	for (struct turn *t = s->first; t; t = t->next) {
		t->user->n_running = t->user->n_batch = t->user->n_pages = 0;
		t->user->is_exact = false;
	}
	for (struct turn *t = s->first; t; t = t->next) {
		if (is_queued(t))
			continue;
		t->user->n_running++;
		t->user->n_batch += t->rec->batch;
		t->user->n_pages += t->rec->n_pages;
	}
}

/* Whether it was not seen before. */
static bool see(struct sched *s, kv_page page)
{
	const uint64_t bit = 1ull << page % 64;
	const bool is_new = !(s->page_seen[page / 64] & bit);

	s->page_seen[page / 64] |= bit;
	return is_new;
}

/* Counts a page that several of a user's turns share once, and one that all users share not at all. */
static void count_exactly(struct sched *s, struct fair_user *u)
{
	const size_t n_words = (kvpool_pages(s->kv) + 63) / 64;

	if (u->is_exact)
		return;
	memset(s->page_seen, 0, n_words * sizeof(*s->page_seen));
	u->n_pages = 0;
	for (struct turn *t = s->first; t; t = t->next) {
		const kv_page *table = turn_page_table(s->turns, t->rec);

		for (uint32_t i = 0; t->user == u && i < t->rec->n_pages; i++)
			u->n_pages += kvpool_owner(s->kv, table[i]) != CHAIN_SHARED_UID &&
				      see(s, table[i]);
	}
	u->is_exact = true;
}

static bool may_take_own(const struct turn *t)
{
	return !t->rec->batch && t->user->n_batch > 0;
}

/* Whether the last slot is kept for a user that has none. */
static bool is_reserved(const struct sched *s)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < s->n_slots; i++)
		n += !s->slots[i];
	return reserve(s) > 0 && n <= reserve(s);
}

bool choose_may_take_slot(const struct sched *s, const struct turn *t)
{
	return t->user->n_running == 0 || !is_reserved(s);
}

/* A lone turn may have what it needs: more than it may have was refused when it came. */
static bool exceeds(const struct turn *t, uint64_t n_pages, uint32_t max_pages)
{
	const uint32_t n_others = t->user->n_running - !is_queued(t);

	if (n_others == 0 || t->user->n_pages + n_pages <= max_pages)
		return false;
	count_exactly(t->sched, t->user);
	return t->user->n_pages + n_pages > max_pages;
}

bool choose_exceeds(const struct turn *t, uint32_t n_pages)
{
	count_places(t->sched);
	return exceeds(t, n_pages, sched_shares(t->sched).max_pages);
}

/* Of two that wait for a slot: the one whose user has its share of them comes later. */
static bool waits_before(const struct turn *a, const struct turn *b)
{
	const bool a_has = a->user->n_running >= a->user->n_slots;
	const bool b_has = b->user->n_running >= b->user->n_slots;

	return a_has != b_has ? b_has : choose_before(a, b);
}

struct turn *choose_queued(struct sched *s, bool no_suspect)
{
	struct turn *best = NULL;

	count_places(s);
	for (struct turn *t = s->first; t; t = t->next) {
		if (!is_queued(t) || t->paused || t->waits || t->user->waits ||
		    (no_suspect && t->rec->n_faults > 0))
			continue;
		if (!best || waits_before(t, best))
			best = t;
	}
	return best;
}

/*
 * What it takes to compute again what a turn loses with its place: what is in
 * no sealed page. The others are found again, unless somebody needs them too.
 */
static double replay_us(const struct turn *t)
{
	const struct pace *p = &t->sched->pace;
	const double token_us = p->token_us > 0 ? p->token_us : p->whole_us;
	const uint32_t n_sealed = t->chain.n_pages * kvpool_page_tokens(t->sched->kv);
	const double n = t->n_fed > n_sealed ? t->n_fed - n_sealed : 0;

	if (token_us <= 0)
		return INFINITY; /* not known */
	return n * (token_us + (n_sealed + n / 2) * p->context_us / PACE_CONTEXT);
}

/* Whether @a is a better loser than @b: batch before interactive, then the cheapest. */
static bool loses_before(const struct turn *a, const struct turn *b)
{
	if (a->rec->batch != b->rec->batch)
		return a->rec->batch;
	return replay_us(a) < replay_us(b);
}

/* Whether @i gives its place to @t of another user; see above. */
static bool gives_way(const struct sched *s, const struct turn *i, const struct turn *t,
		      double paid_us)
{
	const struct fair_user *from = i->user, *to = t->user;
	const double price_us = replay_us(i);

	if (from->n_running > from->n_slots && to->n_running < to->n_slots &&
	    (s->paid_us + price_us) * SHARE_PRICES <= s->fair.measured_us)
		return true;
	return to->n_running == 0 &&
	       fair_lead_us(from, to) > TAKE_LEAD_US + TAKE_PRICES * (paid_us + price_us);
}

struct turn *choose_loser(struct sched *s, const struct turn *t, double *paid_us)
{
	struct turn *best = NULL;

	count_places(s);
	for (struct turn *i = s->first; i; i = i->next) {
		if (is_queued(i))
			continue;
		if (i->user == t->user ? !may_take_own(t) || !i->rec->batch
				       : !gives_way(s, i, t, *paid_us))
			continue;
		if (!best || loses_before(i, best))
			best = i;
	}
	if (best && best->user != t->user) {
		*paid_us += replay_us(best);
		s->paid_us += replay_us(best);
	}
	return best;
}

struct turn *choose_page_loser(struct sched *s, const struct turn *t, uint32_t n_pages)
{
	const struct kv_shares shares = sched_shares(s);
	struct turn *best = NULL;
	double most = -1;
	bool own;

	count_places(s);
	own = exceeds(t, n_pages, shares.max_pages);
	for (struct turn *i = s->first; i; i = i->next)
		count_exactly(s, i->user);
	t->user->n_pages += n_pages;
	/* from the youngest on, so that of a user's turns the youngest is met first */
	for (struct turn *i = s->last; i; i = i->prev) {
		const double held = (double)i->user->n_pages / i->user->weight;

		if (is_queued(i) || (own && i->user != t->user))
			continue;
		if (i->paused)
			return i; /* its reader is behind anyway */
		if (i->user != t->user && i->user->n_pages <= shares.min_pages)
			continue;
		if (held > most) {
			best = i;
			most = held;
		}
	}
	return best;
}

void choose_begin(struct sched *s)
{
	expect_flights(s);
	for (struct turn *t = s->first; t; t = t->next)
		t->user->n_decoding = 0;
	s->least = NULL;
	s->contended = false;
}

void choose_offer(struct turn *t, bool decodes)
{
	struct sched *s = t->sched;

	t->user->n_decoding += decodes;
	s->contended |= s->least && t->user != s->least;
	if (!s->least || fair_before(t->user, s->least))
		s->least = t->user;
}

/*
 * Who is ahead of the least one sits this step out, so that the other comes on.
 * Not before it is ahead by a lone row's step, nor by half a step of its own
 * rows: users that have had about the same decode together, which is cheaper
 * than by turns, and come together again when they are out of step.
 */
void choose_offered(struct sched *s)
{
	const double lone_us = pace_decode_us(&s->pace, 1);

	for (struct turn *t = s->first; t; t = t->next) {
		const double own_us = pace_decode_us(&s->pace, t->user->n_decoding) / 2;
		const double most_us = MAX(MAX(lone_us, own_us), LEAD_LEAST_US);

		t->user->sits_out = s->least && lone_us > 0 &&
				    fair_lead_us(t->user, s->least) > most_us;
	}
}

bool choose_sits_out(const struct turn *t)
{
	return t->user->sits_out;
}

/* What nobody who comes meanwhile waits long for; 0: prices are not known. */
static uint32_t gap_tokens(const struct sched *s)
{
	const double gap_us = (double)s->settings->token_gap_ms * US_PER_MS;

	return s->pace.whole_us > 0 ? (uint32_t)MIN(gap_us / s->pace.whole_us, 1e6) : 0;
}

uint32_t choose_step_tokens(const struct sched *s)
{
	const double whole_us = s->pace.whole_us;

	if (sched_is_tidying(s))
		return MAX(kvpool_page_tokens(s->kv), gap_tokens(s));
	if (!s->contended || whole_us <= 0)
		return UINT32_MAX;
	return (uint32_t)MAX(STEP_US / whole_us, (double)PACE_TOKENS_LEAST);
}

void choose_fed(struct turn *t, uint32_t at, uint32_t n_tokens)
{
	const struct fair_row row = { .user = t->user, .n_tokens = n_tokens, .at = at };

	fair_expect(&t->sched->pace, &row, 1);
}
