/*
 * The speed of the model in service, as any client gets it, and how much of
 * the machine's limit that is. A token cannot come faster than its weights and
 * the context's KV are read: the daemon's status says how many bytes these
 * are, and how fast the executor's threads read them (it measured that itself,
 * when the weights were loaded: nobody else has its threads and its memory).
 */
#include <string.h>

#include "client/steamctl/steamctl.h"

#define PROMPT_TOKENS 512
#define ANSWER_TOKENS 64
#define ROUNDS 3

struct timing {
	uint64_t prefill_us, decode_us;
	uint32_t n_prompt, n_completion;
};

/* What the daemon's status says. */
struct facts {
	json_t *status; /* owns the strings */
	const char *model, *device, *isa;
	double threads, active_parameters;
	double weight_bytes, kv_bytes; /* read for a token; for a token, of each one before it */
	double read_bytes_per_second;
};

struct figures {
	uint32_t n_prompt, n_answer, n_rounds;
	double prefill, decode; /* tokens a second, medians */
	double prefill_gflops;
	double bytes;	     /* read for a token, in the middle of the answer */
	double limit, share; /* of decode; 0: not known */
};

static void on_end(void *userdata, const struct steamd_result *r, const struct steamd_error *err)
{
	struct timing *t = userdata;

	if (!err)
		*t = (struct timing){ r->prefill_us, r->decode_us, r->n_prompt, r->n_completion };
}

/* Bytes of text are tokens of every model; other ones each round, so that no cache helps. */
static int ask(struct ctl *c, uint32_t *ids, uint32_t n_prompt, uint32_t n_answer, uint32_t round,
	       struct timing *ret)
{
	const struct steamd_handler handler = { NULL, NULL, on_end, ret };
	struct steamd_error err = { 0 };

	for (uint32_t k = 0; k < n_prompt; k++)
		ids[k] = (k * 7 + round * 31 + k * k / 5) % 200;
	c->g.ids = ids;
	c->g.n_ids = n_prompt;
	c->g.max_tokens = n_answer;
	c->g.ignore_eos = 1;
	return steamd_generate(c->s, &c->g, &handler, &err) < 0 ? fail_with(&err) : EXIT_OK;
}

static double number(const json_t *object, const char *key)
{
	return json_number_value(json_object_get(object, key));
}

static const char *text(const json_t *object, const char *key)
{
	const char *value = json_string_value(json_object_get(object, key));

	return value ? value : "?";
}

static int read_facts(struct ctl *c, struct facts *ret)
{
	_cleanup_(freep) char *answer = NULL;
	struct steamd_error err = { 0 };
	const json_t *executor, *model, *kv, *load;
	json_error_t error;
	double others;

	if (steamd_query(c->s, STEAMD_STATUS, &answer, &err) < 0)
		return fail_with(&err);
	ret->status = json_loads(answer, 0, &error);
	if (!ret->status)
		return fail(EXIT_PROTOCOL, "the daemon's answer is no JSON: %s", error.text);
	executor = json_object_get(ret->status, "executor");
	model = json_object_get(ret->status, "model");
	kv = json_object_get(ret->status, "kv");
	load = json_object_get(ret->status, "load");
	ret->model = text(model, "name");
	ret->device = text(executor, "device");
	ret->isa = text(executor, "isa");
	ret->threads = number(executor, "threads");
	ret->active_parameters = number(model, "active_parameters");
	ret->weight_bytes = number(executor, "decode_bytes");
	ret->read_bytes_per_second = number(executor, "read_bytes_per_second");
	if (number(kv, "page_tokens") > 0)
		ret->kv_bytes = number(kv, "page_bytes") / number(kv, "page_tokens");
	others = number(load, "running") + number(load, "queued");
	if (others > 0)
		fprintf(stderr, "steamctl: %.0f other requests share the machine with this one\n",
			others);
	return EXIT_OK;
}

static int by_value(const void *a, const void *b)
{
	const double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double *values, uint32_t n)
{
	qsort(values, n, sizeof(*values), by_value);
	return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

static double per_second(double n, uint64_t us)
{
	return us > 0 ? n * 1e6 / (double)us : 0;
}

static int measure(struct ctl *c, struct figures *f)
{
	_cleanup_(freep) uint32_t *ids = calloc(f->n_prompt, sizeof(*ids));
	_cleanup_(freep) double *prefill = calloc(f->n_rounds, sizeof(*prefill));
	_cleanup_(freep) double *decode = calloc(f->n_rounds, sizeof(*decode));

	if (!ids || !prefill || !decode)
		return fail(EXIT_LOCAL, "out of memory");
	for (uint32_t i = 0; i < f->n_rounds; i++) {
		struct timing t = { 0 };
		const int r = ask(c, ids, f->n_prompt, f->n_answer, i, &t);

		if (r != EXIT_OK)
			return r;
		prefill[i] = per_second(t.n_prompt, t.prefill_us);
		decode[i] = per_second(t.n_completion - 1, t.decode_us);
	}
	f->prefill = median(prefill, f->n_rounds);
	f->decode = median(decode, f->n_rounds);
	return EXIT_OK;
}

static void relate(struct figures *f, const struct facts *facts)
{
	f->prefill_gflops = 2 * facts->active_parameters * f->prefill / 1e9;
	f->bytes = facts->weight_bytes + facts->kv_bytes * (f->n_prompt + f->n_answer / 2.0);
	if (f->bytes <= 0 || facts->read_bytes_per_second <= 0)
		return;
	f->limit = facts->read_bytes_per_second / f->bytes;
	f->share = f->decode / f->limit;
}

static bool show_json(const struct figures *f, const struct facts *facts)
{
	return print_json(json_pack(
		"{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:I, s:I, s:f, s:f}", "model",
		facts->model, "device", facts->device, "isa", facts->isa, "threads",
		(json_int_t)facts->threads, "prompt_tokens", (json_int_t)f->n_prompt,
		"completion_tokens", (json_int_t)f->n_answer, "rounds", (json_int_t)f->n_rounds,
		"prefill_tokens_per_second", f->prefill, "prefill_gflops", f->prefill_gflops,
		"decode_tokens_per_second", f->decode, "bytes_per_token", (json_int_t)f->bytes,
		"read_bytes_per_second", (json_int_t)facts->read_bytes_per_second,
		"limit_tokens_per_second", f->limit, "decode_share", f->share));
}

static void show(const struct figures *f, const struct facts *facts)
{
	printf("%s on %s, %s, %.0f threads\n", facts->model, facts->device, facts->isa,
	       facts->threads);
	printf("  prefill %6u tokens %10.1f tokens/s  %.1f GFLOP/s\n", f->n_prompt, f->prefill,
	       f->prefill_gflops);
	printf("  decode  %6u tokens %10.1f tokens/s", f->n_answer, f->decode);
	if (f->limit > 0)
		printf("  %.0f %% of the limit\n  limit %25.1f tokens/s  %.3f GB a token, read at "
		       "%.1f GB/s",
		       100 * f->share, f->limit, f->bytes / 1e9,
		       facts->read_bytes_per_second / 1e9);
	printf("\n(medians of %u; a prompt's limit is arithmetic, an answer's is memory)\n",
	       f->n_rounds);
}

int run_bench(struct ctl *c)
{
	struct figures f = {
		.n_prompt = c->prompt_tokens ? c->prompt_tokens : PROMPT_TOKENS,
		.n_answer = c->tokens ? c->tokens : ANSWER_TOKENS,
		.n_rounds = c->rounds ? c->rounds : ROUNDS,
	};
	struct facts facts = { .status = NULL };
	struct timing warm;
	uint32_t id;
	int r;

	/* waits for the model, where it is not there yet */
	r = ask(c, &id, 1, 1, 0, &warm);
	if (r == EXIT_OK)
		r = read_facts(c, &facts);
	if (r == EXIT_OK)
		r = measure(c, &f);
	if (r == EXIT_OK) {
		relate(&f, &facts);
		if (!c->json)
			show(&f, &facts);
		else if (!show_json(&f, &facts))
			r = EXIT_PIPE;
	}
	json_decref(facts.status);
	return r;
}
