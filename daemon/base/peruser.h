/* Settings that hold a number for each of some users: words UID:NUMBER, separated by spaces. */
#pragma once

#include <stdint.h>
#include <sys/types.h>

#include "client/wire/err.h"

#define PERUSER_NONE ((uid_t)-1) /* nobody's: only checks the words */

/*
 * The number of @uid in @words, the last one where it stands there twice.
 *
 * key	the setting's name, for messages
 * max	numbers are from 1 to this
 *
 * Returns 1 with *@ret; 0: @uid is not named; -EINVAL: a word is wrong.
 */
int peruser_find(const char *words, const char *key, uint32_t max, uid_t uid, uint32_t *ret,
		 struct err *err);
