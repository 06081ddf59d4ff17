/* The checks that the operations on the paged KV cache share. */
#include "kernels/cpu/kv.h"

bool kv_covers(const struct kv_cache *kv, uint32_t layer, const struct seq *seqs, uint32_t n_seqs,
	       uint32_t tokens)
{
	uint32_t next = 0;

	if (kv->type != DT_BF16 && kv->type != DT_F32)
		return false;
	if (kv->page_tokens == 0 || kv->head_dim == 0 || kv->head_dim > KV_HEAD_DIM_MAX)
		return false;
	if (layer >= kv->layers || kv->kv_heads == 0 || kv->kv_heads > kv_page_heads(kv))
		return false;

	for (uint32_t i = 0; i < n_seqs; i++) {
		const struct seq *s = &seqs[i];
		const uint64_t end = (uint64_t)s->at + s->n_tokens;
		const uint64_t pages = (end + kv->page_tokens - 1) / kv->page_tokens;

		if (s->first != next || s->n_tokens > tokens - next)
			return false;
		next += s->n_tokens;
		if (s->n_tokens == 0)
			continue;
		if (pages > s->n_pages)
			return false;
		for (uint32_t p = 0; p < pages; p++)
			if (s->pages[p] >= kv->n_pages)
				return false;
	}
	return next == tokens;
}

static bool is_f32(const struct tensor *t, uint32_t tokens, uint32_t heads, uint32_t head_dim)
{
	return t->type == DT_F32 && t->shape[0] == tokens && t->shape[1] == heads &&
	       t->shape[2] == head_dim;
}

bool rope_kv_fits(const struct tensor *q, const struct tensor *k, const struct tensor *v,
		  const struct tensor *q_norm, const struct tensor *k_norm, float eps,
		  const struct rope_table *rope, const struct kv_cache *kv, uint32_t layer,
		  const struct seq *seqs, uint32_t n_seqs)
{
	const uint32_t tokens = q->shape[0];

	if (!is_f32(q, tokens, q->shape[1], kv->head_dim) ||
	    !is_f32(k, tokens, kv->kv_heads, kv->head_dim) ||
	    !is_f32(v, tokens, kv->kv_heads, kv->head_dim))
		return false;
	if (!q_norm->data != !k_norm->data)
		return false;
	if (q_norm->data &&
	    (q_norm->type != DT_F32 || q_norm->shape[2] != kv->head_dim || k_norm->type != DT_F32 ||
	     k_norm->shape[2] != kv->head_dim || !(eps > 0)))
		return false;
	if (rope->rotary > kv->head_dim || !kv_covers(kv, layer, seqs, n_seqs, tokens))
		return false;
	for (uint32_t i = 0; i < n_seqs; i++)
		if (seqs[i].n_tokens > 0 &&
		    (uint64_t)seqs[i].at + seqs[i].n_tokens > rope->positions)
			return false;
	return true;
}

bool attention_fits(const struct tensor *y, const struct tensor *q, const struct kv_cache *kv,
		    uint32_t layer, const struct seq *seqs, uint32_t n_seqs)
{
	const uint32_t tokens = q->shape[0], heads = q->shape[1];

	return is_f32(q, tokens, heads, kv->head_dim) && is_f32(y, tokens, heads, kv->head_dim) &&
	       kv_covers(kv, layer, seqs, n_seqs, tokens) && heads > 0 && heads % kv->kv_heads == 0;
}
