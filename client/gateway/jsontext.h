/* Text that grows, and JSON written into it piece by piece. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/wire/ownership.h"

struct jsontext {
	char *at;
	size_t n, cap;
	bool failed; /* out of memory, once; what was to be appended since then is missing */
};

void jsontext_deinit(struct jsontext *t);
/* Forgets what is in it and keeps the memory. */
void jsontext_clear(struct jsontext *t);

void jsontext_add(struct jsontext *t, const char *bytes, size_t n);
void jsontext_put(struct jsontext *t, const char *string);
void jsontext_format(struct jsontext *t, const char *format, ...) _printf_(2, 3);
/* What "%llu" gives, for what is written with every token. */
void jsontext_number(struct jsontext *t, uint64_t n);
/* A JSON string, quotes included, of UTF-8 that may hold NUL. */
void jsontext_quote(struct jsontext *t, const char *bytes, size_t n);
void jsontext_quote_string(struct jsontext *t, const char *string);
/* JSON knows no infinity, and nothing that is no number: null. */
void jsontext_logprob(struct jsontext *t, float value);
/* A value as compact JSON, in which 0.1 stays 0.1; NULL: null. */
void jsontext_value(struct jsontext *t, const json_t *value);
