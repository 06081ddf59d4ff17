/* Text that grows, and JSON in it. */
#include "client/gateway/jsontext.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>

#define FIRST_BYTES 256
#define FORMAT_BYTES 64 /* what most formats give: written at once */

void jsontext_deinit(struct jsontext *t)
{
	free(t->at);
	memset(t, 0, sizeof(*t));
}

void jsontext_clear(struct jsontext *t)
{
	t->n = 0;
}

/* Room for @more bytes and a NUL. */
static bool reserve(struct jsontext *t, size_t more)
{
	size_t cap = MAX(t->cap, (size_t)FIRST_BYTES);
	char *at;

	if (t->failed)
		return false;
	if (t->n + more < t->cap)
		return true;
	while (cap <= t->n + more)
		cap *= 2;
	at = realloc(t->at, cap);
	if (!at) {
		t->failed = true;
		return false;
	}
	t->at = at;
	t->cap = cap;
	return true;
}

void jsontext_add(struct jsontext *t, const char *bytes, size_t n)
{
	if (!reserve(t, n))
		return;
	if (n > 0)
		memcpy(t->at + t->n, bytes, n);
	t->n += n;
	t->at[t->n] = '\0';
}

void jsontext_put(struct jsontext *t, const char *string)
{
	jsontext_add(t, string, strlen(string));
}

void jsontext_format(struct jsontext *t, const char *format, ...)
{
	va_list ap;
	int n;

	if (!reserve(t, FORMAT_BYTES))
		return;
	va_start(ap, format);
	n = vsnprintf(t->at + t->n, t->cap - t->n, format, ap);
	va_end(ap);
	if (n < 0 || !reserve(t, (size_t)n))
		return;
	if ((size_t)n >= FORMAT_BYTES) {
		va_start(ap, format);
		vsnprintf(t->at + t->n, (size_t)n + 1, format, ap);
		va_end(ap);
	}
	t->n += (size_t)n;
}

void jsontext_number(struct jsontext *t, uint64_t n)
{
	char digits[20];
	size_t at = sizeof(digits);

	do
		digits[--at] = (char)('0' + n % 10);
	while (n /= 10);
	jsontext_add(t, digits + at, sizeof(digits) - at);
}

static void escape(struct jsontext *t, unsigned char c)
{
	static const char short_ones[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt";
	const char *found = c ? strchr(short_ones, c) : NULL;

	if (found)
		jsontext_add(t, (char[]){ '\\', letters[found - short_ones] }, 2);
	else
		jsontext_format(t, "\\u%04x", c);
}

void jsontext_quote(struct jsontext *t, const char *bytes, size_t n)
{
	size_t from = 0;

	jsontext_add(t, "\"", 1);
	for (size_t i = 0; i < n; i++) {
		const unsigned char c = (unsigned char)bytes[i];

		if (c >= 0x20 && c != '"' && c != '\\' && c != 0x7f)
			continue;
		jsontext_add(t, bytes + from, i - from);
		escape(t, c);
		from = i + 1;
	}
	jsontext_add(t, bytes + from, n - from);
	jsontext_add(t, "\"", 1);
}

void jsontext_quote_string(struct jsontext *t, const char *string)
{
	jsontext_quote(t, string, strlen(string));
}

static int add_dumped(const char *bytes, size_t n, void *userdata)
{
	jsontext_add(userdata, bytes, n);
	return 0;
}

/* 15 digits are what survives the way through a double and back unchanged. */
void jsontext_value(struct jsontext *t, const json_t *value)
{
	if (!value)
		jsontext_put(t, "null");
	else if (json_dump_callback(value, add_dumped, t,
				    JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(15)) < 0)
		t->failed = true;
}

void jsontext_logprob(struct jsontext *t, float value)
{
	if (isnan(value))
		jsontext_put(t, "null");
	else
		jsontext_format(t, "%.7g", isfinite(value) ? value : -9999.0f);
}
