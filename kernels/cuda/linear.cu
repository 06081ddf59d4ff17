/* op_linears() for 1 to 4 tokens, and op_embed(). */
#include "kernels/cuda/few-linears.h"

template <int KIND, int DEPTH>
static __global__ void __launch_bounds__(FEW_THREADS, 2) k_linears_few(const struct few_linears g)
{
	pdl_release();
	run_linears<KIND, DEPTH>(g, {}, [] { pdl_wait(); }, [](uint32_t, uint32_t) {});
}

template <int KIND, int DEPTH> static int launch_few(struct stream *st, struct few_linears *g)
{
	const struct few_plan plan = few_linears_plan<KIND, DEPTH>(st->dev, g);

	return launch(st, LAUNCH_PDL, k_linears_few<KIND, DEPTH>, plan.blocks, FEW_THREADS,
		      plan.shared_bytes, *g);
}

/* The jobs of one kind, in one launch. */
static int linears_few(struct stream *st, enum weight_kind kind, const struct linear_job *jobs,
		       uint32_t n_jobs, const struct tensor *x)
{
	struct few_linears g = few_linears_of(kind, jobs, n_jobs, x);

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
		if (!linear_job_fits(&jobs[i], x))
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
