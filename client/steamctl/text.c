/* Text and tokens: tokenize, detokenize, render, score. */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "client/steamctl/steamctl.h"
#include "client/wire/utf8.h"

bool print_json(json_t *line)
{
	const bool ok = line &&
			json_dumpf(line, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9)) == 0 &&
			putchar('\n') != EOF;

	json_decref(line);
	return ok;
}

static int print_object(const char *key, json_t *value)
{
	return print_json(json_pack("{s:o}", key, value)) ? EXIT_OK : EXIT_PIPE;
}

/* stdin or words, with what is not UTF-8 replaced. */
int run_tokenize(struct ctl *c)
{
	_cleanup_(freep) char *text = NULL;
	_cleanup_(freep) uint32_t *ids = NULL;
	struct steamd_error err = { 0 };
	json_t *list;
	size_t len, n;
	int r;

	r = read_prompt(c, &text, &len);
	if (r)
		return r;
	if (steamd_tokenize(c->s, text, len, c->no_special ? STEAMD_PLAIN : 0, &ids, &n, &err) < 0)
		return fail_with(&err);
	if (!c->json) {
		for (size_t i = 0; i < n; i++)
			printf("%s%u", i ? " " : "", ids[i]);
		putchar('\n');
		return EXIT_OK;
	}
	list = json_array();
	for (size_t i = 0; i < n; i++)
		json_array_append_new(list, json_integer(ids[i]));
	return print_object("ids", list);
}

int run_detokenize(struct ctl *c)
{
	_cleanup_(freep) uint32_t *ids = NULL;
	_cleanup_(freep) char *text = NULL;
	struct steamd_error err = { 0 };
	size_t n, len;
	int r;

	r = read_ids(c, &ids, &n);
	if (r)
		return r;
	if (steamd_detokenize(c->s, ids, n, c->skip_special ? STEAMD_SKIP_SPECIAL : 0, &text, &len,
			      &err) < 0)
		return fail_with(&err);
	if (c->json)
		return print_object("text", json_stringn(text, len));
	fwrite(text, 1, len, stdout);
	return EXIT_OK;
}

int run_render(struct ctl *c)
{
	_cleanup_(freep) char *json = NULL, *text = NULL;
	struct steamd_error err = { 0 };
	size_t json_len, len;
	int r;

	r = read_prompt(c, &json, &json_len);
	if (r)
		return r;
	if (steamd_render(c->s, json, json_len, &text, &len, &err) < 0)
		return fail_with(&err);
	if (c->json)
		return print_object("text", json_stringn(text, len));
	fwrite(text, 1, len, stdout);
	return EXIT_OK;
}

struct scoring {
	struct ctl *c;
	double sum;
	uint64_t n;
	bool pipe_closed;
};

static void print_score(const struct scoring *sc, const struct steamd_delta *d, uint32_t i)
{
	const float logprob = d->logprobs ? d->logprobs[i] : NAN;
	json_t *line, *top;

	if (!sc->c->json) {
		if (isnan(logprob))
			printf("%10s  %u\n", "", d->ids[i]);
		else
			printf("%10.5f  %u\n", logprob, d->ids[i]);
		return;
	}
	line = json_object();
	top = json_array();
	json_object_set_new(line, "id", json_integer(d->ids[i]));
	json_object_set_new(line, "logprob", isnan(logprob) ? json_null() : json_real(logprob));
	for (uint32_t k = 0; k < d->n_top && !isnan(logprob); k++)
		json_array_append_new(top,
				      json_pack("[I, f]", (json_int_t)d->top_ids[i * d->n_top + k],
						(double)d->top_logprobs[i * d->n_top + k]));
	if (sc->c->top)
		json_object_set(line, "top", top);
	json_decref(top);
	print_json(line); /* a closed stdout is seen when it is flushed */
}

static int on_scores(void *userdata, const struct steamd_delta *d)
{
	struct scoring *sc = userdata;

	for (uint32_t i = 0; i < d->n_ids; i++) {
		if (d->logprobs && !isnan(d->logprobs[i])) {
			sc->sum += d->logprobs[i];
			sc->n++;
		}
		print_score(sc, d, i);
	}
	sc->pipe_closed = fflush(stdout) != 0 || ferror(stdout);
	return sc->pipe_closed || interrupt_pending();
}

int run_score(struct ctl *c)
{
	_cleanup_(freep) uint32_t *ids = NULL;
	_cleanup_(freep) char *text = NULL;
	struct scoring sc = { .c = c };
	const struct steamd_handler handler = { NULL, on_scores, NULL, &sc };
	struct steamd_score q = { .struct_bytes = sizeof(q),
				  .n_top = c->top,
				  .deadline_ms = c->g.deadline_ms };
	struct steamd_error err = { 0 };
	int r;

	if (c->ids) {
		r = read_ids(c, &ids, &q.n_ids);
		q.ids = ids;
	} else {
		r = read_prompt(c, &text, &q.prompt_len);
		q.prompt = text;
	}
	if (r)
		return r;
	if (steamd_score(c->s, &q, &handler, &err) < 0)
		return sc.pipe_closed	     ? EXIT_PIPE
		       : interrupt_pending() ? EXIT_INTERRUPTED
					     : fail_with(&err);
	if (!c->json && sc.n)
		printf("%10.5f  mean of %llu, perplexity %.4f\n", sc.sum / (double)sc.n,
		       (unsigned long long)sc.n, exp(-sc.sum / (double)sc.n));
	return EXIT_OK;
}
