/* Keys and the labels they stand for. */
#pragma once

#include "client/wire/err.h"

#define KEYS_MAX 1024
#define KEYS_BYTES_MAX 256 /* of one key */
#define KEYS_BYTES_MIN 16

struct keys;

/*
 * Reads lines 'LABEL KEY' from the file at @path; empty lines and those that
 * begin with # are passed over. A label has at most 63 bytes and no space; it may
 * have several keys, but no key several labels.
 * Returns 0; -EBADMSG with line and cause; -ENOMEM, or what reading says.
 */
int keys_read(const char *path, struct keys **ret, struct err *err);
struct keys *keys_free(struct keys *k);

/* The label of @key, or NULL. How long it takes does not depend on how much of a key is right. */
const char *keys_label(const struct keys *k, const char *key);
