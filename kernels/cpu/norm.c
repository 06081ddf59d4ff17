/* Root mean square normalisation, by rows. */
#include "kernels/norm.h"

#include <errno.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/ops.h"

#define ROWS_WORTH_THREADS 4

struct norm_job {
	const struct ops_kernels *ops;
	const float *x, *w;
	float *y, eps;
	uint32_t tokens, dim;
};

static void normalise_rows(void *userdata, uint32_t thread, uint32_t n_threads)
{
	const struct norm_job *job = userdata;
	uint32_t from, to;

	share_of(job->tokens, thread, n_threads, &from, &to);
	for (uint32_t t = from; t < to; t++)
		job->ops->rmsnorm(job->y + (size_t)t * job->dim, job->x + (size_t)t * job->dim,
				  job->w, job->dim, job->eps);
}

int op_rmsnorm(struct stream *st, const struct tensor *y, const struct tensor *x,
	       const struct tensor *w, float eps)
{
	struct norm_job job = {
		.ops = ops_kernels(st->dev->isa),
		.x = x->data,
		.w = w->data,
		.y = y->data,
		.eps = eps,
		.tokens = x->shape[1],
		.dim = x->shape[2],
	};

	if (st->dev->isa == ISA_REF)
		return ref_rmsnorm(y, x, w, eps);
	if (x->type != DT_F32 || y->type != DT_F32 || w->type != DT_F32 || !(eps > 0))
		return -EINVAL;
	if (job.dim == 0 || y->shape[1] != job.tokens || y->shape[2] != job.dim ||
	    w->shape[2] != job.dim)
		return -EINVAL;

	if (job.tokens < ROWS_WORTH_THREADS)
		normalise_rows(&job, 0, 1);
	else
		pool_run(st->dev, normalise_rows, &job);
	return 0;
}
