/* op_linears() for more tokens than 8, and the split form of a batch. */
#include "kernels/cuda/many.h"
#include "kernels/cuda/matrix.h"

#define SPLIT_THREADS 256
#define ADD_THREADS 256
#define SPLITS_MAX 16
#define SPLIT_TILES_MIN 8 /* of a row, for a block of its own */

static __global__ void k_split(uint16_t *to, const float *x, uint32_t cols)
{
	const uint32_t row = blockIdx.x, padded = padded_cols(cols);
	uint32_t *high = (uint32_t *)(to + (size_t)row * 2 * padded), *low = high + padded / 2;
	const float *from = x + (size_t)row * cols;

	pdl_release();
	pdl_wait();
	for (uint32_t i = threadIdx.x; i < padded / 2; i += SPLIT_THREADS)
		split_pair(&high[i], &low[i], 2 * i < cols ? from[2 * i] : 0,
			   2 * i + 1 < cols ? from[2 * i + 1] : 0);
}

size_t split_bytes(size_t rows, uint32_t cols)
{
	return rows * 2 * padded_cols(cols) * sizeof(uint16_t);
}

int split_rows(struct stream *st, uint16_t *to, const float *x, uint32_t rows, uint32_t cols)
{
	return launch(st, LAUNCH_PDL, k_split, rows, SPLIT_THREADS, 0, to, x, cols);
}

struct many_linear {
	const char *w;
	const float *bias; /* NULL: none */
	float *y;
	const uint16_t *x; /* split */
	float *sums;	   /* [n_splits][tokens][rows], if n_splits > 1 */
	uint32_t rows, cols, tokens, n_splits;
	bool add;
};

template <int KIND, int NT>
static __global__ void __launch_bounds__(MANY_THREADS, MANY_BLOCKS) k_linear_many(const struct many_linear g)
{
	__shared__ uint32_t which[NT * 8];
	const uint32_t first_row = blockIdx.x * MANY_ROWS, first_token = blockIdx.y * NT * 8;
	const uint32_t strip = blockIdx.x * MANY_WARPS + threadIdx.x / 32;
	const uint32_t n_tiles = tiles_of(g.cols);
	const uint32_t first = (uint32_t)((uint64_t)n_tiles * blockIdx.z / g.n_splits);
	const uint32_t end = (uint32_t)((uint64_t)n_tiles * (blockIdx.z + 1) / g.n_splits);
	float acc[NT][4] = {};

	pdl_release();
	pdl_wait();
	if (threadIdx.x < NT * 8)
		which[threadIdx.x] = min(first_token + threadIdx.x, g.tokens - 1);
	__syncthreads();
	many_product<KIND, NT>(acc, g.w, strip, strip < strips_of(g.rows), g.cols,
			       { g.x, padded_cols(g.cols), which }, shared_memory<char>(), first,
			       end);
#pragma unroll
	for (int n = 0; n < NT; n++) {
#pragma unroll
		for (int i = 0; i < 4; i++) {
			const uint32_t row = first_row + many_row(i);
			const uint32_t token = first_token + many_token(n, i);
			const size_t at = (size_t)token * g.rows + row;

			if (row >= g.rows || token >= g.tokens)
				continue;
			if (g.n_splits > 1) {
				g.sums[(size_t)blockIdx.z * g.tokens * g.rows + at] = acc[n][i];
				continue;
			}
			const float sum = g.bias ? acc[n][i] + g.bias[row] : acc[n][i];

			g.y[at] = g.add ? g.y[at] + sum : sum;
		}
	}
}

static __global__ void k_add_splits(const struct many_linear g)
{
	const size_t n = (size_t)g.tokens * g.rows;
	const size_t at = (size_t)blockIdx.x * ADD_THREADS + threadIdx.x;
	float sum = 0;

	pdl_release();
	pdl_wait();
	if (at >= n)
		return;
	for (uint32_t i = 0; i < g.n_splits; i++)
		sum += g.sums[i * n + at];
	if (g.bias)
		sum += g.bias[at % g.rows];
	g.y[at] = g.add ? g.y[at] + sum : sum;
}

/* So many that a device is full twice, if the row is long enough. */
static uint32_t splits_of(const struct dev *dev, uint32_t blocks, uint32_t n_tiles)
{
	uint32_t n = 2 * dev->n_sm / blocks;

	if (n > n_tiles / SPLIT_TILES_MIN)
		n = n_tiles / SPLIT_TILES_MIN;
	return n < 1 ? 1 : n > SPLITS_MAX ? SPLITS_MAX : n;
}

template <int KIND, int NT> static int launch_many(struct stream *st, struct many_linear *g)
{
	const uint32_t high = ceil_div(g->rows, MANY_ROWS), wide = ceil_div(g->tokens, NT * 8);
	int r;

	g->n_splits = splits_of(st->dev, high * wide, tiles_of(g->cols));
	r = launch(st, LAUNCH_PDL, k_linear_many<KIND, NT>, dim3(high, wide, g->n_splits),
		   MANY_THREADS, many_shared_bytes<NT>, *g);
	if (r < 0 || g->n_splits == 1)
		return r;
	return launch(st, LAUNCH_PDL, k_add_splits,
		      (uint32_t)(((size_t)g->tokens * g->rows + ADD_THREADS - 1) / ADD_THREADS),
		      ADD_THREADS, 0, *g);
}

static int launch_job(struct stream *st, enum weight_kind kind, struct many_linear *g)
{
	if (kind == WEIGHT_F32)
		return launch_many<WEIGHT_F32, 4>(st, g);
	if (kind == WEIGHT_INT4)
		return launch_many<WEIGHT_INT4, 4>(st, g);
	if (kind == WEIGHT_INT4_F32)
		return launch_many<WEIGHT_INT4_F32, 4>(st, g);
	if (g->tokens <= 16)
		return launch_many<WEIGHT_BF16, 2>(st, g);
	if (g->tokens <= 32)
		return launch_many<WEIGHT_BF16, 4>(st, g);
	return launch_many<WEIGHT_BF16, 8>(st, g);
}

/* Sums of at most two blocks a multiprocessor, of the largest tile. */
static size_t sums_bytes(const struct dev *dev)
{
	return (size_t)2 * dev->n_sm * MANY_ROWS * 64 * sizeof(float);
}

size_t linears_many_scratch(const struct dev *dev, uint32_t tokens, uint32_t cols)
{
	return split_bytes(tokens, cols) + sums_bytes(dev) + 1024;
}

int linears_many(struct stream *st, const struct linear_job *jobs, uint32_t n_jobs,
		 const struct tensor *x)
{
	const uint32_t tokens = x->shape[1], cols = x->shape[2];
	size_t at = 0;
	uint16_t *split = (uint16_t *)matrix_scratch_take(st, &at, split_bytes(tokens, cols));
	float *sums = (float *)matrix_scratch_take(st, &at, sums_bytes(st->dev));
	int r;

	if (!split || !sums)
		return -EINVAL;
	r = split_rows(st, split, (const float *)x->data, tokens, cols);
	for (const struct linear_job *job = jobs; job < jobs + n_jobs && r == 0; job++) {
		struct many_linear g = {};

		g.w = (const char *)job->w->data;
		g.bias = (const float *)job->bias.data;
		g.y = (float *)job->y.data;
		g.x = split;
		g.sums = sums;
		g.rows = job->w->rows;
		g.cols = cols;
		g.tokens = tokens;
		g.add = job->add;
		r = launch_job(st, job->w->kind, &g);
	}
	return r;
}
