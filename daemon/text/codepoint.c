/* Decoding with Unicode's table of well-formed sequences: only the second byte has special ranges. */
#include "daemon/text/codepoint.h"

/* Length by first byte and the range of the second; 0 for bytes that begin nothing. */
static int lead(uint8_t first, uint8_t *ret_low, uint8_t *ret_high)
{
	*ret_low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
	*ret_high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;

	if (first >= 0xc2 && first <= 0xdf)
		return 2;
	if (first >= 0xe0 && first <= 0xef)
		return 3;
	if (first >= 0xf0 && first <= 0xf4)
		return 4;
	return 0;
}

int codepoint_decode(const char *at, size_t len, uint32_t *ret)
{
	const uint8_t *p = (const uint8_t *)at;
	uint8_t low, high;
	uint32_t code;
	int n;

	if (p[0] < 0x80) {
		*ret = p[0];
		return 1;
	}
	n = lead(p[0], &low, &high);
	if (n == 0)
		return -1;

	code = p[0] & (0x7fu >> n);
	for (int i = 1; i < n; i++) {
		if ((size_t)i == len)
			return 0;
		if (p[i] < low || p[i] > high)
			return -i;
		code = code << 6 | (p[i] & 0x3fu);
		low = 0x80, high = 0xbf;
	}
	*ret = code;
	return n;
}

size_t codepoint_encode(uint32_t code, char *out)
{
	if (code < 0x80) {
		out[0] = code;
		return 1;
	}
	if (code < 0x800) {
		out[0] = 0xc0 | code >> 6;
		out[1] = 0x80 | (code & 0x3f);
		return 2;
	}
	if (code < 0x10000) {
		out[0] = 0xe0 | code >> 12;
		out[1] = 0x80 | (code >> 6 & 0x3f);
		out[2] = 0x80 | (code & 0x3f);
		return 3;
	}
	out[0] = 0xf0 | code >> 18;
	out[1] = 0x80 | (code >> 12 & 0x3f);
	out[2] = 0x80 | (code >> 6 & 0x3f);
	out[3] = 0x80 | (code & 0x3f);
	return 4;
}
