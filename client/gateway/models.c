/* /v1/models, and what there is no model for. */
#include <string.h>

#include "client/gateway/link.h"
#include "client/gateway/routes.h"

static void write_model(struct jsontext *t, const struct gateway *g, const char *name,
			const json_t *model)
{
	jsontext_put(t, "{\"id\":");
	jsontext_quote_string(t, name);
	jsontext_format(t, ",\"object\":\"model\",\"created\":%llu,\"owned_by\":\"steamd\"",
			(unsigned long long)g->started_s);
	if (json_is_integer(json_object_get(model, "context")))
		jsontext_format(t, ",\"max_model_len\":%" JSON_INTEGER_FORMAT,
				json_integer_value(json_object_get(model, "context")));
	jsontext_put(t, "}");
}

static json_t *models_of(const struct steamd_result *result)
{
	json_t *answer = result ? json_loads(result->json, 0, NULL) : NULL;
	json_t *list = json_incref(json_object_get(answer, "models"));

	json_decref(answer);
	return list;
}

static void refuse_with(struct exchange *x, const struct steamd_error *err)
{
	struct refusal no;

	refusal_of(&no, err);
	exchange_refuse(x, &no);
}

/* Aliases are models, too: an application shows what it can ask for. */
static void then_models(struct exchange *x, const struct steamd_result *result,
			const struct steamd_error *err)
{
	json_t *list = err ? NULL : models_of(result), *model, *alias;
	struct jsontext text = { 0 };
	size_t i, k, n = 0;

	if (err) {
		refuse_with(x, err);
		return;
	}
	jsontext_put(&text, "{\"object\":\"list\",\"data\":[");
	json_array_foreach(list, i, model) {
		jsontext_put(&text, n++ ? "," : "");
		write_model(&text, x->g, json_string_value(json_object_get(model, "name")), model);
		json_array_foreach(json_object_get(model, "aliases"), k, alias) {
			jsontext_put(&text, ",");
			write_model(&text, x->g, json_string_value(alias), model);
		}
	}
	jsontext_put(&text, "]}");
	json_decref(list);
	exchange_answer(x, 200, &text);
}

void route_models(struct exchange *x)
{
	link_query(x, STEAMD_MODELS, then_models);
}

static bool is_named(const json_t *model, const char *id)
{
	json_t *alias;
	size_t i;

	if (strcmp(json_string_value(json_object_get(model, "name")), id) == 0)
		return true;
	json_array_foreach(json_object_get(model, "aliases"), i, alias)
		if (strcmp(json_string_value(alias), id) == 0)
			return true;
	return false;
}

static void then_model(struct exchange *x, const struct steamd_result *result,
		       const struct steamd_error *err)
{
	json_t *list = err ? NULL : models_of(result), *model;
	struct jsontext text = { 0 };
	struct refusal no;
	size_t i;

	if (err) {
		refuse_with(x, err);
		return;
	}
	json_array_foreach(list, i, model)
		if (text.n == 0 && is_named(model, x->id))
			write_model(&text, x->g, x->id, model);
	json_decref(list);
	if (text.n > 0) {
		exchange_answer(x, 200, &text);
		return;
	}
	refusal_set(&no, 404, REFUSAL_NOT_FOUND, "model", "there is no model '%s'", x->id);
	exchange_refuse(x, &no);
}

void route_model(struct exchange *x)
{
	link_query(x, STEAMD_MODELS, then_model);
}

void route_embeddings(struct exchange *x)
{
	struct refusal no;

	refusal_set(&no, 400, "no-embeddings", NULL,
		    "steamd's model writes text and makes no embeddings; another server is wanted "
		    "for them");
	exchange_refuse(x, &no);
}
