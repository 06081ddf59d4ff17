/*
 * Every operation of the linked backend against double, through the contracts
 * of kernels/ alone: on a GPU with kernels/cuda, and on CPUs to check the
 * checks. Then, on a GPU, the calls of CUDA made to fail one after the other.
 * One line for each check, "ok" or "not ok" in front and what its results' bits
 * fold to behind, and a count at the end.
 *
 * Usage: check-ops [--small] [NAME…]
 *	--small	shapes that a memory checker gets through in a minute
 *	NAME	checks whose names begin so
 */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>

#include "kernels/layer.h"
#include "tests/gpu/faults.h"
#include "tests/unit/matrices.h"

#define TOL_ACTIVATION (1.0 / 65000) /* kernels/linear.h: of a group's largest */
#define TOL_SUM 4e-6		     /* of the sum of |W x|: sums in F32 here, in double there */
#define TOL_NORM 2e-6
#define TOL_ROPE 2e-6
#define TOL_ROUTER 2e-6
#define TOL_MLP 2e-4	   /* two products and an exponential */
#define TOL_ATTENTION 2e-5 /* of values below 1: weights of a softmax in F32 */
#define TOL_BF16 (1.0 / 256)

#define BUFFERS_MAX 512
#define CHUNK_BYTES ((size_t)2 << 20) /* what a GPU maps */
#define MAX_CONTEXT 8192

/* What one run shares. */
static struct {
	struct dev *dev;
	struct stream *st;
	bool small;
	int n_passed, n_failed, n_skipped;
	bool failed;	  /* of the check under way */
	uint64_t results; /* its results' bits, folded */
	struct buffer {
		char *at;
		size_t bytes;
		bool is_taken; /* by the check under way */
	} buffers[BUFFERS_MAX]; /* addresses are for life, and a device has only so many ranges of them */
	int n_buffers;
} run;

static _Noreturn void give_up(const char *what, int r)
{
	printf("not ok %s: %s\n", what, strerror(-r));
	exit(1);
}

static void *allocate(size_t n, size_t bytes)
{
	void *p = calloc(n + 1, bytes);

	if (!p)
		give_up("memory", -ENOMEM);
	return p;
}

/* Addresses that no check has, of @bytes. */
static struct buffer *buffer_of(size_t bytes)
{
	struct buffer *b = run.buffers;

	while (b < run.buffers + run.n_buffers && (b->is_taken || b->bytes != bytes))
		b++;
	if (b == run.buffers + BUFFERS_MAX)
		return NULL;
	if (b == run.buffers + run.n_buffers) {
		*b = (struct buffer){ dev_reserve(run.dev, bytes), bytes, false };
		if (!b->at)
			return NULL;
		run.n_buffers++;
	}
	b->is_taken = true;
	return b;
}

/* Device memory with @bytes of @from in it (NULL: none), until the check ends; nothing is mapped behind it. */
static void *give(const void *from, size_t bytes)
{
	const size_t room = (bytes + CHUNK_BYTES - 1) / CHUNK_BYTES * CHUNK_BYTES;
	struct buffer *b = buffer_of(room);
	char *at = b ? b->at + (room - bytes) / 64 * 64 : NULL;
	int r;

	r = b ? dev_back(run.dev, b->at, room) : -ENOMEM;
	if (r == 0 && from)
		r = dev_write(run.dev, at, from, bytes);
	if (r < 0)
		give_up("device memory", r);
	return at;
}

static void give_back_all(void)
{
	for (struct buffer *b = run.buffers; b < run.buffers + run.n_buffers; b++) {
		if (b->is_taken)
			dev_unback(run.dev, b->at, b->bytes);
		b->is_taken = false;
	}
}

static void take(void *to, const void *from, size_t bytes)
{
	const int r = st_read(run.st, to, from, bytes);

	if (r < 0)
		give_up("reading results", r);
	for (size_t i = 0; i < bytes; i++)
		run.results = (run.results ^ ((const uint8_t *)to)[i]) * 0x100000001b3;
}

static void __attribute__((format(printf, 1, 2))) wrong(const char *format, ...)
{
	va_list ap;

	run.failed = true;
	printf("  ");
	va_start(ap, format);
	vprintf(format, ap);
	va_end(ap);
	printf("\n");
}

static float *even_floats(size_t n, float scale)
{
	float *x = allocate(n, sizeof(*x));

	for (size_t i = 0; i < n; i++)
		x[i] = scale * random_f32();
	return x;
}

/* With outliers, as hidden states have them. */
static float *random_floats(size_t n, float scale)
{
	float *x = even_floats(n, scale);

	for (size_t i = 0; i < n; i += 97)
		x[i] *= 30;
	return x;
}

static struct tensor tensor_at(void *data, uint32_t a, uint32_t b, uint32_t c)
{
	return (struct tensor){ data, DT_F32, { a, b, c } };
}

static double half_value(enum dtype type, uint16_t half)
{
	uint32_t bits = (uint32_t)half << 16;
	float wide;

	if (type == DT_BF16) {
		memcpy(&wide, &bits, 4);
		return wide;
	}
	if (half >> 10 & 31)
		return (half & 0x8000 ? -1 : 1) *
		       ldexp((half & 0x3ff) + 1024, (half >> 10 & 31) - 25);
	return (half & 0x8000 ? -1 : 1) * ldexp(half & 0x3ff, -24);
}

static double source_value(enum dtype type, const void *data, size_t i)
{
	uint16_t half;
	float wide;

	if (type == DT_F32) {
		memcpy(&wide, (const char *)data + 4 * i, 4);
		return wide;
	}
	memcpy(&half, (const char *)data + 2 * i, 2);
	return half_value(type, half);
}

static double weight_value(const struct weight_source *w, uint32_t row, uint32_t col)
{
	const size_t words = ((size_t)w->cols + 7) / 8;
	uint32_t word;

	if (w->type != DT_I32)
		return source_value(w->type, w->data, (size_t)row * w->cols + col);
	memcpy(&word, (const char *)w->data + 4 * (row * words + col / 8), 4);
	return ((int)(word >> 4 * (col % 8) & 15) - 8) *
	       source_value(w->scale_type, w->scales,
			    (size_t)row * (w->cols / w->group) + col / w->group);
}

/* A matrix of that form, packed in device memory. */
static struct matrix matrix_given(const struct form *form, uint32_t rows, uint32_t cols)
{
	struct matrix m = matrix_new(run.dev, form, rows, cols);
	const size_t bytes = weight_bytes(run.dev, m.packed.kind, rows, cols);
	int r;

	free(m.packed.data);
	m.packed.data = give(NULL, bytes);
	r = op_repack(run.dev, &m.packed, &m.src, NULL);
	if (r < 0)
		give_up("op_repack", r);
	return m;
}

/* The packed matrix is the device's. */
static void matrix_done(struct matrix *m)
{
	m->packed.data = NULL;
	matrix_free(m);
}

static const struct form forms[] = {
	{ DT_BF16, DT_NONE, 0 }, { DT_F32, DT_NONE, 0 }, { DT_I32, DT_BF16, 32 },
	{ DT_I32, DT_F32, 32 },	 { DT_F16, DT_NONE, 0 }, { DT_I32, DT_F16, 64 },
	{ DT_I32, DT_BF16, 0 },
};
static const char *const form_names[] = { "bf16", "f32",	 "int4",    "int4-f32",
					  "f16",  "int4-f16-64", "int4-row" };
#define N_FORMS (sizeof(forms) / sizeof(*forms))

/* How far y[t, r] may be off. */
static double allowed(const struct weight_source *w, uint32_t row, const float *x)
{
	double sum = 0, loss = 0;

	for (uint32_t g = 0; g < w->cols; g += 32) {
		double largest = 0, weights = 0;

		for (uint32_t c = g; c < w->cols && c < g + 32; c++) {
			const double v = fabs(weight_value(w, row, c));

			largest = fmax(largest, fabsf(x[c]));
			weights += v;
			sum += v * fabsf(x[c]);
		}
		loss += largest * weights;
	}
	return loss * TOL_ACTIVATION + sum * TOL_SUM + 1e-30;
}

/* Some rows of a product against double: all of a small one. */
static void compare_product(const struct matrix *m, const float *y, const float *x,
			    const float *bias, const float *was, uint32_t tokens, const char *what)
{
	const uint32_t rows = m->src.rows, cols = m->src.cols;
	const uint32_t stride = rows > 512 ? rows / 256 + 1 : 1;
	double worst = 0;

	for (uint32_t r = 0; r < rows; r += stride) {
		for (uint32_t t = 0; t<tokens; t += tokens> 40 ? 7 : 1) {
			const float *of = x + (size_t)t * cols;
			const size_t i = (size_t)t * rows + r;
			double want = (bias ? bias[r] : 0) + (was ? was[i] : 0), most;

			for (uint32_t c = 0; c < cols; c++)
				want += weight_value(&m->src, r, c) * of[c];
			most = allowed(&m->src, r, of) + fabs(want) * 1e-6;
			worst = fmax(worst, fabs(y[i] - want) / most);
			if (!isfinite(y[i]))
				worst = INFINITY;
		}
	}
	if (!(worst <= 1))
		wrong("%s, %u x %u, %u tokens: %.3g times the error allowed", what, rows, cols,
		      tokens, worst);
}

static void check_product(int form, uint32_t rows, uint32_t cols, uint32_t tokens, bool add)
{
	struct matrix m = matrix_given(&forms[form], rows, cols);
	const size_t n = (size_t)tokens * rows;
	float *x = random_floats((size_t)tokens * cols, 1), *bias = random_floats(rows, 1);
	float *was = random_floats(n, 1), *y = allocate(n, sizeof(*y));
	float *again = allocate(n, sizeof(*y));
	float *dy = give(was, n * sizeof(*y));
	const struct tensor tx = tensor_at(give(x, (size_t)tokens * cols * 4), 1, tokens, cols);
	const struct linear_job job = {
		.w = &m.packed,
		.bias = add ? (struct tensor){ 0 } : tensor_at(give(bias, rows * 4), 1, 1, rows),
		.y = tensor_at(dy, 1, tokens, rows),
		.add = add,
	};
	int r;

	r = op_linears(run.st, &job, 1, &tx);
	if (r < 0)
		wrong("%s, %u x %u, %u tokens: %s", form_names[form], rows, cols, tokens,
		      strerror(-r));
	take(y, dy, n * sizeof(*y));
	compare_product(&m, y, x, add ? NULL : bias, add ? was : NULL, tokens, form_names[form]);

	/* the same batch has the same bits */
	dev_write(run.dev, dy, was, n * sizeof(*y));
	op_linears(run.st, &job, 1, &tx);
	take(again, dy, n * sizeof(*y));
	if (memcmp(y, again, n * sizeof(*y)) != 0)
		wrong("%s, %u x %u, %u tokens: another result the second time", form_names[form],
		      rows, cols, tokens);
	free(x);
	free(bias);
	free(was);
	free(y);
	free(again);
	matrix_done(&m);
	give_back_all();
}

static void check_linear(void)
{
	static const uint32_t shapes[][3] = {
		{ 1, 32, 1 },	 { 15, 64, 2 },	  { 16, 160, 3 },  { 17, 32, 4 },  { 31, 64, 5 },
		{ 33, 160, 7 },	 { 352, 64, 8 },  { 40, 4096, 3 }, { 47, 96, 17 }, { 65, 64, 49 },
		{ 100, 32, 64 }, { 64, 160, 97 }, { 16, 288, 9 },
	};
	static const uint32_t large[][3] = {
		{ 1024, 4096, 1 }, { 1024, 4096, 8 },  { 4096, 12288, 1 },
		{ 512, 1408, 33 }, { 640, 4096, 300 },
	};

	for (size_t f = 0; f < N_FORMS; f++) {
		for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++)
			if ((!forms[f].group || shapes[i][1] % forms[f].group == 0) &&
			    (!run.small || i % 4 == f % 4))
				check_product(f, shapes[i][0], shapes[i][1], shapes[i][2], i % 2);
		for (size_t i = 0; !run.small && f < 3 && i < sizeof(large) / sizeof(*large); i++)
			check_product(f, large[i][0], large[i][1], large[i][2], i % 2);
	}
}

/* Three matrices from one input, as q, k and v are. */
static void check_linears(void)
{
	const uint32_t rows[3] = { 192, 32, 32 }, cols = 256, tokens = 3;
	float *x = random_floats(tokens * cols, 1);
	const struct tensor tx = tensor_at(give(x, tokens * cols * 4), 1, tokens, cols);
	struct linear_job jobs[3];
	struct matrix m[3];
	float *bias[3];
	int r;

	for (int i = 0; i < 3; i++) {
		m[i] = matrix_given(&forms[i == 1 ? 2 : 0], rows[i], cols);
		bias[i] = random_floats(rows[i], 1);
		jobs[i] = (struct linear_job){
			.w = &m[i].packed,
			.bias = tensor_at(give(bias[i], rows[i] * 4), 1, 1, rows[i]),
			.y = tensor_at(give(NULL, tokens * rows[i] * 4), 1, tokens, rows[i]),
		};
	}
	r = op_linears(run.st, jobs, 3, &tx);
	if (r < 0)
		wrong("three at once: %s", strerror(-r));
	for (int i = 0; i < 3; i++) {
		float *y = allocate(tokens * rows[i], sizeof(*y));

		take(y, jobs[i].y.data, tokens * rows[i] * sizeof(*y));
		compare_product(&m[i], y, x, bias[i], NULL, tokens, "three at once");
		free(y);
		free(bias[i]);
		matrix_done(&m[i]);
	}
	free(x);
	give_back_all();
}

static void check_embed(void)
{
	const uint32_t ids[] = { 0, 7, 399, 7 }, n = 4, cols = 320;

	for (size_t f = 0; f < N_FORMS; f++) {
		struct matrix m = matrix_given(&forms[f], 400, cols);
		float *y = allocate(n * cols, sizeof(*y));
		const struct tensor ty = tensor_at(give(NULL, n * cols * 4), 1, n, cols);
		int r;

		r = op_embed(run.st, &ty, &m.packed, ids);
		if (r < 0)
			wrong("%s: %s", form_names[f], strerror(-r));
		take(y, ty.data, n * cols * sizeof(*y));
		for (uint32_t i = 0; i < n * cols; i++)
			if (y[i] != (float)weight_value(&m.src, ids[i / cols], i % cols)) {
				wrong("%s: row %u, column %u is %.9g", form_names[f], ids[i / cols],
				      i % cols, y[i]);
				break;
			}
		free(y);
		matrix_done(&m);
		give_back_all();
	}
}

/* Relative to the vector's own size: one entry may be the difference of large ones. */
static void compare_rows(const float *got, const double *want, uint32_t n, uint32_t width,
			 double tolerance, const char *what)
{
	for (uint32_t t = 0; t < n; t++) {
		double size = 1e-30, worst = 0;

		for (uint32_t c = 0; c < width; c++)
			size += want[(size_t)t * width + c] * want[(size_t)t * width + c] / width;
		for (uint32_t c = 0; c < width; c++) {
			const double e =
				fabs(got[(size_t)t * width + c] - want[(size_t)t * width + c]);

			worst = isfinite(e) ? fmax(worst, e) : INFINITY;
		}
		if (!(worst <= tolerance * (sqrt(size) + 1))) {
			wrong("%s: row %u is off by %.3g, its entries are of %.3g", what, t, worst,
			      sqrt(size));
			return;
		}
	}
}

static void check_norm(void)
{
	static const uint32_t shapes[][2] = {
		{ 1, 4096 }, { 3, 160 }, { 37, 128 }, { 2, 8 }, { 5, 5120 }
	};

	for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++) {
		const uint32_t tokens = shapes[i][0], dim = shapes[i][1];
		const size_t n = (size_t)tokens * dim;
		float *x = random_floats(n, 2), *w = random_floats(dim, 1), *y = allocate(n, 4);
		float *want = allocate(n, 4);
		double *wide = allocate(n, sizeof(*wide));
		const struct tensor tx = tensor_at(give(x, n * 4), 1, tokens, dim);
		const struct tensor tw = tensor_at(give(w, dim * 4), 1, 1, dim);
		const struct tensor hx = tensor_at(x, 1, tokens, dim), hw = tensor_at(w, 1, 1, dim);
		const struct tensor hy = tensor_at(want, 1, tokens, dim);
		const struct tensor ty = i % 2 ? tx : tensor_at(give(NULL, n * 4), 1, tokens, dim);
		int r;

		ref_rmsnorm(&hy, &hx, &hw, 1e-5f);
		r = op_rmsnorm(run.st, &ty, &tx, &tw, 1e-5f);
		if (r < 0)
			wrong("%u x %u: %s", tokens, dim, strerror(-r));
		take(y, ty.data, n * 4);
		for (size_t k = 0; k < n; k++)
			wide[k] = want[k];
		compare_rows(y, wide, tokens, dim, TOL_NORM * 30, "norm");
		free(x);
		free(w);
		free(y);
		free(want);
		free(wide);
		give_back_all();
	}
}

static void check_gather(void)
{
	const uint32_t rows[] = { 0, 2, 5, 36 }, dim = 4096, n = 37;
	float *x = random_floats((size_t)n * dim, 1), *y = allocate(4 * dim, 4);
	const struct tensor tx = tensor_at(give(x, (size_t)n * dim * 4), 1, n, dim);
	const struct tensor ty = tensor_at(give(NULL, 4 * dim * 4), 1, 4, dim);
	int r;

	r = op_gather(run.st, &ty, &tx, rows);
	if (r < 0)
		wrong("%s", strerror(-r));
	take(y, ty.data, 4 * dim * 4);
	for (int i = 0; i < 4; i++)
		if (memcmp(y + (size_t)i * dim, x + (size_t)rows[i] * dim, dim * 4) != 0)
			wrong("row %d is not row %u", i, rows[i]);
	free(x);
	free(y);
	give_back_all();
}

/* A cache in both memories, its pages handed out backwards, and sequences in it. */
struct cached {
	struct kv_cache host, device;
	uint32_t *pages;
	struct seq seqs[3];
	uint32_t n_seqs, tokens;
};

static uint16_t bf16_of(float value)
{
	uint32_t bits;

	memcpy(&bits, &value, sizeof(bits));
	return (uint16_t)(bits >> 16);
}

static void cached_new(struct cached *c, uint32_t kv_heads, uint32_t head_dim, uint32_t page_tokens,
		       const uint32_t (*seqs)[2], uint32_t n_seqs)
{
	size_t n;
	uint32_t used = 0, n_pages = 0;

	*c = (struct cached){ .n_seqs = n_seqs };
	for (uint32_t i = 0; i < n_seqs; i++)
		n_pages += (seqs[i][0] + seqs[i][1] + page_tokens - 1) / page_tokens;
	c->host = (struct kv_cache){ .type = dev_kv_type(run.dev),
				     .n_pages = n_pages + 3,
				     .page_tokens = page_tokens,
				     .layers = 2,
				     .kv_heads = kv_heads,
				     .head_dim = head_dim };
	n = c->host.n_pages * kv_page_bytes(&c->host);
	c->host.base = allocate(n, 1);
	for (size_t i = 0; i < n / dtype_bytes(c->host.type); i++) {
		const float value = random_f32();

		if (c->host.type == DT_F32)
			((float *)c->host.base)[i] = value;
		else
			((uint16_t *)c->host.base)[i] = bf16_of(value);
	}
	c->device = c->host;
	c->device.base = give(c->host.base, n);
	c->pages = allocate(c->host.n_pages, sizeof(*c->pages));
	for (uint32_t i = 0; i < c->host.n_pages; i++)
		c->pages[i] = c->host.n_pages - 1 - i;
	for (uint32_t i = 0; i < n_seqs; i++) {
		c->seqs[i] = (struct seq){
			.first = c->tokens,
			.n_tokens = seqs[i][1],
			.at = seqs[i][0],
			.n_pages = (seqs[i][0] + seqs[i][1] + page_tokens - 1) / page_tokens,
			.pages = c->pages + used,
		};
		c->tokens += seqs[i][1];
		used += c->seqs[i].n_pages;
	}
}

static void cached_free(struct cached *c)
{
	free(c->host.base);
	free(c->pages);
	give_back_all();
}

/* { at, n_tokens }: one token, a chunk, and one far in. */
static const uint32_t batches[][3][2] = {
	{ { 0, 1 }, { 0, 0 }, { 0, 0 } },	 { { 516, 1 }, { 0, 0 }, { 0, 0 } },
	{ { 5, 1 }, { 240, 37 }, { 516, 1 } },	 { { 0, 130 }, { 63, 1 }, { 64, 2 } },
	{ { 4000, 1 }, { 127, 1 }, { 128, 1 } }, { { 700, 70 }, { 0, 0 }, { 0, 0 } },
};
#define N_BATCHES (sizeof(batches) / sizeof(*batches))

static uint32_t n_seqs_of(size_t i)
{
	return batches[i][1][1] ? 3 : 1;
}

static const uint32_t head_shapes[][3] = { /* heads, kv_heads, head_dim */
					   { 12, 2, 128 },
					   { 5, 1, 64 },
					   { 96, 8, 128 },
					   { 4, 4, 32 },
					   { 16, 1, 256 }
};

/* The same pages in F32: what has not been rounded yet. */
static struct kv_cache in_f32(const struct kv_cache *kv)
{
	const size_t n = kv->n_pages * kv_page_bytes(kv) / dtype_bytes(kv->type);
	struct kv_cache wide = *kv;

	wide.type = DT_F32;
	wide.base = allocate(n, sizeof(float));
	for (size_t i = 0; i < n; i++)
		((float *)wide.base)[i] = (float)source_value(kv->type, kv->base, i);
	return wide;
}

static void rope_once(const uint32_t *shape, size_t b, uint32_t page_tokens, bool norms)
{
	const uint32_t heads = shape[0], kv_heads = shape[1], dim = shape[2];
	const struct tensor none = { 0 };
	struct rope_table rope;
	struct cached c;
	int r;

	cached_new(&c, kv_heads, dim, page_tokens, batches[b], n_seqs_of(b));
	rope_table_init(&rope, 1e6, dim / 2, MAX_CONTEXT);
	{
		const uint32_t t = c.tokens;
		const size_t nq = (size_t)t * heads * dim, nk = (size_t)t * kv_heads * dim;
		const size_t bytes = c.host.n_pages * kv_page_bytes(&c.host);
		float *q = random_floats(nq, 1), *k = random_floats(nk, 1),
		      *v = random_floats(nk, 1);
		float *w = random_floats(dim, 1), *got = allocate(nq, 4);
		double *wide = allocate(nq, sizeof(*wide));
		char *pages = allocate(bytes, 1);
		const struct kv_cache exact = in_f32(&c.host);
		const struct tensor dq = tensor_at(give(q, nq * 4), t, heads, dim);
		const struct tensor dk = tensor_at(give(k, nk * 4), t, kv_heads, dim);
		const struct tensor dv = tensor_at(give(v, nk * 4), t, kv_heads, dim);
		const struct tensor dw = norms ? tensor_at(give(w, dim * 4), 1, 1, dim) : none;
		const struct tensor hq = tensor_at(q, t, heads, dim),
				    hk = tensor_at(k, t, kv_heads, dim);
		const struct tensor hv = tensor_at(v, t, kv_heads, dim);
		const struct tensor hw = norms ? tensor_at(w, 1, 1, dim) : none;

		r = op_rope_kv(run.st, &dq, &dk, &dv, &dw, &dw, 1e-5f, &rope, &c.device, 1, c.seqs,
			       c.n_seqs);
		if (r < 0)
			wrong("%u/%u heads of %u: %s", heads, kv_heads, dim, strerror(-r));
		ref_rope_kv(&hq, &hk, &hv, &hw, &hw, 1e-5f, &rope, &exact, 1, c.seqs, c.n_seqs);
		take(got, dq.data, nq * 4);
		for (size_t i = 0; i < nq; i++)
			wide[i] = q[i];
		compare_rows(got, wide, t * heads, dim, TOL_ROPE * 30, "rotated q");
		take(pages, c.device.base, bytes);
		for (size_t i = 0; i < bytes / dtype_bytes(c.host.type); i++) {
			const double a = source_value(c.host.type, pages, i);
			const double e = ((const float *)exact.base)[i];

			if (!(fabs(a - e) <= fabs(e) * TOL_BF16 + TOL_ROPE * 30)) {
				wrong("%u/%u heads of %u, pages of %u: element %zu of the cache is "
				      "%g, not %g",
				      heads, kv_heads, dim, page_tokens, i, a, e);
				break;
			}
		}
		free(q);
		free(k);
		free(v);
		free(w);
		free(got);
		free(wide);
		free(pages);
		free(exact.base);
	}
	rope_table_deinit(&rope);
	cached_free(&c);
}

static void check_rope(void)
{
	for (size_t h = 0; h < sizeof(head_shapes) / sizeof(*head_shapes); h++)
		for (size_t b = 0; b < N_BATCHES; b++)
			if (!run.small || (h + b) % 3 == 0)
				rope_once(head_shapes[h], b, b % 2 ? 16 : 64, h % 2);
}

static void attention_once(const uint32_t *shape, size_t b, uint32_t page_tokens, float scale)
{
	const uint32_t heads = shape[0], kv_heads = shape[1], dim = shape[2];
	struct cached c;
	int r;

	cached_new(&c, kv_heads, dim, page_tokens, batches[b], n_seqs_of(b));
	{
		const size_t n = (size_t)c.tokens * heads * dim;
		float *q = random_floats(n, scale), *want = allocate(n, 4), *got = allocate(n, 4);
		float *again = allocate(n, 4);
		const struct tensor dq = tensor_at(give(q, n * 4), c.tokens, heads, dim);
		const struct tensor dy = tensor_at(give(NULL, n * 4), c.tokens, heads, dim);
		const struct tensor hq = tensor_at(q, c.tokens, heads, dim);
		const struct tensor hy = tensor_at(want, c.tokens, heads, dim);
		double worst = 0;

		r = op_attention(run.st, &dy, &dq, &c.device, 1, c.seqs, c.n_seqs);
		if (r < 0)
			wrong("%u/%u heads of %u: %s", heads, kv_heads, dim, strerror(-r));
		ref_attention(&hy, &hq, &c.host, 1, c.seqs, c.n_seqs);
		take(got, dy.data, n * 4);
		for (size_t i = 0; i < n; i++) {
			const double e = fabs((double)got[i] - want[i]);

			worst = isfinite(e) ? fmax(worst, e) : INFINITY;
		}
		if (!(worst <= TOL_ATTENTION * (1 + scale)))
			wrong("%u/%u heads of %u, pages of %u, batch %zu: off by %.3g", heads,
			      kv_heads, dim, page_tokens, b, worst);
		op_attention(run.st, &dy, &dq, &c.device, 1, c.seqs, c.n_seqs);
		take(again, dy.data, n * 4);
		if (memcmp(got, again, n * 4) != 0)
			wrong("%u/%u heads of %u, batch %zu: another result the second time", heads,
			      kv_heads, dim, b);
		free(q);
		free(want);
		free(got);
		free(again);
	}
	cached_free(&c);
}

static void check_attention(void)
{
	for (size_t h = 0; h < sizeof(head_shapes) / sizeof(*head_shapes); h++)
		for (size_t b = 0; b < N_BATCHES; b++)
			if (!run.small || (h + b) % 3 == 0)
				attention_once(head_shapes[h], b, b % 2 ? 16 : 64,
					       b % 3 ? 1 : 0.1f);
}

static void router_once(uint32_t tokens, uint32_t dim, uint32_t experts,
			const struct router_params *p)
{
	const size_t n = (size_t)tokens * dim, n_chosen = (size_t)tokens * p->top_k;
	float *x = random_floats(n, 1), *w = random_floats((size_t)experts * dim, 0.05f);
	float *bias = random_floats(experts, 0.01f);
	uint32_t *got = allocate(n_chosen, 4), *want = allocate(n_chosen, 4);
	float *got_w = allocate(n_chosen, 4), *want_w = allocate(n_chosen, 4);
	const struct tensor hx = tensor_at(x, 1, tokens, dim), hw = tensor_at(w, 1, experts, dim);
	const struct tensor hb = tensor_at(bias, 1, 1, experts);
	const struct tensor dx = tensor_at(give(x, n * 4), 1, tokens, dim);
	const struct tensor dw = tensor_at(give(w, (size_t)experts * dim * 4), 1, experts, dim);
	const struct tensor db = tensor_at(give(bias, experts * 4), 1, 1, experts);
	uint32_t *experts_at = give(NULL, n_chosen * 4);
	float *weights_at = give(NULL, n_chosen * 4);
	int r;

	r = op_router(run.st, experts_at, weights_at, &dx, &dw, &db, p);
	if (r < 0)
		wrong("%u experts: %s", experts, strerror(-r));
	ref_router(want, want_w, &hx, &hw, &hb, p);
	take(got, experts_at, n_chosen * 4);
	take(got_w, weights_at, n_chosen * 4);
	for (size_t i = 0; i < n_chosen; i++)
		if (got[i] != want[i] ||
		    !(fabs((double)got_w[i] - want_w[i]) <= TOL_ROUTER * (want_w[i] + 1))) {
			wrong("%u experts of %u, %u tokens: choice %zu is %u by %g, not %u by %g",
			      experts, dim, tokens, i, got[i], got_w[i], want[i], want_w[i]);
			break;
		}
	free(x);
	free(w);
	free(bias);
	free(got);
	free(want);
	free(got_w);
	free(want_w);
	give_back_all();
}

static void check_router(void)
{
	static const struct router_params params[] = {
		{ .top_k = 8, .groups = 1, .top_groups = 1, .normalise = true, .scale = 1 },
		{ .top_k = 4, .groups = 2, .top_groups = 1, .normalise = false, .scale = 2.5f },
		{ .top_k = 1, .groups = 1, .top_groups = 1, .normalise = true, .scale = 1 },
	};

	for (size_t i = 0; i < sizeof(params) / sizeof(*params); i++) {
		router_once(1, 4096, 128, &params[i]);
		router_once(7, 160, 10, &params[i]);
		router_once(37, 256, 130, &params[i]);
		if (!run.small)
			router_once(9, 512, 1024, &params[i]);
	}
}

static double *widened(const float *x, size_t n)
{
	double *wide = allocate(n, sizeof(*wide));

	for (size_t i = 0; i < n; i++)
		wide[i] = x[i];
	return wide;
}

/* y += MLP(x) of a few shapes, the exact sum kept beside. */
static void mixture_once(int form, int shared_form, uint32_t dim, uint32_t ffn, uint32_t experts,
			 uint32_t top_k, uint32_t tokens)
{
	struct matrix *m = allocate(3 * (experts + 1), sizeof(*m));
	struct weight *packed = allocate(3 * (experts + 1), sizeof(*packed));
	const size_t n = (size_t)tokens * dim;
	float *x = even_floats(n, 1), *y = even_floats(n, 1), *got = allocate(n, 4);
	double *wide = widened(x, n), *want = widened(y, n), *h = allocate(2 * ffn, sizeof(*h));
	uint32_t *chosen = allocate((size_t)tokens * top_k, 4);
	float *weights = allocate((size_t)tokens * top_k, 4);
	const struct tensor tx = tensor_at(give(x, n * 4), 1, tokens, dim);
	const struct tensor ty = tensor_at(give(y, n * 4), 1, tokens, dim);
	struct moe_weights w = { .experts = experts };
	int r;

	for (uint32_t e = 0; e <= experts; e++) {
		const bool shared = e == experts;
		const struct form *f = &forms[shared ? shared_form : form];
		const uint32_t width = shared ? 2 * ffn : ffn;

		m[3 * e] = matrix_given(f, width, dim);
		m[3 * e + 1] = matrix_given(f, width, dim);
		m[3 * e + 2] = matrix_given(f, dim, width);
		for (uint32_t i = 0; i < 3; i++)
			packed[i * (experts + 1) + e] = m[3 * e + i].packed;
	}
	w.gate = packed;
	w.up = packed + (experts + 1);
	w.down = packed + 2 * (experts + 1);
	w.shared_gate = w.gate[experts];
	w.shared_up = w.up[experts];
	w.shared_down = w.down[experts];
	for (uint32_t t = 0; t < tokens; t++) {
		for (uint32_t k = 0; k < top_k; k++) {
			/* distinct, and some experts of nobody */
			const uint32_t e = (t * 3 + k * (experts / top_k ? experts / top_k : 1)) %
					   experts;

			chosen[t * top_k + k] = e;
			weights[t * top_k + k] = 0.1f + (random_f32() + 1) / 4;
			ref_mlp(want + (size_t)t * dim, &m[3 * e].src, &m[3 * e + 1].src,
				&m[3 * e + 2].src, weights[t * top_k + k], h,
				wide + (size_t)t * dim);
		}
		ref_mlp(want + (size_t)t * dim, &m[3 * experts].src, &m[3 * experts + 1].src,
			&m[3 * experts + 2].src, 1, h, wide + (size_t)t * dim);
	}
	if (top_k)
		r = op_moe(run.st, &ty, &tx, &w, top_k, give(chosen, (size_t)tokens * top_k * 4),
			   give(weights, (size_t)tokens * top_k * 4));
	else
		r = op_mlp(run.st, &ty, &tx, &w.shared_gate, &w.shared_up, &w.shared_down);
	if (r < 0)
		wrong("%s, dim %u, ffn %u, %u tokens: %s", form_names[form], dim, ffn, tokens,
		      strerror(-r));
	take(got, ty.data, n * 4);
	compare_rows(got, want, tokens, dim, TOL_MLP,
		     top_k ? form_names[form] : form_names[shared_form]);
	for (uint32_t i = 0; i < 3 * (experts + 1); i++)
		matrix_done(&m[i]);
	free(m);
	free(packed);
	free(x);
	free(y);
	free(got);
	free(wide);
	free(want);
	free(h);
	free(chosen);
	free(weights);
	give_back_all();
}

static void check_moe(void)
{
	static const uint32_t tokens[] = { 1, 2, 5, 8, 9, 33, 150 };

	for (size_t i = 0; i < sizeof(tokens) / sizeof(*tokens); i++) {
		if (run.small && tokens[i] > 9)
			continue;
		mixture_once(2, 0, 256, 96, 10, 3, tokens[i]);
		if (!run.small || tokens[i] % 2) {
			mixture_once(3, 3, 160, 64, 16, 4, tokens[i]);
			mixture_once(0, 0, 64, 32, 7, 2, tokens[i]);
			mixture_once(2, 2, 96, 160, 4, 4, tokens[i]);
		}
	}
	if (!run.small)
		mixture_once(2, 0, 4096, 352, 16, 8, 4);
}

static void check_mlp(void)
{
	static const uint32_t tokens[] = { 1, 3, 8, 20, 130 };

	for (size_t i = 0; i < sizeof(tokens) / sizeof(*tokens); i++) {
		mixture_once(0, 0, 128, 96, 1, 0, tokens[i]);
		if (!run.small)
			mixture_once(2, 2, 256, 672, 1, 0, tokens[i]);
	}
}

/* What op_layer_in() writes, or op_norm_router(): bits, of which no run may have others. */
struct written {
	const void *at;
	size_t bytes;
	void *want, *got;
};

#define WRITTEN 3

static void written_new(struct written *w, size_t bytes)
{
	*w = (struct written){ give(NULL, bytes), bytes, allocate(bytes, 1), allocate(bytes, 1) };
}

/* The first time that is what the others are held against. */
static void written_take(struct written *w, int n_times, const char *what)
{
	for (int i = 0; i < WRITTEN; i++) {
		take(n_times ? w[i].got : w[i].want, w[i].at, w[i].bytes);
		if (n_times && memcmp(w[i].got, w[i].want, w[i].bytes)) {
			wrong("%s, time %d: result %d has other bits", what, n_times, i);
			return;
		}
	}
}

static void written_free(struct written *w)
{
	for (int i = 0; i < WRITTEN; i++) {
		free(w[i].want);
		free(w[i].got);
	}
}

/* In one kernel, many times, as by one operation after another: blocks meet in another order each time. */
static void layer_once(uint32_t dim, const uint32_t *shape, const uint32_t (*seqs)[2],
		       uint32_t n_seqs, int n_times)
{
	const uint32_t heads = shape[0], kv_heads = shape[1], head_dim = shape[2];
	const uint32_t rows[3] = { heads * head_dim, kv_heads * head_dim, kv_heads * head_dim };
	float *x, *norm = random_floats(dim, 1), *head_norm = random_floats(head_dim, 1);
	struct rope_table rope;
	struct written w[WRITTEN];
	struct layer_in in = { .eps = 1e-5f, .layer = 1 };
	struct tensor room, tx;
	struct matrix m[3];
	struct cached c;

	cached_new(&c, kv_heads, head_dim, 64, seqs, n_seqs);
	rope_table_init(&rope, 1e6, head_dim / 2, MAX_CONTEXT);
	x = random_floats((size_t)c.tokens * dim, 1);
	tx = tensor_at(give(x, (size_t)c.tokens * dim * 4), 1, c.tokens, dim);
	room = tensor_at(give(NULL, (size_t)c.tokens * dim * 4), 1, c.tokens, dim);
	written_new(&w[0], (size_t)c.tokens * rows[0] * 4);
	written_new(&w[1], (size_t)c.tokens * rows[2] * 4);
	w[2] = (struct written){ c.device.base, c.host.n_pages * kv_page_bytes(&c.host), NULL, NULL };
	w[2].want = allocate(w[2].bytes, 1);
	w[2].got = allocate(w[2].bytes, 1);
	for (int i = 0; i < 3; i++) {
		void *y = i == 1 ? give(NULL, (size_t)c.tokens * rows[1] * 4) : (void *)w[i / 2].at;

		m[i] = matrix_given(&forms[0], rows[i], dim);
		in.jobs[i] = (struct linear_job){ .w = &m[i].packed,
						  .y = tensor_at(y, 1, c.tokens, rows[i]) };
	}
	in.norm = tensor_at(give(norm, dim * 4), 1, 1, dim);
	in.q_norm = in.k_norm = tensor_at(give(head_norm, head_dim * 4), 1, 1, head_dim);
	in.rope = &rope;
	in.kv = &c.device;
	in.seqs = c.seqs;
	in.n_seqs = c.n_seqs;
	for (int i = 0; i <= n_times && !run.failed; i++) {
		const int r = (i ? op_layer_in : layer_in_apart)(run.st, &in, &room, &tx);

		if (r < 0)
			wrong("%u/%u heads of %u: %s", heads, kv_heads, head_dim, strerror(-r));
		written_take(w, i, "a layer's beginning");
		for (int j = 0; j < 3; j++)
			op_clear(run.st, &in.jobs[j].y);
		st_wait(run.st);
		dev_write(run.dev, c.device.base, c.host.base, w[2].bytes);
	}
	for (int i = 0; i < 3; i++)
		matrix_done(&m[i]);
	free(x);
	free(norm);
	free(head_norm);
	rope_table_deinit(&rope);
	written_free(w);
	cached_free(&c);
}

static void norm_router_once(uint32_t tokens, uint32_t dim, uint32_t experts, int n_times)
{
	const struct router_params p = { 8, 1, 1, true, 1 };
	const size_t n = (size_t)tokens * dim;
	float *x = random_floats(n, 1), *norm = random_floats(dim, 1);
	float *router = random_floats((size_t)experts * dim, 0.05f);
	float *bias = random_floats(experts, 0.01f);
	const struct tensor tx = tensor_at(give(x, n * 4), 1, tokens, dim);
	const struct tensor tnorm = tensor_at(give(norm, dim * 4), 1, 1, dim);
	const struct tensor tw = tensor_at(give(router, (size_t)experts * dim * 4), 1, experts, dim);
	const struct tensor tbias = tensor_at(give(bias, experts * 4), 1, 1, experts);
	struct written w[WRITTEN];

	written_new(&w[0], n * 4);
	written_new(&w[1], (size_t)tokens * p.top_k * 4);
	written_new(&w[2], (size_t)tokens * p.top_k * 4);
	for (int i = 0; i <= n_times && !run.failed; i++) {
		const struct tensor y = tensor_at((void *)w[0].at, 1, tokens, dim);
		const int r = (i ? op_norm_router : norm_router_apart)(
			run.st, &y, (uint32_t *)w[1].at, (float *)w[2].at, &tx, &tnorm, 1e-5f, &tw,
			&tbias, &p);

		if (r < 0)
			wrong("%u experts: %s", experts, strerror(-r));
		written_take(w, i, "norm and router");
		op_clear(run.st, &y);
	}
	free(x);
	free(norm);
	free(router);
	free(bias);
	written_free(w);
	give_back_all();
}

static void check_layer(void)
{
	static const uint32_t one[][2] = { { 516, 1 } }, four[][2] = { { 62, 3 }, { 300, 1 } };
	static const uint32_t few_heads[] = { 6, 2, 32 }, air[] = { 96, 8, 128 };
	const int n_times = dev_is_host(run.dev) ? 1 : 200;

	layer_once(160, few_heads, four, 2, 3);
	norm_router_once(3, 160, 10, 3);
	if (run.small)
		return;
	layer_once(4096, air, one, 1, n_times);
	layer_once(4096, air, four, 2, n_times);
	norm_router_once(1, 4096, 128, n_times);
	norm_router_once(4, 5120, 160, n_times);
}

static const struct {
	const char *name;
	void (*check)(void);
} checks[] = {
	{ "embed", check_embed },     { "gather", check_gather },
	{ "norm", check_norm },	      { "linear", check_linear },
	{ "linears", check_linears }, { "mlp", check_mlp },
	{ "moe", check_moe },	      { "router", check_router },
	{ "rope", check_rope },	      { "attention", check_attention },
	{ "layer", check_layer },
};

static bool is_wanted(const char *name, int argc, char **argv)
{
	bool any = false;

	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--small") == 0)
			continue;
		any = true;
		if (strncmp(name, argv[i], strlen(argv[i])) == 0)
			return true;
	}
	return !any;
}

static int open_device(void)
{
	const struct op_limits limits = { .tokens = 600,
					  .dim = 12288,
					  .heads = 96,
					  .kv_heads = 8,
					  .head_dim = 256,
					  .ffn_dim = 2048,
					  .experts = 1024,
					  .top_k = 8,
					  .vocab = 4096,
					  .max_context = MAX_CONTEXT };
	int r;

	r = dev_open(isa_best(), 0, &run.dev);
	if (r < 0) {
		printf("skip ops: cannot compute with %s: %s\n", isa_name(isa_best()),
		       r == -ENODEV ? dev_why() : strerror(-r));
		printf("0 passed, 0 failed, 1 skipped\n");
		return r;
	}
	r = st_open(run.dev, op_scratch(run.dev, &limits), &run.st);
	if (r < 0)
		give_up("st_open", r);
	printf("on %s%s%s\n", dev_name(run.dev), dev_product(run.dev) ? ", " : "",
	       dev_product(run.dev) ? dev_product(run.dev) : "");
	return 0;
}

static void count(const char *name, bool failed)
{
	printf("%s %s %016" PRIx64 "\n", failed ? "not ok" : "ok", name, run.results);
	fflush(stdout);
	failed ? run.n_failed++ : run.n_passed++;
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		run.small |= strcmp(argv[i], "--small") == 0;
	if (open_device() < 0)
		return 77;
	for (size_t i = 0; i < sizeof(checks) / sizeof(*checks); i++) {
		if (!is_wanted(checks[i].name, argc, argv))
			continue;
		run.failed = false;
		run.results = 0xcbf29ce484222325;
		checks[i].check();
		count(checks[i].name, run.failed);
	}
	st_close(run.st);
	dev_close(run.dev);
	if (is_wanted("faults", argc, argv) && !run.small) {
		const int r = faults_check();

		if (r == -ENOTSUP) {
			printf("skip faults: this backend makes no calls that can fail\n");
			run.n_skipped++;
		} else {
			count("faults", r < 0);
		}
	}
	printf("%d passed, %d failed, %d skipped\n", run.n_passed, run.n_failed, run.n_skipped);
	return run.n_failed > 0;
}
