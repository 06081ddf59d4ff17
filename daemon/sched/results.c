/* What the executor computed, applied to the records once, whoever pushed the step. */
#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "client/wire/ownership.h"
#include "daemon/base/clock.h"
#include "daemon/sched/queue.h"

/* One row's result, copied, and what it belongs to. */
struct applied {
	struct sched *s;
	uint64_t step_id;
	struct row_result row;
	const struct flight_row *pushed; /* NULL: by an earlier life */
	const char *payload;
	uint32_t payload_bytes;
};

static void refuse(const struct applied *a, const char *what, uint32_t found, uint32_t wanted)
{
	char why[160];

	snprintf(why, sizeof(why), "result of step %llu, slot %u: %s is %u; %u is wanted",
		 (unsigned long long)a->step_id, a->row.slot, what, found, wanted);
	executor_fail(a->s->executor, why);
}

/* Copies log-probabilities of @n positions to row @at of the record's arrays. */
static bool store_logprobs(const struct applied *a, struct turn_record *rec, uint32_t at,
			   uint32_t n)
{
	struct turns *turns = a->s->turns;
	const uint32_t n_top = rec->n_top;
	const uint64_t bytes = (uint64_t)n * 4 * (1 + 2 * (uint64_t)n_top);
	const char *from = a->payload + a->row.logprobs_off;

	if (a->row.logprobs_off % 4 != 0 || a->row.logprobs_off == 0 ||
	    a->row.logprobs_off + bytes > a->payload_bytes) {
		refuse(a, "the offset of log-probabilities", a->row.logprobs_off, 4);
		return false;
	}
	memcpy(turn_logprobs(turns, rec) + at, from, n * sizeof(float));
	from += n * sizeof(float);
	memcpy(turn_top_ids(turns, rec) + (size_t)at * n_top, from, (size_t)n * n_top * 4);
	from += (size_t)n * n_top * 4;
	memcpy(turn_top_logprobs(turns, rec) + (size_t)at * n_top, from, (size_t)n * n_top * 4);
	return true;
}

/* The first position has no log-probability, nor a row of best ones. */
static void open_scores(struct turns *turns, struct turn_record *rec)
{
	turn_logprobs(turns, rec)[0] = NAN;
	for (uint32_t i = 0; i < rec->n_top; i++)
		turn_top_logprobs(turns, rec)[i] = NAN;
}

/* Returns whether the record changed. */
static bool apply_score(const struct applied *a, struct turn_record *rec)
{
	uint32_t end;

	/* an earlier life's row did not say how many: those positions are computed again */
	if (!a->pushed || !(a->pushed->flags & ROW_SCORE))
		return false;
	end = a->pushed->at + a->pushed->n_tokens;
	if (a->row.length != end) {
		refuse(a, "the slot's length", a->row.length, end);
		return false;
	}
	if (a->pushed->at == 0)
		open_scores(a->s->turns, rec);
	if (!store_logprobs(a, rec, a->pushed->at + 1, a->pushed->n_tokens))
		return false;
	turn_advance(rec, end, MAX(rec->n_scored, end + 1), a->step_id);
	return true;
}

static bool apply_sample(const struct applied *a, struct turn_record *rec)
{
	const uint32_t id = a->row.tokens[0], vocab = rec->sampler.vocab_real;

	if (a->row.n_tokens != 1) {
		refuse(a, "the number of tokens", a->row.n_tokens, 1);
		return false;
	}
	if (a->row.length != rec->n_ids || rec->n_ids > turns_max_context(a->s->turns)) {
		refuse(a, "the slot's length", a->row.length, rec->n_ids);
		return false;
	}
	if (vocab > 0 && id >= vocab) {
		refuse(a, "the token", id, vocab - 1);
		return false;
	}
	if (rec->logprobs && !store_logprobs(a, rec, rec->n_ids - rec->n_prompt, 1))
		return false;
	turn_append(a->s->turns, rec, id, a->step_id);
	if (rec->first_token_us == 0)
		rec->first_token_us = clock_us();
	return true;
}

/* Returns whether there are new tokens or scores, or a tidy turn is at its end. */
static bool apply_record(const struct applied *a, struct turn_record *rec)
{
	if (a->step_id <= rec->last_step)
		return false; /* applied already, before a crash */
	if (rec->score)
		return apply_score(a, rec);
	if (a->row.flags & RESULT_SAMPLED)
		return apply_sample(a, rec);
	if (!(a->row.flags & RESULT_IGNORED))
		turn_advance(rec, MIN(a->row.length, rec->n_ids), rec->n_scored, a->step_id);
	return rec->tidy && rec->n_kv == rec->n_prompt;
}

static void apply_turn(const struct applied *a, struct turn *t)
{
	struct sched *s = a->s;
	const uint16_t slot = t->rec->slot;
	enum turn_finish finish;

	if (t->n_in_flight > 0)
		t->n_in_flight--;
	if (a->row.flags & RESULT_IGNORED && a->step_id > t->rec->last_step) {
		sched_put_back(t); /* the slot is not where we believe it: begin again */
		return;
	}
	if (!apply_record(a, t->rec)) {
		sched_seal(t, KVCACHE_TAIL_GROWS);
		if (s->slots[slot] == t && t->on_state)
			t->on_state(t); /* a prompt has come further */
		return;
	}
	sched_seal(t, KVCACHE_TAIL_GROWS);
	t->replaying = false;
	if (t->rec->n_ids >= t->cleared_at)
		t->rec->n_faults = 0;
	finish = a->row.flags & RESULT_STOPPED ? FINISH_STOP : sched_verdict(t);
	if (t->on_tokens)
		t->on_tokens(t);
	/* still there? The callback may have ended it, and with it its memory */
	if (s->slots[slot] == t && finish != FINISH_NONE)
		sched_finish(t, finish);
}

/* A turn that this life's clients have not taken over yet. */
static struct turn_record *find_record(const struct sched *s, uint16_t slot)
{
	struct turn_record *rec = NULL;

	while ((rec = turns_next(s->turns, rec))) {
		if (atomic_load(&rec->state) == TURN_RUNNING && rec->slot == slot &&
		    rec->ring_ino == s->ring_ino)
			return rec;
	}
	return NULL;
}

/* Returns false if the executor was given up. */
static bool apply_row(struct applied *a)
{
	struct sched *s = a->s;
	struct turn_record *rec;

	if (a->row.slot >= STEP_ROWS_MAX || (a->pushed && a->row.slot != a->pushed->slot)) {
		refuse(a, "the slot", a->row.slot, a->pushed ? a->pushed->slot : STEP_ROWS_MAX - 1);
		return false;
	}
	if (a->pushed) {
		if (a->pushed->turn)
			apply_turn(a, a->pushed->turn);
	} else if (s->slots[a->row.slot]) {
		apply_turn(a, s->slots[a->row.slot]);
	} else {
		rec = find_record(s, a->row.slot);
		if (rec)
			apply_record(a, rec);
	}
	return executor_ring(s->executor) != NULL;
}

static bool check_result(struct sched *s, const struct step_result *result,
			 const struct flight *flight)
{
	const size_t each = result->kind == STEP_MOVE ? sizeof(struct step_moved)
						      : sizeof(struct row_result);
	char why[160];

	if (result->error != 0)
		snprintf(why, sizeof(why), "step %llu failed: %s", (unsigned long long)result->id,
			 strerror(result->error < 0 ? -result->error : result->error));
	else if (result->n_rows > STEP_ROWS_MAX || result->payload_bytes > STEP_RESULT_BYTES ||
		 result->n_rows * each > result->payload_bytes)
		snprintf(why, sizeof(why), "result of step %llu: %u rows in %u bytes",
			 (unsigned long long)result->id, result->n_rows, result->payload_bytes);
	else if (flight && (flight->id != result->id || flight->n_rows != result->n_rows ||
			    flight->is_move != (result->kind == STEP_MOVE)))
		snprintf(why, sizeof(why),
			 "result of step %llu with %u rows; step %llu with %u is the oldest",
			 (unsigned long long)result->id, result->n_rows,
			 (unsigned long long)flight->id, flight->n_rows);
	else
		return true;
	executor_fail(s->executor, why);
	return false;
}

static void pop_flight(struct sched *s)
{
	if (s->n_flights == 0)
		return;
	s->n_flights--;
	memmove(s->flights, s->flights + 1, s->n_flights * sizeof(*s->flights));
}

/* Returns false if there was none, or the executor was given up for it. */
static bool apply_oldest(struct sched *s)
{
	struct ring *ring = executor_ring(s->executor);
	const struct flight *flight = s->n_flights > 0 ? &s->flights[0] : NULL;
	const void *payload = NULL;
	const struct step_result *shared = ring ? ring_result(ring, &payload) : NULL;
	struct step_result result;

	if (!shared)
		return false;
	result = *shared;
	if (!check_result(s, &result, flight))
		return false;

	/* moves of an earlier life: what they were for is asked for again */
	if (result.kind == STEP_MOVE && flight)
		kvcache_moved(s->cache, payload, result.n_rows);
	for (uint32_t i = 0; i < result.n_rows && result.kind != STEP_MOVE; i++) {
		struct applied a = {
			.s = s,
			.step_id = result.id,
			.pushed = flight ? &flight->rows[i] : NULL,
			.payload = payload,
			.payload_bytes = result.payload_bytes,
		};

		memcpy(&a.row, (const char *)payload + i * sizeof(a.row), sizeof(a.row));
		if (!apply_row(&a))
			return false;
	}
	/* all effects are stored: only now may the result be forgotten */
	if (flight && !flight->is_move) {
		choose_charge(s, flight, result.device_us);
		pace_learn(&s->pace, &flight->load, result.device_us);
	}
	s->done = result.id;
	kvpool_step_done(s->kv, result.id);
	pop_flight(s);
	ring_take(ring);
	return true;
}

void sched_apply(struct sched *s)
{
	while (apply_oldest(s))
		;
}
