/*
 * op_moe() and op_mlp() for 1 or 2 tokens, routed experts int4 and the rest
 * BF16. One kernel computes gate and up of all experts, and of the shared one,
 * whose weights are known before the router has chosen; one adds up down.
 */
#include "kernels/cuda/active.h"
#include "kernels/cuda/matrix.h"

#define MOE_FEW_TOKENS 2
/* Tiles of a warp that are under way, so that two blocks fit into a multiprocessor */
#define UP_DEPTH 7
#define SHARED_UP_DEPTH 2
#define DOWN_DEPTH 12
#define SHARED_DOWN_DEPTH 3
#define UP_RING (64 << 10)
#define DOWN_RING (54 << 10)
#define UP_SLOTS 2
#define BLOCK_ROOM (110 << 10) /* bytes of shared memory, where there are so many */

static_assert(few_ring_bytes<WEIGHT_INT4, 2, UP_DEPTH> <= UP_RING &&
		      few_ring_bytes<WEIGHT_BF16, 2, SHARED_UP_DEPTH> <= UP_RING &&
		      few_ring_bytes<WEIGHT_INT4, 1, DOWN_DEPTH> <= DOWN_RING &&
		      few_ring_bytes<WEIGHT_BF16, 1, SHARED_DOWN_DEPTH> <= DOWN_RING,
	      "both rings have the same place");

struct moe_few {
	struct experts gate, up, down;
	const char *shared_gate, *shared_up, *shared_down;
	const float *x;
	float *y;
	const uint32_t *chosen;
	const float *weights;
	uint16_t *
		h; /* split rows of h_cols: [tokens][top_k], then one of the shared expert for each token */
	uint32_t tokens, top_k, experts, dim, ffn_dim, shared_dim, h_cols;
	uint32_t up_slots, up_run, down_slots, shared_run; /* as planned */
	uint32_t room_rows; /* of h that a block of down holds at a time */
};

static __device__ __forceinline__ float silu(float z)
{
	return z / (1 + expf(-z));
}

static __device__ __forceinline__ uint16_t *h_row(const struct moe_few &g, uint32_t row, int part)
{
	return g.h + ((size_t)row * 2 + part) * g.h_cols;
}

/* Row @row of h gets its columns that a strip of gate and up made, and the last strip the padding. */
static __device__ __forceinline__ void write_hidden(const struct moe_few &g, const float *sums,
						    uint32_t item, uint32_t strip, uint32_t token,
						    uint32_t row, uint32_t ffn_dim, uint32_t i)
{
	const uint32_t at = strip * STRIP_ROWS + i;
	uint32_t high, low;
	float value = 0;

	if (at < ffn_dim)
		value = silu(few_total(sums, item * 2, i, token)) *
			few_total(sums, item * 2 + 1, i, token);
	split_pair(&high, &low, value, 0);
	h_row(g, row, 0)[at] = (uint16_t)high;
	h_row(g, row, 1)[at] = (uint16_t)low;
}

static __device__ __forceinline__ uint32_t rows_to_write(uint32_t strip, uint32_t ffn_dim)
{
	return strip + 1 < strips_of(ffn_dim) ? STRIP_ROWS
					      : padded_cols(ffn_dim) - strip * STRIP_ROWS;
}

static __device__ __forceinline__ void finish_shared(const struct moe_few &g, const float *sums,
						     uint32_t first, uint32_t n)
{
	for (uint32_t item = 0; item < n; item++) {
		const uint32_t rows = rows_to_write(first + item, g.shared_dim);

		for (uint32_t i = threadIdx.x; i < rows * g.tokens; i += FEW_THREADS)
			write_hidden(g, sums, item, first + item, i / rows,
					    g.tokens * g.top_k + i / rows, g.shared_dim, i % rows);
	}
}

static __device__ __forceinline__ void finish_routed(const struct moe_few &g, const float *sums,
						     const struct active &active, uint32_t first,
						     uint32_t n)
{
	const uint32_t strips = strips_of(g.ffn_dim);

	for (uint32_t item = 0; item < n; item++) {
		const uint32_t a = (first + item) / strips, strip = (first + item) % strips;
		const uint32_t rows = rows_to_write(strip, g.ffn_dim);

		for (uint32_t i = threadIdx.x; i < rows * g.tokens; i += FEW_THREADS) {
			const uint32_t token = i / rows;

			if (active.tokens[a] >> token & 1)
				write_hidden(g, sums, item, strip, token,
						    token * g.top_k + active.choice[a][token],
						    g.ffn_dim, i % rows);
		}
	}
}

/*
 * Where the routed items of block @i begin: what it has of the shared expert
 * counts, so that all blocks read as many bytes.
 */
static __device__ __forceinline__ uint32_t routed_share(const struct moe_few &g, uint32_t n_items,
							uint32_t i)
{
	const uint32_t n_shared = g.shared_gate ? strips_of(g.shared_dim) : 0, n = gridDim.x;
	const uint64_t of_shared = strip_bytes(WEIGHT_BF16, g.dim);
	const uint64_t of_routed = strip_bytes(WEIGHT_INT4, g.dim);
	const uint64_t all = n_shared * of_shared + n_items * of_routed;
	const uint64_t before = few_share(n_shared, i, n) * of_shared;

	if ((n_shared + n - 1) / n * of_shared * n > all) /* some have enough of the shared alone */
		return few_share(n_items, i, n);
	return i == n ? n_items
		      : (uint32_t)min((all * i / n - min(all * i / n, before)) / of_routed,
				      (uint64_t)n_items);
}

static __global__ void __launch_bounds__(FEW_THREADS, 2) k_moe_up_few(const struct moe_few g)
{
	__shared__ struct active active;
	const uint32_t n_shared = g.shared_gate ? strips_of(g.shared_dim) : 0;
	const uint32_t strips = strips_of(g.ffn_dim), n_tiles = tiles_of(g.dim);
	const uint32_t groups = groups_of(g.dim), lane = threadIdx.x % 32;
	const uint32_t pitch = few_pitch(g.up_run * TILE_COLS);
	float *sums = shared_memory<float>();
	char *ring = (char *)(sums + g.up_slots * FEW_SLOT), *rows = ring + UP_RING;
	const few_rows x(rows, pitch, g.tokens, lane);
	struct few_span span = { few_share(n_shared, blockIdx.x, gridDim.x),
				 few_share(n_shared, blockIdx.x + 1, gridDim.x), g.up_slots / 2,
				 n_tiles, g.up_run };
	const bool has_shared = span.first < span.last;
	uint32_t n_items = 0;
	const auto fill = [&](uint32_t tile, uint32_t n) {
		few_fill(rows, pitch, g.x, g.dim, g.tokens, tile * TILE_COLS, n * TILE_COLS,
			 {});
	};

	pdl_release();
	few_run<WEIGHT_BF16, 2, SHARED_UP_DEPTH>(
		span, x, sums, ring, groups, g.shared_up - g.shared_gate,
		[&](uint32_t item) { return strip_at<WEIGHT_BF16>(g.shared_gate, item, groups); },
		[&] {
			pdl_wait();
			n_items = active_find(&active, g.chosen, g.tokens, g.top_k, g.experts) *
				  strips;
			if (has_shared)
				fill(0, g.up_run);
			__syncthreads();
		},
		fill, [&](uint32_t first, uint32_t n) { finish_shared(g, sums, first, n); });

	span.first = routed_share(g, n_items, blockIdx.x);
	span.last = routed_share(g, n_items, blockIdx.x + 1);
	few_run<WEIGHT_INT4, 2, UP_DEPTH>(
		span, x, sums, ring, groups, g.up.first - g.gate.first,
		[&](uint32_t item) {
			return strip_at<WEIGHT_INT4>(g.gate.first + active.expert[item / strips] *
									    g.gate.stride,
						     item % strips, groups);
		},
		[&] {
			if (has_shared && g.up_run == n_tiles)
				return;
			fill(0, g.up_run);
			__syncthreads();
		},
		fill,
		[&](uint32_t first, uint32_t n) { finish_routed(g, sums, active, first, n); });
}

/* Columns of @n rows of h from @first_tile on, to rows of few_rows: halves of each row apart. */
template <typename ROW>
static __device__ __forceinline__ void copy_hidden(char *rows, uint32_t pitch,
						   const struct moe_few &g, uint32_t n,
						   uint32_t first_tile, uint32_t n_tiles, ROW row)
{
	const uint32_t chunks = n_tiles * 8, all = 2 * n * chunks;

#pragma unroll 1
	for (uint32_t base = threadIdx.x; base < all; base += FEW_FILL * FEW_THREADS) {
		uint4 v[FEW_FILL]; /* on their way together */

#pragma unroll
		for (uint32_t j = 0; j < FEW_FILL; j++) {
			const uint32_t i = base + j * FEW_THREADS, to = i / chunks;

			if (i < all)
				v[j] = *(const uint4 *)(h_row(g, row(to % n), to >= n) +
							first_tile * TILE_COLS + i % chunks * 8);
		}
#pragma unroll
		for (uint32_t j = 0; j < FEW_FILL; j++) {
			const uint32_t i = base + j * FEW_THREADS;

			if (i < all)
				*(uint4 *)(rows + i / chunks * pitch + i % chunks * 16) = v[j];
		}
	}
}

/* A warp's way through the tiles of several experts behind one another. */
struct few_walk {
	uint32_t a, tile;
};

/* Eight tiles on, in whole experts and tiles of the next. */
struct few_stride {
	uint32_t experts, tiles, n_tiles;
};

static __device__ __forceinline__ struct few_walk walk_from(uint32_t first, uint32_t n_tiles)
{
	const uint32_t warp = threadIdx.x / 32;

	return { first + warp / n_tiles, warp % n_tiles };
}

static __device__ __forceinline__ void walk_on(struct few_walk *w, const struct few_stride &by)
{
	const uint32_t tile = w->tile + by.tiles;
	const bool is_beyond = tile >= by.n_tiles;

	w->a += by.experts + is_beyond;
	w->tile = is_beyond ? tile - by.n_tiles : tile;
}

/* Shared memory of down beside slots and rows. */
struct down_tables {
	struct active active;
	float weights[ACTIVE_MAX][FEW_TOKENS]; /* of a token that did not choose the expert: 0 */
	uint16_t first_row[ACTIVE_MAX]; /* of the rows that are there, its tokens' first one */
};

/* Experts from @first on whose rows of h are taken together; their tokens' rows are numbered. */
static __device__ __forceinline__ uint32_t take_experts(struct down_tables *t, uint32_t room_rows,
							uint32_t first, uint32_t n,
							uint32_t *ret_rows)
{
	uint32_t a = first, rows = 0;

	while (a < n && rows + __popc(t->active.tokens[a]) <= room_rows) {
		if (threadIdx.x == 0)
			t->first_row[a] = (uint16_t)rows;
		rows += __popc(t->active.tokens[a++]);
	}
	*ret_rows = rows;
	return a;
}

/* Row of h that is number @i of those of experts first …: by expert, then by token. */
static __device__ __forceinline__ uint32_t hidden_row(const struct moe_few &g,
						      const struct down_tables &t, uint32_t first,
						      uint32_t i)
{
	uint32_t a = first, mask, token;

	while (i >= (uint32_t)__popc(t.active.tokens[a]))
		i -= __popc(t.active.tokens[a++]);
	mask = t.active.tokens[a];
	for (; i; i--)
		mask &= mask - 1;
	token = __ffs(mask) - 1;
	return token * g.top_k + t.active.choice[a][token];
}

/* Sums of down for experts first … end - 1 and strips batch … last - 1, added to their slots. */
static __device__ __forceinline__ void
run_experts(const struct moe_few &g, struct down_tables *t, float *sums, char *ring, char *rows,
	    uint32_t batch, uint32_t last, uint32_t first, uint32_t end, uint32_t n_rows,
	    bool is_first)
{
	constexpr uint32_t BYTES = tile_bytes<WEIGHT_INT4>;
	const uint32_t lane = threadIdx.x % 32, g_lane = lane / 4;
	const uint32_t n_tiles = tiles_of(g.ffn_dim), groups = groups_of(g.ffn_dim);
	const uint32_t pitch = few_pitch(n_tiles * TILE_COLS);
	const uint32_t token = g_lane % FEW_TOKENS, part = g_lane / FEW_TOKENS;
	const uint32_t column = lane % 4 * 2 % FEW_TOKENS;
	const struct few_stride by = { FEW_WARPS / n_tiles, FEW_WARPS % n_tiles, n_tiles };
	struct few_walk ahead = walk_from(first, n_tiles);
	char *const own = ring + threadIdx.x / 32 * DOWN_DEPTH * BYTES;
	uint32_t strip_ahead = batch, slot = 0, to = 0;
	const auto copy = [&] {
		if (ahead.a >= end) {
			ahead = walk_from(first, n_tiles);
			strip_ahead++;
		}
		if (ahead.a < end && strip_ahead < last)
			copy_tile<WEIGHT_INT4>(
				own + to,
				strip_at<WEIGHT_INT4>(g.down.first + t->active.expert[ahead.a] *
									      g.down.stride,
						      strip_ahead, groups),
				groups, ahead.tile, lane);
		walk_on(&ahead, by);
		copy_async_commit();
		to = to + BYTES == DOWN_DEPTH * BYTES ? 0 : to + BYTES;
	};

#pragma unroll 1
	for (int i = 0; i < DOWN_DEPTH - 1; i++)
		copy();
	copy_hidden(rows, pitch, g, n_rows, 0, n_tiles,
		    [&](uint32_t i) { return hidden_row(g, *t, first, i); });
	__syncthreads();

	for (uint32_t strip = batch; strip < last; strip++) {
		uint32_t of = first;
		const char *row = NULL;
		float out[4] = {}, acc[1][1][4] = {};
		const auto turn_to = [&](uint32_t a) {
			const uint32_t mask = a < end ? t->active.tokens[a] : 0;
			const float *w = &t->weights[of][column];

			for (int i = 0; i < 4; i++) {
				out[i] = fmaf(acc[0][0][i], w[i % 2], out[i]);
				acc[0][0][i] = 0;
			}
			of = a;
			row = mask >> token & 1 ? rows +
							  (part * n_rows + t->first_row[a] +
							   __popc(mask & ((1u << token) - 1))) *
								  pitch +
							  lane % 4 * 16
						: NULL;
		};

		turn_to(first);
#pragma unroll 1
		for (struct few_walk at = walk_from(first, n_tiles); at.a < end; walk_on(&at, by)) {
			copy_async_wait<DOWN_DEPTH - 2>();
			__syncwarp();
			copy();
			if (at.a != of)
				turn_to(at.a);
			multiply<WEIGHT_INT4, 1, 1, 1>(
				acc, own + slot, 2 * at.tile + 1 < groups, lane,
				[&](int, int, int group) {
					return row ? *(const uint4 *)(row + at.tile * 128 +
								      group * 64)
						   : make_uint4(0, 0, 0, 0);
				});
			slot = slot + BYTES == DOWN_DEPTH * BYTES ? 0 : slot + BYTES;
		}
		turn_to(end);
		few_leave(sums, strip - batch, is_first, out);
	}
	copy_async_wait<0>();
	__syncthreads();
}

static __device__ __forceinline__ void add_to_y(const struct moe_few &g, const float *sums,
						uint32_t first, uint32_t n)
{
	for (uint32_t i = threadIdx.x; i < n * STRIP_ROWS * g.tokens; i += FEW_THREADS) {
		const uint32_t slot = i / STRIP_ROWS / g.tokens, token = i / STRIP_ROWS % g.tokens;
		const uint32_t row = (first + slot) * STRIP_ROWS + i % STRIP_ROWS;

		if (row < g.dim)
			g.y[(size_t)token * g.dim + row] += few_total(sums, slot,
									     i % STRIP_ROWS, token);
	}
}

/* Who chose what, and how much it weighs. */
static __device__ __forceinline__ uint32_t fill_tables(const struct moe_few &g,
						       struct down_tables *t)
{
	const uint32_t n = active_find(&t->active, g.chosen, g.tokens, g.top_k, g.experts);

#pragma unroll 1
	for (uint32_t i = threadIdx.x; i < n * FEW_TOKENS; i += FEW_THREADS) {
		const uint32_t a = i / FEW_TOKENS, token = i % FEW_TOKENS;

		t->weights[a][token] =
			t->active.tokens[a] >> token & 1
				? g.weights[token * g.top_k + t->active.choice[a][token]]
				: 0;
	}
	__syncthreads();
	return n;
}

/* A block has slots for all of its strips. */
static __global__ void __launch_bounds__(FEW_THREADS, 2) k_moe_down_few(const struct moe_few g)
{
	__shared__ struct down_tables tables;
	const uint32_t first = few_share(strips_of(g.dim), blockIdx.x, gridDim.x);
	const uint32_t last = few_share(strips_of(g.dim), blockIdx.x + 1, gridDim.x);
	const uint32_t pitch = few_pitch(g.shared_run * TILE_COLS);
	const uint32_t lane = threadIdx.x % 32, shared_row = g.tokens * g.top_k;
	const uint32_t groups = groups_of(g.shared_dim);
	float *sums = shared_memory<float>();
	char *ring = (char *)(sums + g.down_slots * FEW_SLOT), *rows = ring + DOWN_RING;
	uint32_t n_active = 0;
	const auto fill = [&](uint32_t tile, uint32_t n) {
		copy_hidden(rows, pitch, g, g.tokens, tile, n,
			    [&](uint32_t i) { return shared_row + i; });
	};
	const struct few_span span = { first, g.shared_down ? last : first, g.down_slots,
				       tiles_of(g.shared_dim), g.shared_run };

	pdl_release();
	few_run<WEIGHT_BF16, 1, SHARED_DOWN_DEPTH>(
		span, few_rows(rows, pitch, g.tokens, lane), sums, ring, groups, 0,
		[&](uint32_t item) { return strip_at<WEIGHT_BF16>(g.shared_down, item, groups); },
		[&] {
			pdl_wait();
			n_active = fill_tables(g, &tables);
			if (g.shared_down)
				fill(0, g.shared_run);
			__syncthreads();
		},
		fill, [&](uint32_t, uint32_t) {});

	for (uint32_t a = 0, next, n_rows; a < n_active; a = next) {
		next = take_experts(&tables, g.room_rows, a, n_active, &n_rows);
		__syncthreads();
		run_experts(g, &tables, sums, ring, rows, first, last, a, next, n_rows,
			    !g.shared_down && a == 0);
	}
	if (g.shared_down || n_active)
		add_to_y(g, sums, first, last - first);
}

static uint32_t max_of(uint32_t a, uint32_t b)
{
	return a > b ? a : b;
}

static uint32_t ffn_dim_of(const struct moe_weights *w, uint32_t top_k)
{
	return top_k ? w->gate[0].rows : 0;
}

static uint32_t shared_dim_of(const struct moe_weights *w)
{
	return w->shared_gate.kind == WEIGHT_NONE ? 0 : w->shared_gate.rows;
}

/* Bytes of shared memory that a block takes besides what is static: two fit, where a multiprocessor has many. */
static uint32_t block_room(const struct dev *dev)
{
	const size_t most = dev->shared_max - 2048;

	return (uint32_t)(most < BLOCK_ROOM ? most : BLOCK_ROOM);
}

/* Rows of h that a block of down can hold beside its slots. */
static uint32_t room_rows(const struct dev *dev, uint32_t ffn_dim, uint32_t slots)
{
	const uint32_t others = DOWN_RING + slots * FEW_SLOT * (uint32_t)sizeof(float);

	return (block_room(dev) - others) / (2 * few_pitch(padded_cols(ffn_dim)));
}

bool moe_is_few(const struct dev *dev, const struct moe_weights *w, uint32_t tokens, uint32_t top_k)
{
	return tokens <= MOE_FEW_TOKENS && tokens * top_k <= ACTIVE_MAX && moe_is_regular(w, top_k) &&
	       (top_k == 0 || room_rows(dev, w->gate[0].rows, FEW_SLOTS) >= tokens);
}

static uint32_t hidden_cols(uint32_t ffn_dim, uint32_t shared_dim)
{
	return padded_cols(ffn_dim > shared_dim ? ffn_dim : shared_dim);
}

size_t moe_few_scratch(const struct op_limits *l)
{
	const uint32_t tokens = l->tokens < MOE_FEW_TOKENS ? l->tokens : MOE_FEW_TOKENS;

	return split_bytes((size_t)tokens * (l->top_k + 1), l->ffn_dim) + 256;
}

static int launch_moe(struct stream *st, struct moe_few *g)
{
	const uint32_t blocks = 2 * st->dev->n_sm, strips = strips_of(g->dim);
	const uint32_t most = strips_of(g->shared_dim) +
			      g->tokens * g->top_k * strips_of(g->ffn_dim);
	struct few_plan up, down;
	size_t routed = 0;
	int r;

	up = few_plan_of(block_room(st->dev), UP_RING, most, 2, UP_SLOTS, blocks, g->tokens,
			 tiles_of(g->dim));
	g->up_slots = up.slots;
	g->up_run = up.run_tiles;
	r = launch(st, LAUNCH_PDL, k_moe_up_few, up.blocks, FEW_THREADS, up.shared_bytes, *g);
	if (r < 0)
		return r;

	down = few_plan_of(block_room(st->dev), DOWN_RING, strips, 1, FEW_SLOTS,
			   max_of(blocks, ceil_div(strips, FEW_SLOTS)), g->tokens,
			   g->shared_dim ? tiles_of(g->shared_dim) : 1);
	g->down_slots = down.slots;
	g->shared_run = down.run_tiles;
	if (g->top_k) {
		const uint32_t n = g->tokens * g->top_k;

		g->room_rows = room_rows(st->dev, g->ffn_dim, down.slots);
		if (g->room_rows > n)
			g->room_rows = n;
		routed = DOWN_RING + down.slots * FEW_SLOT * sizeof(float) +
			 (size_t)2 * g->room_rows * few_pitch(padded_cols(g->ffn_dim));
	}
	return launch(st, LAUNCH_PDL, k_moe_down_few, down.blocks, FEW_THREADS,
		      routed > down.shared_bytes ? routed : down.shared_bytes, *g);
}

int moe_few(struct stream *st, const struct tensor *y, const struct tensor *x,
	    const struct moe_weights *w, uint32_t top_k, const uint32_t *chosen,
	    const float *weights)
{
	struct moe_few g = {};
	size_t at = 0;

	g.tokens = x->shape[1];
	g.top_k = top_k;
	g.dim = x->shape[2];
	g.ffn_dim = ffn_dim_of(w, top_k);
	g.shared_dim = shared_dim_of(w);
	g.h_cols = hidden_cols(g.ffn_dim, g.shared_dim);
	g.h = (uint16_t *)matrix_scratch_take(st, &at,
					      split_bytes(g.tokens * (top_k + 1), g.h_cols));
	if (!g.h)
		return -EINVAL;
	if (top_k) {
		g.experts = w->experts;
		g.gate = experts_of(w->gate, w->experts);
		g.up = experts_of(w->up, w->experts);
		g.down = experts_of(w->down, w->experts);
	}
	if (g.shared_dim) {
		g.shared_gate = (const char *)w->shared_gate.data;
		g.shared_up = (const char *)w->shared_up.data;
		g.shared_down = (const char *)w->shared_down.data;
	}
	g.x = (const float *)x->data;
	g.y = (float *)y->data;
	g.chosen = chosen;
	g.weights = weights;
	return launch_moe(st, &g);
}
