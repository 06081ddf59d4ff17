/* The grammar of RFC 8259, strings checked and decoded, numbers only as far as they are asked for. */
#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "client/wire/utf8.h"
#include "daemon/text/codepoint.h"
#include "daemon/text/jsonpull.h"

void jsonpull_init(struct jsonpull *j, struct span text)
{
	*j = (struct jsonpull){ .begin = text.data, .at = text.data, .end = text.data + text.len };
}

void jsonpull_deinit(struct jsonpull *j)
{
	bytes_deinit(&j->scratch);
}

static int problem(struct jsonpull *j, const char *what)
{
	if (!j->problem)
		j->problem = what;
	return -EBADMSG;
}

int jsonpull_explain(const struct jsonpull *j, int r, struct err *err)
{
	if (r == -EBADMSG && j->problem)
		return err_set(err, r, "byte %zu: %s", (size_t)(j->at - j->begin), j->problem);
	return r;
}

char jsonpull_peek(struct jsonpull *j)
{
	while (j->at < j->end &&
	       (*j->at == ' ' || *j->at == '\n' || *j->at == '\r' || *j->at == '\t'))
		j->at++;
	return j->at < j->end ? *j->at : 0;
}

int jsonpull_open(struct jsonpull *j, char bracket)
{
	if (jsonpull_peek(j) != bracket)
		return problem(j, bracket == '{' ? "an object is wanted" : "an array is wanted");
	j->at++;
	return 0;
}

int jsonpull_more(struct jsonpull *j, char closing, size_t n)
{
	const char c = jsonpull_peek(j);

	if (c && c == closing) {
		j->at++;
		return 0;
	}
	if (n > 0) {
		if (c != ',')
			return problem(j, "a comma or a closing bracket is wanted");
		j->at++;
	}
	return 1;
}

static int hex4(struct jsonpull *j, uint32_t *ret)
{
	uint32_t code = 0;

	if (j->end - j->at < 4)
		return problem(j, "the text ends inside a string");
	for (int i = 0; i < 4; i++) {
		const char c = *j->at++;

		code <<= 4;
		if (c >= '0' && c <= '9')
			code |= c - '0';
		else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
			code |= (c | 0x20) - 'a' + 10;
		else
			return problem(j, "a \\u escape needs four hexadecimal digits");
	}
	*ret = code;
	return 0;
}

static int unicode_escape(struct jsonpull *j)
{
	uint32_t code = 0, low = 0;
	char out[4];
	int r;

	r = hex4(j, &code);
	if (r < 0)
		return r;
	if (code >= 0xd800 && code < 0xdc00) {
		if (j->end - j->at < 6 || j->at[0] != '\\' || j->at[1] != 'u')
			return problem(j, "a lone surrogate in a string");
		j->at += 2;
		r = hex4(j, &low);
		if (r < 0)
			return r;
		if (low < 0xdc00 || low > 0xdfff)
			return problem(j, "a lone surrogate in a string");
		code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
	} else if (code >= 0xdc00 && code < 0xe000) {
		return problem(j, "a lone surrogate in a string");
	}
	bytes_append(&j->scratch, out, codepoint_encode(code, out));
	return 0;
}

static int escape(struct jsonpull *j)
{
	static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
	const char *name;
	char c;

	if (j->at == j->end)
		return problem(j, "the text ends inside a string");
	c = *j->at++;
	if (c == 'u')
		return unicode_escape(j);
	name = c ? strchr(names, c) : NULL;
	if (!name)
		return problem(j, "an unknown escape in a string");
	bytes_append(&j->scratch, values + (name - names), 1);
	return 0;
}

int jsonpull_string(struct jsonpull *j, struct span *ret)
{
	const char *from;
	bool escaped = false;
	int r;

	if (jsonpull_peek(j) != '"')
		return problem(j, "a string is wanted");
	from = ++j->at;
	bytes_clear(&j->scratch);
	for (;;) {
		while (j->at < j->end && *j->at != '"' && *j->at != '\\' && (uint8_t)*j->at >= 0x20)
			j->at++;
		if (j->at == j->end)
			return problem(j, "the text ends inside a string");
		if (utf8_valid_bytes((struct span){ from, j->at - from }) != (size_t)(j->at - from))
			return problem(j, "a string is not UTF-8");
		if (*j->at == '"')
			break;
		if (*j->at != '\\')
			return problem(j, "a control character in a string");
		escaped = true;
		bytes_append(&j->scratch, from, j->at - from);
		j->at++;
		r = escape(j);
		if (r < 0)
			return r;
		from = j->at;
	}
	if (escaped) {
		bytes_append(&j->scratch, from, j->at - from);
		*ret = bytes_span(&j->scratch);
	} else {
		*ret = (struct span){ from, j->at - from };
	}
	j->at++;
	return j->scratch.failed ? -ENOMEM : 0;
}

int jsonpull_key(struct jsonpull *j, struct span *ret)
{
	int r;

	r = jsonpull_string(j, ret);
	if (r < 0)
		return r;
	if (jsonpull_peek(j) != ':')
		return problem(j, "a colon is wanted");
	j->at++;
	return 0;
}

int jsonpull_u32(struct jsonpull *j, uint32_t *ret)
{
	uint64_t value = 0;
	const char *from;

	jsonpull_peek(j);
	for (from = j->at; j->at < j->end && *j->at >= '0' && *j->at <= '9'; j->at++) {
		value = value * 10 + (*j->at - '0');
		if (value > UINT32_MAX)
			return problem(j, "a number is too large");
	}
	if (j->at == from || (j->at - from > 1 && *from == '0') ||
	    (j->at < j->end && (*j->at == '.' || *j->at == 'e' || *j->at == 'E')))
		return problem(j, "a whole number is wanted");
	*ret = value;
	return 0;
}

static bool take(struct jsonpull *j, const char *word)
{
	const size_t len = strlen(word);

	if ((size_t)(j->end - j->at) < len || memcmp(j->at, word, len) != 0)
		return false;
	j->at += len;
	return true;
}

int jsonpull_bool(struct jsonpull *j, bool *ret)
{
	jsonpull_peek(j);
	*ret = take(j, "true");
	if (!*ret && !take(j, "false"))
		return problem(j, "true or false is wanted");
	return 0;
}

static int skip_scalar(struct jsonpull *j)
{
	const char *from = j->at;
	struct span ignored;

	if (jsonpull_peek(j) == '"')
		return jsonpull_string(j, &ignored);
	if (take(j, "true") || take(j, "false") || take(j, "null"))
		return 0;
	for (from = j->at; j->at < j->end && *j->at && strchr("+-.0123456789eE", *j->at);)
		j->at++;
	return j->at > from ? 0 : problem(j, "a value is wanted");
}

int jsonpull_skip(struct jsonpull *j, struct span *ret)
{
	char closing[JSONPULL_DEPTH_MAX];
	size_t counts[JSONPULL_DEPTH_MAX];
	unsigned int depth = 0;
	struct span key;
	const char *from;
	char c;
	int r;

	jsonpull_peek(j);
	from = j->at;
	do {
		c = jsonpull_peek(j);
		if (c == '{' || c == '[') {
			if (depth == JSONPULL_DEPTH_MAX)
				return problem(j, "values are nested too deep");
			j->at++;
			closing[depth] = c == '{' ? '}' : ']';
			counts[depth++] = 0;
		} else {
			r = skip_scalar(j);
			if (r < 0)
				return r;
		}
		while (depth > 0) {
			r = jsonpull_more(j, closing[depth - 1], counts[depth - 1]++);
			if (r < 0)
				return r;
			if (r == 0) {
				depth--;
				continue;
			}
			r = closing[depth - 1] == '}' ? jsonpull_key(j, &key) : 0;
			if (r < 0)
				return r;
			break;
		}
	} while (depth > 0);

	*ret = (struct span){ from, j->at - from };
	return 0;
}
