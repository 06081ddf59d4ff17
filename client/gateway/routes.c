/* The table of routes. */
#include "client/gateway/routes.h"

#include <string.h>
#include <strings.h>

#include "client/wire/ownership.h"

static const struct route routes[] = {
	{ "GET", "/health", false, true, route_health },
	{ "GET", "/ready", false, true, route_ready },
	{ "GET", "/metrics", false, false, route_metrics },
	{ "GET", "/v1/models", false, false, route_models },
	{ "GET", "/v1/models/{id}", false, false, route_model },
	{ "POST", "/v1/chat/completions", true, false, route_chat },
	{ "POST", "/v1/completions", true, false, route_completions },
	{ "POST", "/v1/responses", true, false, route_response_create },
	{ "GET", "/v1/responses/{id}", false, false, route_response_get },
	{ "DELETE", "/v1/responses/{id}", false, false, route_response_delete },
	{ "POST", "/v1/responses/{id}/cancel", false, false, route_response_cancel },
	{ "GET", "/v1/responses/{id}/input_items", false, false, route_response_items },
	{ "POST", "/v1/embeddings", true, false, route_embeddings },
	{ "POST", "/tokenize", true, false, route_tokenize },
	{ "POST", "/detokenize", true, false, route_detokenize },
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
				const char **ret_allowed)
{
	if (strcmp(method, "HEAD") == 0)
		method = "GET";
	for (size_t i = 0; i < ARRAY_SIZE(routes); i++) {
		if (!matches(routes[i].path, path, id, id_size))
			continue;
		if (strcmp(routes[i].method, method) == 0)
			return &routes[i];
		*ret_allowed = routes[i].method;
	}
	return NULL;
}

void routes_print(FILE *f)
{
	for (size_t i = 0; i < ARRAY_SIZE(routes); i++)
		fprintf(f, "%s %s\n", routes[i].method, routes[i].path);
}
