/* The next step: rows for those that decode, then pieces of prompts. */
#include <string.h>

#include "client/wire/ownership.h"
#include "daemon/base/clock.h"
#include "daemon/sched/queue.h"

#define KNOWN_TOKENS 16384 /* in one row: nothing is computed, but their ids take room */
#define PREFILL_SHARE 4	   /* of a step's tokens, one in so many is kept for prompts that wait */

struct batch {
	struct sched *s;
	struct flight *flight;
	char *payload;
	uint32_t used;	   /* bytes of the payload */
	uint32_t n_tokens; /* left of the budget */
	bool has_feed;
	bool feeds, decodes; /* some turn could, in this step or another */
};

static bool is_running(const struct turn *t)
{
	return t->rec->slot != TURN_NO_SLOT;
}

/* Tokens known and not yet fed; none once it samples, for then the slot knows more than we do. */
static uint32_t left_to_feed(const struct turn *t)
{
	const uint32_t known = sched_to_feed(t);

	return t->sampling || t->n_fed >= known ? 0 : known - t->n_fed;
}

/* Tokens that were found in the cache and that the slot is still to be told. */
static uint32_t left_to_tell(const struct turn *t)
{
	return t->n_fed < t->n_known ? t->n_known - t->n_fed : 0;
}

static bool samples(const struct turn *t)
{
	return !t->rec->score && !t->rec->tidy;
}

static bool can_decode(const struct turn *t)
{
	/* the row at position n_fed samples the token that follows it */
	return t->sampling && t->n_fed + 1 < t->rec->n_prompt + sched_budget(t);
}

/* How many tokens from n_fed on the granted pages can take. */
static uint32_t covered(const struct turn *t)
{
	const uint64_t end = (uint64_t)t->rec->n_pages * kvpool_page_tokens(t->sched->kv);

	return end > t->n_fed ? (uint32_t)MIN(end - t->n_fed, (uint64_t)UINT32_MAX) : 0;
}

static uint32_t put(struct batch *b, const void *data, size_t bytes)
{
	const uint32_t at = b->used;

	memcpy(b->payload + at, data, bytes);
	b->used = (uint32_t)(at + bytes + 7) & ~7u;
	return at;
}

static size_t row_bytes(const struct turn *t, uint32_t n_tokens)
{
	const struct turn_record *rec = t->rec;
	size_t bytes = 2 * n_tokens * sizeof(uint32_t);

	bytes += (rec->n_pages - t->n_pages_sent) * sizeof(kv_page);
	if (t->n_fed == 0)
		bytes += sizeof(struct step_sampler) + 8 * (size_t)rec->n_bias;
	return bytes + 5 * 8; /* each part is padded to 8 */
}

static void put_sampler(struct batch *b, const struct turn *t, struct row *row)
{
	struct turn_record *rec = t->rec;
	struct step_sampler sampler = rec->sampler;

	sampler.n_prompt = rec->n_prompt;
	sampler.n_bias = rec->n_bias;
	sampler.bias_off = 0;
	if (rec->n_bias > 0) {
		uint32_t both[2 * STEP_BIAS_MAX];

		memcpy(both, rec->bias_ids, rec->n_bias * sizeof(*both));
		memcpy(both + rec->n_bias, rec->bias_values, rec->n_bias * sizeof(*both));
		sampler.bias_off = put(b, both, 2 * rec->n_bias * sizeof(*both));
	}
	row->sampler_off = put(b, &sampler, sizeof(sampler));
}

static void put_pages(struct batch *b, struct turn *t, struct row *row)
{
	const uint32_t n = t->rec->n_pages - t->n_pages_sent;

	if (n == 0)
		return;
	row->page_at = t->n_pages_sent;
	row->n_pages = (uint16_t)n;
	row->pages_off = put(b, turn_page_table(b->s->turns, t->rec) + t->n_pages_sent,
			     n * sizeof(kv_page));
	t->n_pages_sent = t->rec->n_pages;
}

static void put_feed(struct batch *b, const struct turn *t, struct row *row, uint32_t n)
{
	const uint32_t *ids = turn_ids(b->s->turns, t->rec) + t->n_fed;

	row->kind = ROW_FEED;
	row->n_tokens = (uint16_t)n;
	row->at = t->n_fed;
	row->tokens_off = put(b, ids, n * sizeof(*ids));
	if (left_to_tell(t) > 0)
		row->flags = ROW_KNOWN;
	if (t->rec->score) {
		row->flags = ROW_SCORE;
		row->n_top = t->rec->n_top;
		row->targets_off = put(b, ids + 1, n * sizeof(*ids));
	}
	if (t->n_fed == 0)
		put_sampler(b, t, row);
	b->has_feed = true;
}

/* A row of @n_tokens known ones, or of one that only the slot knows. False: no room for it. */
static bool add_row(struct batch *b, struct turn *t, uint32_t n_tokens, bool is_cont)
{
	struct flight *f = b->flight;
	struct row row = { .kind = ROW_CONT, .slot = t->rec->slot };
	const bool is_known = left_to_tell(t) > 0;

	if (f->n_rows == b->s->n_rows || t->rec->n_pages - t->n_pages_sent > UINT16_MAX ||
	    b->used + row_bytes(t, is_cont ? 0 : n_tokens) > STEP_PAYLOAD_BYTES)
		return false;
	if (!is_cont)
		put_feed(b, t, &row, n_tokens);
	put_pages(b, t, &row);
	if (is_cont || (samples(t) && t->n_fed + n_tokens == t->rec->n_ids)) {
		row.flags |= ROW_SAMPLE | (t->rec->logprobs ? ROW_LOGPROBS : 0);
		row.n_top = t->rec->logprobs ? t->rec->n_top : 0;
		t->sampling = true;
	}
	f->rows[f->n_rows] = (struct flight_row){
		.turn = t,
		.user = t->user,
		.slot = row.slot,
		.kind = row.kind,
		.flags = row.flags,
		.n_tokens = (uint16_t)n_tokens,
		.n_top = row.n_top,
		.at = t->n_fed,
	};
	memcpy(b->payload + f->n_rows * sizeof(row), &row, sizeof(row));
	f->n_rows++;
	if (is_cont)
		f->load.n_decoding++;
	else if (!is_known && !t->rec->tidy) /* its steps are small, and prices hold for others */
		pace_add(&f->load, t->n_fed, n_tokens);
	t->n_fed += n_tokens;
	b->n_tokens -= is_known ? 0 : n_tokens;
	return true;
}

/* Pages for what each may get in this step and the next, the oldest first; may put others back. */
static void grant_pages(struct batch *b)
{
	struct sched *s = b->s;
	const uint32_t step_tokens = s->settings->batch_tokens;
	struct turn *t;

	for (t = s->first; t; t = t->next) {
		uint32_t n = left_to_feed(t);

		if (!is_running(t) || t->paused || t->settling || (n == 0 && !can_decode(t)))
			continue;
		*(n > 0 ? &b->feeds : &b->decodes) = true;
		n = n > 0 ? left_to_tell(t) + MIN(n - left_to_tell(t), step_tokens) : 1;
		if (n > covered(t))
			sched_grow(t, (uint64_t)t->n_fed +
					      n); /* if not, it gets what it has pages for */
	}
}

/* After all grants, for each may put back one that has had its own. */
static void offer_rows(struct sched *s)
{
	choose_begin(s);
	for (struct turn *t = s->first; t; t = t->next) {
		if (is_running(t) && !t->paused && !t->settling &&
		    (left_to_feed(t) > 0 || can_decode(t)) && covered(t) > 0)
			choose_offer(t, left_to_feed(t) == 0);
	}
	choose_offered(s);
}

static void add_decoding(struct batch *b, uint32_t n_reserved)
{
	struct sched *s = b->s;
	const uint32_t from = s->decode_slot + 1;

	for (uint32_t i = 0; i < s->n_slots && b->n_tokens > n_reserved; i++) {
		const uint32_t slot = (from + i) % s->n_slots;
		struct turn *t = s->slots[slot];

		if (!t || t->paused || !can_decode(t) || covered(t) == 0 || choose_sits_out(t))
			continue;
		if (!add_row(b, t, 1, true))
			return;
		s->decode_slot = slot;
	}
}

/* Whether this step has a row of @t already: one row a slot. */
static bool has_row(const struct flight *f, const struct turn *t)
{
	for (uint32_t i = 0; i < f->n_rows; i++) {
		if (f->rows[i].turn == t)
			return true;
	}
	return false;
}

static struct turn *next_feeding(const struct batch *b)
{
	struct turn *best = NULL;

	for (struct turn *t = b->s->first; t; t = t->next) {
		if (!is_running(t) || t->paused || t->settling || left_to_feed(t) == 0 ||
		    covered(t) == 0 || has_row(b->flight, t) || choose_sits_out(t))
			continue;
		if (!best || choose_before(t, best))
			best = t;
	}
	return best;
}

/* All that the step has room for, or where others wait for their next token, what they can bear. */
static void add_feeding(struct batch *b)
{
	struct sched *s = b->s;
	const uint32_t n_decoding = b->flight->load.n_decoding;
	const bool paced = b->decodes; /* those that sit this step out wait, too */
	struct pace_budget budget = pace_budget(&s->pace, n_decoding,
						s->settings->token_gap_ms * US_PER_MS);
	struct turn *t;

	if (n_decoding > 0 && pace_wants_look(&s->pace))
		return;
	if (!paced)
		b->n_tokens = MIN(b->n_tokens, choose_step_tokens(s));
	while (b->n_tokens > 0 && (t = next_feeding(b))) {
		uint32_t n = MIN(MIN(left_to_feed(t), covered(t)), b->n_tokens);

		if (left_to_tell(t) > 0)
			n = MIN(left_to_tell(t), (uint32_t)KNOWN_TOKENS);
		else if (paced)
			n = pace_take(&budget, t->n_fed, n);
		else if (s->n_rows > b->flight->n_rows + 1)
			n = MIN(n, choose_piece(t, b->n_tokens));
		if (n == 0 || !add_row(b, t, n, false))
			return;
		if (t->n_fed > t->n_known)
			choose_fed(t, t->n_fed - n, n); /* what was found costs nothing */
	}
}

static void publish(struct batch *b, struct ring *ring)
{
	struct sched *s = b->s;
	struct flight *f = b->flight;
	const struct step step = {
		.kind = b->has_feed ? STEP_MIXED : STEP_DECODE,
		.n_rows = (uint16_t)f->n_rows,
		.payload_bytes = b->used,
	};

	s->n_deep_steps += s->n_flights > 0;
	s->n_steps++;
	s->n_flights++;
	f->id = ring_push(ring, &step);
	pace_pushed(&s->pace, &f->load);
	for (uint32_t i = 0; i < f->n_rows; i++) {
		struct turn *t = f->rows[i].turn;

		t->n_in_flight++;
		t->last_pushed = f->id;
		s->slot_busy[f->rows[i].slot] = f->id;
		kvpool_busy(s->kv, turn_page_table(s->turns, t->rec), t->rec->n_pages, f->id);
	}
}

/* What the cache wants to have done to its pages; before the rows that come after. */
static bool push_moves(struct sched *s, struct ring *ring)
{
	struct flight *f = &s->flights[s->n_flights];
	void *payload = ring_stage(ring);
	struct step step = { .kind = STEP_MOVE };

	if (!payload)
		return false;
	step.n_rows = (uint16_t)kvcache_moves(s->cache, payload, STEP_MOVES_MAX);
	if (step.n_rows == 0)
		return false;
	step.payload_bytes = step.n_rows * sizeof(struct step_move);
	f->n_rows = step.n_rows;
	f->is_move = true;
	f->id = ring_push(ring, &step);
	s->n_flights++;
	return true;
}

static bool push_one(struct sched *s, struct ring *ring)
{
	const uint32_t n_tokens = MIN(s->settings->batch_tokens, (uint32_t)STEP_TOKENS_MAX);
	struct batch b = {
		.s = s,
		.flight = &s->flights[s->n_flights],
		.payload = ring_stage(ring),
		.used = STEP_ROWS_MAX * sizeof(struct row),
		.n_tokens = n_tokens,
	};

	if (!b.payload)
		return false;
	if (!s->resting)
		grant_pages(&b);
	if (push_moves(s, ring))
		return true;
	if (s->resting)
		return false;
	b.flight->n_rows = 0;
	b.flight->is_move = false;
	b.flight->load = (struct pace_load){ 0 };
	offer_rows(s);
	add_decoding(&b, b.feeds ? n_tokens / PREFILL_SHARE : 0);
	add_feeding(&b);
	if (b.flight->n_rows == 0)
		return false;
	publish(&b, ring);
	return true;
}

void sched_push(struct sched *s)
{
	const uint32_t depth = sched_is_tidying(s) ? 1 : STEP_DEPTH_MAX;
	struct ring *ring = executor_ring(s->executor);

	if (!ring || s->draining || executor_is_dying(s->executor))
		return;
	while (s->n_flights < depth && push_one(s, ring))
		;
}
