/*
 * op_linears_choose(): for each set of matrices and number of tokens, kernels of ours
 * against the ways of cuBLASLt that its heuristic thinks best.
 */
#include "kernels/cuda/choice.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

extern "C" {
#include "kernels/norm.h"
}

#define BUCKET_LEAST 8u
#define BESIDE_TOKENS_MAX 256 /* beyond, sums in memory cost more than weights */
#define CANDIDATES 4	      /* of the library's, for each matrix */
#define RUNS 5		      /* that are timed, after one that is not; the quickest counts */
#define MARGIN 0.98f	      /* by which the library has to be quicker */
#define MIB ((size_t)1 << 20)
#define TOL_SAME 1e-3 /* of the largest sum of a row, between the library's and ours */

uint64_t choice_budget_us = 3000000;

/* What op_linears_choose() is at. */
struct timing {
	struct stream *st;
	struct choice *choice;
	const struct linear_set *wanted; /* of the set below */
	struct choice_set *set;
	cudaEvent_t marks[RUNS + 1];
	uint64_t began_us;
	size_t left_bytes;	       /* of the device's memory, before the library was there */
	struct choicefile_entry *kept; /* [CHOICEFILE_ENTRIES_MAX] of the file */
	uint32_t n_kept, n_timed, n_taken, n_left, n_wrong;
};

static uint64_t now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

#define NOISE_THREADS 256

/* -1 … 1: to zeros a card is kinder. */
static __global__ void k_noise(float *x, size_t n)
{
	const size_t i = (size_t)blockIdx.x * NOISE_THREADS + threadIdx.x;
	uint32_t h = (uint32_t)i * 0x9e3779b9u;

	if (i >= n)
		return;
	h = (h ^ h >> 16) * 0x85ebca6bu;
	h = (h ^ h >> 13) * 0xc2b2ae35u;
	x[i] = (float)(int32_t)(h ^ h >> 16) * (1.0f / 2147483648.0f);
}

/* Jobs of one variant, for so many tokens. */
static void jobs_for(const struct linear_set *wanted, uint32_t variant, uint32_t tokens,
		     struct linear_job *ret)
{
	for (uint32_t i = 0; i < wanted->n_jobs; i++) {
		ret[i] = wanted->jobs[variant * wanted->n_jobs + i];
		ret[i].y.shape[1] = tokens;
	}
}

/* Queues @run(jobs) for variants in turn. 0 with microseconds of the quickest, or an errno of theirs. */
template <typename F>
static int time_runs(const struct timing *t, uint32_t tokens, float *ret_us, F run)
{
	struct linear_job jobs[OP_LINEARS_MAX];
	float ms, least = 0;
	int r = 0;

	for (uint32_t i = 0; i <= RUNS && r == 0; i++) {
		jobs_for(t->wanted, i % t->wanted->n_variants, tokens, jobs);
		r = run(jobs);
		if (r == 0)
			r = CUDA_CALL(cudaEventRecord(t->marks[i], t->st->handle));
	}
	if (r == 0)
		r = st_wait(t->st);
	for (uint32_t i = 0; i < RUNS && r == 0; i++) {
		r = CUDA_CALL(cudaEventElapsedTime(&ms, t->marks[i], t->marks[i + 1]));
		if (r == 0 && (i == 0 || ms < least))
			least = ms;
	}
	if (r == 0)
		*ret_us = least * 1e3f;
	return r;
}

/* The set as the bucket has it now. */
static int time_set(const struct timing *t, uint32_t tokens, float *ret_us)
{
	struct tensor x = t->wanted->x;

	x.shape[1] = tokens;
	return time_runs(t, tokens, ret_us, [&](const struct linear_job *jobs) {
		return op_linears(t->st, jobs, t->wanted->n_jobs, &x);
	});
}

/* The quickest of the library's ways for one job, over activations that are split already. */
static int time_job(const struct timing *t, struct choicefile_entry *e, uint32_t i, size_t at)
{
	struct choice_set *set = t->set;
	const struct linear_job *own[OP_LINEARS_MAX];
	const uint32_t tokens = e->tokens, n = e->way == CHOICEFILE_BESIDE ? 2 * tokens : tokens;
	struct blaslt_algorithm found[CANDIDATES];
	const float *bias;
	struct choice_room room;
	float best = 0, us = 0;
	int n_found, r;

	(void)choice_jobs(t->wanted->jobs, t->wanted->n_jobs, own);
	bias = e->way == CHOICEFILE_BESIDE ? NULL : (const float *)own[i]->bias.data;
	if (!choice_room(t->st, set, e->way, tokens, at, &room))
		return -ENOTSUP;
	n_found = blaslt_find(set->products[e->way][i], n, set->w_align, set->y_align, bias,
			      room.workspace_bytes, found, CANDIDATES);
	for (int k = 0; k < n_found; k++) {
		r = choice_check(set, e->way, i, &found[k], bias, tokens, &room);
		if (r == 0)
			r = time_runs(t, tokens, &us, [&](const struct linear_job *jobs) {
				const struct linear_job *those[OP_LINEARS_MAX];

				(void)choice_jobs(jobs, t->wanted->n_jobs, those);
				return choice_multiply(t->st, set, e->way, i, &found[k], those[i],
						       (const uint16_t *)t->st->scratch, tokens,
						       &room);
			});
		if (r < 0 && r != -ENOTSUP)
			return r;
		if (r == 0 && (best == 0 || us < best)) {
			best = us;
			memcpy(e->algorithms[i], found[k].data, sizeof(e->algorithms[i]));
		}
	}
	return n_found < 0 ? n_found : best > 0 ? 0 : -ENOTSUP;
}

/* The first and the last row that the jobs make of x, one behind another, as the bucket has it now. */
static int read_rows(const struct timing *t, uint32_t tokens, float *ret)
{
	struct linear_job jobs[OP_LINEARS_MAX];
	struct tensor x = t->wanted->x;
	int r = 0;

	x.shape[1] = tokens;
	jobs_for(t->wanted, 0, tokens, jobs);
	for (uint32_t i = 0; i < t->wanted->n_jobs && r == 0; i++)
		r = op_clear(t->st, &jobs[i].y);
	if (r == 0)
		r = op_linears(t->st, jobs, t->wanted->n_jobs, &x);
	for (uint32_t i = 0; i < t->wanted->n_jobs && r == 0; i++) {
		const uint32_t rows = jobs[i].w->rows;
		const float *y = (const float *)jobs[i].y.data;

		r = st_read(t->st, ret, y, rows * sizeof(float));
		if (r == 0)
			r = st_read(t->st, ret + rows, y + (size_t)(tokens - 1) * rows,
				    rows * sizeof(float));
		ret += 2 * rows;
	}
	return r;
}

/* 1: the way of @e makes what ours makes; 0: it does not. Leaves @e in the bucket. */
static int is_same(const struct timing *t, struct choice_bucket *bucket,
		   const struct choicefile_entry *e)
{
	size_t n = 0;
	float *ours, *theirs;
	double most = 0, apart = 0;
	int r;

	for (uint32_t i = 0; i < t->wanted->n_jobs; i++)
		n += (size_t)2 * t->wanted->jobs[i].w->rows;
	ours = (float *)calloc(2 * n, sizeof(*ours));
	if (!ours)
		return -ENOMEM;
	theirs = ours + n;
	bucket->entry.way = CHOICEFILE_OWN;
	r = read_rows(t, e->tokens, ours);
	bucket->entry = *e;
	if (r == 0)
		r = read_rows(t, e->tokens, theirs);
	for (size_t i = 0; i < n && r == 0; i++) {
		const double size = ours[i] < 0 ? -ours[i] : ours[i];
		const double d = ours[i] < theirs[i] ? theirs[i] - ours[i] : ours[i] - theirs[i];

		most = size > most ? size : most;
		if (!(d <= apart))
			apart = d;
	}
	free(ours);
	return r < 0 ? r : apart <= TOL_SAME * most;
}

/* What the library makes of a bucket, with the activations that the run before has split: @best is replaced if it is quicker, and right. */
static int try_way(struct timing *t, struct choice_bucket *bucket, uint32_t way, size_t at,
		   struct choicefile_entry *best)
{
	struct choicefile_entry e = *best;
	int r = 0;

	e.way = way;
	for (uint32_t i = 0; i < e.n_jobs && r == 0; i++)
		r = time_job(t, &e, i, at);
	if (r < 0)
		return r == -ENOTSUP ? 0 : r;
	bucket->entry = e;
	bucket->known[e.tokens] = 0;
	r = time_set(t, e.tokens, &e.library_us);
	if (r == 0 && bucket->known[e.tokens] == CHOICE_FITS &&
	    (best->library_us == 0 || e.library_us < best->library_us)) {
		best->library_us = e.library_us;
		if (e.library_us < best->own_us * MARGIN) {
			r = is_same(t, bucket, &e);
			if (r > 0)
				*best = e;
			else if (r == 0)
				t->n_wrong++;
			r = r < 0 ? r : 0;
		}
	}
	bucket->known[e.tokens] = 0;
	return r;
}

static int time_bucket(struct timing *t, struct choice_bucket *bucket, size_t at)
{
	struct choicefile_entry best = bucket->entry;
	int r;

	r = time_set(t, best.tokens, &best.own_us);
	for (uint32_t way = CHOICEFILE_TWICE; way < CHOICEFILE_WAYS && r == 0; way++)
		if (way != CHOICEFILE_BESIDE || best.tokens <= BESIDE_TOKENS_MAX)
			r = try_way(t, bucket, way, at, &best);
	bucket->entry = best;
	if (r < 0)
		bucket->entry.way = CHOICEFILE_OWN;
	return r;
}

/* Takes a bucket's way from what the file has. */
static bool take_kept(const struct timing *t, struct choice_bucket *bucket)
{
	for (uint32_t i = 0; i < t->n_kept; i++)
		if (choicefile_is_same(&t->kept[i], &bucket->entry)) {
			bucket->entry = t->kept[i];
			return true;
		}
	return false;
}

/* In place of the oldest if there is no room. */
static void keep(struct timing *t, const struct choicefile_entry *e)
{
	if (t->n_kept == CHOICEFILE_ENTRIES_MAX)
		memmove(t->kept, t->kept + 1, --t->n_kept * sizeof(*t->kept));
	t->kept[t->n_kept++] = *e;
}

static int choose_bucket(struct timing *t, struct choice_bucket *bucket, size_t at)
{
	int r;

	if (take_kept(t, bucket)) {
		t->n_taken++;
		return 0;
	}
	if (now_us() - t->began_us > choice_budget_us) {
		t->n_left++;
		return 0;
	}
	r = time_bucket(t, bucket, at);
	if (r == 0) {
		t->n_timed++;
		keep(t, &bucket->entry);
	}
	return r;
}

/* Shapes, alignment and products of a set; false: it has nothing to choose. */
static int make_set(struct choice *c, const struct linear_set *wanted, struct choice_set *ret)
{
	const struct linear_job *own[OP_LINEARS_MAX];
	const uint32_t n = choice_jobs(wanted->jobs, wanted->n_jobs, own);
	const uint32_t cols = wanted->x.shape[2], pitch = groups_of(cols) * GROUP_COLS;
	int r = 0;

	*ret = {};
	ret->cols = cols;
	ret->n_jobs = n;
	ret->w_align = ret->y_align = 256;
	for (uint32_t i = 0; i < wanted->n_variants * wanted->n_jobs; i++) {
		const struct linear_job *job = &wanted->jobs[i];
		const uint32_t w = choice_alignment(job->w->data),
			       y = choice_alignment(job->y.data);

		if (!linear_job_fits(job, &wanted->x))
			return -EINVAL;
		ret->w_align = w < ret->w_align ? w : ret->w_align;
		ret->y_align = y < ret->y_align ? y : ret->y_align;
	}
	for (uint32_t i = 0; i < n && r == 0; i++) {
		ret->rows[i] = own[i]->w->rows;
		ret->flags[i] = choice_flags(own[i]);
		/* columns beyond cols are zeros in both */
		r = blaslt_product_new(c->library, ret->rows[i], pitch, pitch,
				       2 * padded_cols(cols), &ret->products[CHOICEFILE_TWICE][i]);
		if (r == 0)
			r = blaslt_product_new(c->library, ret->rows[i], pitch, pitch,
					       padded_cols(cols),
					       &ret->products[CHOICEFILE_BESIDE][i]);
	}
	return r;
}

/* Buckets up to the tokens of x, with what they are of. */
static int make_buckets(const struct stream *st, struct choice_set *set, uint32_t most)
{
	for (uint32_t tokens = BUCKET_LEAST; set->n_buckets < CHOICE_BUCKETS_MAX; tokens *= 2) {
		struct choice_bucket *bucket = &set->buckets[set->n_buckets];
		struct choicefile_entry *e = &bucket->entry;
		size_t left;

		e->tokens = tokens < most ? tokens : most;
		e->cols = set->cols;
		e->n_jobs = set->n_jobs;
		memcpy(e->rows, set->rows, sizeof(e->rows));
		memcpy(e->flags, set->flags, sizeof(e->flags));
		e->w_align = set->w_align;
		e->y_align = set->y_align;
		left = st->scratch_bytes - split_bytes(e->tokens, set->cols);
		e->room_bytes = left < CHOICE_ROOM_MAX ? left : CHOICE_ROOM_MAX;
		bucket->known = (uint8_t *)calloc(e->tokens + 1, 1);
		if (!bucket->known)
			return -ENOMEM;
		set->n_buckets++;
		if (tokens >= most)
			break;
	}
	return 0;
}

/* The largest first: prompts gain most, should time run out. */
static int choose_set(struct timing *t, const struct linear_set *wanted)
{
	struct choice_set *set = &t->choice->sets[t->choice->n_sets];
	const size_t n = tensor_elements(&wanted->x);
	int r;

	if (n > 0xffffffffu * (size_t)NOISE_THREADS ||
	    split_bytes(wanted->x.shape[1], wanted->x.shape[2]) > t->st->scratch_bytes)
		return -EINVAL;
	r = make_set(t->choice, wanted, set);
	t->choice->n_sets++; /* what it has is freed with the rest */
	if (r == 0)
		r = make_buckets(t->st, set, wanted->x.shape[1]);
	if (r == 0)
		r = launch(t->st, LAUNCH_PLAIN, k_noise,
			   dim3((uint32_t)((n + NOISE_THREADS - 1) / NOISE_THREADS)), NOISE_THREADS,
			   0, (float *)wanted->x.data, n);
	t->wanted = wanted;
	t->set = set;
	for (uint32_t i = set->n_buckets; i-- > 0 && r == 0;) {
		size_t at = 0;

		(void)matrix_scratch_take(t->st, &at,
					  split_bytes(set->buckets[i].entry.tokens, set->cols));
		r = choose_bucket(t, &set->buckets[i], at);
	}
	return r;
}

/* Sets that are of more than a few tokens and have BF16 matrices, each once. */
static bool is_new(struct choice *c, const struct linear_set *wanted)
{
	const struct linear_job *own[OP_LINEARS_MAX];
	uint32_t n;

	if (wanted->n_jobs > OP_LINEARS_MAX || wanted->x.shape[1] < BUCKET_LEAST)
		return false;
	n = choice_jobs(wanted->jobs, wanted->n_jobs, own);
	return n > 0 && wanted->n_variants > 0 && c->n_sets < CHOICE_SETS_MAX &&
	       !choice_find(c, own, n, wanted->x.shape[2]);
}

/* What was measured holds for this alone. */
static void identify(const struct stream *st, const struct choice *c, struct choicefile_of *ret)
{
	FILE *f = fopen("/proc/driver/nvidia/version", "re");
	char line[96] = "";
	int version = 0;

	memset(ret, 0, sizeof(*ret));
	if (f) {
		if (!fgets(line, sizeof(line), f))
			line[0] = '\0';
		fclose(f);
	}
	line[strcspn(line, "\n")] = '\0';
	(void)cudaDriverGetVersion(&version);
	snprintf(ret->device, sizeof(ret->device), "%.127s", st->dev->product);
	snprintf(ret->driver, sizeof(ret->driver), "%d %s", version, line);
	ret->library = blaslt_version(c->library);
	ret->n_sm = st->dev->n_sm;
}

static void describe(const struct timing *t, const char *path, int kept, int written, char *ret,
		     size_t bytes)
{
	const uint32_t v = blaslt_version(t->choice->library);
	uint32_t n = 0, n_library = 0;
	size_t left = t->left_bytes, all;
	char more[160] = "";

	for (uint32_t i = 0; i < t->choice->n_sets; i++)
		for (uint32_t k = 0; k < t->choice->sets[i].n_buckets; k++, n++)
			n_library += t->choice->sets[i].buckets[k].entry.way != CHOICEFILE_OWN;
	(void)cudaMemGetInfo(&left, &all);
	if (left + MIB <= t->left_bytes)
		snprintf(more, sizeof(more), "; %zu MiB for its code",
			 (t->left_bytes - left) / MIB);
	if (path && kept < 0 && kept != -ENOENT)
		snprintf(more + strlen(more), sizeof(more) - strlen(more), "; what was kept %s",
			 kept == -ESTALE    ? "is of another device, driver, library or version"
			 : kept == -EBADMSG ? "is damaged"
					    : "cannot be read");
	if (written < 0)
		snprintf(more + strlen(more), sizeof(more) - strlen(more), "; not kept: %s",
			 strerror(-written));
	if (t->n_wrong)
		snprintf(more + strlen(more), sizeof(more) - strlen(more),
			 "; %u refused, for they differ from ours", t->n_wrong);
	if (t->n_left)
		snprintf(more + strlen(more), sizeof(more) - strlen(more),
			 "; no time was left for %u", t->n_left);
	snprintf(ret, bytes,
		 "cuBLASLt %u.%u.%u for %u of %u products, %u of them timed in %.2f s%s", v / 10000,
		 v / 100 % 100, v % 100, n_library, n, t->n_timed,
		 (double)(now_us() - t->began_us) / 1e6, more);
}

static int choose_all(struct timing *t, const struct linear_set *sets, uint32_t n_sets,
		      const char *path, char *ret_text, size_t text_bytes)
{
	int r, kept = -ENOENT, written = 0;
	struct choicefile_of of;

	identify(t->st, t->choice, &of);
	t->kept = (struct choicefile_entry *)calloc(CHOICEFILE_ENTRIES_MAX, sizeof(*t->kept));
	if (!t->kept)
		return -ENOMEM;
	if (path)
		kept = choicefile_read(path, &of, t->kept);
	t->n_kept = kept > 0 ? (uint32_t)kept : 0;
	r = 0;
	for (cudaEvent_t &mark : t->marks)
		if (r == 0)
			r = CUDA_CALL(cudaEventCreate(&mark));
	for (uint32_t i = 0; i < n_sets && r == 0; i++)
		if (is_new(t->choice, &sets[i]))
			r = choose_set(t, &sets[i]);
	if (r == 0 && path && t->n_timed)
		written = choicefile_write(path, &of, t->kept, t->n_kept);
	if (r == 0)
		describe(t, path, kept, written, ret_text, text_bytes);
	for (cudaEvent_t mark : t->marks)
		if (mark)
			(void)cudaEventDestroy(mark);
	free(t->kept);
	return r;
}

int op_linears_choose(struct stream *st, const struct linear_set *sets, uint32_t n_sets,
		      const char *path, char *ret_text, size_t text_bytes)
{
	struct choice *c = (struct choice *)calloc(1, sizeof(*c));
	struct timing t = {};
	size_t all;
	int r;

	if (!c)
		return -ENOMEM;
	t.began_us = now_us();
	(void)cudaMemGetInfo(&t.left_bytes, &all);
	t.st = st;
	t.choice = c;
	r = blaslt_open(&c->library);
	if (r == 0) {
		st->choice = c;
		r = choose_all(&t, sets, n_sets, path, ret_text, text_bytes);
	}
	if (r == 0)
		return 0;
	st->choice = choice_free(c);
	if (r != -ENOTSUP && r != -ENOMEM)
		return r;
	snprintf(ret_text, text_bytes, "own kernels alone: %s",
		 r == -ENOMEM ? "cuBLASLt finds no memory" : blaslt_why());
	return 0;
}
