/* The table of fields and how each is taken. */
#include "client/gateway/fields.h"

#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

#define CONTAINER_BYTES 256 /* what jansson takes for an empty list or object, … */
#define VALUE_BYTES 96	    /* … for what stands in one, its key included, beside the text */

struct field;
typedef int (*take_fn)(struct fields *f, const struct field *row, const json_t *value,
		       struct refusal *no);

struct field {
	const char *name;
	unsigned apis;
	take_fn take; /* NULL: it has no meaning here */
	size_t at;
	double min, max;
};

const char *fields_type(const json_t *value)
{
	static const char *const all[] = { "an object", "a list", "a string", "an integer",
					   "a number",	"true",	  "false",    "null" };

	return value ? all[json_typeof(value)] : "missing";
}

static int wanted(const struct field *row, const json_t *value, const char *what,
		  struct refusal *no)
{
	return refusal_of_field(no, row->name, "%s is %s; %s is wanted", row->name,
				fields_type(value), what);
}

static int take_number(struct fields *f, const struct field *row, const json_t *value,
		       struct refusal *no)
{
	const double d = json_number_value(value);

	if (!json_is_number(value))
		return wanted(row, value, "a number", no);
	if (!(d >= row->min && d <= row->max))
		return refusal_of_field(no, row->name, "%s is %g; %g to %g is possible", row->name,
					d, row->min, row->max);
	*(double *)((char *)f + row->at) = d;
	return 0;
}

static int take_count(struct fields *f, const struct field *row, const json_t *value,
		      struct refusal *no)
{
	const double d = json_number_value(value);

	/* some languages send 5.0 for 5 */
	if (!json_is_number(value) || d != floor(d))
		return wanted(row, value, "a whole number", no);
	if (!(d >= row->min && d <= row->max))
		return refusal_of_field(no, row->name, "%s is %.15g; %.15g to %.15g is possible",
					row->name, d, row->min, row->max);
	*(uint32_t *)((char *)f + row->at) = (uint32_t)d;
	return 0;
}

/* -1 is how others say that it is off. */
static int take_top_k(struct fields *f, const struct field *row, const json_t *value,
		      struct refusal *no)
{
	if (json_is_integer(value) && json_integer_value(value) == -1) {
		f->g.top_k = 0;
		return 0;
	}
	return take_count(f, row, value, no);
}

static int take_seed(struct fields *f, const struct field *row, const json_t *value,
		     struct refusal *no)
{
	if (!json_is_integer(value))
		return wanted(row, value, "a whole number", no);
	f->g.seed = (uint64_t)json_integer_value(value);
	f->g.has_seed = 1;
	return 0;
}

static int take_bool(struct fields *f, const struct field *row, const json_t *value,
		     struct refusal *no)
{
	if (!json_is_boolean(value))
		return wanted(row, value, "true or false", no);
	*(bool *)((char *)f + row->at) = json_is_true(value);
	return 0;
}

static int take_string(struct fields *f, const struct field *row, const json_t *value,
		       struct refusal *no)
{
	if (!json_is_string(value))
		return wanted(row, value, "a string", no);
	if (strlen(json_string_value(value)) != json_string_length(value))
		return refusal_of_field(no, row->name, "%s holds a NUL", row->name);
	*(const char **)((char *)f + row->at) = json_string_value(value);
	return 0;
}

static int take_value(struct fields *f, const struct field *row, const json_t *value,
		      struct refusal *no)
{
	(void)no;
	*(const json_t **)((char *)f + row->at) = value;
	return 0;
}

static int take_list(struct fields *f, const struct field *row, const json_t *value,
		     struct refusal *no)
{
	return json_is_array(value) ? take_value(f, row, value, no)
				    : wanted(row, value, "a list", no);
}

static int take_object(struct fields *f, const struct field *row, const json_t *value,
		       struct refusal *no)
{
	return json_is_object(value) ? take_value(f, row, value, no)
				     : wanted(row, value, "an object", no);
}

static int take_ignore_eos(struct fields *f, const struct field *row, const json_t *value,
			   struct refusal *no)
{
	if (!json_is_boolean(value))
		return wanted(row, value, "true or false", no);
	f->g.ignore_eos = json_is_true(value);
	return 0;
}

static int add_stop(struct fields *f, const struct field *row, const json_t *value,
		    struct refusal *no)
{
	if (!json_is_string(value))
		return wanted(row, value, "a string or a list of strings", no);
	if (json_string_length(value) == 0 ||
	    strlen(json_string_value(value)) != json_string_length(value))
		return refusal_of_field(no, row->name,
					"stop has a string that is empty or holds a NUL");
	if (f->g.n_stop == FIELDS_STOPS_MAX)
		return refusal_of_field(no, row->name, "stop has more than %d strings",
					FIELDS_STOPS_MAX);
	f->stops[f->g.n_stop++] = json_string_value(value);
	f->g.stop = f->stops;
	return 0;
}

static int take_stop(struct fields *f, const struct field *row, const json_t *value,
		     struct refusal *no)
{
	size_t i;
	json_t *one;
	int r = 0;

	if (!json_is_array(value))
		return add_stop(f, row, value, no);
	json_array_foreach((json_t *)value, i, one)
		if (r == 0)
			r = add_stop(f, row, one, no);
	return r;
}

static int take_bias(struct fields *f, const struct field *row, const json_t *value,
		     struct refusal *no)
{
	const size_t n = json_object_size(value);
	const char *key;
	json_t *one;

	if (!json_is_object(value))
		return wanted(row, value, "an object of token ids and numbers", no);
	if (n > FIELDS_BIAS_MAX)
		return refusal_of_field(no, row->name,
					"logit_bias has %zu tokens; at most %d are "
					"possible",
					n, FIELDS_BIAS_MAX);
	f->bias_ids = n ? calloc(n, sizeof(*f->bias_ids) + sizeof(*f->bias_values)) : NULL;
	if (n && !f->bias_ids)
		return refusal_set(no, 503, "no-memory", NULL, "out of memory");
	f->bias_values = (float *)(f->bias_ids + n);
	json_object_foreach((json_t *)value, key, one) {
		char *end;
		const unsigned long long id = strtoull(key, &end, 10);

		if (end == key || *end || key[0] == '-' || id > UINT32_MAX)
			return refusal_of_field(no, row->name,
						"logit_bias has the key '%.32s'; a token's id is "
						"wanted",
						key);
		if (!json_is_number(one))
			return wanted(row, one, "a number for each token", no);
		f->bias_ids[f->g.n_bias] = (uint32_t)id;
		f->bias_values[f->g.n_bias++] = (float)json_number_value(one);
	}
	f->g.bias_ids = f->bias_ids;
	f->g.bias_values = f->bias_values;
	return 0;
}

/* How many alternatives; their token's own is told with them, as it is with 0. */
static int take_text_logprobs(struct fields *f, const struct field *row, const json_t *value,
			      struct refusal *no)
{
	f->logprobs = true;
	return take_count(f, row, value, no);
}

static int take_stream_options(struct fields *f, const struct field *row, const json_t *value,
			       struct refusal *no)
{
	const json_t *usage = json_object_get(value, "include_usage");

	if (!json_is_object(value))
		return wanted(row, value, "an object", no);
	if (usage && !json_is_null(usage) && !json_is_boolean(usage))
		return refusal_of_field(
			no, "stream_options.include_usage",
			"stream_options.include_usage is %s; true or false is wanted",
			fields_type(usage));
	f->include_usage = json_is_true(usage);
	return 0;
}

static int take_effort(struct fields *f, const struct field *row, const json_t *value,
		       struct refusal *no)
{
	static const char *const off[] = { "none", "minimal" }, *const on[] = { "low", "medium",
										"high", "xhigh",
										"max" };
	const char *word = json_string_value(value);

	for (size_t i = 0; word && i < ARRAY_SIZE(off); i++)
		if (strcmp(word, off[i]) == 0)
			f->think = 0;
	for (size_t i = 0; word && i < ARRAY_SIZE(on); i++)
		if (strcmp(word, on[i]) == 0)
			f->think = 1;
	if (f->think < 0)
		return refusal_of_field(no, row->name,
					"%s is no effort; none, minimal, low, medium or high is "
					"wanted (the first two do not think)",
					row->name);
	f->effort = word;
	return 0;
}

static int take_reasoning(struct fields *f, const struct field *row, const json_t *value,
			  struct refusal *no)
{
	static const struct field effort = { .name = "reasoning.effort" };
	const json_t *word = json_object_get(value, "effort"),
		     *enabled = json_object_get(value, "enabled");

	if (!json_is_object(value))
		return wanted(row, value, "an object", no);
	if (json_is_boolean(enabled))
		f->think = json_is_true(enabled);
	return word && !json_is_null(word) ? take_effort(f, &effort, word, no) : 0;
}

static int take_thinking(struct fields *f, const struct field *row, const json_t *value,
			 struct refusal *no)
{
	const char *type = json_string_value(json_object_get(value, "type"));

	if (json_is_boolean(value)) {
		f->think = json_is_true(value);
		return 0;
	}
	if (!type || (strcmp(type, "enabled") != 0 && strcmp(type, "disabled") != 0))
		return wanted(row, value, "true, false, or {\"type\": \"enabled\" or \"disabled\"}",
			      no);
	f->think = strcmp(type, "enabled") == 0;
	return 0;
}

static int take_template(struct fields *f, const struct field *row, const json_t *value,
			 struct refusal *no)
{
	const json_t *think = json_object_get(value, "enable_thinking");

	if (!json_is_object(value))
		return wanted(row, value, "an object", no);
	if (think && !json_is_boolean(think))
		return refusal_of_field(no, "chat_template_kwargs.enable_thinking",
					"chat_template_kwargs.enable_thinking is %s; true or false "
					"is wanted",
					fields_type(think));
	if (think)
		f->think = json_is_true(think);
	return 0;
}

/* Constrained decoding is not there yet: what needs it is refused, never half done. */
static int take_format(struct fields *f, const struct field *row, const json_t *value,
		       struct refusal *no)
{
	const char *type = json_string_value(json_object_get(value, "type"));

	(void)f;
	if (!type)
		return wanted(row, value, "an object with a type", no);
	if (strcmp(type, "text") == 0)
		return 0;
	return refusal_set(no, 400, REFUSAL_NOT_YET, row->name,
			   "%s is '%.32s', which steamd cannot promise yet; text is possible",
			   row->name, type);
}

static int take_include(struct fields *f, const struct field *row, const json_t *value,
			struct refusal *no)
{
	json_t *one;
	size_t i;

	if (!json_is_array(value))
		return wanted(row, value, "a list", no);
	json_array_foreach((json_t *)value, i, one) {
		const char *word = json_string_value(one);

		if (!word)
			return wanted(row, one, "a list of strings", no);
		if (strcmp(word, "message.output_text.logprobs") == 0)
			f->logprobs = true;
	}
	return 0;
}

static int take_text(struct fields *f, const struct field *row, const json_t *value,
		     struct refusal *no)
{
	static const struct field inner = { .name = "text.format" };
	const json_t *format = json_object_get(value, "format");

	if (!json_is_object(value))
		return wanted(row, value, "an object", no);
	return format && !json_is_null(format) ? take_format(f, &inner, format, no) : 0;
}

static int take_tool_choice(struct fields *f, const struct field *row, const json_t *value,
			    struct refusal *no)
{
	const char *word = json_string_value(value);

	f->tool_choice = value;
	if (word && strcmp(word, "auto") == 0)
		return 0;
	if (word && strcmp(word, "none") == 0) {
		f->no_tools = true;
		return 0;
	}
	if (!json_is_object(value) && !(word && strcmp(word, "required") == 0))
		return wanted(row, value, "auto, none, required or an object", no);
	return refusal_set(no, 400, REFUSAL_NOT_YET, row->name,
			   "tool_choice demands a call, which steamd cannot promise yet; auto and "
			   "none are possible");
}

static int take_parallel(struct fields *f, const struct field *row, const json_t *value,
			 struct refusal *no)
{
	if (!json_is_boolean(value))
		return wanted(row, value, "true or false", no);
	f->one_call = json_is_false(value);
	return 0;
}

static int take_modalities(struct fields *f, const struct field *row, const json_t *value,
			   struct refusal *no)
{
	const char *first = json_string_value(json_array_get(value, 0));

	(void)f;
	if (json_array_size(value) == 1 && first && strcmp(first, "text") == 0)
		return 0;
	return wanted(row, value, "[\"text\"]", no);
}

static const char *possible_of(const struct field *row);

/* What cannot be done is said, as long as it is asked for. */
static int refuse_unless_empty(struct fields *f, const struct field *row, const json_t *value,
			       struct refusal *no)
{
	(void)f;
	if (json_is_false(value) || (json_is_string(value) && json_string_length(value) == 0) ||
	    (json_is_array(value) && json_array_size(value) == 0))
		return 0;
	return refusal_of_field(no, row->name, "%s is not possible with steamd unless it is %s",
				row->name, possible_of(row));
}

#define AT(member) offsetof(struct fields, member)
#define CHAT FIELDS_CHAT
#define TEXT FIELDS_TEXT
#define RESPONSES FIELDS_RESPONSES
#define ALL FIELDS_ALL
static const struct field table[] = {
	{ "model", ALL, take_string, AT(g.model), 0, 0 },
	{ "messages", CHAT, take_list, AT(messages), 0, 0 },
	{ "prompt", TEXT, take_value, AT(prompt), 0, 0 },
	{ "input", RESPONSES, take_value, AT(input), 0, 0 },
	{ "instructions", RESPONSES, take_string, AT(instructions), 0, 0 },
	{ "previous_response_id", RESPONSES, take_string, AT(previous), 0, 0 },
	{ "store", RESPONSES, take_bool, AT(store), 0, 0 },
	{ "metadata", RESPONSES, take_object, AT(metadata), 0, 0 },
	{ "background", RESPONSES, refuse_unless_empty, 0, 0, 0 },
	{ "conversation", RESPONSES, refuse_unless_empty, 0, 0, 0 },
	{ "text", RESPONSES, take_text, 0, 0, 0 },
	{ "include", RESPONSES, take_include, 0, 0, 0 },
	{ "temperature", ALL, take_number, AT(g.temperature), 0, 100 },
	{ "top_p", ALL, take_number, AT(g.top_p), 0, 1 },
	{ "top_k", ALL, take_top_k, AT(g.top_k), 0, INT32_MAX },
	{ "min_p", ALL, take_number, AT(g.min_p), 0, 1 },
	{ "repetition_penalty", ALL, take_number, AT(g.repetition_penalty), 0.01, 100 },
	{ "frequency_penalty", ALL, take_number, AT(g.frequency_penalty), -100, 100 },
	{ "presence_penalty", ALL, take_number, AT(g.presence_penalty), -100, 100 },
	{ "logit_bias", ALL, take_bias, 0, 0, 0 },
	{ "seed", ALL, take_seed, 0, 0, 0 },
	{ "stop", ALL, take_stop, 0, 0, 0 },
	/* the newer names come later, and win */
	{ "max_tokens", CHAT | TEXT, take_count, AT(g.max_tokens), 1, INT32_MAX },
	{ "max_completion_tokens", CHAT, take_count, AT(g.max_tokens), 1, INT32_MAX },
	{ "max_output_tokens", RESPONSES, take_count, AT(g.max_tokens), 1, INT32_MAX },
	{ "min_tokens", ALL, take_count, AT(g.min_tokens), 0, INT32_MAX },
	{ "ignore_eos", ALL, take_ignore_eos, 0, 0, 0 },
	{ "logprobs", CHAT, take_bool, AT(logprobs), 0, 0 },
	{ "logprobs", TEXT, take_text_logprobs, AT(g.n_top), 0, 20 },
	{ "top_logprobs", CHAT | RESPONSES, take_count, AT(g.n_top), 0, 20 },
	{ "n", CHAT | TEXT, take_count, AT(n), 1, FIELDS_CHOICES_MAX },
	{ "best_of", TEXT, take_count, AT(best_of), 1, 20 },
	{ "echo", TEXT, take_bool, AT(echo), 0, 0 },
	{ "suffix", TEXT, refuse_unless_empty, 0, 0, 0 },
	{ "stream", ALL, take_bool, AT(stream), 0, 0 },
	{ "stream_options", ALL, take_stream_options, 0, 0, 0 },
	{ "tools", CHAT | RESPONSES, take_list, AT(tools), 0, 0 },
	{ "tool_choice", CHAT | RESPONSES, take_tool_choice, 0, 0, 0 },
	{ "parallel_tool_calls", CHAT | RESPONSES, take_parallel, 0, 0, 0 },
	{ "functions", CHAT, refuse_unless_empty, 0, 0, 0 },
	{ "function_call", CHAT, refuse_unless_empty, 0, 0, 0 },
	{ "response_format", CHAT, take_format, 0, 0, 0 },
	{ "modalities", CHAT, take_modalities, 0, 0, 0 },
	{ "audio", CHAT, refuse_unless_empty, 0, 0, 0 },
	{ "web_search_options", CHAT, refuse_unless_empty, 0, 0, 0 },
	{ "reasoning_effort", CHAT, take_effort, 0, 0, 0 },
	{ "reasoning", CHAT | RESPONSES, take_reasoning, 0, 0, 0 },
	{ "thinking", CHAT, take_thinking, 0, 0, 0 },
	{ "enable_thinking", CHAT, take_thinking, 0, 0, 0 },
	{ "chat_template_kwargs", CHAT | RESPONSES, take_template, 0, 0, 0 },
	{ "user", ALL, NULL, 0, 0, 0 },
	{ "safety_identifier", ALL, NULL, 0, 0, 0 },
	{ "prompt_cache_key", ALL, NULL, 0, 0, 0 },
	{ "prompt_cache_retention", ALL, NULL, 0, 0, 0 },
	{ "service_tier", ALL, NULL, 0, 0, 0 },
	{ "store", CHAT | TEXT, NULL, 0, 0, 0 },
	{ "metadata", CHAT | TEXT, NULL, 0, 0, 0 },
	{ "prediction", CHAT, NULL, 0, 0, 0 },
	{ "verbosity", CHAT, NULL, 0, 0, 0 },
	{ "truncation", RESPONSES, NULL, 0, 0, 0 },
	{ "max_tool_calls", RESPONSES, NULL, 0, 0, 0 },
};

/* Of these only a part is possible; what else is asked of them is refused. */
static const struct {
	const char *name;
	unsigned apis;
	const char *possible;
} limited[] = {
	{ "response_format", CHAT, "of type text: JSON cannot be promised yet" },
	{ "text", RESPONSES, "with a format of type text: JSON cannot be promised yet" },
	{ "tool_choice", CHAT | RESPONSES, "auto or none: a call cannot be promised yet" },
	{ "modalities", CHAT, "[\"text\"]" },
	{ "best_of", TEXT, "what n is: nothing is chosen among more" },
	{ "echo", TEXT, "true for texts, neither with logprobs nor for token ids" },
	{ "suffix", TEXT, "empty: the model does not fill in what is missing in the middle" },
	{ "functions", CHAT, "empty: tools have taken their place" },
	{ "function_call", CHAT, "empty: tool_choice has taken its place" },
	{ "audio", CHAT, "empty: the model reads and writes text" },
	{ "web_search_options", CHAT, "empty: the model does not search" },
	{ "background", RESPONSES, "false: an answer ends with its connection" },
	{ "conversation", RESPONSES, "empty: previous_response_id goes on from a response" },
};

/* NULL: it is possible as it is. */
static const char *possible_of(const struct field *row)
{
	for (size_t i = 0; i < ARRAY_SIZE(limited); i++)
		if ((limited[i].apis & row->apis) && strcmp(limited[i].name, row->name) == 0)
			return limited[i].possible;
	return NULL;
}

static const struct field *find(const char *name, enum fields_api api)
{
	for (size_t i = 0; i < ARRAY_SIZE(table); i++)
		if ((table[i].apis & api) && strcmp(table[i].name, name) == 0)
			return &table[i];
	return NULL;
}

/* The most that the values in @text may take, beside their text: of lists and objects, and of what is in them. */
static size_t weigh(const char *text, size_t n)
{
	bool in_string = false;
	size_t bytes = 0;

	for (size_t i = 0; i < n; i++) {
		const char c = text[i];

		if (in_string && c == '\\')
			i++;
		else if (c == '"')
			in_string = !in_string;
		else if (!in_string && (c == '{' || c == '['))
			bytes += CONTAINER_BYTES;
		else if (!in_string && (c == ',' || c == ':'))
			bytes += VALUE_BYTES;
	}
	return bytes;
}

int fields_parse(const char *text, size_t n, json_t **ret, struct refusal *no)
{
	const size_t weight = weigh(text, n);
	json_error_t error;
	json_t *body;

	if (weight > FIELDS_VALUES_BYTES)
		return refusal_set(no, 400, "too-long", NULL,
				   "the body's lists, objects and numbers would take %zu bytes; at "
				   "most %u are allowed",
				   weight, FIELDS_VALUES_BYTES);
	body = json_loadb(text ? text : "", n, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &error);
	if (!body)
		return refusal_set(no, 400, REFUSAL_BAD, NULL,
				   "the body is no JSON: line %d, column %d: %s", error.line,
				   error.column, error.text);
	if (!json_is_object(body)) {
		refusal_set(no, 400, REFUSAL_BAD, NULL, "the body is %s; an object is wanted",
			    fields_type(body));
		json_decref(body);
		return -EINVAL;
	}
	*ret = body;
	return 0;
}

void fields_deinit(struct fields *f)
{
	json_decref(f->body);
	free(f->bias_ids);
	memset(f, 0, sizeof(*f));
}

void fields_drop_prompt(struct fields *f)
{
	static const char *const names[] = { "messages", "tools", "prompt" };

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		json_object_del(f->body, names[i]);
	f->messages = f->tools = f->prompt = NULL;
}

static int check_together(struct fields *f, enum fields_api api, struct refusal *no)
{
	if (f->g.n_top > 0 && api == RESPONSES)
		f->logprobs = true;
	f->g.logprobs = f->logprobs;
	if (f->g.n_top > 0 && api == CHAT && !f->logprobs)
		return refusal_of_field(no, "top_logprobs", "top_logprobs goes with logprobs");
	if (f->best_of > 0 && f->best_of != f->n)
		return refusal_of_field(no, "best_of",
					"best_of is %u and n is %u; nothing is chosen among more "
					"than what is returned",
					f->best_of, f->n);
	if (api == CHAT && !f->messages)
		return refusal_of_field(no, "messages", "messages is missing; a list is wanted");
	if (api == TEXT && !f->prompt)
		return refusal_of_field(no, "prompt",
					"prompt is missing; a string, a list of "
					"strings, or token ids are wanted");
	if (api == RESPONSES && !f->input)
		return refusal_of_field(no, "input",
					"input is missing; a string or a list of items is wanted");
	if (f->no_tools)
		f->tools = NULL;
	return 0;
}

int fields_read(struct fields *f, enum fields_api api, const char *text, size_t n,
		bool ignore_unknown, struct refusal *no)
{
	*f = (struct fields){ .n = 1, .think = -1, .store = true };
	steamd_generate_init(&f->g);
	if (fields_parse(text, n, &f->body, no) < 0)
		return -EINVAL;
	f->held_bytes = 2 * n + weigh(text, n);
	/* by row, not as they came: that decides between two names of one thing */
	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		const json_t *value = json_object_get(f->body, table[i].name);

		if (!(table[i].apis & api) || !table[i].take || !value || json_is_null(value))
			continue;
		if (table[i].take(f, &table[i], value, no) < 0)
			return -EINVAL;
	}
	for (void *it = json_object_iter(f->body); it && !ignore_unknown;
	     it = json_object_iter_next(f->body, it))
		if (!find(json_object_iter_key(it), api))
			return refusal_of_field(
				no, json_object_iter_key(it),
				"there is no field '%.64s'; IgnoreUnknownFields=yes "
				"would pass over it",
				json_object_iter_key(it));
	return check_together(f, api, no);
}

void fields_print_ignored(FILE *f)
{
	static const struct {
		enum fields_api api;
		const char *name;
	} apis[] = { { CHAT, "chat completions" },
		     { TEXT, "completions" },
		     { RESPONSES, "responses" } };

	for (size_t k = 0; k < ARRAY_SIZE(apis); k++) {
		fprintf(f, "  %s:", apis[k].name);
		for (size_t i = 0; i < ARRAY_SIZE(table); i++)
			if (!table[i].take && (table[i].apis & apis[k].api))
				fprintf(f, " %s", table[i].name);
		fputc('\n', f);
	}
}

void fields_print_limited(FILE *f)
{
	for (size_t i = 0; i < ARRAY_SIZE(limited); i++)
		fprintf(f, "  %s: %s\n", limited[i].name, limited[i].possible);
}

/* The schemas of what is neither number, count, string nor flag. */
static const struct {
	take_fn take;
	const char *name; /* NULL: of all rows with this function */
	const char *schema;
} schemas[] = {
	{ take_list, "messages",
	  "{\"type\":\"array\",\"minItems\":1,\"items\":{\"type\":\"object\",\"required\":["
	  "\"role\","
	  "\"content\"],\"properties\":{\"role\":{\"enum\":[\"system\",\"developer\",\"user\","
	  "\"assistant\",\"tool\"]},\"content\":{\"anyOf\":[{\"type\":\"string\"},{\"type\":"
	  "\"array\","
	  "\"items\":{\"type\":\"object\",\"required\":[\"type\",\"text\"],\"properties\":{"
	  "\"type\":"
	  "{\"enum\":[\"text\"]},\"text\":{\"type\":\"string\"}}}}]}}}}" },
	{ take_list, NULL, "{\"type\":\"array\",\"items\":{\"type\":\"object\"}}" },
	{ take_value, "prompt",
	  "{\"anyOf\":[{\"type\":\"string\"},{\"type\":\"array\",\"minItems\":1,\"items\":{"
	  "\"type\":"
	  "\"string\"}},{\"type\":\"array\",\"minItems\":1,\"items\":{\"type\":\"integer\","
	  "\"minimum\":0}"
	  "}]}" },
	{ take_value, "input",
	  "{\"anyOf\":[{\"type\":\"string\"},{\"type\":\"array\",\"minItems\":1,\"items\":{"
	  "\"type\":"
	  "\"object\"}}]}" },
	{ take_object, NULL, "{\"type\":\"object\"}" },
	{ take_seed, NULL, "{\"type\":\"integer\"}" },
	{ take_top_k, NULL, "{\"type\":\"integer\",\"minimum\":-1}" },
	{ take_ignore_eos, NULL, "{\"type\":\"boolean\"}" },
	{ take_stop, NULL,
	  "{\"anyOf\":[{\"type\":\"string\",\"minLength\":1},{\"type\":\"array\",\"maxItems\":16,"
	  "\"items\":{\"type\":\"string\",\"minLength\":1}}]}" },
	{ take_bias, NULL, "{\"type\":\"object\",\"additionalProperties\":{\"type\":\"number\"}}" },
	{ take_text_logprobs, NULL, "{\"type\":\"integer\",\"minimum\":0,\"maximum\":20}" },
	{ take_stream_options, NULL,
	  "{\"type\":\"object\",\"properties\":{\"include_usage\":{\"type\":\"boolean\"}}}" },
	{ take_effort, NULL,
	  "{\"enum\":[\"none\",\"minimal\",\"low\",\"medium\",\"high\",\"xhigh\",\"max\"]}" },
	{ take_include, NULL, "{\"type\":\"array\",\"items\":{\"type\":\"string\"}}" },
	{ take_tool_choice, NULL, "{\"enum\":[\"auto\",\"none\"]}" },
	{ take_parallel, NULL, "{\"type\":\"boolean\"}" },
	{ take_modalities, NULL, "{\"enum\":[[\"text\"]]}" },
	{ refuse_unless_empty, NULL, "{\"enum\":[null]}" },
	{ take_thinking, NULL, "{\"type\":\"boolean\"}" },
	{ take_format, NULL,
	  "{\"type\":\"object\",\"required\":[\"type\"],\"properties\":{\"type\":{\"enum\":"
	  "[\"text\"]}}}" },
	{ take_reasoning, NULL, "{\"type\":\"object\"}" },
	{ take_template, NULL, "{\"type\":\"object\"}" },
	{ take_text, NULL, "{\"type\":\"object\"}" },
};

static void write_row_schema(const struct field *row, struct jsontext *to)
{
	const char *possible = possible_of(row);

	jsontext_put(to, "{");
	if (possible) {
		jsontext_put(to, "\"description\":");
		jsontext_quote_string(to, possible);
		jsontext_put(to, ",");
	}
	for (size_t i = 0; i < ARRAY_SIZE(schemas); i++) {
		if (schemas[i].take == row->take &&
		    (!schemas[i].name || strcmp(schemas[i].name, row->name) == 0)) {
			jsontext_put(to, schemas[i].schema + 1);
			return;
		}
	}
	if (row->take == take_number || row->take == take_count)
		jsontext_format(to, "\"type\":\"%s\",\"minimum\":%.15g,\"maximum\":%.15g}",
				row->take == take_number ? "number" : "integer", row->min,
				row->max);
	else if (row->take == take_bool)
		jsontext_put(to, "\"type\":\"boolean\"}");
	else if (row->take == take_string)
		jsontext_put(to, "\"type\":\"string\"}");
	else
		jsontext_put(to, "\"description\":\"accepted; it has no meaning here\"}");
}

void fields_write_schema(enum fields_api api, struct jsontext *to)
{
	bool is_first = true;

	jsontext_format(to, "{\"type\":\"object\",\"required\":[\"%s\"],\"properties\":{",
			api == CHAT   ? "messages"
			: api == TEXT ? "prompt"
				      : "input");
	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		if (!(table[i].apis & api))
			continue;
		jsontext_format(to, "%s\"%s\":", is_first ? "" : ",", table[i].name);
		write_row_schema(&table[i], to);
		is_first = false;
	}
	jsontext_put(to, "},\"additionalProperties\":false}");
}
