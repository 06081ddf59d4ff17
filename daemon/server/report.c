/* Status, ps and models as JSON. */
#include "daemon/server/report.h"

#include <jansson.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "daemon/server/opening.h"
#include "daemon/server/sharedprompts.h"
#include "daemon/server/sleep.h"
#include "daemon/server/sessions.h"
#include "daemon/server/stream.h"
#include "daemon/server/tidy.h"
#include "daemon/server/warm.h"

#ifndef STEAMD_VERSION
#define STEAMD_VERSION "unknown"
#endif

#define MAP_CHARACTERS 256 /* of the KV cache's pages */

static void put(json_t *object, const char *key, json_t *value)
{
	json_object_set_new(object, key, value); /* NULL is an error that json_dumps() survives */
}

static json_t *integer(uint64_t value)
{
	return json_integer((json_int_t)value);
}

static json_t *hex(const uint8_t *data, size_t n)
{
	char text[64] = "";

	for (size_t i = 0; i < n && 2 * i + 2 < sizeof(text); i++)
		snprintf(text + 2 * i, 3, "%02x", data[i]);
	return json_string(text);
}

static char *dump(json_t *object)
{
	char *text = object ? json_dumps(object, JSON_COMPACT) : NULL;

	json_decref(object);
	return text;
}

static json_t *describe_names(const struct server *s)
{
	json_t *names = json_array();
	const char *at = s->settings->model_aliases;

	while (*at) {
		const size_t len = strcspn(at, " ");

		if (len > 0)
			json_array_append_new(names, json_stringn(at, len));
		at += len + strspn(at + len, " ");
	}
	return names;
}

static json_t *describe_model(const struct server *s)
{
	const struct textmodel *m = s->model;
	const struct config *c = &m->config;
	json_t *o = json_object();
	const char *warning;

	put(o, "name", json_string(textmodel_name(m, s->settings)));
	put(o, "aliases", describe_names(s));
	put(o, "directory", json_string(m->dir));
	put(o, "architecture", json_string("glm4_moe"));
	put(o, "parameters", integer(m->parameters));
	put(o, "active_parameters", integer(m->active_parameters));
	put(o, "file_bytes", integer(m->file_bytes));
	put(o, "layers", integer(c->layers));
	put(o, "experts", integer(c->experts));
	put(o, "vocab", integer(m->vocab_real));
	put(o, "max_positions", integer(c->max_positions));
	put(o, "chat_template",
	    json_string(chat_layout_name(textmodel_layout(m, s->settings, &warning))));
	return o;
}

static json_t *describe_sampling(const struct server *s)
{
	struct textmodel_defaults d;
	json_t *o = json_object();

	textmodel_defaults(s->model, s->settings, &d);
#define ONE(member, key, builtin)                                                                  \
	put(o, #member,                                                                            \
	    json_pack("{s:f, s:s}", "value", d.member.value, "from",                               \
		      d.member.origin ? d.member.origin : "?"));
	TEXTMODEL_SAMPLERS(ONE)
#undef ONE
	put(o, "max_tokens",
	    json_pack("{s:i, s:s}", "value", (int)s->settings->max_tokens, "from",
		      settings_origin(s->settings, "MaxTokens")));
	return o;
}

static json_t *describe_warnings(const struct server *s)
{
	json_t *list = json_array();
	const char *warning = NULL;

	if (s->model) {
		textmodel_layout(s->model, s->settings, &warning);
		if (warning)
			json_array_append_new(list, json_string(warning));
		for (uint32_t i = 0; i < s->model->config.n_warnings; i++)
			json_array_append_new(list, json_string(s->model->config.warnings[i]));
	}
	if (s->engine && s->engine->plan.warning[0])
		json_array_append_new(list, json_string(s->engine->plan.warning));
	return list;
}

static json_t *describe_card(const struct control_seen *d)
{
	json_t *o = json_object();

	if (d->known & 1) {
		put(o, "total_bytes", integer(d->card_bytes));
		put(o, "free_bytes", integer(d->card_free_bytes));
	}
	if (d->known & 2)
		put(o, "power_mw", integer(d->power_mw));
	if (d->known & 4)
		put(o, "power_limit_mw", integer(d->power_limit_mw));
	if (d->known & 8)
		put(o, "temperature_c", integer(d->temperature_c));
	if (d->text[0])
		put(o, "text", json_string(d->text));
	return o;
}

static json_t *describe_regions(const struct control_seen *d)
{
	json_t *list = json_array();

	for (uint32_t i = 0; i < d->n_regions; i++) {
		const struct control_region *r = &d->regions[i];

		json_array_append_new(list, json_pack("{s:s, s:o, s:o, s:o}", "name", r->name,
						      "bytes", integer(r->bytes), "chunk_bytes",
						      integer(r->chunk_bytes), "backed_bytes",
						      integer(r->backed_bytes)));
	}
	return list;
}

/* The frames of a device for pages; how they lie is told to administrators, as of the arena. */
static json_t *describe_frames(const struct control_seen *d, bool is_admin)
{
	json_t *o = json_object();

	put(o, "bytes", integer(d->pool_bytes));
	put(o, "page_bytes", integer(d->page_bytes));
	put(o, "group_bytes", integer(d->group_bytes));
	put(o, "pages", integer(d->frames));
	put(o, "live_pages", integer(d->live_frames));
	put(o, "largest_free_run", integer(d->largest_free_run));
	put(o, "fragmentation", json_real(d->fragmentation_ppm / 1e6));
	put(o, "pages_up", integer(d->n_up));
	put(o, "pages_down", integer(d->n_down));
	put(o, "pages_moved", integer(d->n_moved));
	if (is_admin)
		put(o, "map", json_string(d->map));
	return o;
}

/* As they said just now. */
static json_t *describe_devices(const struct engine *e, bool is_admin)
{
	const struct control_seen *d;
	json_t *list = json_array();

	for (uint32_t rank = 0; (d = executor_seen(e->executor, rank)); rank++) {
		json_t *o = json_object();

		put(o, "rank", integer(rank));
		put(o, "taken_bytes", integer(d->taken_bytes));
		put(o, "peak_bytes", integer(d->peak_bytes));
		put(o, "reserved_bytes", integer(d->reserved_bytes));
		put(o, "stuck_bytes", integer(d->stuck_bytes));
		put(o, "refused_bytes", integer(d->refused_bytes));
		put(o, "driver_calls", integer(d->n_calls));
		put(o, "regions", describe_regions(d));
		put(o, "kv", describe_frames(d, is_admin));
		put(o, "card", describe_card(d));
		json_array_append_new(list, o);
	}
	return list;
}

static json_t *describe_executor(const struct engine *e, bool is_admin)
{
	const struct control_ready *ready = executor_ready(e->executor);
	const struct control_ready *known = executor_known(e->executor);
	const struct control_progress *progress = executor_progress(e->executor);
	json_t *o = json_object();

	put(o, "state", json_string(executor_state_name(executor_state(e->executor))));
	put(o, "pid", json_integer(executor_pid(e->executor)));
	put(o, "starts", integer(executor_generation(e->executor)));
	put(o, "deaths", integer(executor_deaths(e->executor)));
	put(o, "retry_after_ms", integer(executor_retry_us(e->executor) / US_PER_MS));
	put(o, "text", json_string(executor_text(e->executor)));
	if (executor_state(e->executor) == EXECUTOR_LOADING && progress) {
		put(o, "percent", integer(progress->percent));
		put(o, "bytes_per_second", integer(progress->bytes_per_second));
	}
	if (ready) {
		put(o, "isa", json_string(ready->isa));
		put(o, "device", json_string(ready->device));
		if (ready->products[0])
			put(o, "products", json_string(ready->products));
		put(o, "ranks", integer(ready->n_ranks));
		put(o, "threads", integer(ready->n_threads));
		put(o, "weight_bytes", integer(ready->weight_bytes));
		put(o, "huge_page_bytes", integer(ready->huge_bytes));
		put(o, "decode_bytes", integer(ready->decode_bytes));
		put(o, "read_bytes_per_second", integer(ready->read_bytes_per_second));
		put(o, "load_ms", integer(ready->load_us / US_PER_MS));
	}
	if (executor_seen(e->executor, 0))
		put(o, "devices", describe_devices(e, is_admin));
	if (known)
		put(o, "fingerprint", hex(known->fingerprint, sizeof(known->fingerprint)));
	return o;
}

/* What the kernel does about huge pages for shared memory, which the KV cache is in: never, advise, … */
static const char *shared_huge_pages(char line[128])
{
	_cleanup_(fclosep)
		FILE *f = fopen("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "re");
	char *word = f && fgets(line, 128, f) ? strchr(line, '[') : NULL;

	if (!word)
		return "unknown";
	word[strcspn(word, "]")] = '\0';
	return word + 1;
}

/* Where in the arena is room: how the pages lie is told to administrators, as it is all users' doing. */
static void describe_room(json_t *o, const struct kvpool *pool, uint32_t n_free, bool is_admin)
{
	const uint32_t largest = kvpool_largest_free_run(pool);
	char map[MAP_CHARACTERS + 1];

	put(o, "resident_bytes", integer(kvpool_resident_bytes(pool)));
	put(o, "largest_free_run", integer(largest));
	put(o, "fragmentation", json_real(n_free > largest ? 1 - (double)largest / n_free : 0));
	if (!is_admin)
		return;
	kvpool_draw(pool, map, MAP_CHARACTERS);
	put(o, "map", json_string(map));
}

static json_t *describe_kv(const struct engine *e, bool is_admin)
{
	json_t *o = json_object();
	struct kvcache_counts n;
	char line[128];

	put(o, "huge_pages", json_string(shared_huge_pages(line)));
	put(o, "pages", integer(kvpool_pages(kvcache_pool(e->kv))));
	kvcache_count(e->kv, &n);
	put(o, "free_pages", integer(n.n_free));
	put(o, "held_pages", integer(n.n_held));
	put(o, "kept_pages", integer(n.n_kept));
	put(o, "found_tokens", integer(n.n_found_tokens));
	put(o, "sealed_pages", integer(n.n_sealed));
	put(o, "evicted_pages", integer(n.n_evicted));
	put(o, "damaged_pages", integer(n.n_damaged));
	put(o, "cleared_pages", integer(n.n_cleared));
	put(o, "written_pages", integer(n.n_written));
	put(o, "read_pages", integer(n.n_read));
	put(o, "page_tokens", integer(e->plan.page_tokens));
	put(o, "page_bytes", integer(e->plan.page_bytes));
	put(o, "bytes", integer(e->plan.n_pages * e->plan.page_bytes));
	describe_room(o, kvcache_pool(e->kv), n.n_free, is_admin);
	return o;
}

static json_t *describe_disk(const struct engine *e)
{
	struct kvdisk_counts n;
	json_t *o = json_object();

	kvdisk_count(e->disk, &n);
	put(o, "text", json_string(kvdisk_text(e->disk)));
	put(o, "pages", integer(n.n_pages));
	put(o, "bytes", integer(n.store.bytes));
	put(o, "waiting", integer(n.n_waiting));
	put(o, "damaged", integer(n.store.n_damaged));
	put(o, "failed_segments", integer(n.store.n_failed));
	put(o, "evicted_segments", integer(n.store.n_evicted));
	put(o, "refused", integer(n.store.n_refused));
	put(o, "foreign_bytes", integer(n.store.foreign_bytes));
	put(o, "direct", json_boolean(n.store.direct));
	return o;
}

static json_t *describe_limits(const struct server *s)
{
	const struct settings *t = s->settings;
	json_t *o = json_object();

	put(o, "connections", integer(t->max_connections));
	put(o, "connections_per_user", integer(t->max_user_connections));
	put(o, "requests_per_connection", integer(t->max_requests));
	put(o, "requests_per_user", integer(t->max_user_requests));
	put(o, "queued_tokens", integer(t->max_queued_tokens));
	put(o, "queued_tokens_per_user", integer(t->max_user_queued_tokens));
	put(o, "sessions_per_user", integer(t->max_user_sessions));
	put(o, "session_bytes_per_user", integer(t->user_session_quota));
	put(o, "frame_bytes", integer(t->max_frame));
	put(o, "prompt_bytes", integer(t->max_prompt_bytes));
	put(o, "batch", integer(t->max_batch));
	put(o, "batch_tokens", integer(t->batch_tokens));
	return o;
}

static json_t *describe_load(const struct server *s)
{
	struct sched_counts counts;
	json_t *o = json_object();

	sched_count(s->engine->sched, (uid_t)-1, &counts);
	put(o, "queued", integer(counts.n_queued));
	put(o, "running", integer(counts.n_running));
	put(o, "paused", integer(counts.n_paused));
	put(o, "queued_tokens", integer(counts.queued_tokens));
	put(o, "steps", integer(sched_steps(s->engine->sched)));
	return o;
}

static json_t *describe_shared(const struct server *s)
{
	json_t *o = json_object(), *prompts = json_object(), *refused = json_array();
	struct kvcache_shared_state p;

	for (uint32_t i = 0; s->engine && kvcache_shared_at(s->engine->kv, i, &p); i++)
		put(prompts, p.name,
		    json_pack("{s:o, s:o, s:o, s:o}", "tokens", integer(p.n_tokens), "pages",
			      integer(p.n_pages), "arena_pages", integer(p.n_arena), "disk_pages",
			      integer(p.n_disk)));
	for (uint32_t i = 0; i < s->shared->n_refused; i++)
		json_array_append_new(refused, json_string(s->shared->refused[i]));
	put(o, "prompts", prompts);
	put(o, "refused", refused);
	put(o, "warming", warm_describe(s->warm));
	return o;
}

char *report_status(const struct server *s, const struct peer *p)
{
	json_t *o = json_object();

	put(o, "state", json_string(server_state_name(server_state(s))));
	put(o, "text",
	    json_string(s->refusal.code ? s->refusal.text : opening_hindrance(s->opening)));
	put(o, "version", json_string(STEAMD_VERSION));
	put(o, "boot_id", json_string(s->boot_id));
	put(o, "pid", json_integer(getpid()));
	put(o, "uptime_ms", integer((clock_us() - s->started_us) / US_PER_MS));
	put(o, "connections", integer(s->n_peers));
	put(o, "requests_served", integer(s->n_served));
	put(o, "prompt_tokens", integer(s->n_prompt_tokens));
	put(o, "completion_tokens", integer(s->n_completion_tokens));
	if (s->model) {
		put(o, "model", describe_model(s));
		put(o, "sampling", describe_sampling(s));
	}
	if (s->engine) {
		put(o, "context", integer(s->engine->plan.max_context));
		put(o, "executor", describe_executor(s->engine, peer_is_admin(p)));
		put(o, "kv", describe_kv(s->engine, peer_is_admin(p)));
		if (s->engine->disk)
			put(o, "kv_disk", describe_disk(s->engine));
		put(o, "load", describe_load(s));
	}
	put(o, "tidy", tidy_describe(s->tidy));
	if (s->shared && s->shared->n + s->shared->n_refused > 0 && peer_is_admin(p))
		put(o, "shared_prompts", describe_shared(s));
	put(o, "power", sleep_describe(s));
	put(o, "sessions", sessions_describe(s->sessions));
	put(o, "limits", describe_limits(s));
	put(o, "warnings", describe_warnings(s));
	return dump(o);
}

char *report_models(const struct server *s)
{
	json_t *o = json_object(), *list = json_array();

	if (s->model) {
		json_t *m = describe_model(s);

		put(m, "state", json_string(server_state_name(server_state(s))));
		if (s->engine)
			put(m, "context", integer(s->engine->plan.max_context));
		json_array_append_new(list, m);
	}
	put(o, "models", list);
	return dump(o);
}

static const char *turn_state_name(const struct stream *st)
{
	if (st->ended)
		return "ended";
	if (st->paused)
		return "paused";
	return st->turn.rec->state == TURN_RUNNING ? "running" : "queued";
}

static json_t *describe_turn(const struct stream *st)
{
	const struct turn_record *rec = st->turn.rec;
	json_t *o = json_object();
	char id[24];

	/* beyond 2^53, so that readers of JSON would round it as a number */
	snprintf(id, sizeof(id), "%llu", (unsigned long long)rec->id);
	put(o, "turn", json_string(id));
	put(o, "uid", integer(rec->uid));
	put(o, "client", json_string(rec->client));
	put(o, "label", json_string(rec->label));
	put(o, "kind", json_string(rec->score ? "score" : "generate"));
	put(o, "class", json_string(rec->batch ? "batch" : "interactive"));
	put(o, "state", json_string(turn_state_name(st)));
	put(o, "attached", json_boolean(st->request));
	put(o, "n_prompt", integer(rec->n_prompt));
	put(o, "n_completion", integer(rec->score ? 0 : rec->n_ids - rec->n_prompt));
	put(o, "max_tokens", integer(rec->max_tokens));
	put(o, "age_ms", integer((clock_us() - rec->accepted_us) / US_PER_MS));
	return o;
}

char *report_ps(const struct server *s, const struct peer *p)
{
	json_t *o = json_object(), *list = json_array(), *others = json_object();
	const bool admin = peer_is_admin(p);
	uint64_t n_queued = 0, n_running = 0;
	const struct stream *st;

	TAILQ_FOREACH(st, &s->streams, link) {
		if (st->turn.rec->uid == p->uid || admin)
			json_array_append_new(list, describe_turn(st));
		else if (!st->ended && st->turn.rec->state == TURN_RUNNING)
			n_running++;
		else if (!st->ended)
			n_queued++;
	}
	put(others, "queued", integer(n_queued));
	put(others, "running", integer(n_running));
	put(o, "turns", list);
	put(o, "others", others);
	return dump(o);
}
