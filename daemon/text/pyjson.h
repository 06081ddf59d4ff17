/*
 * JSON as the reference's templates print it: Python's json.dumps(x,
 * ensure_ascii=False). Integers of any length pass through unchanged.
 */
#pragma once

#include <jansson.h>

#include "client/wire/err.h"
#include "daemon/text/bytes.h"

#define PYJSON_DEPTH_MAX 128

/*
 * Parses @text. Integers beyond 64 bits become strings that pyjson_dump()
 * prints as the integers they were. Returns 0, or -EBADMSG with line and column.
 */
int pyjson_load(struct span text, json_t **ret, struct err *err);

/* Appends @value: ", " and ": " between, keys in order, floats in Python's shortest form. */
void pyjson_dump(const json_t *value, struct bytes *out);
