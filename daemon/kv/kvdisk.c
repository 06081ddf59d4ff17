/*
 * Jobs go to a worker of its own. What the store says while a job runs (records
 * found and gone) is noted in the job, and put into the index when it has come
 * home, before the next one's end.
 */
#include "daemon/kv/kvdisk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "client/wire/ownership.h"
#include "daemon/base/worker.h"

#define WAITING_MAX 256 /* writes */

/* A record in the index. */
struct record {
	LIST_ENTRY(record) bucket;
	struct segments_key key;
	struct segments_place place; /* segment 0: being written */
};
LIST_HEAD(records, record);

enum job_kind { JOB_OPEN, JOB_SCAN, JOB_WRITE, JOB_READ, JOB_FLUSH, JOB_LIMIT };

/* What the store told, in order. */
struct told {
	STAILQ_ENTRY(told) link;
	struct segments_key key;
	struct segments_place place;
	bool gone;
};
STAILQ_HEAD(tolds, told);

struct job {
	struct kvdisk *disk;
	enum job_kind kind;
	/* in */
	struct segments_key key;
	struct segments_place place;
	void *payload;
	uint64_t sum[2]; /* READ: out */
	struct segments_limits limits;
	kvdisk_done_fn done;
	void *userdata;
	/* out */
	int r;
	struct err err;
	struct tolds told;
	struct segments_stats stats;
	uint32_t tokens[];
};

struct kvdisk {
	struct worker *worker;
	void (*on_ready)(void *userdata);
	void *userdata;
	struct segments_options options;
	char *dir;
	struct segments *store; /* the thread's, once it is open */
	struct job *running;	/* the thread's */
	char text[sizeof(((struct err *)0)->text)];
	bool failed, scanned; /* scanned: all files were */
	bool ready;	      /* on_ready was called */
	struct segments_stats stats;
	uint64_t n_records;
	uint32_t n_writing, n_jobs;
	uint32_t n_buckets;
	struct records *buckets;
};

static struct records *bucket_of(const struct kvdisk *d, const uint64_t hash[2])
{
	return &d->buckets[hash[0] & (d->n_buckets - 1)];
}

static bool same(const uint64_t a[2], const uint64_t b[2])
{
	return a[0] == b[0] && a[1] == b[1];
}

static struct record *find(const struct kvdisk *d, const struct segments_key *key)
{
	struct record *rec;

	LIST_FOREACH(rec, bucket_of(d, key->hash), bucket)
	{
		if (same(rec->key.hash, key->hash) && same(rec->key.parent, key->parent) &&
		    same(rec->key.root, key->root) && rec->key.uid == key->uid)
			return rec;
	}
	return NULL;
}

static void forget(struct kvdisk *d, struct record *rec)
{
	LIST_REMOVE(rec, bucket);
	free(rec);
	d->n_records--;
}

/* The newest record of a page is the one to read. */
static struct record *note(struct kvdisk *d, const struct segments_key *key,
			   struct segments_place place)
{
	struct record *rec = find(d, key);

	if (!rec) {
		rec = calloc(1, sizeof(*rec));
		if (!rec)
			return NULL;
		rec->key = *key;
		LIST_INSERT_HEAD(bucket_of(d, key->hash), rec, bucket);
		d->n_records++;
	}
	rec->place = place;
	return rec;
}

static void tell(struct kvdisk *d, const struct segments_key *key, struct segments_place place,
		 bool gone)
{
	struct told *t = calloc(1, sizeof(*t));

	if (!t)
		return; /* then it is not found, or reading it fails */
	t->key = *key;
	t->place = place;
	t->gone = gone;
	STAILQ_INSERT_TAIL(&d->running->told, t, link);
}

static void on_found(void *userdata, const struct segments_key *key, struct segments_place place)
{
	tell(userdata, key, place, false);
}

static void on_gone(void *userdata, const struct segments_key *key, struct segments_place place,
		    enum segments_why why)
{
	(void)why;
	tell(userdata, key, place, true);
}

static void run_open(struct job *job)
{
	struct kvdisk *d = job->disk;

	d->options.found = on_found;
	d->options.gone = on_gone;
	d->options.userdata = d;
	job->r = segments_open(&d->options, &d->store, &job->err);
}

/* On the thread. */
static void run(void *userdata)
{
	struct job *job = userdata;
	struct kvdisk *d = job->disk;

	d->running = job;
	if (job->kind == JOB_OPEN) {
		run_open(job);
	} else if (!d->store) {
		job->r = -ENODEV;
	} else if (job->kind == JOB_SCAN) {
		job->r = segments_scan(d->store, &job->err);
	} else if (job->kind == JOB_WRITE) {
		job->r = segments_append(d->store, &job->key, job->tokens, job->payload, job->sum,
					 &job->place, &job->err);
	} else if (job->kind == JOB_READ) {
		job->r = segments_read(d->store, job->place, &job->key, job->tokens, job->payload,
				       job->sum, &job->err);
	} else if (job->kind == JOB_FLUSH) {
		job->r = segments_flush(d->store, &job->err);
	} else {
		segments_limit(d->store, &job->limits);
		job->r = 0;
	}
	if (d->store)
		segments_stats(d->store, &job->stats);
	d->running = NULL;
}

static void take_told(struct kvdisk *d, struct job *job)
{
	struct told *t;

	while ((t = STAILQ_FIRST(&job->told))) {
		struct record *rec = find(d, &t->key);

		STAILQ_REMOVE_HEAD(&job->told, link);
		if (!t->gone)
			note(d, &t->key, t->place);
		else if (rec && rec->place.segment == t->place.segment &&
			 rec->place.slot == t->place.slot)
			forget(d, rec);
		free(t);
	}
}

static int push(struct kvdisk *d, struct job *job);

static void scan_on(struct kvdisk *d, int r)
{
	struct job *job = r > 0 ? calloc(1, sizeof(*job)) : NULL;

	if (job) {
		job->kind = JOB_SCAN;
		if (push(d, job) >= 0)
			return;
		free(job);
	}
	d->scanned = r == 0;
	d->ready = true;
	if (d->on_ready)
		d->on_ready(d->userdata);
}

static void end_write(struct kvdisk *d, struct job *job)
{
	struct record *rec = find(d, &job->key);

	d->n_writing--;
	if (job->r >= 0)
		note(d, &job->key, job->place);
	else if (rec && rec->place.segment == 0)
		forget(d, rec);
}

static void end_read(struct kvdisk *d, struct job *job)
{
	struct record *rec = find(d, &job->key);

	if ((job->r == -EBADMSG || job->r == -EIO || job->r == -ENOENT) && rec &&
	    rec->place.segment == job->place.segment && rec->place.slot == job->place.slot)
		forget(d, rec);
}

/* On the loop. */
static void ended(void *userdata)
{
	struct job *job = userdata;
	struct kvdisk *d = job->disk;

	d->n_jobs--;
	if (job->r != -ECANCELED)
		d->stats = job->stats;
	take_told(d, job);
	if (job->kind == JOB_OPEN) {
		d->failed = job->r < 0;
		snprintf(d->text, sizeof(d->text), "%s", job->r < 0 ? job->err.text : "");
		scan_on(d, job->r < 0 ? job->r : 1);
	} else if (job->kind == JOB_SCAN) {
		/* what was found so far is not all: better none than a disk that takes nothing */
		d->failed |= job->r < 0;
		if (job->r < 0)
			snprintf(d->text, sizeof(d->text), "%s", job->err.text);
		scan_on(d, job->r);
	} else if (job->kind == JOB_WRITE) {
		end_write(d, job);
	} else if (job->kind == JOB_READ) {
		end_read(d, job);
	}
	if (job->done)
		job->done(job->r, job->sum, job->userdata);
	free(job);
}

static int push(struct kvdisk *d, struct job *job)
{
	int r;

	job->disk = d;
	job->r = -ECANCELED; /* until it has run */
	STAILQ_INIT(&job->told);
	r = worker_push(d->worker, run, ended, job);
	d->n_jobs += r >= 0;
	return r;
}

int kvdisk_new(sd_event *loop, const struct segments_options *options,
	       void (*on_ready)(void *userdata), void *userdata, struct kvdisk **ret)
{
	_cleanup_(kvdisk_freep) struct kvdisk *d = calloc(1, sizeof(*d));
	struct job *job;
	int r;

	if (!d)
		return -ENOMEM;
	d->on_ready = on_ready;
	d->userdata = userdata;
	d->options = *options;
	d->dir = strdup(options->dir);
	d->options.dir = d->dir;
	d->n_buckets = 1u << 14;
	d->buckets = calloc(d->n_buckets, sizeof(*d->buckets));
	job = calloc(1, sizeof(*job));
	r = d->dir && d->buckets && job ? worker_new(loop, &d->worker) : -ENOMEM;
	if (r >= 0) {
		job->kind = JOB_OPEN;
		r = push(d, job);
	}
	if (r < 0) {
		free(job);
		return r;
	}
	*ret = steal(d);
	return 0;
}

struct kvdisk *kvdisk_free(struct kvdisk *d)
{
	if (!d)
		return NULL;
	d->on_ready = NULL;
	worker_free(d->worker); /* the jobs that did not run fail */
	if (d->store)
		segments_flush(d->store, NULL);
	segments_free(d->store);
	for (uint32_t i = 0; d->buckets && i < d->n_buckets; i++) {
		while (!LIST_EMPTY(&d->buckets[i]))
			forget(d, LIST_FIRST(&d->buckets[i]));
	}
	free(d->buckets);
	free(d->dir);
	free(d);
	return NULL;
}

static void fill_key(const struct kvdisk_key *from, struct segments_key *to)
{
	*to = (struct segments_key){
		.hash = { from->hash.lo, from->hash.hi },
		.parent = { from->parent.lo, from->parent.hi },
		.root = { from->root.lo, from->root.hi },
		.uid = from->uid,
		.n_tokens = from->n_tokens,
	};
}

bool kvdisk_has(const struct kvdisk *d, const struct kvdisk_key *key)
{
	struct segments_key k;

	fill_key(key, &k);
	return !d->failed && find(d, &k) != NULL;
}

static struct job *new_job(enum job_kind kind, const struct kvdisk_key *key, void *payload,
			   kvdisk_done_fn done, void *userdata)
{
	struct job *job = calloc(1, sizeof(*job) + key->n_tokens * sizeof(*key->tokens));

	if (!job)
		return NULL;
	job->kind = kind;
	fill_key(key, &job->key);
	memcpy(job->tokens, key->tokens, key->n_tokens * sizeof(*key->tokens));
	job->payload = payload;
	job->done = done;
	job->userdata = userdata;
	return job;
}

int kvdisk_write(struct kvdisk *d, const struct kvdisk_key *key, const void *payload,
		 const uint64_t sum[2], kvdisk_done_fn done, void *userdata)
{
	struct record *rec;
	struct job *job;
	int r;

	if (d->failed || !d->scanned || d->n_writing >= WAITING_MAX)
		return -EAGAIN;
	job = new_job(JOB_WRITE, key, (void *)payload, done, userdata);
	if (!job)
		return -ENOMEM;
	memcpy(job->sum, sum, sizeof(job->sum));
	rec = note(d, &job->key, (struct segments_place){ 0 });
	r = rec ? push(d, job) : -ENOMEM;
	if (r < 0) {
		if (rec)
			forget(d, rec);
		free(job);
		return r;
	}
	d->n_writing++;
	return 0;
}

int kvdisk_read(struct kvdisk *d, const struct kvdisk_key *key, void *payload, kvdisk_done_fn done,
		void *userdata)
{
	struct job *job = new_job(JOB_READ, key, payload, done, userdata);
	const struct record *rec;
	int r;

	if (!job)
		return -ENOMEM;
	rec = d->failed ? NULL : find(d, &job->key);
	r = rec && rec->place.segment != 0 ? 0 : -ENOENT;
	if (r >= 0) {
		job->place = rec->place;
		r = push(d, job);
	}
	if (r < 0)
		free(job);
	return r;
}

static int push_plain(struct kvdisk *d, const struct job *what)
{
	struct job *job = d->failed ? NULL : calloc(1, sizeof(*job));
	int r;

	if (!job)
		return d->failed ? -ENODEV : -ENOMEM;
	*job = *what;
	r = push(d, job);
	if (r < 0)
		free(job);
	return r;
}

int kvdisk_flush_then(struct kvdisk *d, kvdisk_done_fn done, void *userdata)
{
	return push_plain(d,
			  &(struct job){ .kind = JOB_FLUSH, .done = done, .userdata = userdata });
}

void kvdisk_flush(struct kvdisk *d)
{
	kvdisk_flush_then(d, NULL, NULL);
}

void kvdisk_limit(struct kvdisk *d, const struct segments_limits *limits)
{
	push_plain(d, &(struct job){ .kind = JOB_LIMIT, .limits = *limits });
}

bool kvdisk_is_ready(const struct kvdisk *d)
{
	return d->ready;
}

void kvdisk_count(const struct kvdisk *d, struct kvdisk_counts *ret)
{
	*ret = (struct kvdisk_counts){
		.store = d->stats,
		.n_pages = d->n_records,
		.n_waiting = d->n_jobs,
	};
}

const char *kvdisk_text(const struct kvdisk *d)
{
	return d->text;
}
