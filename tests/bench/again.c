/*
 * A prompt for the first time, again, and again by who may not find it: the
 * time to the first token. And what it costs an answer that its pages go to disk.
 */
#include <errno.h>
#include <unistd.h>

#include "client/steamd.h"
#include "tests/bench/bench.h"
#include "tests/bench/broker.h"

#define AGAIN_WANTED 0.03 /* of the time for the first time */
#define AGAIN_BAR_TOKENS                                                                           \
	8192 /* from which on that is a bar: a shorter prompt's first time has less in it */
#define WRITE_WANTED 1.03  /* of the time without a disk */
#define ANSWER_TOKENS 128u /* two pages */
#define WRITE_ROUNDS 6u
#define OTHER_UID 12345u /* whoever that is */
#define VOCAB 1000u	 /* ids below it are tokens of every model */

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

/* Another user's handle; only root can have one, and else it is another label's. */
static int open_others(const char *socket, struct steamd **ret, struct steamd_error *error)
{
	const bool root = geteuid() == 0;
	int r;

	if (root && seteuid(OTHER_UID) < 0)
		return -errno;
	r = steamd_open(socket, "bench", root ? NULL : "other", ret, error);
	if (root && seteuid(0) < 0)
		return -errno;
	return r;
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
		r = open_others(socket, &others, &error);
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
		  const char *limit_name, double limit, double at_most)
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
			       .at_most = at_most,
		       });
}

static int measure_again(struct bench *b, const struct bench_figure *f, struct err *err)
{
	_cleanup_(broker_stopp) struct broker *broker = NULL;
	_cleanup_(freep) char *program = bench_built("steamd");
	_cleanup_(freep) uint32_t *ids = calloc(f->n + 64, sizeof(*ids));
	struct broker_options options = { .program = program, .set = "SocketMode=0666" };
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
	print(b, f, "", asked[1].ms, "3 % of the first", AGAIN_WANTED * asked[0].ms,
	      f->n >= AGAIN_BAR_TOKENS ? 1 : 0);
	print(b, f, "-other", asked[2].ms, "the first", asked[0].ms, 0);
	return 0;
}

/* A daemon that is there for all rounds, and a handle of it. */
struct side {
	struct broker *broker;
	struct steamd *handle;
};

static void side_deinit(struct side *d)
{
	steamd_close(d->handle);
	broker_stop(d->broker);
}

static int side_init(struct side *d, const struct broker_options *options, struct err *err)
{
	const uint32_t ids[] = { 1, 2, 3, 4 };
	struct steamd_error error = { 0 };
	struct asked ignored;
	int r;

	r = broker_start(options, &d->broker, err);
	if (r < 0)
		return r;
	r = steamd_open(broker_socket(d->broker), "bench", NULL, &d->handle, &error);
	if (r < 0)
		return err_set(err, r, "%s", error.text);
	return ask(d->handle, ids, ARRAY_SIZE(ids), 1, &ignored, err);
}

/* Of a text that is new each round, so that each of its pages is. */
static int time_answer(const struct side *d, uint32_t round, double *ret_ms, struct err *err)
{
	const uint32_t ids[] = { round + 10, 2, 3, 4 };
	struct asked asked = { 0 };
	const int r = ask(d->handle, ids, ARRAY_SIZE(ids), ANSWER_TOKENS, &asked, err);

	*ret_ms = asked.answer_ms;
	return r;
}

/* The one first in one round, the other in the next: a machine that grows slower favours neither. */
static int time_rounds(const struct side sides[2], struct bench_row *row, struct err *err)
{
	struct bench_series values = { .n = 0 }, limits = { .n = 0 }, ratios = { .n = 0 };
	int r = 0;

	for (uint32_t i = 0; i < WRITE_ROUNDS && r >= 0; i++) {
		const uint32_t first = i % 2;
		double ms[2] = { 0 };

		r = time_answer(&sides[first], i, &ms[first], err);
		if (r >= 0)
			r = time_answer(&sides[!first], i, &ms[!first], err);
		bench_add(&values, ms[0]);
		bench_add(&limits, WRITE_WANTED * ms[1]);
		bench_add(&ratios, ms[0] / (WRITE_WANTED * ms[1]));
	}
	row->value = bench_median(&values);
	row->spread = bench_spread(&values);
	row->limit = bench_median(&limits);
	row->ratio = bench_median(&ratios);
	return r;
}

static int measure_write_behind(struct bench *b, const struct bench_figure *f, struct err *err)
{
	_cleanup_(freep) char *program = bench_built("steamd");
	struct broker_options options = { .program = program };
	struct side sides[2] = { { NULL, NULL }, { NULL, NULL } };
	struct bench_row row = {
		.name = f->name,
		.unit = "ms",
		.kind = LIMIT_WANTED,
		.limit_name = "without a disk, and 3 %",
		.at_most = 1,
	};
	int r;

	r = program ? bench_model_dir(b, &options.model, err) : -ENOMEM;
	if (r >= 0)
		r = side_init(&sides[0], &options, err);
	options.set = "DiskCache=no";
	if (r >= 0)
		r = side_init(&sides[1], &options, err);
	if (r >= 0)
		r = time_rounds(sides, &row, err);
	side_deinit(&sides[0]);
	side_deinit(&sides[1]);
	if (r < 0)
		return r;
	bench_print(b, &row);
	return 0;
}

const struct bench_figure figures_again[] = {
	{ "again",
	  "first token of 1024 tokens that were asked before, by the same and by another user",
	  measure_again, 1024, true },
	{ "again-8k", "the same of 8192", measure_again, 8192, true },
	{ "write-behind", "an answer of 128 tokens whose pages go to disk meanwhile",
	  measure_write_behind, ANSWER_TOKENS, true },
	{ 0 },
};
