/*
 * Reading and printing JSON the way the templates' author's tools do. The
 * library reads; only integers that it cannot hold are passed around it.
 */
#include "daemon/text/pyjson.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* A string that begins so and goes on in digits is an integer too long for the library. */
static const char big_mark[2] = { '\0', '#' };
#define BIG_MARK_JSON "\"\\u0000#"
#define SAFE_DIGITS 18 /* fewer than 19 digits always fit in 64 bits */

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

/* End of the number at @p; *@ret_digits is 0 if it is not a plain integer. */
static const char *number_end(const char *p, const char *end, size_t *ret_digits)
{
	const char *digits = p + (*p == '-');
	bool plain = true;

	while (p < end &&
	       (is_digit(*p) || *p == '-' || *p == '+' || *p == '.' || *p == 'e' || *p == 'E')) {
		plain = plain && (is_digit(*p) || p + 1 == digits);
		p++;
	}
	*ret_digits = plain ? (size_t)(p - digits) : 0;
	return p;
}

/* Copies @text with every integer that is too long turned into a marked string. */
static void mark_big_integers(struct span text, struct bytes *out)
{
	const char *p = text.data, *end = p + text.len, *from = p;
	bool in_string = false;

	while (p < end) {
		const char *number;
		size_t digits;

		if (in_string) {
			if (*p == '\\' && p + 1 < end)
				p++;
			else if (*p == '"')
				in_string = false;
			p++;
			continue;
		}
		in_string = *p == '"';
		if (*p != '-' && !is_digit(*p)) {
			p++;
			continue;
		}
		number = p;
		p = number_end(p, end, &digits);
		/* a leading zero is an error that the library shall report */
		if (digits <= SAFE_DIGITS || number[*number == '-'] == '0')
			continue;
		bytes_append(out, from, (size_t)(number - from));
		bytes_append_string(out, BIG_MARK_JSON);
		bytes_append(out, number, (size_t)(p - number));
		bytes_append_string(out, "\"");
		from = p;
	}
	bytes_append(out, from, (size_t)(end - from));
}

size_t pyjson_count(struct span text)
{
	bool in_string = false;
	size_t n = 1;

	for (size_t i = 0; i < text.len; i++) {
		const char c = text.data[i];

		if (in_string && c == '\\')
			i++;
		else if (c == '"')
			in_string = !in_string;
		else if (!in_string)
			n += c == ',' || c == ':' || c == '[' || c == '{';
	}
	return n;
}

static bool is_big_integer(const char *s, size_t len)
{
	if (len < sizeof(big_mark) + 1 || memcmp(s, big_mark, sizeof(big_mark)) != 0)
		return false;
	s += sizeof(big_mark);
	len -= sizeof(big_mark);
	if (*s == '-')
		s++, len--;
	for (size_t i = 0; i < len; i++)
		if (!is_digit(s[i]))
			return false;
	return len > SAFE_DIGITS;
}

int pyjson_load(struct span text, json_t **ret, struct err *err)
{
	struct bytes marked = { 0 };
	json_error_t error;
	json_t *value;

	if (pyjson_count(text) > PYJSON_VALUES_MAX)
		return err_set(err, -EBADMSG, "the JSON has more than %u values",
			       PYJSON_VALUES_MAX);
	mark_big_integers(text, &marked);
	if (marked.failed) {
		bytes_deinit(&marked);
		return -ENOMEM;
	}
	value = json_loadb(marked.at, marked.n, JSON_ALLOW_NUL | JSON_DECODE_ANY, &error);
	bytes_deinit(&marked);
	if (!value)
		return err_set(err, -EBADMSG, "no valid JSON at line %d, column %d: %s", error.line,
			       error.column, error.text);
	*ret = value;
	return 0;
}

static void dump_string(const char *s, size_t len, struct bytes *out)
{
	size_t from = 0;

	bytes_append_string(out, "\"");
	for (size_t i = 0; i < len; i++) {
		const unsigned char c = (unsigned char)s[i];
		static const char shorts[] = "\"\"\\\\\nn\rr\tt\bb\ff";
		char escape[8];

		if (c >= 0x20 && c != '"' && c != '\\')
			continue;
		bytes_append(out, s + from, i - from);
		from = i + 1;
		snprintf(escape, sizeof(escape), "\\u%04x", c);
		for (size_t k = 0; k + 1 < sizeof(shorts); k += 2)
			if ((unsigned char)shorts[k] == c)
				snprintf(escape, sizeof(escape), "\\%c", shorts[k + 1]);
		bytes_append_string(out, escape);
	}
	bytes_append(out, s + from, len - from);
	bytes_append_string(out, "\"");
}

/* repr() of a Python float: the fewest digits that read back the same. */
static void dump_real(double d, struct bytes *out)
{
	char text[40], digits[24], *e;
	int precision, exponent, n;

	for (precision = 0; precision < 17; precision++) {
		snprintf(text, sizeof(text), "%.*e", precision, d);
		if (strtod(text, NULL) == d)
			break;
	}
	if (precision == 17)
		snprintf(text, sizeof(text), "%.16e", d);
	e = strchr(text, 'e');
	exponent = atoi(e + 1);
	n = 0;
	for (const char *p = text; p < e; p++)
		if (is_digit(*p))
			digits[n++] = *p;
	if (signbit(d))
		bytes_append_string(out, "-");
	if (exponent < -4 || exponent >= 16) {
		bytes_append(out, digits, 1);
		if (n > 1) {
			bytes_append_string(out, ".");
			bytes_append(out, digits + 1, (size_t)n - 1);
		}
		snprintf(text, sizeof(text), "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent));
		bytes_append_string(out, text);
		return;
	}
	if (exponent < 0) {
		bytes_append_string(out, "0.");
		for (int i = -1; i > exponent; i--)
			bytes_append_string(out, "0");
		bytes_append(out, digits, (size_t)n);
		return;
	}
	for (int i = 0; i <= exponent; i++)
		bytes_append(out, i < n ? &digits[i] : "0", 1);
	bytes_append_string(out, ".");
	if (n > exponent + 1)
		bytes_append(out, digits + exponent + 1, (size_t)(n - exponent - 1));
	else
		bytes_append_string(out, "0");
}

static void dump_object(const json_t *value, struct bytes *out)
{
	const char *separator = "";
	void *it = json_object_iter((json_t *)value);

	bytes_append_string(out, "{");
	for (; it; it = json_object_iter_next((json_t *)value, it)) {
		const char *key = json_object_iter_key(it);

		bytes_append_string(out, separator);
		dump_string(key, json_object_iter_key_len(it), out);
		bytes_append_string(out, ": ");
		pyjson_dump(json_object_iter_value(it), out);
		separator = ", ";
	}
	bytes_append_string(out, "}");
}

static void dump_array(const json_t *value, struct bytes *out)
{
	bytes_append_string(out, "[");
	for (size_t i = 0; i < json_array_size(value); i++) {
		if (i)
			bytes_append_string(out, ", ");
		pyjson_dump(json_array_get(value, i), out);
	}
	bytes_append_string(out, "]");
}

void pyjson_dump(const json_t *value, struct bytes *out)
{
	char text[32];

	switch (json_typeof(value)) {
	case JSON_OBJECT:
		dump_object(value, out);
		break;
	case JSON_ARRAY:
		dump_array(value, out);
		break;
	case JSON_STRING:
		if (is_big_integer(json_string_value(value), json_string_length(value)))
			bytes_append(out, json_string_value(value) + sizeof(big_mark),
				     json_string_length(value) - sizeof(big_mark));
		else
			dump_string(json_string_value(value), json_string_length(value), out);
		break;
	case JSON_INTEGER:
		snprintf(text, sizeof(text), "%" JSON_INTEGER_FORMAT, json_integer_value(value));
		bytes_append_string(out, text);
		break;
	case JSON_REAL:
		dump_real(json_real_value(value), out);
		break;
	case JSON_TRUE:
		bytes_append_string(out, "true");
		break;
	case JSON_FALSE:
		bytes_append_string(out, "false");
		break;
	case JSON_NULL:
		bytes_append_string(out, "null");
		break;
	}
}
