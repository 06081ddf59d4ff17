/*
 * Pieces that lie behind one another in a file are read together. A thread
 * reads such a run, packs it and takes the next; there are more threads than
 * cores, so that the disk has reads to do while the cores pack.
 */
#include "daemon/exec/weights/loader.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#include "client/wire/ownership.h"
#include "daemon/base/clock.h"
#include "daemon/exec/weights/direct.h"

#define RUN_BYTES (8u << 20)
#define GAP_BYTES 65536u /* of other tensors, read for nothing */
#define READERS 4	 /* threads beyond those that compute */
#define THREADS_MAX 1024
#define PROGRESS_US 100000

struct run {
	struct extent extent;
	size_t first, n; /* pieces */
};

struct loader {
	const struct load_plan *plan;
	const struct checkpoint *c;
	struct weights *const *ranks;
	uint32_t n_ranks;
	struct fingerprint *fingerprint;
	struct direct *files; /* [c->n_files] */
	struct run *runs;
	size_t n_runs, run_bytes, piece_bytes; /* of the largest */
	weights_progress_fn progress;
	void *userdata;
	_Atomic uint32_t n_helpers;
	_Atomic size_t next;
	_Atomic uint64_t done_bytes;
	_Atomic bool failed;
	pthread_mutex_t lock; /* guards the three below */
	size_t failed_piece;
	int r;
	struct err err;
};

int load_plan_add(struct load_plan *plan, struct piece p)
{
	if (plan->n_pieces == plan->room) {
		const size_t room = plan->room ? 2 * plan->room : 1024;
		struct piece *more = reallocarray(plan->pieces, room, sizeof(*more));

		if (!more)
			return -ENOMEM;
		plan->pieces = more;
		plan->room = room;
	}
	plan->total_bytes += p.repeats ? 0 : p.bytes;
	plan->pieces[plan->n_pieces++] = p;
	return 0;
}

void load_plan_deinit(struct load_plan *plan)
{
	free(plan->pieces);
	*plan = (struct load_plan){ 0 };
}

static int by_place(const void *a, const void *b)
{
	const struct extent x = piece_extent(a), y = piece_extent(b);

	if (x.file != y.file)
		return strcmp(st_file_path(x.file), st_file_path(y.file));
	return (x.from > y.from) - (x.from < y.from);
}

/* Whether @e, which does not begin before @run does, can be read along with it. */
static bool goes_on(const struct extent *run, const struct extent *e)
{
	const uint64_t to = MAX(run->to, e->to);

	return e->file == run->file && to - run->from <= RUN_BYTES &&
	       (e->from <= run->to || e->from - run->to <= GAP_BYTES);
}

static int make_runs(struct loader *l)
{
	struct piece *pieces = l->plan->pieces;
	struct run *run = NULL;

	l->runs = calloc(l->plan->n_pieces + 1, sizeof(*l->runs));
	if (!l->runs)
		return -ENOMEM;
	qsort(pieces, l->plan->n_pieces, sizeof(*pieces), by_place);
	for (size_t i = 0; i < l->plan->n_pieces; i++) {
		const struct extent e = piece_extent(&pieces[i]);

		l->piece_bytes = MAX(l->piece_bytes, piece_room(&pieces[i]));
		if (run && goes_on(&run->extent, &e)) {
			run->extent.to = MAX(run->extent.to, e.to);
			run->n++;
		} else {
			run = &l->runs[l->n_runs++];
			*run = (struct run){ e, i, 1 };
		}
		l->run_bytes = MAX(l->run_bytes, run->extent.to - run->extent.from);
	}
	return 0;
}

static const struct direct *direct_of(const struct loader *l, const struct st_file *file)
{
	uint32_t i = 0;

	while (l->c->files[i] != file)
		i++;
	return &l->files[i];
}

static void fail(struct loader *l, size_t piece, int r, const struct err *err)
{
	pthread_mutex_lock(&l->lock);
	if (!l->failed || piece < l->failed_piece) {
		l->failed_piece = piece;
		l->r = r;
		l->err = *err;
	}
	l->failed = true;
	pthread_mutex_unlock(&l->lock);
}

/* What cannot be read here is read again, alone, by the piece that misses it, and named there. */
static int load_run(struct loader *l, const struct run *run, void *room, void *room_of_piece,
		    size_t *ret_piece, struct err *err)
{
	struct window have = { .file = run->extent.file, .at = run->extent.from };
	void *data;
	const ssize_t n = direct_read(direct_of(l, have.file), have.at,
				      run->extent.to - run->extent.from, room, &data);
	int r;

	have.data = data;
	have.bytes = n > 0 ? (size_t)n : 0;
	for (size_t i = run->first; i < run->first + run->n; i++) {
		const struct piece *p = &l->plan->pieces[i];

		*ret_piece = i;
		r = piece_load(p, &have, room_of_piece, l->fingerprint, err);
		if (r < 0)
			return r;
		l->done_bytes += p->repeats ? 0 : p->bytes;
	}
	return 0;
}

/* Huge pages are quicker to fill, and to hand to a disk. */
static void *map_room(size_t bytes)
{
	void *room = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (room == MAP_FAILED)
		return NULL;
	(void)madvise(room, bytes, MADV_HUGEPAGE);
	return room;
}

static void load_runs(struct loader *l, weights_progress_fn progress)
{
	const size_t run_room = DIRECT_ROOM(l->run_bytes), room_bytes = run_room + l->piece_bytes;
	char *room = map_room(room_bytes);
	struct err err = { 0 };
	uint64_t reported = 0;
	size_t i, piece = 0;
	int r;

	if (!room)
		return fail(l, 0, err_set(&err, -ENOMEM, "no memory to read into"), &err);
	while (!l->failed && (i = atomic_fetch_add(&l->next, 1)) < l->n_runs) {
		r = load_run(l, &l->runs[i], room, room + run_room, &piece, &err);
		if (r < 0) {
			fail(l, piece, r, &err);
			break;
		}
		if (progress && clock_us() - reported >= PROGRESS_US) {
			progress(l->done_bytes, l->plan->total_bytes, l->userdata);
			reported = clock_us();
		}
	}
	munmap(room, room_bytes);
}

static void *help(void *userdata)
{
	struct loader *l = userdata;
	const uint32_t i = atomic_fetch_add(&l->n_helpers, 1) + 1;

	dev_settle(l->ranks[i % l->n_ranks]->dev, i / l->n_ranks);
	load_runs(l, NULL);
	return NULL;
}

/* This thread does what no other could be started for. */
static void run_threads(struct loader *l)
{
	size_t n = READERS, started = 1;
	pthread_t threads[THREADS_MAX];

	for (uint32_t i = 0; i < l->n_ranks; i++)
		n += dev_threads(l->ranks[i]->dev);
	n = MIN(MIN(n, THREADS_MAX), l->n_runs);
	while (started < n && pthread_create(&threads[started], NULL, help, l) == 0)
		started++;
	load_runs(l, l->progress);
	while (started > 1)
		pthread_join(threads[--started], NULL);
}

int load_plan_run(struct load_plan *plan, const struct checkpoint *c, struct weights *const *ranks,
		  struct fingerprint *fingerprint, weights_progress_fn progress, void *userdata,
		  struct err *err)
{
	struct loader l = { .plan = plan,
			    .c = c,
			    .ranks = ranks,
			    .n_ranks = ranks[0]->share.n_ranks,
			    .fingerprint = fingerprint,
			    .progress = progress,
			    .userdata = userdata,
			    .lock = PTHREAD_MUTEX_INITIALIZER };
	int r;

	l.files = calloc(c->n_files + 1, sizeof(*l.files));
	if (!l.files)
		return -ENOMEM;
	for (uint32_t i = 0; i < c->n_files; i++)
		direct_init(&l.files[i], st_file_fd(c->files[i]));
	r = make_runs(&l);
	if (r == 0) {
		run_threads(&l);
		r = l.failed ? err_set(err, l.r, "%s", l.err.text) : 0;
	}
	for (uint32_t i = 0; i < c->n_files; i++)
		direct_deinit(&l.files[i]);
	free(l.files);
	free(l.runs);
	return r;
}
