/* Reading the model's files, making what computes over them, and trying again. */
#include "daemon/server/opening.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/server/health.h"
#include "daemon/server/looking.h"
#include "daemon/server/request.h"
#include "daemon/server/sessions.h"
#include "daemon/server/sharedprompts.h"
#include "daemon/server/sleep.h"
#include "daemon/server/stream.h"
#include "daemon/server/warm.h"

struct opening {
	struct server *server;
	bool under_way;
	struct err hindrance;	/* why it failed last, and may pass; code 0: it did not */
	uint32_t n_hindered;	/* times in a row */
	sd_event_source *again; /* armed: it begins again at @again_at_us */
	uint64_t again_at_us;
};

int opening_new(struct server *s, struct opening **ret)
{
	struct opening *o = calloc(1, sizeof(*o));

	if (!o)
		return -ENOMEM;
	o->server = s;
	*ret = o;
	return 0;
}

struct opening *opening_free(struct opening *o)
{
	if (!o)
		return NULL;
	sd_event_source_disable_unref(o->again);
	free(o);
	return NULL;
}

bool opening_is_under_way(const struct opening *o)
{
	return o->under_way;
}

bool opening_is_waiting(const struct opening *o)
{
	return o->again;
}

uint64_t opening_retry_us(const struct opening *o)
{
	const uint64_t now = clock_us();

	return o->again && o->again_at_us > now ? o->again_at_us - now : 0;
}

const char *opening_hindrance(const struct opening *o)
{
	return o->hindrance.text;
}

void opening_proved(struct opening *o)
{
	o->n_hindered = 0;
}

/* What was read of SharedPrompts= is in force from now on. */
static void share_prompts(struct server *s, struct sharedprompts *shared)
{
	warm_stop(s->warm);
	sharedprompts_free(s->shared);
	s->shared = shared;
	for (uint32_t i = 0; i < shared->n_refused; i++)
		log_warning("%s", shared->refused[i]);
	if (kvcache_set_shared(s->engine->kv, shared->at, shared->n) < 0)
		log_warning("out of memory: the shared prompts stay as they were");
	else if (shared->n + shared->n_refused > 0)
		log_info("SharedPrompts=: %u taken, %u refused", shared->n, shared->n_refused);
	warm_all(s->warm);
}

static void on_seen(void *userdata)
{
	looking_seen(userdata);
}

static int start_engine(struct server *s, struct sharedprompts **shared, struct err *err)
{
	const struct engine_options options = {
		.settings = s->settings,
		.program = s->options.program,
		.unit_socket = s->options.unit_socket,
		.state_dir = s->options.state_dir,
		.on_state = server_engine_changed,
		.on_seen = on_seen,
		.on_applied = server_steps_applied,
		.userdata = s,
	};
	int r;

	r = engine_new(s->loop, &options, s->model, &s->engine, err);
	if (r < 0)
		return r;
	if (s->engine->plan.warning[0])
		log_warning("%s", s->engine->plan.warning);
	if (shared && *shared)
		share_prompts(s, steal(*shared)); /* before turns go on */
	sleep_set_engine(s, s->engine);
	sessions_settle(s);
	if (s->engine->adopted)
		stream_adopt_all(s);
	sleep_adopted(s);
	sessions_recall(s); /* behind what goes on */
	return 0;
}

/* What the worker needs of the settings, which may change meanwhile. */
struct prompts_source {
	char *dir, *chat_template;
};

static int prompts_source_init(struct prompts_source *p, const struct settings *settings)
{
	p->dir = strdup(settings->shared_prompts);
	p->chat_template = strdup(settings->chat_template);
	return p->dir && p->chat_template ? 0 : -ENOMEM;
}

static void prompts_source_deinit(struct prompts_source *p)
{
	free(p->dir);
	free(p->chat_template);
}

/* NULL in *@ret: out of memory. */
static void read_prompts(const struct prompts_source *p, const struct textmodel *m,
			 struct sharedprompts **ret)
{
	const struct settings settings = { .chat_template = p->chat_template };
	const char *warning;

	sharedprompts_read(p->dir, m->tokenizer, textmodel_layout(m, &settings, &warning), ret);
}

/* What the worker does, and what came of it. */
struct reading {
	struct opening *opening;
	char *dir;
	struct textmodel *model;
	struct prompts_source source;
	struct sharedprompts *shared;
	int result;
	struct err err;
};

static void run_reading(void *userdata)
{
	struct reading *re = userdata;

	re->result = textmodel_open(re->dir, &re->model, &re->err);
	if (re->result >= 0)
		read_prompts(&re->source, re->model, &re->shared);
}

static void reading_free(struct reading *re)
{
	prompts_source_deinit(&re->source);
	sharedprompts_free(re->shared);
	textmodel_free(re->model);
	free(re->dir);
	free(re);
}

/* A model that jobs may be using still: it goes when those of both workers are done. */
struct retiring {
	struct server *server;
	struct textmodel *model;
};

static void retire_nothing(void *userdata)
{
	(void)userdata;
}

static void retire_model(void *userdata)
{
	struct retiring *r = userdata;

	textmodel_free(r->model);
	free(r);
}

static void push_retiring(struct retiring *r, struct worker *w, worker_done_fn done)
{
	if (r && worker_push(w, retire_nothing, done, r) >= 0)
		return;
	log_warning("out of memory: the old model's tokenizer stays");
	free(r);
}

/* Its jobs have passed those of theirs that are long on. */
static void retire_from_long(void *userdata)
{
	struct retiring *r = userdata;

	push_retiring(r, r->server->long_worker, retire_model);
}

void opening_drop_model(struct server *s)
{
	struct retiring *r;

	if (!s->model)
		return;
	r = malloc(sizeof(*r));
	if (r)
		*r = (struct retiring){ s, s->model };
	push_retiring(r, s->worker, retire_from_long);
	s->model = NULL;
}

static void hinder(struct opening *o, int code, const char *text);

static int on_again(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct opening *o = userdata;
	struct err err = { 0 };

	(void)source, (void)usec;
	if (server_load(o->server, &err) < 0)
		hinder(o, err.code, err.text);
	return 0;
}

/* What failed may pass: the model is opened again, at once or after a while; then whoever waits is told. */
static void hinder(struct opening *o, int code, const char *text)
{
	const uint64_t wait_us = executor_backoff_s(++o->n_hindered) * US_PER_S;
	struct server *s = o->server;

	err_set(&o->hindrance, code, "%s", text);
	log_warning("model '%s' cannot be opened now: %s", s->settings->model, text);
	opening_drop_model(s);
	if (sd_event_add_time_relative(s->loop, &o->again, CLOCK_BOOTTIME, wait_us, 0, on_again,
				       o) < 0) {
		server_refuse(s, code, text);
		return;
	}
	o->again_at_us = clock_us() + wait_us;
	health_status(s->health, "Waiting to open the model again: %s", text);
	if (wait_us > 0)
		request_resume_waiting(s);
	server_busy_changed(s);
}

static void reading_done(void *userdata)
{
	struct reading *re = userdata;
	struct opening *o = re->opening;
	struct server *s = o->server;
	int r = re->result;

	o->under_way = false;
	if (r >= 0 && re->model && !s->leaving) {
		s->model = steal(re->model);
		r = start_engine(s, &re->shared, &re->err);
	}
	if (s->leaving) {
		/* what is parked is for the next broker: it is neither adopted nor judged */
	} else if (r < 0 && err_may_pass(r)) {
		hinder(o, r, re->err.text[0] ? re->err.text : strerror(-r));
	} else if (r < 0) {
		server_refuse(s, r, re->err.text[0] ? re->err.text : strerror(-r));
	} else if (s->engine) {
		server_engine_changed(s);
		request_resume_waiting(s);
	}
	reading_free(re);
}

int opening_begin(struct opening *o, struct err *err)
{
	struct server *s = o->server;
	struct reading *re;
	int r;

	o->again = sd_event_source_disable_unref(o->again);
	o->hindrance = (struct err){ 0 };
	re = calloc(1, sizeof(*re));
	if (!re)
		return err_set(err, -ENOMEM, "out of memory");
	re->opening = o;
	re->dir = strdup(s->settings->model);
	r = prompts_source_init(&re->source, s->settings);
	if (r >= 0)
		r = re->dir ? worker_push(s->worker, run_reading, reading_done, re) : -ENOMEM;
	if (r < 0) {
		reading_free(re);
		return err_set(err, r, "out of memory");
	}
	o->under_way = true;
	health_status(s->health, "Opening %s", s->settings->model);
	server_busy_changed(s);
	return 0;
}

/* SharedPrompts= read again, for the model in service. */
struct rereading {
	struct server *server;
	const struct textmodel *model; /* stays until jobs before its end are done */
	struct prompts_source source;
	struct sharedprompts *shared;
};

static void run_rereading(void *userdata)
{
	struct rereading *re = userdata;

	read_prompts(&re->source, re->model, &re->shared);
}

static void rereading_free(struct rereading *re)
{
	prompts_source_deinit(&re->source);
	sharedprompts_free(re->shared);
	free(re);
}

static void rereading_done(void *userdata)
{
	struct rereading *re = userdata;
	struct server *s = re->server;

	if (!s->leaving && s->engine && s->model == re->model && re->shared)
		share_prompts(s, steal(re->shared));
	rereading_free(re);
}

int opening_reread_prompts(struct server *s, struct err *err)
{
	struct rereading *re = calloc(1, sizeof(*re));
	int r;

	if (!re)
		return err_set(err, -ENOMEM, "out of memory");
	re->server = s;
	re->model = s->model;
	r = prompts_source_init(&re->source, s->settings);
	if (r >= 0)
		r = worker_push(s->worker, run_rereading, rereading_done, re);
	if (r < 0) {
		rereading_free(re);
		return err_set(err, r, "out of memory");
	}
	return 0;
}
