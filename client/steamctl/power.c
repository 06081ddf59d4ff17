/* sleep, wake and yield: what they wait for goes to stderr, what came of it to stdout. */
#include <errno.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "client/steamctl/steamctl.h"

#define GIB (1024.0 * 1024 * 1024)

struct waiting {
	struct ctl *c;
	bool ended, told_busy;
	int code;
	char *json;
};

/* Scripts wait for this one, so it comes in any case. */
static void print_held(const struct waiting *w, const struct steamd_progress *progress)
{
	if (w->c->json) {
		printf("{\"state\":\"yielded\",\"freed_mib\":%u,\"wanted_mib\":%u}\n",
		       progress->done, progress->total);
		fflush(stdout);
	} else {
		fprintf(stderr, "%s%s\n", isatty(STDERR_FILENO) ? "\r\033[K" : "", progress->text);
	}
}

/* It may take long: whoever waits, a script's log too, is told for what, once or as it changes. */
static void print_busy(struct waiting *w, const struct steamd_progress *progress)
{
	const bool again = w->told_busy;

	w->told_busy = true;
	if (isatty(STDERR_FILENO))
		fprintf(stderr, "\r\033[K%s", progress->text);
	else if (!again)
		fprintf(stderr, "%s\n", progress->text);
}

static void on_progress(void *userdata, const struct steamd_progress *progress)
{
	struct waiting *w = userdata;

	if (strcmp(progress->state, "yielded") == 0)
		print_held(w, progress);
	else if (!w->c->json && strcmp(progress->state, "busy") == 0)
		print_busy(w, progress);
	else if (!w->c->json && isatty(STDERR_FILENO)) /* for a person, and only if there is one */
		fprintf(stderr, "\r\033[K%s", progress->text[0] ? progress->text : progress->state);
}

static void on_end(void *userdata, const struct steamd_result *result,
		   const struct steamd_error *err)
{
	struct waiting *w = userdata;

	w->ended = true;
	if (!w->c->json && isatty(STDERR_FILENO))
		fputs("\r\033[K", stderr);
	if (err)
		w->code = fail_with(err);
	else
		w->json = result->json ? strndup(result->json, result->json_len) : NULL;
}

static double gib(const json_t *root, const char *key)
{
	return json_number_value(json_object_get(root, key)) / GIB;
}

static int print_end(const struct waiting *w)
{
	json_t *root;

	if (!w->json)
		return fail(EXIT_PROTOCOL, "the daemon's answer has no JSON");
	if (w->c->json) {
		puts(w->json);
		return EXIT_OK;
	}
	root = json_loads(w->json, 0, NULL);
	if (json_object_get(root, "freed_bytes"))
		printf("%.2f GiB of %.2f GiB freed; lease: %s\n", gib(root, "freed_bytes"),
		       gib(root, "wanted_bytes"),
		       json_string_value(json_object_get(root, "lease")));
	else
		printf("%s\n", json_string_value(json_object_get(root, "rung")));
	json_decref(root);
	return EXIT_OK;
}

/* Until the request's end, or Ctrl-C: then the connection closes, and so the wish is withdrawn. */
static int await_end(struct waiting *w, int started, const struct steamd_error *start_err)
{
	struct steamd_error err = { 0 };
	int r = started;

	if (r < 0)
		return fail_with(start_err);
	while (!w->ended && !interrupt_pending()) {
		r = steamd_wait(w->c->s, -1, &err);
		if (r < 0 && r != -EINTR)
			return fail_with(&err);
	}
	if (!w->ended)
		return EXIT_INTERRUPTED;
	r = w->code ? w->code : print_end(w);
	free(w->json);
	return r;
}

int run_sleep(struct ctl *c)
{
	struct waiting w = { .c = c };
	const struct steamd_handler h = { on_progress, NULL, on_end, &w };
	struct steamd_error err = { 0 };
	int r;

	if (c->n_words > 1)
		return fail(EXIT_USAGE, "sleep wants one rung: quiet, parked or gone");
	r = steamd_start_sleep(c->s, c->n_words ? c->words[0] : NULL, c->now, &h, NULL, &err);
	return await_end(&w, r, &err);
}

int run_wake(struct ctl *c)
{
	struct waiting w = { .c = c };
	const struct steamd_handler h = { on_progress, NULL, on_end, &w };
	struct steamd_error err = { 0 };
	int r;

	r = steamd_start_wake(c->s, &h, NULL, &err);
	return await_end(&w, r, &err);
}

/* "1.5G" in bytes; 0: it is no size. */
static uint64_t parse_size(const char *text)
{
	static const char units[] = "KMGT";
	const char *unit;
	double value;
	char *end;

	errno = 0;
	value = strtod(text, &end);
	if (errno || end == text || !isfinite(value) || value <= 0)
		return 0;
	unit = *end ? strchr(units, *end) : NULL;
	if (unit) {
		value *= (double)(1ull << 10 * (unit - units + 1));
		end++;
	}
	return *end || value >= 0x1p63 ? 0 : (uint64_t)value;
}

int run_yield(struct ctl *c)
{
	struct waiting w = { .c = c };
	const struct steamd_handler h = { on_progress, NULL, on_end, &w };
	struct steamd_error err = { 0 };
	uint64_t bytes;
	int r;

	bytes = c->n_words == 1 ? parse_size(c->words[0]) : 0;
	if (bytes == 0)
		return fail(EXIT_USAGE, "yield wants one size, such as 8G");
	r = steamd_start_yield(c->s, bytes, c->pid, &h, NULL, &err);
	r = await_end(&w, r, &err);
	/* without a process, Ctrl-C is how a lease ends */
	return r == EXIT_INTERRUPTED && !c->pid ? EXIT_OK : r;
}
