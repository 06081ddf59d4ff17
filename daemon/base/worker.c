/* One thread, a queue to it and a queue back. */
#include "daemon/base/worker.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/queue.h>

#include "client/wire/ownership.h"

struct job {
	STAILQ_ENTRY(job) link;
	worker_run_fn run;
	worker_done_fn done;
	void *userdata;
	uid_t uid;	/* NOBODY: it keeps its place */
	uint64_t round; /* a user has one job in each */
};
STAILQ_HEAD(jobs, job);

#define NOBODY ((uid_t)-1)

struct worker {
	pthread_t thread;
	bool has_thread;
	pthread_mutex_t lock; /* guards waiting, ended, round, n_waiting, closing */
	pthread_cond_t woken;
	struct jobs waiting, ended; /* waiting: by rounds */
	uint64_t round;		    /* of the job that was begun last */
	size_t n_waiting;	    /* pushed and not yet run to their end */
	bool closing;
	int ended_fd; /* rings the loop */
	sd_event_source *source;
	worker_done_fn idle; /* NULL: nobody asks */
	void *idle_userdata;
};

static void *work(void *userdata)
{
	struct worker *w = userdata;
	const uint64_t one = 1;
	struct job *job;

	pthread_mutex_lock(&w->lock);
	for (;;) {
		while (!w->closing && STAILQ_EMPTY(&w->waiting))
			pthread_cond_wait(&w->woken, &w->lock);
		if (w->closing)
			break;
		job = STAILQ_FIRST(&w->waiting);
		STAILQ_REMOVE_HEAD(&w->waiting, link);
		w->round = job->round;
		pthread_mutex_unlock(&w->lock);

		job->run(job->userdata);

		pthread_mutex_lock(&w->lock);
		STAILQ_INSERT_TAIL(&w->ended, job, link);
		w->n_waiting--;
		(void)!write(w->ended_fd, &one, sizeof(one)); /* fails only at 2^64 unread ends */
	}
	pthread_mutex_unlock(&w->lock);
	return NULL;
}

static struct job *take_ended(struct worker *w)
{
	struct job *job;

	pthread_mutex_lock(&w->lock);
	job = STAILQ_FIRST(&w->ended);
	if (job)
		STAILQ_REMOVE_HEAD(&w->ended, link);
	pthread_mutex_unlock(&w->lock);
	return job;
}

static void finish(struct job *job)
{
	job->done(job->userdata);
	free(job);
}

static int on_jobs_ended(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	struct worker *w = userdata;
	uint64_t n;

	(void)source, (void)revents;
	if (read(fd, &n, sizeof(n)) != (ssize_t)sizeof(n))
		return 0;
	/* one ring a job: those that end meanwhile ring again, and the loop stays fair */
	while (n-- > 0) {
		struct job *job = take_ended(w);

		if (!job)
			break;
		finish(job);
	}
	if (w->idle && worker_waiting(w) == 0)
		w->idle(w->idle_userdata);
	return 0;
}

/* Signals are the loop thread's. */
static int start_thread(struct worker *w)
{
	sigset_t all, before;
	int r;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	r = pthread_create(&w->thread, NULL, work, w);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	w->has_thread = r == 0;
	return -r;
}

int worker_new(sd_event *loop, struct worker **ret)
{
	_cleanup_(worker_freep) struct worker *w = calloc(1, sizeof(*w));
	int r;

	if (!w)
		return -ENOMEM;
	STAILQ_INIT(&w->waiting);
	STAILQ_INIT(&w->ended);
	pthread_mutex_init(&w->lock, NULL);
	pthread_cond_init(&w->woken, NULL);
	w->ended_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (w->ended_fd < 0)
		return -errno;
	r = sd_event_add_io(loop, &w->source, w->ended_fd, EPOLLIN, on_jobs_ended, w);
	if (r < 0)
		return r;
	r = start_thread(w);
	if (r < 0)
		return r;
	*ret = steal(w);
	return 0;
}

struct worker *worker_free(struct worker *w)
{
	struct job *job;

	if (!w)
		return NULL;
	pthread_mutex_lock(&w->lock);
	w->closing = true;
	pthread_cond_signal(&w->woken);
	pthread_mutex_unlock(&w->lock);
	if (w->has_thread)
		pthread_join(w->thread, NULL);
	sd_event_source_disable_unref(w->source);
	while ((job = take_ended(w)))
		finish(job);
	while ((job = STAILQ_FIRST(&w->waiting))) {
		STAILQ_REMOVE_HEAD(&w->waiting, link);
		finish(job);
	}
	closep(&w->ended_fd);
	pthread_cond_destroy(&w->woken);
	pthread_mutex_destroy(&w->lock);
	free(w);
	return NULL;
}

/* Into the round behind its user's last one, and behind all that keep their place. */
static void insert(struct worker *w, struct job *job)
{
	struct job *at, *kept = NULL, *after;

	job->round = w->round;
	STAILQ_FOREACH(at, &w->waiting, link)
	{
		if (at->uid == NOBODY)
			kept = at;
		if (at->uid == NOBODY || job->uid == NOBODY)
			job->round = at->round;
		else if (at->uid == job->uid)
			job->round = at->round + 1;
	}
	after = kept;
	at = kept ? STAILQ_NEXT(kept, link) : STAILQ_FIRST(&w->waiting);
	for (; at && at->round <= job->round; at = STAILQ_NEXT(at, link))
		after = at;
	if (after)
		STAILQ_INSERT_AFTER(&w->waiting, after, job, link);
	else
		STAILQ_INSERT_HEAD(&w->waiting, job, link);
}

int worker_push(struct worker *w, worker_run_fn run, worker_done_fn done, void *userdata)
{
	return worker_push_for(w, NOBODY, run, done, userdata);
}

int worker_push_for(struct worker *w, uid_t uid, worker_run_fn run, worker_done_fn done,
		    void *userdata)
{
	struct job *job = malloc(sizeof(*job));

	if (!job)
		return -ENOMEM;
	*job = (struct job){ .run = run, .done = done, .userdata = userdata, .uid = uid };
	pthread_mutex_lock(&w->lock);
	insert(w, job);
	w->n_waiting++;
	pthread_cond_signal(&w->woken);
	pthread_mutex_unlock(&w->lock);
	return 0;
}

static void post(void *userdata)
{
	sem_post(userdata);
}

static void nothing(void *userdata)
{
	(void)userdata;
}

/* Jobs run in order: when the last one has run, all have. */
void worker_drain(struct worker *w)
{
	sem_t done;

	sem_init(&done, 0, 0);
	if (worker_push(w, post, nothing, &done) == 0)
		while (sem_wait(&done) < 0 && errno == EINTR)
			;
	sem_destroy(&done);
}

size_t worker_waiting(const struct worker *w)
{
	struct worker *locked = (struct worker *)w;
	size_t n;

	pthread_mutex_lock(&locked->lock);
	n = w->n_waiting;
	pthread_mutex_unlock(&locked->lock);
	return n;
}

void worker_on_idle(struct worker *w, worker_done_fn idle, void *userdata)
{
	w->idle = idle;
	w->idle_userdata = userdata;
}
