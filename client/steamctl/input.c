/* What a command works on: words, files, stdin; as text or as token ids. */
#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "client/steamctl/steamctl.h"
#include "client/wire/codes.h"
#include "client/wire/utf8.h"

int fail(int code, const char *format, ...)
{
	va_list ap;

	fflush(stdout);
	fputs("steamctl: ", stderr);
	va_start(ap, format);
	vfprintf(stderr, format, ap);
	va_end(ap);
	fputc('\n', stderr);
	return code;
}

#define CODE_EXIT(NAME, string, exit_code, meaning) { string, exit_code },
static const struct {
	const char *code;
	int exit_code;
} exits[] = {
	CODES(CODE_EXIT){ STEAMD_CODE_NO_DAEMON, EXIT_NO_DAEMON },
	{ STEAMD_CODE_LOST, EXIT_TRY_AGAIN },
	{ STEAMD_CODE_CANCELLED, EXIT_INTERRUPTED },
	{ STEAMD_CODE_PROTOCOL, EXIT_PROTOCOL },
	{ STEAMD_CODE_LOCAL, EXIT_LOCAL },
};

int fail_with(const struct steamd_error *err)
{
	int code = EXIT_FAULT;

	for (size_t i = 0; i < ARRAY_SIZE(exits); i++)
		if (strcmp(exits[i].code, err->code) == 0)
			code = exits[i].exit_code;
	if (code == EXIT_NO_DAEMON && !strstr(err->text, "systemctl start"))
		return fail(code, "%s; start it with: systemctl start steamd.socket", err->text);
	if (err->retry_after_ms)
		return fail(code, "%s (try again in %.1f s)", err->text,
			    err->retry_after_ms / 1000.0);
	return fail(code, "%s", err->text);
}

int read_stream(FILE *f, const char *name, char **ret, size_t *ret_len)
{
	_cleanup_(freep) char *text = NULL;
	size_t len = 0, cap = 0;

	for (;;) {
		size_t n;

		if (cap - len < 65536) {
			char *more = realloc(text, cap = cap ? 2 * cap : 131072);

			if (!more)
				return fail(EXIT_LOCAL, "out of memory");
			text = more;
		}
		n = fread(text + len, 1, cap - len - 1, f);
		len += n;
		if (len > INPUT_BYTES_MAX)
			return fail(EXIT_USAGE, "%s has more than %u bytes", name, INPUT_BYTES_MAX);
		if (n == 0) {
			if (ferror(f))
				return fail(EXIT_NO_INPUT, "cannot read %s: %s", name,
					    strerror(errno));
			break;
		}
	}
	text[len] = '\0';
	*ret = steal(text);
	*ret_len = len;
	return 0;
}

int read_file(const char *path, char **ret, size_t *ret_len)
{
	_cleanup_(fclosep) FILE *f = NULL;

	if (strcmp(path, "-") == 0)
		return read_stream(stdin, "stdin", ret, ret_len);
	f = fopen(path, "re");
	if (!f)
		return fail(EXIT_NO_INPUT, "cannot open '%s': %s", path, strerror(errno));
	return read_stream(f, path, ret, ret_len);
}

static int append(char **text, size_t *len, const char *separator, const char *more,
		  size_t more_len)
{
	const size_t gap = *len ? strlen(separator) : 0;
	char *longer = realloc(*text, *len + gap + more_len + 1);

	if (!longer)
		return fail(EXIT_LOCAL, "out of memory");
	memcpy(longer + *len, separator, gap);
	memcpy(longer + *len + gap, more, more_len);
	*len += gap + more_len;
	longer[*len] = '\0';
	*text = longer;
	return 0;
}

/* Words joined by spaces; "-" stands for stdin, -f's file follows; without any of them stdin alone. */
static int collect(struct ctl *c, char **text, size_t *len)
{
	bool has_stdin = c->n_words == 0 && !c->file;
	int r = 0;

	for (int i = 0; i < c->n_words && r == 0; i++) {
		if (strcmp(c->words[i], "-") == 0)
			has_stdin = true;
		else
			r = append(text, len, " ", c->words[i], strlen(c->words[i]));
	}
	if (r == 0 && has_stdin) {
		_cleanup_(freep) char *in = NULL;
		size_t n;

		if (c->n_words == 0 && isatty(STDIN_FILENO))
			return fail(EXIT_USAGE,
				    "nothing was asked: give words, -f FILE, or text on stdin");
		r = read_stream(stdin, "stdin", &in, &n);
		if (r == 0)
			r = append(text, len, "\n\n", in, n);
	}
	if (r == 0 && c->file) {
		_cleanup_(freep) char *in = NULL;
		size_t n;

		r = read_file(c->file, &in, &n);
		if (r == 0)
			r = append(text, len, "\n\n", in, n);
	}
	return r;
}

int read_prompt(struct ctl *c, char **ret, size_t *ret_len)
{
	_cleanup_(freep) char *text = NULL;
	size_t len = 0;
	int r;

	r = collect(c, &text, &len);
	if (r)
		return r;
	if (utf8_repair((struct span){ text ? text : "", len }, ret, ret_len) < 0)
		return fail(EXIT_LOCAL, "out of memory");
	return 0;
}

static int id_of(const json_t *value, size_t i, uint32_t *ret)
{
	char *text;

	if (json_is_integer(value) && json_integer_value(value) >= 0 &&
	    json_integer_value(value) <= UINT32_MAX) {
		*ret = (uint32_t)json_integer_value(value);
		return 0;
	}
	text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
	fail(EXIT_USAGE, "id %zu is %.40s; a token id is wanted", i, text ? text : "?");
	free(text);
	return EXIT_USAGE;
}

static int ids_of(const json_t *root, uint32_t **ret, size_t *ret_n)
{
	const json_t *list = json_is_object(root) ? json_object_get(root, "ids") : root;
	_cleanup_(freep) uint32_t *ids = NULL;
	const size_t n = json_array_size(list);

	if (!json_is_array(list))
		return fail(EXIT_USAGE, "the ids are no JSON array, nor an object with \"ids\"");
	ids = calloc(n + 1, sizeof(*ids));
	if (!ids)
		return fail(EXIT_LOCAL, "out of memory");
	for (size_t i = 0; i < n; i++)
		if (id_of(json_array_get(list, i), i, &ids[i]))
			return EXIT_USAGE;
	*ret = steal(ids);
	*ret_n = n;
	return 0;
}

int read_ids(struct ctl *c, uint32_t **ret, size_t *ret_n)
{
	_cleanup_(freep) char *text = NULL, *bracketed = NULL;
	json_error_t error;
	json_t *root;
	size_t len = 0;
	int r;

	r = collect(c, &text, &len);
	if (r)
		return r;
	/* plain numbers, as people type them, are a list without its punctuation */
	if (text && !strpbrk(text, "[{") && asprintf(&bracketed, "[%s]", text) >= 0) {
		for (char *p = bracketed; *p; p++)
			if (*p == ' ' && p[1] >= '0' && p[1] <= '9' && p > bracketed &&
			    p[-1] != ',' && p[-1] != '[')
				*p = ',';
	}
	root = json_loads(bracketed ? bracketed : text ? text : "", 0, &error);
	if (!root)
		return fail(EXIT_USAGE, "the ids are no JSON array: line %d, column %d: %s",
			    error.line, error.column, error.text);
	r = ids_of(root, ret, ret_n);
	json_decref(root);
	return r;
}
