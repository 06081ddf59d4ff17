/*
 * Why KV is there no more, of the last CAUSES_N pages that went: a ring in a
 * memfd that outlives the broker, for the index of a new one knows nothing of
 * what went before. One writer, the broker. It holds hashes, no tokens: a page
 * is recognised by a text that has all of its tokens. The functions take NULL,
 * which holds nothing.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "client/wire/err.h"
#include "daemon/kv/chain.h"

#define CAUSES_MAGIC 0x3173756163746d73ull /* "smtcaus1" */
#define CAUSES_VERSION 1
#define CAUSES_N 4096u

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
 * The page of @n_tokens that is @hash behind @parent is gone, for @cause, which
 * is not 0. What was noted of it before is forgotten, and so is the oldest.
 */
void causes_note(struct causes *c, struct kv_hash parent, struct kv_hash hash, uint32_t n_tokens,
		 uint32_t cause);
/* Forgets every page behind @parent that the @n of @ids, or their beginning, are: they are there. */
void causes_drop(struct causes *c, struct kv_hash root, struct kv_hash parent, const uint32_t *ids,
		 uint32_t n);
/*
 * The longest page behind @parent, of over @least tokens, that @ids, of which
 * there are @n, begin with. Returns its tokens and sets *@ret_cause; 0: none.
 */
uint32_t causes_find(const struct causes *c, struct kv_hash root, struct kv_hash parent,
		     const uint32_t *ids, uint32_t n, uint32_t least, uint32_t *ret_cause);

static inline void causes_freep(struct causes **c)
{
	*c = causes_free(*c);
}
