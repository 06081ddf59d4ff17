/* Owns the matrices of one class, random activations, and a stream to compute on. */
#include "tests/bench/product.h"

#include <errno.h>

#include "daemon/exec/weights/checkpoint.h"
#include "kernels/moe.h"
#include "tests/bench/bandwidth.h"
#include "tests/bench/matrices.h"
#include "tests/bench/random.h"

#define MATRICES_MAX 3 /* q, k, v, or gate, up, down */

struct product {
	struct dev *dev;
	struct stream *stream;
	enum product_class class;
	uint32_t n_kinds; /* of matrices */
	struct matrices *matrices[MATRICES_MAX];
	uint32_t n, next; /* sets of matrices; EXPERTS: layers */
	uint32_t experts, top_k;
	uint32_t cols, rows; /* of activations and of results */
	float *x, *y;	     /* [tokens][cols], [tokens][rows] */
	uint64_t random;
	/* EXPERTS */
	uint32_t *all, *chosen; /* [experts], [tokens][top_k] */
	bool *touched;		/* [experts] */
	float *weights;		/* [tokens][top_k] */
};

struct shape {
	uint32_t rows[MATRICES_MAX], cols[MATRICES_MAX];
	enum weight_kind kind;
};

static struct shape shape_of(const struct config *c, enum product_class class)
{
	const uint32_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
	const uint32_t dim = c->dim, ffn = c->moe_ffn_dim;

	switch (class) {
	case PRODUCT_EXPERTS:
		return (struct shape){ { ffn, ffn, dim }, { dim, dim, ffn }, WEIGHT_INT4 };
	case PRODUCT_QKV:
		return (struct shape){ { q, kv, kv }, { dim, dim, dim }, WEIGHT_BF16 };
	case PRODUCT_O:
		return (struct shape){ { dim }, { q }, WEIGHT_BF16 };
	case PRODUCT_HEAD:
		break;
	}
	return (struct shape){ { c->vocab }, { dim }, WEIGHT_BF16 };
}

static int make_matrices(struct product *p, const struct shape *s, struct err *err)
{
	const uint32_t in_set = p->class == PRODUCT_EXPERTS ? p->experts : 1;
	size_t bytes = 0;
	int r = 0;

	while (p->n_kinds < MATRICES_MAX && s->rows[p->n_kinds]) {
		bytes += in_set *
			 weight_bytes(p->dev, s->kind, s->rows[p->n_kinds], s->cols[p->n_kinds]);
		p->n_kinds++;
	}
	p->n = (uint32_t)(bandwidth_least_bytes() / bytes + 1);
	for (uint32_t i = 0; i < p->n_kinds && r == 0; i++)
		r = matrices_new(p->dev, s->kind, s->rows[i], s->cols[i], p->n * in_set,
				 &p->matrices[i], err);
	return r;
}

static int make_activations(struct product *p, const struct shape *s, uint32_t tokens,
			    struct err *err)
{
	const size_t top_k = p->top_k;

	p->cols = s->cols[0];
	if (p->class == PRODUCT_EXPERTS)
		p->rows = s->cols[0];
	else
		p->rows = s->rows[0] + s->rows[1] + s->rows[2];
	p->x = malloc((size_t)tokens * p->cols * sizeof(*p->x));
	p->y = calloc((size_t)tokens * p->rows, sizeof(*p->y));
	p->all = calloc(p->experts, sizeof(*p->all));
	p->touched = calloc(p->experts, sizeof(*p->touched));
	p->chosen = calloc(tokens * top_k, sizeof(*p->chosen));
	p->weights = malloc(tokens * top_k * sizeof(*p->weights));
	if (!p->x || !p->y || (p->experts && (!p->all || !p->touched || !p->chosen || !p->weights)))
		return err_wrap(err, -ENOMEM, "no memory for %u rows", tokens);
	random_fill_f32(1, p->x, (size_t)tokens * p->cols);
	for (uint32_t i = 0; i < p->experts; i++)
		p->all[i] = i;
	for (size_t i = 0; i < tokens * top_k; i++)
		p->weights[i] = 1.0f / (float)top_k;
	return 0;
}

int product_new(struct bench *b, enum product_class class, uint32_t max_tokens,
		struct product **ret, struct err *err)
{
	_cleanup_(product_freep) struct product *p = calloc(1, sizeof(*p));
	const struct checkpoint *checkpoint;
	const struct config *c;
	struct op_limits limits;
	struct shape s;
	int r;

	if (!p)
		return err_wrap(err, -ENOMEM, "cannot make products");
	r = bench_dev(b, &p->dev, err);
	if (r == 0)
		r = bench_checkpoint(b, &checkpoint, err);
	if (r < 0)
		return r;
	c = &checkpoint->config;
	if (class == PRODUCT_EXPERTS && c->dense_layers >= c->layers)
		return err_set(err, -ENOENT, "the model has no experts");
	p->class = class;
	p->random = 1;
	if (class == PRODUCT_EXPERTS) {
		p->experts = c->experts;
		p->top_k = c->top_k;
	}
	s = shape_of(c, class);
	limits = (struct op_limits){
		.tokens = max_tokens,
		.dim = MAX(c->dim, c->heads * c->head_dim),
		.heads = c->heads,
		.kv_heads = c->kv_heads,
		.head_dim = c->head_dim,
		.ffn_dim = c->moe_ffn_dim,
		.experts = c->experts,
		.top_k = c->top_k,
		.vocab = c->vocab,
		.max_context = 1,
	};
	r = st_open(p->dev, op_scratch(p->dev, &limits), &p->stream);
	if (r < 0)
		return err_wrap(err, r, "no scratch memory for %u rows", max_tokens);
	r = make_activations(p, &s, max_tokens, err);
	if (r == 0)
		r = make_matrices(p, &s, err);
	if (r < 0)
		return r;
	*ret = steal(p);
	return 0;
}

struct product *product_free(struct product *p)
{
	if (!p)
		return NULL;
	for (uint32_t i = 0; i < p->n_kinds; i++)
		matrices_free(p->matrices[i]);
	st_close(p->stream);
	free(p->x);
	free(p->y);
	free(p->all);
	free(p->chosen);
	free(p->touched);
	free(p->weights);
	free(p);
	return NULL;
}

enum weight_kind product_kind(const struct product *p)
{
	return p->matrices[0]->at[0].kind;
}

static struct tensor rows_of(float *data, uint32_t tokens, uint32_t width)
{
	return (struct tensor){ data, DT_F32, { 1, tokens, width } };
}

static void count(struct work *w, const struct matrices *m, uint32_t n_read, uint32_t n_products)
{
	w->bytes += (double)m->bytes * n_read;
	w->flops += 2.0 * m->at[0].rows * m->at[0].cols * n_products;
}

static int run_linears(struct product *p, uint32_t set, uint32_t tokens)
{
	const struct tensor x = rows_of(p->x, tokens, p->cols);
	struct linear_job jobs[MATRICES_MAX] = { 0 };
	float *y = p->y;

	for (uint32_t i = 0; i < p->n_kinds; i++) {
		const struct weight *w = &p->matrices[i]->at[set];

		jobs[i].w = w;
		jobs[i].y = rows_of(y, tokens, w->rows);
		y += (size_t)tokens * w->rows;
	}
	return op_linears(p->stream, jobs, p->n_kinds, &x);
}

/* Routes every row to other experts; returns how many experts that are together. */
static uint32_t route(struct product *p, uint32_t tokens)
{
	uint32_t n = 0;

	memset(p->touched, 0, p->experts * sizeof(*p->touched));
	for (uint32_t t = 0; t < tokens; t++) {
		random_choose(&p->random, p->all, p->top_k, p->experts);
		memcpy(p->chosen + (size_t)t * p->top_k, p->all, p->top_k * sizeof(*p->all));
		for (uint32_t i = 0; i < p->top_k; i++) {
			n += !p->touched[p->all[i]];
			p->touched[p->all[i]] = true;
		}
	}
	return n;
}

static int run_experts(struct product *p, uint32_t set, uint32_t tokens)
{
	const struct tensor x = rows_of(p->x, tokens, p->cols);
	const struct tensor y = rows_of(p->y, tokens, p->rows);
	const size_t first = (size_t)set * p->experts;
	const struct moe_weights w = {
		.experts = p->experts,
		.gate = p->matrices[0]->at + first,
		.up = p->matrices[1]->at + first,
		.down = p->matrices[2]->at + first,
	};

	return op_moe(p->stream, &y, &x, &w, p->top_k, p->chosen, p->weights);
}

int product_run(struct product *p, uint32_t tokens, double seconds, struct work *work)
{
	const bool experts = p->class == PRODUCT_EXPERTS;
	double spent = 0;

	while (spent < seconds) {
		const uint32_t n_read = experts ? route(p, tokens) : 1;
		const uint32_t n_products = experts ? tokens * p->top_k : tokens;
		const double from = bench_now_s();
		const int r = experts ? run_experts(p, p->next, tokens)
				      : run_linears(p, p->next, tokens);

		if (r < 0)
			return r;
		spent += bench_now_s() - from;
		for (uint32_t i = 0; i < p->n_kinds; i++)
			count(work, p->matrices[i], n_read, n_products);
		p->next = (p->next + 1) % p->n;
	}
	work->seconds += spent;
	return 0;
}
