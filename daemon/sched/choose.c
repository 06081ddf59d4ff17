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
 * A turn loses its place to one of another user in two cases.
 *
 * Its user has more slots than its share, and the other one fewer than its own;
 * or more pages than its share, and the other one has nothing that runs and
 * comes first: then as long as computing such turns again takes no more than a
 * part in SHARE_PRICES of all time, and SHARE_CREDIT_US.
 *
 * The other user has nothing that runs, and this one is ahead of it by
 * TAKE_LEAD_US and TAKE_PRICES times what computing the turn again takes: so of
 * all time at most a third goes to computing things again. What takes half of
 * FAIR_OWED_US to be computed again loses its place to nobody.
 *
 * So users share time evenly from one moment to the next while the arena holds
 * a turn of each; where it does not, by whole turns, at that price.
 */
#define SHARE_PRICES 10
#define SHARE_CREDIT_US (5 * US_PER_S)
#define TAKE_LEAD_US (US_PER_S / 2)
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

/*
 * Slots that only who has none gets: who comes need not wait for the end of a
 * long answer, nor cost one its place. Where a step has few rows they are many,
 * for those who have one take turns with the rows, token by token.
 */
static uint32_t reserve(const struct sched *s)
{
	return MAX(s->n_slots - s->n_rows, 1u);
}

static uint64_t weights(const struct sched *s)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < s->fair.n_users; i++)
		sum += s->fair.users[i].competes ? s->fair.users[i].weight : 0;
	return sum;
}

/* Slots by weight, of all users with turns that are not paused; everybody has one. */
static uint32_t share_of_slots(const struct sched *s, const struct fair_user *u)
{
	const uint64_t n_slots = s->n_slots - reserve(s), sum = weights(s);

	return MAX((uint32_t)(sum > 0 ? n_slots * u->weight / sum : 0), 1u);
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

/* What it takes to compute @n tokens again, the first at position @at. */
static double tokens_us(const struct sched *s, double at, double n)
{
	const struct pace *p = &s->pace;
	/* in steps as large as they may be: the others teach what a few tokens take */
	const double token_us = p->whole_us > 0 ? p->whole_us : p->token_us;

	if (token_us <= 0)
		return INFINITY; /* not known */
	return n > 0 ? n * (token_us + (at + n / 2) * p->context_us / PACE_CONTEXT) : 0;
}

/*
 * What a turn loses with its place: the steps in flight, and of @n_pages that
 * another one takes, those that are its own. All else was sealed and is found
 * again, but for a text to be scored.
 */
static double replay_us(const struct turn *t, uint32_t n_pages)
{
	const struct turn_record *rec = t->rec;
	const double n_lost = MIN(n_pages, rec->n_pages) * (double)kvpool_page_tokens(t->sched->kv);
	const double from = rec->score ? 0 : MAX(rec->n_kv - n_lost, 0.0);

	return tokens_us(t->sched, from, MAX((double)t->n_fed, rec->n_kv) - from);
}

/* Whether @a is a better loser than @b: batch before interactive, then the cheapest. */
static bool loses_before(const struct turn *a, const struct turn *b, uint32_t n_pages)
{
	if (a->rec->batch != b->rec->batch)
		return a->rec->batch;
	return replay_us(a, n_pages) < replay_us(b, n_pages);
}

/* Whether it has more than its pages by weight, of all users that compete. */
static bool has_more_pages(const struct sched *s, const struct fair_user *u)
{
	return (uint64_t)u->n_pages * weights(s) > (uint64_t)kvpool_pages(s->kv) * u->weight;
}

/* Whether @from has more than its share of what @to waits for. Who gets it is who comes first afterwards. */
static bool is_owed(const struct sched *s, const struct fair_user *from, const struct fair_user *to,
		    bool pages)
{
	if (!pages)
		return from->n_running > from->n_slots && to->n_running < to->n_slots;
	return to->n_running == 0 && fair_before(to, from) && has_more_pages(s, from);
}

/* Whether @i gives its place to @t of another user; see above. */
static bool gives_way(const struct sched *s, const struct turn *i, const struct turn *t,
		      uint32_t n_pages, double paid_us)
{
	const struct fair_user *from = i->user, *to = t->user;
	const double price_us = replay_us(i, n_pages);

	if (is_owed(s, from, to, n_pages > 0) &&
	    (s->paid_us + price_us - SHARE_CREDIT_US) * SHARE_PRICES <= s->fair.measured_us)
		return true;
	return to->n_running == 0 &&
	       fair_lead_us(from, to) > TAKE_LEAD_US + TAKE_PRICES * (paid_us + price_us);
}

struct turn *choose_loser(struct sched *s, const struct turn *t, uint32_t n_pages, double *paid_us)
{
	struct turn *best = NULL;

	count_places(s);
	for (struct turn *i = s->first; i; i = i->next) {
		if (is_queued(i))
			continue;
		if (i->user == t->user ? !may_take_own(t) || !i->rec->batch
				       : !gives_way(s, i, t, n_pages, *paid_us))
			continue;
		if (!best || loses_before(i, best, n_pages))
			best = i;
	}
	if (best && best->user != t->user) {
		*paid_us += replay_us(best, n_pages);
		s->paid_us += replay_us(best, n_pages);
	}
	return best;
}

struct turn *choose_page_loser(struct sched *s, const struct turn *t, uint32_t n_pages)
{
	const struct kv_shares shares = sched_shares(s);
	struct turn *best = NULL;
	double most = -1;
	bool own, best_is_only = true;

	count_places(s);
	own = exceeds(t, n_pages, shares.max_pages);
	for (struct turn *i = s->first; i; i = i->next)
		count_exactly(s, i->user);
	t->user->n_pages += n_pages;
	/*
	 * From the youngest on, so that of a user's turns the youngest is met
	 * first. Who loses its only one stands still: that comes last.
	 */
	for (struct turn *i = s->last; i; i = i->prev) {
		const double held = (double)i->user->n_pages / i->user->weight;
		const bool is_only = i->user->n_running == 1;

		if (is_queued(i) || (own && i->user != t->user))
			continue;
		if (i->paused)
			return i; /* its reader is behind anyway */
		if (i->user != t->user && i->user->n_pages <= shares.kept_pages)
			continue;
		if (is_only == best_is_only ? held > most : best_is_only) {
			best = i;
			most = held;
			best_is_only = is_only;
		}
	}
	return best;
}

/* Those too of whom all is in flight: they will want the step after this one. */
static uint32_t n_competing(const struct sched *s)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < s->fair.n_users; i++)
		n += s->fair.users[i].competes;
	return n;
}

void choose_begin(struct sched *s)
{
	expect_flights(s);
	for (struct turn *t = s->first; t; t = t->next)
		t->user->n_decoding = t->user->n_feeding = 0;
	s->least = NULL;
	s->contended = n_competing(s) > 1;
}

void choose_offer(struct turn *t, bool decodes)
{
	struct sched *s = t->sched;

	t->user->n_decoding += decodes;
	t->user->n_feeding += !decodes;
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

/* Who is served next of those that have a prompt and are none of @but; NULL: nobody. */
static const struct fair_user *next_fed(const struct sched *s, const struct fair_user *but)
{
	const struct fair_user *next = NULL;

	for (uint32_t i = 0; i < s->fair.n_users; i++) {
		const struct fair_user *u = &s->fair.users[i];

		if (u != but && u->competes && u->n_feeding > 0 && !u->sits_out &&
		    (!next || fair_before(u, next)))
			next = u;
	}
	return next;
}

uint32_t choose_piece(const struct turn *t, uint32_t n_tokens)
{
	const struct sched *s = t->sched;
	const struct fair_user *next = next_fed(s, t->user);
	double part, most;

	if (!next || s->pace.whole_us <= 0)
		return n_tokens;
	part = (double)t->user->weight / next->weight;
	most = (n_tokens + fair_lead_us(next, t->user) / s->pace.whole_us) * part / (1 + part);
	return (uint32_t)MIN(MAX(most, (double)PACE_TOKENS_LEAST), (double)n_tokens);
}

void choose_fed(struct turn *t, uint32_t at, uint32_t n_tokens)
{
	const struct fair_row row = { .user = t->user, .n_tokens = n_tokens, .at = at };

	t->user->n_feeding--;

	fair_expect(&t->sched->pace, &row, 1);
}
