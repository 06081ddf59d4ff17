/* op_moe() and op_mlp(): what is refused, and the way that a batch takes. */
#include "kernels/cuda/matrix.h"

static bool mlp_fits(const struct weight *gate, const struct weight *up, const struct weight *down,
		     uint32_t dim)
{
	return gate->rows && weight_is_whole(gate, gate->rows, dim) &&
	       weight_is_whole(up, gate->rows, dim) && weight_is_whole(down, dim, gate->rows);
}

/* The choices are on the device, so every expert has to be in order. */
static bool moe_fits(const struct tensor *y, const struct tensor *x, const struct moe_weights *w,
		     uint32_t top_k)
{
	const uint32_t tokens = x->shape[1], dim = x->shape[2];

	if (!dim || !is_batch(x, tokens, dim) || !is_batch(y, tokens, dim) ||
	    w->experts > MOE_EXPERTS_MAX || top_k > MOE_TOP_K_MAX || top_k > w->experts)
		return false;
	if (w->shared_gate.kind != WEIGHT_NONE &&
	    !mlp_fits(&w->shared_gate, &w->shared_up, &w->shared_down, dim))
		return false;
	for (uint32_t e = 0; e < w->experts && top_k; e++)
		if (!mlp_fits(&w->gate[e], &w->up[e], &w->down[e], dim))
			return false;
	return true;
}

/* Whether matrices of one kind and size are at equal distances. */
static bool is_regular(const struct weight *w, uint32_t n)
{
	const ptrdiff_t stride = n > 1 ? (const char *)w[1].data - (const char *)w[0].data : 0;

	if (stride < 0)
		return false;
	for (uint32_t e = 0; e < n; e++)
		if (w[e].kind != WEIGHT_INT4 || w[e].rows != w[0].rows || w[e].cols != w[0].cols ||
		    (const char *)w[e].data != (const char *)w[0].data + e * stride)
			return false;
	return true;
}

struct experts experts_of(const struct weight *w, uint32_t n)
{
	const char *first = (const char *)w[0].data;

	return { first, n > 1 ? (size_t)((const char *)w[1].data - first) : 0 };
}

bool moe_is_regular(const struct moe_weights *w, uint32_t top_k)
{
	if (w->shared_gate.kind != WEIGHT_NONE &&
	    (w->shared_gate.kind != WEIGHT_BF16 || w->shared_up.kind != WEIGHT_BF16 ||
	     w->shared_down.kind != WEIGHT_BF16))
		return false;
	if (top_k == 0)
		return true;
	return is_regular(w->gate, w->experts) && is_regular(w->up, w->experts) &&
	       experts_of(w->gate, w->experts).stride == experts_of(w->up, w->experts).stride &&
	       is_regular(w->down, w->experts);
}

int op_moe(struct stream *st, const struct tensor *y, const struct tensor *x,
	   const struct moe_weights *w, uint32_t top_k, const uint32_t *chosen,
	   const float *weights)
{
	const uint32_t tokens = x->shape[1];

	if (!moe_fits(y, x, w, top_k))
		return -EINVAL;
	if (tokens == 0 || (top_k == 0 && w->shared_gate.kind == WEIGHT_NONE))
		return 0;
	if (moe_is_few(st->dev, w, tokens, top_k))
		return moe_few(st, y, x, w, top_k, chosen, weights);
	if (moe_is_regular(w, top_k))
		return moe_tiles(st, y, x, w, top_k, chosen, weights);
	return moe_many(st, y, x, w, top_k, chosen, weights);
}

/* A dense MLP is a mixture of no experts and a shared one. */
int op_mlp(struct stream *st, const struct tensor *y, const struct tensor *x,
	   const struct weight *gate, const struct weight *up, const struct weight *down)
{
	struct moe_weights w = {};

	if (gate->kind == WEIGHT_NONE)
		return -EINVAL;
	w.shared_gate = *gate;
	w.shared_up = *up;
	w.shared_down = *down;
	return op_moe(st, y, x, &w, 0, NULL, NULL);
}

size_t matrix_scratch(const struct dev *dev, const struct op_limits *l)
{
	const uint32_t heads = l->heads > l->kv_heads ? l->heads : l->kv_heads;
	const uint64_t attention = (uint64_t)heads * l->head_dim;
	const size_t needs[] = {
		linears_many_scratch(dev, l->tokens,
				     (uint32_t)(l->dim > attention ? l->dim : attention)),
		moe_few_scratch(l),
		moe_many_scratch(l),
		router_scratch(l),
	};
	size_t most = 0;

	for (size_t need : needs)
		if (need > most)
			most = need;
	return most;
}
