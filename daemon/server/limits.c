/* One object a user: what is used of each limit. */
#include "daemon/server/limits.h"

#include <jansson.h>

#include "daemon/base/clock.h"
#include "daemon/base/peruser.h"
#include "daemon/sched/fair.h"
#include "daemon/server/request.h"
#include "daemon/session/store.h"

static json_t *integer(uint64_t value)
{
	return json_integer((json_int_t)value);
}

static void put(json_t *object, const char *key, json_t *value)
{
	json_object_set_new(object, key, value); /* NULL is an error that json_dumps() survives */
}

static void put_limit(json_t *o, const char *key, uint64_t used, uint64_t limit)
{
	put(o, key, json_pack("{s:o, s:o}", "used", integer(used), "limit", integer(limit)));
}

static const struct user *find_user(const struct server *s, uid_t uid)
{
	const struct user *user;

	LIST_FOREACH(user, &s->users, link)
	{
		if (user->uid == uid)
			return user;
	}
	return NULL;
}

static bool has_disk(const struct engine *e)
{
	return e->disk && !kvdisk_text(e->disk)[0];
}

/* At least: of what need not be computed again, see shares.h. */
static void put_cache(json_t *o, const struct engine *e, uid_t uid)
{
	const struct kv_shares shares = sched_user_shares(e->sched, uid);
	const uint32_t least = has_disk(e) ? shares.kept_pages : shares.min_pages;

	put(o, "cache_pages",
	    json_pack("{s:o, s:o, s:o}", "used",
		      integer(kvpool_user_pages(kvcache_pool(e->kv), uid)), "least", integer(least),
		      "limit", integer(shares.max_pages)));
}

static void put_time(json_t *o, const struct server *s, uid_t uid)
{
	const struct fair_user *u = s->engine ? fair_find(sched_fair(s->engine->sched), uid) : NULL;
	uint32_t weight = FAIR_WEIGHT;

	peruser_find(s->settings->user_weights, "UserWeights", FAIR_WEIGHT_MAX, uid, &weight, NULL);
	put(o, "weight", integer(weight));
	put(o, "executor_ms", integer(u ? (uint64_t)(u->used_us / US_PER_MS) : 0));
}

static void put_sessions(json_t *o, const struct settings *t, const struct store_usage *usage,
			 size_t n_usage, uid_t uid)
{
	struct store_usage of = { .uid = uid };

	for (size_t i = 0; i < n_usage; i++) {
		if (usage[i].uid == uid)
			of = usage[i];
	}
	put_limit(o, "sessions", of.n_sessions, t->max_user_sessions);
	if (t->user_session_quota > 0)
		put_limit(o, "session_bytes", of.n_bytes, t->user_session_quota);
	else
		put(o, "session_bytes", json_pack("{s:o}", "used", integer(of.n_bytes)));
}

/* Without a limit of its own a user may have what all may. */
static void put_disk(json_t *o, const struct server *s, uid_t uid)
{
	const uint64_t limit = s->settings->user_disk_quota ? s->settings->user_disk_quota
							    : s->settings->disk_cache_size;
	struct kvdisk_counts n;
	json_t *disk;

	kvdisk_count(s->engine->disk, &n);
	disk = json_pack("{s:o, s:o}", "used", integer(kvdisk_user_bytes(s->engine->disk, uid)),
			 "least", integer(n.store.least_bytes));
	if (limit > 0)
		put(disk, "limit", integer(limit));
	put(o, "disk_bytes", disk);
	put(o, "disk_evicted", integer(kvdisk_user_evicted(s->engine->disk, uid)));
}

static json_t *describe_user(const struct server *s, uid_t uid, const struct store_usage *usage,
			     size_t n_usage)
{
	const struct settings *t = s->settings;
	const struct user *user = find_user(s, uid);
	struct sched_counts counts = { 0 };
	json_t *o = json_object();

	if (s->engine)
		sched_count(s->engine->sched, uid, &counts);
	put(o, "uid", integer(uid));
	put_limit(o, "connections", user ? user->n_peers : 0, t->max_user_connections);
	put_limit(o, "requests", user ? user->n_requests + user->n_left : 0, t->max_user_requests);
	put_limit(o, "request_bytes", user ? request_user_bytes(s, user) : 0,
		  SERVER_USER_HELD_BYTES_MAX);
	put_limit(o, "queued_tokens", counts.queued_tokens, t->max_user_queued_tokens);
	if (usage)
		put_sessions(o, t, usage, n_usage, uid);
	if (s->engine)
		put_cache(o, s->engine, uid);
	if (s->engine && s->engine->disk)
		put_disk(o, s, uid);
	put_time(o, s, uid);
	return o;
}

char *limits_report(const struct peer *p, const struct store_usage *usage, size_t n_usage)
{
	const struct server *s = p->server;
	json_t *o = json_object(), *list = json_array();
	const struct user *user;
	char *text;

	json_array_append_new(list, describe_user(s, p->uid, usage, n_usage));
	if (peer_is_admin(p)) {
		LIST_FOREACH(user, &s->users, link)
		{
			if (user->uid != p->uid)
				json_array_append_new(list,
						      describe_user(s, user->uid, usage, n_usage));
		}
	}
	put(o, "users", list);
	text = o ? json_dumps(o, JSON_COMPACT) : NULL;
	json_decref(o);
	return text;
}
