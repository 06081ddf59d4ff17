/* Addresses in the paged KV cache, and the checks that the operations on it share. */
#pragma once

#include "kernels/attention.h"

#define KV_HEAD_DIM_MAX 256

enum kv_part { KV_K, KV_V };

/* Where rows of one (page, layer, part, kv head) begin; they follow each other by position. */
static inline void *kv_rows(const struct kv_cache *kv, uint32_t page, uint32_t layer,
			    enum kv_part part, uint32_t kv_head)
{
	const size_t head = ((size_t)layer * 2 + part) * kv_page_heads(kv) + kv_head;

	return (uint8_t *)kv->base + page * kv_page_bytes(kv) + head * kv_head_bytes(kv);
}

static inline void *kv_row(const struct kv_cache *kv, const struct seq *seq, uint32_t layer,
			   enum kv_part part, uint32_t kv_head, uint32_t position)
{
	uint8_t *rows = (uint8_t *)kv_rows(kv, seq->pages[position / kv->page_tokens], layer, part,
					   kv_head);

	return rows + (size_t)(position % kv->page_tokens) * kv->head_dim * dtype_bytes(kv->type);
}

/* Whether @seqs cover @tokens without gap and every position has a page that exists. */
bool kv_covers(const struct kv_cache *kv, uint32_t layer, const struct seq *seqs, uint32_t n_seqs,
	       uint32_t tokens);

/* Whether the arguments of op_rope_kv() and op_attention() are within their contracts. */
bool rope_kv_fits(const struct tensor *q, const struct tensor *k, const struct tensor *v,
		  const struct tensor *q_norm, const struct tensor *k_norm, float eps,
		  const struct rope_table *rope, const struct kv_cache *kv, uint32_t layer,
		  const struct seq *seqs, uint32_t n_seqs);
bool attention_fits(const struct tensor *y, const struct tensor *q, const struct kv_cache *kv,
		    uint32_t layer, const struct seq *seqs, uint32_t n_seqs);
