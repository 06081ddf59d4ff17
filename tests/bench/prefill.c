/* A prompt, cut into chunks as the daemon does: its operations against what the processor can do. */
#include <errno.h>

#include "tests/bench/bench.h"
#include "tests/bench/peak.h"
#include "tests/bench/subject.h"

#define PEAK_PASSES 3
#define WARM_TOKENS 16

struct prefill {
	struct subject *subject;
	struct peaks *peaks;
	enum peak peak;
	uint32_t n_tokens;
	double flops; /* of the whole prompt */
};

/* The best of a few: a chunk takes so long that a single pass could meet other work by chance. */
static double best_peak(struct prefill *p)
{
	double best = 0;

	for (int i = 0; i < PEAK_PASSES; i++)
		best = MAX(best, peaks_pass(p->peaks, p->peak));
	return best;
}

/* The peak is taken before every chunk and after the last, so that it is of the same minute. */
static int once(void *userdata, double *ret_value, double *ret_limit)
{
	struct prefill *p = userdata;
	double seconds = 0, peak = 0;

	p->flops = 0;
	for (uint32_t at = 0; at < p->n_tokens; at += SUBJECT_CHUNK_TOKENS) {
		const uint32_t n = MIN(SUBJECT_CHUNK_TOKENS, p->n_tokens - at);
		struct subject_step step;
		int r;

		peak = MAX(peak, best_peak(p));
		r = subject_prefill(p->subject, at, n, at + n == p->n_tokens, &step);
		if (r < 0)
			return r;
		seconds += step.seconds;
		p->flops += step.flops;
	}
	peak = MAX(peak, best_peak(p));
	*ret_value = p->n_tokens / seconds;
	*ret_limit = p->n_tokens * peak / p->flops;
	return 0;
}

static int measure(struct bench *b, const struct bench_figure *figure, struct err *err)
{
	struct bench_row row = { .name = figure->name, .unit = "tokens/s", .kind = LIMIT_CEILING };
	struct prefill p = { .n_tokens = figure->n };
	struct subject_step warm;
	uint32_t context;
	int r;

	r = bench_peaks(b, &p.peaks, err);
	if (r < 0)
		return r;
	p.peak = peaks_of(p.peaks, WEIGHT_BF16);
	if (p.peak == PEAK_N)
		return bench_skip(figure->name, "no peak is known of %s", isa_name(b->isa));
	r = bench_subject(b, &p.subject, err);
	if (r < 0)
		return r;
	context = subject_context(p.subject);
	if (context < p.n_tokens)
		return bench_skip(figure->name, "the model has %u positions", context);
	r = subject_prefill(p.subject, 0, MIN(p.n_tokens, WARM_TOKENS), true, &warm);
	if (r < 0)
		return err_wrap(err, r, "a forward pass failed");
	row.limit_name = peaks_name(p.peak);
	r = bench_rounds(b, 1, once, &p, &row);
	if (r < 0)
		return err_wrap(err, r, "a forward pass failed");
	row.gflops = row.value * p.flops / p.n_tokens / 1e9;
	row.tokens = row.value;
	bench_print(b, &row);
	return 0;
}

const struct bench_figure figures_prefill[] = {
	{ "prefill-128", "a prompt of 128 tokens", measure, 128, false },
	{ "prefill-512", "512", measure, 512, false },
	{ "prefill-2048", "2,048, in chunks of 512", measure, 2048, false },
	{ "prefill-8192", "8,192, in chunks of 512", measure, 8192, false },
	{ 0 },
};
