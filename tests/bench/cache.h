/* A KV cache full of random keys and values, for sequences without a past. */
#pragma once

#include "client/wire/err.h"
#include "daemon/exec/weights/config.h"
#include "kernels/attention.h"

#define CACHE_PAGE_TOKENS 64 /* as the daemon's default */

struct cache {
	struct dev *dev;
	struct kv_cache kv;
	size_t backed_bytes;
	uint32_t *pages; /* [kv.n_pages]: their ids in no order, as a daemon's come to be */
};

/* @layers of a model of @c, at least @tokens tokens. 0 or -ENOMEM. */
int cache_init(struct cache *cache, struct dev *dev, const struct config *c, uint32_t layers,
	       uint64_t tokens, struct err *err);
void cache_deinit(struct cache *cache);

/* Of one layer and token. */
size_t cache_token_bytes(const struct cache *cache);
/* The @i-th of the sequences of @tokens tokens that the cache is divided into; its last @n_tokens are the batch. */
struct seq cache_seq(const struct cache *cache, uint32_t i, uint32_t tokens, uint32_t n_tokens);
/* How many of them there are. */
uint32_t cache_seqs(const struct cache *cache, uint32_t tokens);
