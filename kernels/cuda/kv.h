/* Where rows of the paged KV cache are, on the device: kernels/cpu/kv.h for kernels. */
#pragma once

#include "kernels/cuda/cuda.h"

/* One layer of a BF16 cache, as a kernel's argument. */
struct layer_kv {
	uint16_t *base;		/* of the layer in page 0: K, then V */
	size_t page, part;	/* elements from page to page, from K to V */
	uint32_t head;		/* elements from kv head to kv head */
	uint32_t page_tokens, head_dim;
};

static inline struct layer_kv layer_kv_of(const struct kv_cache *kv, uint32_t layer)
{
	struct layer_kv l;

	l.head = kv->page_tokens * kv->head_dim;
	l.part = (size_t)kv_page_heads(kv) * l.head;
	l.page = kv_page_bytes(kv) / sizeof(uint16_t);
	l.base = (uint16_t *)kv->base + 2 * l.part * layer;
	l.page_tokens = kv->page_tokens;
	l.head_dim = kv->head_dim;
	return l;
}

/* K of @kv_head at @position of a sequence whose page ids are @pages; V is l.part further on. */
static __device__ __forceinline__ uint16_t *kv_at(const struct layer_kv &l, const uint32_t *pages,
						  uint32_t kv_head, uint32_t position)
{
	const uint32_t page = pages[position / l.page_tokens];

	return l.base + page * l.page + (size_t)kv_head * l.head +
	       (size_t)(position % l.page_tokens) * l.head_dim;
}
