/*
 * Why not all of a text's KV was found: what had been seen of it, and what
 * became of that. Looks at nothing of another uid's.
 */
#pragma once

#include <stdint.h>
#include <sys/types.h>

#define KV_MISS_IDS 32

enum kv_miss_cause {
	KV_MISS_WAITING, /* it was not looked for yet */
	KV_MISS_NONE,	 /* all was found */
	KV_MISS_NEW,	 /* nothing like it was seen */
	KV_MISS_TEXT,	 /* what was seen goes on in other tokens */
	KV_MISS_END,	 /* what was seen ends there */
	KV_MISS_EVICTED, /* these three: it had been there */
	KV_MISS_DAMAGED,
	KV_MISS_MODEL, /* of the model before this one */
	KV_MISS_LABEL, /* another label of the same uid has it */
	KV_MISS_PAGE,  /* it is there, but no page could be had to copy its beginning to */
	KV_MISS_SCORE, /* a text to be scored is not looked for */
	KV_MISS_N,
};

/* Outlives its writer, in the record of a turn. */
struct kvcache_miss {
	uint32_t cause; /* enum kv_miss_cause */
	uint32_t at;	/* the first token that was not found */
	uint32_t n_ids; /* TEXT: what stands from there on instead */
	uint32_t ids[KV_MISS_IDS];
	uint32_t pad;
};
_Static_assert(sizeof(struct kvcache_miss) == 144, "struct kvcache_miss outlives its writer");

struct kvcache;

/* The first @n of @ids were looked for, and of these @n_found were found. */
void kvcache_explain(const struct kvcache *c, uid_t uid, const char *label, const uint32_t *ids,
		     uint32_t n, uint32_t n_found, struct kvcache_miss *ret);
