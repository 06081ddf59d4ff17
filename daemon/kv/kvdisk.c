/*
 * Jobs go to a worker of its own. What the store says while a job runs (records
 * found and gone) is noted in the job, and put into the index when it has come
 * home, before the next one's end.
 */
#include "daemon/kv/kvdisk.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <xxhash.h>

#include "client/wire/ownership.h"
#include "daemon/base/worker.h"

#define WAITING_MAX 256 /* writes */
#define OUTLIVED_MAX 4	/* parts that one page outlives at once; others go as they get old */

/* A record in the index. */
struct record {
	LIST_ENTRY(record) bucket;
	struct segments_key key;
	struct segments_place place; /* segment 0: being written */
	bool outlived;		     /* a part, and a longer one was written */
};
LIST_HEAD(records, record);

enum job_kind { JOB_OPEN, JOB_SCAN, JOB_WRITE, JOB_READ, JOB_FLUSH, JOB_LIMIT };

/* What the store told, in order. */
struct told {
	STAILQ_ENTRY(told) link;
	struct segments_key key;
	struct segments_place place;
	bool gone;
	enum segments_why why;
};
STAILQ_HEAD(tolds, told);

struct job {
	TAILQ_ENTRY(job) waiting; /* READ: in its disk's list */
	bool waits, ahead;	  /* READ: is in it; the store has begun to read it */
	struct kvdisk *disk;
	enum job_kind kind;
	/* in */
	struct segments_key key;
	struct segments_place place;
	void *payload;
	uint32_t n_strips;
	uint64_t sum[2];			      /* READ: out */
	struct segments_place outlived[OUTLIVED_MAX]; /* WRITE: when it is written */
	uint32_t n_outlived;
	struct segments_limits limits;
	kvdisk_done_fn done;
	void *userdata;
	/* out */
	int r;
	struct err err;
	struct tolds told;
	struct segments_stats stats;
	struct segments_usage *usage; /* NULL: as it was */
	uint32_t n_usage;
	uint32_t tokens[];
};

TAILQ_HEAD(reads, job);

struct kvdisk {
	struct worker *worker;
	pthread_mutex_t lock; /* guards reads, and waits and ahead of those in it */
	struct reads reads;   /* that have not begun, in their order */
	void (*on_ready)(void *userdata);
	void *userdata;
	kvdisk_gone_fn watcher; /* or NULL */
	void *watcher_userdata;
	struct segments_options options;
	char *dir;
	struct segments *store; /* the thread's, once it is open */
	struct job *running;	/* the thread's */
	char *room;		/* the thread's: a part as it is in its file */
	char text[sizeof(((struct err *)0)->text)];
	bool failed, scanned; /* scanned: all files were */
	bool ready;	      /* on_ready was called */
	struct segments_stats stats;
	struct segments_usage *usage; /* as of the last end of a job, too */
	uint32_t n_usage;
	uint64_t n_records, n_parts;
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

static bool is_part(const struct kvdisk *d, uint32_t n_tokens)
{
	return n_tokens < d->options.page_tokens;
}

static void forget(struct kvdisk *d, struct record *rec)
{
	LIST_REMOVE(rec, bucket);
	d->n_records--;
	d->n_parts -= is_part(d, rec->key.n_tokens);
	free(rec);
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
		d->n_parts += is_part(d, key->n_tokens);
	}
	rec->place = place;
	return rec;
}

static void tell(struct kvdisk *d, const struct segments_key *key, struct segments_place place,
		 bool gone, enum segments_why why)
{
	struct told *t;

	if (!d->running)
		return; /* it is being freed: nobody will ask any more */
	t = calloc(1, sizeof(*t));
	if (!t)
		return; /* then it is not found, or reading it fails */
	t->key = *key;
	t->place = place;
	t->gone = gone;
	t->why = why;
	STAILQ_INSERT_TAIL(&d->running->told, t, link);
}

static void on_found(void *userdata, const struct segments_key *key, struct segments_place place)
{
	tell(userdata, key, place, false, SEGMENTS_EVICTED);
}

static void on_gone(void *userdata, const struct segments_key *key, struct segments_place place,
		    enum segments_why why)
{
	tell(userdata, key, place, true, why);
}

static void run_open(struct job *job)
{
	struct kvdisk *d = job->disk;

	d->options.found = on_found;
	d->options.gone = on_gone;
	d->options.userdata = d;
	job->r = segments_open(&d->options, &d->store, &job->err);
}

/*
 * Between a page and a part's bytes, one strip after the other. What the page
 * has behind them becomes zeros, for it may be another's.
 */
static void move_strips(const struct job *job, char *part, bool to_part)
{
	const struct segments_options *o = &job->disk->options;
	const uint64_t strip_bytes = o->page_bytes / job->n_strips;
	const uint64_t bytes = strip_bytes / o->page_tokens * job->key.n_tokens;
	char *page = job->payload;

	for (uint32_t i = 0; i < job->n_strips; i++) {
		if (to_part) {
			memcpy(part + i * bytes, page + i * strip_bytes, bytes);
			continue;
		}
		memcpy(page + i * strip_bytes, part + i * bytes, bytes);
		memset(page + i * strip_bytes + bytes, 0, strip_bytes - bytes);
	}
}

static uint64_t part_bytes(const struct job *job)
{
	const struct segments_options *o = &job->disk->options;

	return o->page_bytes / job->n_strips / o->page_tokens * job->key.n_tokens * job->n_strips;
}

static void sum_of(const void *bytes, uint64_t n, uint64_t ret[2])
{
	const XXH128_hash_t sum = XXH3_128bits(bytes, n);

	ret[0] = sum.low64;
	ret[1] = sum.high64;
}

/* The file's record has the sum of all of its payload; the part's own is looked at before. */
static int write_part(struct job *job)
{
	struct kvdisk *d = job->disk;
	const uint64_t bytes = part_bytes(job);
	uint64_t sum[2];

	move_strips(job, d->room, true);
	sum_of(d->room, bytes, sum);
	if (!same(sum, job->sum))
		return -EBADMSG;
	memset(d->room + bytes, 0, d->options.page_bytes - bytes);
	sum_of(d->room, d->options.page_bytes, sum);
	return segments_append(d->store, &job->key, job->tokens, d->room, sum, &job->place,
			       &job->err);
}

static int read_part(struct job *job)
{
	struct kvdisk *d = job->disk;
	int r;

	r = segments_read(d->store, job->place, &job->key, job->tokens, d->room, NULL, &job->err);
	if (r < 0)
		return r;
	sum_of(d->room, part_bytes(job), job->sum);
	move_strips(job, d->room, false);
	return 0;
}

/* Room for a part; made when first wanted. */
static bool have_room(struct kvdisk *d)
{
	const uint64_t page = 4096, bytes = (d->options.page_bytes + page - 1) / page * page;

	if (!d->room)
		d->room = aligned_alloc(page, bytes);
	return d->room;
}

static void run_write(struct job *job)
{
	struct kvdisk *d = job->disk;

	if (!is_part(d, job->key.n_tokens))
		job->r = segments_append(d->store, &job->key, job->tokens, job->payload, job->sum,
					 &job->place, &job->err);
	else
		job->r = have_room(d) ? write_part(job) : -ENOMEM;
	for (uint32_t i = 0; i < job->n_outlived && job->r >= 0; i++)
		segments_outlive(d->store, job->outlived[i]);
}

/* It begins, or never will. */
static void wait_no_more(struct kvdisk *d, struct job *job)
{
	pthread_mutex_lock(&d->lock);
	if (job->waits)
		TAILQ_REMOVE(&d->reads, job, waiting);
	job->waits = false;
	pthread_mutex_unlock(&d->lock);
}

/*
 * While this page is read and summed, the disk reads the next one that waits.
 * Its job cannot go meanwhile: its turn comes on this thread, or after it.
 */
static void read_ahead(struct kvdisk *d, const struct job *job)
{
	struct job *next;

	pthread_mutex_lock(&d->lock);
	next = TAILQ_FIRST(&d->reads);
	if (next && !is_part(d, next->key.n_tokens) && next->payload != job->payload)
		next->ahead = segments_prefetch(d->store, next->place, next->payload) == 0;
	pthread_mutex_unlock(&d->lock);
}

static void run_read(struct job *job)
{
	struct kvdisk *d = job->disk;

	wait_no_more(d, job);
	read_ahead(d, job);
	if (!is_part(d, job->key.n_tokens))
		job->r = segments_read(d->store, job->place, &job->key, job->tokens, job->payload,
				       job->sum, &job->err);
	else
		job->r = have_room(d) ? read_part(job) : -ENOMEM;
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
		run_write(job);
	} else if (job->kind == JOB_READ) {
		run_read(job);
	} else if (job->kind == JOB_FLUSH) {
		job->r = segments_flush(d->store, &job->err);
	} else {
		segments_limit(d->store, &job->limits);
		job->r = 0;
	}
	if (d->store) {
		segments_stats(d->store, &job->stats);
		job->n_usage = segments_usage(d->store, &job->usage);
	}
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
			 rec->place.slot == t->place.slot) {
			forget(d, rec);
			if (d->watcher)
				d->watcher(&t->key, t->why, d->watcher_userdata);
		}
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

	wait_no_more(d, job);
	/* it did not run, for the thread has ended: what it began must not outlive the room */
	if (job->r == -ECANCELED && job->ahead)
		segments_cancel(d->store);
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
	if (job->usage) {
		free(d->usage);
		d->usage = steal(job->usage);
		d->n_usage = job->n_usage;
	}
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
	pthread_mutex_init(&d->lock, NULL);
	TAILQ_INIT(&d->reads);
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
	free(d->room);
	free(d->usage);
	free(d->dir);
	pthread_mutex_destroy(&d->lock);
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

bool kvdisk_is_written(const struct kvdisk *d, const struct kvdisk_key *key)
{
	const struct record *rec;
	struct segments_key k;

	fill_key(key, &k);
	rec = d->failed ? NULL : find(d, &k);
	return rec && rec->place.segment != 0;
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
	job->n_strips = MAX(key->n_strips, 1u);
	job->payload = payload;
	job->done = done;
	job->userdata = userdata;
	return job;
}

/* The part of @n_tokens of @ids, or NULL. */
static struct record *find_part(const struct kvdisk *d, struct kv_hash root, uid_t uid,
				struct kv_hash parent, const uint32_t *ids, uint32_t n_tokens)
{
	struct segments_key k;

	fill_key(
		&(struct kvdisk_key){
			.hash = chain_next(root, parent, ids, n_tokens),
			.parent = parent,
			.root = root,
			.uid = uid,
			.n_tokens = n_tokens,
		},
		&k);
	return find(d, &k);
}

uint32_t kvdisk_find_part(const struct kvdisk *d, struct kv_hash root, uid_t uid,
			  struct kv_hash parent, const uint32_t *ids, uint32_t n,
			  struct kv_hash *ret_hash)
{
	const struct record *rec;

	if (d->failed || d->n_parts == 0)
		return 0;
	for (uint32_t k = MIN(n, d->options.page_tokens - 1); k > 0; k--) {
		rec = find_part(d, root, uid, parent, ids, k);
		if (!rec || rec->place.segment == 0)
			continue;
		*ret_hash = (struct kv_hash){ rec->key.hash[0], rec->key.hash[1] };
		return k;
	}
	return 0;
}

/* Which parts the page of this job makes superfluous, the longest first. */
static void find_outlived(struct kvdisk *d, const struct kvdisk_key *key, struct job *job)
{
	for (uint32_t k = key->n_tokens - 1;
	     k > 0 && d->n_parts > 0 && job->n_outlived < OUTLIVED_MAX; k--) {
		struct record *rec = find_part(d, key->root, key->uid, key->parent, key->tokens, k);

		if (!rec || rec->place.segment == 0 || rec->outlived)
			continue;
		rec->outlived = true;
		job->outlived[job->n_outlived++] = rec->place;
	}
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
	find_outlived(d, key, job);
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
		pthread_mutex_lock(&d->lock);
		TAILQ_INSERT_TAIL(&d->reads, job, waiting);
		job->waits = true;
		pthread_mutex_unlock(&d->lock);
		r = push(d, job);
		if (r < 0)
			wait_no_more(d, job);
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

int kvdisk_flush(struct kvdisk *d, kvdisk_done_fn done, void *userdata)
{
	return push_plain(d,
			  &(struct job){ .kind = JOB_FLUSH, .done = done, .userdata = userdata });
}

void kvdisk_watch(struct kvdisk *d, kvdisk_gone_fn on_gone, void *userdata)
{
	d->watcher = on_gone;
	d->watcher_userdata = userdata;
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

static const struct segments_usage *usage_of(const struct kvdisk *d, uid_t uid)
{
	static const struct segments_usage none;

	for (uint32_t i = 0; i < d->n_usage; i++) {
		if (d->usage[i].uid == uid)
			return &d->usage[i];
	}
	return &none;
}

uint64_t kvdisk_user_bytes(const struct kvdisk *d, uid_t uid)
{
	return usage_of(d, uid)->bytes;
}

uint64_t kvdisk_user_evicted(const struct kvdisk *d, uid_t uid)
{
	return usage_of(d, uid)->evicted_bytes;
}

const char *kvdisk_text(const struct kvdisk *d)
{
	return d->text;
}
