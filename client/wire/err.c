/* Error sentences: made printable once, here, so that every reader may trust them. */
#include "client/wire/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

/* Length of the well-formed UTF-8 sequence at @s, or 0. */
static size_t utf8_length(const unsigned char *s)
{
	uint32_t c, least;
	size_t n;

	if (s[0] < 0x80)
		return 1;
	if ((s[0] & 0xe0) == 0xc0) {
		n = 2, c = s[0] & 0x1f, least = 0x80;
	} else if ((s[0] & 0xf0) == 0xe0) {
		n = 3, c = s[0] & 0x0f, least = 0x800;
	} else if ((s[0] & 0xf8) == 0xf0) {
		n = 4, c = s[0] & 0x07, least = 0x10000;
	} else {
		return 0;
	}
	for (size_t i = 1; i < n; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (s[i] & 0x3f);
	}
	if (c < least || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
		return 0;
	return n;
}

static void make_printable(char *text)
{
	unsigned char *s = (unsigned char *)text;

	while (*s) {
		const size_t n = utf8_length(s);

		/* C1 controls are two bytes long and as harmful as the others */
		if (n == 0 || *s < 0x20 || *s == 0x7f || (n == 2 && s[0] == 0xc2 && s[1] < 0xa0)) {
			*s++ = '?';
			continue;
		}
		s += n;
	}
}

static void set_text(struct err *err, int code, const char *text)
{
	const size_t len = strnlen(text, sizeof(err->text) - 1);

	err->code = code;
	memmove(err->text, text, len);
	err->text[len] = '\0';
	make_printable(err->text);
}

int err_set(struct err *err, int code, const char *format, ...)
{
	char text[ERR_TEXT_MAX];
	va_list ap;

	if (!err)
		return code;
	va_start(ap, format);
	vsnprintf(text, sizeof(text), format, ap);
	va_end(ap);
	set_text(err, code, text);
	return code;
}

int err_wrap(struct err *err, int code, const char *format, ...)
{
	char before[ERR_TEXT_MAX], text[2 * ERR_TEXT_MAX + 2];
	va_list ap;

	if (!err)
		return code;
	va_start(ap, format);
	vsnprintf(before, sizeof(before), format, ap);
	va_end(ap);
	snprintf(text, sizeof(text), "%s: %s", before, err->text[0] ? err->text : strerror(-code));
	set_text(err, code, text);
	return code;
}
