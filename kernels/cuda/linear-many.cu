/* op_linears() for more tokens than 4 by kernels of ours, and the split form of a batch. */
#include "kernels/cuda/choice.h"
#include "kernels/cuda/many.h"
#include "kernels/cuda/matrix.h"

#define SPLIT_THREADS 256
#define SPLITS_MAX 16
#define SPLIT_TILES_MIN 8 /* of a row, for a block of its own */

/* A thread takes four columns at a time. */
static __global__ void k_split(uint16_t *to, const float *x, uint32_t cols)
{
	const uint32_t row = blockIdx.x, padded = padded_cols(cols);
	uint16_t *high = to + (size_t)row * 2 * padded;
	const float *from = x + (size_t)row * cols;
	const bool is_aligned = cols % 4 == 0 && (uintptr_t)x % 16 == 0;

	pdl_release();
	pdl_wait();
	for (uint32_t c = threadIdx.x * 4; c < padded; c += SPLIT_THREADS * 4) {
		const float4 v = four_columns(from, c, cols, is_aligned);
		uint2 h, l;

		split_pair(&h.x, &l.x, v.x, v.y);
		split_pair(&h.y, &l.y, v.z, v.w);
		*(uint2 *)(high + c) = h;
		*(uint2 *)(high + padded + c) = l;
	}
}

size_t split_bytes(size_t rows, uint32_t cols)
{
	return rows * 2 * padded_cols(cols) * sizeof(uint16_t);
}

int split_rows(struct stream *st, uint16_t *to, const float *x, uint32_t rows, uint32_t cols)
{
	return launch(st, LAUNCH_PDL, k_split, rows, SPLIT_THREADS, 0, to, x, cols);
}

struct many_job {
	const char *w;
	const float *bias; /* NULL: none */
	float *y;
	uint32_t rows, first_strip; /* of all jobs' strips behind one another */
	bool add;
};

struct many_linears {
	struct many_job jobs[OP_LINEARS_MAX];
	const uint16_t *x;  /* split */
	float *sums;	    /* [tile][split][element][thread], if n_splits > 1 */
	uint32_t *arrivals; /* [tile] */
	uint32_t n_jobs, n_strips, cols, tokens, n_splits;
};

static __device__ __forceinline__ const struct many_job &job_of(const struct many_linears &g,
								uint32_t strip)
{
	uint32_t i = 0;

	while (i + 1 < g.n_jobs && strip >= g.jobs[i + 1].first_strip)
		i++;
	return g.jobs[i];
}

/* Parts of one tile come from several blocks: the last one that is done adds them up, in their order. */
template <int N>
static __device__ __forceinline__ bool add_splits(float (&acc)[N], const struct many_linears &g)
{
	__shared__ uint32_t arrived;
	const uint32_t tile = blockIdx.y * gridDim.x + blockIdx.x;
	float *sums = g.sums + (size_t)tile * g.n_splits * N * MANY_THREADS + threadIdx.x;

	if (g.n_splits == 1)
		return true;
#pragma unroll
	for (int i = 0; i < N; i++)
		sums[((size_t)blockIdx.z * N + i) * MANY_THREADS] = acc[i];
	__threadfence();
	__syncthreads();
	if (threadIdx.x == 0)
		arrived = atomicInc(g.arrivals + tile, g.n_splits - 1);
	__syncthreads();
	if (arrived != g.n_splits - 1)
		return false;
	__threadfence();
#pragma unroll
	for (int i = 0; i < N; i++)
		acc[i] = 0;
	for (uint32_t split = 0; split < g.n_splits; split++)
#pragma unroll
		for (int i = 0; i < N; i++)
			acc[i] += __ldcg(&sums[((size_t)split * N + i) * MANY_THREADS]);
	return true;
}

template <int KIND, int M, int NT>
static __global__ void __launch_bounds__(MANY_THREADS, MANY_BLOCKS)
	k_linears_many(const struct many_linears g)
{
	__shared__ uint32_t which[NT * 8];
	const uint32_t first_token = blockIdx.x * NT * 8, groups = groups_of(g.cols);
	const uint32_t first_strip = (blockIdx.y * MANY_WARPS + threadIdx.x / 32) * M;
	const uint32_t n_tiles = tiles_of(g.cols);
	const uint32_t first = (uint32_t)((uint64_t)n_tiles * blockIdx.z / g.n_splits);
	const uint32_t end = (uint32_t)((uint64_t)n_tiles * (blockIdx.z + 1) / g.n_splits);
	float acc[M][NT][4] = {};
	const char *strips[M];

	pdl_release();
#pragma unroll
	for (uint32_t m = 0; m < M; m++) {
		const uint32_t strip = min(first_strip + m, g.n_strips - 1);
		const struct many_job &job = job_of(g, strip);

		strips[m] = strip_at<KIND>(job.w, strip - job.first_strip, groups);
	}
	if (threadIdx.x < NT * 8)
		which[threadIdx.x] = min(first_token + threadIdx.x, g.tokens - 1);
	__syncthreads();
	pdl_wait();
	many_product<KIND, M, NT>(acc, strips, first_strip < g.n_strips, g.cols,
				  { g.x, padded_cols(g.cols), which }, shared_memory<char>(), first,
				  end);
	if (!add_splits(reinterpret_cast<float(&)[M * NT * 4]>(acc), g))
		return;
#pragma unroll
	for (uint32_t m = 0; m < M; m++) {
		if (first_strip + m >= g.n_strips)
			break;
		const struct many_job &job = job_of(g, first_strip + m);

#pragma unroll
		for (int i = 0; i < NT * 4; i++) {
			const uint32_t row = (first_strip + m - job.first_strip) * STRIP_ROWS +
					     many_row(i % 4);
			const uint32_t token = first_token + many_token(i / 4, i % 4);
			float *y = job.y + (size_t)token * job.rows + row;
			float sum = acc[m][i / 4][i % 4];

			if (row >= job.rows || token >= g.tokens)
				continue;
			if (job.bias)
				sum += job.bias[row];
			*y = job.add ? *y + sum : sum;
		}
	}
}

/* So many that a device is full twice, if the row is long enough. */
static uint32_t splits_of(const struct dev *dev, uint32_t blocks, uint32_t n_tiles)
{
	uint32_t n = 2 * dev->n_sm / blocks;

	if (n > n_tiles / SPLIT_TILES_MIN)
		n = n_tiles / SPLIT_TILES_MIN;
	return n < 1 ? 1 : n > SPLITS_MAX ? SPLITS_MAX : n;
}

/* Blocks of tokens are side by side: what they read of the weights is read from memory once. */
template <int KIND, int M, int NT> static int launch_many(struct stream *st, struct many_linears *g)
{
	const uint32_t high = ceil_div(g->n_strips, MANY_WARPS * M);
	const uint32_t wide = ceil_div(g->tokens, NT * 8);

	g->n_splits = M == 1 ? splits_of(st->dev, high * wide, tiles_of(g->cols)) : 1;
	return launch(st, LAUNCH_PDL, k_linears_many<KIND, M, NT>, dim3(wide, high, g->n_splits),
		      MANY_THREADS, many_shared_bytes<KIND, M, NT>, *g);
}

static int launch_bf16(struct stream *st, struct many_linears *g)
{
	if (g->tokens <= 8)
		return launch_many<WEIGHT_BF16, 1, 1>(st, g);
	if (g->tokens <= 16)
		return launch_many<WEIGHT_BF16, 1, 2>(st, g);
	if (g->tokens <= 32)
		return launch_many<WEIGHT_BF16, 1, 4>(st, g);
	/* twice the rows a block for the same activations, if there are blocks enough without splitting rows */
	if (ceil_div(g->n_strips, MANY_WARPS * 2) * ceil_div(g->tokens, 64) < 2 * st->dev->n_sm)
		return launch_many<WEIGHT_BF16, 1, 8>(st, g);
	return launch_many<WEIGHT_BF16, 2, 8>(st, g);
}

/* The jobs of one kind, in one launch. */
static int launch_kind(struct stream *st, enum weight_kind kind, const struct linear_job *jobs,
		       uint32_t n_jobs, struct many_linears *g)
{
	g->n_jobs = g->n_strips = 0;
	for (const struct linear_job *job = jobs; job < jobs + n_jobs; job++) {
		if (job->w->kind != kind)
			continue;
		g->jobs[g->n_jobs++] = { (const char *)job->w->data,
					 (const float *)job->bias.data,
					 (float *)job->y.data,
					 job->w->rows,
					 g->n_strips,
					 job->add };
		g->n_strips += strips_of(job->w->rows);
	}
	if (g->n_jobs == 0)
		return 0;
	if (kind == WEIGHT_F32)
		return launch_many<WEIGHT_F32, 1, 4>(st, g);
	if (kind == WEIGHT_INT4)
		return g->tokens <= 8 ? launch_many<WEIGHT_INT4, 1, 1>(st, g)
				      : launch_many<WEIGHT_INT4, 1, 4>(st, g);
	if (kind == WEIGHT_INT4_F32)
		return launch_many<WEIGHT_INT4_F32, 1, 4>(st, g);
	return launch_bf16(st, g);
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
	struct many_linears g = {};
	size_t at = 0;
	uint16_t *split = (uint16_t *)matrix_scratch_take(st, &at, split_bytes(tokens, cols));
	const size_t split_end = at;
	int r;

	g.sums = (float *)matrix_scratch_take(st, &at, sums_bytes(st->dev));
	if (!split || !g.sums)
		return -EINVAL;
	g.x = split;
	g.arrivals = st->counters;
	g.cols = cols;
	g.tokens = tokens;
	r = split_rows(st, split, (const float *)x->data, tokens, cols);
	/* what the library works in is where our sums would be */
	if (r == 0)
		r = choice_run(st, jobs, n_jobs, split, tokens, cols, split_end);
	for (int kind = r > 0 ? WEIGHT_F32 : WEIGHT_BF16; kind <= WEIGHT_INT4_F32 && r >= 0; kind++)
		r = launch_kind(st, (enum weight_kind)kind, jobs, n_jobs, &g);
	return r;
}
