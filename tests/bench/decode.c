/* An answer's tokens: what a step has to read, against what memory gives. */
#include <errno.h>

#include "tests/bench/bandwidth.h"
#include "tests/bench/bench.h"
#include "tests/bench/subject.h"

#define TIMES 8 /* in a round: steps */
#define AT_FIRST 64
#define AT_END 128
#define LONG_CONTEXT 8192
#define LONG_STEPS 64 /* before its end */

struct decode {
	struct subject *subject;
	struct bandwidth *memory;
	uint32_t n_seqs;
	uint32_t at, at_first, at_end; /* position of the next step; it goes round */
	double bytes, tokens;	       /* of all steps */
};

static int once(void *userdata, double *ret_value, double *ret_limit)
{
	struct decode *d = userdata;
	const double bandwidth = bandwidth_pass(d->memory);
	struct subject_step step;
	int r;

	r = subject_decode(d->subject, d->n_seqs, d->at, &step);
	if (++d->at == d->at_end)
		d->at = d->at_first;
	*ret_value = d->n_seqs / step.seconds;
	*ret_limit = d->n_seqs * bandwidth / step.bytes;
	d->bytes += step.bytes;
	d->tokens += d->n_seqs;
	return r;
}

static int measure_steps(struct bench *b, struct decode *d, const char *name, struct err *err)
{
	struct bench_row row = { .name = name,
				 .unit = "tokens/s",
				 .kind = LIMIT_CEILING,
				 .limit_name = "read bandwidth" };
	double value, limit;
	int r;

	d->at = d->at_first;
	r = once(d, &value, &limit);
	if (r == 0)
		r = bench_rounds(b, TIMES, once, d, &row);
	if (r < 0)
		return err_wrap(err, r, "a forward pass failed");
	row.gbs = row.value * d->bytes / d->tokens / 1e9;
	row.tokens = row.value;
	bench_print(b, &row);
	return 0;
}

static int measure(struct bench *b, const struct bench_figure *figure, struct err *err)
{
	struct decode d = { .n_seqs = figure->n, .at_first = AT_FIRST, .at_end = AT_END };
	uint32_t context;
	int r;

	if (figure->n == LONG_CONTEXT) {
		d.n_seqs = 1;
		d.at_first = LONG_CONTEXT - LONG_STEPS;
		d.at_end = LONG_CONTEXT;
	}
	r = bench_subject(b, &d.subject, err);
	if (r == 0)
		r = bench_memory(b, &d.memory, err);
	if (r < 0)
		return r;
	context = subject_context(d.subject);
	if (context < d.at_end)
		return bench_skip(figure->name, "the model has %u positions, %u are wanted",
				  context, d.at_end);
	return measure_steps(b, &d, figure->name, err);
}

const struct bench_figure figures_decode[] = {
	{ "decode-b1", "an answer's tokens, one at a time", measure, 1, false },
	{ "decode-b2", "two answers at once", measure, 2, false },
	{ "decode-b4", "four", measure, 4, false },
	{ "decode-b8", "eight", measure, 8, false },
	{ "decode-b16", "sixteen", measure, 16, false },
	{ "decode-ctx8k", "one answer, after a context of 8,192", measure, LONG_CONTEXT, false },
	{ 0 },
};
