/* Error sentences: made printable once, here, so that every reader may trust them. */
#include "client/wire/err.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "client/wire/utf8.h"

bool err_may_pass(int code)
{
	switch (-code) {
	case ENOMEM:
	case EAGAIN:
	case EINTR:
	case EMFILE:
	case ENFILE:
	case ENOBUFS:
	case ENOSPC:
	case EDQUOT:
	case EIO:
	case EBUSY:
		return true;
	default:
		return false;
	}
}

static void make_printable(char *text)
{
	unsigned char *s = (unsigned char *)text;
	const unsigned char *end = s + strlen(text);

	while (*s) {
		const size_t n = utf8_length((const char *)s, end - s);

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
