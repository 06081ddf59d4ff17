/*
 * The renderer of both layouts. Where they differ, the difference is a string
 * in struct layout: mostly newlines that 4.7 left out.
 */
#include "daemon/text/chat.h"

#include <errno.h>
#include <stdlib.h>

#include "daemon/text/bytes.h"
#include "daemon/text/pyjson.h"

#define MESSAGES_MAX 65536

struct layout {
	const char *newline; /* after a role's marker and between parts */
	bool nothink;	     /* "/nothink" behind every user turn when thinking is off */
	bool bare_close;     /* no reasoning: "</think>" alone; else "<think></think>" */
};

static const struct layout layouts[] = {
	[CHAT_GLM45] = { "\n", true, false },
	[CHAT_GLM46] = { "\n", true, false },
	[CHAT_GLM47] = { "", false, true },
};

struct renderer {
	const struct layout *l;
	struct bytes text;
	struct chat_piece *pieces;
	size_t n_pieces, cap;
	bool failed;
	bool quiet, keep_thinking;
	size_t last_user; /* index, or SIZE_MAX: there is none */
	struct bytes string_args;
	struct err *err;
};

static void add(struct renderer *r, struct span s, bool marker)
{
	struct chat_piece *last = r->n_pieces ? &r->pieces[r->n_pieces - 1] : NULL;

	if (s.len == 0 || r->failed)
		return;
	if (!marker && last && !last->marker) {
		last->len += s.len;
		bytes_append_span(&r->text, s);
		return;
	}
	if (r->n_pieces == r->cap) {
		const size_t cap = r->cap ? 2 * r->cap : 64;
		struct chat_piece *pieces = reallocarray(r->pieces, cap, sizeof(*pieces));

		if (!pieces) {
			r->failed = true;
			return;
		}
		r->pieces = pieces;
		r->cap = cap;
	}
	r->pieces[r->n_pieces++] = (struct chat_piece){ r->text.n, s.len, marker };
	bytes_append_span(&r->text, s);
}

static void text(struct renderer *r, struct span s)
{
	add(r, s, false);
}

static void literal(struct renderer *r, const char *s)
{
	add(r, span_of(s), false);
}

static void mark(struct renderer *r, const char *token)
{
	add(r, span_of(token), true);
}

static void newline(struct renderer *r)
{
	literal(r, r->l->newline);
}

static const char *type_name(const json_t *value)
{
	static const char *const all[] = { "an object", "an array", "a string", "an integer",
					   "a number",	"true",	    "false",	"null" };

	return value ? all[json_typeof(value)] : "missing";
}

/* Length of the white space character at @p as Python's str.strip() sees it, or 0. */
static size_t space_length(const char *p, size_t len)
{
	const unsigned char *s = (const unsigned char *)p;

	if (len >= 1 && ((s[0] >= 9 && s[0] <= 13) || (s[0] >= 0x1c && s[0] <= 0x20)))
		return 1;
	if (len >= 2 && s[0] == 0xc2 && (s[1] == 0x85 || s[1] == 0xa0))
		return 2;
	if (len < 3)
		return 0;
	if ((s[0] == 0xe1 && s[1] == 0x9a && s[2] == 0x80) ||			/* U+1680 */
	    (s[0] == 0xe2 && s[1] == 0x80 && (s[2] >= 0x80 && s[2] <= 0x8a)) || /* U+2000 … 200A */
	    (s[0] == 0xe2 && s[1] == 0x80 && (s[2] == 0xa8 || s[2] == 0xa9 || s[2] == 0xaf)) ||
	    (s[0] == 0xe2 && s[1] == 0x81 && s[2] == 0x9f) || /* U+205F */
	    (s[0] == 0xe3 && s[1] == 0x80 && s[2] == 0x80))   /* U+3000 */
		return 3;
	return 0;
}

static struct span strip(struct span s)
{
	size_t n;

	while ((n = space_length(s.data, s.len))) {
		s.data += n;
		s.len -= n;
	}
	for (;;) {
		for (n = MIN(s.len, 3u); n; n--)
			if (space_length(s.data + s.len - n, n) == n)
				break;
		if (!n)
			return s;
		s.len -= n;
	}
}

static struct span strip_newlines(struct span s, bool left, bool right)
{
	while (left && s.len && s.data[0] == '\n')
		s.data++, s.len--;
	while (right && s.len && s.data[s.len - 1] == '\n')
		s.len--;
	return s;
}

/* The first or last occurrence of @word in @s; NULL: none. */
static const char *find(struct span s, const char *word, bool last)
{
	const size_t len = strlen(word);
	const char *found = NULL, *p = s.data, *end = s.data + s.len;

	while (p && (size_t)(end - p) >= len && (p = memmem(p, (size_t)(end - p), word, len))) {
		found = p;
		if (!last)
			break;
		p++;
	}
	return found;
}

/* A message's content as one text: a string, or the text parts of a list one after the other. */
static int flatten(struct renderer *r, size_t index, const json_t *content, struct bytes *out)
{
	size_t i;
	json_t *part;

	if (!content)
		return 0;
	if (json_is_string(content)) {
		bytes_append(out, json_string_value(content), json_string_length(content));
		return 0;
	}
	if (!json_is_array(content))
		return err_set(r->err, -EBADMSG,
			       "messages[%zu].content is %s; a string or a list of parts is wanted",
			       index, type_name(content));
	json_array_foreach((json_t *)content, i, part) {
		const json_t *value = part;

		if (json_is_object(part)) {
			const char *type = json_string_value(json_object_get(part, "type"));

			if (!type || strcmp(type, "text") != 0)
				continue; /* images and the like */
			value = json_object_get(part, "text");
		}
		if (!json_is_string(value))
			return err_set(r->err, -EBADMSG,
				       "messages[%zu].content[%zu] is %s; a text is wanted", index,
				       i, type_name(value));
		bytes_append(out, json_string_value(value), json_string_length(value));
	}
	return 0;
}

/* Notes which arguments of @tool are declared as strings. */
static void note_string_args(struct renderer *r, const json_t *tool)
{
	const json_t *inner = json_object_get(tool, "function");
	const json_t *function = json_object_size(inner) ? inner : tool;
	const char *name = json_string_value(json_object_get(function, "name")), *key;
	json_t *properties, *property;

	properties = json_object_get(json_object_get(function, "parameters"), "properties");
	if (!name)
		return;
	json_object_foreach(properties, key, property) {
		const char *type = json_string_value(json_object_get(property, "type"));

		if (!type || strcmp(type, "string") != 0)
			continue;
		bytes_append(&r->string_args, name, strlen(name) + 1);
		bytes_append(&r->string_args, key, strlen(key) + 1);
	}
	r->failed = r->failed || r->string_args.failed;
}

static void render_tools(struct renderer *r, const json_t *tools)
{
	const char *nl = r->l->newline;
	size_t i;
	json_t *tool;

	mark(r, "<|system|>");
	literal(r,
		"\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
		"You are provided with function signatures within <tools></tools> XML "
		"tags:\n<tools>\n");
	json_array_foreach((json_t *)tools, i, tool) {
		struct bytes line = { 0 };

		pyjson_dump(tool, &line);
		r->failed = r->failed || line.failed;
		text(r, bytes_span(&line));
		bytes_deinit(&line);
		literal(r, "\n");
		note_string_args(r, tool);
	}
	literal(r, "</tools>\n\nFor each function call, output the function name and arguments "
		   "within the "
		   "following XML format:\n");
	mark(r, "<tool_call>");
	literal(r, "{function-name}");
	literal(r, nl);
	for (int n = 1; n <= 2; n++) {
		mark(r, "<arg_key>");
		literal(r, n == 1 ? "{arg-key-1}" : "{arg-key-2}");
		mark(r, "</arg_key>");
		literal(r, nl);
		mark(r, "<arg_value>");
		literal(r, n == 1 ? "{arg-value-1}" : "{arg-value-2}");
		mark(r, "</arg_value>");
		literal(r, nl);
	}
	literal(r, "...");
	literal(r, nl);
	mark(r, "</tool_call>");
}

/* A call's arguments: an object, or its JSON text as OpenAI's clients send it; anything else counts as none. */
static json_t *arguments_of(const json_t *function)
{
	json_t *value = json_object_get(function, "arguments"), *parsed = NULL;
	struct err ignored = { 0 };

	if (json_is_object(value))
		return json_incref(value);
	if (json_is_string(value) &&
	    pyjson_load((struct span){ json_string_value(value), json_string_length(value) },
			&parsed, &ignored) == 0 &&
	    json_is_object(parsed))
		return parsed;
	json_decref(parsed);
	return NULL;
}

static void render_argument(struct renderer *r, void *it)
{
	const json_t *value = json_object_iter_value(it);
	struct bytes b = { 0 };

	mark(r, "<arg_key>");
	text(r, (struct span){ json_object_iter_key(it), json_object_iter_key_len(it) });
	mark(r, "</arg_key>");
	newline(r);
	mark(r, "<arg_value>");
	pyjson_dump(value, &b);
	/* a string goes in as it is; a marked integer is a string only to the library */
	if (json_is_string(value) && b.n && b.at[0] == '"')
		text(r, (struct span){ json_string_value(value), json_string_length(value) });
	else
		text(r, bytes_span(&b));
	r->failed = r->failed || b.failed;
	bytes_deinit(&b);
	mark(r, "</arg_value>");
	newline(r);
}

static int render_calls(struct renderer *r, size_t index, const json_t *calls)
{
	size_t i;
	json_t *call;

	if (!calls)
		return 0;
	if (!json_is_array(calls))
		return err_set(r->err, -EBADMSG, "messages[%zu].tool_calls is %s; a list is wanted",
			       index, type_name(calls));
	json_array_foreach((json_t *)calls, i, call) {
		const json_t *inner = json_object_get(call, "function");
		const json_t *function = json_object_size(inner) ? inner : call;
		const json_t *name = json_object_get(function, "name");
		json_t *arguments;

		if (!json_is_string(name))
			return err_set(r->err, -EBADMSG,
				       "messages[%zu].tool_calls[%zu] has a name that is %s; a "
				       "string is wanted",
				       index, i, type_name(name));
		newline(r);
		mark(r, "<tool_call>");
		text(r, (struct span){ json_string_value(name), json_string_length(name) });
		newline(r);
		arguments = arguments_of(function);
		for (void *it = json_object_iter(arguments); it;
		     it = json_object_iter_next(arguments, it))
			render_argument(r, it);
		json_decref(arguments);
		mark(r, "</tool_call>");
	}
	return 0;
}

/* Reasoning comes as a field (the first of three names that is a string), or inside the content. */
static const json_t *reasoning_field(const json_t *message)
{
	static const char *const keys[] = { "reasoning_content", "thinking", "reasoning" };

	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		const json_t *value = json_object_get(message, keys[i]);

		if (value && !json_is_null(value))
			return value;
	}
	return NULL;
}

static void split_reasoning(struct span *body, struct span *thought)
{
	const char *first = find(*body, "</think>", false), *last = find(*body, "</think>", true),
		   *open;
	const struct span before = { body->data, first ? (size_t)(first - body->data) : 0 };

	if (!first)
		return;
	*thought = strip_newlines(before, false, true);
	open = find(*thought, "<think>", true);
	if (open) {
		const char *inside = open + strlen("<think>");

		*thought = (struct span){ inside, thought->len - (size_t)(inside - thought->data) };
	}
	*thought = strip_newlines(*thought, true, false);
	last += strlen("</think>");
	*body = strip_newlines((struct span){ last, body->len - (size_t)(last - body->data) }, true,
			       false);
}

static int render_assistant(struct renderer *r, size_t index, const json_t *message)
{
	const json_t *field = reasoning_field(message);
	struct bytes flat = { 0 };
	struct span body, thought = { 0 };
	bool shown;
	int e;

	e = flatten(r, index, json_object_get(message, "content"), &flat);
	if (e < 0) {
		bytes_deinit(&flat);
		return e;
	}
	body = bytes_span(&flat);
	if (json_is_string(field))
		thought = (struct span){ json_string_value(field), json_string_length(field) };
	else
		split_reasoning(&body, &thought);
	shown = thought.len &&
		(r->keep_thinking || r->last_user == SIZE_MAX || index > r->last_user);

	mark(r, "<|assistant|>");
	newline(r);
	if (shown || !r->l->bare_close)
		mark(r, "<think>");
	if (shown)
		text(r, strip(thought));
	mark(r, "</think>");
	body = strip(body);
	if (body.len) {
		newline(r);
		text(r, body);
	}
	r->failed = r->failed || flat.failed;
	bytes_deinit(&flat);
	return render_calls(r, index, json_object_get(message, "tool_calls"));
}

static void render_response(struct renderer *r, struct span s)
{
	newline(r);
	mark(r, "<tool_response>");
	newline(r);
	text(r, s);
	newline(r);
	mark(r, "</tool_response>");
}

static bool is_role(const json_t *message, const char *role)
{
	const char *value = json_string_value(json_object_get(message, "role"));

	return value && strcmp(value, role) == 0;
}

static int render_tool(struct renderer *r, size_t index, const json_t *messages,
		       const json_t *message)
{
	const json_t *content = json_object_get(message, "content");
	size_t i;
	json_t *item;

	if (json_is_string(content)) {
		if (index == 0 || !is_role(json_array_get(messages, index - 1), "tool"))
			mark(r, "<|observation|>");
		render_response(r, (struct span){ json_string_value(content),
						  json_string_length(content) });
		return 0;
	}
	if (content && !json_is_array(content))
		return err_set(r->err, -EBADMSG,
			       "messages[%zu].content is %s; a string or a list is wanted", index,
			       type_name(content));
	mark(r, "<|observation|>");
	json_array_foreach((json_t *)content, i, item) {
		const json_t *output = json_object_get(item, "output");
		const json_t *value = output ? output : item;

		if (!json_is_string(value))
			return err_set(r->err, -EBADMSG,
				       "messages[%zu].content[%zu] is %s; a text is wanted", index,
				       i, type_name(value));
		render_response(
			r, (struct span){ json_string_value(value), json_string_length(value) });
	}
	return 0;
}

static bool ends_with(struct span s, const char *suffix)
{
	const size_t len = strlen(suffix);

	return s.len >= len && memcmp(s.data + s.len - len, suffix, len) == 0;
}

static int render_plain(struct renderer *r, size_t index, const json_t *message, bool user)
{
	struct bytes flat = { 0 };
	int e;

	e = flatten(r, index, json_object_get(message, "content"), &flat);
	if (e == 0) {
		mark(r, user ? "<|user|>" : "<|system|>");
		newline(r);
		text(r, bytes_span(&flat));
		if (user && r->quiet && r->l->nothink && !ends_with(bytes_span(&flat), "/nothink"))
			mark(r, "/nothink");
	}
	r->failed = r->failed || flat.failed;
	bytes_deinit(&flat);
	return e;
}

static int render_message(struct renderer *r, size_t index, const json_t *messages)
{
	json_t *message = json_array_get(messages, index), *role, *value;
	const char *key;
	void *next;

	if (!json_is_object(message))
		return err_set(r->err, -EBADMSG, "messages[%zu] is %s; an object is wanted", index,
			       type_name(message));
	role = json_object_get(message, "role");
	if (!json_is_string(role))
		return err_set(r->err, -EBADMSG, "messages[%zu].role is %s; a string is wanted",
			       index, type_name(role));
	json_object_foreach_safe(message, next, key, value) /* a null counts as missing */
		if (json_is_null(value))
			json_object_del(message, key);
	if (is_role(message, "system"))
		return render_plain(r, index, message, false);
	if (is_role(message, "user"))
		return render_plain(r, index, message, true);
	if (is_role(message, "assistant"))
		return render_assistant(r, index, message);
	if (is_role(message, "tool"))
		return render_tool(r, index, messages, message);
	return 0; /* the templates render nothing for other roles */
}

static int check_option(struct renderer *r, const json_t *conversation, const char *key, int *ret)
{
	const json_t *value = json_object_get(conversation, key);

	*ret = -1; /* undefined */
	if (!value || json_is_null(value))
		return 0;
	if (!json_is_boolean(value))
		return err_set(r->err, -EBADMSG, "%s is %s; true or false is wanted", key,
			       type_name(value));
	*ret = json_is_true(value);
	return 0;
}

static int render_all(struct renderer *r, const json_t *conversation, bool *ret_thinking,
		      bool *ret_in_reasoning)
{
	const json_t *messages = json_object_get(conversation, "messages");
	const json_t *tools = json_object_get(conversation, "tools");
	int thinking, clear, prompt, e;

	if (!json_is_array(messages))
		return err_set(r->err, -EBADMSG, "messages is %s; a list is wanted",
			       type_name(messages));
	if (json_array_size(messages) > MESSAGES_MAX)
		return err_set(r->err, -EBADMSG, "messages has %zu entries; at most %d are allowed",
			       json_array_size(messages), MESSAGES_MAX);
	if (tools && !json_is_null(tools) && !json_is_array(tools))
		return err_set(r->err, -EBADMSG, "tools is %s; a list is wanted", type_name(tools));
	if ((e = check_option(r, conversation, "enable_thinking", &thinking)) < 0 ||
	    (e = check_option(r, conversation, "clear_thinking", &clear)) < 0 ||
	    (e = check_option(r, conversation, "add_generation_prompt", &prompt)) < 0)
		return e;
	r->quiet = thinking == 0;
	r->keep_thinking = r->l->bare_close && clear == 0;
	r->last_user = SIZE_MAX;
	for (size_t i = 0; i < json_array_size(messages); i++)
		if (is_role(json_array_get(messages, i), "user"))
			r->last_user = i;

	mark(r, "[gMASK]");
	mark(r, "<sop>");
	if (json_array_size(tools))
		render_tools(r, tools);
	for (size_t i = 0; i < json_array_size(messages); i++) {
		e = render_message(r, i, messages);
		if (e < 0)
			return e;
	}
	*ret_thinking = !r->quiet;
	*ret_in_reasoning = false;
	if (prompt != 1)
		return 0;
	mark(r, "<|assistant|>");
	if (r->l->bare_close) {
		mark(r, r->quiet ? "</think>" : "<think>");
		*ret_in_reasoning = !r->quiet;
	} else if (r->quiet) {
		literal(r, "\n");
		mark(r, "<think>");
		mark(r, "</think>");
	}
	return 0;
}

int chat_render(enum chat_layout layout, json_t *conversation, struct chat_rendering *ret,
		struct err *err)
{
	struct renderer r = { .err = err };
	bool thinking = true, in_reasoning = false;
	int e;

	if (layout == CHAT_NONE)
		return err_set(err, -ENOTSUP,
			       "the model has no chat template that steamd knows; use complete");
	if (!json_is_object(conversation))
		return err_set(err, -EBADMSG,
			       "the conversation is %s; an object with messages is wanted",
			       type_name(conversation));
	r.l = &layouts[layout];
	e = render_all(&r, conversation, &thinking, &in_reasoning);
	if (e == 0 && (r.failed || r.text.failed))
		e = -ENOMEM;
	if (e < 0) {
		bytes_deinit(&r.text);
		bytes_deinit(&r.string_args);
		free(r.pieces);
		return e;
	}
	*ret = (struct chat_rendering){
		r.text.at, r.text.n,	 r.pieces,	   r.n_pieces,
		thinking,  in_reasoning, r.string_args.at, r.string_args.n
	};
	return 0;
}

int chat_render_text(enum chat_layout layout, struct span conversation, struct chat_rendering *ret,
		     struct err *err)
{
	json_t *value = NULL;
	int e;

	if (layout == CHAT_NONE)
		return chat_render(layout, NULL, ret, err);
	e = pyjson_load(conversation, &value, err);
	if (e < 0)
		return e == -EBADMSG ? err_wrap(err, e, "the conversation") : e;
	e = chat_render(layout, value, ret, err);
	json_decref(value);
	return e;
}
