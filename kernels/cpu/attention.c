/*
 * Attention: a batch is cut into items of queries that share a kv head, which
 * the threads take one after the other. If there are too few items for the
 * threads, the chunks of an item are taken singly and merged afterwards, in
 * the same order and by the same additions.
 */
#include <errno.h>
#include <stdatomic.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/ops.h"

struct attend_job {
	const struct ops_kernels *ops;
	const struct kv_cache *kv;
	const struct seq *seqs;
	const float *q;
	float *y;
	uint32_t layer, heads, group;
	uint32_t tile_tokens, tile_heads,
		head_tiles;	   /* of an item; and items side by side in a group */
	uint32_t n_items, chunks;  /* chunks: of the longest item, when split */
	struct attend_part *parts; /* [n_items][chunks], when split */
	atomic_uint next;
};

static uint32_t items_of(const struct attend_job *job, const struct seq *seq)
{
	return (seq->n_tokens + job->tile_tokens - 1) / job->tile_tokens * job->kv->kv_heads *
	       job->head_tiles;
}

/* Finds item number @item: its queries by token, then head. */
static void find_item(const struct attend_job *job, uint32_t item, struct attend *ret)
{
	const uint32_t n = job->kv->head_dim;
	const struct seq *seq = job->seqs;
	uint32_t first_token, last_token, first_head, last_head, tile;

	while (item >= items_of(job, seq))
		item -= items_of(job, seq++);

	tile = item % job->head_tiles;
	item /= job->head_tiles;
	ret->kv = job->kv;
	ret->seq = seq;
	ret->layer = job->layer;
	ret->kv_head = item % job->kv->kv_heads;
	ret->n_rows = 0;

	first_token = item / job->kv->kv_heads * job->tile_tokens;
	last_token = first_token + job->tile_tokens;
	if (last_token > seq->n_tokens)
		last_token = seq->n_tokens;
	first_head = tile * job->tile_heads;
	last_head = first_head + job->tile_heads;
	if (last_head > job->group)
		last_head = job->group;

	for (uint32_t t = first_token; t < last_token; t++) {
		for (uint32_t h = first_head; h < last_head; h++) {
			const size_t row = ((size_t)seq->first + t) * job->heads +
					   ret->kv_head * job->group + h;

			ret->q[ret->n_rows] = job->q + row * n;
			ret->positions[ret->n_rows++] = seq->at + t;
		}
	}
}

static uint32_t chunks_of(const struct attend *a)
{
	return a->positions[a->n_rows - 1] / ATTEND_CHUNK + 1;
}

static void write_rows(const struct attend_job *job, const struct attend *a,
		       const struct attend_part *total)
{
	const uint32_t n = job->kv->head_dim;

	for (uint32_t r = 0; r < a->n_rows; r++)
		job->ops->divide(job->y + (a->q[r] - job->q), total->acc + r * n, total->sum[r], n);
}

/* Chunks 1 … are added to chunk 0, which every row sees some of. */
static void attend_items(void *userdata, uint32_t thread, uint32_t n_threads)
{
	struct attend_job *job = userdata;
	struct attend_part total, part;
	struct attend a;
	uint32_t item;

	(void)thread, (void)n_threads;

	while ((item = atomic_fetch_add(&job->next, 1)) < job->n_items) {
		find_item(job, item, &a);
		job->ops->attend(&a, 0, &total);
		for (uint32_t chunk = 1; chunk < chunks_of(&a); chunk++) {
			job->ops->attend(&a, chunk, &part);
			job->ops->merge(&total, &part, a.n_rows, job->kv->head_dim);
		}
		write_rows(job, &a, &total);
	}
}

static void attend_chunks(void *userdata, uint32_t thread, uint32_t n_threads)
{
	struct attend_job *job = userdata;
	struct attend a;
	uint32_t unit;

	(void)thread, (void)n_threads;

	while ((unit = atomic_fetch_add(&job->next, 1)) < job->n_items * job->chunks) {
		find_item(job, unit / job->chunks, &a);
		if (unit % job->chunks < chunks_of(&a))
			job->ops->attend(&a, unit % job->chunks, &job->parts[unit]);
	}
}

static void merge_items(void *userdata, uint32_t thread, uint32_t n_threads)
{
	const struct attend_job *job = userdata;
	struct attend a;
	uint32_t from, to;

	share_of(job->n_items, thread, n_threads, &from, &to);
	for (uint32_t item = from; item < to; item++) {
		struct attend_part *parts = job->parts + (size_t)item * job->chunks;

		find_item(job, item, &a);
		for (uint32_t chunk = 1; chunk < chunks_of(&a); chunk++)
			job->ops->merge(&parts[0], &parts[chunk], a.n_rows, job->kv->head_dim);
		write_rows(job, &a, &parts[0]);
	}
}

/* Room for the parts of a split, if one is worth while. */
static struct attend_part *split(const struct stream *st, struct attend_job *job, uint32_t n_seqs)
{
	const uint32_t n_threads = st->dev->n_threads;
	uint32_t longest = 0;
	size_t at = 0;

	for (uint32_t i = 0; i < n_seqs; i++)
		if (job->seqs[i].n_tokens > 0 && job->seqs[i].at + job->seqs[i].n_tokens > longest)
			longest = job->seqs[i].at + job->seqs[i].n_tokens;
	job->chunks = (longest + ATTEND_CHUNK - 1) / ATTEND_CHUNK;

	if (n_threads == 1 || job->chunks < 2 || job->n_items >= 4 * n_threads)
		return NULL;
	return scratch_take(st, &at, (size_t)job->n_items * job->chunks * sizeof(*job->parts));
}

int op_attention(struct stream *st, const struct tensor *y, const struct tensor *q,
		 const struct kv_cache *kv, uint32_t layer, const struct seq *seqs, uint32_t n_seqs)
{
	struct attend_job job = {
		.ops = ops_kernels(st->dev->isa),
		.kv = kv,
		.seqs = seqs,
		.q = q->data,
		.y = y->data,
		.layer = layer,
		.heads = q->shape[1],
	};

	if (st->dev->isa == ISA_REF)
		return ref_attention(y, q, kv, layer, seqs, n_seqs);
	if (!attention_fits(y, q, kv, layer, seqs, n_seqs))
		return -EINVAL;

	job.group = job.heads / kv->kv_heads;
	job.tile_heads = job.group < ATTEND_ROWS_MAX ? job.group : ATTEND_ROWS_MAX;
	job.tile_tokens = ATTEND_ROWS_MAX / job.tile_heads;
	job.head_tiles = (job.group + job.tile_heads - 1) / job.tile_heads;
	for (uint32_t i = 0; i < n_seqs; i++)
		job.n_items += items_of(&job, &seqs[i]);

	job.parts = split(st, &job, n_seqs);
	if (job.parts) {
		pool_run(st->dev, attend_chunks, &job);
		pool_run(st->dev, merge_items, &job);
	} else {
		pool_run(st->dev, attend_items, &job);
	}
	return 0;
}
