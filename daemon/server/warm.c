/* One prompt after the other, each as a tidy turn of the scheduler. */
#include "daemon/server/warm.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/power/power.h"
#include "daemon/server/sharedprompts.h"

struct warm {
	struct server *server;
	struct turn turn; /* the one that runs */
	bool running, stopping;
	uint32_t next;	     /* of the prompts; all before it had their time */
	uint32_t generation; /* of the executor, when it last began with the first */
	sd_event_source *look;
	uint64_t n_done, n_cut_short, n_tokens; /* tokens: computed */
};

static void on_end(struct turn *turn)
{
	struct warm *w = (struct warm *)((char *)turn - offsetof(struct warm, turn));
	const struct turn_record *rec = turn->rec;

	w->running = false;
	w->n_done += rec->finish == FINISH_LENGTH;
	w->n_cut_short += rec->finish == FINISH_CANCELLED;
	w->n_tokens += rec->n_kv > rec->n_cached ? rec->n_kv - rec->n_cached : 0;
	/* one that was cut short goes on; another, as for want of room, had its time */
	if (rec->finish != FINISH_CANCELLED)
		w->next++;
	sched_release(turn);
	if (!w->stopping)
		server_busy_changed(w->server);
}

/* Only whole pages are shared. */
static void fill(const struct warm *w, const struct kvcache_shared *prompt, uint32_t n_ids,
		 struct turns *turns, struct turn_record *rec)
{
	rec->tidy = 1;
	rec->uid = geteuid();
	rec->accepted_us = clock_us();
	rec->slot = TURN_NO_SLOT;
	rec->stop_id = UINT32_MAX;
	rec->n_prompt = rec->n_ids = n_ids;
	rec->sampler.n_prompt = n_ids;
	rec->sampler.vocab_real = w->server->model->vocab_real;
	rec->sampler.repetition = 1;
	rec->sampler.top_p = 1;
	memcpy(turn_ids(turns, rec), prompt->ids, n_ids * sizeof(*prompt->ids));
}

/* Returns 1 if it runs, 0 if there is nothing to do for it, -EBUSY: not now, or why it cannot be. */
static int begin(struct warm *w, uint32_t i)
{
	struct engine *e = w->server->engine;
	struct kvcache_shared_state is;
	struct turn_record *rec;
	struct err err = { 0 };
	uint32_t n_ids;
	int r;

	if (!kvcache_shared_at(e->kv, i, &is) || is.n_arena >= is.n_pages)
		return 0;
	n_ids = is.n_pages * e->plan.page_tokens;
	if (n_ids > turns_max_context(e->turns))
		return -E2BIG;
	rec = turns_take(e->turns);
	if (!rec)
		return -EBUSY;
	fill(w, &w->server->shared->at[i], n_ids, e->turns, rec);
	w->turn = (struct turn){ .rec = rec, .on_end = on_end };
	r = sched_submit(e->sched, &w->turn, &err);
	if (r < 0)
		turns_drop(e->turns, rec);
	return r < 0 ? r : 1;
}

static bool may_run(const struct warm *w)
{
	const struct server *s = w->server;
	struct power_view view;

	if (server_state(s) != SERVER_READY || !TAILQ_EMPTY(&s->waiting) || s->leaving ||
	    !kvcache_is_ready(s->engine->kv) || server_has_jobs(s))
		return false;
	power_look_at(s->power, &view);
	return view.n_leases == 0 && !view.moving;
}

static int on_look(sd_event_source *source, void *userdata)
{
	struct warm *w = userdata;
	const struct server *s = w->server;
	int r = 0;

	(void)source;
	if (w->running || !may_run(w))
		return 0;
	if (executor_generation(s->engine->executor) != w->generation) {
		w->generation = executor_generation(s->engine->executor);
		w->next = 0;
	}
	for (; s->shared && w->next < s->shared->n; w->next++) {
		r = begin(w, w->next);
		if (r == -EBUSY)
			return 0; /* whoever ends has us look again */
		if (r > 0)
			break;
		if (r < 0)
			log_debug("shared prompt '%s' is not computed in advance: %s",
				  s->shared->at[w->next].name, strerror(-r));
	}
	w->running = r > 0;
	if (w->running)
		server_busy_changed(w->server);
	return 0;
}

void warm_look(struct warm *w)
{
	if (w && w->server->engine && w->server->shared &&
	    (w->next < w->server->shared->n ||
	     w->generation != executor_generation(w->server->engine->executor)))
		sd_event_source_set_enabled(w->look, SD_EVENT_ONESHOT);
}

void warm_all(struct warm *w)
{
	warm_stop(w);
	w->next = 0;
	warm_look(w);
}

void warm_stop(struct warm *w)
{
	w->stopping = true;
	if (w->running)
		sched_finish(&w->turn, FINISH_CANCELLED);
	w->stopping = false;
}

int warm_new(struct server *s, struct warm **ret)
{
	_cleanup_(warm_freep) struct warm *w = calloc(1, sizeof(*w));
	int r;

	if (!w)
		return -ENOMEM;
	w->server = s;
	r = sd_event_add_defer(s->loop, &w->look, on_look, w);
	if (r >= 0)
		r = sd_event_source_set_enabled(w->look, SD_EVENT_OFF);
	if (r >= 0)
		r = sd_event_source_set_priority(w->look, SD_EVENT_PRIORITY_IDLE);
	if (r < 0)
		return r;
	*ret = steal(w);
	return 0;
}

struct warm *warm_free(struct warm *w)
{
	if (!w)
		return NULL;
	warm_stop(w);
	sd_event_source_disable_unref(w->look);
	free(w);
	return NULL;
}

json_t *warm_describe(const struct warm *w)
{
	return json_pack("{s:b, s:I, s:I, s:I}", "running", w->running, "done",
			 (json_int_t)w->n_done, "cut_short", (json_int_t)w->n_cut_short, "tokens",
			 (json_int_t)w->n_tokens);
}
