/*
 * JSON as the reference's templates print it: Python's json.dumps(x,
 * ensure_ascii=False). Integers of any length pass through unchanged.
 */
#pragma once

#include <jansson.h>

#include "client/wire/err.h"
#include "daemon/text/bytes.h"

#define PYJSON_DEPTH_MAX 128
#define PYJSON_VALUES_MAX (1u << 20) /* a value of three bytes takes 250 of memory */

/*
 * Parses @text. Integers beyond 64 bits become strings that pyjson_dump()
 * prints as the integers they were. Returns 0, or -EBADMSG with line and column,
 * or that there are more values than PYJSON_VALUES_MAX.
 */
int pyjson_load(struct span text, json_t **ret, struct err *err);

/* Values in @text, keys included, without parsing it; more where it is no JSON. */
size_t pyjson_count(struct span text);

/* Appends @value: ", " and ": " between, keys in order, floats in Python's shortest form. */
void pyjson_dump(const json_t *value, struct bytes *out);
