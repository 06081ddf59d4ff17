/* Random sources of a few rows at a time, packed by the operation that loading uses. */
#include "tests/bench/matrices.h"

#include <errno.h>
#include <stdatomic.h>

#include "tests/bench/random.h"

#define STRIP_ROWS 16
#define GROUP_COLS 32
#define PIECE_BYTES ((size_t)1 << 20)
#define ALIGNMENT 64

struct maker {
	struct matrices *m;
	_Atomic int r;
};

static size_t round_up(size_t bytes, size_t to)
{
	return (bytes + to - 1) / to * to;
}

/* Bytes of a row as a checkpoint has it, codes before scales, each a multiple of 8. */
static size_t source_bytes(const struct weight *w, size_t *ret_scales)
{
	*ret_scales = 0;
	if (w->kind == WEIGHT_BF16)
		return round_up((size_t)w->cols * 2, 8);
	*ret_scales = round_up((size_t)w->cols / GROUP_COLS * 2, 8);
	return round_up((size_t)w->cols / 2, 8);
}

/* Rows first … first + rows of @w, from random numbers in @staging. */
static int make_rows(struct dev *dev, const struct weight *w, uint64_t seed, uint32_t first,
		     uint32_t rows, char *staging)
{
	const struct weight to = {
		.kind = w->kind,
		.rows = rows,
		.cols = w->cols,
		.data = (char *)w->data + weight_bytes(dev, w->kind, first, w->cols),
	};
	struct weight_source src = { .rows = rows, .cols = w->cols, .data = staging };
	size_t scales;
	const size_t codes = source_bytes(w, &scales);

	if (w->kind == WEIGHT_BF16) {
		src.type = DT_BF16;
		random_fill_bf16(seed, staging, rows * codes, 1);
		return op_repack(dev, &to, &src, NULL);
	}
	src.type = DT_I32;
	src.scales = staging + rows * codes;
	src.scale_type = DT_BF16;
	src.group = GROUP_COLS;
	random_fill(seed, staging, rows * codes);
	random_fill_bf16(seed, staging + rows * codes, rows * scales, 0);
	return op_repack(dev, &to, &src, NULL);
}

static int make_share(struct matrices *m, const struct weight *w, uint64_t seed, uint32_t thread,
		      uint32_t n_threads, uint32_t rows, char *staging)
{
	const uint32_t strips = (w->rows + STRIP_ROWS - 1) / STRIP_ROWS;
	const uint32_t end =
		MIN(w->rows, (uint32_t)((uint64_t)strips * (thread + 1) / n_threads) * STRIP_ROWS);
	int r = 0;

	for (uint32_t at = (uint32_t)((uint64_t)strips * thread / n_threads) * STRIP_ROWS;
	     at < end && r == 0; at += rows)
		r = make_rows(m->dev, w, seed + at, at, MIN(rows, end - at), staging);
	return r;
}

static void make(void *userdata, uint32_t thread, uint32_t n_threads)
{
	struct maker *maker = userdata;
	struct matrices *m = maker->m;
	size_t scales, row;
	uint32_t rows;
	char *staging;
	int r = 0;

	row = source_bytes(m->at, &scales) + scales;
	rows = (uint32_t)MAX(PIECE_BYTES / row / STRIP_ROWS * STRIP_ROWS, STRIP_ROWS);
	staging = malloc(rows * row);
	if (!staging)
		r = -ENOMEM;
	for (uint32_t i = 0; i < m->n && r == 0; i++)
		r = make_share(m, &m->at[i], ((uint64_t)i << 32) + 1, thread, n_threads, rows,
			       staging);
	free(staging);
	if (r < 0)
		maker->r = r;
}

int matrices_new(struct dev *dev, enum weight_kind kind, uint32_t rows, uint32_t cols, uint32_t n,
		 struct matrices **ret, struct err *err)
{
	_cleanup_(matrices_freep) struct matrices *m = calloc(1, sizeof(*m));
	struct maker maker = { .m = m };
	size_t stride, bytes;

	if (!m)
		return err_wrap(err, -ENOMEM, "cannot make matrices");
	m->dev = dev;
	m->n = n;
	m->bytes = weight_bytes(dev, kind, rows, cols);
	stride = round_up(m->bytes, ALIGNMENT);
	bytes = n * stride;
	m->at = calloc(n, sizeof(*m->at));
	m->memory = dev_reserve(dev, bytes);
	if (!m->at || !m->memory || dev_back(dev, m->memory, bytes) < 0)
		return err_set(err, -ENOMEM, "no memory for %zu bytes of matrices", bytes);
	m->backed_bytes = bytes;
	for (uint32_t i = 0; i < n; i++)
		m->at[i] = (struct weight){ kind, rows, cols, (char *)m->memory + i * stride };
	dev_run(dev, make, &maker);
	if (maker.r < 0)
		return err_wrap(err, maker.r, "cannot pack a matrix of %u rows, %u columns", rows,
				cols);
	*ret = steal(m);
	return 0;
}

struct matrices *matrices_free(struct matrices *m)
{
	if (!m)
		return NULL;
	if (m->backed_bytes)
		dev_unback(m->dev, m->memory, m->backed_bytes);
	free(m->at);
	free(m);
	return NULL;
}
