/* Turns coming, ending, paused, timed out; the executor coming and going. */
#include "daemon/sched/sched.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "client/wire/ownership.h"
#include "daemon/base/clock.h"
#include "daemon/sched/queue.h"

#define TIMER_LEAST_US 1000 /* so that a deadline reached within a tick is no busy loop */
#define FAULTS_MAX 2	    /* a turn ends at so many deaths while it was in flight */
#define DEATHS_MAX 3	    /* in a row: it is not one turn that kills the executor */

static void set_state(struct turn_record *rec, uint32_t state)
{
	atomic_store_explicit(&rec->state, state, memory_order_release);
}

uint32_t sched_budget(const struct turn *t)
{
	const uint32_t left = turns_max_context(t->sched->turns) - t->rec->n_prompt;

	return MIN(t->rec->max_tokens, left);
}

uint32_t sched_to_feed(const struct turn *t)
{
	/* the last token of a scored text predicts nothing that is asked for */
	return t->rec->score ? t->rec->n_prompt - 1 : t->rec->n_ids;
}

enum turn_finish sched_verdict(const struct turn *t)
{
	struct turn_record *rec = t->rec;
	const uint32_t last = turn_ids(t->sched->turns, rec)[rec->n_ids - 1];

	if (rec->score)
		return rec->n_scored == rec->n_prompt ? FINISH_SCORED : FINISH_NONE;
	if (rec->tidy)
		return rec->n_kv == rec->n_prompt ? FINISH_LENGTH : FINISH_NONE;
	if (rec->n_ids > rec->n_prompt) {
		for (uint32_t i = 0; i < rec->sampler.n_stop_ids; i++) {
			if (rec->sampler.stop_ids[i] == last)
				return FINISH_STOP;
		}
	}
	return rec->n_ids - rec->n_prompt >= sched_budget(t) ? FINISH_LENGTH : FINISH_NONE;
}

static int on_pump(sd_event_source *source, void *userdata)
{
	(void)source;
	sched_executor_changed(userdata);
	return 0;
}

static void pump_later(struct sched *s)
{
	sd_event_source_set_enabled(s->pump, SD_EVENT_ONESHOT);
}

int sched_new(sd_event *loop, const struct sched_options *options, struct sched **ret)
{
	_cleanup_(sched_freep) struct sched *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return -ENOMEM;
	s->loop = sd_event_ref(loop);
	s->settings = options->settings;
	s->cache = options->kv;
	s->kv = kvcache_pool(options->kv);
	s->turns = options->turns;
	s->executor = options->executor;
	s->on_applied = options->on_applied;
	s->userdata = options->userdata;
	s->n_rows = MIN(s->settings->max_batch, (uint32_t)STEP_ROWS_MAX);
	s->n_slots = MIN(sched_slots(s->settings), (uint32_t)STEP_ROWS_MAX);
	s->page_seen = calloc((kvpool_pages(s->kv) + 63) / 64, sizeof(*s->page_seen));
	if (!s->page_seen)
		return -ENOMEM;
	r = sd_event_add_defer(loop, &s->pump, on_pump, s);
	if (r >= 0)
		r = stuck_begin(s);
	if (r < 0)
		return r;
	/* an adopted ring may hold results of moves, of which no turn waits for any */
	pump_later(s);
	*ret = steal(s);
	return 0;
}

struct sched *sched_free(struct sched *s)
{
	if (!s)
		return NULL;
	while (s->first) {
		struct turn *t = s->first;

		s->first = t->next;
		t->sched = NULL;
		t->user = NULL;
		t->next = t->prev = NULL;
	}
	stuck_end(s);
	sd_event_source_disable_unref(s->pump);
	sd_event_source_disable_unref(s->timer);
	sd_event_unref(s->loop);
	free(s->page_seen);
	free(s);
	return NULL;
}

/* By time of acceptance; those of one microsecond in the order they came. */
static void link_turn(struct sched *s, struct turn *t)
{
	struct turn *before = s->last;

	while (before && before->rec->accepted_us > t->rec->accepted_us)
		before = before->prev;
	t->prev = before;
	t->next = before ? before->next : s->first;
	*(t->next ? &t->next->prev : &s->last) = t;
	*(before ? &before->next : &s->first) = t;
	t->sched = s;
	t->turns = s->turns;
	t->user = fair_enter(&s->fair, t->rec->uid, s->settings->user_weights);
}

static void unlink_turn(struct sched *s, struct turn *t)
{
	*(t->next ? &t->next->prev : &s->last) = t->prev;
	*(t->prev ? &t->prev->next : &s->first) = t->next;
	t->next = t->prev = NULL;
	fair_leave(t->user);
	t->user = NULL;
}

/* Results under way for it are nobody's. */
static void forget_flights(struct sched *s, const struct turn *t)
{
	for (uint32_t i = 0; i < s->n_flights; i++) {
		for (uint32_t k = 0; k < s->flights[i].n_rows; k++) {
			if (s->flights[i].rows[k].turn == t)
				s->flights[i].rows[k].turn = NULL;
		}
	}
}

/* The record's state was changed already: from then on nobody believes its slot and pages. */
static void give_up_places(struct turn *t)
{
	struct sched *s = t->sched;
	struct turn_record *rec = t->rec;

	if (rec->slot < s->n_slots && s->slots[rec->slot] == t)
		s->slots[rec->slot] = NULL;
	forget_flights(s, t);
	if (t->settling)
		kvcache_unsettle(s->cache, &t->held);
	else if (rec->slot != TURN_NO_SLOT)
		sched_seal(t, atomic_load(&rec->state) == TURN_ENDED ? KVCACHE_TAIL_ENDS
								     : KVCACHE_TAIL_RESTS);
	kvcache_drop(s->cache, turn_page_table(s->turns, rec), rec->n_pages);
	rec->n_pages = 0;
	rec->slot = TURN_NO_SLOT;
	t->n_in_flight = 0;
	t->n_fed = t->n_known = t->n_pages_sent = 0;
	t->sampling = t->settling = false;
	t->chain = (struct kvcache_chain){ 0 };
}

void sched_seal(struct turn *t, enum kvcache_tail tail)
{
	struct sched *s = t->sched;
	struct turn_record *rec = t->rec;

	if (!rec->score && rec->n_kv > 0)
		kvcache_seal(s->cache, t->root, rec->uid, turn_ids(s->turns, rec), rec->n_ids,
			     turn_page_table(s->turns, rec), rec->n_kv, tail, &t->chain);
}

static void forget_kv(struct turn_record *rec)
{
	rec->n_kv = 0;
	rec->last_step = 0;
	turn_restart(rec);
}

void sched_put_back(struct turn *t)
{
	/* of one that settles nothing was fed: what is cached of it is what the next hold finds */
	const bool replaying = t->replaying || !t->settling;

	set_state(t->rec, TURN_QUEUED);
	t->n_lost = MAX(t->n_lost, t->rec->n_kv);
	give_up_places(t);
	forget_kv(t->rec);
	t->replaying = replaying;
	t->untold = true;
}

static int on_timer(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct sched *s = userdata;

	(void)source, (void)usec;
	s->timer_at_us = 0;
	sched_executor_changed(s);
	return 0;
}

static void arm_timer(struct sched *s, uint64_t at_us)
{
	const uint64_t now = clock_us();
	const uint64_t wait_us = MAX(at_us > now ? at_us - now : 0, (uint64_t)TIMER_LEAST_US);

	if (s->timer_at_us == at_us)
		return;
	s->timer = sd_event_source_disable_unref(s->timer);
	s->timer_at_us = 0;
	if (at_us == 0)
		return;
	/* accuracy of a millisecond: deadlines need no better, and wake-ups may be joined */
	if (sd_event_add_time_relative(s->loop, &s->timer, CLOCK_BOOTTIME, wait_us, US_PER_MS,
				       on_timer, s) >= 0)
		s->timer_at_us = at_us;
}

/* Ends those whose time is over, and sets the timer for the next: none if there is none. */
static void keep_deadlines(struct sched *s)
{
	uint64_t next_us = 0;
	bool again;

	do {
		again = false;
		next_us = 0;
		for (struct turn *t = s->first; t; t = t->next) {
			const uint64_t at_us = t->rec->deadline_us;

			if (at_us == 0)
				continue;
			if (at_us <= clock_us()) {
				sched_finish(t, FINISH_DEADLINE); /* may end others: start over */
				again = true;
				break;
			}
			next_us = next_us == 0 ? at_us : MIN(next_us, at_us);
		}
	} while (again);
	arm_timer(s, next_us);
}

uint32_t sched_pages(const struct sched *s, uint64_t n_tokens)
{
	const uint32_t page_tokens = kvpool_page_tokens(s->kv);

	return (uint32_t)((n_tokens + page_tokens - 1) / page_tokens);
}

/* It is alone, or not there. */
bool sched_is_tidying(const struct sched *s)
{
	return s->first && s->first->rec->tidy;
}

void sched_end_tidying(struct sched *s)
{
	if (sched_is_tidying(s))
		sched_finish(s->first, FINISH_CANCELLED);
}

double sched_prompt_us(const struct sched *s, uint32_t at, uint32_t n_tokens)
{
	const double us = pace_prompt_us(&s->pace, at, n_tokens);

	return us > 0 ? us : n_tokens * pace_decode_us(&s->pace, 1);
}

static int check_limits(const struct sched *s, const struct turn_record *rec, struct err *err)
{
	struct sched_counts all, own;
	uint64_t left;

	if (rec->tidy && s->first)
		return err_set(err, -EBUSY, "other turns wait or run");
	if (rec->tidy && s->resting)
		return err_set(err, -EBUSY, "no turn may run now");
	if (rec->tidy)
		return 0;
	sched_count(s, (uid_t)-1, &all);
	sched_count(s, rec->uid, &own);
	if (own.queued_tokens + rec->n_prompt > s->settings->max_user_queued_tokens)
		return err_set(err, -EAGAIN,
			       "user %u has %llu tokens waiting; %u more would exceed "
			       "MaxQueuedTokensPerUser=%u",
			       rec->uid, (unsigned long long)own.queued_tokens, rec->n_prompt,
			       s->settings->max_user_queued_tokens);
	if (all.queued_tokens + rec->n_prompt > s->settings->max_queued_tokens)
		return err_set(err, -EAGAIN,
			       "%llu tokens are waiting; %u more would exceed MaxQueuedTokens=%u",
			       (unsigned long long)all.queued_tokens, rec->n_prompt,
			       s->settings->max_queued_tokens);
	left = s->settings->max_queued_tokens - all.queued_tokens;
	if (own.queued_tokens > 0 && own.queued_tokens >= left)
		return err_set(err, -EAGAIN,
			       "user %u has %llu tokens waiting; %llu of MaxQueuedTokens=%u are "
			       "left, and nobody has more than that",
			       rec->uid, (unsigned long long)own.queued_tokens,
			       (unsigned long long)left, s->settings->max_queued_tokens);
	return 0;
}

int sched_submit(struct sched *s, struct turn *t, struct err *err)
{
	struct turn_record *rec = t->rec;
	const uint32_t max_context = turns_max_context(s->turns);
	uint64_t n_tokens;
	int r;

	if (rec->n_prompt == 0)
		return err_set(err, -EINVAL, "the prompt has no token");
	if (rec->n_prompt > max_context || (!rec->score && rec->n_prompt == max_context))
		return err_set(err, -ENOSPC, "the prompt has %u tokens; the context has %u",
			       rec->n_prompt, max_context);
	n_tokens = MIN((uint64_t)rec->n_prompt + (rec->score ? 0 : rec->max_tokens),
		       (uint64_t)max_context);
	if (sched_pages(s, n_tokens) > kvpool_pages(s->kv) ||
	    sched_pages(s, n_tokens) > turns_max_pages(s->turns))
		return err_set(err, -ENOSPC, "%llu tokens need %u KV pages; there are %u",
			       (unsigned long long)n_tokens, sched_pages(s, n_tokens),
			       MIN(kvpool_pages(s->kv), turns_max_pages(s->turns)));
	if (sched_pages(s, n_tokens) > sched_shares(s).max_pages)
		return err_set(err, -ENOSPC,
			       "%llu tokens need %u KV pages; user %u may have %u of %u "
			       "(MaxCachePerUser=%u)",
			       (unsigned long long)n_tokens, sched_pages(s, n_tokens), rec->uid,
			       sched_shares(s).max_pages, kvpool_pages(s->kv),
			       s->settings->max_user_cache);
	r = check_limits(s, rec, err);
	if (r < 0)
		return r;

	sched_end_tidying(s);
	s->halted = false;
	rec->n_ids = MAX(rec->n_ids, rec->n_prompt);
	rec->slot = TURN_NO_SLOT;
	rec->stop_id = UINT32_MAX;
	rec->n_pages = rec->finish = 0;
	rec->n_scored = rec->score &&
			rec->n_prompt == 1; /* the first token has no log-probability */
	turn_logprobs(s->turns, rec)[0] = NAN;
	forget_kv(rec);
	t->n_fed = t->n_known = t->n_pages_sent = t->n_in_flight = 0;
	t->chain = (struct kvcache_chain){ 0 };
	t->last_pushed = 0;
	t->cleared_at = t->n_lost = 0;
	t->sampling = t->replaying = t->settling = false;
	link_turn(s, t);
	set_state(rec, TURN_QUEUED);
	pump_later(s);
	return 0;
}

static void look_at_executor(struct sched *s);

/* Whether the executor holds what the record says: then the turn goes on in its slot. */
static bool take_place(struct sched *s, struct turn *t)
{
	struct turn_record *rec = t->rec;

	if (atomic_load(&rec->state) != TURN_RUNNING || !executor_is_adopted(s->executor) ||
	    s->ring_ino == 0 || rec->ring_ino != s->ring_ino || rec->slot >= s->n_slots ||
	    s->slots[rec->slot] || rec->n_pages * sizeof(kv_page) > STEP_PAYLOAD_BYTES / 2 ||
	    kvcache_claim(s->cache, t->root, rec->uid, turn_page_table(s->turns, rec), rec->n_pages,
			  rec->n_kv) < 0)
		return false;
	s->slots[rec->slot] = t;
	return true;
}

/* The turn goes on where its record is; with steps under way, that is known when they are done. */
static void resume_place(struct turn *t)
{
	t->n_fed = t->rec->n_kv;
	t->n_known = 0;
	t->n_pages_sent = 0; /* the slot may have missed the last ones */
	t->sampling = t->rec->sampled != 0;
}

/* Nothing of the earlier life is under way: what its record says is all there is in its pages. */
static void settle_place(struct turn *t)
{
	struct sched *s = t->sched;
	struct turn_record *rec = t->rec;

	if (kvcache_claimed(s->cache, rec->uid, turn_page_table(s->turns, rec), rec->n_pages,
			    rec->n_kv) < 0)
		sched_put_back(t);
	else
		resume_place(t);
}

int sched_adopt(struct sched *s, struct turn *t, struct err *err)
{
	struct turn_record *rec = t->rec;
	const uint32_t state = atomic_load(&rec->state);

	if (state != TURN_QUEUED && state != TURN_RUNNING)
		return err_set(err, -EINVAL, "turn %016llx is neither queued nor running",
			       (unsigned long long)rec->id);
	if (rec->n_prompt > turns_max_context(s->turns))
		return err_set(err, -EINVAL, "turn %016llx does not fit the context",
			       (unsigned long long)rec->id);
	look_at_executor(s);
	s->unsettled = true;
	t->n_in_flight = 0;
	t->last_pushed = 0;
	t->chain = (struct kvcache_chain){ 0 };
	t->settling = false;
	link_turn(s, t);
	t->root = kvcache_root(s->cache, rec->uid, rec->label);
	if (take_place(s, t)) {
		resume_place(t);
		if (!s->draining)
			settle_place(t);
	} else {
		set_state(rec, TURN_QUEUED);
		t->n_lost = rec->n_kv;
		rec->n_pages = 0; /* not claimed, so nothing to drop */
		rec->slot = TURN_NO_SLOT;
		forget_kv(rec);
		t->n_fed = t->n_known = t->n_pages_sent = 0;
		t->sampling = false;
		t->replaying = rec->miss.cause != KV_MISS_WAITING; /* it had begun */
	}
	pump_later(s);
	return 0;
}

void sched_finish(struct turn *t, enum turn_finish finish)
{
	struct sched *s = t->sched;
	struct turn_record *rec = t->rec;

	if (!s)
		return;
	if (finish == FINISH_STOP)
		rec->stop_id = turn_ids(s->turns, rec)[rec->n_ids - 1];
	rec->finish = finish;
	rec->ended_us = clock_us();
	set_state(rec, TURN_ENDED);
	give_up_places(t);
	unlink_turn(s, t);
	t->sched = NULL;
	if (finish == FINISH_STOP || finish == FINISH_STOP_STRING || finish == FINISH_LENGTH ||
	    finish == FINISH_SCORED) {
		executor_proved(s->executor);
		s->deaths = 0;
	}
	pump_later(s);
	if (t->on_end)
		t->on_end(t);
}

void sched_pause(struct turn *t, bool paused)
{
	if (t->paused == paused)
		return;
	t->paused = paused;
	if (t->sched)
		pump_later(t->sched);
}

void sched_release(struct turn *t)
{
	if (t->sched)
		sched_finish(t, FINISH_CANCELLED);
	if (t->rec && t->turns)
		turns_drop(t->turns, t->rec);
	t->rec = NULL;
}

/* An earlier life may have stored a turn's last token, and not yet that it is the last. */
static void end_settled(struct sched *s)
{
	struct turn *t = s->first;

	s->unsettled = false;
	while (t) {
		const enum turn_finish finish = sched_verdict(t);

		if (finish == FINISH_NONE) {
			t = t->next;
			continue;
		}
		sched_finish(t, finish);
		t = s->first; /* callbacks may have ended others */
	}
}

/* Steps of an earlier life's executor end in the ring; what is sure is only known after them. */
static void check_drained(struct sched *s)
{
	struct ring *ring = executor_ring(s->executor);
	struct turn *t;

	if (!s->draining || !ring || ring_in_flight(ring) > 0)
		return;
	s->draining = false;
	kvpool_idle(s->kv);
	for (t = s->first; t; t = t->next) {
		if (t->rec->slot != TURN_NO_SLOT)
			settle_place(t);
	}
}

/* Those that were put back hear of it; one at a time, for a callback may end any of them. */
static void tell_put_back(struct sched *s)
{
	struct turn *t = s->first;

	while (t) {
		if (!t->untold) {
			t = t->next;
			continue;
		}
		t->untold = false;
		if (t->on_state)
			t->on_state(t);
		t = s->first;
	}
}

/* Returns whether any turn was in flight. */
static bool count_faults(struct sched *s)
{
	bool any = false;

	for (struct turn *t = s->first; t; t = t->next) {
		if (t->n_in_flight == 0)
			continue;
		any = true;
		t->rec->n_faults++;
		t->cleared_at = t->rec->n_ids + STEP_DEPTH_MAX;
	}
	return any;
}

static void end_faulty(struct sched *s, uint32_t faults_max)
{
	struct turn *t = s->first;

	while (t) {
		if (t->rec->n_faults < faults_max) {
			t = t->next;
			continue;
		}
		sched_finish(t, FINISH_FAULT);
		t = s->first; /* callbacks may have ended others */
	}
}

/* All KV is lost: those that were in flight when it died are suspects. */
static void restart_turns(struct sched *s, bool died)
{
	const bool in_flight = died && count_faults(s);

	for (struct turn *t = s->first; t; t = t->next) {
		if (atomic_load(&t->rec->state) == TURN_RUNNING)
			sched_put_back(t);
	}
	s->n_flights = 0;
	s->pace = (struct pace){ 0 };
	s->done = 0;
	for (uint32_t i = 0; i < STEP_ROWS_MAX; i++)
		s->slot_busy[i] = 0;
	kvcache_executor_lost(s->cache, executor_uses_arena(s->executor));
	kvpool_idle(s->kv);
	if (in_flight)
		end_faulty(s, s->deaths < DEATHS_MAX ? FAULTS_MAX : 1);
	tell_put_back(s);
}

/* Notices what happened to the executor since the last look. */
static void look_at_executor(struct sched *s)
{
	const uint32_t generation = executor_generation(s->executor);
	const uint32_t deaths = executor_deaths(s->executor);
	const bool died = deaths > s->deaths;
	struct ring *ring = executor_ring(s->executor);
	struct stat st;

	if (!ring || s->ring_ino == 0 || generation != s->generation)
		s->ring_ino = ring && fstat(ring->memfd, &st) == 0 ? st.st_ino : 0;
	if (generation != s->generation && s->generation == 0 && executor_is_adopted(s->executor)) {
		/* the first one seen, and it comes from an earlier life with its slots */
		s->generation = generation;
		s->deaths = deaths;
		s->draining = true; /* ends when the ring is empty */
		return;
	}
	s->deaths = deaths;
	if (generation == s->generation && !died)
		return;
	s->generation = generation;
	s->draining = false;
	sched_end_tidying(s); /* it is worth no second executor */
	restart_turns(s, died);
}

static bool computes(const struct sched *s)
{
	for (uint32_t i = 0; i < s->n_flights; i++) {
		if (!s->flights[i].is_move)
			return true;
	}
	return s->draining;
}

/* Steps in flight are over: nobody needs a place, and what was computed is sealed. */
static void lay_down(struct sched *s)
{
	if (!s->resting || computes(s))
		return;
	for (struct turn *t = s->first; t; t = t->next) {
		if (t->rec->slot != TURN_NO_SLOT)
			sched_put_back(t);
	}
}

void sched_rest(struct sched *s, bool halted)
{
	s->halted |= halted;
	if (s->resting)
		return;
	s->resting = true;
	sched_end_tidying(s);
	pump_later(s);
}

void sched_go_on(struct sched *s)
{
	s->halted = false;
	if (!s->resting)
		return;
	s->resting = false;
	pump_later(s);
}

bool sched_is_resting(const struct sched *s)
{
	return s->resting;
}

bool sched_is_at_rest(const struct sched *s)
{
	if (!executor_ring(s->executor) || executor_is_dying(s->executor))
		return true;
	for (const struct turn *t = s->first; t; t = t->next) {
		if (t->rec->slot != TURN_NO_SLOT)
			return false;
	}
	return s->resting && s->n_flights == 0 && !s->draining && !kvcache_has_orders(s->cache);
}

uint32_t sched_work(const struct sched *s)
{
	struct sched_counts counts;

	if (s->halted)
		return 0;
	sched_count(s, (uid_t)-1, &counts);
	return counts.n_queued + counts.n_running - counts.n_paused + sched_is_tidying(s);
}

void sched_executor_changed(struct sched *s)
{
	look_at_executor(s);
	if (!executor_ring(s->executor) || executor_is_dying(s->executor))
		sched_end_tidying(s);
	sched_apply(s);
	if (s->on_applied)
		s->on_applied(s->userdata); /* the executor has another step: readers come first */
	check_drained(s);
	if (s->unsettled && !s->draining)
		end_settled(s);
	keep_deadlines(s);
	lay_down(s);
	sched_admit(s);
	if (sched_settle(s))
		pump_later(s);
	sched_push(s);
	stuck_look(s);
	tell_put_back(s);
}

void sched_results(struct sched *s)
{
	sched_executor_changed(s);
}

void sched_count(const struct sched *s, uid_t uid, struct sched_counts *ret)
{
	*ret = (struct sched_counts){ 0 };
	for (const struct turn *t = s->first; t; t = t->next) {
		if (t->rec->tidy || (uid != (uid_t)-1 && t->rec->uid != uid))
			continue;
		ret->n_paused += t->paused;
		if (t->rec->slot != TURN_NO_SLOT) {
			ret->n_running++;
		} else {
			ret->n_queued++;
			ret->queued_tokens += t->rec->n_ids;
		}
	}
}

bool sched_is_idle(const struct sched *s)
{
	struct ring *ring = executor_ring(s->executor);

	return !s->first && (!ring || ring_in_flight(ring) == 0);
}

uint64_t sched_steps(const struct sched *s)
{
	return s->n_steps;
}

uint64_t sched_deep_steps(const struct sched *s)
{
	return s->n_deep_steps;
}

const struct fair *sched_fair(const struct sched *s)
{
	return &s->fair;
}

/* With @n_users. */
static struct kv_shares shares_among(const struct sched *s, uint32_t n_users)
{
	const uint32_t context = sched_pages(s, turns_max_context(s->turns));

	return shares_of(kvpool_pages(s->kv), n_users, MIN(context, kvpool_pages(s->kv)),
			 s->settings->min_user_cache, s->settings->max_user_cache);
}

struct kv_shares sched_shares(const struct sched *s)
{
	uint32_t n_users = 0;

	for (uint32_t i = 0; i < s->fair.n_users; i++)
		n_users += s->fair.users[i].n_turns > 0;
	return shares_among(s, n_users);
}

struct kv_shares sched_user_shares(const struct sched *s, uid_t uid)
{
	return shares_among(s, kvcache_users(s->cache, uid) + 1);
}
