/*
 * op_moe() and op_mlp() for any number of tokens and any kinds, and what it shares
 * with moe-tiles.cu. Tokens are
 * listed by expert; gate and up of all experts, then down for some rows at a
 * time, each leaving a row of its own for every choice of every token, and the
 * choices added up in the order of the experts.
 */
#include "kernels/cuda/many.h"
#include "kernels/cuda/matrix.h"

#define NT 4 /* times 8 tokens that a block has */
#define TOKENS (NT * 8)
#define LIST_THREADS 256
#define SUM_THREADS 256
#define TABLE_PART 192	      /* experts whose matrices fit into a launch */
#define OUT_BYTES (64u << 20) /* of what down leaves, if 128 rows need no more */
#define BLOCKS_OF_TOKENS 8    /* of one expert, at most, side by side */

struct moe_matrix {
	const char *data;
	uint32_t kind;
};

struct moe_table_part {
	struct moe_matrix matrices[TABLE_PART];
};

/* Matrices of one role, of all experts. */
static __global__ void k_table(struct moe_matrix *to, const struct moe_table_part part, uint32_t n)
{
	pdl_release();
	pdl_wait();
	if (threadIdx.x < n)
		to[threadIdx.x] = part.matrices[threadIdx.x];
}

/* For each expert a warp: the choices that fell on it, by token. */
static __global__ void __launch_bounds__(LIST_THREADS)
	k_lists(uint32_t *lists, uint32_t *counts, const uint32_t *chosen, uint32_t tokens,
		uint32_t top_k, uint32_t experts)
{
	const uint32_t e = blockIdx.x * (LIST_THREADS / 32) + threadIdx.x / 32;
	const uint32_t lane = threadIdx.x % 32, n = tokens * top_k;
	uint32_t *list = lists + (size_t)e * tokens, count = 0;

	pdl_release();
	pdl_wait();
	if (e >= experts)
		return;
	for (uint32_t base = 0; base < n; base += 32) {
		const bool is_it = base + lane < n && chosen[base + lane] == e;
		const uint32_t ballot = __ballot_sync(0xffffffffu, is_it);
		const uint32_t at = count + __popc(ballot & ((1u << lane) - 1));

		if (is_it && at < tokens)
			list[at] = base + lane;
		count += __popc(ballot);
	}
	if (lane == 0)
		counts[e] = min(count, tokens);
}

/* What kernels know of the routed experts, or of the shared one as the only expert. */
struct moe_many {
	const struct moe_matrix *gate, *up, *down; /* [experts] */
	const uint32_t *lists, *counts;		   /* NULL: all tokens, in order */
	const uint16_t *x;			   /* split, [tokens] */
	uint16_t *h;				   /* split, of h_cols: [choices] */
	float *out;				   /* [choices][n_rows] */
	uint32_t tokens, top_k, dim, ffn_dim, h_cols;
	uint32_t first_row, n_rows; /* of down that are computed now */
};

template <int KIND>
static __device__ __noinline__ void product_of_kind(float (&acc)[1][NT][4], const struct moe_matrix &w,
						    uint32_t strip, bool is_there, uint32_t cols,
						    const struct many_rows &x)
{
	const char *const strips[1] = { strip_at<KIND>(w.data, strip, groups_of(cols)) };

	many_product<KIND, 1, NT>(acc, strips, is_there, cols, x, shared_memory<char>(), 0,
				  tiles_of(cols));
}

static __device__ __forceinline__ void product(float (&acc)[1][NT][4], const struct moe_matrix &w,
					       uint32_t strip, bool is_there, uint32_t cols,
					       const struct many_rows &x)
{
	if (w.kind == WEIGHT_INT4)
		product_of_kind<WEIGHT_INT4>(acc, w, strip, is_there, cols, x);
	else if (w.kind == WEIGHT_BF16)
		product_of_kind<WEIGHT_BF16>(acc, w, strip, is_there, cols, x);
	else if (w.kind == WEIGHT_INT4_F32)
		product_of_kind<WEIGHT_INT4_F32>(acc, w, strip, is_there, cols, x);
	else
		product_of_kind<WEIGHT_F32>(acc, w, strip, is_there, cols, x);
}

static __device__ __forceinline__ uint32_t choices_of(const struct moe_many &g, uint32_t e)
{
	return g.lists ? g.counts[e] : g.tokens;
}

/* Choice number @i of an expert. */
static __device__ __forceinline__ uint32_t choice_of(const struct moe_many &g, uint32_t e,
						     uint32_t i)
{
	return g.lists ? g.lists[(size_t)e * g.tokens + i] : i;
}

static __global__ void __launch_bounds__(MANY_THREADS, 2) k_moe_up_many(const struct moe_many g)
{
	__shared__ uint32_t which[TOKENS], choices[TOKENS];
	const uint32_t e = blockIdx.y, strip = blockIdx.x * MANY_WARPS + threadIdx.x / 32;
	const bool is_there = strip < strips_of(g.ffn_dim);
	uint32_t n;

	pdl_release();
	pdl_wait();
	n = choices_of(g, e);
	for (uint32_t first = blockIdx.z * TOKENS; first < n; first += gridDim.z * TOKENS) {
		float gate[1][NT][4] = {}, up[1][NT][4] = {};
		const struct many_rows x = { g.x, padded_cols(g.dim), which };

		if (threadIdx.x < TOKENS) {
			const uint32_t c = choice_of(g, e, min(first + threadIdx.x, n - 1));

			choices[threadIdx.x] = c;
			which[threadIdx.x] = g.lists ? c / g.top_k : c;
		}
		__syncthreads();
		product(gate, g.gate[e], strip, is_there, g.dim, x);
		product(up, g.up[e], strip, is_there, g.dim, x);
		for (int i = 0; i < NT * 4; i++) {
			const uint32_t row = (blockIdx.x * MANY_WARPS + threadIdx.x / 32) * STRIP_ROWS +
					     many_row(i % 4);
			const uint32_t token = many_token(i / 4, i % 4);
			const float z = gate[0][i / 4][i % 4];
			uint32_t high, low;

			if (first + token >= n || row >= g.h_cols)
				continue;
			split_pair(&high, &low,
				   row < g.ffn_dim ? z / (1 + expf(-z)) * up[0][i / 4][i % 4] : 0, 0);

			uint16_t *h = g.h + (size_t)choices[token] * 2 * g.h_cols + row;

			h[0] = (uint16_t)high;
			h[g.h_cols] = (uint16_t)low;
		}
		__syncthreads();
	}
}

static __global__ void __launch_bounds__(MANY_THREADS, 2) k_moe_down_many(const struct moe_many g)
{
	__shared__ uint32_t which[TOKENS];
	const uint32_t e = blockIdx.y, warp = threadIdx.x / 32;
	const uint32_t strip = g.first_row / STRIP_ROWS + blockIdx.x * MANY_WARPS + warp;
	const bool is_there = strip < strips_of(g.dim) &&
			      (blockIdx.x * MANY_WARPS + warp) * STRIP_ROWS < g.n_rows;
	uint32_t n;

	pdl_release();
	pdl_wait();
	n = choices_of(g, e);
	for (uint32_t first = blockIdx.z * TOKENS; first < n; first += gridDim.z * TOKENS) {
		float acc[1][NT][4] = {};

		if (threadIdx.x < TOKENS)
			which[threadIdx.x] = choice_of(g, e, min(first + threadIdx.x, n - 1));
		__syncthreads();
		product(acc, g.down[e], strip, is_there, g.ffn_dim, { g.h, g.h_cols, which });
		for (int i = 0; i < NT * 4; i++) {
			const uint32_t row = (blockIdx.x * MANY_WARPS + threadIdx.x / 32) * STRIP_ROWS +
					     many_row(i % 4);
			const uint32_t token = many_token(i / 4, i % 4);

			if (first + token < n && row < g.n_rows && g.first_row + row < g.dim)
				g.out[(size_t)which[token] * g.n_rows + row] = acc[0][i / 4][i % 4];
		}
		__syncthreads();
	}
}

struct moe_sum {
	const float *routed, *shared; /* [tokens][top_k][n_rows], [tokens][n_rows]; NULL: none */
	const uint32_t *chosen;
	const float *weights;
	float *y;
	uint32_t top_k, dim, experts, first_row, n_rows;
};

/* y += the choices of a token by rising expert, then the shared one. */
static __global__ void __launch_bounds__(SUM_THREADS) k_moe_sum(const struct moe_sum g)
{
	__shared__ uint32_t order[MOE_TOP_K_MAX];
	__shared__ float weights[MOE_TOP_K_MAX];
	const uint32_t token = blockIdx.y, row = blockIdx.x * SUM_THREADS + threadIdx.x;
	const uint32_t *chosen = g.chosen + (size_t)token * g.top_k;
	float sum = 0;

	pdl_release();
	pdl_wait();
	if (threadIdx.x < g.top_k) {
		const uint32_t e = chosen[threadIdx.x];
		uint32_t rank = 0;

		for (uint32_t k = 0; k < g.top_k; k++)
			rank += chosen[k] < e || (chosen[k] == e && k < threadIdx.x);
		order[rank] = threadIdx.x;
		weights[rank] = e < g.experts ? g.weights[(size_t)token * g.top_k + threadIdx.x]
					      : 0;
	}
	__syncthreads();
	if (row >= g.n_rows || g.first_row + row >= g.dim)
		return;
	for (uint32_t k = 0; k < g.top_k; k++)
		if (weights[k] != 0) /* what nobody computed may be anything */
			sum = fmaf(weights[k],
				   g.routed[((size_t)token * g.top_k + order[k]) * g.n_rows + row],
				   sum);
	if (g.shared)
		sum += g.shared[(size_t)token * g.n_rows + row];
	g.y[(size_t)token * g.dim + g.first_row + row] += sum;
}

static void *take(const struct stream *st, size_t *at, size_t bytes, bool *ret_fits)
{
	void *p;

	if (!st) {
		*at += (bytes + 255) & ~(size_t)255;
		return NULL;
	}
	p = matrix_scratch_take(st, at, bytes);
	*ret_fits &= p != NULL;
	return p;
}

/* With @st NULL only its size. */
static bool take_room(const struct stream *st, size_t *at, struct moe_room *ret, uint32_t tokens,
		      uint32_t top_k, uint32_t experts, uint32_t dim, uint32_t ffn_dim,
		      uint32_t shared_dim)
{
	const size_t n = (size_t)tokens * top_k;
	const size_t fit = OUT_BYTES / sizeof(float) / (n + tokens) / MANY_ROWS * MANY_ROWS;
	bool fits = true;

	ret->n_rows = fit > dim ? dim : fit > MANY_ROWS ? (uint32_t)fit : MANY_ROWS;
	ret->x = (uint16_t *)take(st, at, split_bytes(tokens, dim), &fits);
	ret->h = (uint16_t *)take(st, at, split_bytes(n, ffn_dim), &fits);
	ret->shared_h = (uint16_t *)take(st, at, split_bytes(tokens, shared_dim), &fits);
	ret->out = (float *)take(st, at, n * ret->n_rows * sizeof(float), &fits);
	ret->shared_out = (float *)take(st, at, (size_t)tokens * ret->n_rows * sizeof(float),
					&fits);
	ret->lists = (uint32_t *)take(st, at, (size_t)experts * tokens * sizeof(uint32_t), &fits);
	ret->counts = (uint32_t *)take(st, at, experts * sizeof(uint32_t), &fits);
	ret->items = take(st, at, moe_items_bytes(tokens * top_k, experts), &fits);
	ret->tables = take(st, at, (size_t)3 * (experts + 1) * sizeof(struct moe_matrix), &fits);
	return fits;
}

bool moe_take_room(const struct stream *st, struct moe_room *ret, uint32_t tokens, uint32_t top_k,
		   uint32_t experts, uint32_t dim, uint32_t ffn_dim, uint32_t shared_dim)
{
	size_t at = 0;

	return take_room(st, &at, ret, tokens, top_k, experts, dim, ffn_dim, shared_dim);
}

/* Of experts, and of a dense MLP, which is a shared expert alone and may be wider. */
size_t moe_many_scratch(const struct op_limits *l)
{
	const uint32_t moe_dim = l->moe_ffn_dim ? l->moe_ffn_dim : l->ffn_dim;
	struct moe_room room;
	size_t routed = 0, dense = 0;

	take_room(NULL, &routed, &room, l->tokens, l->top_k, l->experts, l->dim, moe_dim,
		  moe_dim);
	take_room(NULL, &dense, &room, l->tokens, 0, 0, l->dim, 0, l->ffn_dim);
	return (routed > dense ? routed : dense) + 256;
}

static int put_table(struct stream *st, struct moe_matrix *to, const struct weight *w, uint32_t n)
{
	int r = 0;

	for (uint32_t first = 0; first < n && r == 0; first += TABLE_PART) {
		const uint32_t some = n - first < TABLE_PART ? n - first : TABLE_PART;
		struct moe_table_part part = {};

		for (uint32_t i = 0; i < some; i++)
			part.matrices[i] = { (const char *)w[first + i].data,
					     (uint32_t)w[first + i].kind };
		r = launch(st, LAUNCH_PDL, k_table, 1, TABLE_PART, 0, to + first, part, some);
	}
	return r;
}

/* Gate, up and down of @experts, whose tables follow each other from @to on. */
static int put_tables(struct stream *st, struct moe_many *g, struct moe_matrix *to,
		      const struct weight *gate, const struct weight *up, const struct weight *down,
		      uint32_t experts)
{
	int r = put_table(st, to, gate, experts);

	if (r == 0)
		r = put_table(st, to + experts, up, experts);
	if (r == 0)
		r = put_table(st, to + 2 * experts, down, experts);
	g->gate = to;
	g->up = to + experts;
	g->down = to + 2 * experts;
	return r;
}

static uint32_t blocks_of_tokens(uint32_t tokens, bool is_routed)
{
	const uint32_t n = ceil_div(tokens, TOKENS);

	return is_routed && n > BLOCKS_OF_TOKENS ? BLOCKS_OF_TOKENS : n;
}

static int run_up(struct stream *st, const struct moe_many &g, uint32_t experts)
{
	return launch(
		st, LAUNCH_PDL, k_moe_up_many,
		dim3(ceil_div(g.h_cols, MANY_ROWS), experts, blocks_of_tokens(g.tokens, g.lists)),
		MANY_THREADS, MANY_SHARED, g);
}

static int run_down(struct stream *st, const struct moe_many &g, uint32_t experts)
{
	return launch(
		st, LAUNCH_PDL, k_moe_down_many,
		dim3(ceil_div(g.n_rows, MANY_ROWS), experts, blocks_of_tokens(g.tokens, g.lists)),
		MANY_THREADS, MANY_SHARED, g);
}

int moe_add_up(struct stream *st, const struct tensor *y, const struct moe_room *room,
	       uint32_t top_k, uint32_t experts, uint32_t shared_dim, const uint32_t *chosen,
	       const float *weights, uint32_t first, uint32_t n_rows)
{
	const struct moe_sum sum = { experts ? room->out : NULL,
				     shared_dim ? room->shared_out : NULL,
				     chosen,
				     weights,
				     (float *)y->data,
				     top_k,
				     y->shape[2],
				     experts,
				     first,
				     n_rows };

	return launch(st, LAUNCH_PDL, k_moe_sum, dim3(ceil_div(n_rows, SUM_THREADS), y->shape[1]),
		      SUM_THREADS, 0, sum);
}

int moe_many(struct stream *st, const struct tensor *y, const struct tensor *x,
	     const struct moe_weights *w, uint32_t top_k, const uint32_t *chosen,
	     const float *weights)
{
	const uint32_t tokens = x->shape[1], dim = x->shape[2];
	const uint32_t experts = top_k ? w->experts : 0;
	const bool has_shared = w->shared_gate.kind != WEIGHT_NONE;
	struct moe_many routed = {}, shared = {};
	struct moe_matrix *tables;
	struct moe_room room;
	int r;

	routed.tokens = shared.tokens = tokens;
	routed.dim = shared.dim = dim;
	routed.top_k = top_k;
	routed.ffn_dim = top_k ? w->gate[0].rows : 0;
	shared.ffn_dim = has_shared ? w->shared_gate.rows : 0;
	routed.h_cols = padded_cols(routed.ffn_dim);
	shared.h_cols = padded_cols(shared.ffn_dim);
	for (uint32_t e = 1; e < experts; e++)
		if (w->gate[e].rows != routed.ffn_dim)
			return -EINVAL;
	if (!moe_take_room(st, &room, tokens, top_k, experts, dim, routed.ffn_dim, shared.ffn_dim))
		return -EINVAL;
	tables = (struct moe_matrix *)room.tables;
	routed.x = shared.x = room.x;
	routed.h = room.h;
	shared.h = room.shared_h;
	routed.out = room.out;
	shared.out = room.shared_out;
	routed.lists = room.lists;
	routed.counts = room.counts;

	r = split_rows(st, room.x, (const float *)x->data, tokens, dim);
	if (r == 0 && experts)
		r = put_tables(st, &routed, tables, w->gate, w->up, w->down, experts);
	if (r == 0 && experts)
		r = launch(st, LAUNCH_PDL, k_lists, ceil_div(experts, LIST_THREADS / 32),
			   LIST_THREADS, 0, room.lists, room.counts, chosen, tokens, top_k,
			   experts);
	if (r == 0 && has_shared)
		r = put_tables(st, &shared, tables + 3 * experts, &w->shared_gate,
			       &w->shared_up, &w->shared_down, 1);
	if (r == 0 && experts)
		r = run_up(st, routed, experts);
	if (r == 0 && has_shared)
		r = run_up(st, shared, 1);

	for (uint32_t first = 0; first < dim && r == 0; first += room.n_rows) {
		routed.first_row = shared.first_row = first;
		routed.n_rows = shared.n_rows = dim - first < room.n_rows ? dim - first
									  : room.n_rows;
		if (experts)
			r = run_down(st, routed, experts);
		if (r == 0 && has_shared)
			r = run_down(st, shared, 1);
		if (r == 0)
			r = moe_add_up(st, y, &room, top_k, experts, shared.ffn_dim, chosen, weights,
				       first, routed.n_rows);
	}
	return r;
}
