/*
 * What a page of KV is the KV of: a hash over its namespace, all tokens before
 * it and its own. A hash finds; the tokens themselves are compared before
 * anything is served.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct kv_hash {
	uint64_t lo, hi;
};

/* Whose the pages of marked prompts are: a client of this uid is turned away. */
#define CHAIN_SHARED_UID (UINT32_MAX - 2)

#define CHAIN_LAYOUT 1 /* of a page's bytes, and of what they mean; another number is another KV */

/*
 * What @fingerprint stands for below: XXH3-128 of the model's own fingerprint
 * and of the name of the instruction set that computes, for each rounds in its
 * own way, and what is served is to be what would be computed. Among how many
 * ranks a model is divided is left out: a page has all heads, whichever rank
 * computed them, and ranks add up in F32 what one adds up in F32.
 */
void chain_model(const uint8_t fingerprint[16], const char *isa, uint64_t ret[2]);

/*
 * The root of a namespace: XXH3-128 of "steamd-kv", CHAIN_LAYOUT, @element_bytes
 * of one K or V, @fingerprint of chain_model(), @uid and @label.
 */
struct kv_hash chain_root(const uint64_t fingerprint[2], uint32_t element_bytes, uid_t uid,
			  const char *label);

/* The root of the namespace of marked prompts: no uid and no label gives the same. */
struct kv_hash chain_shared_root(const uint64_t fingerprint[2], uint32_t element_bytes);

/*
 * The hash of a page with @n_tokens tokens (1 up to a page's) behind the page
 * with hash @parent, which is the root itself for a first page, and may be of
 * the shared namespace for one that continues a marked prompt.
 */
struct kv_hash chain_next(struct kv_hash root, struct kv_hash parent, const uint32_t *tokens,
			  uint32_t n_tokens);

static inline bool chain_equal(struct kv_hash a, struct kv_hash b)
{
	return a.lo == b.lo && a.hi == b.hi;
}
