/* The pattern's alternatives in order; each is decided by the classes of at most two characters. */
#include <stdbool.h>

#include "daemon/text/split.h"
#include "daemon/text/unicode.h"
#include "daemon/text/codepoint.h"

struct scan {
	const uint8_t *classes;
	const char *text;
	size_t len;
};

/* Classes of the character at @at and where the next one begins. */
static inline uint8_t look(const struct scan *s, size_t at, size_t *ret_next)
{
	const uint8_t first = s->text[at];
	size_t n;
	uint32_t code;

	if (first < 0x80) {
		*ret_next = at + 1;
		return s->classes[first];
	}
	code = codepoint_read(s->text + at, &n);
	*ret_next = at + n;
	return s->classes[code];
}

static inline size_t skip(const struct scan *s, size_t at, uint8_t class)
{
	size_t next;

	while (at < s->len && (look(s, at, &next) & class))
		at = next;
	return at;
}

static inline bool is_newline(char c)
{
	return c == '\n' || c == '\r';
}

static char lower(char c)
{
	return c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c;
}

/* 's 't 're 've 'm 'll 'd; the long s folds to s. 0: none of them. */
static size_t contraction(const struct scan *s, size_t at)
{
	const char *p = s->text + at + 1;
	const size_t left = s->len - at - 1;
	char a, b;

	if (left == 0)
		return 0;
	a = lower(p[0]);
	if (a == 's' || a == 't' || a == 'm' || a == 'd')
		return at + 2;
	if (left == 1)
		return 0;
	if (p[0] == '\xc5' && p[1] == '\xbf')
		return at + 3;
	b = lower(p[1]);
	if (((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l'))
		return at + 3;
	return 0;
}

static size_t digits(const struct scan *s, size_t at)
{
	size_t next;

	for (int n = 0; n < 3 && at < s->len && (look(s, at, &next) & UNICODE_N); n++)
		at = next;
	return at;
}

/* Neither space, letter nor number, then newlines. */
static size_t others(const struct scan *s, size_t at)
{
	size_t next;

	while (at < s->len && !(look(s, at, &next) & (UNICODE_L | UNICODE_N | UNICODE_S)))
		at = next;
	while (at < s->len && is_newline(s->text[at]))
		at++;
	return at;
}

/* Up to the last newline of the run; else all of it at the end; else all but the last character. */
static size_t spaces(const struct scan *s, size_t begin)
{
	size_t at = begin, last = begin, newline = 0, next;

	while (at < s->len && (look(s, at, &next) & UNICODE_S)) {
		if (is_newline(s->text[at]))
			newline = next;
		last = at;
		at = next;
	}
	if (newline)
		return newline;
	return at == s->len || last == begin ? at : last;
}

size_t split_next(const uint8_t *classes, const char *text, size_t len, size_t at)
{
	const struct scan s = { classes, text, len };
	const char c = text[at];
	size_t next, after, end;
	uint8_t class, then = 0;

	if (c == '\'') {
		end = contraction(&s, at);
		if (end)
			return end;
	}

	class = look(&s, at, &next);
	if (class & UNICODE_L)
		return skip(&s, next, UNICODE_L);
	if (class & UNICODE_N)
		return digits(&s, at);

	if (next < len && !is_newline(c)) {
		then = look(&s, next, &after);
		if (then & UNICODE_L)
			return skip(&s, after, UNICODE_L);
	}
	if (!(class & UNICODE_S))
		return others(&s, next);
	if (c == ' ' && next < len && !(then & (UNICODE_L | UNICODE_N | UNICODE_S)))
		return others(&s, after);
	return spaces(&s, at);
}
