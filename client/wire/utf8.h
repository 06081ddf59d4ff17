/* UTF-8 as Unicode defines it: no surrogates, nothing overlong, nothing above U+10FFFF. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "client/wire/span.h"

/* Bytes of the well-formed sequence that starts the @left bytes at @s, or 0. */
size_t utf8_length(const char *s, size_t left);

/*
 * Bytes of the control character that starts the @left bytes at @s, or 0: those of
 * ASCII, and U+0080 to U+009f, which a terminal obeys as well.
 */
size_t utf8_control(const char *s, size_t left);

/* Bytes at the start of @s that are well-formed; s.len if all are. */
size_t utf8_valid_bytes(struct span s);

/*
 * Copies @s with each maximal part of an ill-formed sequence replaced by one
 * U+FFFD. *@ret is malloc'd and terminated. Returns 0 or -ENOMEM.
 */
int utf8_repair(struct span s, char **ret, size_t *ret_len);
