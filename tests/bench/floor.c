/* Owns what a forward pass needs without a daemon: weights, a cache of one sequence, the model. */
#include "tests/bench/floor.h"

#include <errno.h>

#include "daemon/exec/model/model.h"
#include "tests/bench/bench.h"

#define PAGE_TOKENS 64 /* as the daemon's default */
#define N_PAGES (FLOOR_PREFILL_TOKENS / PAGE_TOKENS)

struct floor {
	struct dev *dev;
	struct checkpoint *checkpoint;
	struct weights *weights;
	struct kv_cache kv;
	size_t kv_bytes; /* backed */
	struct model *model;
	float *logits; /* [vocab] */
	uint32_t pages[N_PAGES];
	uint32_t ids[FLOOR_PREFILL_TOKENS];
	uint64_t random;
	uint32_t at; /* position of the next token to decode */
};

/* xorshift64: the tokens are the same in every run. */
static uint32_t random_id(struct floor *f)
{
	f->random ^= f->random << 13;
	f->random ^= f->random >> 7;
	f->random ^= f->random << 17;
	return (uint32_t)((f->random >> 32) % f->weights->config.vocab);
}

static int make_cache(struct floor *f)
{
	const struct config *c = &f->weights->config;
	size_t bytes;

	f->kv = (struct kv_cache){
		.type = dev_kv_type(f->dev),
		.n_pages = N_PAGES,
		.page_tokens = PAGE_TOKENS,
		.layers = c->layers,
		.kv_heads = c->kv_heads,
		.head_dim = c->head_dim,
	};
	bytes = N_PAGES * kv_page_bytes(&f->kv);
	f->kv.base = dev_reserve(f->dev, bytes);
	if (!f->kv.base || dev_back(f->dev, f->kv.base, bytes) < 0)
		return -ENOMEM;
	f->kv_bytes = bytes;
	for (uint32_t i = 0; i < N_PAGES; i++)
		f->pages[i] = i;
	return 0;
}

int floor_open(struct dev *dev, const char *dir, struct floor **ret, struct err *err)
{
	_cleanup_(floor_closep) struct floor *f = calloc(1, sizeof(*f));
	int r;

	if (!f)
		return -ENOMEM;
	f->dev = dev;
	f->random = 88172645463325252u;
	r = checkpoint_open(dir, &f->checkpoint, err);
	if (r < 0)
		return r;
	r = weights_load(f->checkpoint, dev, NULL, NULL, &f->weights, err);
	if (r < 0)
		return r;
	f->logits = calloc(f->weights->config.vocab, sizeof(*f->logits));
	if (!f->logits || make_cache(f) < 0)
		return err_wrap(err, -ENOMEM, "cannot allocate the cache");
	r = model_new(dev, f->weights, &f->kv, FLOOR_PREFILL_TOKENS, FLOOR_PREFILL_TOKENS,
		      &f->model, err);
	if (r < 0)
		return r;
	*ret = steal(f);
	return 0;
}

struct floor *floor_close(struct floor *f)
{
	if (!f)
		return NULL;
	model_free(f->model);
	if (f->kv_bytes)
		dev_unback(f->dev, f->kv.base, f->kv_bytes);
	free(f->logits);
	weights_free(f->weights);
	checkpoint_free(f->checkpoint);
	free(f);
	return NULL;
}

double floor_decode_bytes(const struct floor *f)
{
	return (double)f->weights->decode_bytes;
}

/* @n_tokens random ones from position @at on, and the logits of the last; tokens a second to *ret. */
static int forward(struct floor *f, uint32_t at, uint32_t n_tokens, double *ret)
{
	const struct seq seq = {
		.n_tokens = n_tokens,
		.at = at,
		.n_pages = N_PAGES,
		.pages = f->pages,
	};
	const uint32_t last = n_tokens - 1;
	double from;
	int r;

	for (uint32_t i = 0; i < n_tokens; i++)
		f->ids[i] = random_id(f);
	from = bench_now_s();
	r = model_forward(f->model, f->ids, n_tokens, &seq, 1, &last, 1, f->logits);
	if (r < 0)
		return r;
	*ret = n_tokens / (bench_now_s() - from);
	return 0;
}

int floor_decode(struct floor *f, double *ret)
{
	const uint32_t at = f->at;

	f->at = (at + 1) % FLOOR_DECODE_TOKENS;
	return forward(f, at, 1, ret);
}

int floor_prefill(struct floor *f, double *ret)
{
	f->at = 0; /* its positions are taken */
	return forward(f, 0, FLOOR_PREFILL_TOKENS, ret);
}
