/* The cache alone, with a page of four tokens; the executor's part is done at once. After cmocka. */
#pragma once

#include "daemon/kv/kvcache.h"

#define PAGE_TOKENS 4
#define PAGE_BYTES 4096

static inline struct kvcache *new_cache_of(uint32_t n_pages, int arena_fd, int dir_fd,
					   int causes_fd, const char *lost_wanted)
{
	const struct kvcache_options o = { .n_pages = n_pages,
					   .page_tokens = PAGE_TOKENS,
					   .page_bytes = PAGE_BYTES,
					   .element_bytes = 2,
					   .arena_fd = arena_fd,
					   .dir_fd = dir_fd,
					   .causes_fd = causes_fd };
	struct kvcache *c = NULL;
	struct err lost = { 0 }, err = { 0 };

	assert_int_equal(kvcache_new(&o, &c, &lost, &err), 0);
	assert_string_equal(lost.text, lost_wanted);
	return c;
}

static inline struct kvcache *new_cache(uint32_t n_pages, int arena_fd, int dir_fd,
					const char *lost_wanted)
{
	return new_cache_of(n_pages, arena_fd, dir_fd, -1, lost_wanted);
}

/* The executor: a page's sum is its number and how often it did anything. */
static inline void do_moves(struct kvcache *c)
{
	struct step_move moves[16];
	struct step_moved sums[16];
	uint32_t n;

	while ((n = kvcache_moves(c, moves, 16)) > 0) {
		for (uint32_t i = 0; i < n; i++)
			sums[i] = (struct step_moved){ { moves[i].to, 77 } };
		kvcache_moved(c, sums, n);
	}
}

/* A turn of @uid has said @ids, and is gone. */
static inline void say(struct kvcache *c, uid_t uid, const uint32_t *ids, uint32_t n)
{
	const uint32_t n_pages = (n + PAGE_TOKENS - 1) / PAGE_TOKENS;
	struct kvcache_chain chain = { 0 };
	kv_page table[16];

	assert_int_equal(kvcache_take(c, uid, n_pages, table), 0);
	kvcache_seal(c, kvcache_root(c, uid, ""), uid, ids, n, table, n, KVCACHE_TAIL_ENDS, &chain);
	do_moves(c);
	kvcache_drop(c, table, n_pages);
}

static inline uint32_t found(struct kvcache *c, uid_t uid, const uint32_t *ids, uint32_t n)
{
	struct kvcache_found f;

	kvcache_look(c, kvcache_root(c, uid, ""), uid, ids, n, &f);
	return f.n_tokens;
}
