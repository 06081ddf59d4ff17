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
	const char *end = text + strlen(text);

	while (*text) {
		const size_t n = utf8_length(text, end - text);

		if (n == 0 || utf8_control(text, end - text) > 0)
			*text++ = '?';
		else
			text += n;
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
