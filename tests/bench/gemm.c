/*
 * Some rows of activations times matrices that no cache has. Few rows wait for
 * memory, many for the processor: the limit is whichever allows less.
 */
#include "tests/bench/bandwidth.h"
#include "tests/bench/peak.h"
#include "tests/bench/product.h"

#include <errno.h>

#define TIMES 2 /* in a round */
#define RUN_S 0.05
#define CHOICE_PASSES 4
#define CLASS_SHIFT 16

struct gemm {
	struct product *product;
	uint32_t tokens;
	struct bandwidth *memory;
	struct peaks *peaks;
	enum peak peak;
	double flops_per_byte;
};

static double memory_flops(struct gemm *g)
{
	return bandwidth_pass(g->memory) * g->flops_per_byte;
}

static int once(void *userdata, double *ret_value, double *ret_limit)
{
	struct gemm *g = userdata;
	struct work work = { 0 };
	int r;

	*ret_limit = (g->peak == PEAK_N ? memory_flops(g) : peaks_pass(g->peaks, g->peak)) / 1e9;
	r = product_run(g->product, g->tokens, RUN_S, &work);
	*ret_value = work.flops / work.seconds / 1e9;
	return r;
}

/* The better of a few passes, so that a slow moment of the machine does not choose. */
static bool memory_is_slower(struct gemm *g)
{
	double memory = 0, peak = 0;

	for (int i = 0; i < CHOICE_PASSES; i++) {
		memory = MAX(memory, memory_flops(g));
		peak = MAX(peak, peaks_pass(g->peaks, g->peak));
	}
	return memory < peak;
}

/* A first run, which tells how many operations a byte is worth, and with that what limits. */
static int warm(struct gemm *g, struct bench_row *row)
{
	struct work work = { 0 };
	const int r = product_run(g->product, g->tokens, RUN_S, &work);

	g->flops_per_byte = work.flops / work.bytes;
	if (memory_is_slower(g))
		g->peak = PEAK_N;
	row->limit_name = g->peak == PEAK_N ? "read bandwidth" : peaks_name(g->peak);
	return r;
}

static int measure(struct bench *b, const struct bench_figure *figure, struct err *err)
{
	_cleanup_(product_freep) struct product *product = NULL;
	struct bench_row row = { .name = figure->name, .unit = "GFLOP/s", .kind = LIMIT_CEILING };
	struct gemm g = { .tokens = figure->n & ((1u << CLASS_SHIFT) - 1) };
	int r;

	r = bench_peaks(b, &g.peaks, err);
	if (r == 0)
		r = bench_memory(b, &g.memory, err);
	if (r < 0)
		return r;
	if (!peaks_has(g.peaks, PEAK_FMA))
		return bench_skip(figure->name, "no peak is known of %s", isa_name(b->isa));
	r = product_new(b, figure->n >> CLASS_SHIFT, g.tokens, &product, err);
	if (r == -ENOENT)
		return bench_skip(figure->name, "%s", err->text);
	if (r < 0)
		return r;
	g.product = product;
	g.peak = peaks_of(g.peaks, product_kind(product));
	r = warm(&g, &row);
	if (r == 0)
		r = bench_rounds(b, TIMES, once, &g, &row);
	if (r < 0)
		return err_wrap(err, r, "%s failed", figure->name);
	row.gflops = row.value;
	row.gbs = row.value / g.flops_per_byte;
	bench_print(b, &row);
	return 0;
}

#define GEMM(name, class, tokens, of)                                                              \
	{                                                                                          \
		name "-" #tokens, #tokens " tokens " of, measure, class << CLASS_SHIFT | tokens,   \
			false                                                                      \
	}

const struct bench_figure figures_gemm[] = {
	GEMM("gemm-int4", PRODUCT_EXPERTS, 16, "through int4 experts"),
	GEMM("gemm-int4", PRODUCT_EXPERTS, 64, "through int4 experts"),
	GEMM("gemm-int4", PRODUCT_EXPERTS, 512, "through int4 experts"),
	GEMM("gemm-bf16", PRODUCT_QKV, 16, "times q, k and v"),
	GEMM("gemm-bf16", PRODUCT_QKV, 64, "times q, k and v"),
	GEMM("gemm-bf16", PRODUCT_QKV, 512, "times q, k and v"),
	GEMM("gemm-bf16-o", PRODUCT_O, 16, "times o"),
	GEMM("gemm-bf16-o", PRODUCT_O, 64, "times o"),
	GEMM("gemm-bf16-o", PRODUCT_O, 512, "times o"),
	{ 0 },
};
