/* The table of routes. */
#include "client/gateway/routes.h"

#include <string.h>
#include <strings.h>

#include "client/gateway/fields.h"
#include "client/wire/ownership.h"

static const char tokenize_schema[] =
	"{\"type\":\"object\",\"required\":[\"prompt\"],\"properties\":{\"prompt\":{\"type\":"
	"\"string\"},\"add_special_tokens\":{\"type\":\"boolean\"},\"model\":{\"type\":\"string\"}}"
	","
	"\"additionalProperties\":false}";
static const char detokenize_schema[] =
	"{\"type\":\"object\",\"required\":[\"tokens\"],\"properties\":{\"tokens\":{\"type\":"
	"\"array\",\"items\":{\"type\":\"integer\",\"minimum\":0}},\"skip_special_tokens\":{"
	"\"type\":"
	"\"boolean\"},\"model\":{\"type\":\"string\"}},\"additionalProperties\":false}";
static const char any_schema[] = "{\"type\":\"object\"}";

static const char items_parameters[] =
	",{\"name\":\"limit\",\"in\":\"query\",\"schema\":{\"type\":\"integer\",\"minimum\":1,"
	"\"maximum\":100}},{\"name\":\"order\",\"in\":\"query\",\"schema\":{\"enum\":[\"asc\","
	"\"desc\"]}},{\"name\":\"after\",\"in\":\"query\",\"schema\":{\"type\":\"string\"}}";

static const struct route routes[] = {
	{ "GET", "/health", false, true, route_health, "the gateway is alive", NULL, 0, NULL },
	{ "GET", "/ready", false, true, route_ready,
	  "the model is served, or asleep and able to wake", NULL, 0, NULL },
	{ "GET", "/metrics", false, false, route_metrics, "counters for Prometheus", NULL, 0,
	  "text/plain" },
	{ "GET", "/v1/models", false, false, route_models, "names of the model in service", NULL, 0,
	  NULL },
	{ "GET", "/v1/models/{id}", false, false, route_model, "one of them", NULL, 0, NULL },
	{ "POST", "/v1/chat/completions", true, false, route_chat, "an answer to a conversation",
	  NULL, FIELDS_CHAT, NULL },
	{ "POST", "/v1/completions", true, false, route_completions, "text that goes on", NULL,
	  FIELDS_TEXT, NULL },
	{ "POST", "/v1/responses", true, false, route_response_create,
	  "an answer, which may be stored and gone on from", NULL, FIELDS_RESPONSES, NULL },
	{ "GET", "/v1/responses/{id}", false, false, route_response_get, "a stored response", NULL,
	  0, NULL },
	{ "DELETE", "/v1/responses/{id}", false, false, route_response_delete, "remove it", NULL, 0,
	  NULL },
	{ "POST", "/v1/responses/{id}/cancel", false, false, route_response_cancel,
	  "end one that is being made", NULL, 0, NULL },
	{ "GET", "/v1/responses/{id}/input_items", false, false, route_response_items,
	  "what it was an answer to", NULL, 0, NULL },
	{ "POST", "/v1/embeddings", true, false, route_embeddings, "refused: there are none",
	  any_schema, 0, NULL },
	{ "POST", "/tokenize", true, false, route_tokenize, "text to token ids", tokenize_schema, 0,
	  NULL },
	{ "POST", "/detokenize", true, false, route_detokenize, "token ids to text",
	  detokenize_schema, 0, NULL },
};

/* Whether @path is of the form @pattern, in which {id} is one part. */
static bool matches(const char *pattern, const char *path, char *id, size_t id_size)
{
	const char *open = strchr(pattern, '{');
	size_t before, n;

	if (!open)
		return strcmp(pattern, path) == 0;
	before = (size_t)(open - pattern);
	if (strncmp(pattern, path, before) != 0)
		return false;
	n = strcspn(path + before, "/");
	/* one that is too long is none that there could be */
	if (n == 0 || n >= id_size || strcmp(strchr(open, '}') + 1, path + before + n) != 0)
		return false;
	memcpy(id, path + before, n);
	id[n] = '\0';
	return true;
}

const struct route *routes_find(const char *method, const char *path, char *id, size_t id_size,
				char *ret_allowed)
{
	size_t n = 0;

	ret_allowed[0] = '\0';
	if (strcmp(method, "HEAD") == 0)
		method = "GET";
	for (size_t i = 0; i < ARRAY_SIZE(routes); i++) {
		if (!matches(routes[i].path, path, id, id_size))
			continue;
		if (strcmp(routes[i].method, method) == 0)
			return &routes[i];
		n += (size_t)snprintf(ret_allowed + n, ROUTES_ALLOWED_BYTES - n, "%s%s",
				      n ? ", " : "", routes[i].method);
	}
	return NULL;
}

void routes_print(FILE *f)
{
	for (size_t i = 0; i < ARRAY_SIZE(routes); i++)
		fprintf(f, "%s %s\n", routes[i].method, routes[i].path);
}

static const char error_schema[] = "{\"type\":\"object\",\"required\":[\"error\"],\"properties\":{"
				   "\"error\":{\"type\":\"object\","
				   "\"required\":[\"message\",\"type\",\"param\",\"code\"],"
				   "\"properties\":{\"message\":{\"type\":"
				   "\"string\"},\"type\":{\"type\":\"string\"},\"param\":{\"type\":"
				   "[\"string\",\"null\"]},\"code\":"
				   "{\"type\":\"string\"}}}}}";

static void write_route(const struct route *r, struct jsontext *t)
{
	for (const char *m = r->method; *m; m++)
		jsontext_format(t, "%s%c", m == r->method ? "\"" : "", *m - 'A' + 'a');
	jsontext_format(t, "\":{\"summary\":\"%s\"", r->summary);
	if (strchr(r->path, '{')) {
		jsontext_put(t,
			     ",\"parameters\":[{\"name\":\"id\",\"in\":\"path\",\"required\":true,"
			     "\"schema\":{\"type\":\"string\",\"minLength\":1,\"maxLength\":100}}");
		if (r->handle == route_response_items)
			jsontext_put(t, items_parameters);
		jsontext_put(t, "]");
	}
	if (r->has_body) {
		jsontext_put(
			t, ",\"requestBody\":{\"required\":true,\"content\":{\"application/json\":"
			   "{\"schema\":");
		if (r->schema)
			jsontext_put(t, r->schema);
		else
			fields_write_schema(r->api, t);
		jsontext_put(t, "}}}");
	}
	jsontext_format(t,
			",\"responses\":{\"200\":{\"description\":\"it is so\",\"content\":{\"%s\":"
			"{}%s}},\"default\":{\"description\":\"why not\",\"content\":"
			"{\"application/json\":{\"schema\":%s}}}}}",
			r->type ? r->type : "application/json",
			r->api ? ",\"text/event-stream\":{}" : "", error_schema);
}

void routes_print_openapi(FILE *f)
{
	struct jsontext t = { 0 };

	jsontext_put(&t,
		     "{\"openapi\":\"3.1.0\",\"info\":{\"title\":\"steamd-gateway\",\"version\":"
		     "\"" STEAMD_VERSION "\"},\"paths\":{");
	for (size_t i = 0; i < ARRAY_SIZE(routes); i++) {
		const bool same = i > 0 && strcmp(routes[i - 1].path, routes[i].path) == 0;

		if (same)
			jsontext_put(&t, ",");
		else
			jsontext_format(&t, "%s\"%s\":{", i > 0 ? "}," : "", routes[i].path);
		write_route(&routes[i], &t);
	}
	jsontext_put(&t, "}}}\n");
	if (t.at && !t.failed)
		fputs(t.at, f);
	jsontext_deinit(&t);
}
