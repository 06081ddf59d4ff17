/* CUDA calls that fail one after the other: each is told, and nothing is left behind that breaks the next run. */
extern "C" {
#include "tests/gpu/faults.h"
}

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda.h"

extern "C" {
#include "kernels/norm.h"
}

#define ROWS 5
#define DIM 256
#define TRIES_MAX 10000

struct scene {
	struct dev *dev;
	struct stream *st;
	struct replay *replay;
	float *x, *y, *w;
	float host[ROWS * DIM], got[ROWS * DIM];
};

static const uint32_t rows[] = { 1, 4 };

static struct tensor batch(float *data, uint32_t n)
{
	return { data, DT_F32, { 1, n, DIM } };
}

static int body(struct stream *st, void *userdata)
{
	struct scene *s = (struct scene *)userdata;
	const struct tensor x = batch(s->x, ROWS), y = batch(s->y, 2), w = batch(s->w, 1);
	int r;

	r = op_gather(st, &y, &x, rows);
	return r < 0 ? r : op_rmsnorm(st, &y, &y, &w, 1e-5f);
}

static int give(struct scene *s, float **ret, uint32_t n)
{
	int r;

	*ret = (float *)dev_reserve(s->dev, n * sizeof(float));
	r = *ret ? dev_back(s->dev, *ret, n * sizeof(float)) : -ENOMEM;
	return r < 0 ? r : dev_write(s->dev, *ret, s->host, n * sizeof(float));
}

static int play(struct scene *s)
{
	int r;

	if ((r = dev_open(ISA_CUDA, 1, &s->dev)) < 0 ||
	    (r = st_open(s->dev, 1 << 20, &s->st)) < 0 || (r = give(s, &s->x, ROWS * DIM)) < 0 ||
	    (r = give(s, &s->y, ROWS * DIM)) < 0 || (r = give(s, &s->w, DIM)) < 0 ||
	    (r = body(s->st, s)) < 0 || (r = st_wait(s->st)) < 0 ||
	    (r = st_batch(s->st, rows, 2, NULL, 0, rows, 2)) < 0 ||
	    (r = st_record(s->st, body, s, &s->replay)) < 0 ||
	    (r = st_replay(s->st, s->replay)) < 0 ||
	    (r = st_copy2d(s->st, s->y + 2 * DIM, DIM * 4, s->y, DIM * 4, DIM * 4, 2)) < 0 ||
	    (r = st_read(s->st, s->got, s->y + 2 * DIM, 2 * DIM * 4)) < 0)
		return r;
	return 0;
}

static void clear(struct scene *s)
{
	replay_free(s->replay);
	st_close(s->st);
	dev_close(s->dev);
	s->replay = NULL;
	s->st = NULL;
	s->dev = NULL;
}

/* Whether row 1 of y is the norm of row 4 of x: roughly, the exact check is elsewhere. */
static bool is_right(const struct scene *s)
{
	const float *x = s->host + 4 * DIM, *y = s->got + DIM;
	double square = 0;

	for (int i = 0; i < DIM; i++)
		square += (double)x[i] * x[i] / DIM;
	for (int i = 0; i < DIM; i++) {
		const double want = x[i] / __builtin_sqrt(square + 1e-5) * s->host[i];

		if (!(__builtin_fabs(y[i] - want) < 1e-4))
			return false;
	}
	return true;
}

static int fail_with(cudaError_t error, int code)
{
	struct scene *s = (struct scene *)calloc(1, sizeof(*s));
	uint64_t nth;
	int r = -EIO;

	for (int i = 0; i < ROWS * DIM; i++)
		s->host[i] = (float)(i * 37 % 101) / 50 - 1;
	for (nth = 1; nth < TRIES_MAX; nth++) {
		calls_fail(nth, error, false);
		r = play(s);
		clear(s);
		if (r == 0 && calls_made() < nth)
			break;
		if (r == 0 || (r != code && r != -ENODEV && r != -EIO)) {
			printf("  call %llu failed with %s: %s was returned\n",
			       (unsigned long long)nth, cudaGetErrorName(error),
			       r ? strerror(-r) : "success");
			calls_fail(0, cudaSuccess, false);
			free(s);
			return -EIO;
		}
	}
	calls_fail(0, cudaSuccess, false);
	if (r == 0 && !is_right(s)) {
		printf("  after all failures the result is wrong\n");
		r = -EIO;
	}
	printf("  %llu calls failed in turn with %s\n", (unsigned long long)nth - 1,
	       cudaGetErrorName(error));
	free(s);
	return r;
}

int faults_check(void)
{
	const int r = fail_with(cudaErrorMemoryAllocation, -ENOMEM);

	return r < 0 ? r : fail_with(cudaErrorIllegalAddress, -EIO);
}
