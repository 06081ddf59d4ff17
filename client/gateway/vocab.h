/* The bytes of every token, for logprobs: fetched once for a model, when first wanted. */
#pragma once

#include "client/gateway/link.h"
#include "client/wire/span.h"

struct vocab;

/* Called once, at once or later; NULL: @err says why. The vocabulary lives as long as the link. */
typedef void (*vocab_then_fn)(void *userdata, const struct vocab *vocab,
			      const struct steamd_error *err);
void vocab_get(struct link *l, vocab_then_fn then, void *userdata);

/* Bytes of token @id, which may be part of a character; none for what is no token. */
struct span vocab_bytes(const struct vocab *v, uint32_t id);

/* Appends the token as a JSON string, what is no character replaced; and its bytes as a list of numbers. */
void vocab_write_text(const struct vocab *v, uint32_t id, struct jsontext *to);
void vocab_write_bytes(const struct vocab *v, uint32_t id, struct jsontext *to);

struct vocab *vocab_free_all(struct vocab *v);
