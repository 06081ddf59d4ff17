/*
 * Reads JSON piece by piece, in place, for files too large for a tree of
 * objects. The caller asks for what it expects and skips the rest.
 */
#pragma once

#include <stdint.h>

#include "client/wire/err.h"
#include "daemon/text/bytes.h"

#define JSONPULL_DEPTH_MAX 64

struct jsonpull {
	const char *begin, *at, *end;
	struct bytes scratch;	/* the last string with escapes */
	const char *problem;	/* first thing that was not JSON, or not what was asked for */
};

void jsonpull_init(struct jsonpull *j, struct span text);
void jsonpull_deinit(struct jsonpull *j);

/* The next byte that is not white space, left in place; 0 at the end. */
char jsonpull_peek(struct jsonpull *j);

/*
 * All return 0 (or what they say), or a negative errno: -EBADMSG with the
 * problem remembered, -ENOMEM.
 */
int jsonpull_open(struct jsonpull *j, char bracket); /* '{' or '[' */
/* 1: another member or element follows; 0: closed. @n counts those before it. */
int jsonpull_more(struct jsonpull *j, char closing, size_t n);
/* Decoded; valid until the next string, and while the text is. Valid UTF-8. */
int jsonpull_string(struct jsonpull *j, struct span *ret);
int jsonpull_key(struct jsonpull *j, struct span *ret);
int jsonpull_u32(struct jsonpull *j, uint32_t *ret);
int jsonpull_bool(struct jsonpull *j, bool *ret);
int jsonpull_skip(struct jsonpull *j, struct span *ret); /* any value; its text */

/* Says where the text stopped making sense, if it did; returns @r. */
int jsonpull_explain(const struct jsonpull *j, int r, struct err *err);
