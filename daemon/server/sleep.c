/* Between requests and the ladder. */
#include "daemon/server/sleep.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/power/power.h"
#include "daemon/server/health.h"
#include "daemon/server/tidy.h"
#include "daemon/server/warm.h"

#define GIB (1024.0 * 1024 * 1024)

/* A request's wish. */
struct nap {
	struct power_wish wish;
	struct request *request;
	uint32_t n_running, n_queued; /* as they were told last */
};

/* For `systemctl status`; while it loads or is refused, others say so. */
static void on_change(void *userdata)
{
	struct server *s = (struct server *)((char *)userdata - offsetof(struct server, sleeper));
	struct power_view view;

	if (server_state(s) != SERVER_ASLEEP)
		return;
	power_look_at(s->power, &view);
	health_status(s->health, "Asleep (%s): %.1f GiB given back; %s in about %.1f s",
		      power_rung_name(view.rung), (double)view.prices[view.rung].freed_bytes / GIB,
		      textmodel_name(s->model, s->settings),
		      (double)view.prices[view.rung].return_us / US_PER_S);
}

int sleep_open(struct server *s, struct err *err)
{
	struct power_options options = { .settings = s->settings, .on_change = on_change };
	int r;

	s->sleeper.loop = s->loop;
	sleeper_options(&s->sleeper, &options);
	r = power_new(s->loop, &options, &s->power, err);
	s->sleeper.power = s->power;
	return r;
}

void sleep_set_engine(struct server *s, struct engine *e)
{
	sleeper_leave(&s->sleeper);
	s->sleeper.sched = e ? e->sched : NULL;
	s->sleeper.kv = e ? e->kv : NULL;
	s->sleeper.executor = e ? e->executor : NULL;
	s->sleeper.page_bytes = e ? e->plan.page_bytes : 0;
	s->sleeper.page_tokens = e ? e->plan.page_tokens : 0;
	power_set_executor(s->power, s->sleeper.executor);
}

void sleep_adopted(struct server *s)
{
	if (executor_record(s->engine->executor)->halted)
		power_halt(s->power);
}

static const char *moving_to(const struct server *s)
{
	struct power_view view;

	power_look_at(s->power, &view);
	if (view.sealing)
		return "sealing";
	if (view.moving && view.rung != POWER_QUIET)
		return view.rung == POWER_PARKED ? "parking" : "leaving";
	return "loading";
}

static void tell_held(struct nap *n)
{
	const struct power_wish *w = &n->wish;
	struct msg m = { .type = MSG_PROGRESS, .id = n->request->id };
	char text[160];

	snprintf(text, sizeof(text),
		 "%.2f GiB of %.2f GiB freed, and kept free until this connection ends or "
		 "'steamctl wake'",
		 (double)w->freed_bytes / GIB, (double)w->bytes / GIB);
	MSG_SET(&m.progress, state, span_of("yielded"));
	MSG_SET(&m.progress, text, span_of(text));
	MSG_SET(&m.progress, done, (uint32_t)MIN(w->freed_bytes >> 20, (uint64_t)UINT32_MAX));
	MSG_SET(&m.progress, total, (uint32_t)MIN(w->bytes >> 20, (uint64_t)UINT32_MAX));
	peer_send(n->request->peer, &m);
}

/* Answers are not cut off: who wants the memory back hears what it is waiting for. */
static void tell_busy(struct nap *n)
{
	struct msg m = { .type = MSG_PROGRESS, .id = n->request->id };
	struct sched_counts counts = { 0 };
	char text[160];

	if (n->request->server->engine)
		sched_count(n->request->server->engine->sched, (uid_t)-1, &counts);
	if (counts.n_running + counts.n_queued == 0) { /* pages move yet */
		request_progress(n->request, "sealing", 0, 0);
		return;
	}
	if (n->request->last_state && n->n_running == counts.n_running &&
	    n->n_queued == counts.n_queued)
		return;
	n->request->last_state = "busy";
	n->n_running = counts.n_running;
	n->n_queued = counts.n_queued;
	snprintf(text, sizeof(text), "waiting for answers: %u being computed, %u queued%s",
		 counts.n_running, counts.n_queued,
		 n->wish.kind == POWER_WISH_SLEEP ? "; 'sleep --now' pauses them" : "");
	MSG_SET(&m.progress, state, span_of("busy"));
	MSG_SET(&m.progress, text, span_of(text));
	peer_send(n->request->peer, &m);
}

static void on_progress(struct power_wish *w)
{
	struct nap *n = w->userdata;
	const struct server *s = n->request->server;
	const struct control_progress *progress = NULL;

	if (!n->request->peer)
		return;
	if (w->holds) {
		tell_held(n);
		return;
	}
	if (w->kind != POWER_WISH_WAKE && sleeper_has_work(&s->sleeper)) {
		tell_busy(n);
		return;
	}
	if (s->engine && executor_state(s->engine->executor) == EXECUTOR_LOADING)
		progress = executor_progress(s->engine->executor);
	request_progress(n->request, moving_to(s), progress ? progress->percent : 0,
			 progress ? 100 : 0);
}

static char *describe_end(const struct server *s, const struct power_wish *w, int r)
{
	char lease[64] = "ended: it was woken up";
	struct power_view view;
	json_t *o;
	char *text;

	power_look_at(s->power, &view);
	o = json_pack("{s:s}", "rung", power_rung_name(view.rung));
	if (w->kind == POWER_WISH_YIELD) {
		if (r == 0)
			snprintf(lease, sizeof(lease), "until process %d ends, or wake",
				 (int)w->pid);
		json_object_set_new(o, "wanted_bytes", json_integer((json_int_t)w->bytes));
		json_object_set_new(o, "freed_bytes", json_integer((json_int_t)w->freed_bytes));
		json_object_set_new(o, "lease", json_string(lease));
	}
	text = o ? json_dumps(o, JSON_COMPACT) : NULL;
	json_decref(o);
	return text;
}

static void on_done(struct power_wish *w, int r, const struct err *err)
{
	struct nap *n = w->userdata;
	struct request *q = n->request;
	struct msg m = { .type = MSG_DONE };
	_cleanup_(freep) char *json = NULL;
	/* a lease without a process has no other end */
	const bool held = w->kind == POWER_WISH_YIELD && w->holds && r == -ECANCELED;

	if (r == -ESRCH) /* its process ended */
		r = -ENOENT;
	q->nap = NULL;
	if (r == 0 || held)
		json = describe_end(q->server, w, r);
	free(n);
	if (json) {
		MSG_SET(&m.done, json, span_of(json));
		request_done(q, &m);
	} else {
		request_error(q, r == 0 || held ? -ENOMEM : r == -ECANCELED ? -EAGAIN : r, err);
	}
}

static int ask(struct request *q, const struct power_wish *wish, struct err *err)
{
	struct nap *n = calloc(1, sizeof(*n));
	int r;

	if (!n)
		return err_set(err, -ENOMEM, "out of memory");
	if (wish->kind != POWER_WISH_WAKE) {
		tidy_stop(q->server->tidy);
		warm_stop(q->server->warm);
	}
	n->wish = *wish;
	n->wish.on_done = on_done;
	n->wish.on_progress = on_progress;
	n->wish.userdata = n;
	n->request = q;
	r = power_ask(q->server->power, &n->wish, err);
	if (r < 0) {
		free(n);
		return r == -ESRCH ? err_set(err, -ENOENT, "there is no process %d", (int)wish->pid)
				   : r;
	}
	q->nap = n;
	return 0;
}

static int check_admin(const struct request *q, const char *what, struct err *err)
{
	if (peer_is_admin(q->peer))
		return 0;
	return err_set(err, -EACCES,
		       "uid %u may not %s; root, the daemon's owner and the group '%s' may",
		       q->peer->uid, what, q->server->settings->admin_group);
}

int sleep_on_sleep(struct request *q, struct err *err)
{
	struct power_wish wish = { .kind = POWER_WISH_SLEEP, .rung = POWER_PARKED };
	char name[17];
	int r;

	r = check_admin(q, "send the daemon to sleep", err);
	if (r < 0)
		return r;
	wish.now = q->msg.sleep.has_now && q->msg.sleep.now;
	if (q->msg.sleep.has_rung) {
		snprintf(name, sizeof(name), "%.*s", SPAN_ARG(q->msg.sleep.rung));
		if (power_rung_parse(name, &wish.rung) < 0)
			return err_set(err, -EINVAL,
				       "there is no rung '%s'; quiet, parked and gone are", name);
	}
	return ask(q, &wish, err);
}

int sleep_on_wake(struct request *q, struct err *err)
{
	struct power_view view;
	int r;

	r = server_refuses(q->server, err);
	if (r < 0)
		return r;
	power_look_at(q->server->power, &view);
	r = view.n_leases > 0 ? check_admin(q, "end the leases of memory that was yielded", err)
			      : 0;
	return r < 0 ? r : ask(q, &(struct power_wish){ .kind = POWER_WISH_WAKE }, err);
}

int sleep_on_yield(struct request *q, struct err *err)
{
	const struct power_wish wish = {
		.kind = POWER_WISH_YIELD,
		.bytes = q->msg.yield.bytes,
		.pid = q->msg.yield.has_pid ? (pid_t)q->msg.yield.pid : 0,
	};
	int r;

	r = check_admin(q, "make the daemon yield memory", err);
	if (r < 0)
		return r;
	if (q->msg.yield.has_pid && wish.pid <= 0)
		return err_set(err, -EINVAL, "pid is %u; a process's number is wanted",
			       q->msg.yield.pid);
	return ask(q, &wish, err);
}

void sleep_forget(struct request *q)
{
	if (!q->nap)
		return;
	power_withdraw(&q->nap->wish);
	free(q->nap);
	q->nap = NULL;
}

static uint64_t own_bytes(void)
{
	_cleanup_(fclosep) FILE *f = fopen("/proc/self/statm", "re");
	unsigned long long size, resident = 0, shared = 0;

	if (!f || fscanf(f, "%llu %llu %llu", &size, &resident, &shared) != 3)
		return 0;
	return (resident - MIN(resident, shared)) * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* Memory that the arena takes: pages that were written and not given back. */
static uint64_t arena_bytes(const struct server *s)
{
	return s->engine ? kvpool_resident_bytes(kvcache_pool(s->engine->kv)) : 0;
}

static json_t *describe_held(const struct server *s, const struct power_view *view)
{
	const struct executor *e = s->engine ? s->engine->executor : NULL;
	const struct control_ready *known = e ? executor_known(e) : NULL;
	const bool loaded = e && executor_state(e) == EXECUTOR_READY;
	const bool parked = e && executor_state(e) == EXECUTOR_PARKED;
	uint64_t executor = loaded ? known->resident_bytes : 0;
	struct kvdisk_counts disk = { 0 };

	if (parked && known)
		executor = known->resident_bytes -
			   MIN(known->resident_bytes, view->prices[POWER_PARKED].freed_bytes);
	if (s->engine && s->engine->disk)
		kvdisk_count(s->engine->disk, &disk);
	return json_pack("{s:I, s:I, s:I, s:I, s:I}", "weights_bytes",
			 (json_int_t)(loaded ? known->weight_bytes : 0), "executor_bytes",
			 (json_int_t)executor, "kv_arena_bytes", (json_int_t)arena_bytes(s),
			 "kv_disk_bytes", (json_int_t)disk.store.bytes, "broker_bytes",
			 (json_int_t)own_bytes());
}

static json_t *describe_prices(const struct power_view *view)
{
	json_t *o = json_object();

	for (enum power_rung i = POWER_PARKED; i < POWER_N_RUNGS; i++) {
		const struct power_price *price = &view->prices[i];

		json_object_set_new(o, power_rung_name(i),
				    json_pack("{s:I, s:f, s:b}", "frees_bytes",
					      (json_int_t)price->freed_bytes, "return_seconds",
					      (double)price->return_us / US_PER_S, "measured",
					      price->measured));
	}
	return o;
}

json_t *sleep_describe(const struct server *s)
{
	struct power_view view;
	json_t *o;

	power_look_at(s->power, &view);
	o = json_pack("{s:s, s:b, s:o, s:o, s:i, s:I, s:s, s:s}", "rung",
		      power_rung_name(view.rung), "moving", view.moving, "held",
		      describe_held(s, &view), "rungs", describe_prices(&view), "leases",
		      (int)view.n_leases, "leased_bytes", (json_int_t)view.leased_bytes,
		      "memory_pressure", view.pressure, "suspend", view.suspend);
	if (o && view.next_in_us) {
		json_object_set_new(o, "next", json_string(power_rung_name(view.next)));
		json_object_set_new(o, "next_in_ms",
				    json_integer((json_int_t)(view.next_in_us / US_PER_MS)));
	}
	return o;
}
