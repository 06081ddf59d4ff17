/* Making a response: from the request to a turn, and from its tokens to events. */
#include "client/gateway/responses.h"

#include <errno.h>
#include <string.h>

#include "client/gateway/conversation.h"
#include "client/gateway/routes.h"

/* Ids. */

uint32_t responses_hash(const char *instructions)
{
	uint32_t hash = 2166136261u;

	if (!instructions || !*instructions)
		return 0;
	for (; *instructions; instructions++)
		hash = (hash ^ (unsigned char)*instructions) * 16777619u;
	return hash ? hash : 1;
}

int response_id_parse(const char *text, struct response_id *ret)
{
	unsigned turn, hash;
	char session[17];
	int n = 0;

	if (strlen(text) != 34 || strspn(text + 5, "0123456789abcdef") != 29 ||
	    sscanf(text, "resp_%16[0-9a-f]%5x%8x%n", session, &turn, &hash, &n) != 3 || n != 34 ||
	    turn == 0)
		return -EINVAL;
	snprintf(ret->session, sizeof(ret->session), RESPONSES_PREFIX "%s", session);
	ret->turn = turn;
	ret->instructions = hash;
	return 0;
}

void response_id_write(const struct response_id *id, char ret[32])
{
	snprintf(ret, 32, "%s%05x%08x", id->session + strlen(RESPONSES_PREFIX), id->turn & 0xfffff,
		 id->instructions);
}

static void new_session(struct response_id *id)
{
	char digits[17];

	reply_random(digits, 16);
	snprintf(id->session, sizeof(id->session), RESPONSES_PREFIX "%s", digits);
	id->turn = 1;
}

struct response *responses_running(struct gateway *g, const char *id)
{
	struct response *p;

	if (!g->responses || strncmp(id, "resp_", 5) != 0)
		return NULL;
	LIST_FOREACH(p, &g->responses->running, link)
	if (!p->r->unsettled && strcmp(p->digits, id + 5) == 0)
		return p;
	return NULL;
}

bool response_refuse_running(const struct exchange *x, const char *id, struct refusal *no)
{
	const struct response *running = responses_running(x->g, id);

	if (!running || !link_is_of(running->r->link, x->label))
		return false;
	refusal_set(no, 409, REFUSAL_BUSY, NULL,
		    "response '%.64s' is being made; it can be cancelled, or waited for", id);
	return true;
}

struct responses *responses_free(struct responses *all)
{
	free(all);
	return NULL;
}

/* Writing. */

const char *response_status(const char *finish)
{
	if (finish && strcmp(finish, "length") == 0)
		return "incomplete";
	if (finish && strcmp(finish, "cancelled") == 0)
		return "cancelled";
	return "completed";
}

static void put_member(struct jsontext *t, const char *name, const json_t *about, const char *key,
		       const char *otherwise)
{
	const json_t *value = json_object_get(about, key);

	jsontext_format(t, ",\"%s\":", name);
	if (value)
		jsontext_value(t, value);
	else
		jsontext_put(t, otherwise);
}

static void put_usage(struct jsontext *t, const struct response_facts *f)
{
	if (!f->has_usage) {
		jsontext_put(t, "null");
		return;
	}
	jsontext_format(t, "{\"input_tokens\":%llu", (unsigned long long)f->n_input);
	if (f->has_cached)
		/* what was not in the cache is there now */
		jsontext_format(t,
				",\"input_tokens_details\":{\"cached_tokens\":%llu,"
				"\"cache_write_tokens\":%llu}",
				(unsigned long long)f->n_cached,
				(unsigned long long)(f->n_input - MIN(f->n_cached, f->n_input)));
	jsontext_format(t, ",\"output_tokens\":%llu", (unsigned long long)f->n_output);
	if (f->has_cached)
		jsontext_format(t, ",\"output_tokens_details\":{\"reasoning_tokens\":%llu}",
				(unsigned long long)f->n_reasoning);
	jsontext_format(t, ",\"total_tokens\":%llu}",
			(unsigned long long)(f->n_input + f->n_output));
}

static void put_error(struct jsontext *t, const struct refusal *no)
{
	if (!no) {
		jsontext_put(t, "null");
		return;
	}
	jsontext_put(t, "{\"code\":");
	jsontext_quote_string(t, no->code);
	jsontext_put(t, ",\"message\":");
	jsontext_quote_string(t, no->text);
	jsontext_put(t, "}");
}

void response_write(const struct response_facts *f, struct jsontext *t)
{
	const json_t *about = f->about;

	jsontext_format(t, "{\"id\":\"resp_%s\",\"object\":\"response\"", f->digits);
	put_member(t, "created_at", about, "created_at", "0");
	jsontext_format(t, ",\"status\":\"%s\",\"background\":false,\"error\":", f->status);
	put_error(t, f->no);
	jsontext_put(t, ",\"incomplete_details\":");
	jsontext_put(t, strcmp(f->status, "incomplete") == 0 ? "{\"reason\":\"max_output_tokens\"}"
							     : "null");
	put_member(t, "instructions", about, "instructions", "null");
	put_member(t, "max_output_tokens", about, "max_output_tokens", "null");
	put_member(t, "model", about, "model", "\"\"");
	jsontext_put(t, ",\"output\":");
	if (f->output)
		jsontext_value(t, f->output);
	else
		jsontext_put(t, "[]");
	put_member(t, "parallel_tool_calls", about, "parallel_tool_calls", "true");
	put_member(t, "previous_response_id", about, "previous_response_id", "null");
	jsontext_put(t, ",\"reasoning\":{\"effort\":");
	jsontext_value(t, json_object_get(about, "effort"));
	jsontext_put(t, ",\"summary\":null}");
	put_member(t, "store", about, "store", "true");
	put_member(t, "temperature", about, "temperature", "null");
	jsontext_put(t, ",\"text\":{\"format\":{\"type\":\"text\"}}");
	put_member(t, "tool_choice", about, "tool_choice", "\"auto\"");
	put_member(t, "tools", about, "tools", "[]");
	put_member(t, "top_p", about, "top_p", "null");
	jsontext_put(t, ",\"truncation\":\"disabled\",\"usage\":");
	put_usage(t, f);
	put_member(t, "metadata", about, "metadata", "{}");
	jsontext_put(t, "}");
}

void response_write_running(const struct response *p, const char *status, const struct refusal *no,
			    struct jsontext *to)
{
	const struct response_facts facts = {
		.digits = p->digits,
		.about = p->about,
		.status = status,
		.output = p->output,
		.has_usage = p->n_input > 0,
		.has_cached = true,
		.n_input = p->n_input,
		.n_cached = p->n_cached,
		.n_output = p->n_output,
		.n_reasoning = p->n_reasoning,
		.no = no,
	};

	response_write(&facts, to);
}

/* Items. */

static json_t *item_id(const char *kind, const char *digits, uint32_t n)
{
	char text[64];

	snprintf(text, sizeof(text), "%s_%s%02x", kind, digits, n);
	return json_string(text);
}

json_t *response_item_message(const char *digits, uint32_t n, const char *text, size_t len,
			      json_t *logprobs)
{
	return json_pack("{s:o, s:s, s:s, s:s, s:[{s:s, s:s#, s:[], s:o}]}", "id",
			 item_id("msg", digits, n), "type", "message", "status", "completed",
			 "role", "assistant", "content", "type", "output_text", "text", text,
			 (int)len, "annotations", "logprobs", logprobs ? logprobs : json_array());
}

json_t *response_item_reasoning(const char *digits, const char *text, size_t len)
{
	return json_pack("{s:o, s:s, s:s, s:[], s:[{s:s, s:s#}]}", "id", item_id("rs", digits, 0),
			 "type", "reasoning", "status", "completed", "summary", "content", "type",
			 "reasoning_text", "text", text, (int)len);
}

json_t *response_item_call(const char *digits, uint32_t n, const json_t *name, json_t *arguments)
{
	return json_pack("{s:o, s:s, s:s, s:o, s:O, s:O}", "id", item_id("fc", digits, n), "type",
			 "function_call", "status", "completed", "call_id",
			 item_id("call", digits, n), "name", name, "arguments", arguments);
}

/* Events. */

/* Up to the members of its own; NULL: nothing is streamed. */
static struct jsontext *begin_event(struct response *p, const char *type)
{
	struct jsontext *t;

	if (!p->r->fields.stream)
		return NULL;
	t = exchange_out(p->r->x);
	jsontext_put(t, "event: ");
	jsontext_put(t, type);
	jsontext_put(t, "\ndata: {\"type\":\"");
	jsontext_put(t, type);
	jsontext_put(t, "\",\"sequence_number\":");
	jsontext_number(t, p->n_events++);
	return t;
}

static void end_event(struct jsontext *t)
{
	jsontext_put(t, "}\n\n");
}

static void say_state(struct response *p, const char *type, const char *status,
		      const struct refusal *no)
{
	struct jsontext *t = begin_event(p, type);

	if (!t)
		return;
	jsontext_put(t, ",\"response\":");
	response_write_running(p, status, no, t);
	end_event(t);
}

/* An event about the item at the end of the output. */
static struct jsontext *begin_item_event(struct response *p, const char *type, const char *id)
{
	struct jsontext *t = begin_event(p, type);

	if (!t)
		return NULL;
	jsontext_put(t, ",\"item_id\":\"");
	jsontext_put(t, id);
	jsontext_put(t, "\",\"output_index\":");
	jsontext_number(t, json_array_size(p->output));
	return t;
}

static void say_item(struct response *p, const char *type, const json_t *item)
{
	struct jsontext *t = begin_event(p, type);

	if (!t)
		return;
	jsontext_format(t, ",\"output_index\":%zu,\"item\":", json_array_size(p->output));
	jsontext_value(t, item);
	end_event(t);
}

/* @raw: its logprobs come with it; NULL: it has none */
static void say_text(struct response *p, const char *type, const char *key, const char *text,
		     size_t len, const struct steamd_delta *raw)
{
	struct jsontext *t = begin_item_event(p, type, p->open_id);

	if (!t)
		return;
	jsontext_put(t, ",\"content_index\":0,\"");
	jsontext_put(t, key);
	jsontext_put(t, "\":");
	jsontext_quote(t, text, len);
	if (strcmp(p->open, "message") == 0) {
		jsontext_put(t, ",\"logprobs\":[");
		if (raw && p->r->fields.logprobs)
			reply_write_logprobs(p->r, raw, true, t);
		jsontext_put(t, "]");
	}
	end_event(t);
}

static void say_part(struct response *p, const char *type, const json_t *part)
{
	struct jsontext *t = begin_item_event(p, type, p->open_id);

	if (!t)
		return;
	jsontext_put(t, ",\"content_index\":0,\"part\":");
	jsontext_value(t, part);
	end_event(t);
}

static struct jsontext *text_of(struct response *p, const char *kind)
{
	struct choice *c = &p->r->choices[0];

	return strcmp(kind, "message") == 0 ? &c->content : &c->reasoning;
}

static void open_item(struct response *p, const char *kind)
{
	const bool message = strcmp(kind, "message") == 0;
	json_t *item, *part,
		*id = message ? item_id("msg", p->digits, (uint32_t)json_array_size(p->output))
			      : item_id("rs", p->digits, 0);

	p->open = kind;
	snprintf(p->open_id, sizeof(p->open_id), "%s", json_string_value(id));
	item = message ? json_pack("{s:O, s:s, s:s, s:s, s:[]}", "id", id, "type", "message",
				   "status", "in_progress", "role", "assistant", "content")
		       : json_pack("{s:O, s:s, s:s, s:[], s:[]}", "id", id, "type", "reasoning",
				   "status", "in_progress", "summary", "content");
	part = message ? json_pack("{s:s, s:s, s:[], s:[]}", "type", "output_text", "text", "",
				   "annotations", "logprobs")
		       : json_pack("{s:s, s:s}", "type", "reasoning_text", "text", "");
	say_item(p, "response.output_item.added", item);
	say_part(p, "response.content_part.added", part);
	json_decref(item);
	json_decref(part);
	json_decref(id);
}

static json_t *logprobs_of(const struct choice *c)
{
	struct jsontext t = { 0 };
	json_t *list;

	jsontext_put(&t, "[");
	jsontext_add(&t, c->logprobs[0].at, c->logprobs[0].n);
	jsontext_put(&t, "]");
	list = t.failed ? NULL : json_loadb(t.at, t.n, JSON_ALLOW_NUL, NULL);
	jsontext_deinit(&t);
	return list;
}

static void close_item(struct response *p)
{
	const bool message = p->open && strcmp(p->open, "message") == 0;
	const struct jsontext *all;
	const char *text;
	json_t *item;
	size_t len;

	if (!p->open)
		return;
	all = text_of(p, p->open);
	text = all->at ? all->at + p->open_from : "";
	len = all->n - MIN(p->open_from, all->n);
	item = message ? response_item_message(p->digits, (uint32_t)json_array_size(p->output),
					       text, len, logprobs_of(&p->r->choices[0]))
		       : response_item_reasoning(p->digits, text, len);
	say_text(p, message ? "response.output_text.done" : "response.reasoning_text.done", "text",
		 text, len, NULL);
	say_part(p, "response.content_part.done",
		 json_array_get(json_object_get(item, "content"), 0));
	say_item(p, "response.output_item.done", item);
	json_array_append_new(p->output, item);
	p->open = NULL;
}

/* What came of one kind; it was added to all there is already. */
static void take_text(struct response *p, const char *kind, const char *text, size_t len,
		      const struct steamd_delta *raw)
{
	if (len == 0)
		return;
	if (p->open && strcmp(p->open, kind) != 0)
		close_item(p);
	if (!p->open) {
		p->open_from = text_of(p, kind)->n - len;
		open_item(p, kind);
	}
	say_text(p,
		 strcmp(kind, "message") == 0 ? "response.output_text.delta"
					      : "response.reasoning_text.delta",
		 "delta", text, len, raw);
}

static void say_arguments(struct response *p, const char *type, const json_t *item, const char *key)
{
	struct jsontext *t = begin_item_event(p, type,
					      json_string_value(json_object_get(item, "id")));

	if (!t)
		return;
	jsontext_format(t, ",\"%s\":", key);
	jsontext_value(t, json_object_get(item, "arguments"));
	if (strcmp(key, "arguments") == 0) {
		jsontext_put(t, ",\"name\":");
		jsontext_value(t, json_object_get(item, "name"));
	}
	end_event(t);
}

static void take_calls(struct response *p, const json_t *calls)
{
	json_t *call, *item, *added;
	size_t i;

	json_array_foreach((json_t *)calls, i, call) {
		const json_t *function = json_object_get(call, "function");

		close_item(p);
		item = response_item_call(p->digits, p->n_calls++,
					  json_object_get(function, "name"),
					  json_object_get(function, "arguments"));
		added = json_copy(item);
		json_object_set_new(added, "status", json_string("in_progress"));
		json_object_set_new(added, "arguments", json_string(""));
		say_item(p, "response.output_item.added", added);
		json_decref(added);
		say_arguments(p, "response.function_call_arguments.delta", item, "delta");
		say_arguments(p, "response.function_call_arguments.done", item, "arguments");
		say_item(p, "response.output_item.done", item);
		json_array_append_new(p->output, item);
	}
}

/* The format. */

static void on_begin(struct reply *r)
{
	struct response *p = r->extra;

	/* one that fails before its turn began: its id is that of no other */
	if (r->unsettled) {
		new_session(&p->id);
		response_id_write(&p->id, p->digits);
	}
	say_state(r->extra, "response.created", "in_progress", NULL);
	say_state(r->extra, "response.in_progress", "in_progress", NULL);
}

static void on_delta(struct choice *c, const struct reply_delta *d)
{
	struct response *p = c->reply->extra;

	take_text(p, "reasoning", d->reasoning, d->reasoning_len, d->raw);
	if (c->reply->fields.logprobs && !d->reasoning_len)
		reply_write_logprobs(c->reply, d->raw, c->logprobs[0].n == 0, &c->logprobs[0]);
	take_text(p, "message", d->content, d->content_len, d->raw);
	take_calls(p, d->calls);
}

static void on_choice_end(struct choice *c)
{
	(void)c;
}

static void on_whole(struct reply *r)
{
	const struct reply_usage u = reply_usage(r);
	struct response *p = r->extra;
	const char *status = response_status(r->choices[0].finish);
	struct jsontext t = { 0 };
	char type[48];

	close_item(p);
	p->n_input = u.n_prompt;
	p->n_cached = u.n_cached;
	p->n_output = u.n_completion;
	p->n_reasoning = u.n_reasoning;
	if (r->fields.stream) {
		/* there is no event of its own for what was cancelled */
		snprintf(type, sizeof(type), "response.%s",
			 strcmp(status, "cancelled") == 0 ? "incomplete" : status);
		say_state(p, type, status, NULL);
		return;
	}
	response_write_running(p, status, NULL, &t);
	exchange_answer(r->x, 200, &t);
}

static void on_fail(struct reply *r, const struct refusal *no)
{
	close_item(r->extra);
	say_state(r->extra, "response.failed", "failed", no);
}

static void on_free(struct reply *r)
{
	struct response *p = r->extra;

	if (!p)
		return;
	LIST_REMOVE(p, link);
	json_decref(p->about);
	json_decref(p->messages);
	json_decref(p->tools);
	json_decref(p->output);
	free(p);
	r->extra = NULL;
}

static bool on_refused(struct reply *r, const struct steamd_error *err);

static const struct reply_format format = { on_begin, on_delta, on_choice_end, on_whole,
					    on_fail,  on_free,	on_refused };

/* Creating. */

static int make_about(struct response *p, struct refusal *no)
{
	const struct fields *f = &p->r->fields;
	static const char *const as_given[] = {
		"instructions",	       "previous_response_id", "metadata",
		"max_output_tokens",   "temperature",	       "top_p",
		"parallel_tool_calls", "tool_choice",	       "tools"
	};

	p->about = json_pack("{s:I, s:s, s:b}", "created_at", (json_int_t)p->r->created_s, "model",
			     p->r->model, "store", f->store);
	if (!p->about)
		return refusal_set(no, 503, "no-memory", NULL, "out of memory");
	for (size_t i = 0; i < ARRAY_SIZE(as_given); i++) {
		json_t *value = json_object_get(f->body, as_given[i]);

		if (value && !json_is_null(value))
			json_object_set(p->about, as_given[i], value);
	}
	if (f->effort)
		json_object_set_new(p->about, "effort", json_string(f->effort));
	json_object_set_new(p->about, "n_input",
			    json_integer((json_int_t)json_array_size(p->messages)));
	return 0;
}

static void begin_with(struct response *p, json_t *messages, bool in_session, uint32_t after)
{
	struct reply *r = p->r;
	struct refusal no;

	response_id_write(&p->id, p->digits);
	if (in_session) {
		r->fields.g.session = p->id.session;
		r->fields.g.session_create = after == 0;
		r->fields.g.session_after = after;
	}
	if (reply_add_prompts(r, 1) < 0 ||
	    conversation_write(messages, p->tools, r->fields.think, in_session ? p->about : NULL,
			       &r->prompts[0].messages, &r->prompts[0].messages_len) < 0) {
		refusal_set(&no, 503, "no-memory", NULL, "out of memory");
		reply_refuse(r, &no);
		return;
	}
	r->link->n_stored += in_session;
	reply_start(r);
}

/* All that was said before is sent again; @history is taken over. */
static void begin_anew(struct response *p, json_t *history)
{
	const char *instructions = p->r->fields.instructions;
	json_t *all = json_array();

	if (instructions && *instructions)
		json_array_append_new(
			all, json_pack("{s:s, s:s}", "role", "system", "content", instructions));
	if (history)
		json_array_extend(all, history);
	json_array_extend(all, p->messages);
	new_session(&p->id);
	p->id.instructions = responses_hash(instructions);
	begin_with(p, all, p->r->fields.store, 0);
	json_decref(all);
	json_decref(history);
}

static void go_on_in_session(struct response *p, const struct response_id *previous)
{
	p->id = *previous;
	p->id.turn++;
	p->r->unsettled = true;
	begin_with(p, p->messages, true, previous->turn);
}

/* The conversation of a session up to a turn: what was said, without the instructions. */
static json_t *history_of(const json_t *session, uint32_t last)
{
	json_t *all = json_array(), *turn;
	size_t i;

	json_array_foreach(json_object_get(session, "turn"), i, turn) {
		const json_t *request = json_object_get(turn, "request");
		const json_t *about = json_object_get(request, "response");
		json_t *messages = json_object_get(request, "messages");

		if (json_integer_value(json_object_get(turn, "n")) > (json_int_t)last)
			break;
		for (size_t k = 0; k < json_array_size(messages); k++)
			if (i > 0 || k > 0 ||
			    json_string_length(json_object_get(about, "instructions")) == 0)
				json_array_append(all, json_array_get(messages, k));
		json_array_append(all, json_object_get(turn, "answer"));
	}
	return all;
}

static void refuse_previous(struct reply *r)
{
	struct refusal no;

	refusal_set(&no, 404, REFUSAL_NOT_FOUND, "previous_response_id",
		    "there is no response '%.64s'", r->fields.previous);
	reply_refuse(r, &no);
}

/* A step on the way, while the reply waits: the exchange's work is the reply all the while. */
struct step {
	struct response *p;
	void (*then)(struct response *p, const struct steamd_result *result);
};

static void on_step_end(void *userdata, const struct steamd_result *result,
			const struct steamd_error *err)
{
	struct step step = *(struct step *)userdata;
	struct refusal no;

	free(userdata);
	step.p->r->in_use = false;
	if (!step.p->r->x) {
		reply_let_go(step.p->r);
		return;
	}
	if (!err) {
		step.then(step.p, result);
		return;
	}
	refusal_of(&no, err);
	/* nothing but the id could be wrong: the session is not there, or has fewer turns */
	if (no.status == 404 || no.status == 400)
		refuse_previous(step.p->r);
	else
		reply_refuse(step.p->r, &no);
}

static void take_step(struct response *p, enum steamd_session_verb verb,
		      const struct steamd_session *q,
		      void (*then)(struct response *p, const struct steamd_result *result))
{
	struct step *step = calloc(1, sizeof(*step));
	const struct steamd_handler handler = { .on_end = on_step_end, .userdata = step };
	struct steamd_error err = { -ENOMEM, STEAMD_CODE_LOCAL, "out of memory", 1, 0 };
	struct refusal no;

	if (step) {
		*step = (struct step){ p, then };
		p->r->in_use = true;
		if (steamd_start_session(p->r->link->s, verb, q, &handler, NULL, &err) == 0)
			return;
		p->r->in_use = false;
	}
	free(step);
	refusal_of(&no, &err);
	reply_refuse(p->r, &no);
}

static void then_shown(struct response *p, const struct steamd_result *result)
{
	json_t *session = json_loadb(result->json, result->json_len, JSON_ALLOW_NUL, NULL);
	struct response_id previous;

	if (response_id_parse(p->r->fields.previous, &previous) < 0 ||
	    json_array_size(json_object_get(session, "turn")) < previous.turn)
		refuse_previous(p->r);
	else
		begin_anew(p, history_of(session, previous.turn));
	json_decref(session);
}

static void then_forked(struct response *p, const struct steamd_result *result)
{
	(void)result;
	begin_with(p, p->messages, true, p->id.turn - 1);
}

/* The session went on from another response: one of the same beginning is made. */
static bool on_refused(struct reply *r, const struct steamd_error *err)
{
	struct response *p = r->extra;
	struct steamd_session q;
	struct response_id previous;

	if (!r->x || !r->unsettled)
		return false;
	if (strcmp(err->code, "no-such") == 0 && strncmp(err->text, "no session", 10) == 0) {
		refuse_previous(r);
		return true;
	}
	if (strcmp(err->code, "moved") != 0 || response_id_parse(r->fields.previous, &previous) < 0)
		return false;
	r->unsettled = false;
	reply_rewind(r);
	new_session(&p->id);
	p->id.turn = previous.turn + 1;
	steamd_session_init(&q);
	q.session = previous.session;
	q.name = p->id.session;
	q.turn = previous.turn;
	take_step(p, STEAMD_SESSION_FORK, &q, then_forked);
	return true;
}

static void go_on(struct response *p)
{
	struct response_id previous;
	struct steamd_session q;
	struct refusal no;

	if (response_id_parse(p->r->fields.previous, &previous) < 0) {
		refuse_previous(p->r);
		return;
	}
	if (response_refuse_running(p->r->x, p->r->fields.previous, &no)) {
		snprintf(no.param, sizeof(no.param), "previous_response_id");
		reply_refuse(p->r, &no);
		return;
	}
	if (p->r->fields.store &&
	    previous.instructions == responses_hash(p->r->fields.instructions)) {
		go_on_in_session(p, &previous);
		return;
	}
	steamd_session_init(&q);
	q.session = previous.session;
	take_step(p, STEAMD_SESSION_SHOW, &q, then_shown);
}

static struct response *response_new(struct reply *r)
{
	struct response *p = calloc(1, sizeof(*p));

	if (!p)
		return NULL;
	if (!r->g->responses)
		r->g->responses = calloc(1, sizeof(*r->g->responses));
	if (!r->g->responses) {
		free(p);
		return NULL;
	}
	p->r = r;
	p->messages = json_array();
	p->output = json_array();
	LIST_INSERT_HEAD(&r->g->responses->running, p, link);
	r->extra = p;
	r->keeps = true;
	return p;
}

void route_response_create(struct exchange *x)
{
	struct reply *r = reply_new(x, FIELDS_RESPONSES, "resp_", &format);
	struct response *p;
	struct refusal no;

	if (!r)
		return;
	p = response_new(r);
	if (!p)
		refusal_set(&no, 503, "no-memory", NULL, "out of memory");
	if (!p || conversation_add_items(p->messages, r->fields.input, &no) < 0 ||
	    conversation_tools(r->fields.tools, &p->tools, &no) < 0 || make_about(p, &no) < 0)
		reply_refuse(r, &no);
	else if (r->fields.previous)
		go_on(p);
	else
		begin_anew(p, NULL);
}
