/* Messages and items, checked and put into the one form that steamd takes. */
#include "client/gateway/conversation.h"

#include <errno.h>
#include <string.h>

static const char *text_at(const json_t *object, const char *key)
{
	return json_string_value(json_object_get(object, key));
}

static bool is_one_of(const char *word, const char *const *words, size_t n)
{
	for (size_t i = 0; word && i < n; i++)
		if (strcmp(word, words[i]) == 0)
			return true;
	return false;
}

/* A content as one text; *@ret NULL: there is none. @where: "messages[3]" */
static int flatten(const json_t *content, const char *where, json_t **ret, struct refusal *no)
{
	static const char *const texts[] = { "text", "input_text", "output_text", "summary_text",
					     "reasoning_text" };
	struct jsontext all = { 0 };
	char param[128];
	json_t *part;
	size_t i;

	*ret = NULL;
	if (!content || json_is_null(content))
		return 0;
	snprintf(param, sizeof(param), "%s.content", where);
	if (json_is_string(content)) {
		*ret = json_incref((json_t *)content);
		return 0;
	}
	if (!json_is_array(content))
		return refusal_of_field(no, param,
					"%s is %s; a string or a list of parts is wanted", param,
					fields_type(content));
	json_array_foreach((json_t *)content, i, part) {
		const char *type = text_at(part, "type");
		const json_t *text = json_is_string(part) ? part : json_object_get(part, "text");

		snprintf(param, sizeof(param), "%s.content[%zu]", where, i);
		if (type && strcmp(type, "refusal") == 0)
			text = json_object_get(part, "refusal");
		else if (!json_is_string(part) && !is_one_of(type, texts, ARRAY_SIZE(texts))) {
			jsontext_deinit(&all);
			return refusal_of_field(
				no, param, "%s is of type '%.32s'; this model reads text alone",
				param, type ? type : "?");
		}
		if (!json_is_string(text)) {
			jsontext_deinit(&all);
			return refusal_of_field(no, param,
						"%s has a text that is %s; a string is "
						"wanted",
						param, fields_type(text));
		}
		jsontext_add(&all, json_string_value(text), json_string_length(text));
	}
	*ret = json_stringn(all.at ? all.at : "", all.n);
	jsontext_deinit(&all);
	return *ret ? 0 : refusal_set(no, 503, "no-memory", NULL, "out of memory");
}

static int check_calls(const json_t *calls, const char *where, struct refusal *no)
{
	char param[128];
	json_t *call;
	size_t i;

	if (!calls || json_is_null(calls))
		return 0;
	snprintf(param, sizeof(param), "%s.tool_calls", where);
	if (!json_is_array(calls))
		return refusal_of_field(no, param, "%s is %s; a list is wanted", param,
					fields_type(calls));
	json_array_foreach((json_t *)calls, i, call) {
		const json_t *function = json_object_get(call, "function");

		snprintf(param, sizeof(param), "%s.tool_calls[%zu]", where, i);
		if (!json_is_object(function) || !text_at(function, "name"))
			return refusal_of_field(no, param,
						"%s has no function with a name; {\"function\": "
						"{\"name\": …}} is wanted",
						param);
	}
	return 0;
}

static int add_message(json_t *to, const json_t *message, size_t i, struct refusal *no)
{
	static const char *const roles[] = { "system", "developer", "user", "assistant", "tool" };
	const char *role = text_at(message, "role");
	json_t *copy, *content;
	char where[48];

	snprintf(where, sizeof(where), "messages[%zu]", i);
	if (!json_is_object(message))
		return refusal_of_field(no, where, "%s is %s; an object is wanted", where,
					fields_type(message));
	if (!is_one_of(role, roles, ARRAY_SIZE(roles)))
		return refusal_of_field(no, where,
					"%s.role is '%.32s'; system, developer, user, assistant or "
					"tool is wanted",
					where, role ? role : "not there");
	if (flatten(json_object_get(message, "content"), where, &content, no) < 0)
		return -EINVAL;
	if (!content && strcmp(role, "assistant") != 0)
		return refusal_of_field(no, where, "%s has no content", where);
	if (check_calls(json_object_get(message, "tool_calls"), where, no) < 0) {
		json_decref(content);
		return -EINVAL;
	}
	copy = json_copy((json_t *)message);
	if (strcmp(role, "developer") == 0)
		json_object_set_new(copy, "role", json_string("system"));
	if (content)
		json_object_set_new(copy, "content", content);
	else
		json_object_set_new(copy, "content", json_string(""));
	json_array_append_new(to, copy);
	return 0;
}

int conversation_add_chat(json_t *to, const json_t *messages, struct refusal *no)
{
	json_t *message;
	size_t i;
	int r = 0;

	if (json_array_size(messages) == 0)
		return refusal_of_field(no, "messages",
					"messages is empty; one is wanted at least");
	json_array_foreach((json_t *)messages, i, message) {
		r = add_message(to, message, i, no);
		if (r < 0)
			break;
	}
	return r;
}

/* Items of Responses: what the assistant said in several of them is one message. */
struct items {
	json_t *to;
	json_t *assistant; /* that more may be added to; borrowed; NULL: none */
	size_t i;
	struct refusal *no;
};

static json_t *assistant_of(struct items *s)
{
	if (s->assistant)
		return s->assistant;
	s->assistant = json_pack("{s:s, s:s}", "role", "assistant", "content", "");
	json_array_append_new(s->to, s->assistant);
	return s->assistant;
}

static int add_item_message(struct items *s, const json_t *item, const char *where)
{
	static const char *const roles[] = { "system", "developer", "user", "assistant" };
	const char *role = text_at(item, "role");
	json_t *content;

	if (!is_one_of(role, roles, ARRAY_SIZE(roles)))
		return refusal_of_field(s->no, where,
					"%s.role is '%.32s'; system, developer, user or assistant "
					"is wanted",
					where, role ? role : "not there");
	if (flatten(json_object_get(item, "content"), where, &content, s->no) < 0)
		return -EINVAL;
	if (!content)
		return refusal_of_field(s->no, where, "%s has no content", where);
	if (strcmp(role, "assistant") == 0) {
		const char *before = text_at(assistant_of(s), "content");

		/* what comes behind calls or another text begins a message of its own */
		if (json_object_get(s->assistant, "tool_calls") || (before && *before)) {
			s->assistant = NULL;
			assistant_of(s);
		}
		json_object_set_new(s->assistant, "content", content);
		return 0;
	}
	s->assistant = NULL;
	json_array_append_new(s->to, json_pack("{s:s, s:o}", "role",
					       strcmp(role, "user") == 0 ? "user" : "system",
					       "content", content));
	return 0;
}

static int add_call(struct items *s, const json_t *item, const char *where)
{
	const json_t *name = json_object_get(item, "name"),
		     *arguments = json_object_get(item, "arguments");
	json_t *message, *calls;

	if (!json_is_string(name) || !json_is_string(arguments))
		return refusal_of_field(s->no, where, "%s lacks a name or arguments, both strings",
					where);
	message = assistant_of(s);
	calls = json_object_get(message, "tool_calls");
	if (!calls) {
		calls = json_array();
		json_object_set_new(message, "tool_calls", calls);
	}
	json_array_append_new(calls, json_pack("{s:O?, s:s, s:{s:O, s:O}}", "id",
					       json_object_get(item, "call_id"), "type", "function",
					       "function", "name", name, "arguments", arguments));
	return 0;
}

static int add_output(struct items *s, const json_t *item, const char *where)
{
	const json_t *output = json_object_get(item, "output");
	json_t *text;

	if (flatten(output, where, &text, s->no) < 0)
		return -EINVAL;
	if (!text)
		return refusal_of_field(s->no, where, "%s has no output", where);
	s->assistant = NULL;
	json_array_append_new(s->to, json_pack("{s:s, s:O?, s:o}", "role", "tool", "tool_call_id",
					       json_object_get(item, "call_id"), "content", text));
	return 0;
}

/* Of its own, or handed back by a client that stores nothing here. */
static int add_reasoning(struct items *s, const json_t *item, const char *where)
{
	json_t *text;

	if (flatten(json_object_get(item, "content"), where, &text, s->no) < 0)
		return -EINVAL;
	s->assistant = NULL;
	if (text && json_string_length(text) > 0)
		json_object_set(assistant_of(s), "reasoning_content", text);
	json_decref(text);
	return 0;
}

static int add_item(struct items *s, const json_t *item)
{
	const char *type = text_at(item, "type");
	char where[48];

	snprintf(where, sizeof(where), "input[%zu]", s->i);
	if (!json_is_object(item))
		return refusal_of_field(s->no, where, "%s is %s; an object is wanted", where,
					fields_type(item));
	if (!type || strcmp(type, "message") == 0)
		return add_item_message(s, item, where);
	if (strcmp(type, "function_call") == 0)
		return add_call(s, item, where);
	if (strcmp(type, "function_call_output") == 0)
		return add_output(s, item, where);
	if (strcmp(type, "reasoning") == 0)
		return add_reasoning(s, item, where);
	return refusal_of_field(s->no, where,
				"%s is of type '%.32s'; message, function_call, "
				"function_call_output or reasoning is wanted",
				where, type);
}

int conversation_add_items(json_t *to, const json_t *input, struct refusal *no)
{
	struct items s = { .to = to, .no = no };
	json_t *item;
	int r = 0;

	if (json_is_string(input)) {
		json_array_append_new(to,
				      json_pack("{s:s, s:O}", "role", "user", "content", input));
		return 0;
	}
	if (!json_is_array(input))
		return refusal_of_field(no, "input",
					"input is %s; a string or a list of items is wanted",
					fields_type(input));
	if (json_array_size(input) == 0)
		return refusal_of_field(no, "input", "input is empty; one item is wanted at least");
	json_array_foreach((json_t *)input, s.i, item) {
		r = add_item(&s, item);
		if (r < 0)
			break;
	}
	return r;
}

int conversation_check_tools(const json_t *tools, struct refusal *no)
{
	char where[48];
	json_t *tool;
	size_t i;

	json_array_foreach((json_t *)tools, i, tool) {
		const char *type = text_at(tool, "type");

		snprintf(where, sizeof(where), "tools[%zu]", i);
		if (!type || strcmp(type, "function") != 0 ||
		    !text_at(json_object_get(tool, "function"), "name"))
			return refusal_of_field(no, where,
						"%s is of type '%.32s'; {\"type\": \"function\", "
						"\"function\": {\"name\": …}} is wanted",
						where, type ? type : "?");
	}
	return 0;
}

int conversation_tools(const json_t *tools, json_t **ret, struct refusal *no)
{
	json_t *list = json_array_size(tools) ? json_array() : NULL, *tool;
	char where[48];
	size_t i;

	json_array_foreach((json_t *)tools, i, tool) {
		const char *type = text_at(tool, "type");
		json_t *function = json_object(), *value;

		snprintf(where, sizeof(where), "tools[%zu]", i);
		if (!type || strcmp(type, "function") != 0 || !text_at(tool, "name")) {
			json_decref(function);
			json_decref(list);
			return refusal_of_field(no, where,
						"%s is of type '%.32s'; a function with a name is "
						"wanted",
						where, type ? type : "?");
		}
		json_object_set(function, "name", json_object_get(tool, "name"));
		if ((value = json_object_get(tool, "description")) && !json_is_null(value))
			json_object_set(function, "description", value);
		if ((value = json_object_get(tool, "parameters")) && !json_is_null(value))
			json_object_set(function, "parameters", value);
		json_array_append_new(
			list, json_pack("{s:s, s:o}", "type", "function", "function", function));
	}
	*ret = list;
	return 0;
}

int conversation_write(json_t *messages, const json_t *tools, int think, const json_t *extra,
		       char **ret, size_t *ret_len)
{
	struct jsontext t = { 0 };

	jsontext_put(&t, "{\"messages\":");
	jsontext_value(&t, messages);
	jsontext_put(&t, ",\"tools\":");
	jsontext_value(&t, tools);
	jsontext_format(&t, ",\"enable_thinking\":%s",
			think < 0 ? "null"
			: think	  ? "true"
				  : "false");
	if (extra) {
		jsontext_put(&t, ",\"response\":");
		jsontext_value(&t, extra);
	}
	jsontext_put(&t, "}");
	if (t.failed) {
		jsontext_deinit(&t);
		return -ENOMEM;
	}
	*ret = t.at;
	*ret_len = t.n;
	return 0;
}
