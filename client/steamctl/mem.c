/* What steamd holds in memory, drawn for a person. */
#include <string.h>

#include "client/steamctl/steamctl.h"

#define MAP_WIDTH 64

static void print_bytes(double bytes)
{
	if (bytes >= 1 << 30)
		printf("%.2f GiB", bytes / (1 << 30));
	else
		printf("%.2f MiB", bytes / (1 << 20));
}

static json_int_t integer_at(const json_t *o, const char *key)
{
	return json_integer_value(json_object_get(o, key));
}

static void print_weights(const json_t *executor)
{
	const char *state = json_string_value(json_object_get(executor, "state"));

	printf("%-18s ", "weights");
	if (json_object_get(executor, "weight_bytes"))
		print_bytes((double)integer_at(executor, "weight_bytes"));
	else
		printf("none (%s)", state ? state : "no executor");
	putchar('\n');
}

static void print_pages(const json_t *kv, const char *title, const char *key)
{
	const json_int_t n = integer_at(kv, key);

	printf("  %-16s %" JSON_INTEGER_FORMAT " pages, ", title, n);
	print_bytes((double)n * (double)integer_at(kv, "page_bytes"));
	putchar('\n');
}

static void print_map(const char *map)
{
	const size_t len = map ? strlen(map) : 0;

	for (size_t i = 0; i < len; i += MAP_WIDTH)
		printf("%-18s %.*s\n", i == 0 ? "map" : "", MAP_WIDTH, map + i);
	if (len > 0)
		printf("%-18s . free  o some free  + kept, held by nobody  # held\n", "");
}

static void print_kv(const json_t *kv)
{
	printf("%-18s %" JSON_INTEGER_FORMAT " pages of %" JSON_INTEGER_FORMAT " tokens, ",
	       "KV cache", integer_at(kv, "pages"), integer_at(kv, "page_tokens"));
	print_bytes((double)integer_at(kv, "bytes"));
	printf("; ");
	print_bytes((double)integer_at(kv, "resident_bytes"));
	printf(" of it taken\n");
	print_pages(kv, "held", "held_pages");
	print_pages(kv, "kept", "kept_pages");
	print_pages(kv, "free", "free_pages");
	print_pages(kv, "largest free run", "largest_free_run");
	printf("  %-16s %.2f of what is free is outside it\n", "fragmentation",
	       json_real_value(json_object_get(kv, "fragmentation")));
	print_map(json_string_value(json_object_get(kv, "map")));
}

int run_mem(struct ctl *c)
{
	_cleanup_(freep) char *text = NULL;
	struct steamd_error err = { 0 };
	json_error_t error;
	json_t *status, *o;

	if (steamd_query(c->s, STEAMD_STATUS, &text, &err) < 0)
		return fail_with(&err);
	status = json_loads(text, 0, &error);
	if (!status)
		return fail(EXIT_PROTOCOL, "the daemon's answer is no JSON: %s", error.text);
	if (c->json) {
		o = json_object();
		json_object_set(o, "executor", json_object_get(status, "executor"));
		json_object_set(o, "kv", json_object_get(status, "kv"));
		json_decref(status);
		return print_json(o) && fflush(stdout) == 0 ? EXIT_OK : EXIT_PIPE;
	}
	print_weights(json_object_get(status, "executor"));
	if (json_object_get(status, "kv"))
		print_kv(json_object_get(status, "kv"));
	json_decref(status);
	return EXIT_OK;
}
