/* Owns the pages' memory, and the order in which they are given to sequences. */
#include "tests/bench/cache.h"

#include <errno.h>

#include "tests/bench/random.h"

static void fill(void *userdata, uint32_t thread, uint32_t n_threads)
{
	struct cache *cache = userdata;
	const size_t page = kv_page_bytes(&cache->kv);

	for (uint32_t i = thread; i < cache->kv.n_pages; i += n_threads)
		random_fill_bf16(i, (char *)cache->kv.base + i * page, page, 1);
}

int cache_init(struct cache *cache, struct dev *dev, const struct config *c, uint32_t layers,
	       uint64_t tokens, struct err *err)
{
	const uint32_t n_pages = (uint32_t)((tokens + CACHE_PAGE_TOKENS - 1) / CACHE_PAGE_TOKENS);
	uint64_t random = 1;
	size_t bytes;

	*cache = (struct cache){
		.dev = dev,
		.kv = { .type = dev_kv_type(dev),
			.n_pages = n_pages,
			.page_tokens = CACHE_PAGE_TOKENS,
			.layers = layers,
			.kv_heads = c->kv_heads,
			.head_dim = c->head_dim },
	};
	bytes = n_pages * kv_page_bytes(&cache->kv);
	cache->pages = calloc(n_pages, sizeof(*cache->pages));
	cache->kv.base = dev_reserve(dev, bytes);
	if (!cache->pages || !cache->kv.base || dev_back(dev, cache->kv.base, bytes) < 0)
		return err_set(err, -ENOMEM, "no memory for %zu bytes of keys and values", bytes);
	cache->backed_bytes = bytes;
	dev_run(dev, fill, cache);
	for (uint32_t i = 0; i < n_pages; i++)
		cache->pages[i] = i;
	random_choose(&random, cache->pages, n_pages, n_pages);
	return 0;
}

void cache_deinit(struct cache *cache)
{
	if (cache->backed_bytes)
		dev_unback(cache->dev, cache->kv.base, cache->backed_bytes);
	free(cache->pages);
	*cache = (struct cache){ 0 };
}

size_t cache_token_bytes(const struct cache *cache)
{
	return kv_page_bytes(&cache->kv) / CACHE_PAGE_TOKENS / cache->kv.layers;
}

static uint32_t pages_of(uint32_t tokens)
{
	return (tokens + CACHE_PAGE_TOKENS - 1) / CACHE_PAGE_TOKENS;
}

uint32_t cache_seqs(const struct cache *cache, uint32_t tokens)
{
	return cache->kv.n_pages / pages_of(tokens);
}

struct seq cache_seq(const struct cache *cache, uint32_t i, uint32_t tokens, uint32_t n_tokens)
{
	return (struct seq){
		.n_tokens = n_tokens,
		.at = tokens - n_tokens,
		.n_pages = pages_of(tokens),
		.pages = cache->pages + (size_t)i * pages_of(tokens),
	};
}
