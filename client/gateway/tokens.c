/* /tokenize and /detokenize. */
#include <errno.h>
#include <string.h>

#include "client/gateway/fields.h"
#include "client/gateway/link.h"
#include "client/gateway/routes.h"

static void refuse_with(struct exchange *x, const struct steamd_error *err)
{
	struct refusal no;

	refusal_of(&no, err);
	exchange_refuse(x, &no);
}

/* A body that holds @wanted, perhaps the flag @optional and a model, and nothing else. */
static json_t *read_body(struct exchange *x, const char *wanted, const char *optional)
{
	const json_t *flag, *model;
	json_t *body = NULL;
	struct refusal no = { 0 };

	if (fields_parse(x->body, x->body_bytes, &body, &no) == 0 && !json_object_get(body, wanted))
		refusal_of_field(&no, wanted, "%s is missing", wanted);
	for (void *it = json_object_iter(body); it && !no.status && !x->g->setup->ignore_unknown;
	     it = json_object_iter_next(body, it)) {
		const char *key = json_object_iter_key(it);

		if (strcmp(key, wanted) != 0 && strcmp(key, optional) != 0 &&
		    strcmp(key, "model") != 0)
			refusal_of_field(&no, key, "there is no field '%.64s'", key);
	}
	flag = json_object_get(body, optional);
	model = json_object_get(body, "model");
	if (!no.status && flag && !json_is_boolean(flag) && !json_is_null(flag))
		refusal_of_field(&no, optional, "%s is %s; true or false is wanted", optional,
				 fields_type(flag));
	if (!no.status && model && !json_is_string(model) && !json_is_null(model))
		refusal_of_field(&no, "model", "model is %s; a string is wanted",
				 fields_type(model));
	if (!no.status)
		return body;
	json_decref(body);
	exchange_refuse(x, &no);
	return NULL;
}

static void then_tokens(struct exchange *x, const struct steamd_result *result,
			const struct steamd_error *err)
{
	struct jsontext text = { 0 };

	if (err) {
		refuse_with(x, err);
		return;
	}
	jsontext_put(&text, "{\"tokens\":[");
	for (size_t i = 0; i < result->n_ids; i++)
		jsontext_format(&text, i ? ",%u" : "%u", result->ids[i]);
	jsontext_format(&text, "],\"count\":%zu}", result->n_ids);
	exchange_answer(x, 200, &text);
}

void route_tokenize(struct exchange *x)
{
	json_t *body = read_body(x, "prompt", "add_special_tokens");
	const json_t *prompt = json_object_get(body, "prompt");
	/* false: markers in the text are text like the rest */
	const bool plain = json_is_false(json_object_get(body, "add_special_tokens"));
	struct steamd_error err = { 0 };
	struct refusal no;
	struct ask *ask;

	if (!body)
		return;
	if (!json_is_string(prompt)) {
		refusal_of_field(&no, "prompt", "prompt is %s; a string is wanted",
				 fields_type(prompt));
		exchange_refuse(x, &no);
	} else if ((ask = link_ask(x, then_tokens))) {
		link_asked(ask,
			   steamd_start_tokenize(ask->link->s, json_string_value(prompt),
						 json_string_length(prompt),
						 plain ? STEAMD_PLAIN : 0, &ask->handler,
						 &ask->request, &err),
			   &err);
	}
	json_decref(body);
}

static void then_text(struct exchange *x, const struct steamd_result *result,
		      const struct steamd_error *err)
{
	struct jsontext text = { 0 };

	if (err) {
		refuse_with(x, err);
		return;
	}
	jsontext_put(&text, "{\"prompt\":");
	jsontext_quote(&text, result->text, result->text_len);
	jsontext_put(&text, "}");
	exchange_answer(x, 200, &text);
}

/* malloc'd; NULL: @no says why. */
static uint32_t *ids_of(const json_t *list, struct refusal *no)
{
	uint32_t *ids = calloc(json_array_size(list) + 1, sizeof(*ids));
	json_t *one;
	size_t i;

	if (!json_is_array(list))
		refusal_of_field(no, "tokens", "tokens is %s; a list of ids is wanted",
				 fields_type(list));
	else if (!ids)
		refusal_set(no, 503, "no-memory", NULL, "out of memory");
	json_array_foreach((json_t *)list, i, one) {
		if (no->status)
			break;
		if (!json_is_integer(one) || json_integer_value(one) < 0 ||
		    json_integer_value(one) > UINT32_MAX)
			refusal_of_field(no, "tokens", "tokens[%zu] is no token's id", i);
		else
			ids[i] = (uint32_t)json_integer_value(one);
	}
	if (!no->status)
		return ids;
	free(ids);
	return NULL;
}

void route_detokenize(struct exchange *x)
{
	json_t *body = read_body(x, "tokens", "skip_special_tokens");
	const json_t *list = json_object_get(body, "tokens");
	_cleanup_(freep) uint32_t *ids = NULL;
	struct steamd_error err = { 0 };
	struct refusal no = { 0 };
	struct ask *ask;

	if (!body)
		return;
	ids = ids_of(list, &no);
	if (!ids)
		exchange_refuse(x, &no);
	else if ((ask = link_ask(x, then_text)))
		link_asked(ask,
			   steamd_start_detokenize(
				   ask->link->s, ids, json_array_size(list),
				   json_is_true(json_object_get(body, "skip_special_tokens"))
					   ? STEAMD_SKIP_SPECIAL
					   : 0,
				   &ask->handler, &ask->request, &err),
			   &err);
	json_decref(body);
}
