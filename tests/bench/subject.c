/* Owns what a forward pass needs without a daemon, and counts what a step reads and computes. */
#include "tests/bench/subject.h"

#include <errno.h>
#include <string.h>

#include "daemon/exec/model/model.h"
#include "tests/bench/bench.h"
#include "tests/bench/cache.h"
#include "tests/bench/random.h"

struct subject {
	struct dev *dev;
	struct weights *weights;
	struct model *model;
	struct cache cache;
	double load_s;
	double fixed_bytes; /* of a step with one row, whichever experts it takes */
	float *logits;	    /* [SUBJECT_SEQS_MAX][vocab] */
	uint32_t ids[SUBJECT_CHUNK_TOKENS];
	bool *touched;	      /* [experts], of a layer */
	double touched_bytes; /* of the step under way */
	uint64_t random;
};

static double matrix_bytes(const struct subject *s, const struct weight *w)
{
	return (double)weight_bytes(s->dev, w->kind, w->rows, w->cols);
}

static double expert_bytes(const struct subject *s, const struct moe_weights *moe, uint32_t e)
{
	return matrix_bytes(s, &moe->gate[e]) + matrix_bytes(s, &moe->up[e]) +
	       matrix_bytes(s, &moe->down[e]);
}

/* Adds up the experts that a layer's rows chose, each once. */
static void on_tap(const struct model_tap_data *data, void *userdata)
{
	struct subject *s = userdata;
	const struct moe_weights *moe = &s->weights->layers[data->layer].moe;

	if (data->tap != TAP_ROUTER)
		return;
	memset(s->touched, 0, moe->experts * sizeof(*s->touched));
	for (uint32_t i = 0; i < data->n_tokens * data->width; i++) {
		const uint32_t e = data->experts[i];

		if (!s->touched[e])
			s->touched_bytes += expert_bytes(s, moe, e);
		s->touched[e] = true;
	}
}

/* What weights_load() reckons, less the experts that it takes for chosen. */
static double fixed_bytes(const struct subject *s)
{
	const struct config *c = &s->weights->config;
	double bytes = (double)s->weights->decode_bytes;

	for (uint32_t i = 0; i < c->layers; i++)
		if (!s->weights->layers[i].dense)
			bytes -= c->top_k * expert_bytes(s, &s->weights->layers[i].moe, 0);
	return bytes;
}

uint32_t subject_context(const struct subject *s)
{
	return MIN(s->weights->config.max_positions, SUBJECT_CONTEXT_MAX);
}

int subject_new(struct dev *dev, const struct checkpoint *c, struct subject **ret, struct err *err)
{
	_cleanup_(subject_freep) struct subject *s = calloc(1, sizeof(*s));
	double from;
	int r;

	if (!s)
		return err_wrap(err, -ENOMEM, "cannot load a model");
	s->dev = dev;
	s->random = 1;
	from = bench_now_s();
	r = weights_load(c, dev, NULL, NULL, &s->weights, err);
	s->load_s = bench_now_s() - from;
	if (r < 0)
		return r;
	s->fixed_bytes = fixed_bytes(s);
	s->logits = malloc((size_t)SUBJECT_SEQS_MAX * c->config.vocab * sizeof(*s->logits));
	s->touched = calloc(MAX(c->config.experts, 1), sizeof(*s->touched));
	if (!s->logits || !s->touched)
		return err_wrap(err, -ENOMEM, "no memory for logits");
	r = cache_init(&s->cache, dev, &c->config, c->config.layers, SUBJECT_CONTEXT_MAX, err);
	if (r < 0)
		return r;
	r = model_new(dev, s->weights, &s->cache.kv, SUBJECT_CHUNK_TOKENS, subject_context(s),
		      &s->model, err);
	if (r < 0)
		return r;
	*ret = steal(s);
	return 0;
}

struct subject *subject_free(struct subject *s)
{
	if (!s)
		return NULL;
	model_free(s->model);
	cache_deinit(&s->cache);
	free(s->logits);
	free(s->touched);
	weights_free(s->weights);
	free(s);
	return NULL;
}

double subject_load_s(const struct subject *s)
{
	return s->load_s;
}

static void draw_ids(struct subject *s, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		s->ids[i] = random_below(&s->random, s->weights->config.vocab);
}

int subject_decode(struct subject *s, uint32_t n_seqs, uint32_t at, struct subject_step *ret)
{
	const struct config *c = &s->weights->config;
	const double kv_bytes = (double)n_seqs * (at + 1) * c->layers *
				cache_token_bytes(&s->cache);
	const double embed_bytes = matrix_bytes(s, &s->weights->embed) / c->vocab;
	struct seq seqs[SUBJECT_SEQS_MAX];
	uint32_t out[SUBJECT_SEQS_MAX];
	double from;
	int r;

	draw_ids(s, n_seqs);
	for (uint32_t i = 0; i < n_seqs; i++) {
		seqs[i] = cache_seq(&s->cache, i, at + 1, 1);
		seqs[i].first = i;
		out[i] = i;
	}
	s->touched_bytes = 0;
	model_set_tap(s->model, on_tap, s);
	from = bench_now_s();
	r = model_forward(s->model, s->ids, n_seqs, seqs, n_seqs, out, n_seqs, s->logits);
	*ret = (struct subject_step){
		.seconds = bench_now_s() - from,
		.bytes = s->fixed_bytes + (n_seqs - 1) * embed_bytes + s->touched_bytes + kv_bytes,
	};
	return r;
}

/* A product with its sum counts two. */
static double flops_of(const struct subject *s, uint32_t at, uint32_t n_tokens, uint32_t n_logits)
{
	const struct config *c = &s->weights->config;
	const double q = (double)c->heads * c->head_dim, kv = (double)c->kv_heads * c->head_dim;
	const double mlp = 3.0 * c->dim * c->ffn_dim, expert = 3.0 * c->dim * c->moe_ffn_dim;
	const double moe = (c->top_k + c->shared_experts) * expert + (double)c->dim * c->experts;
	const double seen = (double)n_tokens * at + 0.5 * n_tokens * (n_tokens + 1.0);
	const double weights = c->layers * (2 * q + 2 * kv) * c->dim + c->dense_layers * mlp +
			       (c->layers - c->dense_layers) * moe;

	return 2 * weights * n_tokens + 4 * q * seen * c->layers +
	       2.0 * c->dim * c->vocab * n_logits;
}

int subject_prefill(struct subject *s, uint32_t at, uint32_t n_tokens, bool is_last,
		    struct subject_step *ret)
{
	const struct seq seq = cache_seq(&s->cache, 0, at + n_tokens, n_tokens);
	const uint32_t out = n_tokens - 1;
	double from;
	int r;

	draw_ids(s, n_tokens);
	model_set_tap(s->model, NULL, NULL);
	from = bench_now_s();
	r = model_forward(s->model, s->ids, n_tokens, &seq, 1, &out, is_last, s->logits);
	*ret = (struct subject_step){
		.seconds = bench_now_s() - from,
		.flops = flops_of(s, at, n_tokens, is_last),
	};
	return r;
}
