/*
 * The reader of sampled ids. A section (reasoning, content, the parts of a
 * tool call) ends only at a marker's id; each has its own detokenizer run, so
 * that a character never spans two of them.
 */
#include "daemon/text/answer.h"

#include <errno.h>
#include <stdlib.h>

#include "daemon/text/bytes.h"
#include "daemon/text/pyjson.h"

enum section {
	PRE, /* before anything but white space */
	REASONING,
	CONTENT,
	TOOL_NAME, /* after <tool_call> */
	TOOL_KEY,
	TOOL_BETWEEN, /* between </arg_key> and <arg_value>, and after </arg_value> */
	TOOL_VALUE,
};

enum marker { THINK, END_THINK, CALL, END_CALL, KEY, END_KEY, VALUE, END_VALUE, N_MARKERS };

static const char *const marker_names[N_MARKERS] = {
	"<think>",   "</think>",   "<tool_call>", "</tool_call>",
	"<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
};

struct answer {
	const struct tokenizer *tokenizer;
	enum chat_layout layout;
	bool trim;
	uint32_t markers[N_MARKERS];
	struct bytes stops[ANSWER_STOPS_MAX];
	uint32_t n_stops;
	struct bytes string_args;

	enum section section;
	struct detokenizer detokenizer;
	struct bytes scratch;  /* one id's text */
	struct bytes pre;      /* white space held in PRE */
	struct bytes newlines; /* at the end of a section: out if something follows, else dropped */
	bool section_begun;    /* something but newlines came in this section */
	struct bytes held;     /* content that may be the beginning of a stop string */
	int32_t matched;       /* index of the stop string, or -1 */

	struct bytes name, key, value; /* of the call being read */
	json_t *arguments;
	uint32_t n_calls;

	struct bytes reasoning, content, calls; /* the delta */
	bool failed;
};

struct answer *answer_free(struct answer *a)
{
	if (!a)
		return NULL;
	for (uint32_t i = 0; i < a->n_stops; i++)
		bytes_deinit(&a->stops[i]);
	bytes_deinit(&a->string_args);
	bytes_deinit(&a->scratch);
	bytes_deinit(&a->pre);
	bytes_deinit(&a->newlines);
	bytes_deinit(&a->held);
	bytes_deinit(&a->name);
	bytes_deinit(&a->key);
	bytes_deinit(&a->value);
	bytes_deinit(&a->reasoning);
	bytes_deinit(&a->content);
	bytes_deinit(&a->calls);
	json_decref(a->arguments);
	free(a);
	return NULL;
}

int answer_new(const struct answer_options *options, struct answer **ret)
{
	_cleanup_(answer_freep) struct answer *a = NULL;
	bool failed = false;

	if (options->n_stops > ANSWER_STOPS_MAX)
		return -EINVAL;
	a = calloc(1, sizeof(*a));
	if (!a)
		return -ENOMEM;
	a->tokenizer = options->tokenizer;
	a->layout = options->layout;
	a->trim = options->trim && options->layout != CHAT_NONE;
	a->matched = -1;
	for (int i = 0; i < N_MARKERS; i++)
		a->markers[i] = options->layout == CHAT_NONE
					? UINT32_MAX
					: tokenizer_added_id(options->tokenizer, marker_names[i]);
	for (uint32_t i = 0; i < options->n_stops; i++) {
		if (options->stops[i].len == 0)
			return -EINVAL;
		bytes_append_span(&a->stops[i], options->stops[i]);
		failed = failed || a->stops[i].failed;
		a->n_stops++;
	}
	bytes_append_span(&a->string_args, options->string_args);
	if (failed || a->string_args.failed)
		return -ENOMEM;
	if (options->layout == CHAT_NONE || !options->thinking)
		a->section = CONTENT;
	else
		a->section = options->in_reasoning ? REASONING : PRE;
	a->detokenizer.skip_special = options->layout != CHAT_NONE;
	*ret = steal(a);
	return 0;
}

static bool is_blank(struct span s)
{
	for (size_t i = 0; i < s.len; i++)
		if (!strchr(" \t\r\n\v\f", s.data[i]) || !s.data[i])
			return false;
	return true;
}

/* The longest end of @s that a stop string could begin with. */
static size_t possible_stop(const struct answer *a, struct span s)
{
	size_t longest = 0;

	for (uint32_t i = 0; i < a->n_stops; i++) {
		size_t n = MIN(a->stops[i].n - 1, s.len);

		while (n > longest && memcmp(s.data + s.len - n, a->stops[i].at, n) != 0)
			n--;
		longest = MAX(longest, n);
	}
	return longest;
}

/* Content on its way out: looked through for stop strings, a possible beginning held back. */
static void emit_content(struct answer *a, struct span s)
{
	const char *first = NULL;
	size_t keep;

	if (a->n_stops == 0) {
		bytes_append_span(&a->content, s);
		return;
	}
	bytes_append_span(&a->held, s);
	if (a->held.failed || a->held.n == 0)
		return;
	for (uint32_t i = 0; i < a->n_stops; i++) {
		const char *at = memmem(a->held.at, a->held.n, a->stops[i].at, a->stops[i].n);

		if (at && (!first || at < first)) {
			first = at;
			a->matched = (int32_t)i;
		}
	}
	if (first) {
		bytes_append(&a->content, a->held.at, (size_t)(first - a->held.at));
		bytes_clear(&a->held);
		return;
	}
	keep = possible_stop(a, bytes_span(&a->held));
	bytes_append(&a->content, a->held.at, a->held.n - keep);
	bytes_drop(&a->held, a->held.n - keep);
}

static void emit(struct answer *a, struct span s)
{
	if (a->section == REASONING)
		bytes_append_span(&a->reasoning, s);
	else
		emit_content(a, s);
}

/* Text of REASONING or CONTENT: leading newlines go, trailing ones wait for what follows. */
static void emit_trimmed(struct answer *a, struct span s)
{
	size_t tail = 0;

	if (!a->trim) {
		emit(a, s);
		return;
	}
	while (!a->section_begun && s.len && s.data[0] == '\n')
		s.data++, s.len--;
	if (s.len == 0)
		return;
	a->section_begun = true;
	while (tail < s.len && s.data[s.len - 1 - tail] == '\n')
		tail++;
	if (tail < s.len) {
		emit(a, bytes_span(&a->newlines));
		bytes_clear(&a->newlines);
		emit(a, (struct span){ s.data, s.len - tail });
	}
	bytes_append(&a->newlines, s.data + s.len - tail, tail);
}

static void take_text(struct answer *a, struct span s)
{
	if (s.len == 0)
		return;
	switch (a->section) {
	case PRE:
		bytes_append_span(&a->pre, s);
		if (is_blank(s))
			return;
		a->section = CONTENT;
		emit_trimmed(a, bytes_span(&a->pre));
		bytes_clear(&a->pre);
		return;
	case REASONING:
	case CONTENT:
		emit_trimmed(a, s);
		return;
	case TOOL_NAME:
		bytes_append_span(&a->name, s);
		return;
	case TOOL_KEY:
		bytes_append_span(&a->key, s);
		return;
	case TOOL_VALUE:
		bytes_append_span(&a->value, s);
		return;
	case TOOL_BETWEEN:
		return;
	}
}

/* Whatever the detokenizer still holds belongs to the section that ends. */
static void flush_text(struct answer *a)
{
	char out[16];

	take_text(a, (struct span){ out, detokenizer_flush(&a->detokenizer, out) });
}

static void enter(struct answer *a, enum section section)
{
	flush_text(a);
	/* newlines before a call or after reasoning only set sections apart */
	bytes_clear(&a->newlines);
	if (section == REASONING || section == CONTENT)
		a->section_begun = false;
	a->section = section;
}

static struct span trimmed(const struct bytes *b)
{
	struct span s = bytes_span(b);

	while (s.len && strchr(" \t\r\n", s.data[s.len - 1]) && s.data[s.len - 1])
		s.len--;
	while (s.len && strchr(" \t\r\n", s.data[0]) && s.data[0])
		s.data++, s.len--;
	return s;
}

static bool is_string_arg(const struct answer *a, struct span key)
{
	const char *p = a->string_args.at, *end = p ? p + a->string_args.n : NULL;
	const struct span name = trimmed(&a->name);

	while (p < end) {
		const struct span function = { p, strnlen(p, (size_t)(end - p)) };
		const char *q = p + function.len + 1;
		struct span argument;

		if (q >= end)
			return false;
		argument = (struct span){ q, strnlen(q, (size_t)(end - q)) };
		if (function.len == name.len && memcmp(function.data, name.data, name.len) == 0 &&
		    argument.len == key.len && memcmp(argument.data, key.data, key.len) == 0)
			return true;
		p = q + argument.len + 1;
	}
	return false;
}

/* A declared string stays as it is; anything else is JSON if it reads as such, else a string too. */
static void end_argument(struct answer *a)
{
	const struct span key = trimmed(&a->key), value = bytes_span(&a->value);
	struct err ignored = { 0 };
	json_t *parsed = NULL;

	if (key.len && !is_string_arg(a, key) && pyjson_load(value, &parsed, &ignored) == -ENOMEM)
		a->failed = true;
	if (!parsed)
		parsed = json_stringn(value.data ? value.data : "", value.len);
	if (!a->arguments)
		a->arguments = json_object();
	if (key.len && json_object_setn_new(a->arguments, key.data, key.len, parsed) < 0)
		a->failed = true;
	else if (!key.len)
		json_decref(parsed);
	bytes_clear(&a->key);
	bytes_clear(&a->value);
}

static void end_call(struct answer *a, bool truncated)
{
	const struct span name = trimmed(&a->name);
	json_t *json_name = json_stringn(name.data ? name.data : "", name.len);

	if (name.len && json_name) {
		bytes_append_string(&a->calls, a->calls.n ? ", " : "[");
		bytes_append_string(&a->calls, "{\"name\": ");
		pyjson_dump(json_name, &a->calls);
		bytes_append_string(&a->calls, ", \"arguments\": ");
		if (a->arguments)
			pyjson_dump(a->arguments, &a->calls);
		else
			bytes_append_string(&a->calls, "{}");
		bytes_append_string(&a->calls, truncated ? ", \"truncated\": true}" : "}");
		a->n_calls++;
	}
	a->failed = a->failed || !json_name;
	json_decref(json_name);
	json_decref(a->arguments);
	a->arguments = NULL;
	bytes_clear(&a->name);
	bytes_clear(&a->key);
	bytes_clear(&a->value);
}

static bool in_call(const struct answer *a)
{
	return a->section >= TOOL_NAME;
}

static void begin_call(struct answer *a)
{
	enter(a, TOOL_NAME);
	/* content held back for a stop string cannot become one any more */
	bytes_append_span(&a->content, bytes_span(&a->held));
	bytes_clear(&a->held);
	bytes_clear(&a->pre);
}

/* A marker that means nothing where it stands is left out. */
static void take_marker(struct answer *a, enum marker m)
{
	if (in_call(a)) {
		switch (m) {
		case KEY:
			enter(a, TOOL_KEY);
			return;
		case END_KEY:
			enter(a, TOOL_BETWEEN);
			return;
		case VALUE:
			enter(a, TOOL_VALUE);
			return;
		case END_VALUE:
			enter(a, TOOL_BETWEEN);
			end_argument(a);
			return;
		case END_CALL:
			enter(a, CONTENT);
			end_call(a, false);
			return;
		default:
			return;
		}
	}
	switch (m) {
	case THINK:
		if (a->section == PRE) {
			enter(a, REASONING);
			bytes_clear(&a->pre);
		}
		return;
	case END_THINK:
		if (a->section == REASONING || a->section == PRE)
			enter(a, CONTENT);
		return;
	case CALL:
		begin_call(a);
		return;
	default:
		return;
	}
}

static bool out_of_memory(const struct answer *a)
{
	return a->failed || a->scratch.failed || a->pre.failed || a->newlines.failed ||
	       a->held.failed || a->name.failed || a->key.failed || a->value.failed ||
	       a->reasoning.failed || a->content.failed || a->calls.failed;
}

int answer_push(struct answer *a, uint32_t id)
{
	char *text;
	size_t n;

	if (a->matched >= 0)
		return 0;
	for (int m = 0; m < N_MARKERS; m++) {
		if (id == a->markers[m] && id != UINT32_MAX) {
			take_marker(a, (enum marker)m);
			return out_of_memory(a) ? -ENOMEM : a->matched >= 0;
		}
	}
	bytes_clear(&a->scratch);
	text = bytes_room(&a->scratch, tokenizer_bytes(a->tokenizer, id).len * 3 + 12);
	if (!text)
		return -ENOMEM;
	n = detokenizer_push(&a->detokenizer, a->tokenizer, id, text);
	take_text(a, (struct span){ text, n });
	return out_of_memory(a) ? -ENOMEM : a->matched >= 0;
}

int answer_finish(struct answer *a)
{
	if (a->matched < 0) {
		flush_text(a);
		if (in_call(a)) {
			if (a->section == TOOL_VALUE)
				end_argument(a);
			end_call(a, true);
			a->section = CONTENT;
		}
		if (a->section == PRE) {
			/* white space and nothing else: nothing to show unless it was asked for as it is */
			a->section = CONTENT;
			if (!a->trim)
				emit(a, bytes_span(&a->pre));
			bytes_clear(&a->pre);
		}
		bytes_append_span(&a->content, bytes_span(&a->held));
		bytes_clear(&a->held);
	}
	return out_of_memory(a) ? -ENOMEM : 0;
}

void answer_delta(const struct answer *a, struct answer_delta *ret)
{
	struct answer *writable = (struct answer *)a;

	if (a->calls.n && a->calls.at[a->calls.n - 1] != ']')
		bytes_append_string(&writable->calls, "]");
	*ret = (struct answer_delta){ bytes_span(&a->reasoning), bytes_span(&a->content),
				      bytes_span(&a->calls) };
}

void answer_count(const struct answer *a, size_t *ret_reasoning, size_t *ret_content)
{
	*ret_reasoning = a->reasoning.n;
	*ret_content = a->content.n;
}

void answer_clear(struct answer *a)
{
	bytes_clear(&a->reasoning);
	bytes_clear(&a->content);
	bytes_clear(&a->calls);
}

struct span answer_stop_string(const struct answer *a)
{
	return a->matched >= 0 ? bytes_span(&a->stops[a->matched]) : (struct span){ 0 };
}

uint32_t answer_n_tool_calls(const struct answer *a)
{
	return a->n_calls;
}
