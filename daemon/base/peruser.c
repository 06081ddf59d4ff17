/* UID:NUMBER, and again. */
#include "daemon/base/peruser.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* Reads a number that @end follows, and skips both; a space may be the text's end. */
static bool read_number(const char **at, char end, uint32_t max, uint32_t *ret)
{
	unsigned long long n;
	char *after;

	if (!isdigit((unsigned char)**at))
		return false;
	errno = 0;
	n = strtoull(*at, &after, 10);
	if (errno || n > max || (*after != end && !(end == ' ' && *after == '\0')))
		return false;
	*ret = (uint32_t)n;
	*at = after;
	return true;
}

int peruser_find(const char *words, const char *key, uint32_t max, uid_t uid, uint32_t *ret,
		 struct err *err)
{
	int found = 0;

	for (const char *at = words + strspn(words, " "); *at; at += strspn(at, " ")) {
		const char *word = at;
		uint32_t id, n;

		if (!read_number(&at, ':', UINT32_MAX - 1, &id) || !*at++ ||
		    !read_number(&at, ' ', max, &n) || n == 0)
			return err_set(err, -EINVAL,
				       "%s has '%.*s'; UID:NUMBER with a number from 1 to %u is "
				       "wanted",
				       key, (int)strcspn(word, " "), word, max);
		if (uid != PERUSER_NONE && id == uid) {
			*ret = n;
			found = 1;
		}
	}
	return found;
}
