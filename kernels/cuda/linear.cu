/* op_linears() for 1 to 4 tokens, and op_embed(). */
#include "kernels/cuda/few.h"
#include "kernels/cuda/matrix.h"

#define SHARED_OF_MANY (160 << 10) /* cards that have less have 99 KiB for a block */

struct few_job {
	const char *w;
	const float *bias; /* NULL: none */
	float *y;
	uint32_t rows, first_strip; /* of all jobs' strips behind one another */
	bool add;
};

struct few_linears {
	struct few_job jobs[OP_LINEARS_MAX];
	const float *x;
	uint32_t n_jobs, n_strips, tokens, cols;
	uint32_t slots, run_tiles; /* as planned */
};

static __device__ __forceinline__ const struct few_job &job_of(const struct few_linears &g,
							       uint32_t strip)
{
	uint32_t i = 0;

	while (i + 1 < g.n_jobs && strip >= g.jobs[i + 1].first_strip)
		i++;
	return g.jobs[i];
}

template <int KIND>
static __device__ __forceinline__ const char *find_strip(const struct few_linears &g, uint32_t number)
{
	const struct few_job &job = job_of(g, number);

	return strip_at<KIND>(job.w, number - job.first_strip, groups_of(g.cols));
}

/* Adds up @n strips and writes their rows of y. */
static __device__ __forceinline__ void write_strips(const struct few_linears &g, const float *sums,
						    uint32_t first, uint32_t n)
{
	for (uint32_t i = threadIdx.x; i < n * STRIP_ROWS * g.tokens; i += FEW_THREADS) {
		const uint32_t token = i / STRIP_ROWS % g.tokens;
		const uint32_t slot = i / STRIP_ROWS / g.tokens;
		const struct few_job &job = job_of(g, first + slot);
		const uint32_t row = (first + slot - job.first_strip) * STRIP_ROWS + i % STRIP_ROWS;
		float *y = job.y + (size_t)token * job.rows + row;
		float sum;

		if (row >= job.rows)
			continue;
		sum = few_total(sums, slot, i % STRIP_ROWS, token);
		if (job.bias)
			sum += job.bias[row];
		*y = job.add ? *y + sum : sum;
	}
}

template <int KIND, int DEPTH>
static __global__ void __launch_bounds__(FEW_THREADS, 2) k_linears_few(const struct few_linears g)
{
	const uint32_t n_tiles = tiles_of(g.cols), lane = threadIdx.x % 32;
	const uint32_t pitch = few_pitch(g.run_tiles * TILE_COLS);
	float *sums = shared_memory<float>();
	char *ring = (char *)(sums + g.slots * FEW_SLOT);
	char *rows = ring + few_ring_bytes<KIND, 1, DEPTH>;
	const struct few_span span = { few_share(g.n_strips, blockIdx.x, gridDim.x),
				       few_share(g.n_strips, blockIdx.x + 1, gridDim.x), g.slots,
				       n_tiles, g.run_tiles };
	const auto fill = [&](uint32_t tile, uint32_t n) {
		few_fill(rows, pitch, g.x, g.cols, g.tokens, tile * TILE_COLS, n * TILE_COLS);
	};

	pdl_release();
	few_run<KIND, 1, DEPTH>(
		span, few_rows(rows, pitch, g.tokens, lane), sums, ring, groups_of(g.cols), 0,
		[&](uint32_t number) { return find_strip<KIND>(g, number); },
		[&] {
			pdl_wait();
			fill(0, g.run_tiles);
			__syncthreads();
		},
		fill, [&](uint32_t first, uint32_t n) { write_strips(g, sums, first, n); });
}

/* One block a multiprocessor, so that all have as much to do; what it has under way is as much as two would have. */
template <int KIND, int DEPTH> static int launch_few(struct stream *st, struct few_linears *g)
{
	const struct few_plan plan = few_plan_of(st->dev->shared_max - 1024,
						 few_ring_bytes<KIND, 1, DEPTH>, g->n_strips, 1,
						 FEW_SLOTS, st->dev->n_sm, g->tokens,
						 tiles_of(g->cols));

	g->slots = plan.slots;
	g->run_tiles = plan.run_tiles;
	return launch(st, LAUNCH_PDL, k_linears_few<KIND, DEPTH>, plan.blocks, FEW_THREADS,
		      plan.shared_bytes, *g);
}

/* The jobs of one kind, in one launch. */
static int linears_few(struct stream *st, enum weight_kind kind, const struct linear_job *jobs,
		       uint32_t n_jobs, const struct tensor *x)
{
	struct few_linears g = {};

	g.x = (const float *)x->data;
	g.tokens = x->shape[1];
	g.cols = x->shape[2];
	for (const struct linear_job *job = jobs; job < jobs + n_jobs; job++) {
		if (job->w->kind != kind)
			continue;
		g.jobs[g.n_jobs++] = { (const char *)job->w->data,
				       (const float *)job->bias.data,
				       (float *)job->y.data,
				       job->w->rows,
				       g.n_strips,
				       job->add };
		g.n_strips += strips_of(job->w->rows);
	}
	if (g.n_jobs == 0)
		return 0;
	switch (kind) {
	case WEIGHT_BF16:
		return st->dev->shared_max < SHARED_OF_MANY
			       ? launch_few<WEIGHT_BF16, 3>(st, &g)
			       : launch_few<WEIGHT_BF16, 6>(st, &g);
	case WEIGHT_F32:
		return launch_few<WEIGHT_F32, 2>(st, &g);
	case WEIGHT_INT4:
		return launch_few<WEIGHT_INT4, 12>(st, &g);
	default:
		return launch_few<WEIGHT_INT4_F32, 10>(st, &g);
	}
}

static bool job_fits(const struct linear_job *job, const struct tensor *x)
{
	const struct weight *w = job->w;

	if (!w->rows || !weight_is_whole(w, w->rows, x->shape[2]))
		return false;
	if (job->bias.data && !is_batch(&job->bias, 1, w->rows))
		return false;
	return is_batch(&job->y, x->shape[1], w->rows);
}

int op_linears(struct stream *st, const struct linear_job *jobs, uint32_t n_jobs,
	       const struct tensor *x)
{
	const uint32_t tokens = x->shape[1], cols = x->shape[2];
	int r = 0;

	if (n_jobs > OP_LINEARS_MAX || x->type != DT_F32 || x->shape[0] != 1 || !cols)
		return -EINVAL;
	if (tokens == 0)
		return 0;
	if (!x->data)
		return -EINVAL;
	for (uint32_t i = 0; i < n_jobs; i++)
		if (!job_fits(&jobs[i], x))
			return -EINVAL;
	if (tokens > FEW_TOKENS)
		return linears_many(st, jobs, n_jobs, x);
	for (int kind = WEIGHT_BF16; kind <= WEIGHT_INT4_F32 && r == 0; kind++)
		r = linears_few(st, (enum weight_kind)kind, jobs, n_jobs, x);
	return r;
}

/* One weight, wherever the layout has it. */
static __device__ float value_at(const char *w, int kind, uint32_t row, uint32_t col, uint32_t cols)
{
	const uint32_t groups = groups_of(cols), r = row % STRIP_ROWS, q = col / GROUP_COLS % 2;
	const uint32_t tile = col / TILE_COLS, n = 2 * tile + 1 < groups ? 2 : 1;
	const char *strip = w + (size_t)(row / STRIP_ROWS) * groups * group_bytes(kind);
	const uint32_t lane = r % 8 * 4 + col % GROUP_COLS / 8, c = col % 8;
	const char *scale;
	uint32_t word;

	if (kind == WEIGHT_BF16)
		return __uint_as_float(
			(uint32_t)((const uint16_t *)strip)[(size_t)r * groups * GROUP_COLS + col]
			<< 16);
	if (kind == WEIGHT_F32)
		return ((const float *)strip)[(size_t)r * groups * GROUP_COLS + col];
	word = ((const uint32_t *)(strip + tile * 512))[lane * 2 * n + q * 2 + r / 8];
	word = word >> (c % 2 * 16 + c / 2 * 4) & 15;
	scale = strip + (size_t)groups * GROUP_CODE_BYTES +
		(tile * 2 * STRIP_ROWS + (r % 8 * 2 + r / 8) * n + q) * scale_bytes(kind);
	return (float)((int)word - 8) *
	       (kind == WEIGHT_INT4 ? __uint_as_float((uint32_t) * (const uint16_t *)scale << 16)
				    : *(const float *)scale);
}

#define EMBED_THREADS 256

/* An id below @first wraps, and is not there either. */
static __global__ void k_embed(float *y, const char *table, int kind, const uint32_t *ids,
			       uint32_t first, uint32_t rows, uint32_t cols)
{
	const uint32_t c = blockIdx.x * EMBED_THREADS + threadIdx.x;
	uint32_t row;

	pdl_release();
	pdl_wait();
	if (c >= cols)
		return;
	row = ids[blockIdx.y] - first;
	y[(size_t)blockIdx.y * cols + c] = row < rows ? value_at(table, kind, row, c, cols) : 0;
}

int op_embed_part(struct stream *st, const struct tensor *y, const struct weight *table,
		  uint32_t first, uint32_t vocab, const uint32_t *ids)
{
	const uint32_t tokens = y->shape[1], cols = y->shape[2];
	const uint32_t *on_device;
	int r;

	if (y->type != DT_F32 || y->shape[0] != 1)
		return -EINVAL;
	if (tokens == 0)
		return 0;
	if (!y->data || !weight_is_whole(table, table->rows, cols))
		return -EINVAL;
	for (uint32_t t = 0; t < tokens; t++)
		if (ids[t] >= vocab)
			return -EINVAL;
	r = stage_ids(st, ids, tokens, &on_device);
	if (r < 0)
		return r;
	return launch(st, LAUNCH_PDL, k_embed, dim3(ceil_div(cols, EMBED_THREADS), tokens),
		      EMBED_THREADS, 0, (float *)y->data, (const char *)table->data,
		      (int)table->kind, on_device, first, table->rows, cols);
}
