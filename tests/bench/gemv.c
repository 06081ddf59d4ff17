/* One row of activations times a matrix that no cache has: bytes against those that memory gives. */
#include "tests/bench/bandwidth.h"
#include "tests/bench/product.h"

#include <errno.h>

#define TIMES 6 /* in a round */
#define RUN_S 0.03

struct gemv {
	struct product *product;
	struct bandwidth *memory;
};

static int once(void *userdata, double *ret_value, double *ret_limit)
{
	struct gemv *g = userdata;
	struct work work = { 0 };
	int r;

	*ret_limit = bandwidth_pass(g->memory) / 1e9;
	r = product_run(g->product, 1, RUN_S, &work);
	*ret_value = work.bytes / work.seconds / 1e9;
	return r;
}

static int measure(struct bench *b, const struct bench_figure *figure, struct err *err)
{
	_cleanup_(product_freep) struct product *product = NULL;
	struct bench_row row = { .name = figure->name, .unit = "GB/s", .kind = LIMIT_CEILING };
	struct gemv g;
	int r;

	r = product_new(b, figure->n, 1, &product, err);
	if (r == -ENOENT)
		return bench_skip(figure->name, "%s", err->text);
	if (r == 0)
		r = bench_memory(b, &g.memory, err);
	if (r < 0)
		return r;
	g.product = product;
	row.limit_name = "read bandwidth";
	r = product_run(product, 1, RUN_S, &(struct work){ 0 });
	if (r == 0)
		r = bench_rounds(b, TIMES, once, &g, &row);
	if (r < 0)
		return err_wrap(err, r, "%s failed", figure->name);
	row.gbs = row.value;
	bench_print(b, &row);
	return 0;
}

const struct bench_figure figures_gemv[] = {
	{ "gemv-int4", "a token through int4 experts", measure, PRODUCT_EXPERTS, false },
	{ "gemv-bf16", "a token times q, k and v", measure, PRODUCT_QKV, false },
	{ "gemv-bf16-o", "a token times o", measure, PRODUCT_O, false },
	{ "gemv-bf16-head", "a token times the head", measure, PRODUCT_HEAD, false },
	{ 0 },
};
