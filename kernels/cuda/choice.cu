/*
 * Products by the library. Activations have two halves in BF16, so
 * the library multiplies twice: one half after the other, or both as tokens side by
 * side, which reads weights once and has its sums added up here.
 */
#include "kernels/cuda/choice.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/ptx.h"

static_assert(OP_LINEARS_MAX <= CHOICEFILE_JOBS_MAX, "a set has room in an entry");

struct choice *choice_free(struct choice *c)
{
	if (!c)
		return NULL;
	for (struct choice_set &set : c->sets) {
		for (auto &of_way : set.products)
			for (struct blaslt_product *p : of_way)
				blaslt_product_free(p);
		for (struct choice_bucket &bucket : set.buckets)
			free(bucket.known);
	}
	blaslt_close(c->library);
	free(c);
	return NULL;
}

uint32_t choice_flags(const struct linear_job *job)
{
	return (job->bias.data ? CHOICEFILE_BIAS : 0) | (job->add ? CHOICEFILE_ADD : 0);
}

uint32_t choice_jobs(const struct linear_job *jobs, uint32_t n_jobs, const struct linear_job **ret)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < n_jobs; i++)
		if (jobs[i].w->kind == WEIGHT_BF16)
			ret[n++] = &jobs[i];
	return n;
}

static bool is_of(const struct choice_set *set, const struct linear_job *const *jobs, uint32_t n,
		  uint32_t cols)
{
	if (set->cols != cols || set->n_jobs != n)
		return false;
	for (uint32_t i = 0; i < n; i++)
		if (set->rows[i] != jobs[i]->w->rows || set->flags[i] != choice_flags(jobs[i]))
			return false;
	return true;
}

struct choice_set *choice_find(struct choice *c, const struct linear_job *const *jobs, uint32_t n,
			       uint32_t cols)
{
	for (uint32_t i = 0; i < c->n_sets; i++)
		if (is_of(&c->sets[i], jobs, n, cols))
			return &c->sets[i];
	return NULL;
}

static struct choice_bucket *find_bucket(struct choice_set *set, uint32_t tokens)
{
	for (uint32_t i = 0; i < set->n_buckets; i++)
		if (tokens <= set->buckets[i].entry.tokens)
			return &set->buckets[i];
	return NULL;
}

uint32_t choice_alignment(const void *at)
{
	const uintptr_t address = (uintptr_t)at | 256;

	return (uint32_t)(address & -address);
}

bool choice_room(const struct stream *st, const struct choice_set *set, uint32_t way,
		 uint32_t tokens, size_t at, struct choice_room *ret)
{
	uint32_t most = 0;
	size_t left;

	*ret = {};
	for (uint32_t i = 0; i < set->n_jobs; i++)
		most = set->rows[i] > most ? set->rows[i] : most;
	if (way == CHOICEFILE_BESIDE) {
		ret->sums = (float *)matrix_scratch_take(st, &at,
							 (size_t)2 * tokens * most * sizeof(float));
		if (!ret->sums)
			return false;
	}
	left = st->scratch_bytes - at;
	ret->workspace = st->scratch + at;
	ret->workspace_bytes = left < CHOICE_ROOM_MAX ? left : CHOICE_ROOM_MAX;
	return true;
}

#define FINISH_THREADS 256

/* Adds up the halves that stand side by side. */
static __global__ void k_add_halves(float *y, const float *sums, const float *bias, uint32_t rows,
				    bool add)
{
	const uint32_t row = blockIdx.x * FINISH_THREADS + threadIdx.x, token = blockIdx.y;
	const float *of = sums + (size_t)token * 2 * rows;
	float sum;

	pdl_release();
	pdl_wait();
	if (row >= rows)
		return;
	sum = of[row] + of[rows + row];
	if (bias)
		sum += bias[row];
	y += (size_t)token * rows + row;
	*y = add ? *y + sum : sum;
}

static int multiply_beside(struct stream *st, struct blaslt_product *p,
			   const struct blaslt_algorithm *a, const struct linear_job *job,
			   const uint16_t *split, uint32_t tokens, const struct choice_room *room)
{
	const int r = blaslt_multiply(p, a, room->sums, job->w->data, split, 2 * tokens, NULL,
				      false, room->workspace, room->workspace_bytes, st->handle);

	return r < 0 ? r
		     : launch(st, LAUNCH_PDL, k_add_halves,
			      dim3(ceil_div(job->w->rows, FINISH_THREADS), tokens), FINISH_THREADS,
			      0, (float *)job->y.data, room->sums, (const float *)job->bias.data,
			      job->w->rows, job->add);
}

static int multiply_twice(struct stream *st, struct blaslt_product *p,
			  const struct blaslt_algorithm *a, const struct linear_job *job,
			  const uint16_t *split, uint32_t tokens, const struct choice_room *room)
{
	const uint16_t *low = split + padded_cols(job->w->cols);
	float *y = (float *)job->y.data;
	int r;

	r = blaslt_multiply(p, a, y, job->w->data, split, tokens, (const float *)job->bias.data,
			    job->add, room->workspace, room->workspace_bytes, st->handle);
	if (r < 0)
		return r;
	r = blaslt_multiply(p, a, y, job->w->data, low, tokens, NULL, true, room->workspace,
			    room->workspace_bytes, st->handle);
	/* half a product is none */
	return r == -ENOTSUP ? calls_result(cudaErrorNotSupported) : r;
}

/* One job of a set. */
int choice_multiply(struct stream *st, const struct choice_set *set, uint32_t way, uint32_t i,
		    const struct blaslt_algorithm *a, const struct linear_job *job,
		    const uint16_t *split, uint32_t tokens, const struct choice_room *room)
{
	struct blaslt_product *p = set->products[way][i];

	return way == CHOICEFILE_BESIDE ? multiply_beside(st, p, a, job, split, tokens, room)
					: multiply_twice(st, p, a, job, split, tokens, room);
}

/* Whether the library would do one job so. 0, -ENOTSUP, or what is worse. */
int choice_check(const struct choice_set *set, uint32_t way, uint32_t i,
		 const struct blaslt_algorithm *a, const float *bias, uint32_t tokens,
		 const struct choice_room *room)
{
	struct blaslt_product *p = set->products[way][i];
	int r;

	if (way == CHOICEFILE_BESIDE)
		return blaslt_check(p, 2 * tokens, NULL, a, room->workspace_bytes);
	r = blaslt_check(p, tokens, NULL, a, room->workspace_bytes);
	return r == 0 && bias ? blaslt_check(p, tokens, bias, a, room->workspace_bytes) : r;
}

static const struct blaslt_algorithm *algorithm(const struct choicefile_entry *e, uint32_t i)
{
	static_assert(sizeof(struct blaslt_algorithm) == sizeof(e->algorithms[0]), "kept as it is");
	return (const struct blaslt_algorithm *)e->algorithms[i];
}

/* 1: the way of the bucket is possible for these; 0: it is not, or there is none. */
static int will_do(const struct choice_set *set, struct choice_bucket *bucket,
		   const struct linear_job *const *jobs, uint32_t tokens,
		   const struct choice_room *room)
{
	const struct choicefile_entry *e = &bucket->entry;
	uint8_t *known = &bucket->known[tokens];

	for (uint32_t i = 0; i < set->n_jobs; i++)
		if (choice_alignment(jobs[i]->w->data) < set->w_align ||
		    choice_alignment(jobs[i]->y.data) < set->y_align)
			return 0;
	for (uint32_t i = 0; i < set->n_jobs && !*known; i++) {
		const int r = choice_check(set, e->way, i, algorithm(e, i),
					   (const float *)jobs[i]->bias.data, tokens, room);

		if (r == -ENOTSUP)
			*known = CHOICE_REFUSED;
		else if (r < 0)
			return r;
	}
	if (!*known)
		*known = CHOICE_FITS;
	return *known == CHOICE_FITS;
}

int choice_run(struct stream *st, const struct linear_job *jobs, uint32_t n_jobs,
	       const uint16_t *split, uint32_t tokens, uint32_t cols, size_t at)
{
	const struct linear_job *own[OP_LINEARS_MAX];
	struct choice_bucket *bucket;
	struct choice_room room;
	struct choice_set *set;
	uint32_t n;
	int r;

	if (!st->choice)
		return 0;
	n = choice_jobs(jobs, n_jobs, own);
	set = choice_find(st->choice, own, n, cols);
	bucket = set ? find_bucket(set, tokens) : NULL;
	if (!bucket || bucket->entry.way == CHOICEFILE_OWN ||
	    !choice_room(st, set, bucket->entry.way, tokens, at, &room))
		return 0;
	r = will_do(set, bucket, own, tokens, &room);
	for (uint32_t i = 0; i < n && r > 0; i++) {
		const int error = choice_multiply(st, set, bucket->entry.way, i,
						  algorithm(&bucket->entry, i), own[i], split,
						  tokens, &room);

		if (error == -ENOTSUP && i == 0)
			bucket->known[tokens] = CHOICE_REFUSED, r = 0;
		else if (error < 0)
			r = error == -ENOTSUP ? calls_result(cudaErrorNotSupported) : error;
	}
	return r;
}
