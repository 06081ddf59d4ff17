/* UTF-8 by the book: shortest forms, no surrogates; errors by maximal invalid sequence, as Unicode counts them. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UTF8_REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */
#define UTF8_REPLACEMENT_LEN 3

/*
 * Reads one character at @at, of which @len bytes (at least 1) are there.
 * Returns its length and the code point in *@ret; minus the length of a
 * maximal invalid sequence; or 0 if all @len bytes are the beginning of a
 * character that is cut off.
 */
int utf8_decode(const char *at, size_t len, uint32_t *ret);

/* The same for text known to be valid. */
static inline uint32_t utf8_read(const char *at, size_t *ret_len)
{
	const uint8_t *p = (const uint8_t *)at;

	if (p[0] < 0x80) {
		*ret_len = 1;
		return p[0];
	}
	if (p[0] < 0xe0) {
		*ret_len = 2;
		return (p[0] & 0x1fu) << 6 | (p[1] & 0x3fu);
	}
	if (p[0] < 0xf0) {
		*ret_len = 3;
		return (p[0] & 0x0fu) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
	}
	*ret_len = 4;
	return (p[0] & 0x07u) << 18 | (p[1] & 0x3fu) << 12 | (p[2] & 0x3fu) << 6 | (p[3] & 0x3fu);
}

bool utf8_is_valid(const char *at, size_t len);

/* Writes @code to @out; returns 1 to 4. */
size_t utf8_encode(uint32_t code, char *out);

/*
 * Copies @len bytes to @out (room for 3 * len), each maximal invalid sequence,
 * a cut off end included, as U+FFFD. Returns the bytes written.
 */
size_t utf8_repair(const char *at, size_t len, char *out);
