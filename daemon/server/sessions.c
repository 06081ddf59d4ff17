/* The store's thread: its life, jobs for it, and what comes home from them. */
#include "daemon/server/sessions.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/server/sessions-parts.h"

void job_free(struct job *job)
{
	bytes_deinit(&job->out);
	bytes_deinit(&job->file);
	store_begun_deinit(&job->begun);
	free(job->defaults);
	free(job->answer);
	free(job->ids);
	free(job->live);
	free(job->usage);
	free(job);
}

struct store_who job_who(const struct job *job)
{
	return (struct store_who){ job->uid, job->label };
}

/* At the start: what is checked. */
static int run_check(struct job *job)
{
	const int r = store_check(job->x->store, &job->err);

	/* so that damage to the log costs turns of this life at most */
	if (r >= 0)
		store_checkpoint(job->x->store, true, NULL);
	return r;
}

/*
 * The check failed at the start. Where the database is damaged and cannot be
 * mended, for want of room as a rule, nothing is done to it: whoever asks hears
 * why, and it is tried again for them, from time to time.
 */
static int check_again(struct job *job)
{
	struct sessions *x = job->x;
	struct err err = { 0 };

	if (store_is_checked(x->store) || job->run == run_check)
		return 0;
	if (clock_us() >= x->check_at_us) {
		store_check(x->store, &err);
		x->check_at_us = clock_us() + SESSIONS_AGAIN_US;
	}
	if (store_is_open(x->store))
		return 0;
	store_checkpoint(x->store, true, &err); /* which says why not */
	return err_set(&job->err, -EHOSTDOWN, "sessions are not kept now: %s", err.text);
}

static void on_job_run(void *userdata)
{
	struct job *job = userdata;

	job->err = (struct err){ 0 };
	job->result = check_again(job);
	if (job->result >= 0)
		job->result = job->run(job);
	if (job->result == -ENOSPC)
		job->result = -EHOSTDOWN; /* there will be room again */
	if (job->result == -ENOMEM && !job->err.text[0])
		err_set(&job->err, -ENOMEM, "out of memory");
	store_checkpoint(job->x->store, false, NULL);
	store_count(job->x->store, &job->counts);
}

static void arm_checkpoint(struct sessions *x);

static void tell_set_aside(const struct store_counts *counts)
{
	log_error("the session database was damaged: it is set aside as state.db.damaged-N, and "
		  "%llu rows of it are kept",
		  (unsigned long long)counts->n_kept);
}

static void on_job_home(void *userdata)
{
	struct job *job = userdata;
	struct request *q = job->request;

	if (job->counts.n_damaged > job->x->counts.n_damaged)
		log_warning("sessions: %llu rows do not match their sums",
			    (unsigned long long)(job->counts.n_damaged - job->x->counts.n_damaged));
	if (job->counts.n_set_aside > job->x->counts.n_set_aside)
		tell_set_aside(&job->counts);
	if (job->result != -ECANCELED) {
		if (job->counts.n_changes != job->x->counts.n_changes)
			arm_checkpoint(job->x);
		job->x->counts = job->counts;
	}
	if (job->result >= 0 && job->x->settle_again && job->x->server->engine)
		sessions_settle(job->x->server);
	if (q)
		q->in_worker = false;
	if (q && !q->peer) { /* its client left meanwhile */
		if (job->result >= 0 && job->begun.session)
			sessions_abort(job->x->server, job->uid, job->begun.session,
				       job->begun.turn);
		request_free(q);
	} else {
		job->home(job);
	}
	job_free(job);
}

void job_for(struct job *job, uid_t uid)
{
	job->uid = uid;
	job->has_uid = true;
}

int job_push(struct job *job)
{
	const int r = job->has_uid ? worker_push_for(job->x->thread, job->uid, on_job_run,
						     on_job_home, job)
				   : worker_push(job->x->thread, on_job_run, on_job_home, job);

	if (r < 0)
		return r;
	if (job->request)
		job->request->in_worker = true;
	return 0;
}

static int open_store(struct sessions *x);

/* What failed when it was opened and may pass: whoever needs it has it tried again. */
static bool has_store(struct sessions *x)
{
	const uint64_t now = clock_us();

	if (x->store || !err_may_pass(x->off.code) || now < x->again_at_us)
		return x->store;
	x->again_at_us = now + SESSIONS_AGAIN_US;
	if (open_store(x) < 0)
		return false;
	log_info("sessions are kept again");
	if (x->server->engine)
		sessions_settle(x->server);
	return true;
}

int job_new(struct server *s, struct request *q, int (*run)(struct job *),
	    void (*home)(struct job *), struct job **ret, struct err *err)
{
	struct sessions *x = s->sessions;
	struct job *job;

	if (!x || !has_store(x))
		return err_set(err, x && err_may_pass(x->off.code) ? -EHOSTDOWN : -ENODEV,
			       "sessions are not kept: %s", x ? x->off.text : "steamd is ending");
	job = calloc(1, sizeof(*job));
	if (!job)
		return err_set(err, -ENOMEM, "out of memory");
	job->x = x;
	job->result = err_set(&job->err, -ECANCELED, "steamd ended before"); /* unless it is run */
	job->request = q;
	job->run = run;
	job->home = home;
	job->limits = (struct store_limits){ s->settings->max_user_sessions,
					     s->settings->user_session_quota };
	if (s->model) {
		job->vocab = s->model->vocab_sum;
		job->vocab_size = s->model->vocab_real;
	}
	if (q) {
		job_for(job, q->peer->uid);
		snprintf(job->label, sizeof(job->label), "%s", q->peer->label);
	}
	*ret = job;
	return 0;
}

int job_push_request(struct job *job, struct err *err)
{
	const int r = job_push(job);

	if (r < 0) {
		job_free(job);
		return err_set(err, r, "out of memory");
	}
	return 0;
}

void job_push_own(struct job *job, const char *what)
{
	if (job_push(job) < 0) {
		log_warning("sessions: out of memory: %s", what);
		job_free(job);
	}
}

static int run_checkpoint(struct job *job)
{
	return store_checkpoint(job->x->store, true, &job->err);
}

void job_log_failure(struct job *job)
{
	if (job->result < 0)
		log_warning("sessions: %s", job->err.text);
}

static int on_idle(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct sessions *x = userdata;
	struct err err = { 0 };
	struct job *job;

	(void)source, (void)usec;
	x->idle = sd_event_source_disable_unref(x->idle);
	if (job_new(x->server, NULL, run_checkpoint, job_log_failure, &job, &err) == 0)
		job_push_own(job, "no checkpoint");
	return 0;
}

/* After every job that wrote, anew. */
static void arm_checkpoint(struct sessions *x)
{
	x->idle = sd_event_source_disable_unref(x->idle);
	if (sd_event_add_time_relative(x->server->loop, &x->idle, CLOCK_MONOTONIC, SESSIONS_IDLE_US,
				       US_PER_S, on_idle, x) < 0)
		log_warning("sessions: no timer: the database's log grows until the next write");
}

static int open_store(struct sessions *x)
{
	const char *dir = x->server->options.state_dir;
	_cleanup_(freep) char *path = NULL;
	struct job *job;
	int r;

	x->off = (struct err){ 0 };

	if (!dir)
		return err_set(&x->off, -ENODEV, "there is no state directory");
	if (asprintf(&path, "%s/state.db", dir) < 0)
		return path = NULL, err_set(&x->off, -ENOMEM, "out of memory");
	r = store_open(path, NULL, &x->store, &x->off);
	if (r < 0)
		return log_error("sessions are not kept: %s", x->off.text), r;
	store_count(x->store, &x->counts);
	if (x->counts.n_log_mended > 0)
		log_warning("'%s-wal': one bit was wrong in %llu frames; nothing is lost by it",
			    path, (unsigned long long)x->counts.n_log_mended);
	if (x->counts.n_log_lost > 0)
		log_error("'%s-wal': %llu frames are damaged; what only they had is lost", path,
			  (unsigned long long)x->counts.n_log_lost);
	if (x->counts.n_log_torn > 0)
		log_warning("'%s-wal': %llu frames are torn, as after a power cut, or damaged; "
			    "what was written from there on is lost",
			    path, (unsigned long long)x->counts.n_log_torn);
	if (x->counts.n_set_aside > 0)
		tell_set_aside(&x->counts);
	r = job_new(x->server, NULL, run_check, job_log_failure, &job, &x->off);
	if (r >= 0)
		job_push_own(job, "the session database is not checked");
	return 0;
}

int sessions_new(struct server *s, struct sessions **ret)
{
	_cleanup_(sessions_freep) struct sessions *x = calloc(1, sizeof(*x));
	int r;

	if (!x)
		return -ENOMEM;
	x->server = s;
	r = worker_new(s->loop, &x->thread);
	if (r < 0)
		return r;
	s->sessions = x; /* jobs find it there */
	x->again_at_us = clock_us() + SESSIONS_AGAIN_US;
	open_store(x);
	*ret = steal(x);
	return 0;
}

struct sessions *sessions_free(struct sessions *x)
{
	if (!x)
		return NULL;
	if (x->thread)
		worker_drain(x->thread);
	x->server->sessions = x;
	x->thread = worker_free(x->thread); /* the ends of its jobs come first */
	x->server->sessions = NULL;
	sd_event_source_disable_unref(x->idle);
	store_free(x->store);
	free(x);
	return NULL;
}

json_t *sessions_describe(const struct sessions *x)
{
	json_t *o = json_object();

	json_object_set_new(o, "state", json_string(x->store ? "open" : "off"));
	json_object_set_new(o, "text", json_string(x->off.text));
#define ONE(key, member) json_object_set_new(o, key, json_integer((json_int_t)x->counts.member))
	ONE("turns_saved", n_saved);
	ONE("turns_unfinished", n_unfinished);
	ONE("rows_damaged", n_damaged);
	ONE("databases_set_aside", n_set_aside);
	ONE("rows_kept_of_those", n_kept);
	ONE("log_frames_mended", n_log_mended);
	ONE("log_frames_lost", n_log_lost);
	ONE("log_frames_torn", n_log_torn);
#undef ONE
	json_object_set_new(o, "recalling", json_boolean(x->recalling));
	json_object_set_new(o, "recalled", json_integer((json_int_t)x->n_recalled));
	return o;
}
