/* The settings table in action: parsing, printing, comparing. Values are text until settings_set_at() has checked them. */
#include "daemon/base/settings.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <ini.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/peruser.h"

#define LINE_BYTES_MAX 8192
#define SECTION "steamd"

enum kind {
	KIND_STRING,
	KIND_ENUM,
	KIND_SIZE,
	KIND_UINT,
	KIND_SECS,
	KIND_MODE,
	KIND_BOOL,
	KIND_REAL
};

struct setting_origin {
	char text[256];
};

/* A bound is a number, or for ENUM the words. */
struct bound {
	double number;
	const char *words;
};

struct setting {
	enum kind kind;
	const char *key, *help;
	size_t offset;
	struct bound min, max;
	enum setting_reload reload;
};

#define MAX_STRING(max)                                                                            \
	{                                                                                          \
		.number = (max)                                                                    \
	}
#define MAX_ENUM(max)                                                                              \
	{                                                                                          \
		.words = (max)                                                                     \
	}
#define MAX_SIZE(max)                                                                              \
	{                                                                                          \
		.number = (max)                                                                    \
	}
#define MAX_UINT(max)                                                                              \
	{                                                                                          \
		.number = (max)                                                                    \
	}
#define MAX_SECS(max)                                                                              \
	{                                                                                          \
		.number = (max)                                                                    \
	}
#define MAX_MODE(max)                                                                              \
	{                                                                                          \
		.number = (max)                                                                    \
	}
#define MAX_BOOL(max)                                                                              \
	{                                                                                          \
		.number = (max)                                                                    \
	}
#define MAX_REAL(max)                                                                              \
	{                                                                                          \
		.number = (max)                                                                    \
	}
#define ROW(kind, member, key, def, min, max, reload, help)                                        \
	{ KIND_##kind,                                                                             \
	  key,                                                                                     \
	  help,                                                                                    \
	  offsetof(struct settings, member),                                                       \
	  { .number = (min) },                                                                     \
	  MAX_##kind(max),                                                                         \
	  SETTING_##reload },

static const struct setting table[] = { SETTINGS(ROW) };

static const struct setting *find(const char *key)
{
	for (size_t i = 0; i < ARRAY_SIZE(table); i++)
		if (strcmp(table[i].key, key) == 0)
			return &table[i];
	return NULL;
}

static void *member(const struct settings *s, const struct setting *t)
{
	return (char *)s + t->offset;
}

static void set_origin(struct settings *s, const struct setting *t, const char *origin)
{
	snprintf(s->origins[t - table].text, sizeof(s->origins->text), "%s", origin);
}

static int replace_string(char **at, const char *value)
{
	char *copy = strdup(value);

	if (!copy)
		return -ENOMEM;
	free(*at);
	*at = copy;
	return 0;
}

static int default_string(char **at, const char *value)
{
	return replace_string(at, value);
}

#define DEFAULT_STRING(s, member, def) default_string(&(s)->member, def)
#define DEFAULT_ENUM(s, member, def) default_string(&(s)->member, def)
#define DEFAULT_SIZE(s, member, def) ((s)->member = (def), 0)
#define DEFAULT_UINT(s, member, def) ((s)->member = (def), 0)
#define DEFAULT_SECS(s, member, def) ((s)->member = (def), 0)
#define DEFAULT_MODE(s, member, def) ((s)->member = (def), 0)
#define DEFAULT_BOOL(s, member, def) ((s)->member = (def), 0)
#define DEFAULT_REAL(s, member, def) ((s)->member = (def), 0)
#define SET_DEFAULT(kind, member, key, def, min, max, reload, help)                                \
	if (DEFAULT_##kind(s, member, def) < 0)                                                    \
		goto fail;

int settings_init(struct settings *s)
{
	memset(s, 0, sizeof(*s));
	s->origins = calloc(ARRAY_SIZE(table), sizeof(*s->origins));
	if (!s->origins)
		return -ENOMEM;
	SETTINGS(SET_DEFAULT)
	for (size_t i = 0; i < ARRAY_SIZE(table); i++)
		set_origin(s, &table[i], "default");
	return 0;
fail:
	settings_deinit(s);
	return -ENOMEM;
}

void settings_deinit(struct settings *s)
{
	if (!s)
		return;
	for (size_t i = 0; i < ARRAY_SIZE(table); i++)
		if (table[i].kind == KIND_STRING || table[i].kind == KIND_ENUM)
			free(*(char **)member(s, &table[i]));
	free(s->origins);
	memset(s, 0, sizeof(*s));
}

static int parse_uint(const char *value, int base, uint64_t *ret)
{
	char *end;

	if (!isdigit((unsigned char)*value))
		return -EINVAL;
	errno = 0;
	*ret = strtoull(value, &end, base);
	return errno || *end ? -EINVAL : 0;
}

/* Bytes, with K, M, G or T for powers of 1024; an "iB" or "B" behind is taken too. */
static int parse_size(const char *value, uint64_t *ret)
{
	static const char units[] = "KMGT";
	const char *unit;
	char *end;
	int shift = 0;

	if (!isdigit((unsigned char)*value))
		return -EINVAL;
	errno = 0;
	*ret = strtoull(value, &end, 10);
	if (errno)
		return -EINVAL;
	if (*end && (unit = strchr(units, toupper((unsigned char)*end)))) {
		shift = 10 * (int)(unit - units + 1);
		end++;
		if (*end == 'i')
			end++;
	}
	if (*end == 'B')
		end++;
	if (*end || *ret > UINT64_MAX >> shift)
		return -EINVAL;
	*ret <<= shift;
	return 0;
}

static int parse_bool(const char *value, bool *ret)
{
	static const char *const yes[] = { "yes", "true", "on", "1" }, *const no[] = { "no",
										       "false",
										       "off", "0" };

	for (size_t i = 0; i < ARRAY_SIZE(yes); i++) {
		if (strcasecmp(value, yes[i]) == 0 || strcasecmp(value, no[i]) == 0) {
			*ret = strcasecmp(value, yes[i]) == 0;
			return 0;
		}
	}
	return -EINVAL;
}

static bool is_word(const char *words, const char *value)
{
	const size_t len = strlen(value);

	for (const char *w = words; w && *w; w = strchr(w, '|'), w = w ? w + 1 : NULL)
		if (len && strncmp(w, value, len) == 0 && (w[len] == '|' || w[len] == '\0'))
			return true;
	return false;
}

static int set_number(const struct setting *t, void *at, const char *value, struct err *err)
{
	uint64_t n = 0;
	int r;

	r = t->kind == KIND_SIZE ? parse_size(value, &n)
				 : parse_uint(value, t->kind == KIND_MODE ? 8 : 10, &n);
	if (r < 0)
		return err_set(err, -EINVAL, "%s is '%s'; %s is wanted", t->key, value,
			       t->kind == KIND_SIZE   ? "a size such as 512M or 16G"
			       : t->kind == KIND_MODE ? "an octal mode such as 0660"
			       : t->kind == KIND_SECS ? "a number of seconds"
						      : "a whole number");
	if ((double)n < t->min.number || (double)n > t->max.number) {
		if (t->kind == KIND_MODE)
			return err_set(err, -EINVAL, "%s is '%s'; at most 0777 is allowed", t->key,
				       value);
		return err_set(err, -EINVAL, "%s is '%s'; from %.0f to %.0f is allowed", t->key,
			       value, t->min.number, t->max.number);
	}
	if (t->kind == KIND_SIZE)
		*(uint64_t *)at = n;
	else
		*(uint32_t *)at = (uint32_t)n;
	return 0;
}

static int set_real(const struct setting *t, double *at, const char *value, struct err *err)
{
	double d;
	char *end;

	errno = 0;
	d = strtod(value, &end);
	if (errno || end == value || *end || !isfinite(d))
		return err_set(err, -EINVAL, "%s is '%s'; a number is wanted", t->key, value);
	if (d < t->min.number || d > t->max.number)
		return err_set(err, -EINVAL, "%s is '%s'; from %g to %g is allowed", t->key, value,
			       t->min.number, t->max.number);
	*at = d;
	return 0;
}

static int set_value(struct settings *s, const struct setting *t, const char *value,
		     struct err *err)
{
	void *at = member(s, t);

	switch (t->kind) {
	case KIND_STRING:
		if (strlen(value) > t->max.number)
			return err_set(err, -EINVAL,
				       "%s is %zu bytes long; at most %.0f are allowed", t->key,
				       strlen(value), t->max.number);
		return replace_string(at, value);
	case KIND_ENUM:
		if (!is_word(t->max.words, value))
			return err_set(err, -EINVAL, "%s is '%s'; one of %s is wanted", t->key,
				       value, t->max.words);
		return replace_string(at, value);
	case KIND_BOOL:
		if (parse_bool(value, at) < 0)
			return err_set(err, -EINVAL, "%s is '%s'; yes or no is wanted", t->key,
				       value);
		return 0;
	case KIND_REAL:
		return set_real(t, at, value, err);
	case KIND_SIZE:
	case KIND_UINT:
	case KIND_SECS:
	case KIND_MODE:
		break;
	}
	return set_number(t, at, value, err);
}

/* What no row of the table can say alone. */
static int check_value(const struct settings *s, const struct setting *t, struct err *err)
{
	if (strcmp(t->key, "PageTokens") == 0 && s->page_tokens % 8)
		return err_set(err, -EINVAL, "PageTokens is '%u'; a multiple of 8 is wanted",
			       s->page_tokens);
	if (strcmp(t->key, "UserWeights") == 0)
		return peruser_find(s->user_weights, t->key, 10000, PERUSER_NONE, NULL, err);
	return 0;
}

static int settings_set_at(struct settings *s, const char *key, const char *value,
			   const char *origin, struct err *err)
{
	const struct setting *t = find(key);
	int r;

	if (!t)
		return err_set(err, -EINVAL, "unknown key '%s'", key);
	r = set_value(s, t, value, err);
	if (r < 0)
		return r;
	r = check_value(s, t, err);
	if (r < 0)
		return r;
	set_origin(s, t, origin);
	return 0;
}

int settings_set(struct settings *s, const char *assignment, const char *origin, struct err *err)
{
	const char *eq = strchr(assignment, '=');
	_cleanup_(freep) char *key = NULL;
	int r;

	if (!eq)
		return err_set(err, -EINVAL, "%s: '%s' has no '='; Key=Value is wanted", origin,
			       assignment);
	key = strndup(assignment, (size_t)(eq - assignment));
	if (!key)
		return -ENOMEM;
	r = settings_set_at(s, key, eq + 1, origin, err);
	return r < 0 ? err_wrap(err, r, "%s", origin) : 0;
}

/* One file being read; inih calls back with names and values, we count its lines. */
struct reading {
	struct settings *s;
	const char *path;
	FILE *f;
	int line, r;
	struct err *err;
};

static int fail_here(struct reading *rd, int r, const char *what)
{
	if (rd->r == 0)
		rd->r = what ? err_set(rd->err, r, "%s:%d: %s", rd->path, rd->line, what)
			     : err_wrap(rd->err, r, "%s:%d", rd->path, rd->line);
	return 0;
}

static char *read_line(char *buffer, int size, void *stream)
{
	struct reading *rd = stream;
	size_t len;

	if (rd->r < 0 || !fgets(buffer, size, rd->f))
		return NULL;
	rd->line++;
	len = strlen(buffer);
	if (len + 1 == (size_t)size && buffer[len - 1] != '\n' && !feof(rd->f)) {
		fail_here(rd, -EINVAL, "the line is too long");
		return NULL;
	}
	if (len == 0 || (buffer[len - 1] != '\n' && !feof(rd->f))) {
		fail_here(rd, -EINVAL, "the line has a NUL byte");
		return NULL;
	}
	return buffer;
}

static int on_value(void *userdata, const char *section, const char *key, const char *value)
{
	struct reading *rd = userdata;
	char origin[sizeof(rd->s->origins->text)];
	int r;

	if (strcmp(section, SECTION) != 0) {
		if (rd->r == 0)
			rd->r = err_set(rd->err, -EINVAL,
					"%s:%d: key '%s' stands in section '%s'; [" SECTION
					"] is wanted",
					rd->path, rd->line, key, section);
		return 0;
	}
	snprintf(origin, sizeof(origin), "%.200s:%d", rd->path, rd->line);
	r = settings_set_at(rd->s, key, value, origin, rd->err);
	return r < 0 ? fail_here(rd, r, NULL) : 1;
}

static int read_file(struct settings *s, const char *path, struct err *err)
{
	_cleanup_(fclosep) FILE *f = fopen(path, "re");
	struct reading rd = { .s = s, .path = path, .f = f, .err = err };
	int r;

	if (!f)
		return err_set(err, -errno, "cannot open '%s': %s", path, strerror(errno));
	ini_allow_multiline = false;
	ini_allow_inline_comments = false;
	ini_stop_on_first_error = true;
	ini_use_stack = false;
	ini_max_line = LINE_BYTES_MAX;
	r = ini_parse_stream(read_line, &rd, on_value, &rd);
	if (rd.r < 0)
		return rd.r;
	if (ferror(f))
		return err_set(err, -EIO, "cannot read '%s'", path);
	if (r > 0)
		return err_set(err, -EINVAL, "%s:%d: neither a section, a comment nor Key=Value",
			       path, r);
	return r < 0 ? -ENOMEM : 0;
}

static int is_conf(const struct dirent *d)
{
	const size_t len = strlen(d->d_name);

	return d->d_name[0] != '.' && len > 5 && strcmp(d->d_name + len - 5, ".conf") == 0;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
	return strcmp((*a)->d_name, (*b)->d_name);
}

static int read_dropins(struct settings *s, const char *dir, struct err *err)
{
	struct dirent **names = NULL;
	int n, r = 0;

	n = scandir(dir, &names, is_conf, by_name);
	if (n < 0)
		return errno == ENOENT
			       ? 0
			       : err_set(err, -errno, "cannot read '%s': %s", dir, strerror(errno));
	for (int i = 0; i < n; i++) {
		_cleanup_(freep) char *path = NULL;

		if (r == 0) {
			if (asprintf(&path, "%s/%s", dir, names[i]->d_name) < 0)
				r = -ENOMEM;
			else
				r = read_file(s, path, err);
		}
		free(names[i]);
	}
	free(names);
	return r;
}

int settings_read(struct settings *s, const char *path, bool required, const char *dropin_dir,
		  struct err *err)
{
	int r;

	if (path) {
		r = read_file(s, path, err);
		if (r == -ENOENT && !required)
			r = 0;
		if (r < 0)
			return r;
	}
	return dropin_dir ? read_dropins(s, dropin_dir, err) : 0;
}

static void print_size(uint64_t n, FILE *f)
{
	static const char units[] = "\0KMGT";
	int i = 0;

	while (n && i < 4 && n % 1024 == 0)
		n /= 1024, i++;
	fprintf(f, "%" PRIu64 "%s", n, i ? (char[]){ units[i], 0 } : "");
}

static void print_value(const struct settings *s, const struct setting *t, FILE *f)
{
	const void *at = member(s, t);

	switch (t->kind) {
	case KIND_STRING:
	case KIND_ENUM:
		fputs(*(char *const *)at, f);
		break;
	case KIND_SIZE:
		print_size(*(const uint64_t *)at, f);
		break;
	case KIND_UINT:
	case KIND_SECS:
		if (*(const uint32_t *)at != UNSET_UINT)
			fprintf(f, "%u", *(const uint32_t *)at);
		break;
	case KIND_MODE:
		fprintf(f, "%04o", *(const uint32_t *)at);
		break;
	case KIND_BOOL:
		fputs(*(const bool *)at ? "yes" : "no", f);
		break;
	case KIND_REAL:
		if (!isnan(*(const double *)at))
			fprintf(f, "%g", *(const double *)at);
		break;
	}
}

static bool is_unset(const struct settings *s, const struct setting *t)
{
	return (t->kind == KIND_REAL && isnan(*(const double *)member(s, t))) ||
	       (t->kind == KIND_UINT && *(const uint32_t *)member(s, t) == UNSET_UINT);
}

void settings_print(const struct settings *s, FILE *f)
{
	fputs("[" SECTION "]\n", f);
	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		/* an unset number has no text that could be read back */
		fprintf(f, "%s%s=", is_unset(s, &table[i]) ? "# " : "", table[i].key);
		print_value(s, &table[i], f);
		fprintf(f, "\n# %s: %s\n", table[i].key, s->origins[i].text);
	}
}

void settings_print_template(FILE *f)
{
	struct settings s;

	if (settings_init(&s) < 0)
		return;
	fputs("# steamd.conf: settings of steamd, see steamd.conf(5). Every key is shown with its "
	      "default.\n"
	      "# Files in conf.d/ are read after this one, in the order of their "
	      "names.\n\n[" SECTION "]\n",
	      f);
	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		fprintf(f, "\n# %s\n#%s=", table[i].help, table[i].key);
		print_value(&s, &table[i], f);
		fputc('\n', f);
	}
	fputs("\n# GLM-Steam-106B-A12B's makers recommend:\n#Temperature=1\n#MinP=0.01\n#TopP=1\n",
	      f);
	settings_deinit(&s);
}

static bool is_empty(const struct settings *s, const struct setting *t)
{
	return t->kind == KIND_STRING && **(char *const *)member(s, t) == '\0';
}

static void print_bounds(const struct setting *t, FILE *f)
{
	static const char *const reload[] = { "Applied on reload.", "Needs a restart.",
					      "Applied when the model is loaded: at a restart, or "
					      "on reload if it had been refused." };

	if (t->kind == KIND_ENUM)
		fprintf(f, " One of %s.", t->max.words);
	else if (t->kind == KIND_UINT || t->kind == KIND_REAL || t->kind == KIND_SECS)
		fprintf(f, " From %.10g to %.10g.", t->min.number, t->max.number);
	fprintf(f, " %s\n", reload[t->reload]);
}

void settings_print_man(FILE *f)
{
	struct settings s;

	if (settings_init(&s) < 0)
		return;
	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		fprintf(f, ".TP\n.B %s=\n", table[i].key);
		fprintf(f, "%c%s.", toupper((unsigned char)table[i].help[0]), table[i].help + 1);
		if (!is_unset(&s, &table[i]) && !is_empty(&s, &table[i])) {
			fputs(" Default: ", f);
			print_value(&s, &table[i], f);
			fputc('.', f);
		}
		print_bounds(&table[i], f);
	}
	settings_deinit(&s);
}

const char *settings_origin(const struct settings *s, const char *key)
{
	const struct setting *t = find(key);

	return t ? s->origins[t - table].text : NULL;
}

static bool differs(const struct settings *a, const struct settings *b, const struct setting *t)
{
	const void *x = member(a, t), *y = member(b, t);

	switch (t->kind) {
	case KIND_STRING:
	case KIND_ENUM:
		return strcmp(*(char *const *)x, *(char *const *)y) != 0;
	case KIND_SIZE:
		return *(const uint64_t *)x != *(const uint64_t *)y;
	case KIND_UINT:
	case KIND_SECS:
	case KIND_MODE:
		return *(const uint32_t *)x != *(const uint32_t *)y;
	case KIND_BOOL:
		return *(const bool *)x != *(const bool *)y;
	case KIND_REAL:
		break;
	}
	return is_unset(a, t) ? !is_unset(b, t)
			      : is_unset(b, t) || *(const double *)x != *(const double *)y;
}

static bool take_over(struct settings *s, const struct settings *next, const struct setting *t)
{
	void *to = member(s, t);
	const void *from = member(next, t);

	switch (t->kind) {
	case KIND_STRING:
	case KIND_ENUM:
		return replace_string(to, *(char *const *)from) == 0;
	case KIND_SIZE:
		*(uint64_t *)to = *(const uint64_t *)from;
		return true;
	case KIND_UINT:
	case KIND_SECS:
	case KIND_MODE:
		*(uint32_t *)to = *(const uint32_t *)from;
		return true;
	case KIND_BOOL:
		*(bool *)to = *(const bool *)from;
		return true;
	case KIND_REAL:
		break;
	}
	*(double *)to = *(const double *)from;
	return true;
}

int settings_apply(struct settings *s, const struct settings *next,
		   void (*on_kept)(const char *key, enum setting_reload needs, void *userdata),
		   void *userdata)
{
	int n = 0;

	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		if (!differs(s, next, &table[i]))
			continue;
		if (table[i].reload != SETTING_RELOAD || !take_over(s, next, &table[i])) {
			if (on_kept)
				on_kept(table[i].key, table[i].reload, userdata);
			continue;
		}
		s->origins[i] = next->origins[i];
		n++;
	}
	return n;
}
