/* The stream: scratch, copies, recorded steps, and the gathering of rows. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/choice.h"
#include "kernels/cuda/cuda.h"

extern "C" {
#include "kernels/norm.h"
}

#define GATHER_THREADS 256

struct replay {
	cudaGraphExec_t graph;
};

int st_open(struct dev *dev, size_t scratch_bytes, struct stream **ret)
{
	struct stream *st = (struct stream *)calloc(1, sizeof(*st));
	const struct on_device own(dev);
	int r;

	if (!st)
		return -ENOMEM;
	st->dev = dev;
	st->scratch_bytes = scratch_bytes ? scratch_bytes : 1;
	r = CUDA_CALL(cudaStreamCreateWithFlags(&st->handle, cudaStreamNonBlocking));
	if (r == 0)
		r = stage_open(st);
	if (r == 0) {
		st->scratch = (char *)dev_reserve_named(dev, "scratch", st->scratch_bytes, DEV_CHUNK_MAX);
		r = st->scratch ? dev_back(dev, st->scratch, st->scratch_bytes) : -ENOMEM;
	}
	if (r == 0) {
		st->counters = (uint32_t *)dev_reserve_named(
			dev, "counters", STREAM_COUNTERS * sizeof(*st->counters), 0);
		r = st->counters ? dev_back(dev, st->counters,
					    STREAM_COUNTERS * sizeof(*st->counters)) :
				   -ENOMEM;
	}
	if (r < 0) {
		st_close(st);
		return r;
	}
	*ret = st;
	return 0;
}

struct stream *st_close(struct stream *st)
{
	if (!st)
		return NULL;
	const struct on_device own(st->dev);

	if (st->handle)
		(void)cudaStreamSynchronize(st->handle);
	choice_free(st->choice);
	stage_close(st);
	if (st->scratch)
		(void)dev_unback(st->dev, st->scratch, st->scratch_bytes);
	if (st->counters)
		(void)dev_unback(st->dev, st->counters, STREAM_COUNTERS * sizeof(*st->counters));
	if (st->handle)
		(void)cudaStreamDestroy(st->handle);
	free(st);
	return NULL;
}

struct dev *st_dev(struct stream *st)
{
	return st->dev;
}

int st_wait(struct stream *st)
{
	return CUDA_CALL(cudaStreamSynchronize(st->handle));
}

int st_read(struct stream *st, void *to, const void *from, size_t bytes)
{
	int r = 0;

	if (bytes)
		r = CUDA_CALL(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, st->handle));
	return r < 0 ? r : st_wait(st);
}

int st_copy2d(struct stream *st, void *to, size_t to_pitch, const void *from, size_t from_pitch,
	      size_t width, size_t rows)
{
	if (!width || !rows)
		return 0;
	if (rows == 1 || (to_pitch == width && from_pitch == width))
		return CUDA_CALL(cudaMemcpyAsync(to, from, width * rows, cudaMemcpyDefault,
						 st->handle));
	return CUDA_CALL(cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, width, rows,
					   cudaMemcpyDefault, st->handle));
}

int st_record(struct stream *st, int (*body)(struct stream *st, void *userdata), void *userdata,
	      struct replay **ret)
{
	struct replay *replay = (struct replay *)calloc(1, sizeof(*replay));
	cudaGraph_t graph = NULL;
	int r, ended;

	if (!replay)
		return -ENOMEM;
	r = CUDA_CALL(cudaStreamBeginCapture(st->handle, cudaStreamCaptureModeRelaxed));
	if (r == 0) {
		r = body(st, userdata);
		/* whatever the body did, the stream is to leave the recording */
		ended = CUDA_CALL(cudaStreamEndCapture(st->handle, &graph));
		if (r == 0)
			r = ended;
	}
	if (r == 0)
		r = CUDA_CALL(cudaGraphInstantiate(&replay->graph, graph, 0));
	if (graph)
		(void)cudaGraphDestroy(graph);
	if (r < 0) {
		replay_free(replay);
		return r;
	}
	*ret = replay;
	return 0;
}

int st_replay(struct stream *st, const struct replay *replay)
{
	return CUDA_CALL(cudaGraphLaunch(replay->graph, st->handle));
}

struct replay *replay_free(struct replay *replay)
{
	if (replay && replay->graph)
		(void)cudaGraphExecDestroy(replay->graph);
	free(replay);
	return NULL;
}

static __global__ void k_gather(float *y, const float *x, const uint32_t *rows, uint32_t dim)
{
	const size_t from = (size_t)rows[blockIdx.x] * dim, to = (size_t)blockIdx.x * dim;

	for (uint32_t i = threadIdx.x; i < dim; i += blockDim.x)
		y[to + i] = x[from + i];
}

int op_gather(struct stream *st, const struct tensor *y, const struct tensor *x,
	      const uint32_t *rows)
{
	const uint32_t n = y->shape[1], dim = x->shape[2];
	const uint32_t *on_device;
	int r;

	if (x->type != DT_F32 || y->type != DT_F32 || x->shape[0] != 1 || y->shape[0] != 1 ||
	    y->shape[2] != dim)
		return -EINVAL;
	for (uint32_t i = 0; i < n; i++)
		if (rows[i] >= x->shape[1])
			return -EINVAL;
	if (n == 0)
		return 0;
	r = stage_rows(st, rows, n, &on_device);
	if (r < 0)
		return r;
	return launch(st, LAUNCH_PLAIN, k_gather, dim3(n), dim3(GATHER_THREADS), 0,
		      (float *)y->data, (const float *)x->data, on_device, dim);
}

static __global__ void k_clear(float *y, size_t n)
{
	const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;

	if (i < n)
		y[i] = 0;
}

int op_clear(struct stream *st, const struct tensor *y)
{
	const size_t n = tensor_elements(y);

	if (y->type != DT_F32)
		return -EINVAL;
	if (n == 0)
		return 0;
	return launch(st, LAUNCH_PLAIN, k_clear,
		      dim3((uint32_t)((n + GATHER_THREADS - 1) / GATHER_THREADS)),
		      dim3(GATHER_THREADS), 0, (float *)y->data, n);
}
