/* Rotation of queries and keys, the paged KV cache, and attention over it. */
#pragma once

#include "kernels/backend.h"

/*
 * The KV cache: pages of [layer][K|V][kv_heads][page_tokens][head_dim], K after
 * norm and rotation, V as projected. Page p begins at base + p * kv_page_bytes().
 *
 * Of several ranks each has some of the heads: kv_heads of the page_heads that
 * a page has, and base is that of its first head in page 0.
 */
struct kv_cache {
	void *base;
	enum dtype type; /* BF16 or F32 */
	uint32_t n_pages, page_tokens, layers, kv_heads, head_dim;
	uint32_t page_heads; /* 0: kv_heads */
};

static inline uint32_t kv_page_heads(const struct kv_cache *kv)
{
	return kv->page_heads ? kv->page_heads : kv->kv_heads;
}

/* Bytes of one head of one layer's K or V in a page: what lies between a head and the next. */
static inline size_t kv_head_bytes(const struct kv_cache *kv)
{
	return (size_t)kv->page_tokens * kv->head_dim * dtype_bytes(kv->type);
}

static inline size_t kv_page_bytes(const struct kv_cache *kv)
{
	return (size_t)kv->layers * 2 * kv_page_heads(kv) * kv_head_bytes(kv);
}

/* The same pages, of which only @n heads from @first on are there. */
static inline struct kv_cache kv_heads_of(const struct kv_cache *kv, uint32_t first, uint32_t n)
{
	struct kv_cache some = *kv;

	some.base = (char *)kv->base + first * kv_head_bytes(kv);
	some.page_heads = kv_page_heads(kv);
	some.kv_heads = n;
	return some;
}

/* One slot's rows in a batch: tokens first .. first + n_tokens of the batch are at positions at, at + 1, … */
struct seq {
	uint32_t first, n_tokens, at;
	uint32_t n_pages;
	const uint32_t *pages; /* page ids; pages[i] holds positions i * page_tokens … */
};

/*
 * What rotation needs to know of a model. The angle of pair i at a position is
 * position * inv_freq[i], the product in F32, its cos and sin in double: they
 * are taken once a token, so that no table grows with the context.
 */
struct rope_table {
	uint32_t rotary, positions; /* positions below this one can be rotated */
	float *inv_freq;	    /* [rotary / 2]: 1 / theta^(2i / rotary), both steps in F32 */
};
/* @rotary: even, at least 2; @theta, @positions: positive. Returns 0, -EINVAL or -ENOMEM. */
int rope_table_init(struct rope_table *t, double theta, uint32_t rotary, uint32_t positions);
void rope_table_deinit(struct rope_table *t);

/*
 * For every token and head: q and k are normalised over head_dim (if the norms
 * are given), then rotated: dim i pairs with i + rotary / 2 for i below
 * rotary / 2, dims from rotary on stay. q stays in place; k and v go to the
 * pages of @layer, rounded to the cache's type once.
 *
 * q		F32 [tokens, heads, head_dim], in place
 * k, v		F32 [tokens, kv_heads, head_dim]; k is scratch afterwards
 * q_norm, k_norm F32 [1, 1, head_dim] or data NULL; both or neither
 * seqs		cover the tokens without gap; every position has a page and is below rope->positions
 *
 * Returns 0, or -EINVAL (then nothing was written).
 */
int op_rope_kv(struct stream *st, const struct tensor *q, const struct tensor *k,
	       const struct tensor *v, const struct tensor *q_norm, const struct tensor *k_norm,
	       float eps, const struct rope_table *rope, const struct kv_cache *kv, uint32_t layer,
	       const struct seq *seqs, uint32_t n_seqs);

/*
 * y[t,h,:] = sum_p softmax_p(q[t,h] . K[p, h / (heads / kv_heads)] / sqrt(head_dim)) V[p, …]
 * over positions p from 0 to the token's own.
 *
 * y, q		F32 [tokens, heads, head_dim]; must not overlap
 * heads	a multiple of kv_heads; head_dim at most 256
 *
 * Scores, softmax and sums in F32 or better, in blocks of positions that start at multiples of a
 * constant. Returns 0 or -EINVAL; ref_attention() also -ENOMEM.
 *
 * On a GPU the cache is BF16, head_dim a multiple of 8 and page_tokens one of 16 (-EINVAL
 * otherwise); a query is taken to 16 bits, products with K and V are exact, and how far a row's
 * positions are split depends on the batch.
 */
int op_attention(struct stream *st, const struct tensor *y, const struct tensor *q,
		 const struct kv_cache *kv, uint32_t layer, const struct seq *seqs, uint32_t n_seqs);

int ref_rope_kv(const struct tensor *q, const struct tensor *k, const struct tensor *v,
		const struct tensor *q_norm, const struct tensor *k_norm, float eps,
		const struct rope_table *rope, const struct kv_cache *kv, uint32_t layer,
		const struct seq *seqs, uint32_t n_seqs);
int ref_attention(const struct tensor *y, const struct tensor *q, const struct kv_cache *kv,
		  uint32_t layer, const struct seq *seqs, uint32_t n_seqs);
