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

static void print_regions(const json_t *device)
{
	const json_t *regions = json_object_get(device, "regions"), *r;
	size_t i;

	json_array_foreach(regions, i, r) {
		const char *name = json_string_value(json_object_get(r, "name"));

		printf("  %-16s ", name && name[0] ? name : "others");
		print_bytes((double)integer_at(r, "backed_bytes"));
		if (integer_at(r, "backed_bytes") < integer_at(r, "bytes")) {
			printf(" of ");
			print_bytes((double)integer_at(r, "bytes"));
			printf(" of addresses");
		}
		putchar('\n');
	}
}

static void print_frames(const json_t *kv)
{
	const char *map = json_string_value(json_object_get(kv, "map"));
	const size_t len = map ? strlen(map) : 0;

	if (integer_at(kv, "page_bytes") == 0)
		return;
	printf("  %-16s %" JSON_INTEGER_FORMAT " of %" JSON_INTEGER_FORMAT " pages, groups of ",
	       "KV pages", integer_at(kv, "live_pages"), integer_at(kv, "pages"));
	print_bytes((double)integer_at(kv, "group_bytes"));
	printf("\n  %-16s %" JSON_INTEGER_FORMAT " pages\n", "largest free run",
	       integer_at(kv, "largest_free_run"));
	printf("  %-16s %.2f of the free pages stand in groups with others\n", "fragmentation",
	       json_real_value(json_object_get(kv, "fragmentation")));
	for (size_t i = 0; i < len; i += MAP_WIDTH)
		printf("  %-16s %.*s\n", i == 0 ? "map" : "", MAP_WIDTH, map + i);
	if (len > 0)
		printf("  %-16s   no memory  . free  o some free  # has pages\n", "");
}

static void print_card(const json_t *card)
{
	const char *text = json_string_value(json_object_get(card, "text"));

	printf("  %-16s ", "card");
	if (json_object_get(card, "free_bytes")) {
		print_bytes((double)integer_at(card, "free_bytes"));
		printf(" of ");
		print_bytes((double)integer_at(card, "total_bytes"));
		printf(" free");
	}
	if (json_object_get(card, "power_mw"))
		printf(", %.0f W", (double)integer_at(card, "power_mw") / 1000);
	if (json_object_get(card, "power_limit_mw"))
		printf(" of %.0f W", (double)integer_at(card, "power_limit_mw") / 1000);
	if (json_object_get(card, "temperature_c"))
		printf(", %" JSON_INTEGER_FORMAT " C", integer_at(card, "temperature_c"));
	printf("%s\n", text ? text : "");
}

static void print_devices(const json_t *executor)
{
	const json_t *devices = json_object_get(executor, "devices"), *d;
	size_t i;

	json_array_foreach(devices, i, d) {
		printf("GPU %-14zu ", i);
		print_bytes((double)integer_at(d, "taken_bytes"));
		printf(" taken, at most ");
		print_bytes((double)integer_at(d, "peak_bytes"));
		putchar('\n');
		if (integer_at(d, "stuck_bytes") > 0) {
			printf("  %-16s ", "not given back");
			print_bytes((double)integer_at(d, "stuck_bytes"));
			printf(": the driver refused\n");
		}
		if (integer_at(d, "refused_bytes") > 0) {
			printf("  %-16s ", "refused last");
			print_bytes((double)integer_at(d, "refused_bytes"));
			putchar('\n');
		}
		print_regions(d);
		print_frames(json_object_get(d, "kv"));
		print_card(json_object_get(d, "card"));
	}
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
	print_devices(json_object_get(status, "executor"));
	if (json_object_get(status, "kv"))
		print_kv(json_object_get(status, "kv"));
	json_decref(status);
	return EXIT_OK;
}
