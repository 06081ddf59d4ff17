/* op_linears() for 1 to 4 tokens: what its kernel and that of op_layer_in() have in common. */
#pragma once

#include "kernels/cuda/few.h"
#include "kernels/cuda/matrix.h"

#define SHARED_OF_MANY (160 << 10) /* cards that have less have 99 KiB for a block */
#define FEW_STATIC (16 << 10)	   /* bytes of shared memory that kernels may have besides */

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

/* Strips of a block, and rows as they are filled: op_layer_in() normalises them. */
template <int KIND, int DEPTH, typename READY, typename FINISH>
static __device__ __forceinline__ void run_linears(const struct few_linears &g,
						   const struct few_norm &norm, READY ready,
						   FINISH finish)
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
		few_fill(rows, pitch, g.x, g.cols, g.tokens, tile * TILE_COLS, n * TILE_COLS, norm);
	};

	few_run<KIND, 1, DEPTH>(
		span, few_rows(rows, pitch, g.tokens, lane), sums, ring, groups_of(g.cols), 0,
		[&](uint32_t number) { return find_strip<KIND>(g, number); },
		[&] {
			ready();
			fill(0, g.run_tiles);
			__syncthreads();
		},
		fill,
		[&](uint32_t first, uint32_t n) {
			write_strips(g, sums, first, n);
			finish(first, n);
		});
}

/* The jobs of one kind, but for how they are divided among blocks. On the host. */
static inline struct few_linears few_linears_of(enum weight_kind kind, const struct linear_job *jobs,
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
	return g;
}

/*
 * One block a multiprocessor, so that all have as much to do; what it has under way
 * is as much as two would have. Returns the blocks and their shared memory.
 */
template <int KIND, int DEPTH>
static inline struct few_plan few_linears_plan(const struct dev *dev, struct few_linears *g)
{
	const struct few_plan plan = few_plan_of(dev->shared_max - FEW_STATIC,
						 few_ring_bytes<KIND, 1, DEPTH>, g->n_strips, 1,
						 FEW_SLOTS, dev->n_sm, g->tokens, tiles_of(g->cols));

	g->slots = plan.slots;
	g->run_tiles = plan.run_tiles;
	return plan;
}
