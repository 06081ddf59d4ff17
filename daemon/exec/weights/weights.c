/* Loading: where every matrix will stand, and what has to be read for that. */
#include "daemon/exec/weights/weights.h"

#include <errno.h>
#include <string.h>

#include "daemon/exec/weights/loader.h"

#define ALIGNMENT 64
#define STRIP_ROWS 16
#define PIECE_BYTES (4u << 20) /* of a matrix, read and packed by one thread */

_Static_assert(STRIP_ROWS % FINGERPRINT_ROWS == 0, "a fingerprint does not know pieces");

/* Of one rank. */
struct layout {
	const struct checkpoint *c;
	struct weights *w;
	struct ck_linear embed;
	size_t at; /* of the memory */
	struct load_plan *plan;
};

static enum weight_kind kind_of(const struct ck_linear *w)
{
	struct weight_source src = { .rows = w->rows, .cols = w->cols };

	src.type = w->plain.t ? w->plain.t->type : w->packed.t->type;
	src.scale_type = w->plain.t ? DT_NONE : w->scales.t->type;
	src.group = w->group;
	return weight_kind_of(&src);
}

static void *place(struct layout *l, size_t bytes)
{
	const size_t at = l->at;

	l->at += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
	return l->w->memory ? (char *)l->w->memory + at : NULL;
}

static uint64_t row_bytes(const struct ck_linear *w)
{
	const struct st_tensor *t = w->plain.t ? w->plain.t : w->packed.t;

	return t->bytes / w->rows + (w->scales.t ? w->scales.t->bytes / w->rows : 0);
}

static const char *name_of(const struct ck_linear *w)
{
	return w->plain.t ? w->plain.t->name : w->packed.t->name;
}

static const char *path_of(const struct ck_linear *w)
{
	return st_file_path(w->plain.t ? w->plain.file : w->packed.file);
}

/* Cuts a rank's part at strips, which stand one after another in memory, into pieces of bounded size. */
static int lay_pieces(struct layout *l, const struct ck_linear *w, enum split split,
		      const struct share_part *part, const struct weight *to)
{
	const uint64_t row = row_bytes(w);
	const uint32_t rows = (uint32_t)MAX(PIECE_BYTES / MAX(row, 1) / STRIP_ROWS * STRIP_ROWS,
					    STRIP_ROWS);
	struct piece p = {
		.w = w,
		.kind = to->kind,
		.first_col = part->first_col,
		.cols = part->cols,
		.dev = l->w->dev,
		.of_rows = part->rows,
		.repeats = l->w->share.rank > 0 && (split == SPLIT_NOT || split == SPLIT_COLS),
	};
	int r = 0;

	for (; r == 0 && p.at_row < part->rows; p.at_row += rows) {
		p.first_row = part->first_row + p.at_row;
		p.rows = MIN(rows, part->rows - p.at_row);
		p.bytes = p.rows * row;
		p.data = (char *)to->data + weight_bytes(l->w->dev, to->kind, p.at_row, part->cols);
		r = load_plan_add(l->plan, p);
	}
	return r;
}

static int lay_matrix(struct layout *l, const struct ck_linear *w, enum split split,
		      struct weight *ret, struct err *err)
{
	const struct share *s = &l->w->share;
	struct share_part part;
	uint32_t unit;

	ret->kind = kind_of(w);
	if (ret->kind == WEIGHT_NONE)
		return err_set(err, -ENOTSUP,
			       "'%s': tensor '%s' of %u columns with groups of %u cannot be packed",
			       path_of(w), name_of(w), w->cols, w->group);
	if (share_matrix(w->rows, w->cols, ret->kind, split, s->rank, s->n_ranks, &part, &unit) < 0)
		return err_set(err, -ENOTSUP,
			       "'%s': %u %s of tensor '%s' cannot be divided among %u ranks in "
			       "multiples of %u",
			       path_of(w), split == SPLIT_COLS ? w->cols : w->rows,
			       split == SPLIT_COLS ? "columns" : "rows", name_of(w), s->n_ranks,
			       unit);
	ret->rows = part.rows;
	ret->cols = part.cols;
	ret->data = place(l, weight_bytes(l->w->dev, ret->kind, part.rows, part.cols));
	return l->w->memory ? lay_pieces(l, w, split, &part, ret) : 0;
}

/* Elements @first … of a vector or of a matrix of @rows that is kept as F32. */
static int lay_some(struct layout *l, struct ck_tensor at, uint32_t rows, uint32_t first,
		    uint32_t cols, struct tensor *ret)
{
	if (!at.t)
		return 0;
	*ret = (struct tensor){ .type = DT_F32, .shape = { 1, rows, cols } };
	ret->data = place(l, tensor_elements(ret) * sizeof(float));
	return l->w->memory
		       ? load_plan_add(l->plan, (struct piece){ .vector = at,
								.first_row = first,
								.rows = tensor_elements(ret),
								.dev = l->w->dev,
								.data = ret->data,
								.bytes = at.t->bytes,
								.repeats = l->w->share.rank > 0 })
		       : 0;
}

static int lay_vector(struct layout *l, struct ck_tensor at, uint32_t rows, uint32_t cols,
		      struct tensor *ret)
{
	return lay_some(l, at, rows, 0, cols, ret);
}

/* The bias of what heads are divided of. */
static int lay_bias(struct layout *l, const struct ck_linear *w, struct tensor *ret)
{
	const uint32_t n = w->rows / l->w->share.n_ranks;

	return lay_some(l, w->bias, 1, n * l->w->share.rank, n, ret);
}

static int lay_moe(struct layout *l, const struct ck_layer *from, struct layer_weights *to,
		   struct err *err)
{
	const struct config *c = &l->c->config;
	struct weight *gate = (struct weight *)to->moe.gate, *up = (struct weight *)to->moe.up;
	struct weight *down = (struct weight *)to->moe.down;
	int r;

	r = lay_vector(l, from->router, c->experts, c->dim, &to->router);
	if (r < 0 || (r = lay_vector(l, from->router_bias, 1, c->experts, &to->router_bias)) < 0)
		return r;
	if (c->shared_experts &&
	    ((r = lay_matrix(l, &from->shared_gate, SPLIT_ROWS, &to->moe.shared_gate, err)) < 0 ||
	     (r = lay_matrix(l, &from->shared_up, SPLIT_ROWS, &to->moe.shared_up, err)) < 0 ||
	     (r = lay_matrix(l, &from->shared_down, SPLIT_COLS, &to->moe.shared_down, err)) < 0))
		return r;
	to->moe.experts = c->experts;
	for (uint32_t e = 0; e < c->experts; e++)
		if ((r = lay_matrix(l, &from->expert_gate[e], SPLIT_ROWS, &gate[e], err)) < 0 ||
		    (r = lay_matrix(l, &from->expert_up[e], SPLIT_ROWS, &up[e], err)) < 0 ||
		    (r = lay_matrix(l, &from->expert_down[e], SPLIT_COLS, &down[e], err)) < 0)
			return r;
	return 0;
}

static int lay_layer(struct layout *l, const struct ck_layer *from, struct layer_weights *to,
		     struct err *err)
{
	const struct config *c = &l->c->config;
	int r;

	to->dense = from->dense;
	if ((r = lay_vector(l, from->input_norm, 1, c->dim, &to->input_norm)) < 0 ||
	    (r = lay_vector(l, from->post_norm, 1, c->dim, &to->post_norm)) < 0 ||
	    (r = lay_vector(l, from->q_norm, 1, c->head_dim, &to->q_norm)) < 0 ||
	    (r = lay_vector(l, from->k_norm, 1, c->head_dim, &to->k_norm)) < 0 ||
	    (r = lay_bias(l, &from->q, &to->q_bias)) < 0 ||
	    (r = lay_bias(l, &from->k, &to->k_bias)) < 0 ||
	    (r = lay_bias(l, &from->v, &to->v_bias)) < 0 ||
	    (l->w->share.rank == 0 &&
	     (r = lay_vector(l, from->o.bias, 1, from->o.rows, &to->o_bias)) < 0) ||
	    (r = lay_matrix(l, &from->q, SPLIT_ROWS, &to->q, err)) < 0 ||
	    (r = lay_matrix(l, &from->k, SPLIT_ROWS, &to->k, err)) < 0 ||
	    (r = lay_matrix(l, &from->v, SPLIT_ROWS, &to->v, err)) < 0 ||
	    (r = lay_matrix(l, &from->o, SPLIT_COLS, &to->o, err)) < 0)
		return r;
	if (!from->dense)
		return lay_moe(l, from, to, err);
	if ((r = lay_matrix(l, &from->gate, SPLIT_ROWS, &to->gate, err)) < 0 ||
	    (r = lay_matrix(l, &from->up, SPLIT_ROWS, &to->up, err)) < 0)
		return r;
	return lay_matrix(l, &from->down, SPLIT_COLS, &to->down, err);
}

/* Once without memory, to learn how much, and once with it. */
static int lay_all(struct layout *l, struct err *err)
{
	struct weights *w = l->w;
	int r;

	l->at = 0;
	l->embed = (struct ck_linear){ .rows = w->config.vocab,
				       .cols = w->config.dim,
				       .plain = l->c->embed };
	r = lay_matrix(l, &l->embed, SPLIT_VOCAB, &w->embed, err);
	for (uint32_t i = 0; r == 0 && i < w->config.layers; i++)
		r = lay_layer(l, &l->c->layers[i], &w->layers[i], err);
	if (r == 0)
		r = lay_vector(l, l->c->norm, 1, w->config.dim, &w->norm);
	if (r < 0)
		return r;
	if (w->config.tied_head) {
		w->head = w->embed;
		return 0;
	}
	return lay_matrix(l, &l->c->head, SPLIT_VOCAB, &w->head, err);
}

static int check_files(const struct checkpoint *c, struct err *err)
{
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < c->n_files; i++)
		r = st_file_unchanged(c->files[i], err);
	return r;
}

static uint64_t resident(const struct weights *w, const struct weight *m)
{
	return m->kind == WEIGHT_NONE ? 0 : weight_bytes(w->dev, m->kind, m->rows, m->cols);
}

static uint64_t vector_bytes(const struct tensor *t)
{
	return t->data ? tensor_elements(t) * sizeof(float) : 0;
}

/* What one decoded token reads: all but the embedding table and the experts not chosen. */
static uint64_t decode_bytes(const struct weights *w)
{
	uint64_t n = resident(w, &w->head) + vector_bytes(&w->norm) +
		     resident(w, &w->embed) / w->embed.rows;

	for (uint32_t i = 0; i < w->config.layers; i++) {
		const struct layer_weights *l = &w->layers[i];

		n += vector_bytes(&l->input_norm) + vector_bytes(&l->post_norm) +
		     vector_bytes(&l->q_norm) + vector_bytes(&l->k_norm) +
		     vector_bytes(&l->q_bias) + vector_bytes(&l->k_bias) +
		     vector_bytes(&l->v_bias) + vector_bytes(&l->o_bias) + resident(w, &l->q) +
		     resident(w, &l->k) + resident(w, &l->v) + resident(w, &l->o);
		n += resident(w, &l->gate) + resident(w, &l->up) + resident(w, &l->down);
		if (l->dense)
			continue;
		n += vector_bytes(&l->router) + vector_bytes(&l->router_bias) +
		     resident(w, &l->moe.shared_gate) + resident(w, &l->moe.shared_up) +
		     resident(w, &l->moe.shared_down);
		n += w->config.top_k * (resident(w, &l->moe.gate[0]) + resident(w, &l->moe.up[0]) +
					resident(w, &l->moe.down[0]));
	}
	return n;
}

static int make_layers(struct weights *w)
{
	const uint32_t experts = w->config.experts;

	w->layers = calloc(w->config.layers, sizeof(*w->layers));
	if (!w->layers)
		return -ENOMEM;
	for (uint32_t i = w->config.dense_layers; i < w->config.layers; i++) {
		struct moe_weights *m = &w->layers[i].moe;

		m->gate = calloc(experts, sizeof(*m->gate));
		m->up = calloc(experts, sizeof(*m->up));
		m->down = calloc(experts, sizeof(*m->down));
		if (!m->gate || !m->up || !m->down)
			return -ENOMEM;
	}
	return 0;
}

static int reserve(struct layout *l, struct err *err)
{
	struct weights *w = l->w;
	int r;

	r = lay_all(l, err);
	if (r < 0)
		return r;
	w->bytes = l->at;
	w->reserved_bytes = l->at;
	w->memory = dev_reserve_named(w->dev, "weights", w->reserved_bytes, DEV_CHUNK_MAX);
	if (!w->memory)
		return err_set(err, -ENOMEM, "no addresses for %zu bytes of weights",
			       w->reserved_bytes);
	return 0;
}

/* Puts memory behind the addresses and says what shall come there. */
static int prepare(struct layout *l, struct err *err)
{
	struct weights *w = l->w;
	const int r = dev_back(w->dev, w->memory, w->reserved_bytes);

	if (r < 0)
		return err_set(err, r, "no memory for %zu bytes of weights", w->reserved_bytes);
	return lay_all(l, err);
}

static int seal(struct weights *w, struct err *err)
{
	const int r = dev_seal(w->dev, w->memory, w->reserved_bytes);

	if (r < 0)
		return err_wrap(err, r, "cannot make %zu bytes of weights read-only",
				w->reserved_bytes);
	return 0;
}

/* Reads what all ranks want of the checkpoint, once. */
static int read_plan(struct weights *const *ranks, const struct checkpoint *c,
		     struct load_plan *plan, weights_progress_fn progress, void *userdata,
		     struct fingerprint *fingerprint, struct err *err)
{
	int r;

	if (progress)
		progress(0, plan->total_bytes, userdata);
	r = load_plan_run(plan, c, ranks, fingerprint, progress, userdata, err);
	if (r < 0)
		return r;
	r = check_files(c, err);
	if (r < 0)
		return r;
	fingerprint_finish(fingerprint);
	return ranks[0]->fingerprint ? fingerprint_compare(ranks[0]->fingerprint, fingerprint, err)
				     : 0;
}

/* Of weights whose memory is reserved. */
static int fill(struct weights *const *ranks, const struct checkpoint *c,
		weights_progress_fn progress, void *userdata, struct fingerprint *fingerprint,
		struct err *err)
{
	const uint32_t n_ranks = ranks[0]->share.n_ranks;
	struct layout layouts[SHARE_RANKS_MAX]; /* pieces point into them */
	struct load_plan plan = { 0 };
	uint64_t total_bytes;
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < n_ranks; i++) {
		layouts[i] = (struct layout){ .c = c, .w = ranks[i], .plan = &plan };
		r = prepare(&layouts[i], err);
	}
	total_bytes = plan.total_bytes;
	if (r == 0)
		r = read_plan(ranks, c, &plan, progress, userdata, fingerprint, err);
	load_plan_deinit(&plan);
	for (uint32_t i = 0; r == 0 && i < n_ranks; i++)
		r = seal(ranks[i], err);
	if (r == 0 && progress)
		progress(total_bytes, total_bytes, userdata);
	return r;
}

static int weights_new(const struct checkpoint *c, struct dev *dev, uint32_t rank, uint32_t n_ranks,
		       struct weights **ret, struct err *err)
{
	_cleanup_(weights_freep) struct weights *w = calloc(1, sizeof(*w));
	struct layout l = { .c = c, .w = w };
	int r;

	if (!w)
		return -ENOMEM;
	w->config = c->config;
	w->dev = dev;
	r = share_make(&w->config, rank, n_ranks, "ranks", &w->share, err);
	if (r == 0)
		r = make_layers(w);
	if (r == 0)
		r = reserve(&l, err);
	if (r < 0)
		return r;
	*ret = steal(w);
	return 0;
}

int weights_load_ranks(const struct checkpoint *c, struct dev *const *devs, uint32_t n_ranks,
		       weights_progress_fn progress, void *userdata, struct weights **ret,
		       struct err *err)
{
	_cleanup_(fingerprint_freep) struct fingerprint *fingerprint = NULL;
	struct weights *ranks[SHARE_RANKS_MAX] = { NULL };
	int r;

	if (n_ranks == 0 || n_ranks > SHARE_RANKS_MAX)
		return -EINVAL;
	r = check_files(c, err);
	if (r == 0)
		r = fingerprint_new(c, &fingerprint);
	for (uint32_t i = 0; r == 0 && i < n_ranks; i++)
		r = weights_new(c, devs[i], i, n_ranks, &ranks[i], err);
	if (r == 0)
		r = fill(ranks, c, progress, userdata, fingerprint, err);
	if (r < 0) {
		for (uint32_t i = 0; i < n_ranks; i++)
			weights_free(ranks[i]);
		return r;
	}

	ranks[0]->fingerprint = steal(fingerprint);
	for (uint32_t i = 0; i < n_ranks; i++) {
		ranks[i]->decode_bytes = decode_bytes(ranks[i]);
		ret[i] = ranks[i];
	}
	return 0;
}

int weights_load(const struct checkpoint *c, struct dev *dev, weights_progress_fn progress,
		 void *userdata, struct weights **ret, struct err *err)
{
	return weights_load_ranks(c, &dev, 1, progress, userdata, ret, err);
}

void weights_drop(struct weights *w)
{
	dev_unback(w->dev, w->memory, w->reserved_bytes);
}

int weights_reload_ranks(struct weights *const *ranks, const struct checkpoint *c,
			 weights_progress_fn progress, void *userdata, struct err *err)
{
	_cleanup_(fingerprint_freep) struct fingerprint *fingerprint = NULL;
	int r;

	r = fingerprint_new(c, &fingerprint);
	if (r < 0)
		return r;
	/* the same headers, so the same places */
	r = fingerprint_compare(ranks[0]->fingerprint, fingerprint, err);
	if (r < 0)
		return r;
	r = fill(ranks, c, progress, userdata, fingerprint, err);
	for (uint32_t i = 0; r < 0 && i < ranks[0]->share.n_ranks; i++)
		weights_drop(ranks[i]);
	return r;
}

int weights_reload(struct weights *w, const struct checkpoint *c, weights_progress_fn progress,
		   void *userdata, struct err *err)
{
	return weights_reload_ranks(&w, c, progress, userdata, err);
}

struct weights *weights_free(struct weights *w)
{
	if (!w)
		return NULL;
	for (uint32_t i = 0; w->layers && i < w->config.layers; i++) {
		free((void *)w->layers[i].moe.gate);
		free((void *)w->layers[i].moe.up);
		free((void *)w->layers[i].moe.down);
	}
	if (w->memory)
		dev_unback(w->dev, w->memory, w->reserved_bytes);
	fingerprint_free(w->fingerprint);
	free(w->layers);
	free(w);
	return NULL;
}
