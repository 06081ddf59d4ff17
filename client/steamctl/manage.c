/* What an owner of the machine asks: status, ps, models, cancel, reload. */
#include <errno.h>
#include <string.h>

#include "client/steamctl/steamctl.h"

static int query(struct ctl *c, enum steamd_query what, json_t **ret)
{
	_cleanup_(freep) char *text = NULL;
	struct steamd_error err = { 0 };
	json_error_t error;

	if (steamd_query(c->s, what, &text, &err) < 0)
		return fail_with(&err);
	if (c->json) {
		puts(text);
		*ret = NULL;
		return EXIT_OK;
	}
	*ret = json_loads(text, 0, &error);
	return *ret ? EXIT_OK
		    : fail(EXIT_PROTOCOL, "the daemon's answer is no JSON: %s", error.text);
}

static void print_scalar(const char *key, const json_t *value)
{
	const size_t n = strlen(key);
	const double bytes = json_number_value(value);

	if (json_is_string(value))
		printf("%s", json_string_value(value));
	else if (n >= 5 && strcmp(key + n - 5, "bytes") == 0 && bytes >= 1 << 30)
		printf("%.2f GiB", bytes / (1 << 30));
	else if (n >= 5 && strcmp(key + n - 5, "bytes") == 0 && bytes >= 1 << 20)
		printf("%.2f MiB", bytes / (1 << 20));
	else if (json_is_integer(value))
		printf("%" JSON_INTEGER_FORMAT, json_integer_value(value));
	else if (json_is_real(value))
		printf("%g", json_real_value(value));
	else
		printf("%s", json_is_true(value) ? "yes" : json_is_false(value) ? "no" : "-");
}

/* Objects as indented lines; an object of value and origin on one; lists of scalars too. */
static void print_tree(const json_t *object, int depth)
{
	const char *key;
	json_t *value, *entry;
	size_t i;

	json_object_foreach((json_t *)object, key, value) {
		printf("%*s%-*s", 2 * depth, "", 26 - 2 * depth, key);
		if (json_is_object(value) && json_object_get(value, "value") &&
		    json_object_get(value, "from")) {
			putchar(' ');
			print_scalar(key, json_object_get(value, "value"));
			printf("  (%s)\n", json_string_value(json_object_get(value, "from")));
		} else if (json_is_object(value)) {
			putchar('\n');
			print_tree(value, depth + 1);
		} else if (json_is_array(value)) {
			json_array_foreach(value, i, entry) {
				if (json_is_object(entry)) {
					putchar('\n');
					print_tree(entry, depth + 1);
					continue;
				}
				putchar(' ');
				print_scalar(key, entry);
			}
			putchar('\n');
		} else {
			putchar(' ');
			print_scalar(key, value);
			putchar('\n');
		}
	}
}

static int show(struct ctl *c, enum steamd_query what)
{
	json_t *root = NULL;
	const int r = query(c, what, &root);

	if (root)
		print_tree(root, 0);
	json_decref(root);
	return r;
}

static void print_cell(const json_t *value, const char *key)
{
	const json_t *cell = json_object_get(value, key);

	if (cell)
		printf(" %14" JSON_INTEGER_FORMAT, json_integer_value(cell));
	else
		printf(" %14s", "-");
}

/* A row for each thing that is limited, and one for each plain number. */
static void print_limits(const json_t *user)
{
	const char *key;
	json_t *value;

	printf("uid %-12" JSON_INTEGER_FORMAT " %14s %14s %14s\n",
	       json_integer_value(json_object_get(user, "uid")), "used", "at least", "at most");
	json_object_foreach((json_t *)user, key, value) {
		if (strcmp(key, "uid") == 0)
			continue;
		printf("%-16s", key);
		if (json_is_object(value)) {
			print_cell(value, "used");
			print_cell(value, "least");
			print_cell(value, "limit");
		} else {
			printf(" %14" JSON_INTEGER_FORMAT, json_integer_value(value));
		}
		putchar('\n');
	}
}

static int show_limits(struct ctl *c)
{
	json_t *root = NULL, *user;
	const int r = query(c, STEAMD_LIMITS, &root);
	size_t i;

	json_array_foreach(json_object_get(root, "users"), i, user) {
		if (i > 0)
			putchar('\n');
		print_limits(user);
	}
	if (i > 0)
		printf("\nWhat goes over is refused, with the numbers. Over disk_bytes nothing is "
		       "refused: of the\nuser's own KV on disk what is worth least goes "
		       "(disk_evicted, bytes), and is computed again\nwhere it is wanted.\n");
	json_decref(root);
	return r;
}

int run_status(struct ctl *c)
{
	if (c->limits)
		return show_limits(c);
	return show(c, STEAMD_STATUS);
}

int run_models(struct ctl *c)
{
	return show(c, STEAMD_MODELS);
}

int run_reload(struct ctl *c)
{
	return show(c, STEAMD_RELOAD);
}

int run_ps(struct ctl *c)
{
	static const struct {
		const char *key, *title;
		int width;
	} columns[] = {
		{ "turn", "TURN", 20 },		 { "uid", "UID", 6 },
		{ "client", "CLIENT", 12 },	 { "kind", "KIND", 9 },
		{ "state", "STATE", 8 },	 { "n_prompt", "PROMPT", 7 },
		{ "n_completion", "TOKENS", 7 }, { "age_ms", "AGE/MS", 8 },
	};
	json_t *root = NULL, *turn;
	const int r = query(c, STEAMD_PS, &root);
	size_t i;

	if (!root)
		return r;
	for (size_t k = 0; k < ARRAY_SIZE(columns); k++)
		printf("%-*s ", columns[k].width, columns[k].title);
	putchar('\n');
	json_array_foreach(json_object_get(root, "turns"), i, turn) {
		for (size_t k = 0; k < ARRAY_SIZE(columns); k++) {
			const json_t *value = json_object_get(turn, columns[k].key);

			if (json_is_string(value))
				printf("%-*s ", columns[k].width, json_string_value(value));
			else
				printf("%-*" JSON_INTEGER_FORMAT " ", columns[k].width,
				       json_integer_value(value));
		}
		putchar('\n');
	}
	if (json_object_get(root, "others"))
		printf("others: %" JSON_INTEGER_FORMAT " running, %" JSON_INTEGER_FORMAT
		       " queued\n",
		       json_integer_value(
			       json_object_get(json_object_get(root, "others"), "running")),
		       json_integer_value(
			       json_object_get(json_object_get(root, "others"), "queued")));
	json_decref(root);
	return r;
}

int run_cancel(struct ctl *c)
{
	struct steamd_error err = { 0 };

	if (c->n_words == 0)
		return fail(EXIT_USAGE, "cancel wants the numbers that ps shows");
	for (int i = 0; i < c->n_words; i++) {
		unsigned long long turn;
		char *end;

		errno = 0;
		turn = strtoull(c->words[i], &end, 0);
		if (errno || *end || end == c->words[i])
			return fail(EXIT_USAGE,
				    "'%s' is no turn; a number as ps shows it is wanted",
				    c->words[i]);
		if (steamd_cancel_turn(c->s, turn, &err) < 0)
			return fail_with(&err);
	}
	return EXIT_OK;
}
