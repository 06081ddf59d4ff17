/* UTF-8: measured, checked, repaired. */
#include "client/wire/utf8.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>

/* The range that the second byte must be in keeps out surrogates and overlong forms. */
static size_t sequence(unsigned char first, unsigned char *ret_low, unsigned char *ret_high)
{
	*ret_low = 0x80;
	*ret_high = 0xbf;
	if (first < 0x80)
		return 1;
	if (first >= 0xc2 && first <= 0xdf)
		return 2;
	if (first >= 0xe0 && first <= 0xef) {
		if (first == 0xe0)
			*ret_low = 0xa0;
		if (first == 0xed)
			*ret_high = 0x9f;
		return 3;
	}
	if (first >= 0xf0 && first <= 0xf4) {
		if (first == 0xf0)
			*ret_low = 0x90;
		if (first == 0xf4)
			*ret_high = 0x8f;
		return 4;
	}
	return 0;
}

/* How many bytes at @s could still begin a sequence; *@ret_whole says that it is complete. */
static size_t prefix(const unsigned char *s, size_t left, bool *ret_whole)
{
	unsigned char low, high;
	const size_t n = sequence(s[0], &low, &high);
	size_t i;

	for (i = 1; i < n && i < left; i++) {
		if (s[i] < low || s[i] > high)
			break;
		low = 0x80;
		high = 0xbf;
	}
	*ret_whole = n > 0 && i == n;
	return i;
}

size_t utf8_length(const char *s, size_t left)
{
	bool whole;
	size_t n;

	if (left == 0)
		return 0;
	n = prefix((const unsigned char *)s, left, &whole);
	return whole ? n : 0;
}

size_t utf8_control(const char *s, size_t left)
{
	const unsigned char *c = (const unsigned char *)s;

	if (left == 0)
		return 0;
	if (c[0] < 0x20 || c[0] == 0x7f)
		return 1;
	return left > 1 && c[0] == 0xc2 && c[1] < 0xa0 ? 2 : 0;
}

size_t utf8_valid_bytes(struct span s)
{
	size_t at = 0;

	while (at < s.len) {
		uint64_t eight;
		size_t n;

		if (s.len - at >= sizeof(eight)) {
			memcpy(&eight, s.data + at, sizeof(eight));
			if ((eight & 0x8080808080808080u) == 0) {
				at += sizeof(eight);
				continue;
			}
		}
		n = utf8_length(s.data + at, s.len - at);
		if (n == 0)
			break;
		at += n;
	}
	return at;
}

int utf8_repair(struct span s, char **ret, size_t *ret_len)
{
	size_t at = 0, len = 0;
	char *out;

	if (s.len > SIZE_MAX / 3 - 1)
		return -ENOMEM;
	out = malloc((utf8_valid_bytes(s) == s.len ? s.len : 3 * s.len) + 1);
	if (!out)
		return -ENOMEM;
	while (at < s.len) {
		const struct span rest = { s.data + at, s.len - at };
		const size_t good = utf8_valid_bytes(rest);
		bool whole;

		memcpy(out + len, rest.data, good);
		len += good;
		at += good;
		if (at == s.len)
			break;
		at += prefix((const unsigned char *)s.data + at, s.len - at, &whole);
		memcpy(out + len, "\xef\xbf\xbd", 3);
		len += 3;
	}
	out[len] = '\0';
	*ret = out;
	*ret_len = len;
	return 0;
}
