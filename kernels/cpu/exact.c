/* Matrix operations of ISA_REF: packed weights in double, rounded once at the end. */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/exact.h"
#include "kernels/cpu/moe-parts.h"
#include "kernels/cpu/pack.h"

struct exact_linears {
	const struct linear_job *job;
	const struct tensor *x;
	double *rows; /* [n_threads][cols] */
};

static double dot(const double *w, const float *x, uint32_t n)
{
	double sum = 0;

	for (uint32_t c = 0; c < n; c++)
		sum += w[c] * x[c];
	return sum;
}

static void run_linear(void *userdata, uint32_t thread, uint32_t n_threads)
{
	const struct exact_linears *e = userdata;
	const uint32_t tokens = e->x->shape[1], cols = e->x->shape[2], rows = e->job->w->rows;
	const float *bias = e->job->bias.data;
	double *w = e->rows + (size_t)thread * cols;
	uint32_t from, to;

	share_of(rows, thread, n_threads, &from, &to);
	for (uint32_t row = from; row < to; row++) {
		unpack_row(w, e->job->w, row);
		for (uint32_t t = 0; t < tokens; t++) {
			float *y = (float *)e->job->y.data + (size_t)t * rows + row;
			double sum = dot(w, (const float *)e->x->data + (size_t)t * cols, cols);

			if (bias)
				sum += bias[row];
			*y = (float)(e->job->add ? *y + sum : sum);
		}
	}
}

int exact_linear(struct stream *st, const struct linear_job *job, const struct tensor *x)
{
	struct exact_linears e = { .job = job, .x = x };
	size_t at = 0;

	e.rows = scratch_take(st, &at, (size_t)st->dev->n_threads * x->shape[2] * sizeof(double));
	if (!e.rows)
		return -EINVAL;
	pool_run(st->dev, run_linear, &e);
	return 0;
}

struct exact_moes {
	const struct moe_part *parts;
	uint32_t n_parts, tokens, dim, cols_max;
	float *y;
	const float *x;
	double *rows; /* [n_threads][2][cols_max] */
	double **h;   /* [n_parts]: [n][ffn_dim] */
	double *sums; /* [n_threads][tokens] */
};

static void run_gate_up(void *userdata, uint32_t thread, uint32_t n_threads)
{
	const struct exact_moes *e = userdata;
	double *gate = e->rows + (size_t)thread * 2 * e->cols_max, *up = gate + e->cols_max;

	for (uint32_t i = 0; i < e->n_parts; i++) {
		const struct moe_part *p = &e->parts[i];
		uint32_t from, to;

		share_of(p->ffn_dim, thread, n_threads, &from, &to);
		for (uint32_t row = from; row < to; row++) {
			unpack_row(gate, p->gate, row);
			unpack_row(up, p->up, row);
			for (uint32_t a = 0; a < p->n; a++) {
				const float *x = e->x + (size_t)p->tokens[a] * e->dim;
				const double z = dot(gate, x, e->dim);

				e->h[i][(size_t)a * p->ffn_dim + row] = z / (1 + exp(-z)) *
									dot(up, x, e->dim);
			}
		}
	}
}

static void run_down(void *userdata, uint32_t thread, uint32_t n_threads)
{
	const struct exact_moes *e = userdata;
	double *w = e->rows + (size_t)thread * 2 * e->cols_max;
	double *sums = e->sums + (size_t)thread * e->tokens;
	uint32_t from, to;

	share_of(e->dim, thread, n_threads, &from, &to);
	for (uint32_t row = from; row < to; row++) {
		memset(sums, 0, e->tokens * sizeof(*sums));
		for (uint32_t i = 0; i < e->n_parts; i++) {
			const struct moe_part *p = &e->parts[i];

			unpack_row(w, p->down, row);
			for (uint32_t a = 0; a < p->n; a++) {
				const double *h = e->h[i] + (size_t)a * p->ffn_dim;
				double sum = 0;

				for (uint32_t c = 0; c < p->ffn_dim; c++)
					sum += w[c] * h[c];
				sums[p->tokens[a]] += p->weights ? p->weights[a] * sum : sum;
			}
		}
		for (uint32_t t = 0; t < e->tokens; t++) {
			float *y = e->y + (size_t)t * e->dim + row;

			*y = (float)(*y + sums[t]);
		}
	}
}

int exact_moe(struct stream *st, size_t at, float *y, const float *x, uint32_t tokens, uint32_t dim,
	      const struct moe_part *parts, uint32_t n_parts)
{
	const uint32_t n_threads = st->dev->n_threads;
	struct exact_moes e = {
		.parts = parts,
		.n_parts = n_parts,
		.tokens = tokens,
		.dim = dim,
		.cols_max = dim,
		.y = y,
		.x = x,
	};

	e.h = scratch_take(st, &at, n_parts * sizeof(*e.h));
	for (uint32_t i = 0; i < n_parts && e.h; i++) {
		if (parts[i].ffn_dim > e.cols_max)
			e.cols_max = parts[i].ffn_dim;
		e.h[i] = scratch_take(st, &at,
				      (size_t)parts[i].n * parts[i].ffn_dim * sizeof(double));
		if (!e.h[i])
			return -EINVAL;
	}
	e.rows = scratch_take(st, &at, (size_t)n_threads * 2 * e.cols_max * sizeof(double));
	e.sums = scratch_take(st, &at, (size_t)n_threads * tokens * sizeof(double));
	if (!e.h || !e.rows || !e.sums)
		return -EINVAL;
	pool_run(st->dev, run_gate_up, &e);
	pool_run(st->dev, run_down, &e);
	return 0;
}
