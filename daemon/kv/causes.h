/*
 * Why KV is there no more, of the last CAUSES_N pages that went, and which
 * models there were before: a memfd that outlives the broker, for the index of
 * a new one knows nothing of what went before. One writer, the broker. It holds
 * hashes, no tokens: a page is recognised by a text that has all of its tokens,
 * or that ends among its first CAUSES_MARKS. The functions take NULL, which
 * holds nothing.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "client/wire/err.h"
#include "daemon/kv/chain.h"

#define CAUSES_MAGIC 0x3173756163746d73ull /* "smtcaus1" */
#define CAUSES_VERSION 2
#define CAUSES_N 4096u
#define CAUSES_MARKS 64u
#define CAUSES_MODELS 3u

struct causes;

/* Makes an empty one. 0 or a negative errno with a sentence. */
int causes_new(struct causes **ret, struct err *err);
/*
 * Takes @memfd over; entries that are not whole are left out. -EBADMSG: magic,
 * version, size or seals are wrong; @memfd is then the caller's.
 */
int causes_adopt(int memfd, struct causes **ret, struct err *err);
struct causes *causes_free(struct causes *c);
int causes_fd(const struct causes *c); /* -1 for NULL */

/*
 * The page of @n_tokens that is @hash behind @parent in @root is gone, for
 * @cause, which is not 0. What was noted of it before is forgotten, and so is
 * the oldest. @tokens may be NULL: then no text that ends in it recognises it.
 */
void causes_note(struct causes *c, struct kv_hash root, struct kv_hash parent, struct kv_hash hash,
		 const uint32_t *tokens, uint32_t n_tokens, uint32_t cause);
/* Forgets every page behind @parent that the @n of @ids, or their beginning, are: they are there. */
void causes_drop(struct causes *c, struct kv_hash root, struct kv_hash parent, const uint32_t *ids,
		 uint32_t n);
/*
 * The longest page behind @parent, of over @least tokens, that @ids, of which
 * there are @n, begin with, or that begins with all of them. Returns how many
 * of its tokens these are and sets *@ret_cause; 0: none.
 */
uint32_t causes_find(const struct causes *c, struct kv_hash root, struct kv_hash parent,
		     const uint32_t *ids, uint32_t n, uint32_t least, uint32_t *ret_cause);

/* The model of this fingerprint was served until now; the one longest ago is forgotten. */
void causes_note_model(struct causes *c, const uint64_t fingerprint[2]);
/* The @i'th of them, the last one first; false: there are no more. */
bool causes_model(const struct causes *c, uint32_t i, uint64_t ret[2]);

static inline void causes_freep(struct causes **c)
{
	*c = causes_free(*c);
}
