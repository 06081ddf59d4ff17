/* Questions: once (ask), raw text (complete), or a conversation by hand (chat). */
#include <dlfcn.h>
#include <errno.h>
#include <locale.h>
#include <string.h>
#include <sys/stat.h>

#include "client/steamctl/steamctl.h"
#include "client/wire/utf8.h"

static void add_message(json_t *messages, const char *role, const char *text, size_t len)
{
	json_array_append_new(messages, json_pack("{s:s, s:o}", "role", role, "content",
						  json_stringn(text, len)));
}

/* The conversation object that a request carries: messages, tools, options. */
static int make_conversation(struct ctl *c, json_t **ret)
{
	json_t *conversation = json_object(), *messages = json_array();
	int r = 0;

	json_object_set_new(conversation, "messages", messages);
	json_object_set_new(conversation, "add_generation_prompt", json_true());
	if (c->think >= 0)
		json_object_set_new(conversation, "enable_thinking", json_boolean(c->think));
	if (c->tools) {
		_cleanup_(freep) char *text = NULL;
		json_error_t error;
		json_t *tools = NULL;
		size_t len;

		r = read_file(c->tools, &text, &len);
		if (r == 0 && !(tools = json_loadb(text, len, 0, &error)))
			r = fail(EXIT_USAGE, "'%s' is no JSON: line %d: %s", c->tools, error.line,
				 error.text);
		if (tools)
			json_object_set_new(conversation, "tools", tools);
	}
	if (c->system) {
		_cleanup_(freep) char *text = NULL;
		size_t len;

		if (utf8_repair(span_of(c->system), &text, &len) == 0)
			add_message(messages, "system", text, len);
	}
	if (r) {
		json_decref(conversation);
		return r;
	}
	*ret = conversation;
	return 0;
}

static int send(struct ctl *c, json_t *conversation, struct answer_text *ret)
{
	_cleanup_(freep) char *text = json_dumps(conversation, JSON_COMPACT);
	int r;

	if (!text)
		return fail(EXIT_LOCAL, "out of memory");
	c->g.messages = text;
	c->g.messages_len = strlen(text);
	c->g.session_create = 1;
	r = generate(c, ret);
	c->g.messages = NULL;
	return r;
}

int run_ask(struct ctl *c)
{
	_cleanup_(freep) char *text = NULL;
	json_t *conversation;
	size_t len;
	int r;

	r = read_prompt(c, &text, &len);
	if (r)
		return r;
	if (len == 0)
		return fail(EXIT_USAGE, "nothing was asked: the input is empty");
	r = make_conversation(c, &conversation);
	if (r)
		return r;
	add_message(json_object_get(conversation, "messages"), "user", text, len);
	r = send(c, conversation, NULL);
	json_decref(conversation);
	return r;
}

int run_complete(struct ctl *c)
{
	_cleanup_(freep) uint32_t *ids = NULL;
	_cleanup_(freep) char *text = NULL;
	int r;

	if (c->ids) {
		r = read_ids(c, &ids, &c->g.n_ids);
		c->g.ids = ids;
	} else {
		r = read_prompt(c, &text, &c->g.prompt_len);
		c->g.prompt = text;
	}
	return r ? r : generate(c, NULL);
}

/* $XDG_STATE_HOME/steamctl/history; NULL: none is kept. */
static char *history_path(void)
{
	const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
	_cleanup_(freep) char *dir = NULL;
	char *path;

	if (state && state[0]) {
		if (asprintf(&dir, "%s/steamctl", state) < 0)
			return dir = NULL, NULL;
	} else if (!home || asprintf(&dir, "%s/.local/state/steamctl", home) < 0) {
		return dir = NULL, NULL;
	}
	for (char *slash = strchr(dir + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = '\0';
		mkdir(dir, 0700);
		*slash = '/';
	}
	mkdir(dir, 0700);
	return asprintf(&path, "%s/history", dir) < 0 ? NULL : path;
}

/*
 * Line editing, loaded when a conversation begins: it and what it needs would
 * double the time that every other command takes to start. Without it chat
 * reads plain lines.
 */
static struct {
	char *(*readline)(const char *prompt);
	int (*add_history)(const char *line);
	int (*read_history)(const char *path);
	int (*write_history)(const char *path);
	void (*stifle_history)(int lines);
} editor;

static bool load_editor(void)
{
	void *library = dlopen("libedit.so.2", RTLD_NOW | RTLD_LOCAL);

	if (!library)
		return false;
	/* it alone counts characters; to the other commands a locale is only time */
	setlocale(LC_CTYPE, "");
	editor.readline = (char *(*)(const char *))dlsym(library, "readline");
	editor.add_history = (int (*)(const char *))dlsym(library, "add_history");
	editor.read_history = (int (*)(const char *))dlsym(library, "read_history");
	editor.write_history = (int (*)(const char *))dlsym(library, "write_history");
	editor.stifle_history = (void (*)(int))dlsym(library, "stifle_history");
	return editor.readline && editor.add_history && editor.read_history &&
	       editor.write_history && editor.stifle_history;
}

static char *read_line(bool terminal)
{
	char *line = NULL;
	size_t cap = 0;
	ssize_t n;

	if (terminal)
		return editor.readline("> ");
	n = getline(&line, &cap, stdin);
	if (n < 0) {
		free(line);
		return NULL;
	}
	if (n && line[n - 1] == '\n')
		line[n - 1] = '\0';
	return line;
}

static void keep_answer(json_t *messages, const struct answer_text *a)
{
	json_t *message = json_pack("{s:s, s:o}", "role", "assistant", "content",
				    json_stringn(a->content ? a->content : "", a->content_len));

	if (a->reasoning_len)
		json_object_set_new(message, "reasoning_content",
				    json_stringn(a->reasoning, a->reasoning_len));
	if (a->tool_calls)
		json_object_set(message, "tool_calls", a->tool_calls);
	json_array_append_new(messages, message);
}

/* One line of the user's: a command of chat itself, or a question. Returns -1 to go on. */
static int take_line(struct ctl *c, json_t *conversation, const char *line)
{
	json_t *messages = json_object_get(conversation, "messages");
	_cleanup_(freep) char *text = NULL;
	struct answer_text answer = { 0 };
	size_t len;
	int r;

	if (strcmp(line, "/exit") == 0 || strcmp(line, "/quit") == 0)
		return EXIT_OK;
	if (strcmp(line, "/clear") == 0 && c->g.session) {
		fputs("a session keeps its turns; see steamctl session rewind\n", stderr);
		return -1;
	}
	if (strcmp(line, "/clear") == 0) {
		while (json_array_size(messages) > (c->system ? 1u : 0u))
			json_array_remove(messages, json_array_size(messages) - 1);
		return -1;
	}
	if (strcmp(line, "/help") == 0) {
		fputs("/clear begins anew, /exit (or Ctrl-D) leaves, Ctrl-C stops an answer\n",
		      stderr);
		return -1;
	}
	if (line[0] == '\0')
		return -1;
	if (utf8_repair(span_of(line), &text, &len) < 0)
		return fail(EXIT_LOCAL, "out of memory");
	add_message(messages, "user", text, len);
	r = send(c, conversation, &answer);
	/* what was seen of a stopped answer stays part of the conversation */
	if (c->g.session && (r == EXIT_OK || r == EXIT_INTERRUPTED))
		json_array_clear(messages); /* the daemon knows them */
	else if (r == EXIT_OK || (r == EXIT_INTERRUPTED && answer.content_len))
		keep_answer(messages, &answer);
	else
		json_array_remove(messages, json_array_size(messages) - 1);
	answer_text_deinit(&answer);
	if (r == EXIT_INTERRUPTED) {
		fputs("(stopped)\n", stderr);
		interrupt_clear();
		return -1;
	}
	return r == EXIT_PIPE || r == EXIT_NO_DAEMON || r == EXIT_PROTOCOL ? r : -1;
}

int run_chat(struct ctl *c)
{
	const bool terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO) && load_editor();
	_cleanup_(freep) char *history = terminal ? history_path() : NULL;
	json_t *conversation;
	int r;

	r = make_conversation(c, &conversation);
	if (r)
		return r;
	if (history)
		editor.read_history(history);
	r = -1;
	while (r < 0) {
		_cleanup_(freep) char *line = NULL;

		errno = 0;
		line = read_line(terminal);
		if (interrupt_pending()) {
			interrupt_clear(); /* at the prompt Ctrl-C only drops the line */
			if (terminal) {
				fputc('\n', stderr);
				continue;
			}
			r = EXIT_INTERRUPTED;
			break;
		}
		if (!line)
			break;
		if (terminal && line[0])
			editor.add_history(line);
		r = take_line(c, conversation, line);
	}
	if (history) {
		editor.stifle_history(1000);
		editor.write_history(history);
	}
	json_decref(conversation);
	return r < 0 ? EXIT_OK : r;
}
