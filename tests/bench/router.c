/* Choosing experts for one token, with router after router that no cache has. */
#include <errno.h>

#include "daemon/exec/weights/checkpoint.h"
#include "kernels/moe.h"
#include "tests/bench/bandwidth.h"
#include "tests/bench/bench.h"
#include "tests/bench/random.h"

#define TIMES 4 /* in a round */
#define RUN_S 0.03

struct bench_router {
	struct dev *dev;
	const struct config *c;
	struct bandwidth *memory;
	struct stream *stream;
	float *routers; /* [n][experts][dim] */
	size_t bytes;	/* of one */
	uint32_t n, next;
	float *x, *bias, *weights; /* [dim], [experts], [top_k] */
	uint32_t *chosen;	   /* [top_k] */
};

static void fill(void *userdata, uint32_t thread, uint32_t n_threads)
{
	struct bench_router *s = userdata;
	const size_t n = s->bytes / sizeof(float);

	for (uint32_t i = thread; i < s->n; i += n_threads)
		random_fill_f32(i, s->routers + i * n, n);
}

static int make(struct bench_router *s, struct err *err)
{
	const struct config *c = s->c;
	const struct op_limits limits = { .tokens = 1,
					  .dim = c->dim,
					  .heads = 1,
					  .kv_heads = 1,
					  .head_dim = 16,
					  .ffn_dim = 1,
					  .experts = c->experts,
					  .top_k = c->top_k,
					  .vocab = 1,
					  .max_context = 1 };
	int r;

	s->bytes = (size_t)c->experts * c->dim * sizeof(float);
	s->n = (uint32_t)(bandwidth_least_bytes() / s->bytes + 1);
	r = st_open(s->dev, op_scratch(s->dev, &limits), &s->stream);
	s->routers = dev_reserve(s->dev, s->n * s->bytes);
	s->x = malloc(c->dim * sizeof(float));
	s->bias = calloc(c->experts, sizeof(float));
	s->weights = calloc(c->top_k, sizeof(float));
	s->chosen = calloc(c->top_k, sizeof(*s->chosen));
	if (r == 0 && (!s->routers || !s->x || !s->bias || !s->weights || !s->chosen ||
		       dev_back(s->dev, s->routers, s->n * s->bytes) < 0))
		r = -ENOMEM;
	if (r < 0)
		return err_wrap(err, r, "no memory for %u routers", s->n);
	dev_run(s->dev, fill, s);
	random_fill_f32(1, s->x, c->dim);
	return 0;
}

static void deinit(struct bench_router *s)
{
	if (s->routers)
		dev_unback(s->dev, s->routers, s->n * s->bytes);
	st_close(s->stream);
	free(s->x);
	free(s->bias);
	free(s->weights);
	free(s->chosen);
}

static int route(struct bench_router *s)
{
	const struct config *c = s->c;
	float *const at = s->routers + s->next * (s->bytes / sizeof(float));
	const struct tensor x = { s->x, DT_F32, { 1, 1, c->dim } };
	const struct tensor w = { at, DT_F32, { 1, c->experts, c->dim } };
	const struct tensor bias = { s->bias, DT_F32, { 1, 1, c->experts } };
	const struct router_params params = { c->top_k, c->groups, c->top_groups,
					      c->normalise_top_k, (float)c->routed_scale };

	s->next = (s->next + 1) % s->n;
	return op_router(s->stream, s->chosen, s->weights, &x, &w, &bias, &params);
}

static int once(void *userdata, double *ret_value, double *ret_limit)
{
	struct bench_router *s = userdata;
	double from, spent, bytes = 0;
	int r;

	*ret_limit = bandwidth_pass(s->memory) / 1e9;
	from = bench_now_s();
	do {
		r = route(s);
		if (r < 0)
			return r;
		bytes += (double)s->bytes;
		spent = bench_now_s() - from;
	} while (spent < RUN_S);
	*ret_value = bytes / spent / 1e9;
	return 0;
}

static int measure(struct bench *b, const struct bench_figure *figure, struct err *err)
{
	struct bench_row row = { .name = figure->name,
				 .unit = "GB/s",
				 .kind = LIMIT_CEILING,
				 .limit_name = "read bandwidth" };
	const struct checkpoint *checkpoint;
	struct bench_router s = { 0 };
	int r;

	r = bench_checkpoint(b, &checkpoint, err);
	if (r == 0)
		r = bench_memory(b, &s.memory, err);
	if (r < 0)
		return r;
	s.dev = b->dev;
	s.c = &checkpoint->config;
	if (s.c->dense_layers >= s.c->layers)
		return bench_skip(figure->name, "the model has no experts");
	r = make(&s, err);
	if (r == 0) {
		r = bench_rounds(b, TIMES, once, &s, &row);
		if (r < 0)
			err_wrap(err, r, "%s failed", figure->name);
	}
	deinit(&s);
	if (r == 0)
		bench_print(b, &row);
	return r;
}

const struct bench_figure figures_router[] = {
	{ "router", "a token's choice of experts", measure, 0, false },
	{ 0 },
};
