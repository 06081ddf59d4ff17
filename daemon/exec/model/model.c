/*
 * The forward pass of glm4_moe. The residual stream and everything between
 * two operations is F32; a row depends on its own sequence alone. All buffers
 * are one reservation, backed when the model is made.
 *
 * Where the device is not the host, steps of one token a row are recorded once
 * for each number of rows and replayed (with one rank: what NCCL queues is not), and the head's logits stand in the
 * device's memory until they are read.
 *
 * Of several ranks each has the same residual stream, to the bit: what attention
 * and MLPs add to it is a sum over the ranks (kernels/comm.h), of which rank 0's
 * part begins with what is there and the others' with nothing.
 */
#include "daemon/exec/model/model.h"

#include <errno.h>
#include <string.h>

#include "kernels/layer.h"

#define BUFFER_ALIGN 256
#define REPLAY_ROWS 128 /* the most that is recorded */
#define REPLAYS_MAX 64
#define LAYERS_TIMED 8 /* their matrices together are more than any cache holds */

/* One forward pass, as model_forward() was asked for it. */
struct pass {
	struct model *m;
	const uint32_t *ids, *out;
	const struct seq *seqs;
	uint32_t n_tokens, n_seqs, n_out;
};

/* A recorded pass: of so many rows, all or none of which are wanted. */
struct recorded {
	struct replay *replay;
	uint32_t n_rows, n_out;
	uint64_t used; /* when, in passes */
};

struct model {
	struct dev *dev;
	struct stream *stream;
	const struct weights *w;
	struct comm *comm; /* NULL: there is one rank */
	struct kv_cache kv;
	struct rope_table rope;
	uint32_t max_tokens, max_context;
	uint32_t n_out; /* rows in normed, of the last forward pass */

	void *memory;
	size_t bytes;
	/* [max_tokens][…]: residual stream, its norm, projections, attention's output */
	float *hidden, *norm, *q, *k, *v, *attention;
	float *normed; /* the wanted rows after the final norm */
	uint32_t *experts;
	float *expert_weights;

	bool is_host;
	bool speaks_aside; /* logits come to ret by way of the buffer below */
	float *logits;	   /* [spoken_rows()][vocab of this rank], if so */
	uint32_t n_logits; /* rows in it, the first of normed */

	struct recorded recorded[REPLAYS_MAX];
	uint64_t n_passes;
	/* what recorded passes are called with; [REPLAY_ROWS] each */
	struct pass step;
	uint32_t *step_ids, *step_out;
	struct seq *step_seqs;
	uint32_t *
		any_pages; /* [of max_context]: zeros, for a full context that is only reckoned with */

	void (*tap)(const struct model_tap_data *data, void *userdata);
	void *tap_userdata;
	void *tap_room[2]; /* what the host sees of the device: values, experts */
	size_t tap_bytes[2];
};

static struct tensor f32(const void *data, uint32_t a, uint32_t b, uint32_t c)
{
	return (struct tensor){ (void *)data, DT_F32, { a, b, c } };
}

static struct tensor rows(const void *data, uint32_t tokens, uint32_t width)
{
	return f32(data, 1, tokens, width);
}

/* Rows whose logits are on the device at once: of several ranks as many as a step of theirs samples. */
static uint32_t spoken_rows(const struct model *m)
{
	return m->comm ? MODEL_SPOKEN_ROWS / 2 : MODEL_SPOKEN_ROWS;
}

/* Takes @n elements of 4 bytes from the reservation; with @m->memory NULL it only counts. */
static void *carve(struct model *m, size_t *used, size_t n)
{
	void *at = m->memory ? (char *)m->memory + *used : NULL;

	*used += (n * 4 + BUFFER_ALIGN - 1) / BUFFER_ALIGN * BUFFER_ALIGN;
	return at;
}

static size_t carve_all(struct model *m)
{
	const struct config *c = &m->w->config;
	const struct share *s = &m->w->share;
	const size_t tokens = m->max_tokens;
	size_t used = 0;

	m->hidden = carve(m, &used, tokens * c->dim);
	m->norm = carve(m, &used, tokens * c->dim);
	m->q = carve(m, &used, tokens * s->heads * c->head_dim);
	m->k = carve(m, &used, tokens * s->kv_heads * c->head_dim);
	m->v = carve(m, &used, tokens * s->kv_heads * c->head_dim);
	m->attention = carve(m, &used, tokens * s->heads * c->head_dim);
	m->normed = m->norm; /* which nobody needs any more by then */
	m->experts = carve(m, &used, tokens * c->top_k);
	m->expert_weights = carve(m, &used, tokens * c->top_k);
	if (m->speaks_aside)
		m->logits = carve(m, &used, (size_t)MIN(tokens, spoken_rows(m)) * s->vocab);
	return used;
}

static struct op_limits limits_of(const struct model *m)
{
	const struct config *c = &m->w->config;
	const struct share *s = &m->w->share;

	return (struct op_limits){
		.tokens = m->max_tokens,
		.dim = c->dim,
		.heads = s->heads,
		.kv_heads = s->kv_heads,
		.head_dim = c->head_dim,
		.moe_ffn_dim = MAX(s->moe_ffn_dim, s->shared_ffn_dim),
		.ffn_dim = MAX(s->ffn_dim, MAX(s->moe_ffn_dim, s->shared_ffn_dim)),
		.experts = c->experts,
		.top_k = c->top_k,
		.vocab = s->vocab,
		.max_context = m->max_context,
	};
}

static bool cache_fits(const struct kv_cache *kv, const struct weights *w)
{
	return kv->base && kv->page_tokens > 0 && kv->layers == w->config.layers &&
	       kv->kv_heads == w->share.kv_heads && kv->head_dim == w->config.head_dim &&
	       (kv->type == DT_F32 || kv->type == DT_BF16);
}

/* Of a full context. */
static uint32_t pages_of(const struct model *m)
{
	return (m->max_context + m->kv.page_tokens - 1) / m->kv.page_tokens;
}

static int make_step(struct model *m)
{
	m->step_ids = calloc(REPLAY_ROWS, sizeof(*m->step_ids));
	m->step_out = calloc(REPLAY_ROWS, sizeof(*m->step_out));
	m->step_seqs = calloc(REPLAY_ROWS, sizeof(*m->step_seqs));
	m->any_pages = calloc(pages_of(m), sizeof(*m->any_pages));
	m->step = (struct pass){
		.m = m, .ids = m->step_ids, .out = m->step_out, .seqs = m->step_seqs
	};
	return m->step_ids && m->step_out && m->step_seqs && m->any_pages ? 0 : -ENOMEM;
}

int model_new(struct dev *dev, const struct weights *w, const struct kv_cache *kv,
	      uint32_t max_tokens, uint32_t max_context, struct model **ret, struct err *err)
{
	return model_new_rank(dev, w, NULL, kv, max_tokens, max_context, ret, err);
}

int model_new_rank(struct dev *dev, const struct weights *w, struct comm *comm,
		   const struct kv_cache *kv, uint32_t max_tokens, uint32_t max_context,
		   struct model **ret, struct err *err)
{
	_cleanup_(model_freep) struct model *m = NULL;
	struct op_limits limits;
	int r;

	if (max_tokens == 0 || max_context == 0)
		return err_set(err, -EINVAL,
			       "a batch of %u tokens and a context of %u make no model", max_tokens,
			       max_context);
	if (!cache_fits(kv, w))
		return err_set(err, -EINVAL, "the KV cache's layout is not the model's");
	if (w->share.n_ranks != (comm ? comm_ranks(comm) : 1) ||
	    w->share.rank != (comm ? comm_rank(comm) : 0))
		return err_set(err, -EINVAL, "weights of rank %u of %u are not this rank's",
			       w->share.rank, w->share.n_ranks);

	m = calloc(1, sizeof(*m));
	if (!m)
		return err_wrap(err, -ENOMEM, "cannot allocate the model");
	m->dev = dev;
	m->w = w;
	m->kv = *kv;
	m->max_tokens = max_tokens;
	m->max_context = max_context;
	m->comm = w->share.n_ranks > 1 ? comm : NULL;
	m->is_host = dev_is_host(dev);
	m->speaks_aside = !m->is_host || m->comm;
	if (!m->is_host && make_step(m) < 0)
		return err_wrap(err, -ENOMEM, "cannot allocate the model");

	r = rope_table_init(&m->rope, w->config.rope_theta, w->config.rotary, max_context);
	if (r < 0)
		return err_wrap(err, r, "cannot make the table of rotations for %u positions",
				max_context);

	limits = limits_of(m);
	r = st_open(dev, op_scratch(dev, &limits), &m->stream);
	if (r < 0)
		return err_wrap(err, r, "cannot allocate scratch memory for %u tokens", max_tokens);

	r = st_batch_room(m->stream, max_tokens, MIN(max_tokens, REPLAY_ROWS),
			  MIN(max_tokens, REPLAY_ROWS) * pages_of(m));
	if (r < 0)
		return err_wrap(err, r, "cannot allocate memory for batches of %u tokens",
				max_tokens);

	m->bytes = carve_all(m);
	m->memory = dev_reserve_named(dev, "activations", m->bytes, DEV_CHUNK_MAX);
	r = m->memory ? dev_back(dev, m->memory, m->bytes) : -ENOMEM;
	if (r < 0) {
		m->memory = NULL;
		return err_wrap(err, r, "cannot allocate %zu bytes of activations", m->bytes);
	}
	carve_all(m);

	*ret = steal(m);
	return 0;
}

struct model *model_free(struct model *m)
{
	if (!m)
		return NULL;
	for (size_t i = 0; i < REPLAYS_MAX; i++)
		replay_free(m->recorded[i].replay);
	st_close(m->stream);
	if (m->memory)
		dev_unback(m->dev, m->memory, m->bytes);
	rope_table_deinit(&m->rope);
	free(m->step_ids);
	free(m->step_out);
	free(m->step_seqs);
	free(m->any_pages);
	free(m->tap_room[0]);
	free(m->tap_room[1]);
	free(m);
	return NULL;
}

void model_set_tap(struct model *m, void (*tap)(const struct model_tap_data *data, void *userdata),
		   void *userdata)
{
	m->tap = tap;
	m->tap_userdata = userdata;
}

/* What is at @at for the host to read: there itself, or a copy in room @which. */
static const void *seen(struct model *m, int which, const void *at, size_t bytes)
{
	void *room;

	if (m->is_host)
		return at;
	if (bytes > m->tap_bytes[which]) {
		room = realloc(m->tap_room[which], bytes);
		if (!room)
			return NULL;
		m->tap_room[which] = room;
		m->tap_bytes[which] = bytes;
	}
	return st_read(m->stream, m->tap_room[which], at, bytes) < 0 ? NULL : m->tap_room[which];
}

static void show(struct model *m, enum model_tap tap, uint32_t layer, uint32_t n_tokens,
		 uint32_t width, const float *values)
{
	const size_t bytes = (size_t)n_tokens * width * 4;
	struct model_tap_data data = {
		.tap = tap,
		.layer = layer,
		.n_tokens = n_tokens,
		.width = width,
	};

	if (!m->tap)
		return;
	data.values = seen(m, 0, values, bytes);
	if (tap == TAP_ROUTER)
		data.experts = seen(m, 1, m->experts, bytes);
	if (data.values && (tap != TAP_ROUTER || data.experts))
		m->tap(&data, m->tap_userdata);
}

static float kv_value(const struct kv_cache *kv, const void *base, size_t i)
{
	uint32_t bits;
	float value;

	if (kv->type == DT_F32)
		return ((const float *)base)[i];
	bits = (uint32_t)((const uint16_t *)base)[i] << 16;
	memcpy(&value, &bits, sizeof(value));
	return value;
}

/* Reads the batch's rotated keys back from the cache, where attention will find them. */
static void show_keys(struct model *m, uint32_t layer, uint32_t n_tokens, const struct seq *seqs,
		      uint32_t n_seqs)
{
	const struct kv_cache *kv = &m->kv;
	const uint32_t width = kv->kv_heads * kv->head_dim;
	const size_t keys = kv->kv_heads * kv_head_bytes(kv);
	const size_t before = 2 * (size_t)kv_page_heads(kv) * kv_head_bytes(kv) * layer;
	float *all;

	if (!m->tap)
		return;
	all = calloc((size_t)n_tokens * width, sizeof(*all));
	for (const struct seq *s = seqs; all && s < seqs + n_seqs; s++) {
		for (uint32_t t = 0; t < s->n_tokens; t++) {
			const uint32_t at = s->at + t;
			const void *page = seen(
				m, 1,
				(const char *)kv->base +
					s->pages[at / kv->page_tokens] * kv_page_bytes(kv) + before,
				keys);
			float *to = all + (size_t)(s->first + t) * width;

			for (uint32_t i = 0; page && i < width; i++)
				to[i] = kv_value(kv, page,
						 ((size_t)(i / kv->head_dim) * kv->page_tokens +
						  at % kv->page_tokens) *
								 kv->head_dim +
							 i % kv->head_dim);
		}
	}
	if (all) {
		const struct model_tap_data data = {
			.tap = TAP_K,
			.layer = layer,
			.n_tokens = n_tokens,
			.width = width,
			.values = all,
		};

		m->tap(&data, m->tap_userdata);
	}
	free(all);
}

static bool is_first_rank(const struct model *m)
{
	return m->w->share.rank == 0;
}

/* What all ranks have of the residual stream, together. */
static int add_ranks(struct model *m, uint32_t n_tokens)
{
	return m->comm ? comm_sum(m->comm, m->stream, m->hidden,
				  (size_t)n_tokens * m->w->config.dim)
		       : 0;
}

/* hidden += Wo attention(rope(norm(hidden))) */
static int attend(struct model *m, uint32_t layer, uint32_t n_tokens, const struct seq *seqs,
		  uint32_t n_seqs)
{
	const struct config *c = &m->w->config;
	const struct layer_weights *w = &m->w->layers[layer];
	const uint32_t heads = m->w->share.heads, kv_heads = m->w->share.kv_heads;
	const uint32_t q_width = heads * c->head_dim, kv_width = kv_heads * c->head_dim;
	const struct tensor hidden = rows(m->hidden, n_tokens, c->dim);
	const struct tensor norm = rows(m->norm, n_tokens, c->dim);
	const struct tensor q = f32(m->q, n_tokens, heads, c->head_dim);
	const struct tensor attention = f32(m->attention, n_tokens, heads, c->head_dim);
	const struct tensor concat = rows(m->attention, n_tokens, q_width);
	const struct layer_in in = {
		.norm = w->input_norm,
		.eps = c->norm_eps,
		.jobs = {
			{ &w->q, w->q_bias, rows(m->q, n_tokens, q_width), false },
			{ &w->k, w->k_bias, rows(m->k, n_tokens, kv_width), false },
			{ &w->v, w->v_bias, rows(m->v, n_tokens, kv_width), false },
		},
		.q_norm = w->q_norm,
		.k_norm = w->k_norm,
		.rope = &m->rope,
		.kv = &m->kv,
		.layer = layer,
		.seqs = seqs,
		.n_seqs = n_seqs,
	};
	const struct linear_job out = { &w->o, w->o_bias, hidden, is_first_rank(m) };
	int r;

	r = op_layer_in(m->stream, &in, &norm, &hidden);
	if (r < 0)
		return r;
	show(m, TAP_V, layer, n_tokens, kv_width, m->v);
	show(m, TAP_Q, layer, n_tokens, q_width, m->q);
	show_keys(m, layer, n_tokens, seqs, n_seqs);

	r = op_attention(m->stream, &attention, &q, &m->kv, layer, seqs, n_seqs);
	if (r < 0)
		return r;
	show(m, TAP_ATTENTION, layer, n_tokens, q_width, m->attention);

	r = op_linears(m->stream, &out, 1, &concat);
	return r < 0 ? r : add_ranks(m, n_tokens);
}

/* hidden += MLP(norm), dense or of the chosen experts */
static int add_mlp(struct model *m, uint32_t layer, uint32_t n_tokens)
{
	const struct config *c = &m->w->config;
	const struct layer_weights *w = &m->w->layers[layer];
	const struct tensor hidden = rows(m->hidden, n_tokens, c->dim);
	const struct tensor norm = rows(m->norm, n_tokens, c->dim);
	int r;

	if (!is_first_rank(m)) {
		r = op_clear(m->stream, &hidden);
		if (r < 0)
			return r;
	}
	r = w->dense ? op_mlp(m->stream, &hidden, &norm, &w->gate, &w->up, &w->down)
		     : op_moe(m->stream, &hidden, &norm, &w->moe, c->top_k, m->experts,
			      m->expert_weights);
	return r < 0 ? r : add_ranks(m, n_tokens);
}

/* hidden += MLP(norm(hidden)) */
static int think(struct model *m, uint32_t layer, uint32_t n_tokens)
{
	const struct config *c = &m->w->config;
	const struct layer_weights *w = &m->w->layers[layer];
	const struct tensor hidden = rows(m->hidden, n_tokens, c->dim);
	const struct tensor norm = rows(m->norm, n_tokens, c->dim);
	const struct router_params params = {
		.top_k = c->top_k,
		.groups = c->groups,
		.top_groups = c->top_groups,
		.normalise = c->normalise_top_k,
		.scale = c->routed_scale,
	};
	int r;

	if (w->dense) {
		r = op_rmsnorm(m->stream, &norm, &hidden, &w->post_norm, c->norm_eps);
		return r < 0 ? r : add_mlp(m, layer, n_tokens);
	}
	r = op_norm_router(m->stream, &norm, m->experts, m->expert_weights, &hidden, &w->post_norm,
			   c->norm_eps, &w->router, &w->router_bias, &params);
	if (r < 0)
		return r;
	show(m, TAP_ROUTER, layer, n_tokens, c->top_k, m->expert_weights);

	return add_mlp(m, layer, n_tokens);
}

/* Sequences lie behind one another and have pages, in the cache, for all their positions. */
static bool seqs_fit(const struct model *m, uint32_t n_tokens, const struct seq *seqs,
		     uint32_t n_seqs)
{
	uint32_t next = 0;

	for (const struct seq *s = seqs; s < seqs + n_seqs; s++) {
		const uint64_t end = (uint64_t)s->at + s->n_tokens;

		if (s->first != next || s->n_tokens > n_tokens - next || end > m->max_context ||
		    end > (uint64_t)s->n_pages * m->kv.page_tokens)
			return false;
		for (uint32_t i = 0; i < s->n_pages; i++)
			if (s->pages[i] >= m->kv.n_pages)
				return false;
		next += s->n_tokens;
	}
	return next == n_tokens;
}

static bool batch_fits(const struct model *m, const uint32_t *ids, uint32_t n_tokens,
		       const uint32_t *out, uint32_t n_out)
{
	if (n_tokens > m->max_tokens || n_out > n_tokens)
		return false;
	for (uint32_t i = 0; i < n_tokens; i++)
		if (ids[i] >= m->w->config.vocab)
			return false;
	for (uint32_t i = 0; i < n_out; i++)
		if (out[i] >= n_tokens || (i > 0 && out[i] <= out[i - 1]))
			return false;
	return true;
}

/* Logits of rows of normed, over this rank's part of the vocabulary. */
static int speak(struct model *m, uint32_t first, uint32_t n, float *logits)
{
	const struct config *c = &m->w->config;
	const struct tensor x = rows(m->normed + (size_t)first * c->dim, n, c->dim);
	const struct linear_job head = {
		&m->w->head, { 0 }, rows(logits, n, m->w->share.vocab), false
	};

	return op_linears(m->stream, &head, 1, &x);
}

/* All of a pass that is queued on the stream. */
static int compute(struct stream *st, void *userdata)
{
	const struct pass *p = userdata;
	struct model *m = p->m;
	const struct config *c = &m->w->config;
	const struct tensor hidden = rows(m->hidden, p->n_tokens, c->dim);
	const struct tensor normed = rows(m->normed, p->n_out, c->dim);
	int r;

	r = op_embed_part(st, &hidden, &m->w->embed, m->w->share.first_vocab, c->vocab, p->ids);
	if (r == 0)
		r = add_ranks(m, p->n_tokens);
	if (r < 0)
		return r;
	show(m, TAP_HIDDEN, 0, p->n_tokens, c->dim, m->hidden);

	for (uint32_t layer = 0; layer < c->layers; layer++) {
		r = attend(m, layer, p->n_tokens, p->seqs, p->n_seqs);
		if (r < 0)
			return r;
		r = think(m, layer, p->n_tokens);
		if (r < 0)
			return r;
		show(m, TAP_HIDDEN, layer + 1, p->n_tokens, c->dim, m->hidden);
	}
	if (p->n_out == 0)
		return 0;

	if (p->n_out < p->n_tokens) {
		r = op_gather(st, &normed, &hidden, p->out);
		if (r == 0)
			r = op_rmsnorm(st, &normed, &normed, &m->w->norm, c->norm_eps);
	} else {
		r = op_rmsnorm(st, &normed, &hidden, &m->w->norm, c->norm_eps);
	}
	if (r < 0)
		return r;
	show(m, TAP_FINAL_NORM, c->layers, p->n_out, c->dim, m->normed);
	return m->is_host || p->n_out > spoken_rows(m) ? 0 : speak(m, 0, p->n_out, m->logits);
}

/* Whether a pass is one of those that come again and again. */
static bool is_decode(const struct model *m, const struct pass *p)
{
	return !m->is_host && !m->comm && !m->tap && p->n_tokens == p->n_seqs &&
	       p->n_tokens <= REPLAY_ROWS && (p->n_out == p->n_tokens || p->n_out == 0);
}

/* The recording for such a pass, or room for it: the one not used for longest goes. */
static struct recorded *find_recorded(struct model *m, uint32_t n_rows, uint32_t n_out)
{
	struct recorded *oldest = m->recorded;

	for (struct recorded *r = m->recorded; r < m->recorded + REPLAYS_MAX; r++) {
		if (r->replay && r->n_rows == n_rows && r->n_out == n_out)
			return r;
		if (r->used < oldest->used)
			oldest = r;
	}
	oldest->replay = replay_free(oldest->replay);
	*oldest = (struct recorded){ .n_rows = n_rows, .n_out = n_out };
	return oldest;
}

/* Records m->step as if every row had all of the context. */
static int record(struct model *m, struct recorded *r)
{
	const size_t bytes = m->step.n_seqs * sizeof(struct seq);
	struct seq *own = malloc(bytes);
	int error;

	if (!own)
		return -ENOMEM;
	memcpy(own, m->step_seqs, bytes);
	for (uint32_t i = 0; i < m->step.n_seqs; i++) {
		m->step_seqs[i].at = m->max_context - 1;
		m->step_seqs[i].n_pages = pages_of(m);
		m->step_seqs[i].pages = m->any_pages;
	}
	error = st_record(m->stream, compute, &m->step, &r->replay);
	memcpy(m->step_seqs, own, bytes);
	free(own);
	return error;
}

static int decode(struct model *m, const struct pass *p)
{
	struct recorded *recorded = find_recorded(m, p->n_tokens, p->n_out);
	int r;

	memcpy(m->step_ids, p->ids, p->n_tokens * sizeof(*p->ids));
	memcpy(m->step_seqs, p->seqs, p->n_seqs * sizeof(*p->seqs));
	m->step.n_tokens = p->n_tokens;
	m->step.n_seqs = p->n_seqs;
	m->step.n_out = p->n_out;
	r = st_batch(m->stream, m->step_ids, p->n_tokens, m->step_seqs, p->n_seqs, NULL, 0);
	if (r == 0 && !recorded->replay)
		r = record(m, recorded);
	if (r < 0)
		return r;
	recorded->used = ++m->n_passes;
	return st_replay(m->stream, recorded->replay);
}

/* Whether a layer's jobs are of the shapes of another one's. */
static bool are_alike(const struct linear_job *a, const struct linear_job *b, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (a[i].w->kind != b[i].w->kind || a[i].w->rows != b[i].w->rows ||
		    !a[i].bias.data != !b[i].bias.data)
			return false;
	return true;
}

int model_choose(struct model *m, const char *path, char *ret_text, size_t text_bytes)
{
	const struct config *c = &m->w->config;
	const struct share *s = &m->w->share;
	const uint32_t tokens = m->max_tokens, spoken = MIN(tokens, spoken_rows(m));
	const uint32_t q_width = s->heads * c->head_dim, kv_width = s->kv_heads * c->head_dim;
	struct linear_job ins[LAYERS_TIMED][3], outs[LAYERS_TIMED];
	const struct linear_job head = {
		&m->w->head, { 0 }, rows(m->logits, spoken, s->vocab), false
	};
	struct linear_set sets[] = {
		{ ins[0], 3, 0, rows(m->norm, tokens, c->dim) },
		{ outs, 1, 0, rows(m->attention, tokens, q_width) },
		{ &head, 1, 1, rows(m->normed, spoken, c->dim) },
	};

	if (m->is_host)
		return op_linears_choose(m->stream, NULL, 0, path, ret_text, text_bytes);
	for (uint32_t l = 0; l < c->layers && sets[0].n_variants < LAYERS_TIMED; l++) {
		const struct layer_weights *w = &m->w->layers[l];
		struct linear_job *in = ins[sets[0].n_variants], *out = &outs[sets[0].n_variants];

		in[0] = (struct linear_job){ &w->q, w->q_bias, rows(m->q, tokens, q_width), false };
		in[1] = (struct linear_job){ &w->k, w->k_bias, rows(m->k, tokens, kv_width),
					     false };
		in[2] = (struct linear_job){ &w->v, w->v_bias, rows(m->v, tokens, kv_width),
					     false };
		*out = (struct linear_job){ &w->o, w->o_bias, rows(m->hidden, tokens, c->dim),
					    is_first_rank(m) };
		if (are_alike(in, ins[0], 3) && are_alike(out, outs, 1))
			sets[0].n_variants = ++sets[1].n_variants;
	}
	return op_linears_choose(m->stream, sets, ARRAY_SIZE(sets), path, ret_text, text_bytes);
}

int model_prepare(struct model *m, uint32_t n_rows)
{
	int r = 0;

	if (m->is_host || m->comm)
		return 0;
	n_rows = MIN(n_rows, MIN((uint32_t)REPLAYS_MAX, (uint32_t)REPLAY_ROWS));
	for (uint32_t n = 1; r == 0 && n <= n_rows; n++) {
		struct recorded *recorded = find_recorded(m, n, n);

		/* of no tokens that matter: nothing of it runs */
		m->step_ids[n - 1] = 0;
		m->step_seqs[n - 1] = (struct seq){ n - 1, 1, 0, 1, m->any_pages };
		m->step.n_tokens = m->step.n_seqs = m->step.n_out = n;
		r = st_batch(m->stream, m->step_ids, n, m->step_seqs, n, NULL, 0);
		if (r == 0)
			r = record(m, recorded);
		recorded->used = ++m->n_passes;
	}
	return r;
}

int model_forward(struct model *m, const uint32_t *ids, uint32_t n_tokens, const struct seq *seqs,
		  uint32_t n_seqs, const uint32_t *out, uint32_t n_out, float *logits)
{
	struct pass pass = {
		.m = m,
		.ids = ids,
		.out = out,
		.seqs = seqs,
		.n_tokens = n_tokens,
		.n_seqs = n_seqs,
		.n_out = n_out,
	};
	int r;

	if (!batch_fits(m, ids, n_tokens, out, n_out) || !seqs_fit(m, n_tokens, seqs, n_seqs))
		return -EINVAL;
	m->n_out = m->n_logits = 0;
	if (n_tokens == 0)
		return 0;

	if (is_decode(m, &pass)) {
		r = decode(m, &pass);
	} else {
		r = st_batch(m->stream, ids, n_tokens, seqs, n_seqs, out,
			     n_out < n_tokens ? n_out : 0);
		if (r == 0)
			r = compute(m->stream, &pass);
	}
	if (r < 0) {
		if (m->comm)
			comm_fail(m->comm); /* the others would wait for it */
		return r;
	}
	m->n_out = n_out;
	m->n_logits = m->is_host || n_out > spoken_rows(m) ? 0 : n_out;
	return logits ? model_logits(m, 0, n_out, logits) : 0;
}

/* @n rows of the buffer to their place in the host's, where a row is of the whole vocabulary. */
static int hand_over(struct model *m, uint32_t first, uint32_t n, float *logits)
{
	const struct share *s = &m->w->share;
	const size_t own = s->vocab * sizeof(*logits), all = m->w->config.vocab * sizeof(*logits);
	const float *from = m->logits + (size_t)first * s->vocab;
	int r;

	if (!m->comm)
		return st_read(m->stream, logits, from, n * all);
	r = st_copy2d(m->stream, logits + s->first_vocab, all, from, own, own, n);
	return r < 0 ? r : st_wait(m->stream);
}

/* In as many goes as the room for logits asks for. */
static int read_logits(struct model *m, uint32_t first, uint32_t n, float *logits)
{
	const size_t vocab = m->w->config.vocab;
	uint32_t some;
	int r;

	if (first + n <= m->n_logits)
		return hand_over(m, first, n, logits);
	m->n_logits = 0;
	for (uint32_t done = 0; done < n; done += some) {
		some = MIN(n - done, MIN(m->max_tokens, spoken_rows(m)));
		r = speak(m, first + done, some, m->logits);
		if (r == 0)
			r = hand_over(m, 0, some, logits + done * vocab);
		if (r < 0)
			return r;
	}
	return 0;
}

int model_logits(struct model *m, uint32_t first, uint32_t n, float *logits)
{
	if (first > m->n_out || n > m->n_out - first)
		return -EINVAL;
	if (n == 0)
		return 0;
	return m->speaks_aside ? read_logits(m, first, n, logits) : speak(m, first, n, logits);
}

bool model_spoken(const struct model *m, struct tensor *ret)
{
	if (m->comm || m->n_logits == 0)
		return false;
	*ret = rows(m->logits, m->n_logits, m->w->config.vocab);
	return true;
}

struct stream *model_stream(struct model *m)
{
	return m->stream;
}
