/*
 * A desktop's day on the virtual clock: 24 hours, and over them 1,000 requests of
 * growing conversations of three users, two of whom begin with a marked prompt,
 * with sleep by idleness and by wish, restarts of the broker, reboots, deaths of
 * the executor, flipped bits, stalled readers, cancels and deadlines, in an arena
 * that holds a part of it all, with a disk behind it that holds some more. The
 * broker's objects are the real ones, the ladder of sleep, the disk's files and
 * the store of sessions too; none has a thread, so that a seed is a day. What
 * must hold is looked at after every step, and what the store has in every life
 * of the broker. Of the broker only daemon/server is not here: sockets, the requests that
 * come by them, and what it counts of a connection.
 *
 * Usage: test-day [FIRST-LAST | N]: the days of these seeds, or of 1 to N.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "client/wire/ownership.h"
#include "daemon/base/log.h"
#include "daemon/kv/kvcache-parts.h"
#include "daemon/kv/tiers.h"
#include "daemon/power/sleeper.h"
#include "daemon/sched/fair.h"
#include "tests/unit/daybook.h"
#include "tests/unit/world.h"

/* The sanitizers take ten times as long. */
#ifdef __SANITIZE_ADDRESS__
#define SEEDS 4
#else
#define SEEDS 20
#endif

#define REQUESTS 1000
#define TALKS DAYBOOK_SESSIONS
#define USERS 3
#define CONTEXT 512
#define PAGES 224 /* of 20 conversations of up to 32 */
#define SLOTS 8
#define DISK_BYTES (24ull << 20) /* of which a page takes 8 KiB */
#define DAY_US (24 * 3600 * US_PER_S)
#define WISHES 4 /* outstanding at once */

/* A 5 GB model with 64 experts on two cores. */
static const struct computer_cost cost = { 25000, 130000, 0.125, 7000, 700, 300 };

/* What the application of two of the users always says, which is marked. */
#define OPENING 70
static uint32_t marked[OPENING];
static const uint32_t n_marked_pages = OPENING / WORLD_PAGE_TOKENS;

/* A conversation, and the request that goes on with it. */
struct talk {
	uint32_t ids[CONTEXT + 1], n; /* all that was said, by either side */
	const char *label;
	uid_t uid;
	bool asked;
};

/* A request, by the index of its turn. */
struct request {
	struct talk *talk;
	uint32_t prompt[CONTEXT], n_prompt, max_tokens;
	bool ended, cancelled, has_deadline, is_paused;
	bool closed;	 /* ended, and the store knows it, or it is lost */
	uint32_t n_told; /* ids that its reader has been told of */
};

static struct day {
	struct world w;
	uint64_t rng;
	struct users { /* what they know */
		struct talk talks[TALKS];
		struct request requests[REQUESTS];
		uint32_t n_asked, n_open, n_unsaved; /* unsaved: ended, not closed */
	} u;
	struct daybook book; /* their sessions, talk for talk */
	struct power *power;
	struct power_wish wishes[WISHES];
	struct sleeper sleeper;
	uint64_t (*yield_pages)(uint64_t bytes, void *userdata); /* the sleeper's */
	enum executor_state was;
	uint32_t seen;			    /* of what the ladder looks at */
	uint64_t begun_us, at_us[REQUESTS]; /* when each is asked, since then */
	bool bits_flip, was_killed;
	uint64_t n_prompt_tokens, n_sampled;
	struct counted {
		uint32_t reboots, lost, restarts, inside, before, late, kills, parks, leaves, flips,
			cancels, deadlines, faults, pauses, lengths, wakes, wishes, yields, ticks;
	} n;
	uint64_t n_evicted, n_damaged, n_found, n_written, n_read; /* of caches that are gone */
} day;

static uint32_t random_below(uint32_t n)
{
	uint64_t z = day.rng += 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return (uint32_t)((z ^ z >> 31) % n);
}

static bool one_in(uint32_t n)
{
	return random_below(n) == 0;
}

/* What must hold. */

/* The toy model's text, reckoned without any of the machinery. */
static void assert_text(const struct request *q, const struct turn_record *rec, const uint32_t *ids)
{
	uint64_t h = 1469598103934665603ull ^ rec->sampler.seed;

	assert_int_equal(rec->n_prompt, q->n_prompt);
	assert_memory_equal(ids, q->prompt, q->n_prompt * sizeof(*ids));
	for (uint32_t i = 0; i < rec->n_ids; i++) {
		if (i >= rec->n_prompt)
			assert_int_equal(ids[i], (h >> 20) % COMPUTER_VOCAB);
		h = (h ^ ids[i]) * 1099511628211ull;
	}
}

/* Nobody but its user has a page, or it is of the marked prompt; and what is shared is sealed. */
static void assert_tables(const struct world *w)
{
	static uint32_t holder[PAGES]; /* index of the turn that was seen with it, + 1 */

	memset(holder, 0, sizeof(holder));
	for (uint32_t i = 0; i < day.u.n_asked; i++) {
		const struct turn *t = &w->t[i];
		const kv_page *table;

		if (!t->sched || t->rec->slot == TURN_NO_SLOT)
			continue;
		assert_true(t->rec->slot < SLOTS);
		table = turn_page_table(w->turns, t->rec);
		for (uint32_t k = 0; k < t->rec->n_pages; k++) {
			const struct prefix_node *node;

			assert_true(table[k] < PAGES);
			node = w->cache->by_page[table[k]];
			assert_true(!node || node->uid == t->rec->uid ||
				    (node->uid == CHAIN_SHARED_UID && k < n_marked_pages));
			if (holder[table[k]] > 0) {
				assert_true(w->t[holder[table[k]] - 1].rec->uid == t->rec->uid ||
					    (node && node->uid == CHAIN_SHARED_UID));
				assert_non_null(node);
			}
			holder[table[k]] = i + 1;
		}
	}
}

static void assert_pages(const struct world *w)
{
	struct kvcache_counts n;

	kvcache_check(w->cache);
	kvcache_count(w->cache, &n);
	assert_int_equal(n.n_free + n.n_held + n.n_kept, PAGES);
}

static void assert_accounts(const struct world *w)
{
	const struct fair *f = sched_fair(w->sched);
	double sum = f->forgotten_us;

	assert_true(f->n_users <= USERS);
	for (uint32_t i = 0; i < f->n_users; i++)
		sum += f->users[i].used_us;
	assert_true(fabs(sum - f->measured_us) <= 1e-6 * f->measured_us);
}

/* The executor is given up for nothing that it said: its only deaths are those that we made. */
static void assert_believed(const struct world *w)
{
	assert_true(executor_deaths(w->executor) <= day.was_killed);
	if (executor_state(w->executor) == EXECUTOR_READY && executor_deaths(w->executor) == 0)
		day.was_killed = false;
}

/* The disk has no more than it may have, nobody more than a half of it, and did not fail. */
static void assert_disk(const struct world *w)
{
	uint64_t bytes = kvdisk_user_bytes(w->disk, CHAIN_SHARED_UID);
	struct kvdisk_counts n;

	assert_true(bytes <= DISK_BYTES / 2);
	for (uint32_t i = 0; i < USERS; i++) {
		const uint64_t user_bytes = kvdisk_user_bytes(w->disk, 1000 + i);

		assert_true(user_bytes <= DISK_BYTES / 2);
		bytes += user_bytes;
	}

	kvdisk_count(w->disk, &n);
	assert_string_equal(kvdisk_text(w->disk), "");
	assert_true(n.store.bytes <= DISK_BYTES);
	assert_int_equal(bytes, n.store.bytes); /* there are no others */
	assert_int_equal(n.store.n_failed, 0);
	assert_true(n.store.n_damaged == 0 || day.n.flips > 0); /* it may have been written so */
	if (n.n_waiting == 0)
		assert_int_equal(n.n_pages, n.store.n_records);
}

/* What sleeps computes nothing, and what it computed is safe. */
static void assert_asleep(const struct world *w)
{
	const enum executor_state state = executor_state(w->executor);

	if (state != EXECUTOR_PARKED && state != EXECUTOR_GONE)
		return;
	for (uint32_t i = 0; i < day.u.n_asked; i++)
		assert_true(!w->t[i].sched || w->t[i].rec->slot == TURN_NO_SLOT);
}

/* Nothing moves by itself: then nobody waits for it, and a timer is set for what comes next. */
static void assert_quiet(const struct world *w)
{
	struct power_view view;

	power_look_at(day.power, &view);
	if (view.moving)
		return;
	if (executor_state(w->executor) == EXECUTOR_READY)
		assert_int_equal(sched_work(w->sched), 0); /* no request waits for ever */
	if (sched_work(w->sched) > 0 || kvcache_is_moving(w->cache))
		return;
	if (view.rung < POWER_GONE)
		assert_true(view.next_in_us > 0 && view.next > view.rung);
	if (view.rung == POWER_GONE)
		assert_int_equal(view.next_in_us, 0);
}

static void assert_all(const struct world *w)
{
	assert_asleep(w);
	assert_disk(w);
	assert_believed(w);
	assert_tables(w);
	assert_pages(w);
	assert_accounts(w);
}

/* What users do. */

static void on_heard(struct world *w, struct turn *t)
{
	struct request *q = &day.u.requests[t - w->t];

	assert_false(q->ended);
	assert_true(t->rec->n_ids > q->n_told); /* once told, never less */
	q->n_told = t->rec->n_ids;
}

static void on_ended(struct world *w, struct turn *t)
{
	struct request *q = &day.u.requests[t - w->t];
	struct turn_record *rec = t->rec;
	const uint32_t *ids = turn_ids(w->turns, rec);

	assert_false(q->ended);
	q->ended = true;
	day.u.n_open--;
	assert_text(q, rec, ids);
	assert_true(rec->n_ids >= q->n_told);
	if (q->cancelled) {
		assert_int_equal(rec->finish, FINISH_CANCELLED);
		day.n.cancels++;
	} else if (rec->finish == FINISH_DEADLINE) {
		assert_true(q->has_deadline);
		day.n.deadlines++;
	} else if (rec->finish == FINISH_FAULT) {
		assert_int_equal(rec->n_faults,
				 2); /* in flight at two deaths that it did not come past */
		day.n.faults++;
	} else {
		assert_int_equal(rec->finish, FINISH_LENGTH);
		assert_int_equal(rec->n_ids - rec->n_prompt, q->max_tokens);
		day.n.lengths++;
	}
	day.n_sampled += rec->n_ids - rec->n_prompt;
	q->talk->n = rec->n_ids;
	memcpy(q->talk->ids, ids, rec->n_ids * sizeof(*ids));
	day.u.n_unsaved++;
}

static uint32_t session_of(const struct request *q)
{
	return (uint32_t)(q->talk - day.u.talks);
}

/* An answer of which nothing was said, or that no executor could give, was no turn. */
static void save(struct world *w, struct turn *t, const struct request *q)
{
	const struct turn_record *rec = t->rec;

	if (rec->finish == FINISH_FAULT || rec->n_ids == rec->n_prompt)
		daybook_abort(&day.book, session_of(q), rec->session_turn);
	else
		daybook_commit(&day.book, session_of(q), rec->session_turn,
			       turn_finish_name(rec->finish), turn_ids(w->turns, t->rec),
			       rec->n_prompt, rec->n_ids);
}

static void close_request(struct request *q)
{
	q->closed = true;
	q->talk->asked = false;
	day.u.n_unsaved--;
}

/* What the store's thread has come to; its record goes when that is known. */
static void save_some(struct world *w, bool all)
{
	for (uint32_t i = 0; i < day.u.n_asked && day.u.n_unsaved > 0; i++) {
		struct request *q = &day.u.requests[i];

		if (!q->ended || q->closed || (!all && !one_in(3)))
			continue;
		save(w, &w->t[i], q);
		if (!all && w->t[i].rec->finish == FINISH_LENGTH && one_in(8))
			continue; /* saved, and that is not known yet */
		turns_drop(w->turns, w->t[i].rec);
		w->t[i].rec = NULL;
		close_request(q);
		if (one_in(8))
			daybook_tidy(&day.book);
	}
}

static struct talk *quiet_talk(void)
{
	const uint32_t from = random_below(TALKS);

	for (uint32_t i = 0; i < TALKS; i++) {
		if (!day.u.talks[(from + i) % TALKS].asked)
			return &day.u.talks[(from + i) % TALKS];
	}
	return NULL;
}

static void say(struct talk *talk, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		talk->ids[talk->n++] = random_below(COMPUTER_VOCAB);
}

static uint32_t opening(uint32_t i, uid_t uid)
{
	return (i * 13 + uid % 2) % COMPUTER_VOCAB;
}

/* All begin with what their application always says; some go back, some take over another's. */
static void prepare(struct talk *talk, uint32_t n_room)
{
	const uint32_t n_new = 1 + random_below(60);

	if (one_in(12) && talk->n > 60)
		talk->n -= random_below(talk->n - 50);
	if (one_in(15)) {
		const struct talk *other = &day.u.talks[random_below(TALKS)];

		if (!other->asked && other->uid == talk->uid && other != talk) {
			memcpy(talk->ids, other->ids, sizeof(talk->ids));
			talk->n = other->n;
		}
	}
	if (talk->n + n_new + n_room > CONTEXT || one_in(40))
		talk->n = 0;
	if (talk->n == 0) {
		for (uint32_t i = 0; i < OPENING; i++)
			talk->ids[talk->n++] = opening(i, talk->uid);
	}
	daybook_rewind(&day.book, (uint32_t)(talk - day.u.talks), talk->n);
	say(talk, n_new);
}

static void restart_broker(struct world *w, bool killed);

/* The store knows the question; the broker may die before there is a turn. */
static bool begin(struct world *w, const struct talk *talk, uint32_t *ret_turn)
{
	*ret_turn = daybook_begin(&day.book, (uint32_t)(talk - day.u.talks), day.u.n_asked);
	if (!one_in(100) || executor_state(w->executor) != EXECUTOR_READY || day.was_killed)
		return true;
	restart_broker(w, true);
	day.n.before++;
	return false;
}

static void ask(struct world *w)
{
	struct request *q = &day.u.requests[day.u.n_asked];
	struct talk *talk = quiet_talk();
	struct err err = { 0 };
	uint32_t session_turn;
	struct turn *t;

	if (!talk)
		return;
	q->max_tokens = one_in(10) ? 1 + random_below(100) : 1 + random_below(30);
	prepare(talk, q->max_tokens);
	if (!begin(w, talk, &session_turn))
		return;
	q->talk = talk;
	q->n_prompt = q->n_told = talk->n;
	memcpy(q->prompt, talk->ids, talk->n * sizeof(*talk->ids));

	t = world_add(w, talk->uid, talk->n, q->max_tokens);
	assert_ptr_equal(t, &w->t[day.u.n_asked]);
	snprintf(t->rec->label, sizeof(t->rec->label), "%s", talk->label);
	t->rec->session = day.book.sessions[session_of(q)].id;
	t->rec->session_turn = session_turn;
	t->rec->batch = one_in(3);
	memcpy(turn_ids(w->turns, t->rec), talk->ids, talk->n * sizeof(*talk->ids));
	q->has_deadline = one_in(25);
	if (q->has_deadline)
		t->rec->deadline_us = clock_us() + US_PER_S / 10 + random_below(5 * US_PER_S);
	assert_int_equal(sched_submit(w->sched, t, &err), 0);
	talk->asked = true;
	day.n_prompt_tokens += talk->n;
	day.u.n_asked++;
	day.u.n_open++;
}

/* One that is open, at random; NULL: none. */
static struct turn *some_turn(struct world *w)
{
	const uint32_t from = day.u.n_asked > 0 ? random_below(day.u.n_asked) : 0;

	for (uint32_t i = 0; i < day.u.n_asked && day.u.n_open > 0; i++) {
		struct turn *t = &w->t[(from + i) % day.u.n_asked];

		if (t->sched)
			return t;
	}
	return NULL;
}

static void cancel(struct world *w)
{
	struct turn *t = some_turn(w);

	if (!t)
		return;
	day.u.requests[t - w->t].cancelled = true;
	sched_finish(t, FINISH_CANCELLED);
}

static void stall_or_read(struct world *w)
{
	struct turn *t = some_turn(w);
	struct request *q;

	if (!t)
		return;
	q = &day.u.requests[t - w->t];
	q->is_paused = !q->is_paused;
	day.n.pauses += q->is_paused;
	sched_pause(t, q->is_paused);
}

static void all_read(struct world *w)
{
	for (uint32_t i = 0; i < day.u.n_asked; i++) {
		if (w->t[i].sched)
			sched_pause(&w->t[i], day.u.requests[i].is_paused = false);
	}
}

/* The ladder, with what the server gives it. */

static uint64_t count_yield(uint64_t bytes, void *userdata)
{
	day.n.yields++;
	return day.yield_pages(bytes, userdata);
}

static void open_power(struct world *w)
{
	struct power_options options = { .settings = &w->settings,
					 .no_pressure = true,
					 .no_suspend = true };

	day.sleeper = (struct sleeper){ .loop = w->loop,
					.sched = w->sched,
					.kv = w->cache,
					.executor = w->executor,
					.page_bytes = WORLD_PAGE_TOKENS * 4,
					.page_tokens = WORLD_PAGE_TOKENS };
	sleeper_options(&day.sleeper, &options);
	day.yield_pages = options.yield_pages;
	options.yield_pages = count_yield;
	assert_int_equal(power_new(w->loop, &options, &day.power, NULL), 0);
	day.sleeper.power = day.power;
	power_set_executor(day.power, w->executor);
	if (executor_record(w->executor)->halted)
		power_halt(day.power);
	day.was = executor_state(w->executor);
	day.seen = UINT32_MAX; /* nothing */
}

/* Before what it looks after goes. */
static void close_power(void)
{
	day.power = power_free(day.power);
	sleeper_leave(&day.sleeper);
	for (uint32_t i = 0; i < WISHES; i++)
		assert_null(day.wishes[i].power);
}

static void on_wish_done(struct power_wish *wish, int r, const struct err *err)
{
	assert_true(r == 0 || r == -ECANCELED);
	assert_int_equal(r < 0, err && err->text[0]);
	day.n.wishes += r == 0;
	(void)wish;
}

/* Somebody wants it to sleep, to wake up, to give memory back, or does not want that any more. */
static void wish(enum power_wish_kind kind)
{
	struct power_wish *wish = &day.wishes[random_below(WISHES)];
	struct err err = { 0 };

	if (wish->power) {
		power_withdraw(wish);
		return;
	}
	*wish = (struct power_wish){
		.kind = kind,
		.rung = one_in(2) ? POWER_PARKED : POWER_GONE,
		.now = one_in(2),
		.bytes = (uint64_t)random_below(PAGES) * WORLD_PAGE_TOKENS * 4,
		.on_done = on_wish_done,
	};
	assert_int_equal(power_ask(day.power, wish, &err), 0);
}

static void wish_something(void)
{
	static const enum power_wish_kind kinds[] = { POWER_WISH_SLEEP, POWER_WISH_SLEEP,
						      POWER_WISH_YIELD, POWER_WISH_WAKE };

	wish(kinds[random_below(ARRAY_SIZE(kinds))]);
}

/* As the server does when what the ladder looks at has changed. */
static void look(const struct world *w)
{
	const enum executor_state state = executor_state(w->executor);
	const uint32_t seen = (uint32_t)state | sched_work(w->sched) << 8 |
			      (uint32_t)kvcache_is_moving(w->cache) << 4 |
			      (uint32_t)sched_is_at_rest(w->sched) << 5;

	if (seen != day.seen)
		power_look(day.power);
	day.seen = seen;
	day.n.parks += state == EXECUTOR_PARKED && day.was != state;
	day.n.leaves += state == EXECUTOR_GONE && day.was != state;
	day.n.wakes += state != day.was && (day.was == EXECUTOR_PARKED || day.was == EXECUTOR_GONE);
	day.was = state;
}

/* The clock goes on to @until_us, or to the ladder's timer if that is before. */
static void pass(uint64_t until_us)
{
	const uint64_t next_us = power_next_us(day.power);

	if (next_us == 0 || next_us > until_us) {
		clock_advance(until_us - clock_us());
		return;
	}
	clock_advance(MAX(next_us, clock_us() + 1) - clock_us());
	power_tick(day.power);
	day.n.ticks++;
}

/* What the machine does. */

static void keep_counts(const struct world *w)
{
	struct kvcache_counts n;

	kvcache_count(w->cache, &n);
	day.n_evicted += n.n_evicted;
	day.n_damaged += n.n_damaged;
	day.n_found += n.n_found_tokens;
	day.n_written += n.n_written;
	day.n_read += n.n_read;
}

/* A bit of a page that was left to be found: it is looked at once when broker or executor are new. */
static void flip_bit(struct world *w)
{
	const kv_page page = random_below(PAGES);
	const struct prefix_node *node = w->cache->by_page[page];

	if (!node || kvpool_holders(w->kv, page) > 0 || w->computer.fd < 0)
		return;
	w->computer.kv[page * WORLD_PAGE_TOKENS + random_below(node->n_tokens)] ^=
		1u << random_below(32);
	day.n.flips++;
}

/* The next broker's store has the turns of the records that it finds. */
static void restart_store(struct world *w, enum daybook_end end)
{
	struct turn_record *rec = NULL;
	struct store_live live[TURNS_MAX];
	uint32_t n = 0;

	while ((rec = turns_next(w->turns, rec)))
		live[n++] = (struct store_live){ rec->session, rec->session_turn };
	daybook_restart(&day.book, end, 0, live, n);
}

static void restart_broker(struct world *w, bool killed)
{
	if (executor_state(w->executor) != EXECUTOR_READY)
		return;
	if (day.bits_flip && one_in(3))
		flip_bit(w);
	keep_counts(w);
	close_power();
	world_restart_broker(w);
	open_power(w);
	restart_store(w, killed ? DAYBOOK_KILLED : DAYBOOK_STOPPED);
	for (uint32_t i = 0; i < day.u.n_asked; i++) {
		struct request *q = &day.u.requests[i];

		/* readers come back */
		if (w->t[i].rec)
			q->is_paused = false;
		assert_int_equal(w->t[i].rec != NULL, !q->closed);
	}
	day.n.late += day.u.n_unsaved;
	day.n.restarts++;
}

/* Power is cut; who waited for an answer asks again, or not. */
static void reboot(struct world *w)
{
	keep_counts(w);
	close_power();
	world_reboot(w);
	open_power(w);
	daybook_restart(&day.book, one_in(2) ? DAYBOOK_POWER_CUT : DAYBOOK_POWER_TORN, day.rng,
			NULL, 0);
	w->n_turns = day.u.n_asked;
	for (uint32_t i = 0; i < day.u.n_asked; i++) {
		struct request *q = &day.u.requests[i];

		if (q->closed)
			continue;
		if (!q->ended) {
			q->ended = true;
			day.u.n_open--;
			day.u.n_unsaved++;
		}
		close_request(q);
		day.n.lost++;
	}
	day.was_killed = false;
	day.n.reboots++;
}

/*
 * The broker dies in the middle of a result: the first of its tokens was stored,
 * and what came after that, ends of turns too, nobody has heard of.
 */
static void die_inside(struct world *w)
{
	static struct users before;
	struct power_view view;

	power_look_at(day.power, &view);
	if (executor_state(w->executor) != EXECUTOR_READY || view.moving)
		return;
	before = day.u;
	w->remember_at_step = w->computer.n_steps;
	if (world_listen(w))
		day.seen = UINT32_MAX; /* it may have ended something */
	if (w->remembered) {
		day.u = before;
		restart_broker(w, true);
		day.n.inside++;
	}
	w->remember_at_step = 0;
}

/* The third death in a row would be waited for, on the real clock. */
static void kill_executor(struct world *w)
{
	const enum executor_state state = executor_state(w->executor);

	if ((state != EXECUTOR_READY && state != EXECUTOR_PARKED) ||
	    executor_deaths(w->executor) > 0)
		return;
	if (day.bits_flip && one_in(3))
		flip_bit(w);
	computer_die(&w->computer);
	day.was_killed = true;
	day.n.kills++;
}

/* The toy executor does as it was told: the orders of sleep are not steps. */
static bool obey(struct world *w)
{
	const struct control_parked parked = { .kind = CONTROL_PARKED, .freed_bytes = 1 };
	struct control_order order;

	if (executor_state(w->executor) == EXECUTOR_READY || w->computer.fd < 0 ||
	    recv(w->computer.fd, &order, sizeof(order), MSG_DONTWAIT) != sizeof(order))
		return false;
	while (computer_step(&w->computer))
		;
	if (order.kind == CONTROL_PARK)
		assert_int_equal(send(w->computer.fd, &parked, sizeof(parked), 0), sizeof(parked));
	else
		computer_ready(&w->computer);
	return true;
}

static int compare_times(const void *a, const void *b)
{
	const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* Few ask at night, and some things come in bursts. */
static void plan_day(void)
{
	for (uint32_t i = 0; i < REQUESTS; i++) {
		uint64_t hour;

		do
			hour = random_below(24);
		while (hour < 7 && !one_in(5));
		day.at_us[i] = (hour * 3600 + random_below(3600)) * US_PER_S;
		if (i % 2 == 1)
			day.at_us[i] = MIN(day.at_us[i - 1] + random_below(4 * US_PER_S), DAY_US);
	}
	qsort(day.at_us, REQUESTS, sizeof(*day.at_us), compare_times);
}

static void something_happens(struct world *w)
{
	if (day.u.n_unsaved > 0)
		save_some(w, false);
	if (one_in(800))
		restart_broker(w, one_in(2));
	if (one_in(1500))
		die_inside(w);
	if (one_in(600))
		kill_executor(w);
	if (one_in(150))
		cancel(w);
	if (one_in(60))
		stall_or_read(w);
	if (one_in(2000))
		wish_something();
	if (one_in(2000))
		reboot(w);
}

static void live(struct world *w, uint64_t until_us)
{
	uint32_t still = 0;

	while (clock_us() < until_us) {
		if (obey(w) || world_turn(w)) {
			still = 0;
			look(w);
			assert_all(w);
			something_happens(w);
			continue;
		}
		if (day.u.n_unsaved > 0)
			save_some(w, true);
		look(w);
		if (++still < 3)
			continue;
		assert_quiet(w);
		still = 0;
		if (one_in(40))
			kill_executor(w); /* asleep, too */
		else if (one_in(12))
			wish_something();
		else
			pass(until_us);
	}
}

static void open_day(uint64_t seed)
{
	static const char *const labels[] = { "", "", "editor" };

	memset(&day, 0, sizeof(day));
	log_init("test", LOG_CRIT);
	day.rng = seed;
	day.bits_flip = seed % 2 == 0;
	clock_fake(1000000, 0);
	daybook_open(&day.book);
	world_open_context(&day.w, CONTEXT, PAGES, SLOTS, 128);
	for (uint32_t i = 0; i < OPENING; i++)
		marked[i] = opening(i, 0);
	world_mark(&day.w, marked, OPENING);
	day.w.disk_bytes = DISK_BYTES;
	world_open_disk(&day.w);
	day.w.computer.cost = &cost;
	day.w.heard = on_heard;
	day.w.ended = on_ended;
	day.w.settings.idle_park = 60 + random_below(600);
	day.w.settings.idle_exit = 300 + random_below(3600);
	open_power(&day.w);
	day.begun_us = clock_us();
	plan_day();
	settings_set(&day.w.settings, "UserWeights=1001:200", "test", NULL);
	for (uint32_t i = 0; i < TALKS; i++) {
		day.u.talks[i].uid = 1000 + i % USERS;
		day.u.talks[i].label = labels[i / USERS % ARRAY_SIZE(labels)];
		day.book.sessions[i].who = (struct store_who){ day.u.talks[i].uid,
							       day.u.talks[i].label };
	}
}

static void close_day(void)
{
	struct world *w = &day.w;

	for (uint32_t i = 0; i < WISHES; i++)
		power_withdraw(&day.wishes[i]);
	while (day.u.n_open > 0 || day.u.n_unsaved > 0 || sleeper_has_work(&day.sleeper)) {
		all_read(w);
		wish(POWER_WISH_WAKE);
		live(w, clock_us() + US_PER_S);
	}
	close_power();
	world_assert_all_free(w);
	for (uint32_t i = 0; i < day.u.n_asked; i++)
		assert_true(day.u.requests[i].closed);
	assert_null(turns_next(w->turns, NULL));
	keep_counts(w);
	restart_store(w, DAYBOOK_STOPPED);
	/* what follows a damaged page is lost with it; where no bit flips, nothing is */
	assert_true(day.n.flips > 0 || day.n_damaged == 0);
}

static void live_a_day(uint64_t seed)
{
	struct world *w = &day.w;
	uint64_t n_computed, n_us;

	print_message("seed %llu\n", (unsigned long long)seed);
	open_day(seed);
	while (day.u.n_asked < REQUESTS) {
		const uint64_t at_us = day.begun_us + day.at_us[day.u.n_asked];

		/* where all conversations wait for an answer, or the broker died before, a moment later */
		live(w, MAX(at_us, clock_us() + US_PER_S / 10));
		ask(w);
	}
	live(w, day.begun_us + DAY_US);
	n_us = clock_us() - day.begun_us;
	close_day();
	n_computed = w->computer.n_computed;
	print_message("  %.1f h: %u whole answers, %u cancelled, %u too late, %u ended by two "
		      "deaths; %u restarts, %u "
		      "of them inside a result, %u deaths, "
		      "%u times parked, %u gone and %u back, %u wishes granted, %u bits flipped "
		      "and %u pages not believed, %u "
		      "stalled readers\n",
		      n_us / 3.6e9, day.n.lengths, day.n.cancels, day.n.deadlines, day.n.faults,
		      day.n.restarts, day.n.inside, day.n.kills, day.n.parks, day.n.leaves,
		      day.n.wakes, day.n.wishes, day.n.flips, (uint32_t)day.n_damaged,
		      day.n.pauses);
	print_message("  %llu tokens of prompts, %llu sampled; %llu computed; %llu pages evicted\n",
		      (unsigned long long)day.n_prompt_tokens, (unsigned long long)day.n_sampled,
		      (unsigned long long)n_computed, (unsigned long long)day.n_evicted);
	print_message("  %u reboots, %u answers lost by them; %llu pages written, %llu read\n",
		      day.n.reboots, day.n.lost, (unsigned long long)day.n_written,
		      (unsigned long long)day.n_read);
	print_message("  %u turns begun, %u committed, %u of them told twice and %u by a later "
		      "broker, %u given up, %u unfinished at a restart, %u times gone back; %u "
		      "looked at again\n",
		      day.book.n_begun, day.book.n_committed, day.book.n_told_twice, day.n.late,
		      day.book.n_aborted, day.book.n_unfinished, day.book.n_rewound,
		      day.book.n_checked);
	/* the day was what it is meant to be */
	assert_true(n_us >= DAY_US && n_us < DAY_US + 600 * US_PER_S);
	assert_true(day.n.wakes > 0 && day.n.ticks > 0 && day.n.yields > 0 && day.n.wishes > 0);
	assert_true(day.n.reboots > 0 && day.n_written > 0 && day.n_read > 0);
	assert_true(day.n.inside > 0 && day.n.restarts > day.n.inside && day.n.kills > 0 &&
		    day.n.parks > 0 && day.n.leaves > 0);
	assert_true(day.n_evicted > 0 && day.n.cancels > 0 && day.n.pauses > 0);
	assert_true(n_computed < day.n_prompt_tokens / 2 + day.n_sampled);
	assert_true(day.book.n_told_twice > 0 && day.book.n_rewound > 0 && day.n.before > 0);
	assert_true(day.book.n_unfinished > 0 && day.book.n_checked > day.book.n_committed);
	daybook_close(&day.book);
	world_close(w);
	clock_real();
}

static uint64_t first = 1, last = SEEDS;

static void days_go_by(void **state)
{
	(void)state;
	for (uint64_t seed = first; seed <= last; seed++)
		live_a_day(seed);
}

static bool read_seeds(const char *text)
{
	char *end;

	last = strtoull(text, &end, 10);
	if (*end == '-') {
		first = last;
		last = strtoull(end + 1, &end, 10);
	}
	return *end == '\0' && first <= last;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(days_go_by),
	};

	if (argc > 2 || (argc == 2 && !read_seeds(argv[1]))) {
		fprintf(stderr, "Usage: test-day [FIRST-LAST | N]\n");
		return 2;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
