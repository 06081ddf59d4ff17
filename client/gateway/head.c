/* One pass over a request line and its headers: RFC 9112, sections 2 to 6. */
#include "client/gateway/head.h"

#include <errno.h>
#include <string.h>
#include <strings.h>

#include "client/wire/span.h"

#define METHOD_BYTES_MAX 32
#define LENGTH_DIGITS_MAX 19
#define EMPTY_LINES_MAX 4 /* before the request line */

static bool is_token_byte(unsigned char c)
{
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
	       (c != '\0' && strchr("!#$%&'*+-.^_`|~", c));
}

static size_t token_bytes(struct span s)
{
	size_t n = 0;

	while (n < s.len && is_token_byte((unsigned char)s.data[n]))
		n++;
	return n;
}

static int bad(struct refusal *no, const char *text)
{
	return refusal_set(no, 400, REFUSAL_BAD, NULL, "%s", text);
}

/* What can be said of a line before its end has come. */
static int check_method(struct span line, struct refusal *no)
{
	const size_t n = token_bytes(line);

	if (line.len > 0 && line.data[0] == 0x16)
		return bad(no, "this looks like TLS; plain HTTP is spoken here");
	if (n > METHOD_BYTES_MAX || (n < line.len && (n == 0 || line.data[n] != ' ')))
		return bad(no, "this is no HTTP: a request line 'METHOD ADDRESS HTTP/1.1' is "
			       "wanted");
	return 0;
}

/* Of one that "HTTP/" begins. */
static int check_version(struct span version, struct refusal *no)
{
	const char *at = version.data;

	if (version.len != 8 || memcmp(at, "HTTP/", 5) != 0 || at[5] < '0' || at[5] > '9' ||
	    at[6] != '.' || at[7] < '0' || at[7] > '9')
		return bad(no, "the request line ends in no version; HTTP/1.1 is wanted");
	if (at[5] != '1')
		return refusal_set(no, 505, REFUSAL_BAD, NULL,
				   "the request is of HTTP/%c.%c; HTTP/1.1 is spoken here", at[5],
				   at[7]);
	return 0;
}

static int check_request_line(struct span line, struct refusal *no)
{
	struct span target;
	const char *end;
	size_t n;

	if (check_method(line, no) < 0)
		return -EINVAL;
	n = token_bytes(line);
	end = n < line.len ? memchr(line.data + n + 1, ' ', line.len - n - 1) : NULL;
	if (!end)
		return bad(no, "the request line has no version; 'METHOD ADDRESS HTTP/1.1' is "
			       "wanted");
	target = (struct span){ line.data + n + 1, (size_t)(end - line.data) - n - 1 };
	if (target.len == 0)
		return bad(no, "the request line has no address");
	for (size_t i = 0; i < target.len; i++)
		if ((unsigned char)target.data[i] <= 0x20 || target.data[i] == 0x7f)
			return bad(no, "the address in the request line has a control character");
	return check_version((struct span){ end + 1, line.len - (size_t)(end + 1 - line.data) },
			     no);
}

/* Without spaces around it. */
static struct span trimmed(struct span s)
{
	while (s.len > 0 && (s.data[0] == ' ' || s.data[0] == '\t'))
		s = (struct span){ s.data + 1, s.len - 1 };
	while (s.len > 0 && (s.data[s.len - 1] == ' ' || s.data[s.len - 1] == '\t'))
		s.len--;
	return s;
}

static bool is_word(struct span s, const char *word)
{
	return s.len == strlen(word) && strncasecmp(s.data, word, s.len) == 0;
}

/* Where the body ends has to be beyond doubt. */
static int check_framing(struct span name, struct span value, const char *line_end,
			 struct refusal *no)
{
	if (is_word(name, "Content-Length")) {
		if (value.len == 0 || value.len > LENGTH_DIGITS_MAX)
			return bad(no, "the Content-Length header is no number of bytes");
		for (size_t i = 0; i < value.len; i++)
			if (value.data[i] < '0' || value.data[i] > '9')
				return bad(no, "the Content-Length header is no number of bytes");
	}
	/* of which libmicrohttpd would make another length, or none */
	if ((is_word(name, "Content-Length") || is_word(name, "Transfer-Encoding")) &&
	    value.data + value.len != line_end)
		return refusal_set(no, 400, REFUSAL_BAD, NULL,
				   "the %.*s header has spaces at its end", (int)name.len,
				   name.data);
	if (is_word(name, "Transfer-Encoding") && !is_word(value, "chunked"))
		return refusal_set(no, 501, REFUSAL_BAD, NULL,
				   "the Transfer-Encoding header is '%.*s'; chunked is possible",
				   (int)MIN(value.len, 64u), value.data);
	return 0;
}

static size_t count_byte(struct span s, char c)
{
	size_t n = 0;

	for (size_t i = 0; i < s.len; i++)
		n += s.data[i] == c;
	return n;
}

/* As many as libmicrohttpd makes of a line: a cookie is one, too. */
static size_t fields_of(struct span line)
{
	const struct span name = { line.data, token_bytes(line) };

	return 1 + (is_word(name, "Cookie") ? 1 + count_byte(line, ';') : 0);
}

static int check_field(struct span line, struct refusal *no)
{
	const size_t n = token_bytes(line);
	struct span value;

	if (n == 0 || n == line.len || line.data[n] != ':')
		return bad(no, "a header is no 'NAME: VALUE'");
	value = trimmed((struct span){ line.data + n + 1, line.len - n - 1 });
	for (size_t i = 0; i < value.len; i++) {
		const unsigned char c = (unsigned char)value.data[i];

		if ((c < 0x20 && c != '\t') || c == 0x7f)
			return refusal_set(no, 400, REFUSAL_BAD, NULL,
					   "the header '%.*s' has a control character",
					   (int)MIN(n, 64u), line.data);
	}
	return check_framing((struct span){ line.data, n }, value, line.data + line.len, no);
}

/* Takes a line and its end off @rest; false: it is not whole. */
static bool take_line(struct span *rest, struct span *ret)
{
	const char *end = memchr(rest->data, '\n', rest->len);
	size_t n;

	if (!end)
		return false;
	n = (size_t)(end - rest->data);
	*ret = (struct span){ rest->data, n > 0 && end[-1] == '\r' ? n - 1 : n };
	*rest = (struct span){ end + 1, rest->len - n - 1 };
	return true;
}

/* As 0 of head_check(), but that there may be no room for more. */
static int need_more(bool in_request_line, size_t n, struct refusal *no)
{
	if (n < HEAD_BYTES_MAX)
		return 0;
	return in_request_line ? refusal_set(no, 414, "too-long", NULL,
					     "the address in the request line is too long")
			       : refusal_set(no, 431, "too-long", NULL,
					     "the headers have more than the %d bytes that are "
					     "possible",
					     HEAD_BYTES_MAX);
}

int head_check(const char *bytes, size_t n, struct refusal *no)
{
	struct span rest = { bytes, MIN(n, (size_t)HEAD_BYTES_MAX) }, line;
	size_t n_empty = 0, n_fields = 0;

	do {
		if (!take_line(&rest, &line))
			return !is_word(rest, "\r") && check_method(rest, no) < 0
				       ? -EINVAL
				       : need_more(true, n, no);
	} while (line.len == 0 && ++n_empty <= EMPTY_LINES_MAX);
	if (check_request_line(line, no) < 0)
		return -EINVAL;
	n_fields = count_byte(line, '&');
	if (n_fields > HEAD_FIELDS_MAX)
		return refusal_set(no, 414, "too-long", NULL,
				   "the address has more than the %d parts that are possible",
				   HEAD_FIELDS_MAX);
	while (take_line(&rest, &line)) {
		if (line.len == 0)
			return 1;
		n_fields += fields_of(line);
		if (n_fields > HEAD_FIELDS_MAX)
			return refusal_set(
				no, 431, "too-long", NULL,
				"there are more than the %d headers, cookies and parts of "
				"the address that are possible",
				HEAD_FIELDS_MAX);
		if (check_field(line, no) < 0)
			return -EINVAL;
	}
	return need_more(false, n, no);
}

static const char *reason_of(unsigned status)
{
	static const struct {
		unsigned status;
		const char *reason;
	} known[] = {
		{ 400, "Bad Request" },	    { 413, "Content Too Large" },
		{ 414, "URI Too Long" },    { 431, "Request Header Fields Too Large" },
		{ 501, "Not Implemented" }, { 505, "HTTP Version Not Supported" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		if (known[i].status == status)
			return known[i].reason;
	return "Error";
}

void head_write_refusal(const struct refusal *no, struct jsontext *to)
{
	struct jsontext body = { 0 };

	refusal_write(no, &body);
	jsontext_format(to,
			"HTTP/1.1 %u %s\r\nContent-Type: application/json\r\n"
			"X-Content-Type-Options: nosniff\r\nX-Should-Retry: false\r\n"
			"Connection: close\r\nContent-Length: %zu\r\n\r\n",
			no->status, reason_of(no->status), body.n);
	jsontext_add(to, body.at, body.n);
	to->failed = to->failed || body.failed;
	jsontext_deinit(&body);
}
