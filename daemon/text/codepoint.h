/* Single characters of UTF-8, for what reads text as code points or byte by byte. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define CODEPOINT_REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */
#define CODEPOINT_REPLACEMENT_LEN 3

/*
 * Reads one character at @at, of which @len bytes (at least 1) are there.
 * Returns its length and the code point in *@ret; minus the length of a
 * maximal invalid sequence; or 0 if all @len bytes are the beginning of a
 * character that is cut off.
 */
int codepoint_decode(const char *at, size_t len, uint32_t *ret);

/* The same for text known to be valid. */
static inline uint32_t codepoint_read(const char *at, size_t *ret_len)
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

/* Writes @code to @out; returns 1 to 4. */
size_t codepoint_encode(uint32_t code, char *out);
