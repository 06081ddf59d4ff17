/*
 * Tokens by id and by bytes. Keys of the file are written in the byte
 * alphabet; here they are the bytes they stand for. A key with a character
 * outside that alphabet is a literal: it has bytes, but no piece becomes it.
 */
#pragma once

#include <stdint.h>

#include "client/wire/err.h"
#include "client/wire/span.h"

#define VOCAB_IDS_MAX (1u << 24)
#define VOCAB_NONE UINT32_MAX

enum vocab_flags { VOCAB_USED = 1, VOCAB_LITERAL = 2, VOCAB_ADDED = 4, VOCAB_SPECIAL = 8 };

struct vocab_token {
	uint32_t at, len; /* in bytes */
	uint8_t flags;
};

struct vocab {
	struct vocab_token *tokens; /* by id; unused ones are zero */
	uint32_t size, cap;
	uint32_t n_used;
	char *bytes;
	size_t n_bytes, cap_bytes;
	uint32_t *slots; /* ids by hash of their bytes, VOCAB_NONE if free */
	uint32_t n_slots; /* a power of two, or 0 */
	uint32_t longest; /* bytes of the longest token that is not a literal */
};

void vocab_deinit(struct vocab *v);

/*
 * Translates @key from the byte alphabet to bytes in @out (room for key.len).
 * Returns how many, or -1 if a character of @key is outside of it.
 */
long vocab_from_alphabet(struct span key, char *out);

/*
 * Gives @id its bytes. Returns 0, -EBADMSG (id taken or over VOCAB_IDS_MAX), -ENOMEM.
 */
int vocab_add(struct vocab *v, uint32_t id, struct span bytes, uint8_t flags, struct err *err);

/* Builds the table by bytes, once all tokens of the model are there; -EBADMSG for two alike. */
int vocab_index(struct vocab *v, struct err *err);

/* The id of a token that is (or is not) a literal, or VOCAB_NONE. */
uint32_t vocab_find(const struct vocab *v, struct span bytes, uint8_t literal);

static inline struct span vocab_bytes(const struct vocab *v, uint32_t id)
{
	return id < v->size ? (struct span){ v->bytes + v->tokens[id].at, v->tokens[id].len } :
			      (struct span){ 0 };
}
