/* Options and settings by their tables. */
#include "client/gateway/setup.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "client/gateway/fields.h"

enum kind { STRING, SIZE, UINT, BOOL, SECS };

#define ROW_DEFAULT_STRING(value) .text = (value)
#define ROW_DEFAULT_SIZE(value) .number = (value)
#define ROW_DEFAULT_UINT(value) .number = (value)
#define ROW_DEFAULT_BOOL(value) .number = (value)
#define ROW_DEFAULT_SECS(value) .number = (value)
#define ROW(kind, member, key, otherwise, min, max, help)                                          \
	{                                                                                          \
		key, kind, offsetof(struct setup, member), min,                                    \
		max, help, ROW_DEFAULT_##kind(otherwise)                                           \
	},
static const struct setting {
	const char *key;
	enum kind kind;
	size_t at;
	uint64_t min, max;
	const char *help, *text;
	uint64_t number;
} settings[] = { SETUP_SETTINGS(ROW) };

enum option_kind { LISTEN, SOCKET, SET, CONFIG, ACTION };
static const struct option {
	const char *name, *value;
	enum option_kind kind;
	enum setup_action action;
	const char *help;
} options[] = {
	{ "--listen", "WHERE", LISTEN, 0,
	  "ADDRESS:PORT, or the path of a Unix socket; repeatable; not needed where systemd passes "
	  "sockets" },
	{ "--socket", "PATH", SOCKET, 0, "steamd's socket" },
	{ "--set", "KEY=VALUE", SET, 0, "change a setting" },
	{ "--config", "FILE", CONFIG, 0,
	  "read settings, one KEY=VALUE a line; -FILE: it need not be there" },
	{ "--routes", NULL, ACTION, SETUP_ROUTES, "print the routes, one a line, and exit" },
	{ "--openapi", NULL, ACTION, SETUP_OPENAPI,
	  "print the OpenAPI description of the routes, and exit" },
	{ "--help", NULL, ACTION, SETUP_HELP, "print this" },
	{ "--version", NULL, ACTION, SETUP_VERSION, "print the version" },
	{ "--print-man", NULL, ACTION, SETUP_MAN, NULL },
};

bool setup_has_word(const char *words, const char *word)
{
	const size_t n = strlen(word);

	while (*words) {
		const size_t len = strcspn(words, " ");

		if (len == n && n > 0 && memcmp(words, word, n) == 0)
			return true;
		words += len + strspn(words + len, " ");
	}
	return false;
}

static int parse_number(const struct setting *s, const char *value, uint64_t *ret, struct err *err)
{
	static const char units[] = "KMG";
	unsigned long long n;
	const char *unit;
	char *end;

	errno = 0;
	n = strtoull(value, &end, 10);
	unit = s->kind == SIZE && *end ? strchr(units, *end) : NULL;
	if (unit && n <= UINT64_MAX >> 10 * (unit - units + 1)) {
		n <<= 10 * (unit - units + 1);
		end++;
	}
	if (errno || end == value || *end || value[0] == '-' || value[0] == '+')
		return err_set(err, -EINVAL, "%s is '%s'; %s is wanted", s->key, value,
			       s->kind == SIZE	 ? "a size such as 32M"
			       : s->kind == SECS ? "a number of seconds"
						 : "a whole number");
	if (n < s->min || n > s->max)
		return err_set(err, -EINVAL, "%s is %s; from %llu to %llu is allowed", s->key,
			       value, (unsigned long long)s->min, (unsigned long long)s->max);
	*ret = n;
	return 0;
}

static int parse_bool(const struct setting *s, const char *value, uint64_t *ret, struct err *err)
{
	if (setup_has_word("yes true on 1", value))
		*ret = 1;
	else if (setup_has_word("no false off 0", value))
		*ret = 0;
	else
		return err_set(err, -EINVAL, "%s is '%s'; yes or no is wanted", s->key, value);
	return 0;
}

static int parse_string(const struct setting *s, const char *value, char **ret, struct err *err)
{
	char *copy;

	if (strlen(value) > s->max)
		return err_set(err, -EINVAL, "%s has more than %llu bytes", s->key,
			       (unsigned long long)s->max);
	copy = strdup(value);
	if (!copy)
		return err_set(err, -ENOMEM, "out of memory");
	free(*ret);
	*ret = copy;
	return 0;
}

/* Takes KEY=VALUE. */
static int set(struct setup *to, char *line, struct err *err)
{
	char *value = strchr(line, '=');

	if (!value)
		return err_set(err, -EINVAL, "'%s' is no KEY=VALUE", line);
	*value++ = '\0';
	for (size_t i = 0; i < ARRAY_SIZE(settings); i++) {
		const struct setting *s = &settings[i];
		void *at = (char *)to + s->at;

		if (strcmp(s->key, line) != 0)
			continue;
		if (s->kind == STRING)
			return parse_string(s, value, at, err);
		return s->kind == BOOL ? parse_bool(s, value, at, err)
				       : parse_number(s, value, at, err);
	}
	return err_set(err, -EINVAL, "there is no setting '%s'; see --help", line);
}

static int set_copy(struct setup *to, const char *text, struct err *err)
{
	_cleanup_(freep) char *line = strdup(text);

	return line ? set(to, line, err) : err_set(err, -ENOMEM, "out of memory");
}

static int read_config(struct setup *to, const char *path, struct err *err)
{
	const bool optional = path[0] == '-';
	_cleanup_(fclosep) FILE *f = fopen(path + optional, "re");
	_cleanup_(freep) char *line = NULL;
	size_t size = 0;
	ssize_t len;

	if (!f && optional && errno == ENOENT)
		return 0;
	if (!f)
		return err_set(err, -errno, "cannot open '%s': %s", path + optional,
			       strerror(errno));
	for (unsigned n = 1; (len = getline(&line, &size, f)) >= 0; n++) {
		char *at = line + strspn(line, " \t");
		int r;

		if (strlen(line) < (size_t)len)
			return err_set(err, -EINVAL, "%s:%u: it holds a NUL", path + optional, n);
		at[strcspn(at, "\r\n")] = '\0';
		if (*at == '\0' || *at == '#' || *at == ';')
			continue;
		r = set(to, at, err);
		if (r < 0)
			return err_wrap(err, r, "%s:%u", path + optional, n);
	}
	if (ferror(f))
		return err_set(err, -errno, "cannot read '%s': %s", path + optional,
			       strerror(errno));
	return 0;
}

static int apply(struct setup *s, const struct option *o, const char *value, struct err *err)
{
	switch (o->kind) {
	case LISTEN:
		if (s->n_listen == SETUP_LISTEN_MAX)
			return err_set(err, -EINVAL, "--listen is given more than %d times",
				       SETUP_LISTEN_MAX);
		s->listen[s->n_listen++] = value;
		return 0;
	case SOCKET:
		s->socket = value;
		return 0;
	case SET:
		return set_copy(s, value, err);
	default:
		return read_config(s, value, err);
	}
}

static int fill_defaults(struct setup *s)
{
	for (size_t i = 0; i < ARRAY_SIZE(settings); i++) {
		void *at = (char *)s + settings[i].at;

		if (settings[i].kind != STRING)
			*(uint64_t *)at = settings[i].number;
		else if (!(*(char **)at = strdup(settings[i].text)))
			return -ENOMEM;
	}
	return 0;
}

static const struct option *find(const char *name, size_t len)
{
	for (size_t i = 0; i < ARRAY_SIZE(options); i++)
		if (strlen(options[i].name) == len && memcmp(options[i].name, name, len) == 0)
			return &options[i];
	return NULL;
}

int setup_read(int argc, char **argv, struct setup *ret, enum setup_action *ret_action,
	       struct err *err)
{
	_cleanup_(setup_deinit) struct setup s = { 0 };
	enum setup_action action = SETUP_SERVE;

	if (fill_defaults(&s) < 0)
		return err_set(err, -ENOMEM, "out of memory");
	for (int i = 1; i < argc; i++) {
		const char *equals = strchr(argv[i], '='), *value = equals ? equals + 1 : NULL;
		const struct option *o = find(argv[i], equals ? (size_t)(equals - argv[i])
							      : strlen(argv[i]));
		int r;

		if (!o)
			return err_set(err, -EINVAL, "no option '%s'; see --help", argv[i]);
		if (!o->value && value)
			return err_set(err, -EINVAL, "%s takes no value", o->name);
		if (o->kind == ACTION) {
			action = o->action;
			continue;
		}
		if (!value && i + 1 == argc)
			return err_set(err, -EINVAL, "%s wants %s", o->name, o->value);
		r = apply(&s, o, value ? value : argv[++i], err);
		if (r < 0)
			return r;
	}
	*ret_action = action;
	*ret = s;
	memset(&s, 0, sizeof(s));
	return 0;
}

void setup_deinit(struct setup *s)
{
	for (size_t i = 0; i < ARRAY_SIZE(settings); i++)
		if (settings[i].kind == STRING)
			free(*(char **)((char *)s + settings[i].at));
	memset(s, 0, sizeof(*s));
}

static void describe_default(const struct setting *s, char *ret, size_t size)
{
	if (s->kind == STRING)
		snprintf(ret, size, "%s", s->text);
	else if (s->kind == BOOL)
		snprintf(ret, size, "%s", s->number ? "yes" : "no");
	else if (s->kind == SIZE)
		snprintf(ret, size, "%lluM", (unsigned long long)(s->number >> 20));
	else
		snprintf(ret, size, "%llu", (unsigned long long)s->number);
}

void setup_print_help(FILE *f)
{
	char left[64];

	fputs("steamd-gateway: OpenAI's HTTP APIs over steamd's socket.\n\n"
	      "usage: steamd-gateway --listen WHERE [OPTION]…\n\n",
	      f);
	for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
		if (!options[i].help)
			continue;
		snprintf(left, sizeof(left), "%s%s%s", options[i].name, options[i].value ? " " : "",
			 options[i].value ? options[i].value : "");
		fprintf(f, "  %-18s %s\n", left, options[i].help);
	}
	fputs("\nSettings, for --set and --config:\n\n", f);
	for (size_t i = 0; i < ARRAY_SIZE(settings); i++) {
		char value[32];

		describe_default(&settings[i], value, sizeof(value));
		snprintf(left, sizeof(left), "%s=%s", settings[i].key, value);
		fprintf(f, "  %-32s %s\n", left, settings[i].help);
	}
	fputs("\nFields that are accepted and have no meaning here:\n\n", f);
	fields_print_ignored(f);
	fputs("\nFields that are possible in part, and refused otherwise:\n\n", f);
	fields_print_limited(f);
	fputs("\nRun by hand it stays in the foreground and prints 'ready' on stderr when it "
	      "answers.\n"
	      "Exit codes: 0 ended by a signal or idle, 64 wrong options or settings, 71 the "
	      "system "
	      "refused something.\n",
	      f);
}

static void print_troff(FILE *f, const char *text)
{
	for (; *text; text++) {
		if (*text == '-')
			fputs("\\-", f);
		else if (*text == '\\')
			fputs("\\e", f);
		else
			fputc(*text, f);
	}
}

void setup_print_man(FILE *f)
{
	fprintf(f,
		".TH STEAMD\\-GATEWAY 1 \"\" \"steamd %s\"\n.SH NAME\nsteamd\\-gateway \\- "
		"OpenAI's HTTP APIs over steamd's socket\n"
		".SH SYNOPSIS\n.B steamd\\-gateway\n\\fB\\-\\-listen\\fR \\fIWHERE\\fR "
		"[\\fIOPTION\\fR]...\n.SH DESCRIPTION\n"
		"A client of steamd that speaks OpenAI's Chat Completions, Completions and "
		"Responses\n"
		"APIs to desktop applications. It runs as the user it serves, holds no model and "
		"no\n"
		"state, and may be ended at any time.\n.SH OPTIONS\n",
		STEAMD_VERSION);
	for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
		if (!options[i].help)
			continue;
		fputs(".TP\n\\fB", f);
		print_troff(f, options[i].name);
		fprintf(f, "\\fR \\fI%s\\fR\n", options[i].value ? options[i].value : "");
		print_troff(f, options[i].help);
		fputc('\n', f);
	}
	fputs(".SH SETTINGS\nFor \\-\\-set and, one a line, for the file that \\-\\-config "
	      "names.\n",
	      f);
	for (size_t i = 0; i < ARRAY_SIZE(settings); i++) {
		char value[32];

		describe_default(&settings[i], value, sizeof(value));
		fprintf(f, ".TP\n\\fB%s=\\fR%s\n", settings[i].key, value);
		print_troff(f, settings[i].help);
		fputc('\n', f);
	}
	fputs(".SH FIELDS WITHOUT A MEANING\nThese are accepted, and nothing is done about them:\n",
	      f);
	fields_print_ignored(f);
	fputs(".SH FIELDS POSSIBLE IN PART\nOtherwise they are refused:\n", f);
	fields_print_limited(f);
	fputs(".SH WHAT IS NO HTTP\n"
	      "A connection that begins with it gets a refusal in OpenAI's form. A later request, "
	      "or a body whose chunks\nare broken, does so, too, or is closed without a word; "
	      "where "
	      "several connections might be meant it gets\na page of libmicrohttpd's.\n"
	      ".SH WHEN STEAMD DOES NOT ANSWER\n"
	      "Requests get 503 with Retry\\-After, and streams that have begun end with an error "
	      "event: at once where nobody\nlistens, after 10 seconds without a first answer, 30 "
	      "seconds after a connection was lost that does not\ncome back, and 16 seconds after "
	      "the last word of one that is stopped or hangs.\n"
	      ".SH SEE ALSO\n.BR steamctl (1),\n.BR steamd (8)\n",
	      f);
}
