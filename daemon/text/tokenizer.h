/*
 * tokenizer.json: byte-level BPE with the GLM split pattern and added tokens.
 * Immutable once read; may be used from several threads at once.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/wire/err.h"
#include "client/wire/span.h"

#define TOKENIZER_FILE_MAX (256u << 20)
#define TOKENIZER_TEXT_MAX (256u << 20)

struct tokenizer;

/* Returns 0; -EBADMSG or -ENOTSUP naming what was found and wanted; -ENOENT; -ENOMEM. */
int tokenizer_open(const char *path, struct tokenizer **ret, struct err *err);
int tokenizer_parse(const char *text, size_t len, struct tokenizer **ret, struct err *err);
struct tokenizer *tokenizer_free(struct tokenizer *t);

/* Ids are 0 .. size - 1 (holes decode to nothing). */
uint32_t tokenizer_size(const struct tokenizer *t);

enum tokenizer_added {
	TOKENIZER_ADDED_NONE, /* recognise no added token: for what users type */
	TOKENIZER_ADDED_PLAIN, /* only those with special: false */
	TOKENIZER_ADDED_ALL,
};

/* A growing array of ids. Zero-initialised is empty. */
struct ids {
	uint32_t *at;
	size_t n, cap;
};
void ids_deinit(struct ids *ids);
int ids_append(struct ids *ids, const uint32_t *at, size_t n); /* 0 or -ENOMEM */

/*
 * Appends the ids of @text. Invalid UTF-8: each maximal invalid sequence is
 * encoded as U+FFFD. O(n log n) for any text. 0, -E2BIG for a text over
 * TOKENIZER_TEXT_MAX, or -ENOMEM; then @ids is as it was.
 */
int tokenizer_encode(const struct tokenizer *t, struct span text, enum tokenizer_added added,
		     struct ids *ids);

/* With the post-processor's template around it (nothing for GLM's own file). */
int tokenizer_encode_processed(const struct tokenizer *t, struct span text, struct ids *ids);

/*
 * The bytes of one id; empty for holes and ids past the end. Those of an added
 * token are its content, unless all its characters belong to the byte alphabet
 * of the file: then, as in the reference, the bytes that they stand for, which
 * differ for characters beyond ASCII.
 */
struct span tokenizer_bytes(const struct tokenizer *t, uint32_t id);
bool tokenizer_is_added(const struct tokenizer *t, uint32_t id);
bool tokenizer_is_special(const struct tokenizer *t, uint32_t id);
/* The id of an added token by its content, or UINT32_MAX. */
uint32_t tokenizer_added_id(const struct tokenizer *t, const char *content);

/*
 * Whole text of @ids as malloc'd UTF-8 (a terminator follows, not counted);
 * each maximal invalid sequence becomes U+FFFD. 0 or -ENOMEM.
 */
int tokenizer_decode(const struct tokenizer *t, const uint32_t *ids, size_t n, bool skip_special,
		     char **ret, size_t *ret_len);

/*
 * Streaming: keeps an unfinished character (at most 3 bytes) back. What the
 * pushes and the final flush give together equals tokenizer_decode() with the
 * same ids.
 */
struct detokenizer {
	char held[4];
	uint32_t n_held;
	bool skip_special;
};
/* Appends at most tokenizer_bytes(id).len * 3 + 12 bytes to @out; returns how many. */
size_t detokenizer_push(struct detokenizer *d, const struct tokenizer *t, uint32_t id, char *out);
size_t detokenizer_flush(struct detokenizer *d, char *out); /* at most 12 bytes */

static inline void tokenizer_freep(struct tokenizer **t)
{
	*t = tokenizer_free(*t);
}
