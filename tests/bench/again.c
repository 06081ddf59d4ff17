/*
 * A prompt for the first time, again, and again by who may not find it: the
 * time to the first token. And what it costs an answer that its pages go to disk.
 */
#include <errno.h>

#include "client/steamd.h"
#include "tests/bench/bench.h"
#include "tests/bench/broker.h"

#define AGAIN_WANTED 0.03 /* of the time for the first time */
#define WRITE_WANTED 1.03 /* of the time without a disk */
#define ANSWER_TOKENS 192u
#define VOCAB 1000u /* ids below it are tokens of every model */

/* Time to the first token, and what of the prompt was there. */
struct asked {
	double ms, answer_ms;
	uint32_t n_cached;
};

static void on_end(void *userdata, const struct steamd_result *result,
		   const struct steamd_error *err)
{
	struct asked *a = userdata;

	if (err)
		return;
	a->ms = (double)result->prefill_us / 1000;
	a->answer_ms = (double)result->decode_us / 1000;
	a->n_cached = result->n_cached;
}

static int ask(struct steamd *s, const uint32_t *ids, uint32_t n, uint32_t n_wanted,
	       struct asked *ret, struct err *err)
{
	const struct steamd_handler handler = { .on_end = on_end, .userdata = ret };
	struct steamd_error error = { 0 };
	struct steamd_generate g;
	int r;

	steamd_generate_init(&g);
	g.ids = ids;
	g.n_ids = n;
	g.max_tokens = n_wanted;
	g.ignore_eos = 1;
	r = steamd_generate(s, &g, &handler, &error);
	return r < 0 ? err_set(err, r, "%s", error.text) : 0;
}

/* The first prompt wakes threads and caches of the processor, and is not measured. */
static int ask_all(const char *socket, const uint32_t *ids, uint32_t n, struct asked ret[3],
		   struct err *err)
{
	struct steamd *mine = NULL, *others = NULL;
	struct steamd_error error = { 0 };
	struct asked ignored;
	int r;

	r = steamd_open(socket, "bench", NULL, &mine, &error);
	if (r >= 0)
		r = steamd_open(socket, "bench", "other", &others, &error);
	if (r < 0)
		err_set(err, r, "%s", error.text);
	if (r >= 0)
		r = ask(mine, ids + n, 64, 1, &ignored, err);
	if (r >= 0)
		r = ask(mine, ids, n, 1, &ret[0], err);
	if (r >= 0)
		r = ask(mine, ids, n, 1, &ret[1], err);
	if (r >= 0)
		r = ask(others, ids, n, 1, &ret[2], err);
	steamd_close(others);
	steamd_close(mine);
	return r;
}

static void print(struct bench *b, const struct bench_figure *f, const char *suffix, double ms,
		  const char *limit_name, double limit)
{
	char name[64];

	snprintf(name, sizeof(name), "%s%s", f->name, suffix);
	bench_print(b, &(struct bench_row){
			       .name = name,
			       .unit = "ms",
			       .value = ms,
			       .kind = LIMIT_WANTED,
			       .limit_name = limit_name,
			       .limit = limit,
			       .ratio = ms / limit,
		       });
}

static int measure_again(struct bench *b, const struct bench_figure *f, struct err *err)
{
	_cleanup_(broker_stopp) struct broker *broker = NULL;
	_cleanup_(freep) char *program = bench_built("steamd");
	_cleanup_(freep) uint32_t *ids = calloc(f->n + 64, sizeof(*ids));
	struct broker_options options = { .program = program };
	struct asked asked[3] = { 0 };
	int r;

	if (!program || !ids)
		return -ENOMEM;
	for (uint32_t i = 0; i < f->n + 64; i++)
		ids[i] = (i * 2654435761u >> 7) % VOCAB;
	r = bench_model_dir(b, &options.model, err);
	if (r >= 0)
		r = broker_start(&options, &broker, err);
	if (r >= 0)
		r = ask_all(broker_socket(broker), ids, f->n, asked, err);
	if (r < 0)
		return r;
	if (asked[1].n_cached != f->n - 1 || asked[0].n_cached + asked[2].n_cached > 0)
		return err_set(err, -EPROTO,
			       "%u, %u and %u tokens were found; 0, %u and 0 should be",
			       asked[0].n_cached, asked[1].n_cached, asked[2].n_cached, f->n - 1);
	print(b, f, "", asked[1].ms, "3 % of the first", AGAIN_WANTED * asked[0].ms);
	print(b, f, "-other", asked[2].ms, "the first", asked[0].ms);
	return 0;
}

static int time_answer(struct bench *b, const char *set, double *ret_ms, struct err *err)
{
	_cleanup_(broker_stopp) struct broker *broker = NULL;
	_cleanup_(freep) char *program = bench_built("steamd");
	struct broker_options options = { .program = program, .set = set };
	const uint32_t ids[] = { 1, 2, 3, 4 };
	struct steamd_error error = { 0 };
	struct steamd *s = NULL;
	struct asked asked = { 0 };
	int r;

	r = program ? bench_model_dir(b, &options.model, err) : -ENOMEM;
	if (r >= 0)
		r = broker_start(&options, &broker, err);
	if (r < 0)
		return r;
	r = steamd_open(broker_socket(broker), "bench", NULL, &s, &error);
	if (r < 0)
		return err_set(err, r, "%s", error.text);
	r = ask(s, ids, ARRAY_SIZE(ids), 1, &asked, err);
	if (r >= 0)
		r = ask(s, ids, ARRAY_SIZE(ids), ANSWER_TOKENS, &asked, err);
	steamd_close(s);
	*ret_ms = asked.answer_ms;
	return r;
}

struct pair {
	struct bench *b;
	struct err *err;
};

static int time_pair(void *userdata, double *ret_value, double *ret_limit)
{
	struct pair *p = userdata;
	int r;

	r = time_answer(p->b, NULL, ret_value, p->err);
	if (r >= 0)
		r = time_answer(p->b, "DiskCache=no", ret_limit, p->err);
	*ret_limit *= WRITE_WANTED;
	return r;
}

static int measure_write_behind(struct bench *b, const struct bench_figure *f, struct err *err)
{
	struct pair pair = { b, err };
	struct bench_row row = {
		.name = f->name,
		.unit = "ms",
		.kind = LIMIT_WANTED,
		.limit_name = "without a disk, and 3 %",
	};
	int r;

	r = bench_rounds(b, 1, time_pair, &pair, &row);
	if (r < 0)
		return r;
	bench_print(b, &row);
	return 0;
}

const struct bench_figure figures_again[] = {
	{ "again", "first token of 1024 tokens that were asked before, by the same and by another",
	  measure_again, 1024, true },
	{ "again-8k", "the same of 8192", measure_again, 8192, true },
	{ "write-behind", "an answer of 192 tokens whose pages go to disk meanwhile",
	  measure_write_behind, ANSWER_TOKENS, true },
	{ 0 },
};
