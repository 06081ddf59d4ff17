/* op_linears() and op_embed(): checks, activations, and the cutting of matrices among threads. */
#include <errno.h>
#include <string.h>

#include "kernels/cpu/acts.h"
#include "kernels/cpu/exact.h"
#include "kernels/cpu/nodes.h"
#include "kernels/cpu/pack.h"
#include "kernels/linear.h"

/* Strips that stay in a thread's cache over the blocks of tokens. */
#define CHUNK_STRIPS 4
/* Of those a thread takes as many at a time as there is room for of one token's results. */
#define CHUNKS_MAX (MUL_TOKENS * MUL_ROWS / (CHUNK_STRIPS * STRIP_ROWS))

struct linears {
	const struct linear_job *jobs;
	uint32_t n_jobs;
	struct acts acts;
	const struct linear_kernels *kernels;
	const struct dev *dev;
	struct work_left chunks[OP_LINEARS_MAX]; /* of each job */
};

const struct linear_kernels *linear_kernels_of(enum isa isa)
{
	switch (isa) {
	case ISA_PORTABLE:
		return &linear_portable;
#if defined(__x86_64__)
	case ISA_AVX2:
		return &linear_avx2;
	case ISA_AVX512:
		return &linear_avx512;
	case ISA_AVX512BF16:
		return &linear_avx512bf16;
	case ISA_AVX512BF16_EMULATED:
		return &linear_avx512bf16_emulated;
	case ISA_AMX:
		return &linear_amx;
#endif
	default:
		return NULL;
	}
}

static bool is_matrix(const struct tensor *t, uint32_t rows, uint32_t cols)
{
	return t->data && t->type == DT_F32 && t->shape[0] == 1 && t->shape[1] == rows &&
	       t->shape[2] == cols;
}

static bool job_fits(const struct linear_job *job, const struct tensor *x)
{
	const struct weight *w = job->w;

	if (!weight_is_whole(w, w->rows, x->shape[2]) || !w->rows)
		return false;
	if (job->bias.data && !is_matrix(&job->bias, 1, w->rows))
		return false;
	return is_matrix(&job->y, x->shape[1], w->rows);
}

static uint32_t chunks_of(const struct linear_job *job)
{
	return (strips_of(job->w->rows) + CHUNK_STRIPS - 1) / CHUNK_STRIPS;
}

/* to += from, a strip at a time: the compiler makes vectors of what has a fixed length. */
static void add_row(float *restrict to, const float *restrict from, uint32_t n)
{
	for (; n >= STRIP_ROWS; n -= STRIP_ROWS, to += STRIP_ROWS, from += STRIP_ROWS)
		for (uint32_t i = 0; i < STRIP_ROWS; i++)
			to[i] += from[i];
	for (uint32_t i = 0; i < n; i++)
		to[i] += from[i];
}

/* Up to n_rows rows of the result from @row on; @out has MUL_ROWS, or all of one token. */
static void store(const struct linear_job *job, float *out, uint32_t row, uint32_t n_rows,
		  uint32_t token, uint32_t n_tokens)
{
	const uint32_t left = job->w->rows - row, n = left < n_rows ? left : n_rows;
	const float *bias = job->bias.data;

	for (uint32_t t = 0; t < n_tokens; t++, out += MUL_ROWS) {
		float *y = (float *)job->y.data + (size_t)(token + t) * job->w->rows + row;

		if (bias)
			add_row(out, bias + row, n);
		if (job->add)
			add_row(y, out, n);
		else
			memcpy(y, out, n * sizeof(*y));
	}
}

/* One token's: the halves of the run side by side, so that both are read without a break. */
static void multiply_halves(size_t bytes, mul_fn mul, float *out, const uint8_t *w,
			    uint32_t n_strips, uint32_t n_groups, const uint8_t *const *x)
{
	const uint32_t half = n_strips / 2;
	const size_t strip = STRIP_ROWS * sizeof(*out);
	_Alignas(64) float both[MUL_TOKENS * MUL_ROWS];

	for (uint32_t s = 0; s < half; s++) {
		mul(both, w + s * bytes, half * bytes, MUL_STRIPS, n_groups, x, 1);
		memcpy(out + s * STRIP_ROWS, both, strip);
		memcpy(out + (half + s) * STRIP_ROWS, both + STRIP_ROWS, strip);
	}
	if (n_strips % 2) {
		mul(both, w + 2 * half * bytes, bytes, 1, n_groups, x, 1);
		memcpy(out + 2 * half * STRIP_ROWS, both, strip);
	}
}

void multiply_strips(const struct dev *dev, enum weight_kind kind, mul_fn mul, float *out,
		     const uint8_t *w, uint32_t n_strips, uint32_t cols, const uint8_t *const *x,
		     uint32_t n_tokens)
{
	const uint32_t most = n_tokens == 1 ? 1 : MUL_STRIPS;
	const uint32_t n_groups = groups_of(cols);
	const size_t bytes = strip_bytes(kind, cols);

	if (n_tokens == 1 && !dev->in_turn) {
		multiply_halves(bytes, mul, out, w, n_strips, n_groups, x);
		return;
	}
	while (n_strips) {
		const uint32_t n = n_strips < most ? n_strips : most;

		mul(out, w, bytes, n, n_groups, x, n_tokens);
		out += n * STRIP_ROWS;
		w += n * bytes;
		n_strips -= n;
	}
}

/* Strips [from, to) of a job: for one token in one call, see multiply_strips(). */
static void run_strips(const struct linears *l, const struct linear_job *job, uint32_t from,
		       uint32_t to)
{
	const struct weight *w = job->w;
	const struct product *product = product_of(l->kernels, w->kind, l->acts.tokens);
	const size_t bytes = strip_bytes(w->kind, w->cols);
	const uint32_t most = tokens_at_once(l->kernels, l->acts.row_bytes[product->act]);
	_Alignas(64) float out[MUL_TOKENS * MUL_ROWS];

	for (uint32_t token = 0; token < l->acts.tokens; token += most) {
		const uint32_t left = l->acts.tokens - token, n = left < most ? left : most;
		const uint32_t at_once = n == 1 ? to - from : MUL_STRIPS;

		for (uint32_t s = from; s < to; s += at_once) {
			multiply_strips(l->dev, w->kind, product->mul, out,
					(const uint8_t *)w->data + s * bytes,
					to - s < at_once ? to - s : at_once, w->cols,
					l->acts.at[product->act] + token, n);
			store(job, out, s * STRIP_ROWS, at_once * STRIP_ROWS, token, n);
		}
	}
}

static void run_linears(void *userdata, uint32_t thread, uint32_t n_threads)
{
	struct linears *l = userdata;
	const uint32_t node = node_of_thread(l->dev, thread);
	uint32_t chunk, n;

	(void)n_threads;
	for (uint32_t i = 0; i < l->n_jobs; i++)
		while ((n = work_left_take(&l->chunks[i], node, &chunk))) {
			const uint32_t n_strips = strips_of(l->jobs[i].w->rows);
			const uint32_t end = (chunk + n) * CHUNK_STRIPS;
			const uint32_t to = end < n_strips ? end : n_strips;
			const uint32_t in_run = l->acts.tokens == 1 ? end : CHUNK_STRIPS;

			for (uint32_t s = chunk * CHUNK_STRIPS; s < to; s += in_run)
				run_strips(l, &l->jobs[i], s, to - s < in_run ? to : s + in_run);
		}
}

static int run_exact(struct stream *st, const struct linear_job *jobs, uint32_t n_jobs,
		     const struct tensor *x)
{
	int r = 0;

	for (uint32_t i = 0; i < n_jobs && r == 0; i++)
		r = exact_linear(st, &jobs[i], x);
	return r;
}

int op_linears(struct stream *st, const struct linear_job *jobs, uint32_t n_jobs,
	       const struct tensor *x)
{
	const uint32_t tokens = x->shape[1], cols = x->shape[2];
	struct linears l;
	uint32_t forms = 0;
	size_t at = 0;
	int r;

	if (n_jobs > OP_LINEARS_MAX || x->type != DT_F32 || x->shape[0] != 1 || !cols)
		return -EINVAL;
	if (tokens == 0)
		return 0;
	if (!x->data)
		return -EINVAL;
	for (uint32_t i = 0; i < n_jobs; i++)
		if (!job_fits(&jobs[i], x))
			return -EINVAL;
	if (st->dev->isa == ISA_REF)
		return run_exact(st, jobs, n_jobs, x);

	l.jobs = jobs;
	l.n_jobs = n_jobs;
	l.kernels = st->dev->linear;
	l.dev = st->dev;
	for (uint32_t i = n_jobs, later = 0; i--; later += chunks_of(&jobs[i]))
		work_left_init(&l.chunks[i], st->dev, chunks_of(&jobs[i]), later, CHUNKS_MAX);
	for (uint32_t i = 0; i < n_jobs; i++)
		forms |= acts_form(st->dev, jobs[i].w->kind, tokens);
	r = acts_take(st, &l.acts, &at, x->data, tokens, cols, forms);
	if (r < 0)
		return r;
	pool_run(st->dev, run_linears, &l);
	return 0;
}

/* There is one way for each kind and number of tokens. */
int op_linears_choose(struct stream *st, const struct linear_set *sets, uint32_t n_sets,
		      const char *path, char *ret_text, size_t text_bytes)
{
	(void)st, (void)sets, (void)n_sets, (void)path;
	if (text_bytes)
		ret_text[0] = '\0';
	return 0;
}

int op_embed_part(struct stream *st, const struct tensor *y, const struct weight *table,
		  uint32_t first, uint32_t vocab, const uint32_t *ids)
{
	const uint32_t tokens = y->shape[1];

	(void)st;
	if (y->type != DT_F32 || y->shape[0] != 1)
		return -EINVAL;
	if (tokens == 0)
		return 0;
	if (!y->data || !weight_is_whole(table, table->rows, y->shape[2]))
		return -EINVAL;
	for (uint32_t t = 0; t < tokens; t++)
		if (ids[t] >= vocab)
			return -EINVAL;
	for (uint32_t t = 0; t < tokens; t++) {
		float *row = (float *)y->data + (size_t)t * y->shape[2];

		if (ids[t] - first < table->rows) /* an id below wraps, and is not there either */
			unpack_row_f32(row, table, ids[t] - first);
		else
			memset(row, 0, y->shape[2] * sizeof(*row));
	}
	return 0;
}
