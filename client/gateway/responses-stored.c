/* Responses that are there already: shown, removed, cancelled, and forgotten in time. */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "client/gateway/conversation.h"
#include "client/gateway/responses.h"
#include "client/gateway/routes.h"

#define EXPIRE_US (3600ull * 1000 * 1000) /* old ones are looked for after so long … */
#define EXPIRE_EVERY 50			  /* … or so many new ones */

static const char *argument_of(const struct exchange *x, const char *name)
{
	return MHD_lookup_connection_value(x->http, MHD_GET_ARGUMENT_KIND, name);
}

static void refuse_unknown(struct exchange *x)
{
	struct refusal no;

	refusal_set(&no, 404, REFUSAL_NOT_FOUND, NULL, "there is no response '%s'", x->id);
	exchange_refuse(x, &no);
}

static void refuse_with(struct exchange *x, const struct steamd_error *err)
{
	struct refusal no;

	if (strcmp(err->code, "no-such") == 0) {
		refuse_unknown(x);
		return;
	}
	refusal_of(&no, err);
	exchange_refuse(x, &no);
}

static void ask_session(struct exchange *x, enum steamd_session_verb verb,
			const struct steamd_session *q, link_then_fn then)
{
	struct ask *ask = link_ask(x, then);
	struct steamd_error err = { 0 };

	if (ask)
		link_asked(ask,
			   steamd_start_session(ask->link->s, verb, q, &ask->handler, &ask->request,
						&err),
			   &err);
}

static void show_session(struct exchange *x, link_then_fn then)
{
	struct steamd_session q;
	struct response_id id;

	steamd_session_init(&q);
	if (response_id_parse(x->id, &id) < 0) {
		refuse_unknown(x);
		return;
	}
	q.session = id.session;
	ask_session(x, STEAMD_SESSION_SHOW, &q, then);
}

static json_t *load(const struct steamd_result *result)
{
	return json_loadb(result->json, result->json_len, JSON_ALLOW_NUL, NULL);
}

/* The turn that @x names; NULL: it is not there, or another response has its place. */
static const json_t *turn_of(const struct exchange *x, const json_t *session, uint32_t *ret_n)
{
	const json_t *turn, *about;
	struct response_id id;

	if (response_id_parse(x->id, &id) < 0)
		return NULL;
	turn = json_array_get(json_object_get(session, "turn"), id.turn - 1);
	about = json_object_get(json_object_get(turn, "request"), "response");
	if (!about || !json_object_get(turn, "answer") ||
	    responses_hash(json_string_value(json_object_get(about, "instructions"))) !=
		    id.instructions)
		return NULL;
	*ret_n = id.turn;
	return turn;
}

/* Retrieving. */

/* Reasoning, text and calls as they were streamed. */
static json_t *output_of(const char *digits, const json_t *answer)
{
	const json_t *reasoning = json_object_get(answer, "reasoning_content"),
		     *content = json_object_get(answer, "content");
	json_t *output = json_array(), *call;
	size_t i;

	if (json_string_length(reasoning) > 0)
		json_array_append_new(output,
				      response_item_reasoning(digits, json_string_value(reasoning),
							      json_string_length(reasoning)));
	if (json_string_length(content) > 0)
		json_array_append_new(
			output, response_item_message(digits, (uint32_t)json_array_size(output),
						      json_string_value(content),
						      json_string_length(content), NULL));
	json_array_foreach(json_object_get(answer, "tool_calls"), i, call) {
		const json_t *inner = json_object_get(call, "function");
		const json_t *function = inner ? inner : call;
		const json_t *given = json_object_get(function, "arguments");
		struct jsontext text = { 0 };
		json_t *arguments;

		if (json_is_string(given))
			jsontext_add(&text, json_string_value(given), json_string_length(given));
		else
			jsontext_value(&text, given);
		arguments = json_stringn(text.at ? text.at : "{}", text.at ? text.n : 2);
		json_array_append_new(output, response_item_call(digits, (uint32_t)i,
								 json_object_get(function, "name"),
								 arguments));
		json_decref(arguments);
		jsontext_deinit(&text);
	}
	return output;
}

static void then_get(struct exchange *x, const struct steamd_result *result,
		     const struct steamd_error *err)
{
	json_t *session, *output;
	struct jsontext text = { 0 };
	const json_t *turn;
	uint32_t n;

	if (err) {
		refuse_with(x, err);
		return;
	}
	session = load(result);
	turn = turn_of(x, session, &n);
	if (!turn) {
		refuse_unknown(x);
	} else {
		const json_int_t n_prompt = json_integer_value(json_object_get(turn, "n_prompt")),
				 n_ids = json_integer_value(json_object_get(turn, "n_ids"));
		const char *finish = json_string_value(json_object_get(turn, "finish"));
		/* a turn of a steamd that did not keep it has none */
		const json_t *cached = json_object_get(turn, "n_cached"),
			     *reasoning = json_object_get(turn, "n_reasoning");
		const struct response_facts facts = {
			.digits = x->id + 5,
			.about = json_object_get(json_object_get(turn, "request"), "response"),
			.status = response_status(finish),
			.output = output = output_of(x->id + 5, json_object_get(turn, "answer")),
			.has_usage = true,
			.has_cached = cached != NULL,
			.n_cached = (uint64_t)json_integer_value(cached),
			.n_reasoning = (uint64_t)json_integer_value(reasoning),
			.n_input = (uint64_t)n_prompt,
			.n_output = (uint64_t)(n_ids - n_prompt),
		};

		response_write(&facts, &text);
		json_decref(output);
		exchange_answer(x, 200, &text);
	}
	json_decref(session);
}

void route_response_get(struct exchange *x)
{
	const struct response *running = responses_running(x->g, x->id);
	const char *stream = argument_of(x, "stream");
	struct jsontext text = { 0 };
	struct refusal no;

	if (stream && strcmp(stream, "false") != 0) {
		refusal_of_field(&no, "stream",
				 "stream is '%.32s'; what is stored is shown whole, and streamed "
				 "while it is made alone",
				 stream);
		exchange_refuse(x, &no);
		return;
	}
	if (!running || !link_is_of(running->r->link, x->label)) {
		show_session(x, then_get);
		return;
	}
	response_write_running(running, "in_progress", NULL, &text);
	exchange_answer(x, 200, &text);
}

/* What was said, as items. */

static json_t *message_item(const char *digits, size_t n, const json_t *message)
{
	const char *role = json_string_value(json_object_get(message, "role"));
	const bool assistant = role && strcmp(role, "assistant") == 0;
	char id[64];

	snprintf(id, sizeof(id), "msg_%si%02zx", digits, n);
	return json_pack("{s:s, s:s, s:s, s:s, s:[{s:s, s:O}]}", "id", id, "type", "message",
			 "status", "completed", "role", role ? role : "user", "content", "type",
			 assistant ? "output_text" : "input_text", "text",
			 json_object_get(message, "content"));
}

static void add_items(json_t *to, const char *digits, size_t n, const json_t *message)
{
	const char *role = json_string_value(json_object_get(message, "role"));
	json_t *call;
	char id[64];
	size_t i;

	snprintf(id, sizeof(id), "fco_%si%02zx", digits, n);
	if (role && strcmp(role, "tool") == 0) {
		json_array_append_new(to,
				      json_pack("{s:s, s:s, s:s, s:O?, s:O}", "id", id, "type",
						"function_call_output", "status", "completed",
						"call_id", json_object_get(message, "tool_call_id"),
						"output", json_object_get(message, "content")));
		return;
	}
	if (json_string_length(json_object_get(message, "content")) > 0 ||
	    !json_object_get(message, "tool_calls"))
		json_array_append_new(to, message_item(digits, n, message));
	json_array_foreach(json_object_get(message, "tool_calls"), i, call) {
		const json_t *function = json_object_get(call, "function");

		snprintf(id, sizeof(id), "fc_%si%02zx%02zx", digits, n, i);
		json_array_append_new(to, json_pack("{s:s, s:s, s:s, s:O?, s:O, s:O}", "id", id,
						    "type", "function_call", "status", "completed",
						    "call_id", json_object_get(call, "id"), "name",
						    json_object_get(function, "name"), "arguments",
						    json_object_get(function, "arguments")));
	}
}

static json_t *items_of(const char *digits, const json_t *turn)
{
	const json_t *request = json_object_get(turn, "request");
	const json_t *messages = json_object_get(request, "messages");
	const size_t n = json_array_size(messages);
	const json_int_t n_input = json_integer_value(
		json_object_get(json_object_get(request, "response"), "n_input"));
	json_t *items = json_array();

	/* those that came with the request are the last ones */
	for (size_t i = n - MIN(n, (size_t)MAX(n_input, 0)); i < n; i++)
		add_items(items, digits, i, json_array_get(messages, i));
	return items;
}

#define LIMIT 20 /* items on a page, unless another number is asked for */
#define LIMIT_MAX 100

static uint64_t limit_of(const struct exchange *x)
{
	const char *text = argument_of(x, "limit");

	return text ? strtoull(text, NULL, 10) : LIMIT;
}

/* Whether they make sense; else the exchange is refused. */
static bool check_arguments(struct exchange *x)
{
	const char *order = argument_of(x, "order"), *limit = argument_of(x, "limit");
	struct refusal no = { 0 };

	if (limit && (strspn(limit, "0123456789") != strlen(limit) || limit_of(x) < 1 ||
		      limit_of(x) > LIMIT_MAX))
		refusal_of_field(&no, "limit", "limit is '%.32s'; 1 to %d is possible", limit,
				 LIMIT_MAX);
	else if (order && strcmp(order, "asc") != 0 && strcmp(order, "desc") != 0)
		refusal_of_field(&no, "order", "order is '%.32s'; asc or desc is wanted", order);
	if (no.status)
		exchange_refuse(x, &no);
	return !no.status;
}

static bool has_item(const json_t *items, const char *id)
{
	json_t *item;
	size_t i;

	json_array_foreach((json_t *)items, i, item)
		if (strcmp(json_string_value(json_object_get(item, "id")), id) == 0)
			return true;
	return false;
}

/* The newest come first, unless asked otherwise; after: the last item of the page before. */
static void write_items(struct exchange *x, const json_t *items, struct jsontext *t)
{
	const char *order = argument_of(x, "order"), *after = argument_of(x, "after");
	const bool ascending = order && strcmp(order, "asc") == 0;
	const size_t n = json_array_size(items);
	const json_t *first = NULL, *last = NULL;
	uint64_t left = limit_of(x);
	bool more = false, begun = !after;

	jsontext_put(t, "{\"object\":\"list\",\"data\":[");
	for (size_t i = 0; i < n; i++) {
		const json_t *item = json_array_get(items, ascending ? i : n - 1 - i);
		const char *id = json_string_value(json_object_get(item, "id"));

		if (begun && left == 0) {
			more = true;
			break;
		}
		if (begun) {
			jsontext_put(t, first ? "," : "");
			jsontext_value(t, item);
			first = first ? first : item;
			last = item;
			left--;
		}
		begun = begun || strcmp(id, after) == 0;
	}
	jsontext_put(t, "],\"first_id\":");
	jsontext_value(t, json_object_get(first, "id"));
	jsontext_put(t, ",\"last_id\":");
	jsontext_value(t, json_object_get(last, "id"));
	jsontext_format(t, ",\"has_more\":%s}", more ? "true" : "false");
}

static void then_items(struct exchange *x, const struct steamd_result *result,
		       const struct steamd_error *err)
{
	struct jsontext text = { 0 };
	const char *after = argument_of(x, "after");
	json_t *session, *items;
	const json_t *turn;
	struct refusal no;
	uint32_t n;

	if (err) {
		refuse_with(x, err);
		return;
	}
	session = load(result);
	turn = turn_of(x, session, &n);
	items = turn ? items_of(x->id + 5, turn) : NULL;
	if (items && after && !has_item(items, after)) {
		refusal_of_field(&no, "after", "after is '%.64s', which is no item of the response",
				 after);
		exchange_refuse(x, &no);
	} else if (items) {
		write_items(x, items, &text);
		exchange_answer(x, 200, &text);
	} else {
		refuse_unknown(x);
	}
	json_decref(items);
	json_decref(session);
}

void route_response_items(struct exchange *x)
{
	if (check_arguments(x))
		show_session(x, then_items);
}

/* Removing. */

static void then_deleted(struct exchange *x, const struct steamd_result *result,
			 const struct steamd_error *err)
{
	struct jsontext text = { 0 };

	(void)result;
	if (err) {
		refuse_with(x, err);
		return;
	}
	jsontext_format(&text, "{\"id\":\"%s\",\"object\":\"response\",\"deleted\":true}", x->id);
	exchange_answer(x, 200, &text);
}

static void then_delete(struct exchange *x, const struct steamd_result *result,
			const struct steamd_error *err)
{
	struct steamd_session q;
	struct response_id id;
	struct refusal no;
	json_t *session;
	size_t n_turns;
	bool known;
	uint32_t n = 0;

	if (err) {
		refuse_with(x, err);
		return;
	}
	session = load(result);
	n_turns = json_array_size(json_object_get(session, "turn"));
	known = turn_of(x, session, &n);
	json_decref(session);
	steamd_session_init(&q);
	if (!known || response_id_parse(x->id, &id) < 0) {
		refuse_unknown(x);
	} else if (n < n_turns) {
		refusal_set(
			&no, 409, "moved", NULL,
			"response '%s' is what later ones go on from: delete the last one first",
			x->id);
		exchange_refuse(x, &no);
	} else {
		q.session = id.session;
		q.turn = n - 1;
		ask_session(x, n > 1 ? STEAMD_SESSION_REWIND : STEAMD_SESSION_RM, &q, then_deleted);
	}
}

void route_response_delete(struct exchange *x)
{
	struct refusal no;

	if (response_refuse_running(x, x->id, &no))
		exchange_refuse(x, &no);
	else
		show_session(x, then_delete);
}

/* Cancelling. */

void route_response_cancel(struct exchange *x)
{
	struct response *running = responses_running(x->g, x->id);
	struct jsontext text = { 0 };
	struct refusal no;

	if (!running || !link_is_of(running->r->link, x->label)) {
		refusal_set(&no, 404, REFUSAL_NOT_FOUND, NULL, "no response '%s' is being made",
			    x->id);
		exchange_refuse(x, &no);
		return;
	}
	response_write_running(running, "cancelled", NULL, &text);
	reply_cut(running->r, "cancelled");
	exchange_answer(x, 200, &text);
}

/* In time. */

struct stored {
	char id[24];
	json_int_t used;
};

static int by_use(const void *a, const void *b)
{
	const struct stored *x = a, *y = b;

	return (x->used < y->used) - (x->used > y->used);
}

/* What is to be removed: one after the other, so that answers find room on the connection. */
struct removal {
	struct link *link;
	struct stored *list;
	size_t n; /* left */
};

/* How the one before ended does not matter: it may be gone already, or go on just now. */
static void remove_next(void *userdata, const struct steamd_result *result,
			const struct steamd_error *err)
{
	struct removal *r = userdata;
	const struct steamd_handler handler = { .on_end = remove_next, .userdata = r };
	struct steamd_session q;

	(void)result, (void)err;
	steamd_session_init(&q);
	if (r->n > 0) {
		q.session = r->list[--r->n].id;
		if (steamd_start_session(r->link->s, STEAMD_SESSION_RM, &q, &handler, NULL, NULL) ==
		    0)
			return;
	}
	free(r->list);
	free(r);
}

/* The newest first; pinned ones and those of other names are no business of ours. */
static size_t list_stored(const json_t *sessions, struct stored *list)
{
	size_t n = 0, i;
	json_t *one;

	json_array_foreach((json_t *)sessions, i, one) {
		const char *id = json_string_value(json_object_get(one, "id")),
			   *name = json_string_value(json_object_get(one, "name"));

		if (!id || !name || json_is_true(json_object_get(one, "pinned")) ||
		    strncmp(name, RESPONSES_PREFIX, strlen(RESPONSES_PREFIX)) != 0)
			continue;
		snprintf(list[n].id, sizeof(list[n].id), "%s", id);
		list[n++].used = json_integer_value(json_object_get(one, "used"));
	}
	qsort(list, n, sizeof(*list), by_use);
	return n;
}

static void on_listed(void *userdata, const struct steamd_result *result,
		      const struct steamd_error *err)
{
	struct link *l = userdata;
	const struct setup *s = l->g->setup;
	json_t *answer = err ? NULL : load(result);
	const json_t *sessions = json_object_get(answer, "sessions");
	const json_int_t oldest = (json_int_t)time(NULL) - (json_int_t)s->response_days * 86400;
	struct stored *list = calloc(json_array_size(sessions) + 1, sizeof(*list));
	struct removal *removal = calloc(1, sizeof(*removal));
	size_t n = list ? list_stored(sessions, list) : 0, keep = 0;

	while (keep < MIN(n, s->max_responses) && list[keep].used >= oldest)
		keep++;
	if (list && removal) {
		memmove(list, list + keep, (n - keep) * sizeof(*list));
		*removal = (struct removal){ l, list, n - keep };
		remove_next(removal, NULL, NULL);
	} else {
		free(list);
		free(removal);
	}
	json_decref(answer);
}

void responses_look(struct link *l)
{
	const struct steamd_handler handler = { .on_end = on_listed, .userdata = l };
	const uint64_t now_us = gateway_now_us();

	if (l->expired_us > 0 && now_us - l->expired_us < EXPIRE_US && l->n_stored < EXPIRE_EVERY)
		return;
	l->expired_us = now_us;
	l->n_stored = 0;
	steamd_start_session(l->s, STEAMD_SESSION_LIST, NULL, &handler, NULL, NULL);
}
