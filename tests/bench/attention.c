/*
 * Attention over keys and values that no cache has: layer after layer of
 * sequence after sequence. One row reads them for nothing but itself, and
 * waits for memory; a chunk of a prompt waits for the processor.
 */
#include <errno.h>

#include "daemon/exec/weights/checkpoint.h"
#include "tests/bench/bandwidth.h"
#include "tests/bench/bench.h"
#include "tests/bench/cache.h"
#include "tests/bench/peak.h"
#include "tests/bench/random.h"

#define TIMES 4 /* in a round */
#define RUN_S 0.03
#define CHUNK_TOKENS 512 /* as the daemon cuts a prompt */
#define CHUNK_CONTEXT 2048

struct bench_attention {
	const struct config *c;
	uint32_t context, n_tokens; /* the rows are the last of the context */
	struct bandwidth *memory;
	struct peaks *peaks; /* NULL: memory is the limit */
	enum peak peak;
	struct stream *stream;
	struct cache cache;
	float *q, *y; /* [n_tokens][heads][head_dim] */
	uint32_t seq, layer;
};

static int make(struct bench_attention *a, struct dev *dev, struct err *err)
{
	const struct config *c = a->c;
	const size_t n = (size_t)a->n_tokens * c->heads * c->head_dim;
	const struct op_limits limits = {
		.tokens = a->n_tokens,
		.dim = c->dim,
		.heads = c->heads,
		.kv_heads = c->kv_heads,
		.head_dim = c->head_dim,
		.ffn_dim = 1,
		.experts = 1,
		.top_k = 1,
		.vocab = 1,
		.max_context = a->context,
	};
	const size_t layer_bytes = (size_t)a->context * 2 * c->kv_heads * c->head_dim *
				   dtype_bytes(dev_kv_type(dev));
	const uint64_t wanted = bandwidth_least_bytes() / layer_bytes + 1; /* layers of sequences */
	const uint32_t layers = (uint32_t)MIN(wanted, c->layers);
	int r;

	r = st_open(dev, op_scratch(dev, &limits), &a->stream);
	if (r < 0)
		return err_wrap(err, r, "no scratch memory for a context of %u", a->context);
	a->q = malloc(n * sizeof(*a->q));
	a->y = calloc(n, sizeof(*a->y));
	if (!a->q || !a->y)
		return err_wrap(err, -ENOMEM, "no memory for %u rows", a->n_tokens);
	random_fill_f32(1, a->q, n);
	return cache_init(&a->cache, dev, c, layers, (wanted + layers - 1) / layers * a->context,
			  err);
}

static void deinit(struct bench_attention *a)
{
	cache_deinit(&a->cache);
	st_close(a->stream);
	free(a->q);
	free(a->y);
}

/* One layer of one sequence, and then it is the next one's turn. */
static int attend(struct bench_attention *a)
{
	const struct config *c = a->c;
	const struct tensor q = { a->q, DT_F32, { a->n_tokens, c->heads, c->head_dim } };
	const struct tensor y = { a->y, DT_F32, { a->n_tokens, c->heads, c->head_dim } };
	const struct seq seq = cache_seq(&a->cache, a->seq, a->context, a->n_tokens);
	const uint32_t layer = a->layer;

	a->layer = (layer + 1) % a->cache.kv.layers;
	if (a->layer == 0)
		a->seq = (a->seq + 1) % cache_seqs(&a->cache, a->context);
	return op_attention(a->stream, &y, &q, &a->cache.kv, layer, &seq, 1);
}

/* In bytes, or in operations: each row sees what is before it and itself. */
static double amount(const struct bench_attention *a)
{
	const double seen = (double)a->n_tokens * a->context -
			    0.5 * a->n_tokens * (a->n_tokens - 1.0);

	if (!a->peaks)
		return (double)a->context * cache_token_bytes(&a->cache);
	return 4.0 * a->c->heads * a->c->head_dim * seen;
}

static int once(void *userdata, double *ret_value, double *ret_limit)
{
	struct bench_attention *a = userdata;
	double spent, from, done = 0;
	int r;

	*ret_limit = (a->peaks ? peaks_pass(a->peaks, a->peak) : bandwidth_pass(a->memory)) / 1e9;
	from = bench_now_s();
	do {
		r = attend(a);
		if (r < 0)
			return r;
		done += amount(a);
		spent = bench_now_s() - from;
	} while (spent < RUN_S);
	*ret_value = done / spent / 1e9;
	return 0;
}

static int measure_rows(struct bench *b, struct bench_attention *a, struct bench_row *row,
			struct err *err)
{
	int r;

	r = make(a, b->dev, err);
	if (r < 0)
		return r;
	r = attend(a);
	if (r == 0)
		r = bench_rounds(b, TIMES, once, a, row);
	if (r < 0)
		return err_wrap(err, r, "%s failed", row->name);
	bench_print(b, row);
	return 0;
}

static int start(struct bench *b, struct bench_attention *a, struct err *err)
{
	const struct checkpoint *checkpoint;
	int r;

	r = bench_checkpoint(b, &checkpoint, err);
	if (r < 0)
		return r;
	a->c = &checkpoint->config;
	return bench_memory(b, &a->memory, err);
}

static int measure_decode(struct bench *b, const struct bench_figure *figure, struct err *err)
{
	struct bench_attention a = { .context = figure->n, .n_tokens = 1 };
	struct bench_row row = { .name = figure->name,
				 .unit = "GB/s",
				 .kind = LIMIT_CEILING,
				 .limit_name = "read bandwidth" };
	int r;

	r = start(b, &a, err);
	if (r == 0)
		r = measure_rows(b, &a, &row, err);
	deinit(&a);
	return r;
}

static int measure_prefill(struct bench *b, const struct bench_figure *figure, struct err *err)
{
	struct bench_attention a = { .context = CHUNK_CONTEXT, .n_tokens = CHUNK_TOKENS };
	struct bench_row row = { .name = figure->name, .unit = "GFLOP/s", .kind = LIMIT_CEILING };
	int r;

	r = start(b, &a, err);
	if (r == 0)
		r = bench_peaks(b, &a.peaks, err);
	if (r < 0)
		return r;
	a.peak = peaks_of(a.peaks, WEIGHT_BF16);
	if (a.peak == PEAK_N)
		return bench_skip(figure->name, "no peak is known of %s", isa_name(b->isa));
	row.limit_name = peaks_name(a.peak);
	r = measure_rows(b, &a, &row, err);
	deinit(&a);
	return r;
}

const struct bench_figure figures_attention[] = {
	{ "attention-decode-1k", "one row over a context of 1,024", measure_decode, 1024, false },
	{ "attention-decode-8k", "one row over a context of 8,192", measure_decode, 8192, false },
	{ "attention-decode-32k", "one row over a context of 32,768", measure_decode, 32768,
	  false },
	{ "attention-prefill", "512 rows at the end of 2,048", measure_prefill, 0, false },
	{ 0 },
};
