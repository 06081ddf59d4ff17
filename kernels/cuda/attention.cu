/* op_attention(): which rows go to which kernel, and how far they are split. */
#include <math.h>

#include "kernels/cuda/attention-decode.h"
#include "kernels/cuda/attention-prefill.h"

extern "C" {
#include "kernels/cpu/kv.h"
}

#define BLOCKS_PER_SM 2

/* Blocks that a (kv head, head tile) should have, so that all together fill the device twice. */
static uint32_t slots_of(const struct dev *dev, uint32_t heads_y)
{
	const uint32_t slots = BLOCKS_PER_SM * dev->n_sm / heads_y;

	return slots < 1 ? 1 : slots < DECODE_SLOTS_MAX ? slots : DECODE_SLOTS_MAX;
}

static uint32_t head_tiles_of(uint32_t group)
{
	return (group + ATTEND_ROWS - 1) / ATTEND_ROWS;
}

static size_t parts_bytes(const struct dev *dev, uint32_t rows, uint32_t heads_y, uint32_t width)
{
	return (size_t)(slots_of(dev, heads_y) + rows) * heads_y * ATTEND_ROWS * (width + 2) *
	       sizeof(float);
}

static uint32_t width_of(uint32_t head_dim)
{
	return head_dim <= 32 ? 32 : head_dim <= 64 ? 64 : head_dim <= 128 ? 128 : 256;
}

size_t attention_scratch(const struct dev *dev, const struct op_limits *limits)
{
	const uint32_t heads_y = limits->kv_heads *
				 head_tiles_of(limits->heads / limits->kv_heads);

	return parts_bytes(dev, limits->tokens, heads_y, width_of(limits->head_dim));
}

template <int D>
static int attend(struct stream *st, const struct attend_job &job, uint32_t decode_rows,
		  uint32_t prefill_tiles)
{
	const uint32_t heads_y = job.kv_heads * job.head_tiles;
	int r = 0;

	if (decode_rows > 0)
		r = launch(st, LAUNCH_PDL, k_attend_decode<D>,
			   dim3(job.slots + decode_rows, heads_y), dim3(DECODE_WARPS * 32),
			   decode_shared_bytes<D>, job);
	if (r == 0 && prefill_tiles > 0)
		r = launch(st, LAUNCH_PDL, k_attend_prefill<D>, dim3(prefill_tiles, job.kv_heads),
			   dim3(PREFILL_WARPS * 32), prefill_shared_bytes<D>, job);
	return r;
}

int op_attention(struct stream *st, const struct tensor *y, const struct tensor *q,
		 const struct kv_cache *kv, uint32_t layer, const struct seq *seqs, uint32_t n_seqs)
{
	uint32_t decode_rows = 0, prefill_tiles = 0;
	struct attend_job job = {};
	int r;

	if (!attention_fits(y, q, kv, layer, seqs, n_seqs) || kv->type != DT_BF16 ||
	    kv->head_dim % 8 || kv->page_tokens % DECODE_KEYS)
		return -EINVAL;
	if (q->shape[0] == 0)
		return 0;
	job.y = (float *)y->data;
	job.q = (const float *)q->data;
	job.scale = (float)(M_LOG2E / sqrt((double)kv->head_dim));
	job.heads = q->shape[1];
	job.kv_heads = kv->kv_heads;
	job.group = job.heads / job.kv_heads;
	job.head_tiles = head_tiles_of(job.group);
	job.kv = layer_kv_of(kv, layer);
	job.n_seqs = n_seqs;
	job.slots = slots_of(st->dev, job.kv_heads * job.head_tiles);
	job.parts = (float *)st->scratch;
	job.arrivals = st->counters;

	for (uint32_t i = 0; i < n_seqs; i++) {
		decode_rows += decode_rows_of(seqs[i].n_tokens);
		prefill_tiles += prefill_tiles_of(seqs[i].n_tokens, job.group);
	}
	if ((size_t)(job.slots + decode_rows) * job.kv_heads * job.head_tiles > STREAM_COUNTERS ||
	    parts_bytes(st->dev, decode_rows, job.kv_heads * job.head_tiles,
			width_of(kv->head_dim)) > st->scratch_bytes)
		return -EINVAL;
	r = stage_seqs(st, seqs, n_seqs, &job.batch);
	if (r < 0)
		return r;

	switch (width_of(kv->head_dim)) {
	case 32: return attend<32>(st, job, decode_rows, prefill_tiles);
	case 64: return attend<64>(st, job, decode_rows, prefill_tiles);
	case 128: return attend<128>(st, job, decode_rows, prefill_tiles);
	default: return attend<256>(st, job, decode_rows, prefill_tiles);
	}
}
