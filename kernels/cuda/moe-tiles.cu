/*
 * op_moe() and op_mlp() for 3 tokens and more, routed experts int4 and the rest
 * BF16. Tokens are listed by expert and cut into tiles; one kernel
 * computes gate and up of all tiles, routed and shared, and one down, each leaving
 * a row of its own for every choice of every token; these are added up in the order
 * of the experts.
 */
#include "kernels/cuda/many.h"
#include "kernels/cuda/matrix.h"

/* More would not fit into registers. */
#define TILE_TOKENS 48
#define SHARED_TOKENS 32
#define LIST_THREADS 256
#define LIST_AHEAD 8 /* choices that a lane has under way */
#define HIDDEN_PITCH (MANY_ROWS + 4)

/* Some tokens of one expert: numbers @first and on of its list. */
struct moe_item {
	uint32_t expert, first, n, pad;
};

struct moe_lists {
	uint32_t *lists, *counts; /* [experts][tokens], [experts] */
	struct moe_item *items;
	uint32_t *n_items, *arrivals;
	const uint32_t *chosen;
	uint32_t tokens, top_k, experts;
};

/* Sums of what threads before this one bring; *ret_all: of all. */
static __device__ __forceinline__ uint32_t count_before(uint32_t n, uint32_t *ret_all)
{
	__shared__ uint32_t of_warps[LIST_THREADS / 32];
	const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
	uint32_t sum = n, before = 0, all = 0;

	for (uint32_t step = 1; step < 32; step *= 2) {
		const uint32_t other = __shfl_up_sync(0xffffffffu, sum, step);

		sum += lane >= step ? other : 0;
	}
	__syncthreads();
	if (lane == 31)
		of_warps[warp] = sum;
	__syncthreads();
	for (uint32_t w = 0; w < LIST_THREADS / 32; w++) {
		before += w < warp ? of_warps[w] : 0;
		all += of_warps[w];
	}
	*ret_all = all;
	return before + sum - n;
}

/* For each expert a warp: the choices that fell on it, by token. The last block makes the tiles. */
static __global__ void __launch_bounds__(LIST_THREADS) k_list_tiles(const struct moe_lists g)
{
	__shared__ bool is_last;
	const uint32_t e = blockIdx.x * (LIST_THREADS / 32) + threadIdx.x / 32;
	const uint32_t lane = threadIdx.x % 32, n = e < g.experts ? g.tokens * g.top_k : 0;
	uint32_t *list = g.lists + (size_t)e * g.tokens, count = 0, items = 0;

	pdl_release();
	pdl_wait();
	for (uint32_t base = 0; base < n; base += 32 * LIST_AHEAD) {
		bool is_it[LIST_AHEAD];

#pragma unroll
		for (uint32_t i = 0; i < LIST_AHEAD; i++) {
			const uint32_t choice = base + i * 32 + lane;

			is_it[i] = choice < n && g.chosen[choice] == e;
		}
#pragma unroll
		for (uint32_t i = 0; i < LIST_AHEAD; i++) {
			const uint32_t ballot = __ballot_sync(0xffffffffu, is_it[i]);
			const uint32_t at = count + __popc(ballot & ((1u << lane) - 1));

			if (is_it[i] && at < g.tokens)
				list[at] = base + i * 32 + lane;
			count += __popc(ballot);
		}
	}
	if (lane == 0 && e < g.experts)
		g.counts[e] = min(count, g.tokens);
	__threadfence();
	__syncthreads();
	if (threadIdx.x == 0)
		is_last = atomicInc(g.arrivals, gridDim.x - 1) == gridDim.x - 1;
	__syncthreads();
	if (!is_last)
		return;
	__threadfence();
	for (uint32_t base = 0; base < g.experts; base += LIST_THREADS) {
		const uint32_t i = base + threadIdx.x;
		const uint32_t tokens = i < g.experts ? __ldcg(&g.counts[i]) : 0;
		uint32_t all, at = items;

		at += count_before((tokens + TILE_TOKENS - 1) / TILE_TOKENS, &all);
		for (uint32_t first = 0; first < tokens; first += TILE_TOKENS)
			g.items[at++] = { i, first, min(tokens - first, (uint32_t)TILE_TOKENS), 0 };
		items += all;
	}
	if (threadIdx.x == 0)
		*g.n_items = items;
}

struct moe_tiles {
	struct experts gate, up, down;
	const char *shared_gate, *shared_up, *shared_down;
	const struct moe_item *items;
	const uint32_t *n_items, *lists;
	const uint16_t *x;	 /* split, [tokens] */
	uint16_t *h, *shared_h;	 /* split: [choices] of padded ffn_dim, [tokens] of padded shared_dim */
	float *out, *shared_out; /* [choices][n_rows], [tokens][n_rows] */
	uint32_t tokens, top_k, dim, ffn_dim, shared_dim;
	uint32_t n_shared;	    /* tiles of the shared expert, which come first */
	uint32_t first_row, n_rows; /* of down that are computed now */
};

/*
 * What a block has to do, in shared memory: registers are for sums. The routed
 * experts are those of kind INT4, the shared one is that of kind BF16.
 */
struct moe_work {
	const char *gate, *up, *down; /* of the expert */
	uint32_t n;		      /* tokens */
	uint32_t choices[TILE_TOKENS], which[TILE_TOKENS]; /* rows of what it makes, and of x */
};

static __device__ __forceinline__ bool find_tile(const struct moe_tiles &g, struct moe_work *ret)
{
	const bool is_shared = blockIdx.y < g.n_shared;
	const uint32_t i = threadIdx.x;
	struct moe_item item = {};

	if (is_shared) {
		item.first = blockIdx.y * SHARED_TOKENS;
		item.n = min(g.tokens - item.first, (uint32_t)SHARED_TOKENS);
	} else {
		if (blockIdx.y - g.n_shared >= *g.n_items)
			return false;
		item = g.items[blockIdx.y - g.n_shared];
	}
	if (i < TILE_TOKENS) {
		const uint32_t at = item.first + min(i, item.n - 1);
		const uint32_t c = is_shared ? at : g.lists[(size_t)item.expert * g.tokens + at];

		ret->choices[i] = c;
		ret->which[i] = is_shared ? c : c / g.top_k;
	}
	if (i == 0) {
		ret->gate = is_shared ? g.shared_gate : g.gate.first + item.expert * g.gate.stride;
		ret->up = is_shared ? g.shared_up : g.up.first + item.expert * g.up.stride;
		ret->down = is_shared ? g.shared_down : g.down.first + item.expert * g.down.stride;
		ret->n = item.n;
	}
	__syncthreads();
	return true;
}

static __device__ __forceinline__ float silu_times(float z, float up)
{
	return __fdividef(z, 1 + expf(-z)) * up; /* a true division is a call, with registers to save */
}

/* silu(gate) * up of a block's rows, split, to the rows of h of its choices; the padding with them. */
template <int NT>
static __device__ __forceinline__ void write_hidden(const float (&acc)[2][NT][4], uint16_t *h,
						    uint32_t ffn_dim, const struct moe_work &work)
{
	constexpr uint32_t ups = NT * 8 * HIDDEN_PITCH; /* these lie behind gates */
	float *values = shared_memory<float>();
	float *own = values + many_token(0, 0) * HIDDEN_PITCH + threadIdx.x / 32 * STRIP_ROWS +
		     many_row(0);

#pragma unroll
	for (int i = 0; i < NT * 4; i++) {
		const int at = (i / 4 * 8 + i % 2) * HIDDEN_PITCH + i % 4 / 2 * 8;

		own[at] = acc[0][i / 4][i % 4];
		own[ups + at] = acc[1][i / 4][i % 4];
	}
	__syncthreads();

	const uint32_t cols = padded_cols(ffn_dim), first = blockIdx.x * MANY_ROWS;
#pragma unroll 1
	for (uint32_t i = threadIdx.x; i < work.n * (MANY_ROWS / 4); i += MANY_THREADS) {
		const uint32_t token = i / (MANY_ROWS / 4), at = i % (MANY_ROWS / 4) * 4;
		const float4 z = *(const float4 *)(values + token * HIDDEN_PITCH + at);
		const float4 up = *(const float4 *)(values + ups + token * HIDDEN_PITCH + at);
		uint16_t *to = h + (size_t)work.choices[token] * 2 * cols + first + at;
		uint2 high, low;

		if (first + at >= cols)
			continue;
		split_pair(&high.x, &low.x, first + at < ffn_dim ? silu_times(z.x, up.x) : 0,
			   first + at + 1 < ffn_dim ? silu_times(z.y, up.y) : 0);
		split_pair(&high.y, &low.y, first + at + 2 < ffn_dim ? silu_times(z.z, up.z) : 0,
			   first + at + 3 < ffn_dim ? silu_times(z.w, up.w) : 0);
		*(uint2 *)to = high;
		*(uint2 *)(to + cols) = low;
	}
}

template <int KIND> static __device__ __forceinline__ uint32_t ffn_dim_of(const struct moe_tiles &g)
{
	return KIND == WEIGHT_INT4 ? g.ffn_dim : g.shared_dim;
}

/* A warp has a strip of gate and one of up. */
template <int KIND, int NT>
static __device__ __forceinline__ void run_up(const struct moe_tiles &g, const struct moe_work &work)
{
	const uint32_t groups = groups_of(g.dim);
	const uint32_t strip = blockIdx.x * MANY_WARPS + threadIdx.x / 32;
	const char *const strips[2] = { strip_at<KIND>(work.gate, strip, groups),
					strip_at<KIND>(work.up, strip, groups) };
	float acc[2][NT][4] = {};

	many_product<KIND, 2, NT>(acc, strips, strip < strips_of(ffn_dim_of<KIND>(g)), g.dim,
				  { g.x, padded_cols(g.dim), work.which }, shared_memory<char>(), 0,
				  tiles_of(g.dim));
	write_hidden<NT>(acc, KIND == WEIGHT_INT4 ? g.h : g.shared_h, ffn_dim_of<KIND>(g), work);
}

/* Two strips of down for a warp. */
template <int KIND, int NT>
static __device__ __forceinline__ void run_down(const struct moe_tiles &g,
						const struct moe_work &work)
{
	constexpr bool IS_ROUTED = KIND == WEIGHT_INT4;
	const uint32_t ffn_dim = ffn_dim_of<KIND>(g), all = strips_of(g.dim);
	const uint32_t own = (blockIdx.x * MANY_WARPS + threadIdx.x / 32) * 2;
	const uint32_t strip = g.first_row / STRIP_ROWS + own;
	const char *const strips[2] = {
		strip_at<KIND>(work.down, strip, groups_of(ffn_dim)),
		strip_at<KIND>(work.down, min(strip + 1, all - 1), groups_of(ffn_dim)),
	};
	float *out = IS_ROUTED ? g.out : g.shared_out;
	float acc[2][NT][4] = {};

	many_product<KIND, 2, NT>(acc, strips, strip < all && own * STRIP_ROWS < g.n_rows, ffn_dim,
				  { IS_ROUTED ? g.h : g.shared_h, padded_cols(ffn_dim),
				    work.choices },
				  shared_memory<char>(), 0, tiles_of(ffn_dim));
#pragma unroll
	for (uint32_t m = 0; m < 2; m++) {
#pragma unroll
		for (int i = 0; i < NT * 4; i++) {
			const uint32_t row = (own + m) * STRIP_ROWS + many_row(i % 4);
			const uint32_t token = many_token(i / 4, i % 4);

			if (token < work.n && row < g.n_rows && g.first_row + row < g.dim)
				out[(size_t)work.choices[token] * g.n_rows + row] =
					acc[m][i / 4][i % 4];
		}
	}
}

template <int KIND, int NT, bool IS_UP>
static __device__ __forceinline__ void run(const struct moe_tiles &g, const struct moe_work &work)
{
	if constexpr (IS_UP)
		run_up<KIND, NT>(g, work);
	else
		run_down<KIND, NT>(g, work);
}

template <int KIND, bool IS_UP>
static __device__ __forceinline__ void run_of(const struct moe_tiles &g, const struct moe_work &work)
{
	if (IS_UP && blockIdx.x * MANY_ROWS >= padded_cols(ffn_dim_of<KIND>(g)))
		return;
	if (work.n <= 8)
		run<KIND, 1, IS_UP>(g, work);
	else if (work.n <= 16)
		run<KIND, 2, IS_UP>(g, work);
	else if (work.n <= 32 || KIND == WEIGHT_BF16)
		run<KIND, 4, IS_UP>(g, work);
	else
		run<WEIGHT_INT4, 6, IS_UP>(g, work);
}

template <bool IS_UP> static __device__ __forceinline__ void run_block(const struct moe_tiles &g)
{
	__shared__ struct moe_work work;

	pdl_release();
	pdl_wait();
	if (!find_tile(g, &work))
		return;
	if (blockIdx.y < g.n_shared)
		run_of<WEIGHT_BF16, IS_UP>(g, work);
	else
		run_of<WEIGHT_INT4, IS_UP>(g, work);
}

static __global__ void __launch_bounds__(MANY_THREADS, MANY_BLOCKS)
	k_moe_up_tiles(const struct moe_tiles g)
{
	run_block<true>(g);
}

static __global__ void __launch_bounds__(MANY_THREADS, MANY_BLOCKS)
	k_moe_down_tiles(const struct moe_tiles g)
{
	run_block<false>(g);
}

static uint32_t items_most(uint32_t choices, uint32_t experts)
{
	return (choices < experts ? choices : experts) + choices / TILE_TOKENS;
}

size_t moe_items_bytes(uint32_t choices, uint32_t experts)
{
	return (items_most(choices, experts) + 1) * sizeof(struct moe_item);
}

int moe_tiles(struct stream *st, const struct tensor *y, const struct tensor *x,
	      const struct moe_weights *w, uint32_t top_k, const uint32_t *chosen,
	      const float *weights)
{
	const uint32_t tokens = x->shape[1], dim = x->shape[2], experts = top_k ? w->experts : 0;
	const uint32_t ffn_dim = top_k ? w->gate[0].rows : 0;
	const uint32_t shared_dim = w->shared_gate.kind == WEIGHT_NONE ? 0 : w->shared_gate.rows;
	const uint32_t wide = padded_cols(ffn_dim > shared_dim ? ffn_dim : shared_dim);
	struct moe_tiles g = {};
	struct moe_room room;
	uint32_t tiles;
	int r;

	if (!moe_take_room(st, &room, tokens, top_k, experts, dim, ffn_dim, shared_dim))
		return -EINVAL;
	g.tokens = tokens;
	g.top_k = top_k;
	g.dim = dim;
	g.ffn_dim = ffn_dim;
	g.shared_dim = shared_dim;
	g.x = room.x;
	g.h = room.h;
	g.shared_h = room.shared_h;
	g.out = room.out;
	g.shared_out = room.shared_out;
	g.lists = room.lists;
	g.items = (const struct moe_item *)room.items + 1;
	g.n_items = (const uint32_t *)room.items;
	if (experts) {
		g.gate = experts_of(w->gate, experts);
		g.up = experts_of(w->up, experts);
		g.down = experts_of(w->down, experts);
	}
	if (shared_dim) {
		g.n_shared = ceil_div(tokens, SHARED_TOKENS);
		g.shared_gate = (const char *)w->shared_gate.data;
		g.shared_up = (const char *)w->shared_up.data;
		g.shared_down = (const char *)w->shared_down.data;
	}
	tiles = g.n_shared + (experts ? items_most(tokens * top_k, experts) : 0);

	r = split_rows(st, room.x, (const float *)x->data, tokens, dim);
	if (r == 0 && experts) {
		const struct moe_lists lists = { room.lists,
						 room.counts,
						 (struct moe_item *)room.items + 1,
						 (uint32_t *)room.items,
						 st->counters,
						 chosen,
						 tokens,
						 top_k,
						 experts };

		r = launch(st, LAUNCH_PDL, k_list_tiles, ceil_div(experts, LIST_THREADS / 32),
			   LIST_THREADS, 0, lists);
	}
	if (r == 0)
		r = launch(st, LAUNCH_PDL, k_moe_up_tiles, dim3(ceil_div(wide, MANY_ROWS), tiles),
			   MANY_THREADS, MANY_SHARED, g);
	for (uint32_t first = 0; first < dim && r == 0; first += room.n_rows) {
		g.first_row = first;
		g.n_rows = dim - first < room.n_rows ? dim - first : room.n_rows;
		r = launch(st, LAUNCH_PDL, k_moe_down_tiles,
			   dim3(ceil_div(g.n_rows, 2 * MANY_ROWS), tiles), MANY_THREADS,
			   MANY_SHARED, g);
		if (r == 0)
			r = moe_add_up(st, y, &room, top_k, experts, shared_dim, chosen, weights,
				       first, g.n_rows);
	}
	return r;
}
