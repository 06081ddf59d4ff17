/* Chat Completions and Completions: the same chunks, but for where the text is. */
#include <errno.h>
#include <string.h>

#include "client/gateway/conversation.h"
#include "client/gateway/reply.h"
#include "client/gateway/routes.h"
#include "client/gateway/vocab.h"

/* What both have in front and behind. */

static void make_head(struct jsontext *t, const struct reply *r, const char *object)
{
	jsontext_format(t, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%llu,\"model\":", r->id,
			object, (unsigned long long)r->created_s);
	jsontext_quote_string(t, r->model);
	jsontext_put(t, ",\"choices\":[");
}

static void write_head(struct jsontext *t, struct reply *r, const char *object)
{
	if (r->head.n == 0)
		make_head(&r->head, r, object);
	t->failed = t->failed || r->head.failed;
	jsontext_add(t, r->head.at, r->head.n);
}

static void write_usage(struct jsontext *t, const struct reply *r)
{
	const struct reply_usage u = reply_usage(r);

	jsontext_format(t,
			"{\"prompt_tokens\":%llu,\"completion_tokens\":%llu,\"total_tokens\":%llu,"
			"\"prompt_tokens_details\":{\"cached_tokens\":%llu},"
			"\"completion_tokens_details\":{\"reasoning_tokens\":%llu}}",
			(unsigned long long)u.n_prompt, (unsigned long long)u.n_completion,
			(unsigned long long)(u.n_prompt + u.n_completion),
			(unsigned long long)u.n_cached, (unsigned long long)u.n_reasoning);
}

/* Behind the last choice of a chunk. */
static void end_chunk(struct jsontext *t, const struct reply *r)
{
	jsontext_put(t, r->fields.include_usage ? "],\"usage\":null}\n\n" : "]}\n\n");
}

static void end_stream(struct reply *r, const char *object)
{
	struct jsontext *t = exchange_out(r->x);

	if (r->fields.include_usage) {
		jsontext_put(t, "data: ");
		write_head(t, r, object);
		jsontext_put(t, "],\"usage\":");
		write_usage(t, r);
		jsontext_put(t, "}\n\n");
	}
	jsontext_put(t, "data: [DONE]\n\n");
}

static void fail_stream(struct reply *r, const struct refusal *no)
{
	struct jsontext *t = exchange_out(r->x);

	jsontext_put(t, "data: ");
	refusal_write(no, t);
	jsontext_put(t, "\n\n");
}

static void finish_whole(struct reply *r, struct jsontext *t)
{
	jsontext_put(t, "],\"usage\":");
	write_usage(t, r);
	jsontext_put(t, "}");
	exchange_answer(r->x, 200, t);
}

/* Chat. */

static const char CHAT_CHUNK[] = "chat.completion.chunk";

/* Up to the delta's members. */
static struct jsontext *begin_chat_chunk(const struct choice *c)
{
	struct jsontext *t = exchange_out(c->reply->x);

	jsontext_put(t, "data: ");
	write_head(t, c->reply, CHAT_CHUNK);
	jsontext_put(t, "{\"index\":");
	jsontext_number(t, c->index);
	jsontext_put(t, ",\"delta\":{");
	return t;
}

static void end_chat_chunk(const struct choice *c, struct jsontext *t)
{
	jsontext_put(t, "},\"logprobs\":null,\"finish_reason\":null}");
	end_chunk(t, c->reply);
}

static void say_role(struct choice *c)
{
	struct jsontext *t;

	if (c->begun)
		return;
	c->begun = true;
	t = begin_chat_chunk(c);
	jsontext_put(t, "\"role\":\"assistant\",\"content\":\"\"");
	end_chat_chunk(c, t);
}

static void stream_text(struct choice *c, const struct reply_delta *d)
{
	struct jsontext *t = begin_chat_chunk(c);
	const char *comma = "";

	if (d->reasoning_len) {
		jsontext_put(t, "\"reasoning_content\":");
		jsontext_quote(t, d->reasoning, d->reasoning_len);
		comma = ",";
	}
	if (d->content_len) {
		jsontext_put(t, comma);
		jsontext_put(t, "\"content\":");
		jsontext_quote(t, d->content, d->content_len);
	}
	if (!c->reply->fields.logprobs || !d->raw->logprobs || d->raw->n_ids == 0) {
		end_chat_chunk(c, t);
		return;
	}
	jsontext_put(t, "},\"logprobs\":{\"content\":[");
	reply_write_logprobs(c->reply, d->raw, true, t);
	jsontext_put(t, "],\"refusal\":null},\"finish_reason\":null}");
	end_chunk(t, c->reply);
}

/* Name first, arguments behind it: what clients put together. */
static void stream_calls(struct choice *c, const json_t *calls)
{
	json_t *call;
	size_t i;

	json_array_foreach((json_t *)calls, i, call) {
		const json_t *function = json_object_get(call, "function");
		const uint32_t index = c->n_calls + (uint32_t)i;
		struct jsontext *t = begin_chat_chunk(c);

		jsontext_format(t, "\"tool_calls\":[{\"index\":%u,\"id\":", index);
		jsontext_value(t, json_object_get(call, "id"));
		jsontext_put(t, ",\"type\":\"function\",\"function\":{\"name\":");
		jsontext_value(t, json_object_get(function, "name"));
		jsontext_put(t, ",\"arguments\":\"\"}}]");
		end_chat_chunk(c, t);
		t = begin_chat_chunk(c);
		jsontext_format(
			t, "\"tool_calls\":[{\"index\":%u,\"function\":{\"arguments\":", index);
		jsontext_value(t, json_object_get(function, "arguments"));
		jsontext_put(t, "}}]");
		end_chat_chunk(c, t);
	}
}

static void chat_delta(struct choice *c, const struct reply_delta *d)
{
	if (!c->reply->fields.stream) {
		if (c->reply->fields.logprobs)
			reply_write_logprobs(c->reply, d->raw, c->logprobs[0].n == 0,
					     &c->logprobs[0]);
		return;
	}
	say_role(c);
	if (d->reasoning_len || d->content_len || (c->reply->fields.logprobs && d->raw->n_ids))
		stream_text(c, d);
	stream_calls(c, d->calls);
}

static void chat_end(struct choice *c)
{
	struct jsontext *t;

	say_role(c);
	t = begin_chat_chunk(c);
	jsontext_format(t, "},\"logprobs\":null,\"finish_reason\":\"%s\"}", c->finish);
	end_chunk(t, c->reply);
}

static void write_chat_choice(struct jsontext *t, const struct choice *c)
{
	jsontext_format(t, "%s{\"index\":%u,\"message\":{\"role\":\"assistant\",\"content\":",
			c->index ? "," : "", c->index);
	if (c->content.n == 0 && c->calls)
		jsontext_put(t, "null");
	else
		jsontext_quote(t, c->content.at, c->content.n);
	jsontext_put(t, ",\"refusal\":null");
	if (c->reasoning.n) {
		jsontext_put(t, ",\"reasoning_content\":");
		jsontext_quote(t, c->reasoning.at, c->reasoning.n);
	}
	if (c->calls) {
		jsontext_put(t, ",\"tool_calls\":");
		jsontext_value(t, c->calls);
	}
	jsontext_put(t, "},\"logprobs\":");
	if (c->reply->fields.logprobs) {
		jsontext_put(t, "{\"content\":[");
		jsontext_add(t, c->logprobs[0].at, c->logprobs[0].n);
		jsontext_put(t, "],\"refusal\":null}");
	} else {
		jsontext_put(t, "null");
	}
	jsontext_format(t, ",\"finish_reason\":\"%s\"}", c->finish);
}

static void chat_whole(struct reply *r)
{
	struct jsontext t = { 0 };

	if (r->fields.stream) {
		end_stream(r, CHAT_CHUNK);
		return;
	}
	write_head(&t, r, "chat.completion");
	for (uint32_t i = 0; i < r->n_choices; i++)
		write_chat_choice(&t, &r->choices[i]);
	finish_whole(r, &t);
}

static const struct reply_format chat_format = { NULL,	      chat_delta, chat_end, chat_whole,
						 fail_stream, NULL,	  NULL };

void route_chat(struct exchange *x)
{
	struct reply *r = reply_new(x, FIELDS_CHAT, "chatcmpl-", &chat_format);
	json_t *messages = json_array();
	struct refusal no;
	int ok;

	if (!r) {
		json_decref(messages);
		return;
	}
	ok = conversation_add_chat(messages, r->fields.messages, &no);
	if (ok == 0)
		ok = conversation_check_tools(r->fields.tools, &no);
	if (ok == 0 &&
	    (reply_add_prompts(r, 1) < 0 ||
	     conversation_write(messages, r->fields.tools, r->fields.think, NULL,
				&r->prompts[0].messages, &r->prompts[0].messages_len) < 0))
		ok = refusal_set(&no, 503, "no-memory", NULL, "out of memory");
	json_decref(messages);
	if (ok < 0)
		reply_refuse(r, &no);
	else
		reply_start(r);
}

/* Text. */

static const char TEXT_OBJECT[] = "text_completion";

static bool is_inside(char byte)
{
	return ((unsigned char)byte & 0xc0) == 0x80;
}

/* Each counts where it begins. */
static size_t characters_in(const char *bytes, size_t n)
{
	size_t n_characters = 0;

	for (size_t i = 0; i < n; i++)
		n_characters += !is_inside(bytes[i]);
	return n_characters;
}

/* Members of the four lists: tokens, token_logprobs, top_logprobs, text_offset (in characters). */
static void add_text_logprobs(struct choice *c, struct jsontext to[4], const struct steamd_delta *d)
{
	const struct vocab *v = c->reply->vocab;
	size_t at = c->text_at;

	for (uint32_t i = 0; d->logprobs && i < d->n_ids; i++) {
		const struct span token = vocab_bytes(v, d->ids[i]);
		const bool goes_on = at > 0 && token.len > 0 && is_inside(token.data[0]);
		const char *comma = to[0].n ? "," : "";

		jsontext_put(&to[0], comma);
		vocab_write_text(v, d->ids[i], &to[0]);
		jsontext_put(&to[1], comma);
		jsontext_logprob(&to[1], d->logprobs[i]);
		jsontext_format(&to[2], "%s{", comma);
		for (uint32_t k = 0; k < d->n_top; k++) {
			const size_t n = (size_t)i * d->n_top + k;

			jsontext_put(&to[2], k ? "," : "");
			vocab_write_text(v, d->top_ids[n], &to[2]);
			jsontext_put(&to[2], ":");
			jsontext_logprob(&to[2], d->top_logprobs[n]);
		}
		jsontext_put(&to[2], "}");
		jsontext_format(&to[3], "%s%zu", comma, at - goes_on);
		at += characters_in(token.data, token.len);
	}
	/* of tokens, not of texts: the end of a character may come with the next one */
	c->text_at = at;
}

static void write_text_logprobs(struct jsontext *t, const struct jsontext from[4])
{
	static const char *const names[] = { "{\"tokens\":[", "],\"token_logprobs\":[",
					     "],\"top_logprobs\":[", "],\"text_offset\":[" };

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		jsontext_put(t, names[i]);
		jsontext_add(t, from[i].at, from[i].n);
	}
	jsontext_put(t, "]}");
}

static void write_text_chunk(struct choice *c, const char *text, size_t len,
			     const struct steamd_delta *d, const char *finish)
{
	struct jsontext *t = exchange_out(c->reply->x), logprobs[4] = { 0 };

	jsontext_put(t, "data: ");
	write_head(t, c->reply, TEXT_OBJECT);
	jsontext_put(t, "{\"index\":");
	jsontext_number(t, c->index);
	jsontext_put(t, ",\"text\":");
	jsontext_quote(t, text, len);
	jsontext_put(t, ",\"logprobs\":");
	if (c->reply->fields.logprobs && d) {
		add_text_logprobs(c, logprobs, d);
		write_text_logprobs(t, logprobs);
	} else {
		jsontext_put(t, "null");
	}
	for (size_t i = 0; i < ARRAY_SIZE(logprobs); i++)
		jsontext_deinit(&logprobs[i]);
	jsontext_put(t, ",\"finish_reason\":");
	if (finish)
		jsontext_quote_string(t, finish);
	else
		jsontext_put(t, "null");
	jsontext_put(t, "}");
	end_chunk(t, c->reply);
}

static void echo_prompt(struct choice *c)
{
	if (!c->begun && c->reply->fields.echo)
		write_text_chunk(c, json_string_value(c->prompt->text),
				 json_string_length(c->prompt->text), NULL, NULL);
	c->begun = true;
}

static void text_delta(struct choice *c, const struct reply_delta *d)
{
	if (!c->reply->fields.stream) {
		if (c->reply->fields.logprobs)
			add_text_logprobs(c, c->logprobs, d->raw);
		return;
	}
	echo_prompt(c);
	if (d->content_len || (c->reply->fields.logprobs && d->raw->n_ids))
		write_text_chunk(c, d->content, d->content_len, d->raw, NULL);
}

static void text_end(struct choice *c)
{
	echo_prompt(c);
	write_text_chunk(c, "", 0, NULL, c->finish);
}

static void text_whole(struct reply *r)
{
	struct jsontext t = { 0 };

	if (r->fields.stream) {
		end_stream(r, TEXT_OBJECT);
		return;
	}
	write_head(&t, r, TEXT_OBJECT);
	for (uint32_t i = 0; i < r->n_choices; i++) {
		const struct choice *c = &r->choices[i];
		struct jsontext all = { 0 };

		if (r->fields.echo)
			jsontext_add(&all, json_string_value(c->prompt->text),
				     json_string_length(c->prompt->text));
		jsontext_add(&all, c->content.at, c->content.n);
		jsontext_format(&t, "%s{\"index\":%u,\"text\":", i ? "," : "", i);
		jsontext_quote(&t, all.at, all.n);
		jsontext_deinit(&all);
		jsontext_put(&t, ",\"logprobs\":");
		if (r->fields.logprobs)
			write_text_logprobs(&t, c->logprobs);
		else
			jsontext_put(&t, "null");
		jsontext_format(&t, ",\"finish_reason\":\"%s\"}", c->finish);
	}
	finish_whole(r, &t);
}

static const struct reply_format text_format = { NULL,	      text_delta, text_end, text_whole,
						 fail_stream, NULL,	  NULL };

static int take_ids(struct prompt *p, const json_t *list, struct refusal *no)
{
	json_t *one;
	size_t i;

	p->ids = calloc(json_array_size(list) + 1, sizeof(*p->ids));
	if (!p->ids)
		return refusal_set(no, 503, "no-memory", NULL, "out of memory");
	json_array_foreach((json_t *)list, i, one) {
		if (!json_is_integer(one) || json_integer_value(one) < 0 ||
		    json_integer_value(one) > UINT32_MAX)
			return refusal_of_field(
				no, "prompt", "prompt has %s at %zu; a token's id is wanted",
				json_is_integer(one) ? "a number out of range" : fields_type(one),
				i);
		p->ids[p->n_ids++] = (uint32_t)json_integer_value(one);
	}
	return 0;
}

static int take_prompt(struct prompt *p, const json_t *value, struct refusal *no)
{
	if (json_is_array(value))
		return take_ids(p, value, no);
	p->text = value;
	if (json_is_string(value))
		return 0;
	return refusal_of_field(
		no, "prompt", "prompt is %s; a string, a list of strings, or token ids are wanted",
		fields_type(value));
}

/* A string, a list of ids, or a list of either. */
static int take_prompts(struct reply *r, struct refusal *no)
{
	const json_t *given = r->fields.prompt;
	const bool many = json_is_array(given) && json_array_size(given) > 0 &&
			  !json_is_integer(json_array_get(given, 0));
	const size_t n = many ? json_array_size(given) : 1;

	if (n > REPLY_PROMPTS_MAX)
		return refusal_of_field(no, "prompt",
					"prompt has %zu texts; at most %d are possible", n,
					REPLY_PROMPTS_MAX);
	if (reply_add_prompts(r, n) < 0)
		return refusal_set(no, 503, "no-memory", NULL, "out of memory");
	for (size_t i = 0; i < n; i++) {
		if (take_prompt(&r->prompts[i], many ? json_array_get(given, i) : given, no) < 0)
			return -EINVAL;
		if (r->fields.echo && !r->prompts[i].text)
			return refusal_of_field(no, "echo", "echo is not possible with token ids");
	}
	if (r->fields.echo && r->fields.logprobs)
		return refusal_of_field(no, "echo",
					"echo is not possible with logprobs: those of a prompt are "
					"not computed here");
	return 0;
}

void route_completions(struct exchange *x)
{
	struct reply *r = reply_new(x, FIELDS_TEXT, "cmpl-", &text_format);
	struct refusal no;

	if (!r)
		return;
	if (take_prompts(r, &no) < 0)
		reply_refuse(r, &no);
	else
		reply_start(r);
}
