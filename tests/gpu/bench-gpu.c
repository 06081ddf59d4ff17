/*
 * What a GPU does of what it could: copy bandwidth and cuBLASLt's product in
 * this process first, then every class of kernel over all layers of a model of
 * GLM-4.5-Air's dimensions, so that nothing is in the caches, then whole steps.
 * Results are printed as they come: the run may be cut off at any moment.
 *
 * Usage: bench-gpu [--json] [--seconds N] [--layers N] [NAME…]
 *	--json		one object a line
 *	--seconds N	begins nothing new after so many (100)
 *	--layers N	of the model (46, or what the memory holds)
 *	NAME		benches whose names begin so: class, product, decode, prefill
 */
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "daemon/exec/model/model.h"
#include "kernels/norm.h"
#include "tests/gpu/air.h"
#include "tests/gpu/device.h"

#define PEAK_N 8192
#define COPY_BYTES ((size_t)2 << 30)
#define ROUNDS_MAX 64
#define MAX_TOKENS 2048
#define MAX_CONTEXT 33792
#define PAGE_TOKENS 64
#define SPARE_BYTES                                                                                \
	((size_t)3 << 29) /* of the device's memory, for activations, staging and the driver */
#define CACHE_BYTES ((size_t)4 << 30) /* of pages, at least */

struct bench {
	struct dev *dev;
	struct stream *st;
	struct marks *marks;
	struct weights w;
	struct kv_cache kv;
	struct model *model;
	bool json;
	double seconds;
	uint32_t layers;
	char **names;
	int n_names;
	size_t scratch_bytes; /* of a stream */
	struct timespec begun;
	double copy; /* bytes a second, read and written */
	double peak; /* FLOP a second; NAN: not known */
	uint64_t seed;

	/* of classes */
	float *x, *y, *hidden, *q, *k, *v, *attention, *weights, *logits;
	uint32_t *experts;
	struct rope_table rope;
	uint32_t *pages, *ids;
	struct seq seqs[MAX_TOKENS];
	uint32_t n_seqs;
};

/* One class of kernel: what is queued for one layer, and what that must move or compute. */
struct class
{
	const char *name;
	int (*queue)(struct bench *b, uint32_t layer, uint32_t tokens, uint32_t context);
	double (*bytes)(const struct bench *b, uint32_t tokens, uint32_t context);
	double (*flop)(const struct bench *b, uint32_t tokens, uint32_t context);
	bool once, attends; /* not of a layer; looks at sequences */
};

static double now(const struct bench *b)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)(t.tv_sec - b->begun.tv_sec) + (double)(t.tv_nsec - b->begun.tv_nsec) * 1e-9;
}

static uint32_t random_below(struct bench *b, uint32_t n)
{
	b->seed = b->seed * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)((b->seed >> 33) % n);
}

static int by_value(const void *a, const void *b)
{
	const double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* Sorts them; *ret_spread: half of them lie within so much of the median. */
static double median(double *values, uint32_t n, double *ret_spread)
{
	qsort(values, n, sizeof(*values), by_value);
	*ret_spread = n < 4 ? (values[n - 1] - values[0]) / values[n / 2]
			    : (values[n - n / 4 - 1] - values[n / 4]) / values[n / 2] / 2;
	return values[n / 2];
}

static void tell(const struct bench *b, const char *name, double value, const char *unit,
		 double limit, const char *limit_name, double ratio, double spread)
{
	if (b->json && isfinite(limit))
		printf("{\"name\":\"%s\",\"value\":%.6g,\"unit\":\"%s\",\"limit\":%.6g,"
		       "\"limit_name\":\"%s\",\"ratio\":%.4f,\"spread\":%.4f}\n",
		       name, value, unit, limit, limit_name, ratio, spread);
	else if (b->json)
		printf("{\"name\":\"%s\",\"value\":%.6g,\"unit\":\"%s\",\"limit\":null,"
		       "\"limit_name\":null,\"ratio\":null,\"spread\":%.4f}\n",
		       name, value, unit, spread);
	else if (isfinite(limit))
		printf("%-28s %12.2f %-8s %6.3f of %s (%.1f s)\n", name, value, unit, ratio,
		       limit_name, now(b));
	else
		printf("%-28s %12.2f %-8s (%.1f s)\n", name, value, unit, now(b));
	fflush(stdout);
}

static void skip(const struct bench *b, const char *name, const char *why)
{
	if (b->json)
		printf("{\"name\":\"%s\",\"skipped\":\"%s\"}\n", name, why);
	else
		printf("skip %s: %s\n", name, why);
	fflush(stdout);
}

static int fail(const char *what, int r)
{
	printf("not ok %s: %s\n", what, r == -ENODEV ? dev_why() : strerror(-r));
	fflush(stdout);
	return r;
}

static bool is_wanted(const struct bench *b, const char *name)
{
	for (int i = 0; i < b->n_names; i++)
		if (strncmp(name, b->names[i], strlen(b->names[i])) == 0)
			return true;
	return b->n_names == 0;
}

static void *room(struct bench *b, size_t bytes)
{
	void *at = dev_reserve_named(b->dev, "bench", bytes, DEV_CHUNK_MAX);

	return at && dev_back(b->dev, at, bytes) == 0 ? at : NULL;
}

static int measure_copy(struct bench *b)
{
	char *from = room(b, COPY_BYTES), *to = room(b, COPY_BYTES);
	double us[ROUNDS_MAX], spread;
	const uint32_t n = 12;
	int r;

	if (!from || !to)
		return fail("copy", -ENOMEM);
	r = device_fill(b->st, from, COPY_BYTES / 4, DT_F32, 1, 1);
	for (uint32_t i = 0; r == 0 && i <= n; i++) {
		r = marks_set(b->marks, b->st, i);
		if (r == 0)
			r = st_copy2d(b->st, to, COPY_BYTES / 64, from, COPY_BYTES / 64,
				      COPY_BYTES / 64, 64);
	}
	if (r == 0)
		r = st_wait(b->st);
	if (r < 0)
		return fail("copy", r);
	for (uint32_t i = 0; i < n; i++)
		us[i] = marks_us(b->marks, i, i + 1);
	b->copy = 2.0 * COPY_BYTES / median(us, n, &spread) * 1e6;
	tell(b, "copy", b->copy / 1e9, "GB/s", NAN, NULL, NAN, spread);
	dev_unback(b->dev, from, COPY_BYTES);
	dev_unback(b->dev, to, COPY_BYTES);
	return 0;
}

static int measure_peak(struct bench *b)
{
	const double flop = 2.0 * PEAK_N * PEAK_N * PEAK_N;
	double us[ROUNDS_MAX], spread;
	const uint32_t n = 16;
	const char *why;
	struct peak *p;
	int r = 0;

	b->peak = NAN;
	p = peak_open(b->dev, b->st, PEAK_N, &why);
	if (!p) {
		skip(b, "peak", why);
		return 0;
	}
	for (uint32_t i = 0; r == 0 && i <= n; i++) {
		r = marks_set(b->marks, b->st, i);
		if (r == 0)
			r = peak_multiply(p, b->st);
	}
	if (r == 0)
		r = st_wait(b->st);
	if (r < 0) {
		skip(b, "peak", "cuBLASLt failed");
		return 0;
	}
	for (uint32_t i = 0; i < n; i++)
		us[i] = marks_us(b->marks, i, i + 1);
	b->peak = flop / median(us, n, &spread) * 1e6;
	tell(b, "peak", b->peak / 1e12, "TFLOP/s", NAN, NULL, NAN, spread);
	return 0;
}

static struct tensor matrix(const void *data, uint32_t rows, uint32_t cols)
{
	return (struct tensor){ (void *)data, DT_F32, { 1, rows, cols } };
}

static int queue_qkv(struct bench *b, uint32_t layer, uint32_t tokens, uint32_t context)
{
	const struct layer_weights *l = &b->w.layers[layer];
	const struct tensor x = matrix(b->x, tokens, l->q.cols);
	const struct linear_job jobs[] = {
		{ &l->q, l->q_bias, matrix(b->q, tokens, l->q.rows), false },
		{ &l->k, l->k_bias, matrix(b->k, tokens, l->k.rows), false },
		{ &l->v, l->v_bias, matrix(b->v, tokens, l->v.rows), false },
	};

	(void)context;
	return op_linears(b->st, jobs, 3, &x);
}

static int queue_o(struct bench *b, uint32_t layer, uint32_t tokens, uint32_t context)
{
	const struct layer_weights *l = &b->w.layers[layer];
	const struct tensor x = matrix(b->attention, tokens, l->o.cols);
	const struct linear_job job = { &l->o, { 0 }, matrix(b->y, tokens, l->o.rows), true };

	(void)context;
	return op_linears(b->st, &job, 1, &x);
}

static int queue_head(struct bench *b, uint32_t layer, uint32_t tokens, uint32_t context)
{
	const struct tensor x = matrix(b->x, tokens, b->w.head.cols);
	const struct linear_job job = {
		&b->w.head, { 0 }, matrix(b->logits, tokens, b->w.head.rows), false
	};

	(void)layer, (void)context;
	return op_linears(b->st, &job, 1, &x);
}

static int queue_mlp(struct bench *b, uint32_t layer, uint32_t tokens, uint32_t context)
{
	const struct layer_weights *l = &b->w.layers[0];
	const struct tensor x = matrix(b->x, tokens, l->gate.cols);
	const struct tensor y = matrix(b->y, tokens, l->down.rows);

	(void)layer, (void)context;
	return op_mlp(b->st, &y, &x, &l->gate, &l->up, &l->down);
}

static const struct layer_weights *moe_layer(const struct bench *b, uint32_t layer)
{
	return &b->w.layers[layer == 0 ? b->layers - 1 : layer];
}

static int queue_router(struct bench *b, uint32_t layer, uint32_t tokens, uint32_t context)
{
	const struct layer_weights *l = moe_layer(b, layer);
	const struct router_params params = {
		.top_k = b->w.config.top_k,
		.groups = 1,
		.top_groups = 1,
		.normalise = true,
		.scale = 1,
	};
	const struct tensor x = matrix(b->x, tokens, b->w.config.dim);

	(void)context;
	return op_router(b->st, b->experts, b->weights, &x, &l->router, &l->router_bias, &params);
}

/* Each layer routes anew: its experts are those that its own router chose for another input. */
static int queue_moe(struct bench *b, uint32_t layer, uint32_t tokens, uint32_t context)
{
	const size_t skip = (size_t)layer * MAX_TOKENS * b->w.config.top_k;
	const struct tensor x = matrix(b->x, tokens, b->w.config.dim);
	const struct tensor y = matrix(b->y, tokens, b->w.config.dim);

	(void)context;
	return op_moe(b->st, &y, &x, &moe_layer(b, layer)->moe, b->w.config.top_k,
		      b->experts + skip, b->weights + skip);
}

static int queue_norm(struct bench *b, uint32_t layer, uint32_t tokens, uint32_t context)
{
	const struct tensor x = matrix(b->hidden, tokens, b->w.config.dim);
	const struct tensor y = matrix(b->y, tokens, b->w.config.dim);

	(void)context;
	return op_rmsnorm(b->st, &y, &x, &b->w.layers[layer].input_norm, 1e-5f);
}

/* @tokens sequences of one token each, or one of all if the context is 0. */
static int make_seqs(struct bench *b, uint32_t tokens, uint32_t context)
{
	const uint32_t n_pages = context / PAGE_TOKENS + 1;

	b->n_seqs = context == 0 ? 1 : tokens;
	b->seqs[0] = (struct seq){ 0, tokens, 0, (tokens + PAGE_TOKENS - 1) / PAGE_TOKENS,
				   b->pages };
	for (uint32_t i = 0; context > 0 && i < tokens; i++)
		b->seqs[i] = (struct seq){ i, 1, context, n_pages, b->pages + i * n_pages };
	return st_batch(b->st, b->ids, tokens, b->seqs, b->n_seqs, NULL, 0);
}

static int queue_rope(struct bench *b, uint32_t layer, uint32_t tokens, uint32_t context)
{
	const struct config *c = &b->w.config;
	const struct tensor none = { 0 };
	const struct tensor q = { b->q, DT_F32, { tokens, c->heads, c->head_dim } };
	const struct tensor k = { b->k, DT_F32, { tokens, c->kv_heads, c->head_dim } };
	const struct tensor v = { b->v, DT_F32, { tokens, c->kv_heads, c->head_dim } };

	(void)context;
	return op_rope_kv(b->st, &q, &k, &v, &none, &none, 1e-5f, &b->rope, &b->kv, layer, b->seqs,
			  b->n_seqs);
}

static int queue_attention(struct bench *b, uint32_t layer, uint32_t tokens, uint32_t context)
{
	const struct config *c = &b->w.config;
	const struct tensor q = { b->q, DT_F32, { tokens, c->heads, c->head_dim } };
	const struct tensor y = { b->attention, DT_F32, { tokens, c->heads, c->head_dim } };

	(void)context;
	return op_attention(b->st, &y, &q, &b->kv, layer, b->seqs, b->n_seqs);
}

static double matrix_bytes(const struct bench *b, const struct weight *w)
{
	return (double)weight_bytes(b->dev, w->kind, w->rows, w->cols);
}

static double qkv_bytes(const struct bench *b, uint32_t tokens, uint32_t context)
{
	const struct layer_weights *l = &b->w.layers[0];

	(void)tokens, (void)context;
	return matrix_bytes(b, &l->q) + matrix_bytes(b, &l->k) + matrix_bytes(b, &l->v);
}

static double o_bytes(const struct bench *b, uint32_t tokens, uint32_t context)
{
	(void)tokens, (void)context;
	return matrix_bytes(b, &b->w.layers[0].o);
}

static double head_bytes(const struct bench *b, uint32_t tokens, uint32_t context)
{
	(void)context;
	return matrix_bytes(b, &b->w.head) + 4.0 * tokens * b->w.config.vocab;
}

static double mlp_bytes(const struct bench *b, uint32_t tokens, uint32_t context)
{
	(void)tokens, (void)context;
	return 3 * matrix_bytes(b, &b->w.layers[0].gate);
}

static double router_bytes(const struct bench *b, uint32_t tokens, uint32_t context)
{
	(void)tokens, (void)context;
	return 4.0 * b->w.config.experts * b->w.config.dim;
}

/* Experts that a batch touches if each is as likely. */
static double touched(const struct bench *b, uint32_t tokens)
{
	const double n = b->w.config.experts;

	return n * (1 - pow(1 - b->w.config.top_k / n, tokens));
}

static double moe_bytes(const struct bench *b, uint32_t tokens, uint32_t context)
{
	const struct moe_weights *m = &b->w.layers[1].moe;

	(void)context;
	return 3 * matrix_bytes(b, &m->shared_gate) +
	       touched(b, tokens) *
		       (2 * matrix_bytes(b, &m->gate[0]) + matrix_bytes(b, &m->down[0]));
}

static double norm_bytes(const struct bench *b, uint32_t tokens, uint32_t context)
{
	(void)context;
	return 8.0 * tokens * b->w.config.dim;
}

static double token_kv_bytes(const struct bench *b)
{
	return 4.0 * b->w.config.kv_heads * b->w.config.head_dim; /* of a layer */
}

static double rope_bytes(const struct bench *b, uint32_t tokens, uint32_t context)
{
	(void)context;
	return tokens * (8.0 * b->w.config.heads * b->w.config.head_dim + 3 * token_kv_bytes(b));
}

static double attention_bytes(const struct bench *b, uint32_t tokens, uint32_t context)
{
	return tokens *
	       (context * token_kv_bytes(b) + 8.0 * b->w.config.heads * b->w.config.head_dim);
}

static double qkv_flop(const struct bench *b, uint32_t tokens, uint32_t context)
{
	return qkv_bytes(b, 0, context) * tokens; /* two for each of two bytes */
}

static double o_flop(const struct bench *b, uint32_t tokens, uint32_t context)
{
	return o_bytes(b, 0, context) * tokens;
}

static double moe_flop(const struct bench *b, uint32_t tokens, uint32_t context)
{
	const struct config *c = &b->w.config;

	(void)context;
	return 6.0 * tokens * (c->top_k + c->shared_experts) * c->dim * c->moe_ffn_dim;
}

static double attention_flop(const struct bench *b, uint32_t tokens, uint32_t context)
{
	(void)context;
	return 2.0 * tokens * (tokens + 1) * b->w.config.heads * b->w.config.head_dim;
}

static const struct class qkv = { "qkv", queue_qkv, qkv_bytes, qkv_flop, false, false },
			  o = { "o", queue_o, o_bytes, o_flop, false, false },
			  head = { "head", queue_head, head_bytes, NULL, true, false },
			  mlp = { "dense-mlp", queue_mlp, mlp_bytes, NULL, true, false },
			  router = { "router", queue_router, router_bytes, NULL, false, false },
			  moe = { "moe", queue_moe, moe_bytes, moe_flop, false, false },
			  norm = { "norm", queue_norm, norm_bytes, NULL, false, false },
			  rope = { "rope-kv", queue_rope, rope_bytes, NULL, false, true },
			  attention = { "attention",	queue_attention, attention_bytes,
					attention_flop, false,		 true };

struct queued {
	struct bench *b;
	const struct class *class;
	uint32_t tokens, context;
};

static int queue_all(struct stream *st, void *userdata)
{
	const struct queued *q = userdata;
	int r = 0;

	(void)st;
	for (uint32_t i = 0; r == 0 && i < (q->class->once ? 1 : q->b->layers); i++)
		r = q->class->queue(q->b, i, q->tokens, q->context);
	return r;
}

/* Times rounds over all layers, so that each layer's weights were last read long ago. */
static int time_class(struct bench *b, const struct class *class, uint32_t tokens, uint32_t context,
		      double *ret_us, double *ret_spread)
{
	struct queued q = { b, class, tokens, context };
	const uint32_t n = tokens > 512 ? 2 : class->once ? 10 : 5;
	struct replay *replay = NULL;
	double us[ROUNDS_MAX];
	int r = 0;

	if (class->attends)
		r = make_seqs(b, tokens, context);
	if (r == 0)
		r = queue_all(b->st, &q); /* what is done for the first time only */
	if (r == 0 && tokens <= 512)
		r = st_record(b->st, queue_all, &q, &replay);
	for (uint32_t i = 0; r == 0 && i <= n; i++) {
		r = marks_set(b->marks, b->st, i);
		if (r == 0 && i < n)
			r = replay ? st_replay(b->st, replay) : queue_all(b->st, &q);
	}
	if (r == 0)
		r = st_wait(b->st);
	replay_free(replay);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < n; i++)
		us[i] = marks_us(b->marks, i, i + 1) / (class->once ? 1 : b->layers);
	*ret_us = median(us, n, ret_spread);
	return 0;
}

static int bench_class(struct bench *b, const struct class *class, uint32_t tokens,
		       uint32_t context)
{
	const bool computes = tokens > 512 && class->flop && isfinite(b->peak);
	const double work = computes ? class->flop(b, tokens, context)
				     : class->bytes(b, tokens, context);
	const double limit = work / (computes ? b->peak : b->copy) * 1e6;
	double us, spread;
	char name[64];
	int r;

	snprintf(name, sizeof(name), context ? "class %s %u at %u" : "class %s %u", class->name,
		 tokens, context);
	if (!is_wanted(b, name) && !is_wanted(b, "class"))
		return 0;
	if (now(b) > b->seconds) {
		skip(b, name, "no time is left");
		return 0;
	}
	if ((uint64_t)tokens * (context / PAGE_TOKENS + 1) > b->kv.n_pages) {
		skip(b, name, "no memory for such a KV cache");
		return 0;
	}
	r = time_class(b, class, tokens, context, &us, &spread);
	if (r == -EIO)
		return fail(name, r);
	if (r < 0) {
		skip(b, name, strerror(-r));
		return 0;
	}
	tell(b, name, us, "us", limit, computes ? "peak" : "copy", limit / us, spread);
	return 0;
}

static int bench_classes(struct bench *b)
{
	static const uint32_t few[] = { 1, 2, 4, 8, 16, 32, 64, 128 };
	int r = 0;

	for (size_t i = 0; r == 0 && i < ARRAY_SIZE(few); i++) {
		const uint32_t n = few[i];

		if ((r = bench_class(b, &qkv, n, 0)) < 0 || (r = bench_class(b, &o, n, 0)) < 0 ||
		    (r = bench_class(b, &moe, n, 0)) < 0 || (r = bench_class(b, &head, n, 0)) < 0)
			return r;
		if (n == 2 || n == 4 || n == 16 || n == 64)
			continue;
		if ((r = bench_class(b, &mlp, n, 0)) < 0 ||
		    (r = bench_class(b, &router, n, 0)) < 0 ||
		    (r = bench_class(b, &norm, n, 0)) < 0 ||
		    (r = bench_class(b, &rope, n, 512)) < 0 ||
		    (r = bench_class(b, &attention, n, 512)) < 0 ||
		    (r = bench_class(b, &attention, n, 8192)) < 0 ||
		    (r = bench_class(b, &attention, n, 32768)) < 0)
			return r;
	}
	if (r == 0)
		r = bench_class(b, &qkv, MAX_TOKENS, 0);
	if (r == 0)
		r = bench_class(b, &o, MAX_TOKENS, 0);
	if (r == 0)
		r = bench_class(b, &moe, MAX_TOKENS, 0);
	return r == 0 ? bench_class(b, &attention, MAX_TOKENS, 0) : r;
}

/*
 * Products of the model on the stream that its steps are on, by kernels of ours and by
 * cuBLASLt, as a server chooses; the steps below use what is the quicker.
 */
static int bench_products(struct bench *b)
{
	struct device_choice c;
	char text[512], name[96];
	int r;

	device_choose_for(20);
	r = model_choose(b->model, NULL, text, sizeof(text));
	if (r < 0)
		return fail("products", r);
	printf(b->json ? "{\"products\":\"%s\"}\n" : "products: %s\n", text);
	for (uint32_t i = 0; device_choice(model_stream(b->model), i, &c); i++) {
		const bool computes = c.tokens > 512 && isfinite(b->peak);
		const double size = (double)c.rows * c.cols;
		const double limit = 1e6 * (computes ? 2 * size * c.tokens / b->peak
						     : 2 * size / b->copy);
		const char *of = computes ? "peak" : "copy";

		if (c.own_us <= 0)
			continue; /* there was no time */
		snprintf(name, sizeof(name), "product %u x %u, %u tokens", c.rows, c.cols,
			 c.tokens);
		if (!is_wanted(b, name))
			continue;
		snprintf(name, sizeof(name), "product %u x %u, %u tokens, own", c.rows, c.cols,
			 c.tokens);
		tell(b, name, c.own_us, "us", limit, of, limit / c.own_us, 0);
		snprintf(name, sizeof(name), "product %u x %u, %u tokens, cublaslt, %s chosen",
			 c.rows, c.cols, c.tokens, c.way);
		if (c.library_us > 0)
			tell(b, name, c.library_us, "us", limit, of, limit / c.library_us, 0);
		else
			skip(b, name, "it has no way");
	}
	return 0;
}

/* What a decode step reads. */
static double step_bytes(const struct bench *b, uint32_t tokens, uint32_t context)
{
	const uint32_t moe_layers = b->layers - b->w.config.dense_layers;

	return b->layers * (qkv_bytes(b, 0, 0) + o_bytes(b, 0, 0) +
			    (double)tokens * context * token_kv_bytes(b)) +
	       moe_layers * (router_bytes(b, 0, 0) + moe_bytes(b, tokens, 0)) + mlp_bytes(b, 0, 0) +
	       head_bytes(b, tokens, 0);
}

static double prefill_flop(const struct bench *b, uint32_t tokens)
{
	const struct config *c = &b->w.config;

	return b->layers * (qkv_flop(b, tokens, 0) + o_flop(b, tokens, 0) +
			    attention_flop(b, tokens, 0)) +
	       (b->layers - c->dense_layers) * moe_flop(b, tokens, 0) +
	       6.0 * tokens * c->dim * c->ffn_dim;
}

/* One step of one token a row, its ids new: they are routed anew. */
static int step(struct bench *b, const struct seq *seqs, uint32_t n, const uint32_t *out)
{
	for (uint32_t i = 0; i < n; i++)
		b->ids[i] = random_below(b, b->w.config.vocab);
	return model_forward(b->model, b->ids, n, seqs, n, out, n, NULL);
}

static int bench_decode(struct bench *b, uint32_t n, uint32_t context)
{
	const uint32_t n_pages = context / PAGE_TOKENS + 1, rounds = n > 32 ? 8 : 16;
	const double limit = step_bytes(b, n, context) / b->copy * 1e6;
	struct stream *st = model_stream(b->model);
	static struct seq seqs[128];
	uint32_t out[128];
	double us[ROUNDS_MAX], spread, one;
	char name[64];
	int r = 0;

	snprintf(name, sizeof(name), "decode %u at %u", n, context);
	if (!is_wanted(b, name))
		return 0;
	if (now(b) > b->seconds) {
		skip(b, name, "no time is left");
		return 0;
	}
	if ((uint64_t)n * n_pages > b->kv.n_pages) {
		skip(b, name, "no memory for such a KV cache");
		return 0;
	}
	for (uint32_t i = 0; i < n; i++) {
		seqs[i] = (struct seq){ i, 1, context, n_pages, b->pages + i * n_pages };
		out[i] = i;
	}
	for (uint32_t i = 0; r == 0 && i < 2; i++)
		r = step(b, seqs, n, out);
	for (uint32_t i = 0; r == 0 && i <= rounds; i++) {
		r = marks_set(b->marks, st, i);
		if (r == 0 && i < rounds)
			r = step(b, seqs, n, out);
	}
	if (r == 0)
		r = st_wait(st);
	if (r < 0)
		return fail(name, r);
	for (uint32_t i = 0; i < rounds; i++)
		us[i] = marks_us(b->marks, i, i + 1);
	one = median(us, rounds, &spread);
	tell(b, name, n / one * 1e6, "tok/s", n / limit * 1e6, "copy", limit / one, spread);
	return 0;
}

/* A whole prompt in batches of MAX_TOKENS. */
static int bench_prefill(struct bench *b, uint32_t tokens, uint32_t rounds)
{
	const double limit = isfinite(b->peak) ? prefill_flop(b, tokens) / b->peak * 1e6 : NAN;
	struct stream *st = model_stream(b->model);
	double us[ROUNDS_MAX], spread, one;
	char name[64];
	int r = 0;

	snprintf(name, sizeof(name), "prefill %u", tokens);
	if (!is_wanted(b, name))
		return 0;
	if (now(b) > b->seconds || (tokens + PAGE_TOKENS - 1) / PAGE_TOKENS > b->kv.n_pages) {
		skip(b, name,
		     now(b) > b->seconds ? "no time is left" : "no memory for such a KV cache");
		return 0;
	}
	for (uint32_t round = 0; r == 0 && round <= rounds; round++) {
		r = marks_set(b->marks, st, round);
		for (uint32_t at = 0; r == 0 && round < rounds && at < tokens; at += MAX_TOKENS) {
			const uint32_t n = MIN(MAX_TOKENS, tokens - at);
			const uint32_t last = n - 1, wanted = at + n == tokens;
			const struct seq seq = { 0, n, at, (at + n + PAGE_TOKENS - 1) / PAGE_TOKENS,
						 b->pages };

			for (uint32_t i = 0; i < n; i++)
				b->ids[i] = random_below(b, b->w.config.vocab);
			r = model_forward(b->model, b->ids, n, &seq, 1, &last, wanted, NULL);
		}
	}
	if (r == 0)
		r = st_wait(st);
	if (r < 0)
		return fail(name, r);
	for (uint32_t i = 0; i < rounds; i++)
		us[i] = marks_us(b->marks, i, i + 1);
	one = median(us, rounds, &spread);
	tell(b, name, tokens / one * 1e6, "tok/s", tokens / limit * 1e6, "peak", limit / one,
	     spread);
	return 0;
}

static int bench_steps(struct bench *b)
{
	static const uint32_t contexts[] = { 0, 8192, 32768 };
	static const uint32_t batches[] = { 1, 2, 4, 8, 16, 32, 64, 128 };
	int r = 0;

	for (size_t i = 0; r == 0 && i < ARRAY_SIZE(contexts); i++)
		for (size_t k = 0; r == 0 && k < ARRAY_SIZE(batches); k++)
			r = bench_decode(b, batches[k], contexts[i]);
	if (r == 0)
		r = bench_prefill(b, 2048, 3);
	if (r == 0)
		r = bench_prefill(b, 8192, 2);
	return r == 0 ? bench_prefill(b, 32768, 1) : r;
}

static int make_buffers(struct bench *b)
{
	const struct config *c = &b->w.config;
	const size_t q = (size_t)MAX_TOKENS * c->heads * c->head_dim;
	const size_t kv = (size_t)MAX_TOKENS * c->kv_heads * c->head_dim;
	const size_t dim = (size_t)MAX_TOKENS * c->dim;
	const size_t chosen = (size_t)b->layers * MAX_TOKENS * c->top_k;
	struct {
		float **at;
		size_t n;
	} const all[] = {
		{ &b->x, dim },
		{ &b->y, dim },
		{ &b->hidden, dim },
		{ &b->q, q },
		{ &b->k, kv },
		{ &b->v, kv },
		{ &b->attention, q },
		{ &b->weights, chosen },
		{ &b->logits, (size_t)128 * c->vocab },
	};
	uint32_t *ids = malloc(chosen * sizeof(*ids));
	int r = 0;

	for (size_t i = 0; r == 0 && i < ARRAY_SIZE(all); i++) {
		*all[i].at = room(b, all[i].n * sizeof(float));
		r = *all[i].at ? device_fill(b->st, *all[i].at, all[i].n, DT_F32, 1, ++b->seed)
			       : -ENOMEM;
	}
	b->experts = room(b, chosen * sizeof(*ids));
	if (r < 0 || !ids || !b->experts)
		return r < 0 ? r : -ENOMEM;
	/* a token's experts are apart by a step that no two of them share */
	for (size_t i = 0; i < chosen; i += c->top_k) {
		const uint32_t first = random_below(b, c->experts),
			       by = 2 * random_below(b, 64) + 1;

		for (uint32_t k = 0; k < c->top_k; k++)
			ids[i + k] = (first + k * by) % c->experts;
	}
	r = dev_write(b->dev, b->experts, ids, chosen * sizeof(*ids));
	free(ids);
	b->ids = calloc(MAX_TOKENS, sizeof(*b->ids));
	return b->ids ? r : -ENOMEM;
}

/* All memory that is left, in pages of noise. */
static int make_cache(struct bench *b)
{
	const struct config *c = &b->w.config;
	const size_t left = device_free_bytes();
	size_t bytes;
	int r;

	b->kv = (struct kv_cache){ .type = DT_BF16,
				   .page_tokens = PAGE_TOKENS,
				   .layers = b->layers,
				   .kv_heads = c->kv_heads,
				   .head_dim = c->head_dim };
	if (left < SPARE_BYTES + b->scratch_bytes + kv_page_bytes(&b->kv))
		return -ENOMEM;
	b->kv.n_pages = (uint32_t)((left - SPARE_BYTES - b->scratch_bytes) / kv_page_bytes(&b->kv));
	bytes = b->kv.n_pages * kv_page_bytes(&b->kv);
	b->kv.base = room(b, bytes);
	b->pages = calloc(b->kv.n_pages, sizeof(*b->pages));
	if (!b->kv.base || !b->pages)
		return -ENOMEM;
	r = device_fill(b->st, b->kv.base, bytes / 2, DT_BF16, 1, ++b->seed);
	for (uint32_t i = 0; i < b->kv.n_pages; i++)
		b->pages[i] = i;
	for (uint32_t i = b->kv.n_pages; i > 1; i--) { /* shuffled, as a cache comes to be */
		const uint32_t with = random_below(b, i), page = b->pages[i - 1];

		b->pages[i - 1] = b->pages[with];
		b->pages[with] = page;
	}
	return r;
}

static int make_model(struct bench *b)
{
	const size_t most = device_free_bytes(), own = SPARE_BYTES + b->scratch_bytes + CACHE_BYTES;
	struct err err = { 0 };
	char text[128];
	int r;

	while (b->layers > 2 && air_bytes(b->dev, b->layers) + own > most)
		b->layers--;
	r = air_new(b->dev, b->st, b->layers, &b->w);
	if (r == 0)
		r = make_buffers(b);
	if (r < 0)
		return fail("weights", r);
	/* the pages go to what the model leaves: it needs to know of a cache before */
	r = rope_table_init(&b->rope, b->w.config.rope_theta, b->w.config.rotary, MAX_CONTEXT);
	if (r == 0)
		r = make_cache(b);
	if (r < 0)
		return fail("cache", r);
	r = model_new(b->dev, &b->w, &b->kv, MAX_TOKENS, MAX_CONTEXT, &b->model, &err);
	if (r < 0)
		return printf("not ok model: %s\n", err.text), r;
	snprintf(text, sizeof(text), "layers of %.1f GB with %u pages", (double)b->w.bytes / 1e9,
		 b->kv.n_pages);
	tell(b, "model", b->layers, text, NAN, NULL, NAN, 0);
	return st_wait(b->st);
}

static int open_all(struct bench *b)
{
	/* the classes queue what is largest of all on this stream */
	const struct op_limits limits = { .tokens = MAX_TOKENS,
					  .dim = 4096,
					  .heads = 96,
					  .kv_heads = 8,
					  .head_dim = 128,
					  .ffn_dim = 10944,
					  .experts = 128,
					  .top_k = 8,
					  .vocab = 151552,
					  .max_context = MAX_CONTEXT };
	int r;

	r = dev_open(isa_best(), 0, &b->dev);
	if (r < 0)
		return fail("device", r);
	b->scratch_bytes = op_scratch(b->dev, &limits);
	r = st_open(b->dev, b->scratch_bytes, &b->st);
	if (r < 0)
		return fail("stream", r);
	b->marks = marks_new(ROUNDS_MAX + 1);
	if (!b->marks)
		return fail("events", -ENOMEM);
	printf(b->json ? "{\"device\":\"%s\",\"product\":\"%s\",\"l2\":%zu}\n"
		       : "on %s, %s, L2 %zu bytes\n",
	       dev_name(b->dev), dev_product(b->dev), device_l2_bytes(b->dev));
	fflush(stdout);
	return 0;
}

static int run(struct bench *b)
{
	int r;

	r = open_all(b);
	if (r == 0)
		r = measure_copy(b);
	if (r == 0)
		r = measure_peak(b);
	if (r == 0)
		r = make_model(b);
	if (r == 0)
		r = bench_classes(b);
	if (r == 0)
		r = bench_products(b);
	return r == 0 ? bench_steps(b) : r;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "seconds", required_argument, NULL, 's' },
		{ "layers", required_argument, NULL, 'l' },
		{ 0 },
	};
	static struct bench b = { .seconds = 100, .layers = AIR_LAYERS, .seed = 20250728 };
	int c, r;

	while ((c = getopt_long(argc, argv, "", options, NULL)) >= 0) {
		if (c == 'j')
			b.json = true;
		else if (c == 's')
			b.seconds = atof(optarg);
		else if (c == 'l')
			b.layers = MAX(2, MIN((uint32_t)atoi(optarg), AIR_LAYERS));
		else
			return 64;
	}
	b.names = argv + optind;
	b.n_names = argc - optind;
	clock_gettime(CLOCK_MONOTONIC, &b.begun);
	r = run(&b);
	printf(b.json ? "{\"ended\":%.1f,\"result\":%d}\n" : "ended after %.1f s (%d)\n", now(&b),
	       r);
	fflush(stdout);
	_exit(r == -ENODEV ? 77 : r < 0); /* the driver takes all of it back */
}
