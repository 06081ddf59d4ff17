/*
 * The batch on its way to the device: flat arrays, each in pinned memory and at
 * device addresses that stay, so that recorded kernels find every later batch
 * where they found the first.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda.h"

#define ARRAY_BYTES ((size_t)64 << 20) /* of addresses; memory comes as batches grow */
#define STEP_BYTES ((size_t)2 << 20)

/* The host writes one array while a copy of the last batch may be under way from the other. */
#define N_HOST 2

struct array {
	char *device;
	size_t device_bytes;
	char *host[N_HOST];
	size_t host_bytes[N_HOST];
	cudaEvent_t copied[N_HOST];
	int turn;
	const void *announced; /* what st_batch() was given */
	uint32_t n_announced;
};

enum { ARRAY_IDS, ARRAY_GATHER, ARRAY_SEQS, ARRAY_ROWS, ARRAY_PAGES, ARRAY_N };

struct stage {
	struct array arrays[ARRAY_N];
};

int stage_open(struct stream *st)
{
	int r;

	st->stage = (struct stage *)calloc(1, sizeof(*st->stage));
	if (!st->stage)
		return -ENOMEM;
	for (struct array &a : st->stage->arrays) {
		a.device = (char *)dev_reserve_named(st->dev, "batches", ARRAY_BYTES, STEP_BYTES);
		if (!a.device)
			return -ENOMEM;
		for (int i = 0; i < N_HOST; i++) {
			r = CUDA_CALL(cudaEventCreateWithFlags(&a.copied[i],
							       cudaEventDisableTiming));
			if (r < 0)
				return r;
		}
	}
	return 0;
}

void stage_close(struct stream *st)
{
	if (!st->stage)
		return;
	for (struct array &a : st->stage->arrays) {
		if (a.device)
			(void)dev_unback(st->dev, a.device, a.device_bytes);
		for (int i = 0; i < N_HOST; i++) {
			if (a.copied[i])
				(void)cudaEventDestroy(a.copied[i]);
			if (a.host[i])
				(void)cudaFreeHost(a.host[i]);
		}
	}
	free(st->stage);
	st->stage = NULL;
}

static int grow_host(struct array *a, int turn, size_t bytes)
{
	char *grown;
	int r;

	if (bytes <= a->host_bytes[turn])
		return 0;
	bytes = (bytes + STEP_BYTES - 1) / STEP_BYTES * STEP_BYTES;
	r = CUDA_CALL(cudaMallocHost((void **)&grown, bytes));
	if (r < 0)
		return r;
	if (a->host[turn])
		(void)cudaFreeHost(a->host[turn]);
	a->host[turn] = grown;
	a->host_bytes[turn] = bytes;
	return 0;
}

static int grow_device(struct stream *st, struct array *a, size_t bytes)
{
	int r;

	if (bytes <= a->device_bytes)
		return 0;
	bytes = (bytes + STEP_BYTES - 1) / STEP_BYTES * STEP_BYTES;
	if (bytes > ARRAY_BYTES)
		return -ENOMEM;
	r = dev_back(st->dev, a->device + a->device_bytes, bytes - a->device_bytes);
	if (r == 0)
		a->device_bytes = bytes;
	return r;
}

/* Where the host may write @bytes for the device. */
static int begin(struct stream *st, struct array *a, size_t bytes, void *ret)
{
	int r;

	a->turn = (a->turn + 1) % N_HOST;
	r = CUDA_CALL(cudaEventSynchronize(a->copied[a->turn]));
	if (r == 0)
		r = grow_host(a, a->turn, bytes);
	if (r == 0)
		r = grow_device(st, a, bytes);
	if (r == 0)
		*(void **)ret = a->host[a->turn];
	return r;
}

static int copy(struct stream *st, struct array *a, size_t bytes)
{
	int r;

	if (bytes == 0)
		return 0;
	r = CUDA_CALL(cudaMemcpyAsync(a->device, a->host[a->turn], bytes, cudaMemcpyHostToDevice,
				      st->handle));
	if (r == 0)
		r = CUDA_CALL(cudaEventRecord(a->copied[a->turn], st->handle));
	return r;
}

static int copy_words(struct stream *st, struct array *a, const uint32_t *words, uint32_t n)
{
	const size_t bytes = n * sizeof(*words);
	void *to = NULL;
	int r;

	a->announced = NULL;
	r = begin(st, a, bytes, &to);
	if (r < 0)
		return r;
	memcpy(to, words, bytes);
	return copy(st, a, bytes);
}

static int copy_seqs(struct stream *st, const struct seq *seqs, uint32_t n_seqs)
{
	struct array *arrays = st->stage->arrays;
	size_t n_rows = 0, n_pages = 0;
	struct batch_seq *to = NULL;
	struct batch_row *rows = NULL;
	uint32_t *pages = NULL;
	int r;

	arrays[ARRAY_SEQS].announced = NULL;
	for (uint32_t i = 0; i < n_seqs; i++) {
		n_rows += seqs[i].n_tokens;
		n_pages += seqs[i].n_pages;
	}
	r = begin(st, &arrays[ARRAY_SEQS], n_seqs * sizeof(*to), &to);
	if (r == 0)
		r = begin(st, &arrays[ARRAY_ROWS], n_rows * sizeof(*rows), &rows);
	if (r == 0)
		r = begin(st, &arrays[ARRAY_PAGES], n_pages * sizeof(*pages), &pages);
	if (r < 0)
		return r;

	n_rows = n_pages = 0;
	for (uint32_t i = 0; i < n_seqs; i++) {
		const struct seq *s = &seqs[i];

		to[i] = { s->first, s->n_tokens, s->at, (uint32_t)n_pages };
		for (uint32_t t = 0; t < s->n_tokens; t++)
			rows[n_rows++] = { i, s->at + t };
		if (s->n_pages)
			memcpy(pages + n_pages, s->pages, s->n_pages * sizeof(*pages));
		n_pages += s->n_pages;
	}
	r = copy(st, &arrays[ARRAY_SEQS], n_seqs * sizeof(*to));
	if (r == 0)
		r = copy(st, &arrays[ARRAY_ROWS], n_rows * sizeof(*rows));
	if (r == 0)
		r = copy(st, &arrays[ARRAY_PAGES], n_pages * sizeof(*pages));
	return r;
}

static bool is_announced(const struct array *a, const void *what, uint32_t n)
{
	return a->announced && a->announced == what && a->n_announced == n;
}

static void announce(struct array *a, const void *what, uint32_t n)
{
	a->announced = what;
	a->n_announced = n;
}

static int stage_words(struct stream *st, int which, const uint32_t *words, uint32_t n,
		       const uint32_t **ret)
{
	struct array *a = &st->stage->arrays[which];
	int r = 0;

	if (!is_announced(a, words, n))
		r = copy_words(st, a, words, n);
	if (r == 0)
		*ret = (const uint32_t *)a->device;
	return r;
}

int stage_ids(struct stream *st, const uint32_t *ids, uint32_t n, const uint32_t **ret)
{
	return stage_words(st, ARRAY_IDS, ids, n, ret);
}

int stage_rows(struct stream *st, const uint32_t *rows, uint32_t n, const uint32_t **ret)
{
	return stage_words(st, ARRAY_GATHER, rows, n, ret);
}

int stage_seqs(struct stream *st, const struct seq *seqs, uint32_t n_seqs, struct batch *ret)
{
	struct array *arrays = st->stage->arrays;
	int r = 0;

	if (!is_announced(&arrays[ARRAY_SEQS], seqs, n_seqs))
		r = copy_seqs(st, seqs, n_seqs);
	if (r == 0)
		*ret = { (const struct batch_seq *)arrays[ARRAY_SEQS].device,
			 (const struct batch_row *)arrays[ARRAY_ROWS].device,
			 (const uint32_t *)arrays[ARRAY_PAGES].device };
	return r;
}

int st_batch(struct stream *st, const uint32_t *ids, uint32_t n_tokens, const struct seq *seqs,
	     uint32_t n_seqs, const uint32_t *rows, uint32_t n_rows)
{
	struct array *arrays = st->stage->arrays;
	int r;

	r = copy_words(st, &arrays[ARRAY_IDS], ids, n_tokens);
	if (r == 0)
		r = copy_seqs(st, seqs, n_seqs);
	if (r == 0 && n_rows)
		r = copy_words(st, &arrays[ARRAY_GATHER], rows, n_rows);
	if (r < 0)
		return r;
	announce(&arrays[ARRAY_IDS], ids, n_tokens);
	announce(&arrays[ARRAY_SEQS], seqs, n_seqs);
	if (n_rows)
		announce(&arrays[ARRAY_GATHER], rows, n_rows);
	return 0;
}

int st_batch_room(struct stream *st, uint32_t n_tokens, uint32_t n_seqs, uint32_t n_pages)
{
	size_t bytes[ARRAY_N];
	int r = 0;

	bytes[ARRAY_IDS] = bytes[ARRAY_GATHER] = n_tokens * sizeof(uint32_t);
	bytes[ARRAY_SEQS] = n_seqs * sizeof(struct batch_seq);
	bytes[ARRAY_ROWS] = n_tokens * sizeof(struct batch_row);
	bytes[ARRAY_PAGES] = (size_t)n_pages * sizeof(uint32_t);
	for (int i = 0; r == 0 && i < ARRAY_N; i++) {
		struct array *a = &st->stage->arrays[i];

		r = grow_device(st, a, bytes[i]);
		for (int turn = 0; r == 0 && turn < N_HOST; turn++)
			r = grow_host(a, turn, bytes[i]);
	}
	return r;
}
