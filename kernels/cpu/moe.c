/*
 * op_moe() and op_mlp(). Tokens are sorted by expert; gate and up are computed
 * strip pair by strip pair over all experts, each pair leaving one finished
 * group of hidden columns in the form that the down matrix wants; then down. A
 * thread owns rows of the output and adds the experts in order: what each of
 * them says is kept where the tokens are few, so that a matrix can be read in
 * long runs, and added at once where they are many.
 */
#include <errno.h>
#include <string.h>

#include "kernels/cpu/acts.h"
#include "kernels/cpu/exact.h"
#include "kernels/cpu/moe-parts.h"
#include "kernels/cpu/nodes.h"
#include "kernels/cpu/pack.h"

#define FEW_TOKENS 16
#define OUT_ROWS (2 * MUL_TOKENS) /* a product may write MUL_TOKENS from wherever it begins */

struct moe {
	const struct linear_kernels *kernels;
	struct moe_part *parts;
	struct hidden {
		const uint8_t **x[ACT_N]; /* [n]: rows of the input in each form */
		uint8_t *rows;		  /* [n][row_bytes] in the form of down */
		const uint8_t **at;	  /* [n] */
		size_t row_bytes;
		float *down;	       /* few tokens: [pairs_of(dim)][n][MUL_ROWS] */
		struct work_left left; /* pairs of strips of the matrices at hand */
	} * hidden;		       /* [n_parts] */
	const struct dev *dev;
	uint32_t n_parts, tokens, dim;
	struct acts acts;
	float *y;
	float *sums; /* few tokens: [pairs_of(dim)][tokens][MUL_ROWS]; many: [n_threads]… */
	struct work_left pairs; /* many tokens: pairs of strips of y */
};

static uint32_t pairs_of(uint32_t rows)
{
	return (strips_of(rows) + MUL_STRIPS - 1) / MUL_STRIPS;
}

/*
 * out [n_pairs][n][MUL_ROWS] = rows MUL_ROWS * pair … of @w times n activation rows. An odd
 * last strip leaves zeros behind it.
 */
static void multiply_pairs(const struct moe *m, mul_fn mul, float *out, const struct weight *w,
			   uint32_t pair, uint32_t n_pairs, const uint8_t *const *x, uint32_t n)
{
	const size_t bytes = strip_bytes(w->kind, w->cols);
	const uint32_t in_call = n == 1 ? n_pairs * MUL_STRIPS : MUL_STRIPS;
	const uint32_t first = pair * MUL_STRIPS, left = strips_of(w->rows) - first;
	const uint32_t n_strips = left < n_pairs * MUL_STRIPS ? left : n_pairs * MUL_STRIPS;

	for (uint32_t s = 0; s < n_strips; s += in_call)
		multiply_strips(m->dev, w->kind, mul, out + (size_t)s * n * STRIP_ROWS,
				(const uint8_t *)w->data + (first + s) * bytes,
				n_strips - s < in_call ? n_strips - s : in_call, w->cols, x, n);
	if (n_strips % MUL_STRIPS == 0)
		return;
	out += (size_t)(n_pairs - 1) * n * MUL_ROWS;
	for (uint32_t i = 0; i < n; i++)
		memset(out + i * MUL_ROWS + STRIP_ROWS, 0, STRIP_ROWS * sizeof(*out));
}

/* Pairs that go through a matrix before the next one: few tokens read runs. */
static uint32_t pairs_in_run(const struct moe_part *p, uint32_t n_pairs)
{
	const uint32_t most = p->n < MUL_TOKENS ? MUL_TOKENS / p->n : 1;

	return n_pairs < most ? n_pairs : most;
}

static void run_up_pairs(const struct moe *m, uint32_t part, uint32_t pair, uint32_t n_pairs)
{
	const struct moe_part *p = &m->parts[part];
	const struct hidden *h = &m->hidden[part];
	const struct product *by_gate = product_of(m->kernels, p->gate->kind, p->n);
	const struct product *by_up = product_of(m->kernels, p->up->kind, p->n);
	const act_fn take = m->kernels->act[product_of(m->kernels, p->down->kind, p->n)->act];
	const uint32_t most = tokens_at_once(m->kernels, m->acts.row_bytes[by_gate->act]);
	const uint32_t in_run = pairs_in_run(p, n_pairs), end = pair + n_pairs;
	_Alignas(64) float gate[OUT_ROWS * MUL_ROWS], up[OUT_ROWS * MUL_ROWS];

	for (uint32_t run; pair < end; pair += run) {
		run = end - pair < in_run ? end - pair : in_run;
		for (uint32_t a = 0; a < p->n; a += most) {
			const uint32_t n = p->n - a < most ? p->n - a : most;

			multiply_pairs(m, by_gate->mul, gate, p->gate, pair, run,
				       h->x[by_gate->act] + a, n);
			multiply_pairs(m, by_up->mul, up, p->up, pair, run, h->x[by_up->act] + a,
				       n);
			for (uint32_t i = 0; i < n * run; i++) {
				float *row = gate + i * MUL_ROWS;

				m->kernels->gate(row, row, up + i * MUL_ROWS);
				take(h->rows + (a + i % n) * h->row_bytes, pair + i / n,
				     groups_of(p->ffn_dim), row, 1);
			}
		}
	}
}

/* Takes pairs of the matrices of part after part, and gives them to @run. */
static void run_all(const struct moe *m, uint32_t thread,
		    void (*run)(const struct moe *m, uint32_t part, uint32_t pair,
				uint32_t n_pairs))
{
	const uint32_t node = node_of_thread(m->dev, thread);
	uint32_t pair, n;

	for (uint32_t part = 0; part < m->n_parts; part++)
		while ((n = work_left_take(&m->hidden[part].left, node, &pair)))
			run(m, part, pair, n);
}

static void run_up(void *userdata, uint32_t thread, uint32_t n_threads)
{
	(void)n_threads;
	run_all(userdata, thread, run_up_pairs);
}

static void keep_down_pairs(const struct moe *m, uint32_t part, uint32_t pair, uint32_t n_pairs)
{
	const struct moe_part *p = &m->parts[part];
	const struct hidden *h = &m->hidden[part];
	const mul_fn mul = product_of(m->kernels, p->down->kind, p->n)->mul;
	const uint32_t in_run = pairs_in_run(p, n_pairs), end = pair + n_pairs;
	const size_t pair_rows = (size_t)p->n * MUL_ROWS;
	_Alignas(64) float out[OUT_ROWS * MUL_ROWS];

	for (uint32_t run; pair < end; pair += run) {
		run = end - pair < in_run ? end - pair : in_run;
		multiply_pairs(m, mul, out, p->down, pair, run, h->at, p->n);
		memcpy(h->down + pair * pair_rows, out, run * pair_rows * sizeof(*out));
	}
}

static void run_down_of_few(void *userdata, uint32_t thread, uint32_t n_threads)
{
	(void)n_threads;
	run_all(userdata, thread, keep_down_pairs);
}

static void add_rows(float *restrict sum, const float *restrict rows, float weight)
{
	for (uint32_t r = 0; r < MUL_ROWS; r++)
		sum[r] += weight * rows[r];
}

/* sums [tokens][MUL_ROWS] += what a part says of these rows for its tokens a … a + n */
static void add_part(const struct moe_part *p, uint32_t a, uint32_t n, const float *out,
		     float *sums)
{
	for (uint32_t i = 0; i < n; i++)
		add_rows(sums + (size_t)p->tokens[a + i] * MUL_ROWS, out + i * MUL_ROWS,
			 p->weights ? p->weights[a + i] : 1);
}

/* y += the sums of one pair of strips */
static void add_sums(const struct moe *m, uint32_t pair, const float *sums)
{
	const uint32_t row = pair * MUL_ROWS;
	const uint32_t n = m->dim - row < MUL_ROWS ? m->dim - row : MUL_ROWS;

	for (uint32_t t = 0; t < m->tokens; t++, sums += MUL_ROWS) {
		float *y = m->y + (size_t)t * m->dim + row;

		if (n == MUL_ROWS)
			add_rows(y, sums, 1);
		else
			for (uint32_t r = 0; r < n; r++)
				y[r] += sums[r];
	}
}

/* Part after part, so that what each of them said is read as one run. */
static void run_sums_of_few(void *userdata, uint32_t thread, uint32_t n_threads)
{
	const struct moe *m = userdata;
	const size_t n_sums = (size_t)m->tokens * MUL_ROWS;
	uint32_t from, to;

	share_of(pairs_of(m->dim), thread, n_threads, &from, &to);
	memset(m->sums + from * n_sums, 0, (to - from) * n_sums * sizeof(*m->sums));
	for (uint32_t part = 0; part < m->n_parts; part++) {
		const struct moe_part *p = &m->parts[part];
		const size_t pair_rows = (size_t)p->n * MUL_ROWS;

		for (uint32_t pair = from; pair < to; pair++)
			add_part(p, 0, p->n, m->hidden[part].down + pair * pair_rows,
				 m->sums + pair * n_sums);
	}
	for (uint32_t pair = from; pair < to; pair++)
		add_sums(m, pair, m->sums + pair * n_sums);
}

static void add_down(const struct moe *m, uint32_t part, uint32_t pair, float *sums)
{
	const struct moe_part *p = &m->parts[part];
	const mul_fn mul = product_of(m->kernels, p->down->kind, p->n)->mul;
	_Alignas(64) float out[MUL_TOKENS * MUL_ROWS];

	for (uint32_t a = 0; a < p->n; a += MUL_TOKENS) {
		const uint32_t n = p->n - a < MUL_TOKENS ? p->n - a : MUL_TOKENS;

		multiply_pairs(m, mul, out, p->down, pair, 1, m->hidden[part].at + a, n);
		add_part(p, a, n, out, sums);
	}
}

static void run_down_of_many(void *userdata, uint32_t thread, uint32_t n_threads)
{
	struct moe *m = userdata;
	const size_t n_sums = (size_t)m->tokens * MUL_ROWS;
	float *sums = m->sums + thread * n_sums;
	const uint32_t node = node_of_thread(m->dev, thread);
	uint32_t pair;

	(void)n_threads;
	while (work_left_take(&m->pairs, node, &pair)) {
		memset(sums, 0, n_sums * sizeof(*sums));
		for (uint32_t part = 0; part < m->n_parts; part++)
			add_down(m, part, pair, sums);
		add_sums(m, pair, sums);
	}
}

static int place_hidden(struct stream *st, size_t *at, const struct moe *m, uint32_t part)
{
	const struct moe_part *p = &m->parts[part];
	struct hidden *h = &m->hidden[part];
	const uint32_t forms = 1u << product_of(m->kernels, p->gate->kind, p->n)->act |
			       1u << product_of(m->kernels, p->up->kind, p->n)->act;

	h->row_bytes = act_bytes(product_of(m->kernels, p->down->kind, p->n)->act, p->ffn_dim);
	h->rows = scratch_take(st, at, p->n * h->row_bytes);
	h->at = scratch_take(st, at, p->n * sizeof(*h->at));
	if (!h->rows || !h->at)
		return -EINVAL;
	if (m->tokens <= FEW_TOKENS) {
		h->down = scratch_take(
			st, at, (size_t)pairs_of(m->dim) * p->n * MUL_ROWS * sizeof(*h->down));
		if (!h->down)
			return -EINVAL;
	}
	for (uint32_t a = 0; a < p->n; a++)
		h->at[a] = h->rows + a * h->row_bytes;
	for (int form = 0; form < ACT_N; form++) {
		h->x[form] = NULL;
		if (!(forms & 1u << form))
			continue;
		h->x[form] = scratch_take(st, at, p->n * sizeof(*h->x[form]));
		if (!h->x[form])
			return -EINVAL;
		for (uint32_t a = 0; a < p->n; a++)
			h->x[form][a] = m->acts.at[form][p->tokens[a]];
	}
	return 0;
}

/* Before the threads go through the gate and up matrices, or the down matrices, of all parts. */
static void deal_pairs(struct moe *m, bool down)
{
	for (uint32_t i = m->n_parts, later = 0; i--;) {
		const uint32_t n = pairs_of(down ? m->dim : m->parts[i].ffn_dim);

		work_left_init(&m->hidden[i].left, m->dev, n, later, MUL_TOKENS);
		later += n;
	}
}

static int run_parts(struct stream *st, size_t at, float *y, const float *x, uint32_t tokens,
		     uint32_t dim, struct moe_part *parts, uint32_t n_parts)
{
	struct moe m = {
		.kernels = st->dev->linear,
		.dev = st->dev,
		.parts = parts,
		.n_parts = n_parts,
		.tokens = tokens,
		.dim = dim,
		.y = y,
	};
	uint32_t forms = 0;
	int r;

	if (st->dev->isa == ISA_REF)
		return exact_moe(st, at, y, x, tokens, dim, parts, n_parts);

	for (uint32_t i = 0; i < n_parts; i++)
		forms |= acts_form(st->dev, parts[i].gate->kind, parts[i].n) |
			 acts_form(st->dev, parts[i].up->kind, parts[i].n);
	r = acts_take(st, &m.acts, &at, x, tokens, dim, forms);
	if (r < 0)
		return r;
	m.hidden = scratch_take(st, &at, n_parts * sizeof(*m.hidden));
	m.sums = scratch_take(st, &at,
			      (tokens <= FEW_TOKENS ? pairs_of(dim) : st->dev->n_threads) *
				      (size_t)tokens * MUL_ROWS * sizeof(*m.sums));
	if (!m.hidden || !m.sums)
		return -EINVAL;
	for (uint32_t i = 0; i < n_parts; i++) {
		r = place_hidden(st, &at, &m, i);
		if (r < 0)
			return r;
	}
	deal_pairs(&m, false);
	pool_run(st->dev, run_up, &m);
	if (tokens <= FEW_TOKENS) {
		deal_pairs(&m, true);
		pool_run(st->dev, run_down_of_few, &m);
		pool_run(st->dev, run_sums_of_few, &m);
	} else {
		work_left_init(&m.pairs, st->dev, pairs_of(dim), 0, 1);
		pool_run(st->dev, run_down_of_many, &m);
	}
	return 0;
}

/* Where the tokens of each expert are, and who has any. */
struct sorted {
	uint32_t *begin;  /* [experts + 1] */
	uint32_t *tokens; /* [tokens * top_k], then [tokens]: all, for the shared expert */
	float *weights;	  /* [tokens * top_k] */
	struct moe_part *parts;
};

static int place_sorted(struct stream *st, size_t *at, struct sorted *s, uint32_t tokens,
			uint32_t experts, uint32_t top_k)
{
	const size_t n = (size_t)tokens * top_k;

	s->begin = scratch_take(st, at, ((size_t)experts + 2) * sizeof(*s->begin));
	s->tokens = scratch_take(st, at, (n + tokens) * sizeof(*s->tokens));
	s->weights = scratch_take(st, at, (n + 1) * sizeof(*s->weights));
	s->parts = scratch_take(st, at, ((size_t)experts + 1) * sizeof(*s->parts));
	return s->begin && s->tokens && s->weights && s->parts ? 0 : -EINVAL;
}

/* Counts, then deals: within an expert the tokens rise. */
static void sort_tokens(struct sorted *s, uint32_t tokens, uint32_t experts, uint32_t top_k,
			const uint32_t *chosen, const float *weights)
{
	const size_t n = (size_t)tokens * top_k;
	uint32_t *next = s->begin +
			 1; /* shifted by one: dealing moves begin[e + 1] up to its end */

	memset(s->begin, 0, ((size_t)experts + 2) * sizeof(*s->begin));
	for (size_t i = 0; i < n; i++)
		s->begin[chosen[i] + 2]++;
	for (uint32_t e = 0; e < experts; e++)
		s->begin[e + 2] += s->begin[e + 1];
	for (size_t i = 0; i < n; i++) {
		const uint32_t to = next[chosen[i]]++;

		s->tokens[to] = (uint32_t)(i / top_k);
		s->weights[to] = weights[i];
	}
	for (uint32_t t = 0; t < tokens; t++)
		s->tokens[n + t] = t;
}

static bool mlp_fits(const struct weight *gate, const struct weight *up, const struct weight *down,
		     uint32_t dim)
{
	return gate->rows && weight_is_whole(gate, gate->rows, dim) &&
	       weight_is_whole(up, gate->rows, dim) && weight_is_whole(down, dim, gate->rows);
}

static bool is_batch(const struct tensor *t, uint32_t tokens, uint32_t dim)
{
	return t->type == DT_F32 && t->shape[0] == 1 && t->shape[1] == tokens &&
	       t->shape[2] == dim && (t->data || !tokens);
}

static bool moe_fits(const struct tensor *y, const struct tensor *x, const struct moe_weights *w,
		     uint32_t top_k, const uint32_t *chosen)
{
	const uint32_t tokens = x->shape[1], dim = x->shape[2];
	const bool shared = w->shared_gate.kind != WEIGHT_NONE;

	if (!dim || !is_batch(x, tokens, dim) || !is_batch(y, tokens, dim) ||
	    w->experts > MOE_EXPERTS_MAX || top_k > MOE_TOP_K_MAX || top_k > w->experts)
		return false;
	if (shared && !mlp_fits(&w->shared_gate, &w->shared_up, &w->shared_down, dim))
		return false;
	for (size_t i = 0; i < (size_t)tokens * top_k; i++) {
		const uint32_t e = chosen[i];

		if (e >= w->experts || !mlp_fits(&w->gate[e], &w->up[e], &w->down[e], dim))
			return false;
	}
	return true;
}

int op_moe(struct stream *st, const struct tensor *y, const struct tensor *x,
	   const struct moe_weights *w, uint32_t top_k, const uint32_t *chosen,
	   const float *weights)
{
	const uint32_t tokens = x->shape[1];
	struct sorted s;
	uint32_t n_parts = 0;
	size_t at = 0;
	int r;

	if (!moe_fits(y, x, w, top_k, chosen))
		return -EINVAL;
	if (tokens == 0)
		return 0;
	r = place_sorted(st, &at, &s, tokens, w->experts, top_k);
	if (r < 0)
		return r;
	sort_tokens(&s, tokens, w->experts, top_k, chosen, weights);

	for (uint32_t e = 0; e < w->experts; e++) {
		const uint32_t first = s.begin[e], n = s.begin[e + 1] - first;

		if (n)
			s.parts[n_parts++] = (struct moe_part){
				.gate = &w->gate[e],
				.up = &w->up[e],
				.down = &w->down[e],
				.tokens = s.tokens + first,
				.weights = s.weights + first,
				.n = n,
				.ffn_dim = w->gate[e].rows,
			};
	}
	if (w->shared_gate.kind != WEIGHT_NONE)
		s.parts[n_parts++] = (struct moe_part){
			.gate = &w->shared_gate,
			.up = &w->shared_up,
			.down = &w->shared_down,
			.tokens = s.tokens + (size_t)tokens * top_k,
			.n = tokens,
			.ffn_dim = w->shared_gate.rows,
		};
	if (n_parts == 0)
		return 0;
	return run_parts(st, at, y->data, x->data, tokens, x->shape[2], s.parts, n_parts);
}

/* A dense MLP is a mixture of no experts and a shared one. */
int op_mlp(struct stream *st, const struct tensor *y, const struct tensor *x,
	   const struct weight *gate, const struct weight *up, const struct weight *down)
{
	const struct moe_weights w = {
		.shared_gate = *gate,
		.shared_up = *up,
		.shared_down = *down,
	};

	if (gate->kind == WEIGHT_NONE)
		return -EINVAL;
	return op_moe(st, y, x, &w, 0, NULL, NULL);
}

/* Every piece is rounded up to 64; the hidden rows of each expert are pieces of their own. */
size_t matrix_scratch(const struct dev *dev, const struct op_limits *l)
{
	const uint64_t heads = l->heads > l->kv_heads ? l->heads : l->kv_heads;
	const uint64_t attention = heads * l->head_dim;
	const uint64_t cols = (l->dim > attention ? l->dim : attention) + GROUP_COLS;
	const uint64_t ffn = (uint64_t)l->ffn_dim + GROUP_COLS;
	const uint64_t n = (uint64_t)l->tokens * ((uint64_t)l->top_k + 1), parts = l->experts + 1;
	const uint64_t widest = cols > ffn ? cols : ffn;
	const uint64_t element = dev->isa == ISA_REF ? sizeof(double) : sizeof(float);
	uint64_t bytes = 4096;

	bytes += ACT_N * l->tokens * (cols > ffn ? cols : ffn) * sizeof(float);
	bytes += ACT_N * (l->tokens * sizeof(void *) + 128);
	bytes += n * (ffn * element + 64) + (ACT_N + 2) * (n * sizeof(void *) + parts * 128);
	bytes += n * (sizeof(uint32_t) + sizeof(float)) + parts * 256;
	bytes += parts * (sizeof(struct moe_part) + sizeof(struct hidden));
	bytes += (l->tokens < FEW_TOKENS ? l->tokens : FEW_TOKENS) * ((uint64_t)l->top_k + 2) *
		 ((uint64_t)l->dim + MUL_ROWS) * sizeof(float);
	bytes += (uint64_t)dev->n_threads * (l->tokens * MUL_ROWS * sizeof(float) + 64);
	bytes += (uint64_t)dev->n_threads * (2 * widest + l->tokens) * sizeof(double);
	return bytes;
}
