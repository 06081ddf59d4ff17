/* What must hold of the broker of day.h, whatever happens to it. */
#include "tests/unit/day.h"

#include <math.h>

#include "daemon/kv/kvcache-parts.h"
#include "daemon/sched/fair.h"
#include "daemon/server/opening.h"
#include "daemon/server/stream.h"
#include "tests/unit/virtual-time.h"

uint32_t day_say(uint64_t seed, const uint32_t *ids, uint32_t n)
{
	uint64_t h = 1469598103934665603ull ^ seed;

	for (uint32_t i = 0; i < n; i++)
		h = (h ^ ids[i]) * 1099511628211ull;
	return computer_say(&day.computer, h);
}

/* Each record's answer is the toy model's, reckoned without any of the machinery. */
static void assert_text(const struct turn_record *rec, const uint32_t *ids)
{
	uint64_t h = 1469598103934665603ull ^ rec->sampler.seed;

	for (uint32_t i = 0; i < rec->n_ids; i++) {
		if (i >= rec->n_prompt)
			assert_int_equal(ids[i], computer_say(&day.computer, h));
		h = (h ^ ids[i]) * 1099511628211ull;
	}
}

/* Nobody but its user has a page, or it is of the marked prompt; and what is shared is sealed. */
static void assert_table(const struct engine *e, struct turn_record *rec,
			 struct turn_record **holders)
{
	const kv_page *table = turn_page_table(e->turns, rec);

	assert_true(rec->slot < sched_slots(&day.settings));
	for (uint32_t k = 0; k < rec->n_pages; k++) {
		const struct prefix_node *node;

		assert_true(table[k] < DAY_PAGES);
		node = e->kv->by_page[table[k]];
		assert_true(!node || node->uid == rec->uid || node->uid == CHAIN_SHARED_UID);
		if (holders[table[k]]) {
			assert_non_null(node);
			assert_true(holders[table[k]]->uid == rec->uid ||
				    node->uid == CHAIN_SHARED_UID);
		}
		holders[table[k]] = rec;
	}
}

/* The user whose turn wrote there, by its seed; 0: nobody's turn did. */
static uid_t writer_of(kv_page page, uint32_t i)
{
	const uint32_t seed = *computer_writer(&day.computer, page, i);

	return seed ? DAY_UID + seed % DAY_USERS : 0;
}

/* What counts as a user's own holds nothing that another wrote, but for what was marked. */
static void assert_cleared(const struct engine *e, struct turn_record *rec)
{
	const uint32_t *ids = turn_ids(e->turns, rec);
	const kv_page *table = turn_page_table(e->turns, rec);

	for (uint32_t k = 0; k < rec->n_pages && day.computer.fd >= 0; k++) {
		const kv_page page = table[k];

		if (e->kv->by_page[page] || kvdir_owner(e->kv->dir, page) != rec->uid)
			continue;
		for (uint32_t i = 0, at = k * DAY_PAGE_TOKENS; i < DAY_PAGE_TOKENS; i++, at++) {
			const uint32_t entry = *computer_position(&day.computer, page, i);
			const uid_t uid = writer_of(page, i);

			if (uid != 0 && uid != rec->uid &&
			    !(at < rec->n_ids && computer_token(entry) == ids[at]))
				fail_msg(
					"page %u counts as user %u's, and holds what user %u wrote",
					page, rec->uid, uid);
		}
	}
}

static void assert_turns(const struct engine *e)
{
	struct turn_record *holders[DAY_PAGES] = { NULL }, *rec = NULL;
	const enum executor_state state = executor_state(e->executor);

	while ((rec = turns_next(e->turns, rec))) {
		if (rec->state == TURN_OPEN)
			continue;
		assert_text(rec, turn_ids(e->turns, rec));
		if (rec->state != TURN_RUNNING || rec->slot == TURN_NO_SLOT)
			continue;
		/* what sleeps computes nothing, and what it computed is safe */
		assert_true(state != EXECUTOR_GONE);
		assert_table(e, rec, holders);
		assert_cleared(e, rec);
	}
}

/* What was sealed, and is believed, is what its tokens make: nothing else could be served. */
static void assert_content(const struct engine *e)
{
	const struct computer *c = &day.computer;

	for (kv_page page = 0; page < DAY_PAGES && c->fd >= 0; page++) {
		const struct prefix_node *node = e->kv->by_page[page];
		uint32_t before = 0;

		if (!node || node->loading || node->trust != PREFIX_CHECKED)
			continue;
		for (uint32_t i = 0; i < node->n_tokens; i++) {
			const uint32_t entry = *computer_position(c, page, i);

			assert_int_equal(computer_token(entry), node->tokens[i]);
			if (i > 0 || node->depth == 1)
				assert_int_equal(entry, computer_entry(before, node->tokens[i]));
			before = entry;
		}
	}
}

static void assert_pages(const struct engine *e)
{
	struct kvcache_counts n;

	assert_content(e);
	kvcache_check(e->kv);
	kvcache_count(e->kv, &n);
	assert_int_equal(n.n_free + n.n_held + n.n_kept, DAY_PAGES);
}

static void assert_accounts(const struct engine *e)
{
	const struct fair *f = sched_fair(e->sched);
	double sum = f->forgotten_us;

	for (uint32_t i = 0; i < f->n_users; i++)
		sum += f->users[i].used_us;
	assert_true(fabs(sum - f->measured_us) <= 1e-6 * f->measured_us);
}

/* The executor is given up for nothing that it said: its only deaths are those that we made. */
static void assert_believed(const struct engine *e)
{
	assert_true(executor_deaths(e->executor) <= day.n_kills_since);
	assert_int_not_equal(executor_state(e->executor), EXECUTOR_REFUSED);
}

/* The disk has no more than it may have, nobody more than the quota, and it did not fail. */
static void assert_disk(const struct engine *e)
{
	struct kvdisk_counts n;
	uint64_t bytes;

	if (!e->disk)
		return;
	/* marked prompts are computed in the daemon's own name */
	bytes = kvdisk_user_bytes(e->disk, CHAIN_SHARED_UID) +
		kvdisk_user_bytes(e->disk, geteuid());
	for (uint32_t i = 0; i < DAY_USERS; i++) {
		const uint64_t user_bytes = kvdisk_user_bytes(e->disk, DAY_UID + i);

		assert_true(user_bytes <= DAY_QUOTA_BYTES);
		bytes += user_bytes;
	}
	kvdisk_count(e->disk, &n);
	assert_string_equal(kvdisk_text(e->disk), "");
	assert_true(n.store.bytes <= DAY_DISK_BYTES);
	if (bytes != n.store.bytes)
		fail_msg("%llu bytes of KV are the users', and %llu there in all",
			 (unsigned long long)bytes, (unsigned long long)n.store.bytes);
	assert_int_equal(n.store.n_failed, 0);
	assert_true(n.store.n_damaged == 0 || day.n.flips > 0);
	if (n.n_waiting == 0)
		assert_int_equal(n.n_pages, n.store.n_records);
}

/* Every request is somebody's, and counted once for each who pays for it. */
static void assert_users(const struct server *s)
{
	uint32_t n_peers = 0, n_requests = 0, n_left = 0, n_of_users = 0, n_streams_left = 0;
	const struct user *user;
	const struct stream *st;
	const struct peer *p;

	TAILQ_FOREACH(p, &s->peers, link) {
		n_peers++;
		n_requests += p->n_requests;
	}
	LIST_FOREACH(user, &s->users, link)
	{
		n_of_users += user->n_peers;
		n_requests -= user->n_requests;
		n_left += user->n_left;
	}
	TAILQ_FOREACH(st, &s->streams, link)
		n_streams_left += st->left;
	assert_int_equal(n_peers, s->n_peers);
	assert_int_equal(n_of_users, n_peers);
	assert_int_equal(n_requests, 0);
	assert_int_equal(n_left, n_streams_left);
}

void day_assert_all(void)
{
	const struct engine *e = day.server->engine;

	assert_users(day.server);
	assert_int_equal(day.server->refusal.code, 0);
	assert_false(opening_is_waiting(day.server->opening));
	if (!e)
		return;
	assert_turns(e);
	assert_pages(e);
	assert_accounts(e);
	assert_believed(e);
	assert_disk(e);
}

/* Nothing moves by itself: then nobody waits who could be served, and a timer is set for what comes next. */
void day_assert_quiet(void)
{
	const struct server *s = day.server;
	const struct engine *e = s->engine;
	const uint64_t timer_us = virtual_time_next();
	struct power_view view;
	const struct stream *st;

	power_look_at(s->power, &view);
	if (view.moving || executor_state(e->executor) == EXECUTOR_BACKOFF)
		return;
	if (executor_state(e->executor) == EXECUTOR_READY)
		assert_int_equal(sched_work(e->sched), 0); /* no request waits for ever */
	if (sched_work(e->sched) > 0 || kvcache_is_moving(e->kv))
		return;
	if (view.rung < POWER_GONE)
		assert_true(view.next_in_us > 0 && view.next > view.rung);
	else
		assert_int_equal(view.next_in_us, 0);
	/* no timer but the ladder's, unless somebody's answer pauses, or is kept for a while */
	if (!sched_is_idle(e->sched))
		return;
	TAILQ_FOREACH(st, &s->streams, link)
		if (st->expiry)
			return;
	if (timer_us > clock_us() + 10 * US_PER_S || timer_us == 0) {
		const uint64_t power_us = power_next_us(s->power);

		if (timer_us < power_us || timer_us > power_us + US_PER_S)
			fail_msg("a timer is due at %llu us, the ladder's at %llu, now is %llu",
				 (unsigned long long)timer_us, (unsigned long long)power_us,
				 (unsigned long long)clock_us());
		day.n.quiet++;
	}
}
