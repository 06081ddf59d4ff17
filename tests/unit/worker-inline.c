/*
 * worker.h without a thread, for tests in which a seed is to mean one course
 * of events: each job runs, and ends, in a turn of the loop of its own.
 */
#include "daemon/base/worker.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/queue.h>

#include "client/wire/ownership.h"
#include "tests/unit/worker-inline.h"

static bool killed;

struct job {
	STAILQ_ENTRY(job) link;
	worker_run_fn run;
	worker_done_fn done;
	void *userdata;
};
STAILQ_HEAD(jobs, job);

struct worker {
	struct jobs waiting;
	size_t n_waiting;
	sd_event_source *source;
	worker_done_fn idle;
	void *idle_userdata;
};

static struct job *take(struct worker *w)
{
	struct job *job = STAILQ_FIRST(&w->waiting);

	if (!job)
		return NULL;
	STAILQ_REMOVE_HEAD(&w->waiting, link);
	w->n_waiting--;
	return job;
}

static int on_turn(sd_event_source *source, void *userdata)
{
	struct worker *w = userdata;
	struct job *job = take(w);

	assert(job);
	sd_event_source_set_enabled(source, w->n_waiting > 0 ? SD_EVENT_ON : SD_EVENT_OFF);
	job->run(job->userdata);
	job->done(job->userdata);
	free(job);
	if (w->idle && w->n_waiting == 0)
		w->idle(w->idle_userdata);
	return 0;
}

int worker_new(sd_event *loop, struct worker **ret)
{
	struct worker *w = calloc(1, sizeof(*w));

	if (!w)
		return -ENOMEM;
	STAILQ_INIT(&w->waiting);
	if (sd_event_add_defer(loop, &w->source, on_turn, w) < 0 ||
	    sd_event_source_set_enabled(w->source, SD_EVENT_OFF) < 0)
		abort();
	*ret = w;
	return 0;
}

struct worker *worker_free(struct worker *w)
{
	struct job *job;

	if (!w)
		return NULL;
	sd_event_source_disable_unref(w->source);
	while ((job = take(w))) {
		job->done(job->userdata);
		free(job);
	}
	free(w);
	return NULL;
}

int worker_push(struct worker *w, worker_run_fn run, worker_done_fn done, void *userdata)
{
	struct job *job = malloc(sizeof(*job));

	if (!job)
		return -ENOMEM;
	*job = (struct job){ .run = run, .done = done, .userdata = userdata };
	STAILQ_INSERT_TAIL(&w->waiting, job, link);
	w->n_waiting++;
	sd_event_source_set_enabled(w->source, SD_EVENT_ON);
	return 0;
}

/* Users' turns are worker.c's own. */
int worker_push_for(struct worker *w, uid_t uid, worker_run_fn run, worker_done_fn done,
		    void *userdata)
{
	(void)uid;
	return worker_push(w, run, done, userdata);
}

void worker_inline_kill(bool yes)
{
	killed = yes;
}

void worker_drain(struct worker *w)
{
	struct job *job;

	while (!killed && (job = take(w))) {
		job->run(job->userdata);
		job->done(job->userdata);
		free(job);
	}
}

size_t worker_waiting(const struct worker *w)
{
	return w->n_waiting;
}

void worker_on_idle(struct worker *w, worker_done_fn idle, void *userdata)
{
	w->idle = idle;
	w->idle_userdata = userdata;
}
