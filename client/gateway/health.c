/* /health, /ready and /metrics. */
#include <string.h>

#include "client/gateway/link.h"
#include "client/gateway/routes.h"

void route_health(struct exchange *x)
{
	struct jsontext text = { 0 };

	jsontext_put(&text, "{\"status\":\"ok\"}");
	exchange_answer(x, 200, &text);
}

static const char *string_of(const json_t *object, const char *key)
{
	const char *value = json_string_value(json_object_get(object, key));

	return value ? value : "";
}

static uint64_t number_of(const json_t *object, const char *key)
{
	return (uint64_t)json_integer_value(json_object_get(object, key));
}

/* Serving, or asleep: then the next request wakes it. */
static void then_ready(struct exchange *x, const struct steamd_result *result,
		       const struct steamd_error *err)
{
	json_t *status = err ? NULL : json_loads(result->json, 0, NULL);
	const char *state = string_of(status, "state"), *why = string_of(status, "text");
	const json_t *executor = json_object_get(status, "executor");
	struct jsontext text = { 0 };
	struct refusal no;

	if (err) {
		refusal_of(&no, err);
		if (no.status != 503)
			no.status = 503;
		exchange_refuse(x, &no);
		return;
	}
	if (strcmp(state, "ready") == 0 || strcmp(state, "asleep") == 0) {
		jsontext_format(&text, "{\"status\":\"%s\"}", state);
		exchange_answer(x, 200, &text);
	} else {
		if (strcmp(state, "loading") == 0)
			refusal_set(&no, 503, "unavailable", NULL,
				    "the model is being loaded: %llu %%",
				    (unsigned long long)number_of(executor, "percent"));
		else
			refusal_set(&no, 503, "unavailable", NULL, "steamd is %s%s%s", state,
				    *why ? ": " : "", why);
		exchange_refuse(x, &no);
	}
	json_decref(status);
}

void route_ready(struct exchange *x)
{
	link_query(x, STEAMD_STATUS, then_ready);
}

static void metric(struct jsontext *t, const char *name, const char *type, const char *help,
		   uint64_t value)
{
	jsontext_format(t, "# HELP steamd_%s %s\n# TYPE steamd_%s %s\nsteamd_%s %llu\n", name, help,
			name, type, name, (unsigned long long)value);
}

static void write_own(struct jsontext *t, const struct gateway *g)
{
	const struct gateway_counts *n = &g->counts;
	uint64_t running = 0, waiting = 0;
	const struct link *l;

	LIST_FOREACH(l, &g->links, link)
	{
		running += l->n_running;
		waiting += l->n_waiting;
	}
	metric(t, "gateway_connections", "gauge", "open HTTP connections", g->n_visitors);
	metric(t, "gateway_connections_total", "counter", "HTTP connections", n->n_visitors);
	metric(t, "gateway_refused_connections_total", "counter", "HTTP connections turned away",
	       n->n_turned_away);
	metric(t, "gateway_requests_total", "counter", "HTTP requests", n->n_requests);
	jsontext_put(t, "# HELP steamd_gateway_responses_total HTTP responses by class of status\n"
			"# TYPE steamd_gateway_responses_total counter\n");
	for (unsigned i = 2; i < ARRAY_SIZE(n->n_status); i++)
		jsontext_format(t, "steamd_gateway_responses_total{class=\"%uxx\"} %llu\n", i,
				(unsigned long long)n->n_status[i]);
	metric(t, "gateway_abandoned_total", "counter", "answers whose reader left",
	       n->n_cancelled);
	metric(t, "gateway_running", "gauge", "answers with steamd", running);
	metric(t, "gateway_waiting", "gauge", "answers waiting for room on the connection",
	       waiting);
	metric(t, "gateway_tokens_total", "counter", "tokens of answers", n->n_tokens);
	metric(t, "gateway_prompt_tokens_total", "counter", "tokens of prompts",
	       n->n_prompt_tokens);
	metric(t, "gateway_cached_tokens_total", "counter", "of these, found in the cache",
	       n->n_cached_tokens);
}

static void write_steamd(struct jsontext *t, const json_t *status)
{
	const json_t *load = json_object_get(status, "load"), *kv = json_object_get(status, "kv");
	const char *state = string_of(status, "state");

	metric(t, "up", "gauge", "whether steamd answers", 1);
	metric(t, "ready", "gauge", "whether the model is served, or asleep and able to wake",
	       strcmp(state, "ready") == 0 || strcmp(state, "asleep") == 0);
	metric(t, "requests_total", "counter", "requests of all clients",
	       number_of(status, "requests_served"));
	metric(t, "prompt_tokens_total", "counter", "prompt tokens of all clients",
	       number_of(status, "prompt_tokens"));
	metric(t, "completion_tokens_total", "counter", "sampled tokens of all clients",
	       number_of(status, "completion_tokens"));
	metric(t, "running", "gauge", "turns being computed", number_of(load, "running"));
	metric(t, "queued", "gauge", "turns waiting", number_of(load, "queued"));
	metric(t, "kv_pages", "gauge", "pages of the KV cache", number_of(kv, "pages"));
	metric(t, "kv_free_pages", "gauge", "of these, holding nothing",
	       number_of(kv, "free_pages"));
}

/* Without steamd the gateway's own are there all the same. */
static void then_metrics(struct exchange *x, const struct steamd_result *result,
			 const struct steamd_error *err)
{
	json_t *status = err ? NULL : json_loads(result->json, 0, NULL);
	struct jsontext text = { 0 };

	write_own(&text, x->g);
	if (status)
		write_steamd(&text, status);
	else
		metric(&text, "up", "gauge", "whether steamd answers", 0);
	json_decref(status);
	exchange_answer_as(x, 200, "text/plain; version=0.0.4", &text);
}

void route_metrics(struct exchange *x)
{
	link_query(x, STEAMD_STATUS, then_metrics);
}
