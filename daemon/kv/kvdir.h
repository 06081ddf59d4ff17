/*
 * The directory of the KV arena: for each page whose it is and, once it is
 * sealed, which tokens' KV it holds and their sum. A memfd that outlives the
 * broker, with one writer, the broker; a page is believed only while its entry
 * says SEALED and the entry's own sum is right.
 *
 * Order of writes: open (FREE, generation + 1, then OPEN) before a page is
 * written; seal (hash, tokens, sums, then SEALED) after.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "client/wire/err.h"
#include "daemon/kv/chain.h"

#define KVDIR_MAGIC 0x3172696476746d73ull /* "smtvdir1" */
#define KVDIR_VERSION 1
#define KVDIR_NOBODY UINT32_MAX	     /* no byte of anybody's is in it */
#define KVDIR_MIXED (UINT32_MAX - 1) /* who knows whose bytes are in it */

struct kvdir;

/* What a sealed page is. */
struct kvdir_page {
	uint32_t uid;
	uint32_t n_tokens;	/* 1 up to the page's */
	uint32_t depth;		/* pages of its chain, itself included */
	uint32_t hits;		/* times it was found */
	struct kv_hash hash, parent, root;
	uint64_t sum[2];	/* of its bytes: see struct step_move */
	uint64_t used_us;	/* clock_us() when it was last held */
	const uint32_t *tokens; /* [n_tokens] */
};

/* Makes the directory of an arena of @n_pages. 0 or a negative errno with a sentence. */
int kvdir_new(uint32_t n_pages, uint32_t page_tokens, struct kvdir **ret, struct err *err);
/*
 * Takes @memfd over. Entries that are not SEALED, or not whole, are FREE
 * afterwards; *@ret_bad of them were damaged. -EBADMSG: magic, version, size
 * or seals are wrong, or it is for another arena; @memfd is then the caller's.
 */
int kvdir_adopt(int memfd, uint32_t n_pages, uint32_t page_tokens, struct kvdir **ret,
		uint32_t *ret_bad, struct err *err);
struct kvdir *kvdir_free(struct kvdir *d);
int kvdir_fd(const struct kvdir *d);

/* The model whose KV this is; all zeros in a new directory. */
void kvdir_model(const struct kvdir *d, uint64_t ret[2]);
void kvdir_set_model(struct kvdir *d, const uint64_t fingerprint[2]);

/*
 * @page is about to be written for @uid. Returns whether it has to be cleared
 * first, for another's bytes are in it: then it is KVDIR_MIXED until kvdir_cleared().
 */
bool kvdir_open(struct kvdir *d, uint32_t page, uid_t uid);
/* It was cleared for @uid; of no effect if it is open no more. */
void kvdir_cleared(struct kvdir *d, uint32_t page, uid_t uid);
/* A page that is not in use has no memory any more. */
void kvdir_punched(struct kvdir *d, uint32_t page);
/* @page was opened and has been written; @p->tokens is copied. */
void kvdir_seal(struct kvdir *d, uint32_t page, const struct kvdir_page *p);
/* What it holds is worth nothing any more; its bytes are still its last user's. */
void kvdir_drop(struct kvdir *d, uint32_t page);
/* It was found: for the cost of losing it. Does not touch what the entry's sum covers. */
void kvdir_touch(struct kvdir *d, uint32_t page, uint64_t now_us);

/* Whether it is sealed; then what as. The tokens point into the directory. */
bool kvdir_get(const struct kvdir *d, uint32_t page, struct kvdir_page *ret);
/* Whose bytes are in it, or KVDIR_NOBODY, or KVDIR_MIXED. */
uint32_t kvdir_owner(const struct kvdir *d, uint32_t page);

static inline void kvdir_freep(struct kvdir **d)
{
	*d = kvdir_free(*d);
}
