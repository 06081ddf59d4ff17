/* Growing bytes. */
#include "daemon/text/bytes.h"

#include <stdlib.h>

void bytes_deinit(struct bytes *b)
{
	free(b->at);
	memset(b, 0, sizeof(*b));
}

static bool reserve(struct bytes *b, size_t more)
{
	size_t cap = b->cap ? b->cap : 64;
	char *at;

	if (b->failed)
		return false;
	while (cap - b->n <= more) /* one byte for the terminator */
		cap *= 2;
	if (cap == b->cap)
		return true;
	at = realloc(b->at, cap);
	if (!at) {
		b->failed = true;
		return false;
	}
	b->at = at;
	b->cap = cap;
	return true;
}

void bytes_append(struct bytes *b, const char *data, size_t len)
{
	if (!reserve(b, len))
		return;
	if (len)
		memcpy(b->at + b->n, data, len);
	b->n += len;
	b->at[b->n] = '\0';
}

char *bytes_room(struct bytes *b, size_t len)
{
	return reserve(b, len) ? b->at + b->n : NULL;
}

void bytes_append_span(struct bytes *b, struct span s)
{
	bytes_append(b, s.data, s.len);
}

void bytes_append_string(struct bytes *b, const char *string)
{
	bytes_append(b, string, strlen(string));
}

void bytes_clear(struct bytes *b)
{
	b->n = 0;
	if (b->at)
		b->at[0] = '\0';
}

void bytes_drop(struct bytes *b, size_t n)
{
	if (n == 0)
		return;
	memmove(b->at, b->at + n, b->n - n + 1);
	b->n -= n;
}
