/*
 * Loading: where every matrix will stand, the list of pieces to read, and the
 * threads that read a piece, pack it and take the next.
 */
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>

#include "daemon/exec/weights/weights.h"

#define ALIGNMENT 64
#define STRIP_ROWS 16
#define PIECE_BYTES (4u << 20) /* of a file read at once, by each thread */
#define PROGRESS_NS 100000000ll

/* Part of a matrix, or a whole vector: read, pack or widen, check. */
struct piece {
	const struct ck_linear *w; /* a matrix, or */
	struct ck_tensor vector;   /* what is kept as F32 in natural order */
	enum weight_kind kind;
	uint32_t first, rows; /* of the matrix */
	void *data;
	uint64_t bytes; /* read from files */
};

struct loader {
	const struct checkpoint *c;
	struct dev *dev;
	struct weights *w;
	struct ck_linear embed;
	size_t at; /* of the memory, while it is laid out */
	struct piece *pieces;
	size_t n_pieces, room;
	uint64_t total_bytes;
	weights_progress_fn progress;
	void *userdata;
	_Atomic size_t next;
	_Atomic uint64_t done_bytes;
	_Atomic bool failed;
	pthread_mutex_t lock; /* guards the three below */
	size_t failed_piece;
	int r;
	struct err err;
};

static enum weight_kind kind_of(const struct ck_linear *w)
{
	struct weight_source src = { .rows = w->rows, .cols = w->cols };

	src.type = w->plain.t ? w->plain.t->type : w->packed.t->type;
	src.scale_type = w->plain.t ? DT_NONE : w->scales.t->type;
	src.group = w->group;
	return weight_kind_of(&src);
}

static int add_piece(struct loader *l, struct piece p)
{
	if (l->n_pieces == l->room) {
		const size_t room = l->room ? 2 * l->room : 1024;
		struct piece *more = reallocarray(l->pieces, room, sizeof(*more));

		if (!more)
			return -ENOMEM;
		l->pieces = more;
		l->room = room;
	}
	l->total_bytes += p.bytes;
	l->pieces[l->n_pieces++] = p;
	return 0;
}

static void *place(struct loader *l, size_t bytes)
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

/* Cuts a matrix at strips, which stand one after another in memory, into pieces of bounded size. */
static int lay_matrix(struct loader *l, const struct ck_linear *w, struct weight *ret,
		      struct err *err)
{
	const uint64_t row = row_bytes(w);
	uint32_t rows = (uint32_t)MAX(PIECE_BYTES / MAX(row, 1) / STRIP_ROWS * STRIP_ROWS,
				      STRIP_ROWS);
	int r;

	ret->kind = kind_of(w);
	if (ret->kind == WEIGHT_NONE)
		return err_set(err, -ENOTSUP,
			       "'%s': tensor '%s' of %u columns with groups of %u cannot be packed",
			       st_file_path(w->plain.t ? w->plain.file : w->packed.file),
			       w->plain.t ? w->plain.t->name : w->packed.t->name, w->cols,
			       w->group);
	ret->rows = w->rows;
	ret->cols = w->cols;
	ret->data = place(l, weight_bytes(l->dev, ret->kind, w->rows, w->cols));
	if (!l->w->memory)
		return 0;
	for (uint32_t first = 0; first < w->rows; first += rows) {
		const uint32_t n = MIN(rows, w->rows - first);

		r = add_piece(l, (struct piece){
					 .w = w,
					 .kind = ret->kind,
					 .first = first,
					 .rows = n,
					 .bytes = n * row,
					 .data = (char *)ret->data +
						 weight_bytes(l->dev, ret->kind, first, w->cols) });
		if (r < 0)
			return r;
	}
	return 0;
}

static int lay_vector(struct loader *l, struct ck_tensor at, uint32_t rows, uint32_t cols,
		      struct tensor *ret)
{
	if (!at.t)
		return 0;
	*ret = (struct tensor){ .type = DT_F32, .shape = { 1, rows, cols } };
	ret->data = place(l, tensor_elements(ret) * sizeof(float));
	return l->w->memory ? add_piece(l, (struct piece){ .vector = at,
							   .data = ret->data,
							   .bytes = at.t->bytes })
			    : 0;
}

static int lay_moe(struct loader *l, const struct ck_layer *from, struct layer_weights *to,
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
	    ((r = lay_matrix(l, &from->shared_gate, &to->moe.shared_gate, err)) < 0 ||
	     (r = lay_matrix(l, &from->shared_up, &to->moe.shared_up, err)) < 0 ||
	     (r = lay_matrix(l, &from->shared_down, &to->moe.shared_down, err)) < 0))
		return r;
	to->moe.experts = c->experts;
	for (uint32_t e = 0; e < c->experts; e++)
		if ((r = lay_matrix(l, &from->expert_gate[e], &gate[e], err)) < 0 ||
		    (r = lay_matrix(l, &from->expert_up[e], &up[e], err)) < 0 ||
		    (r = lay_matrix(l, &from->expert_down[e], &down[e], err)) < 0)
			return r;
	return 0;
}

static int lay_layer(struct loader *l, const struct ck_layer *from, struct layer_weights *to,
		     struct err *err)
{
	const struct config *c = &l->c->config;
	int r;

	to->dense = from->dense;
	if ((r = lay_vector(l, from->input_norm, 1, c->dim, &to->input_norm)) < 0 ||
	    (r = lay_vector(l, from->post_norm, 1, c->dim, &to->post_norm)) < 0 ||
	    (r = lay_vector(l, from->q_norm, 1, c->head_dim, &to->q_norm)) < 0 ||
	    (r = lay_vector(l, from->k_norm, 1, c->head_dim, &to->k_norm)) < 0 ||
	    (r = lay_vector(l, from->q.bias, 1, from->q.rows, &to->q_bias)) < 0 ||
	    (r = lay_vector(l, from->k.bias, 1, from->k.rows, &to->k_bias)) < 0 ||
	    (r = lay_vector(l, from->v.bias, 1, from->v.rows, &to->v_bias)) < 0 ||
	    (r = lay_vector(l, from->o.bias, 1, from->o.rows, &to->o_bias)) < 0 ||
	    (r = lay_matrix(l, &from->q, &to->q, err)) < 0 ||
	    (r = lay_matrix(l, &from->k, &to->k, err)) < 0 ||
	    (r = lay_matrix(l, &from->v, &to->v, err)) < 0 ||
	    (r = lay_matrix(l, &from->o, &to->o, err)) < 0)
		return r;
	if (!from->dense)
		return lay_moe(l, from, to, err);
	if ((r = lay_matrix(l, &from->gate, &to->gate, err)) < 0 ||
	    (r = lay_matrix(l, &from->up, &to->up, err)) < 0)
		return r;
	return lay_matrix(l, &from->down, &to->down, err);
}

/* Once without memory, to learn how much, and once with it. */
static int lay_all(struct loader *l, struct err *err)
{
	struct weights *w = l->w;
	int r;

	l->at = 0;
	l->embed = (struct ck_linear){ .rows = w->config.vocab,
				       .cols = w->config.dim,
				       .plain = l->c->embed };
	r = lay_matrix(l, &l->embed, &w->embed, err);
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
	return lay_matrix(l, &l->c->head, &w->head, err);
}

static int bad(struct err *err, struct ck_tensor at, const char *found, size_t i,
	       const char *wanted)
{
	return err_set(err, -EBADMSG, "'%s': tensor '%s' has %s at index %zu, wanted %s",
		       st_file_path(at.file), at.t->name, found, i, wanted);
}

static float widen(const void *data, enum dtype type, size_t i)
{
	uint16_t half;
	uint32_t bits;
	float f;

	if (type == DT_F32) {
		memcpy(&f, (const char *)data + 4 * i, 4);
		return f;
	}
	memcpy(&half, (const char *)data + 2 * i, 2);
	if (type == DT_BF16) {
		bits = (uint32_t)half << 16;
		memcpy(&f, &bits, 4);
		return f;
	}
	f = ldexpf((float)(half & 0x3ff) + (half & 0x7c00 ? 1024 : 0),
		   (half & 0x7c00 ? half >> 10 & 31 : 1) - 25);
	if ((half & 0x7c00) == 0x7c00)
		f = half & 0x3ff ? NAN : INFINITY;
	return half & 0x8000 ? -f : f;
}

static const char *name_value(float f, char buffer[40])
{
	if (isnan(f))
		return "NaN";
	if (isinf(f))
		return f < 0 ? "-infinity" : "infinity";
	if (f == 0)
		return "zero";
	snprintf(buffer, 40, "%g", f);
	return buffer;
}

static int load_vector(const struct piece *p, void *staging, struct err *err)
{
	const struct st_tensor *t = p->vector.t;
	const size_t n = t->bytes / dtype_bytes(t->type);
	float *to = p->data;
	char buffer[40];
	int r;

	r = st_file_read(p->vector.file, t, staging, err);
	if (r < 0)
		return r;
	for (size_t i = 0; i < n; i++) {
		to[i] = widen(staging, t->type, i);
		if (!isfinite(to[i]))
			return bad(err, p->vector, name_value(to[i], buffer), i, "a finite number");
	}
	return 0;
}

/* Rows first … first + rows of a tensor of @of rows. */
static int read_rows(struct ck_tensor at, uint32_t of, uint32_t first, uint32_t rows, void *to,
		     struct err *err)
{
	struct st_tensor part = *at.t;

	part.bytes = at.t->bytes / of * rows;
	part.offset += at.t->bytes / of * first;
	return st_file_read(at.file, &part, to, err);
}

static int check_shape(const struct ck_linear *w, struct err *err)
{
	const bool wide = w->shape.t->type == DT_I64;
	int64_t found[2] = { 0 };
	int32_t narrow[2];
	int r;

	r = st_file_read(w->shape.file, w->shape.t, wide ? (void *)found : (void *)narrow, err);
	if (r < 0)
		return r;
	for (int i = 0; !wide && i < 2; i++)
		found[i] = narrow[i];
	if (found[0] != w->rows || found[1] != w->cols)
		return err_set(err, -EBADMSG,
			       "'%s': tensor '%s' says [%lld, %lld], wanted [%u, %u]",
			       st_file_path(w->shape.file), w->shape.t->name, (long long)found[0],
			       (long long)found[1], w->rows, w->cols);
	return 0;
}

static int load_matrix(struct loader *l, const struct piece *p, char *staging, struct err *err)
{
	const struct ck_linear *w = p->w;
	const struct ck_tensor codes = w->plain.t ? w->plain : w->packed;
	const struct weight to = {
		.kind = p->kind, .rows = p->rows, .cols = w->cols, .data = p->data
	};
	struct weight_source src = { .rows = p->rows,
				     .cols = w->cols,
				     .type = codes.t->type,
				     .data = staging,
				     .group = w->group };
	char buffer[40];
	size_t i = 0;
	int r;

	r = read_rows(codes, w->rows, p->first, p->rows, staging, err);
	if (r < 0)
		return r;
	if (w->scales.t) {
		src.scales = staging + codes.t->bytes / w->rows * p->rows;
		src.scale_type = w->scales.t->type;
		r = read_rows(w->scales, w->rows, p->first, p->rows, (void *)src.scales, err);
		if (r < 0 || (p->first == 0 && (r = check_shape(w, err)) < 0))
			return r;
	}
	r = op_repack(l->dev, &to, &src, &i);
	if (r == -EDOM)
		return bad(err, w->scales, name_value(widen(src.scales, src.scale_type, i), buffer),
			   i + (size_t)p->first * (w->cols / w->group), "a positive scale");
	if (r < 0)
		return err_set(err, r, "'%s': tensor '%s' cannot be packed",
			       st_file_path(codes.file), codes.t->name);
	return 0;
}

static void fail(struct loader *l, size_t piece, int r, const struct err *err)
{
	pthread_mutex_lock(&l->lock);
	if (!l->failed || piece < l->failed_piece) {
		l->failed_piece = piece;
		l->r = r;
		l->err = *err;
	}
	l->failed = true;
	pthread_mutex_unlock(&l->lock);
}

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static uint64_t largest_piece(const struct loader *l)
{
	uint64_t most = 1;

	for (size_t i = 0; i < l->n_pieces; i++)
		most = MAX(most, l->pieces[i].bytes);
	return most;
}

/* Thread 0 is the caller's, and reports. */
static void load_pieces(void *userdata, uint32_t thread, uint32_t n_threads)
{
	struct loader *l = userdata;
	_cleanup_(freep) char *staging = malloc(largest_piece(l));
	struct err err = { 0 };
	int64_t reported = 0;
	size_t i;
	int r;

	(void)n_threads;
	if (!staging)
		return fail(l, 0, err_set(&err, -ENOMEM, "no memory to read into"), &err);
	while (!l->failed && (i = atomic_fetch_add(&l->next, 1)) < l->n_pieces) {
		const struct piece *p = &l->pieces[i];

		r = p->w ? load_matrix(l, p, staging, &err) : load_vector(p, staging, &err);
		if (r < 0)
			return fail(l, i, r, &err);
		l->done_bytes += p->bytes;
		if (thread == 0 && l->progress && now_ns() - reported >= PROGRESS_NS) {
			l->progress(l->done_bytes, l->total_bytes, l->userdata);
			reported = now_ns();
		}
	}
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

static int make_memory(struct loader *l, struct err *err)
{
	struct weights *w = l->w;
	int r;

	r = lay_all(l, err);
	if (r < 0)
		return r;
	w->bytes = l->at;
	w->reserved_bytes = l->at;
	w->memory = dev_reserve(l->dev, w->reserved_bytes);
	if (!w->memory)
		return err_set(err, -ENOMEM, "no addresses for %zu bytes of weights",
			       w->reserved_bytes);
	r = dev_back(l->dev, w->memory, w->reserved_bytes);
	if (r < 0)
		return err_set(err, r, "no memory for %zu bytes of weights", w->reserved_bytes);
	return lay_all(l, err);
}

int weights_load(const struct checkpoint *c, struct dev *dev, weights_progress_fn progress,
		 void *userdata, struct weights **ret, struct err *err)
{
	_cleanup_(weights_freep) struct weights *w = calloc(1, sizeof(*w));
	struct loader l = { .c = c,
			    .dev = dev,
			    .w = w,
			    .progress = progress,
			    .userdata = userdata,
			    .lock = PTHREAD_MUTEX_INITIALIZER };
	int r;

	if (!w)
		return -ENOMEM;
	w->config = c->config;
	w->dev = dev;
	r = make_layers(w);
	if (r == 0)
		r = check_files(c, err);
	if (r == 0)
		r = make_memory(&l, err);
	if (r == 0) {
		if (progress)
			progress(0, l.total_bytes, userdata);
		dev_run(dev, load_pieces, &l);
		r = l.failed ? err_set(err, l.r, "%s", l.err.text) : check_files(c, err);
	}
	free(l.pieces);
	if (r < 0)
		return r;

	w->decode_bytes = decode_bytes(w);
	r = dev_seal(dev, w->memory, w->reserved_bytes);
	if (r < 0)
		return err_wrap(err, r, "cannot make %zu bytes of weights read-only",
				w->reserved_bytes);
	if (progress)
		progress(l.total_bytes, l.total_bytes, userdata);
	*ret = steal(w);
	return 0;
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
	free(w->layers);
	free(w);
	return NULL;
}
