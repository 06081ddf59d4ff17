/*
 * BF16 and F32 are filled in place: any order of random weights is as random.
 * Int4 matrices are packed on the host, a few of each shape, and copied to all
 * places that have the shape: other bytes of memory, so just as cold.
 */
#include "tests/gpu/air.h"

#include <errno.h>
#include <stdlib.h>

#include "tests/gpu/device.h"
#include "tests/unit/matrices.h"

#define ALIGNMENT 256
#define TEMPLATES 6
#define WEIGHT_SCALE 0.03f

static const struct config air = {
	.dim = 4096,
	.ffn_dim = 10944,
	.moe_ffn_dim = 1408,
	.shared_experts = 1,
	.dense_layers = 1,
	.heads = 96,
	.kv_heads = 8,
	.head_dim = 128,
	.rotary = 64,
	.partial_rotary = 0.5,
	.experts = 128,
	.top_k = 8,
	.groups = 1,
	.top_groups = 1,
	.normalise_top_k = true,
	.attention_bias = true,
	.routed_scale = 1,
	.norm_eps = 1e-5,
	.rope_theta = 1e6,
	.vocab = 151552,
	.max_positions = 131072,
	.quantised = true,
	.group = 32,
};

struct maker {
	struct dev *dev;
	struct stream *st;
	struct weights *w;
	size_t at;
	uint64_t seed;
	struct weight templates[2][TEMPLATES]; /* gate or up, and down */
	int r;
};

static void *place(struct maker *m, size_t bytes)
{
	void *at = m->w->memory ? (char *)m->w->memory + m->at : NULL;

	m->at += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
	return at;
}

static void vector(struct maker *m, struct tensor *ret, uint32_t rows, uint32_t cols, float scale)
{
	*ret = (struct tensor){ .type = DT_F32, .shape = { 1, rows, cols } };
	ret->data = place(m, tensor_elements(ret) * sizeof(float));
	if (ret->data && m->r == 0)
		m->r = device_fill(m->st, ret->data, tensor_elements(ret), DT_F32, scale,
				   ++m->seed);
}

static void plain(struct maker *m, struct weight *ret, uint32_t rows, uint32_t cols)
{
	const size_t bytes = weight_bytes(m->dev, WEIGHT_BF16, rows, cols);

	*ret = (struct weight){ WEIGHT_BF16, rows, cols, place(m, bytes) };
	if (ret->data && m->r == 0)
		m->r = device_fill(m->st, ret->data, bytes / 2, DT_BF16, WEIGHT_SCALE, ++m->seed);
}

static void quantised(struct maker *m, struct weight *ret, uint32_t rows, uint32_t cols, int shape)
{
	const size_t bytes = weight_bytes(m->dev, WEIGHT_INT4, rows, cols);
	const struct weight *from = &m->templates[shape][++m->seed % TEMPLATES];

	*ret = (struct weight){ WEIGHT_INT4, rows, cols, place(m, bytes) };
	if (ret->data && m->r == 0)
		m->r = st_copy2d(m->st, ret->data, bytes, from->data, bytes, bytes, 1);
}

static void lay_layer(struct maker *m, uint32_t layer)
{
	struct layer_weights *l = &m->w->layers[layer];
	const struct config *c = &m->w->config;
	const uint32_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;

	vector(m, &l->input_norm, 1, c->dim, 1);
	vector(m, &l->post_norm, 1, c->dim, 1);
	vector(m, &l->q_bias, 1, q, 0.1f);
	vector(m, &l->k_bias, 1, kv, 0.1f);
	vector(m, &l->v_bias, 1, kv, 0.1f);
	plain(m, &l->q, q, c->dim);
	plain(m, &l->k, kv, c->dim);
	plain(m, &l->v, kv, c->dim);
	plain(m, &l->o, c->dim, q);
	l->dense = layer < c->dense_layers;
	if (l->dense) {
		plain(m, &l->gate, c->ffn_dim, c->dim);
		plain(m, &l->up, c->ffn_dim, c->dim);
		plain(m, &l->down, c->dim, c->ffn_dim);
		return;
	}
	vector(m, &l->router, c->experts, c->dim, WEIGHT_SCALE);
	vector(m, &l->router_bias, 1, c->experts, 0.01f);
	plain(m, &l->moe.shared_gate, c->moe_ffn_dim, c->dim);
	plain(m, &l->moe.shared_up, c->moe_ffn_dim, c->dim);
	plain(m, &l->moe.shared_down, c->dim, c->moe_ffn_dim);
	l->moe.experts = c->experts;
	for (uint32_t e = 0; e < c->experts; e++) {
		quantised(m, (struct weight *)&l->moe.gate[e], c->moe_ffn_dim, c->dim, 0);
		quantised(m, (struct weight *)&l->moe.up[e], c->moe_ffn_dim, c->dim, 0);
		quantised(m, (struct weight *)&l->moe.down[e], c->dim, c->moe_ffn_dim, 1);
	}
}

static void lay_all(struct maker *m)
{
	m->at = 0;
	plain(m, &m->w->embed, air.vocab, air.dim);
	for (uint32_t i = 0; i < m->w->config.layers; i++)
		lay_layer(m, i);
	vector(m, &m->w->norm, 1, air.dim, 1);
	plain(m, &m->w->head, air.vocab, air.dim);
}

static int make_template(struct maker *m, struct weight *ret, uint32_t rows, uint32_t cols)
{
	const size_t bytes = weight_bytes(m->dev, WEIGHT_INT4, rows, cols);
	struct matrix of = matrix_new(m->dev, &(struct form){ DT_I32, DT_BF16, 32 }, rows, cols);
	int r;

	*ret = (struct weight){ WEIGHT_INT4, rows, cols, dev_reserve(m->dev, bytes) };
	r = ret->data ? dev_back(m->dev, ret->data, bytes) : -ENOMEM;
	if (r == 0)
		r = op_repack(m->dev, ret, &of.src, NULL);
	matrix_free(&of);
	return r;
}

static int make_layers(struct weights *w)
{
	w->layers = calloc(w->config.layers, sizeof(*w->layers));
	for (uint32_t i = 0; w->layers && i < w->config.layers; i++) {
		struct moe_weights *moe = &w->layers[i].moe;

		moe->gate = calloc(air.experts, sizeof(*moe->gate));
		moe->up = calloc(air.experts, sizeof(*moe->up));
		moe->down = calloc(air.experts, sizeof(*moe->down));
		if (!moe->gate || !moe->up || !moe->down)
			return -ENOMEM;
	}
	return w->layers ? 0 : -ENOMEM;
}

size_t air_bytes(struct dev *dev, uint32_t layers)
{
	struct weights w = { .config = air };
	struct maker m = { .dev = dev, .w = &w };

	w.config.layers = layers;
	if (make_layers(&w) == 0)
		lay_all(&m);
	for (uint32_t i = 0; w.layers && i < layers; i++) {
		free((void *)w.layers[i].moe.gate);
		free((void *)w.layers[i].moe.up);
		free((void *)w.layers[i].moe.down);
	}
	free(w.layers);
	return m.at;
}

int air_new(struct dev *dev, struct stream *st, uint32_t layers, struct weights *ret)
{
	struct maker m = { .dev = dev, .st = st, .w = ret };
	size_t bytes;
	int r;

	*ret = (struct weights){ .config = air, .dev = dev };
	ret->config.layers = layers;
	bytes = air_bytes(dev, layers);
	r = share_make(&ret->config, 0, 1, "ranks", &ret->share, NULL);
	if (r == 0)
		r = make_layers(ret);
	for (int i = 0; r == 0 && i < TEMPLATES; i++) {
		r = make_template(&m, &m.templates[0][i], air.moe_ffn_dim, air.dim);
		if (r == 0)
			r = make_template(&m, &m.templates[1][i], air.dim, air.moe_ffn_dim);
	}
	if (r < 0)
		return r;
	ret->memory = dev_reserve_named(dev, "weights", bytes, DEV_CHUNK_MAX);
	r = ret->memory ? dev_back(dev, ret->memory, bytes) : -ENOMEM;
	if (r < 0)
		return r;
	ret->bytes = ret->reserved_bytes = bytes;
	lay_all(&m);
	return m.r < 0 ? m.r : st_wait(st);
}
