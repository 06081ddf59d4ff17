/* Sessions: listed, shown, made, copied, cut, moved in and out as files. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>

#include "client/steamctl/steamctl.h"

struct verb {
	const char *name;
	enum steamd_session_verb verb;
	int min_words, max_words; /* behind the verb */
	const char *usage, *help;
	int (*print)(struct ctl *c, json_t *o); /* NULL: nothing to say but with --json */
};

static const char *text_at(const json_t *o, const char *key)
{
	const char *text = json_string_value(json_object_get(o, key));

	return text ? text : "";
}

static json_int_t integer_at(const json_t *o, const char *key)
{
	return json_integer_value(json_object_get(o, key));
}

static void print_time(json_int_t seconds)
{
	const time_t t = (time_t)seconds;
	struct tm tm;
	char text[32];

	if (localtime_r(&t, &tm) && strftime(text, sizeof(text), "%Y-%m-%d %H:%M", &tm))
		fputs(text, stdout);
}

static void print_row(const json_t *o)
{
	printf("%-24s %5" JSON_INTEGER_FORMAT " %8" JSON_INTEGER_FORMAT "  ", text_at(o, "name"),
	       integer_at(o, "turns"), integer_at(o, "tokens"));
	print_time(integer_at(o, "used"));
	printf("  %s%s%s\n", text_at(o, "id"),
	       json_is_true(json_object_get(o, "pinned")) ? " pinned" : "",
	       json_is_true(json_object_get(o, "running")) ? " running" : "");
}

static void print_rows(const json_t *list)
{
	json_t *one;
	size_t i;

	printf("%-24s %5s %8s  %-16s  %s\n", "NAME", "TURNS", "TOKENS", "USED", "ID");
	json_array_foreach((json_t *)list, i, one)
		print_row(one);
}

static int print_list(struct ctl *c, json_t *o)
{
	const json_t *list = json_object_get(o, "sessions");
	json_t *one;
	size_t i;

	if (c->names) {
		json_array_foreach((json_t *)list, i, one)
			puts(text_at(one, "name"));
		return EXIT_OK;
	}
	print_rows(list);
	if (integer_at(o, "damaged") > 0)
		fprintf(stderr, "(%" JSON_INTEGER_FORMAT " more are damaged)\n",
			integer_at(o, "damaged"));
	return EXIT_OK;
}

static void print_content(const char *role, const json_t *content)
{
	json_t *part;
	size_t i;

	printf("%s: ", role);
	if (json_is_string(content))
		fputs(json_string_value(content), stdout);
	json_array_foreach((json_t *)content, i, part)
		fputs(text_at(part, "text"), stdout);
	putchar('\n');
}

static void print_turn(const json_t *turn)
{
	const json_t *messages = json_object_get(json_object_get(turn, "request"), "messages");
	const json_t *answer = json_object_get(turn, "answer");
	json_t *message;
	size_t i;

	printf("\n--- %" JSON_INTEGER_FORMAT, integer_at(turn, "n"));
	if (json_is_true(json_object_get(turn, "damaged"))) {
		puts(" (damaged)");
		return;
	}
	printf(", %s\n", answer ? text_at(turn, "finish") : "running");
	json_array_foreach((json_t *)messages, i, message)
		print_content(text_at(message, "role"), json_object_get(message, "content"));
	if (!answer)
		return;
	if (json_object_get(answer, "reasoning_content"))
		print_content("reasoning", json_object_get(answer, "reasoning_content"));
	print_content("assistant", json_object_get(answer, "content"));
	json_array_foreach(json_object_get(answer, "tool_calls"), i, message)
		print_json(json_incref(message));
}

static int print_show(struct ctl *c, json_t *o)
{
	json_t *turn;
	size_t i;

	(void)c;
	print_row(o);
	json_array_foreach(json_object_get(o, "turn"), i, turn)
		print_turn(turn);
	return EXIT_OK;
}

static int print_name(struct ctl *c, json_t *o)
{
	json_t *one;
	size_t i;

	(void)c;
	puts(text_at(o, "name"));
	json_array_foreach(json_object_get(o, "not_taken"), i, one)
		fprintf(stderr, "not taken: %s: %s\n", text_at(one, "what"), text_at(one, "why"));
	return EXIT_OK;
}

static int print_removed(struct ctl *c, json_t *o)
{
	(void)c;
	print_rows(json_object_get(o, "removed"));
	return EXIT_OK;
}

static const struct verb verbs[] = {
	{ "list", STEAMD_SESSION_LIST, 0, 0, "[--names]", "one's own, the last used first",
	  print_list },
	{ "show", STEAMD_SESSION_SHOW, 1, 1, "NAME", "what was said, turn by turn", print_show },
	{ "new", STEAMD_SESSION_NEW, 0, 1, "[NAME]",
	  "an empty one; sampler options become its defaults", print_name },
	{ "fork", STEAMD_SESSION_FORK, 2, 2, "NAME COPY [--turn N]",
	  "a copy, up to turn N, with a life of its own", print_name },
	{ "rewind", STEAMD_SESSION_REWIND, 2, 2, "NAME N", "forget what came after turn N", NULL },
	{ "rename", STEAMD_SESSION_RENAME, 2, 2, "NAME OTHER", "its id stays the same", NULL },
	{ "pin", STEAMD_SESSION_PIN, 1, 1, "NAME", "spare it from gc", NULL },
	{ "unpin", STEAMD_SESSION_UNPIN, 1, 1, "NAME", "spare it no longer", NULL },
	{ "rm", STEAMD_SESSION_RM, 1, 1, "NAME", "forget it", NULL },
	{ "export", STEAMD_SESSION_EXPORT, 1, 2, "NAME [FILE]",
	  "one file, checksummed, to keep or move; --kv: with its KV", NULL },
	{ "import", STEAMD_SESSION_IMPORT, 0, 2, "[FILE [NAME]]",
	  "checks the file and says what it did not take", print_name },
	{ "gc", STEAMD_SESSION_GC, 0, 0, "[--days N]",
	  "forget what is not pinned and was not used for N days", print_removed },
};

void session_print_verbs(bool man)
{
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
		char left[64];

		snprintf(left, sizeof(left), "%s %s", verbs[i].name, verbs[i].usage);
		if (!man) {
			printf("  %-26s %s\n", left, verbs[i].help);
			continue;
		}
		printf(".TP\n");
		print_troff(left);
		printf("\n%s\n", verbs[i].help);
	}
}

static const struct verb *find_verb(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		if (strcmp(verbs[i].name, name) == 0)
			return &verbs[i];
	return NULL;
}

static int read_turn(const char *word, uint32_t *ret)
{
	unsigned long n;
	char *end;

	errno = 0;
	n = strtoul(word, &end, 10);
	if (errno || end == word || *end || word[0] == '-' || n > INT32_MAX)
		return fail(EXIT_USAGE, "'%s' is no turn; a number as show gives it is wanted",
			    word);
	*ret = (uint32_t)n;
	return 0;
}

/* A session's file; one that is written appears whole or not at all. */
struct file {
	int fd;
	const char *path;
	char *beside; /* what it is until it is whole; NULL: stdin or stdout */
};

static void file_deinit(struct file *f)
{
	if (f->beside) {
		closep(&f->fd);
		unlink(f->beside);
	}
	free(f->beside);
}

static int file_to_write(struct file *f, const char *path)
{
	f->path = path;
	f->fd = STDOUT_FILENO;
	if (strcmp(path, "-") == 0)
		return isatty(STDOUT_FILENO)
			       ? fail(EXIT_USAGE, "an export is no text: name a file, or send "
						  "stdout to one")
			       : 0;
	if (asprintf(&f->beside, "%s.partial", path) < 0)
		return f->beside = NULL, fail(EXIT_LOCAL, "out of memory");
	f->fd = open(f->beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	return f->fd < 0 ? fail(EXIT_LOCAL, "cannot write '%s': %s", path, strerror(errno)) : 0;
}

static int put_piece(void *userdata, const void *data, size_t len)
{
	const struct file *f = userdata;
	const char *at = data;

	while (len > 0) {
		const ssize_t n = write(f->fd, at, len);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0) {
			at += n;
			len -= (size_t)n;
		}
	}
	return 0;
}

static int file_written(struct file *f)
{
	if (!f->beside)
		return EXIT_OK;
	if (fsync(f->fd) < 0 || rename(f->beside, f->path) < 0)
		return fail(EXIT_LOCAL, "cannot write '%s': %s", f->path, strerror(errno));
	closep(&f->fd);
	free(f->beside);
	f->beside = NULL;
	return EXIT_OK;
}

static int file_to_read(struct file *f, const char *path)
{
	f->fd = STDIN_FILENO;
	if (strcmp(path, "-") == 0)
		return 0;
	f->fd = open(path, O_RDONLY | O_CLOEXEC);
	return f->fd < 0 ? fail(EXIT_NO_INPUT, "cannot open '%s': %s", path, strerror(errno)) : 0;
}

static long get_piece(void *userdata, void *data, size_t max)
{
	const struct file *f = userdata;
	ssize_t n;

	do {
		n = read(f->fd, data, max);
	} while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

/* What a word means is a matter of the verb. */
static int fill(struct ctl *c, const struct verb *v, struct steamd_session *q, struct file *f)
{
	char **words = c->words + 1;
	const int n = c->n_words - 1;

	q->temperature = c->g.temperature;
	q->top_p = c->g.top_p;
	q->min_p = c->g.min_p;
	q->top_k = c->g.top_k;
	q->repetition_penalty = c->g.repetition_penalty;
	q->frequency_penalty = c->g.frequency_penalty;
	q->presence_penalty = c->g.presence_penalty;
	q->turn = c->turn;
	q->days = c->days == STEAMD_UNSET ? 90 : c->days;
	switch (v->verb) {
	case STEAMD_SESSION_NEW:
		q->name = n > 0 ? words[0] : NULL;
		return 0;
	case STEAMD_SESSION_IMPORT:
		q->name = n > 1 ? words[1] : NULL;
		q->get = get_piece;
		q->userdata = f;
		return file_to_read(f, n > 0 ? words[0] : "-");
	case STEAMD_SESSION_EXPORT:
		q->session = words[0];
		if (!c->kv)
			return 0;
		q->kv = 1;
		q->put = put_piece;
		q->userdata = f;
		return file_to_write(f, n > 1 ? words[1] : "-");
	case STEAMD_SESSION_REWIND:
		q->session = words[0];
		return read_turn(words[1], &q->turn);
	default:
		q->session = n > 0 ? words[0] : NULL;
		q->name = n > 1 ? words[1] : NULL;
		return 0;
	}
}

static int write_export(struct ctl *c, struct file *f, const char *data, size_t len)
{
	int r;

	r = file_to_write(f, c->n_words > 2 ? c->words[2] : "-");
	if (r)
		return r;
	r = put_piece(f, data, len);
	if (r < 0)
		return fail(r == -EPIPE ? EXIT_PIPE : EXIT_LOCAL, "cannot write '%s': %s", f->path,
			    strerror(-r));
	return file_written(f);
}

/* stdout may be the file: what there is to say goes to stderr. */
static int say_exported(struct file *f, const char *text)
{
	json_t *o = json_loads(text, 0, NULL), *one;
	size_t i;

	fprintf(stderr, "KV of %" JSON_INTEGER_FORMAT " tokens\n",
		integer_at(json_object_get(o, "kv"), "tokens"));
	json_array_foreach(json_object_get(o, "left_out"), i, one)
		fprintf(stderr, "left out: %s: %s\n", text_at(one, "what"), text_at(one, "why"));
	json_decref(o);
	return file_written(f);
}

static int hand_over(struct ctl *c, const struct verb *v, struct file *f, const char *text,
		     size_t len)
{
	json_error_t error;
	json_t *o;
	int r;

	if (v->verb == STEAMD_SESSION_EXPORT)
		return c->kv ? say_exported(f, text) : write_export(c, f, text, len);
	if (c->json)
		return puts(text) >= 0 ? EXIT_OK : EXIT_PIPE;
	if (!v->print)
		return EXIT_OK;
	o = json_loads(text, 0, &error);
	if (!o)
		return fail(EXIT_PROTOCOL, "the daemon's answer is no JSON: %s", error.text);
	r = v->print(c, o);
	json_decref(o);
	return r;
}

int run_session(struct ctl *c)
{
	_cleanup_(file_deinit) struct file file = { .fd = -1 };
	_cleanup_(freep) char *text = NULL;
	struct steamd_error err = { 0 };
	struct steamd_session q;
	const struct verb *v;
	size_t len;
	int r;

	if (c->n_words == 0)
		return fail(EXIT_USAGE, "session wants a verb: list, show, new, fork, rewind, "
					"rename, pin, unpin, rm, export, import, gc");
	v = find_verb(c->words[0]);
	if (!v)
		return fail(EXIT_USAGE, "session has no verb '%s'", c->words[0]);
	if (c->n_words - 1 < v->min_words || c->n_words - 1 > v->max_words)
		return fail(EXIT_USAGE, "usage: steamctl session %s %s", v->name, v->usage);
	steamd_session_init(&q);
	r = fill(c, v, &q, &file);
	if (r)
		return r;
	if (steamd_session(c->s, v->verb, &q, &text, &len, &err) < 0)
		return fail_with(&err);
	return hand_over(c, v, &file, text, len);
}
