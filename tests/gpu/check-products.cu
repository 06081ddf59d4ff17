/*
 * Products by cuBLASLt: for some shapes every way and algorithm that could be chosen,
 * against double, queued and recorded, whether it is the quickest or not. On a GPU, and
 * on the emulator, with a library of its own, to check the checks.
 *
 * Usage: check-products [--small]
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/choice.h"

extern "C" {
#include "kernels/linear.h"
}

#define TOL_ACTIVATION (1.0 / 65000) /* kernels/linear.h: of a group's largest */
#define TOL_SUM 4e-6		     /* as in check-ops.c */
#define JOBS 3
#define ALGORITHMS 4
#define CHUNK_BYTES ((size_t)2 << 20)

static const char *const ways[] = { "own", "twice", "beside" };
static struct dev *dev;
static struct stream *st;
static int n_passed, n_failed;

static void must(int r, const char *what)
{
	if (r == 0)
		return;
	printf("not ok products: %s: %s\n", what, r == -EIO ? calls_why() : strerror(-r));
	exit(1);
}

static uint64_t random_state = 88172645463325252u;

static uint32_t random_u32(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (uint32_t)(random_state >> 16);
}

/* Until a shape is done with. */
static void *kept[32];
static uint32_t n_kept;

template <typename T> static T *room(size_t n)
{
	T *at = (T *)calloc(n, sizeof(T));

	must(at && n_kept < sizeof(kept) / sizeof(*kept) ? 0 : -ENOMEM, "memory");
	return (T *)(kept[n_kept++] = at);
}

static float *random_floats(size_t n)
{
	float *x = room<float>(n);

	for (size_t i = 0; i < n; i++)
		x[i] = ((float)(random_u32() & 0xffffff) / 8388608.0f - 1.0f) *
		       (i % 97 == 0 ? 30 : 1);
	return x;
}

/* Memory of the device for the life of the program; nothing is mapped behind it. */
static char *give(const void *from, size_t bytes)
{
	const size_t space = (bytes + CHUNK_BYTES - 1) / CHUNK_BYTES * CHUNK_BYTES;
	char *at = (char *)dev_reserve(dev, space);

	must(at ? dev_back(dev, at, space) : -ENOMEM, "device memory");
	at += (space - bytes) / 256 * 256;
	if (from)
		must(dev_write(dev, at, from, bytes), "copying");
	return at;
}

struct matrix {
	uint32_t rows;
	float *values, *bias;
	struct weight packed;
	float *y;
	struct linear_job job;
};

/* BF16 that are random. */
static void make_matrix(struct matrix *m, uint32_t rows, uint32_t cols, uint32_t tokens,
			bool has_bias, bool add)
{
	const size_t n = (size_t)rows * cols;
	uint16_t *bits = room<uint16_t>(n);
	struct weight_source src = { rows, cols, DT_BF16, NULL, NULL, DT_NONE, 0 };

	m->rows = rows;
	m->values = room<float>(n);
	for (size_t i = 0; i < n; i++) {
		uint32_t wide;

		bits[i] = (uint16_t)((random_u32() & 0x8000) | (0x3c00 + random_u32() % 0x380));
		wide = (uint32_t)bits[i] << 16;
		memcpy(&m->values[i], &wide, 4);
	}
	src.data = bits;
	m->packed = { WEIGHT_BF16, rows, cols, NULL };
	m->packed.data = give(NULL, weight_bytes(dev, WEIGHT_BF16, rows, cols));
	must(op_repack(dev, &m->packed, &src, NULL), "packing");
	m->bias = random_floats(rows);
	m->y = (float *)give(NULL, (size_t)tokens * rows * sizeof(float));
	m->job = {};
	m->job.w = &m->packed;
	if (has_bias)
		m->job.bias = { give(m->bias, rows * sizeof(float)), DT_F32, { 1, 1, rows } };
	m->job.y = { m->y, DT_F32, { 1, tokens, rows } };
	m->job.add = add;
}

/* Some rows of y; how far it is off at worst, in parts of what is allowed. */
static double compare(const struct matrix &m, const float *y, const float *x, uint32_t tokens,
		      uint32_t cols, float was)
{
	const uint32_t by_row = m.rows > 256 ? m.rows / 128 + 1 : 1, by_token = tokens > 40 ? 7 : 1;
	double worst = 0;

	for (uint32_t r = 0; r < m.rows; r += by_row)
		for (uint32_t t = 0; t < tokens; t += by_token) {
			double want = (m.job.bias.data ? m.bias[r] : 0) + (m.job.add ? was : 0);
			double most = 1e-30, d;

			for (uint32_t g = 0; g < cols; g += 32) {
				double largest = 0, weights = 0;

				for (uint32_t c = g; c < cols && c < g + 32; c++) {
					const double w = m.values[(size_t)r * cols + c];
					const double v = x[(size_t)t * cols + c];

					want += w * v;
					weights += fabs(w);
					largest = fmax(largest, fabs(v));
					most += fabs(w * v) * TOL_SUM;
				}
				most += largest * weights * TOL_ACTIVATION;
			}
			d = fabs(y[(size_t)t * m.rows + r] - want) / (most + fabs(want) * 1e-6);
			worst = d <= worst ? worst : isnan(d) ? INFINITY : d;
		}
	return worst;
}

/* A set of matrices that have x in common. */
struct product {
	uint32_t cols, n_jobs;
	struct matrix m[JOBS];
	struct linear_job jobs[JOBS];
	float *x, *dx;
	float *first[JOBS], *y; /* [most][rows], rows of the largest */
};

static int queue(struct stream *stream, void *userdata)
{
	const struct product *p = (const struct product *)userdata;
	const struct tensor x = { p->dx, DT_F32, { 1, p->jobs[0].y.shape[1], p->cols } };

	return op_linears(stream, p->jobs, p->n_jobs, &x);
}

/* Puts a way in the place of what was chosen. False: the library has none so good. */
static bool force(struct choice_set *set, struct choice_bucket *bucket, uint32_t way,
		  uint32_t number, const struct product *p)
{
	struct choicefile_entry *e = &bucket->entry;
	const uint32_t tokens = way == CHOICEFILE_BESIDE ? 2 * e->tokens : e->tokens;
	size_t at = (split_bytes(e->tokens, set->cols) + 255) & ~(size_t)255;
	struct blaslt_algorithm found[ALGORITHMS];
	struct choice_room room;

	if (!choice_room(st, set, way, e->tokens, at, &room))
		return false;
	for (uint32_t i = 0; i < set->n_jobs; i++) {
		const float *bias = way == CHOICEFILE_BESIDE ? NULL
							     : (const float *)p->jobs[i].bias.data;
		const int n = blaslt_find(set->products[way][i], tokens, set->w_align, set->y_align,
					  bias, room.workspace_bytes, found, ALGORITHMS);

		if (n <= (int)number ||
		    choice_check(set, way, i, &found[number], bias, e->tokens, &room) < 0)
			return false;
		memcpy(e->algorithms[i], found[number].data, sizeof(e->algorithms[i]));
	}
	e->way = way;
	memset(bucket->known, 0, e->tokens + 1);
	return true;
}

/* The product as it is chosen now: right, the same again, and the same when replayed. */
static void check(struct product *p, const struct choice_bucket *bucket, uint32_t tokens,
		  uint32_t number)
{
	const float was = 2.5f;
	struct replay *replay = NULL;
	double worst = 0;
	bool is_same = true;

	for (uint32_t i = 0; i < p->n_jobs; i++)
		p->jobs[i].y.shape[1] = tokens;
	must(st_record(st, queue, p, &replay), "recording");
	for (int round = 0; round < 3; round++) {
		for (uint32_t i = 0; i < p->n_jobs; i++) {
			const size_t n = (size_t)tokens * p->m[i].rows;

			for (size_t k = 0; k < n; k++)
				p->y[k] = was;
			must(dev_write(dev, p->m[i].y, p->y, n * sizeof(float)), "copying");
		}
		must(round < 2 ? queue(st, p) : st_replay(st, replay), "multiplying");
		for (uint32_t i = 0; i < p->n_jobs; i++) {
			const size_t bytes = (size_t)tokens * p->m[i].rows * sizeof(float);

			must(st_read(st, p->y, p->m[i].y, bytes), "reading");
			if (round == 0) {
				worst = fmax(worst,
					     compare(p->m[i], p->y, p->x, tokens, p->cols, was));
				memcpy(p->first[i], p->y, bytes);
			}
			is_same &= memcmp(p->first[i], p->y, bytes) == 0;
		}
	}
	replay_free(replay);
	printf("%s product %u x %u of %u, %u tokens, %s %u: %.3f of the error allowed%s\n",
	       worst <= 1 && is_same ? "ok" : "not ok", p->m[0].rows, p->cols, p->n_jobs, tokens,
	       bucket->known[tokens] == CHOICE_REFUSED ? "own for refused"
						       : ways[bucket->entry.way],
	       number, worst, is_same ? "" : "; not the same bits again");
	worst <= 1 && is_same ? n_passed++ : n_failed++;
}

static void check_shape(uint32_t rows, uint32_t cols, uint32_t n_jobs, uint32_t most)
{
	struct product p = {};
	const size_t n_x = (size_t)most * cols, n_y = (size_t)most * rows;
	struct linear_set set;
	char text[512];

	p.cols = cols;
	p.n_jobs = n_jobs;
	p.x = random_floats(n_x);
	p.dx = (float *)give(NULL, n_x * sizeof(float));
	p.y = room<float>(n_y);
	for (float *&first : p.first)
		first = room<float>(n_y);
	for (uint32_t i = 0; i < n_jobs; i++) {
		make_matrix(&p.m[i], i ? rows / 4 + 1 : rows, cols, most, n_jobs > 1 && i < 2,
			    n_jobs == 1);
		p.jobs[i] = p.m[i].job;
	}
	set = { p.jobs, n_jobs, 1, { p.dx, DT_F32, { 1, most, cols } } };
	must(op_linears_choose(st, &set, 1, NULL, text, sizeof(text)), "choosing");
	if (!st->choice) {
		printf("skip products: %s\n%d passed, %d failed, 1 skipped\n", text, n_passed,
		       n_failed);
		exit(n_failed ? 1 : 77);
	}
	printf("products: %s\n", text);
	must(dev_write(dev, p.dx, p.x, n_x * sizeof(float)), "copying");
	for (uint32_t b = 0; b < st->choice->sets[0].n_buckets; b++) {
		struct choice_bucket *bucket = &st->choice->sets[0].buckets[b];

		for (uint32_t way = CHOICEFILE_TWICE; way < CHOICEFILE_WAYS; way++)
			for (uint32_t number = 0; number < ALGORITHMS; number++)
				if (force(&st->choice->sets[0], bucket, way, number, &p)) {
					check(&p, bucket, bucket->entry.tokens, number);
					check(&p, bucket, bucket->entry.tokens - 1, number);
				}
		bucket->entry.way = CHOICEFILE_OWN;
		memset(bucket->known, 0, bucket->entry.tokens + 1);
		check(&p, bucket, bucket->entry.tokens, 0);
	}
	st->choice = choice_free(st->choice);
	while (n_kept > 0)
		free(kept[--n_kept]);
}

int main(int argc, char **argv)
{
	const bool is_small = argc > 1 && strcmp(argv[1], "--small") == 0;

	if (dev_open(isa_best(), 0, &dev) < 0) {
		printf("skip products: %s\n0 passed, 0 failed, 1 skipped\n", dev_why());
		return 77;
	}
	must(st_open(dev, (size_t)256 << 20, &st), "a stream");
	check_shape(48, 96, 3, 16);
	check_shape(33, 70, 1, 12);
	if (!is_small) {
		check_shape(4096, 4096, 3, 300);
		check_shape(4096, 12288, 1, 2048);
		check_shape(37888, 4096, 1, 64);
	}
	st_close(st);
	dev_close(dev);
	printf("%d passed, %d failed, 0 skipped\n", n_passed, n_failed);
	return n_failed > 0;
}
