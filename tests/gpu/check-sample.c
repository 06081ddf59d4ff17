/*
 * op_sample() against the executor's own sampler: for equal logits, seed and
 * position the same token. On a GPU, and on the emulator of tests/cuemu.
 *
 * Usage: check-sample [--small]
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/exec/sample/sampler.h"
#include "kernels/sample.h"

#define CHUNK_BYTES ((size_t)2 << 20)
#define ROWS 4
#define DRAWS 6 /* of a case, at positions behind one another; fewer if small */

static struct dev *dev;
static struct stream *st;
static uint64_t state = 1;
static int n_passed, n_failed;
static bool small;

static _Noreturn void give_up(const char *what, int r)
{
	printf("not ok %s: %s\n", what, strerror(-r));
	exit(1);
}

static float even(void)
{
	state = state * 6364136223846793005u + 1442695040888963407u;
	return (float)(state >> 40) / (1 << 23) - 1;
}

static uint32_t below(uint32_t n)
{
	state = state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)((state >> 33) % n);
}

static void *device_room(size_t bytes)
{
	const size_t room = (bytes + CHUNK_BYTES - 1) / CHUNK_BYTES * CHUNK_BYTES;
	void *at = dev_reserve(dev, room);
	int r = at ? dev_back(dev, at, room) : -ENOMEM;

	if (r < 0)
		give_up("device memory", r);
	return at;
}

static void give(void *to, const void *from, size_t bytes)
{
	const int r = bytes ? dev_write(dev, to, from, bytes) : 0;

	if (r < 0)
		give_up("dev_write", r);
}

/* Kinds of logits that a row may have. */
enum logits { SMOOTH, PEAKED, EQUAL, FEW_VALUES, WITH_HOLES, ALL_HOLES, LOGITS };

static void fill(float *logits, uint32_t vocab, enum logits kind)
{
	for (uint32_t i = 0; i < vocab; i++) {
		const float x = even();

		logits[i] = kind == SMOOTH	 ? 3 * x
			    : kind == PEAKED	 ? 25 * x * x * x
			    : kind == EQUAL	 ? 1.5f
			    : kind == FEW_VALUES ? (float)below(3)
			    : kind == ALL_HOLES	 ? -INFINITY
			    : below(3)		 ? 4 * x
			    : below(2)		 ? -INFINITY
						 : NAN;
	}
	if (kind == WITH_HOLES)
		logits[below(vocab)] = 1e30f;
}

struct one {
	const char *name;
	enum logits logits;
	struct step_sampler params;
	uint32_t n_pushed;
	bool bias;
};

#define OFF .temperature = 1, .top_p = 1, .repetition = 1
static const struct one cases[] = {
	{ "plain", SMOOTH, { OFF }, 0, false },
	{ "greedy", SMOOTH, { .top_p = 1, .repetition = 1 }, 0, false },
	{ "greedy among equals", EQUAL, { .top_p = 1, .repetition = 1 }, 0, false },
	{ "peaked", PEAKED, { OFF }, 0, false },
	{ "the model's defaults", PEAKED, { OFF, .min_p = 0.01 }, 0, false },
	{ "equals", EQUAL, { OFF }, 0, false },
	{ "equals, the first half",
	  EQUAL,
	  { .temperature = 1, .top_p = 0.5, .repetition = 1 },
	  0,
	  false },
	{ "few values", FEW_VALUES, { OFF }, 0, false },
	{ "few values, top k", FEW_VALUES, { OFF, .top_k = 7 }, 0, false },
	{ "top k", SMOOTH, { OFF, .top_k = 40 }, 0, false },
	{ "top k of many", SMOOTH, { OFF, .top_k = 3000 }, 0, false },
	{ "top 1", SMOOTH, { OFF, .top_k = 1 }, 0, false },
	{ "top p", SMOOTH, { .temperature = 1, .top_p = 0.9, .repetition = 1 }, 0, false },
	{ "top p of little",
	  PEAKED,
	  { .temperature = 1, .top_p = 0.3, .repetition = 1 },
	  0,
	  false },
	{ "top p of nothing", SMOOTH, { .temperature = 1, .repetition = 1 }, 0, false },
	{ "hot",
	  SMOOTH,
	  { .temperature = 7, .top_p = 0.97, .repetition = 1, .min_p = 0.2 },
	  0,
	  false },
	{ "cold", SMOOTH, { .temperature = 0.05, .top_p = 1, .repetition = 1 }, 0, false },
	{ "all cuts",
	  SMOOTH,
	  { .temperature = 0.8, .top_p = 0.95, .repetition = 1, .min_p = 0.05, .top_k = 2000 },
	  0,
	  false },
	{ "penalties",
	  SMOOTH,
	  { .temperature = 1,
	    .top_p = 1,
	    .repetition = 1.3,
	    .frequency = 0.2,
	    .presence = 0.4,
	    .n_prompt = 500 },
	  1500,
	  false },
	{ "penalties and cuts",
	  PEAKED,
	  { .temperature = 0.9,
	    .top_p = 0.9,
	    .repetition = 1.1,
	    .presence = -0.4,
	    .n_prompt = 20,
	    .top_k = 50 },
	  700,
	  false },
	{ "bias", SMOOTH, { OFF, .min_p = 0.01 }, 0, true },
	{ "bias, stop ids masked",
	  SMOOTH,
	  { .temperature = 0,
	    .top_p = 1,
	    .repetition = 1,
	    .min_tokens = 3,
	    .n_stop_ids = 4,
	    .stop_ids = { 0, 1, 2, 77 } },
	  0,
	  true },
	{ "holes", WITH_HOLES, { OFF }, 0, false },
	{ "nothing but holes",
	  ALL_HOLES,
	  { OFF, .min_tokens = 1, .n_stop_ids = 2, .stop_ids = { 0, 1 } },
	  0,
	  false },
};

/* What the cases share, on the device. */
static struct {
	float *logits;
	struct sample_row *rows;
	struct sample_count *counts;
	uint32_t *ids, *pushed, *masked, *bias_ids;
	float *bias_values;
} on;

static void open_all(uint32_t vocab_max)
{
	const struct op_limits limits = { .tokens = ROWS,
					  .dim = 32,
					  .heads = 1,
					  .kv_heads = 1,
					  .head_dim = 32,
					  .ffn_dim = 32,
					  .vocab = vocab_max,
					  .max_context = 64 };
	int r = dev_open(isa_best(), 0, &dev);

	if (r < 0) {
		printf("skip sampling: no device to sample on: %s\n", strerror(-r));
		exit(77);
	}
	r = st_open(dev, op_scratch(dev, &limits), &st);
	if (r < 0)
		give_up("st_open", r);
	on.logits = device_room((size_t)ROWS * vocab_max * sizeof(float));
	on.rows = device_room(ROWS * sizeof(struct sample_row));
	on.counts = device_room(vocab_max * sizeof(struct sample_count));
	on.ids = device_room(ROWS * sizeof(uint32_t));
	on.pushed = device_room(4096 * sizeof(uint32_t));
	on.masked = device_room(STEP_STOP_IDS_MAX * sizeof(uint32_t));
	on.bias_ids = device_room(STEP_BIAS_MAX * sizeof(uint32_t));
	on.bias_values = device_room(STEP_BIAS_MAX * sizeof(float));
}

/* The tokens of the sequence so far, to both. */
static void push(const struct one *one, struct sampler *s, uint32_t vocab)
{
	const uint32_t n = one->n_pushed,
		       n_prompt = one->params.n_prompt < n ? one->params.n_prompt : n;
	struct sample_count *none = calloc(vocab, sizeof(*none));
	uint32_t pushed[4096];
	int r;

	for (uint32_t i = 0; i < n; i++)
		pushed[i] = below(2) ? below(vocab) : below(20);
	give(on.counts, none, vocab * sizeof(*none));
	free(none);
	give(on.pushed, pushed, n * sizeof(*pushed));
	r = sampler_push(s, pushed, n);
	if (r == 0)
		r = op_count(st, on.counts, vocab, on.pushed, n_prompt, false);
	if (r == 0)
		r = op_count(st, on.counts, vocab, on.pushed + n_prompt, n - n_prompt, true);
	if (r < 0)
		give_up("counting", r);
}

static void check(const struct one *one, uint32_t vocab, uint32_t vocab_real)
{
	float *logits = malloc((size_t)ROWS * vocab * sizeof(float)), values[100];
	uint32_t ids[100], got[ROWS], want[ROWS], wrong = 0;
	struct sample_row rows[ROWS] = { 0 };
	struct step_sampler params = one->params;
	struct sampler *s;
	int r;

	params.vocab_real = vocab_real;
	params.seed = 0x123456789abcdefu + vocab;
	params.n_bias = one->bias ? 100 : 0;
	for (int i = 0; i < 100; i++) {
		ids[i] = i % 9 ? below(vocab) : 3;
		values[i] = i % 31 ? 4 * even() : -INFINITY;
	}
	for (int i = 0; i < ROWS; i++)
		fill(logits + (size_t)i * vocab, vocab, one->logits);
	give(on.logits, logits, (size_t)ROWS * vocab * sizeof(float));
	give(on.bias_ids, ids, params.n_bias * sizeof(*ids));
	give(on.bias_values, values, params.n_bias * sizeof(*values));
	give(on.masked, params.stop_ids, params.n_stop_ids * sizeof(uint32_t));
	r = sampler_new(&params, ids, values, vocab, &s);
	if (r < 0)
		give_up("sampler_new", r);
	push(one, s, vocab);

	for (uint32_t draw = 0; draw < (small ? 1 : DRAWS); draw++) {
		for (uint32_t i = 0; i < ROWS; i++) {
			rows[i] = (struct sample_row){
				.temperature = params.temperature,
				.top_p = params.top_p,
				.min_p = params.min_p,
				.repetition = params.repetition,
				.frequency = params.frequency,
				.presence = params.presence,
				.seed = params.seed,
				.position = draw * ROWS + i,
				.top_k = params.top_k,
				.vocab_real = vocab_real,
				.n_masked = params.n_stop_ids,
				.n_bias = params.n_bias,
				.masked = on.masked,
				.bias_ids = on.bias_ids,
				.bias_values = on.bias_values,
				.counts = one->n_pushed ? on.counts : NULL,
			};
			want[i] = sampler_sample(s, logits + (size_t)i * vocab, draw * ROWS + i);
		}
		give(on.rows, rows, sizeof(rows));
		const struct tensor t = { on.logits, DT_F32, { 1, ROWS, vocab } };

		r = op_sample(st, on.ids, &t, on.rows);
		if (r == 0)
			r = st_read(st, got, on.ids, sizeof(got));
		if (r < 0)
			give_up("op_sample", r);
		for (uint32_t i = 0; i < ROWS; i++) {
			if (got[i] == want[i])
				continue;
			if (wrong++ == 0)
				printf("  %s, %u of %u ids: row %u at position %u is %u, not %u\n",
				       one->name, vocab_real, vocab, i, draw * ROWS + i, got[i],
				       want[i]);
		}
	}
	sampler_free(s);
	free(logits);
	printf("%s %s, %u ids\n", wrong ? "not ok" : "ok", one->name, vocab_real);
	wrong ? n_failed++ : n_passed++;
}

int main(int argc, char **argv)
{
	static const uint32_t vocabs[][2] = { { 300, 257 }, { 5000, 5000 }, { 151552, 151365 } };

	small = argc > 1 && strcmp(argv[1], "--small") == 0;
	open_all(151552);
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
		for (int v = 0; v < (small ? 2 : 3); v++)
			check(&cases[i], vocabs[v][0], vocabs[v][1]);
	st_close(st);
	dev_close(dev);
	printf("%d passed, %d failed, 0 skipped\n", n_passed, n_failed);
	return n_failed > 0;
}
