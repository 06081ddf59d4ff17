/* A growing run of bytes. Zero-initialised is empty; out of memory is remembered and told once, at the end. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "client/wire/span.h"

struct bytes {
	char *at; /* terminated once something was appended */
	size_t n, cap;
	bool failed; /* an append ran out of memory; later ones do nothing */
};

void bytes_deinit(struct bytes *b);
void bytes_append(struct bytes *b, const char *data, size_t len);
void bytes_append_span(struct bytes *b, struct span s);
void bytes_append_string(struct bytes *b, const char *string);
/* Where at least @len bytes can be written behind what is there; NULL: no memory. They do not count yet. */
char *bytes_room(struct bytes *b, size_t len);
void bytes_clear(struct bytes *b); /* empty, memory kept */
/* Removes the first @n bytes. */
void bytes_drop(struct bytes *b, size_t n);

static inline struct span bytes_span(const struct bytes *b)
{
	return (struct span){ b->at, b->n };
}
