/*
 * The loops behind struct ops_kernels, for whatever LANES says. For a row and
 * a position the additions have one order, whatever else is computed beside
 * them; a tail of fewer than LANES is done apart, so that nothing beyond a row
 * is read.
 */
#include <math.h>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/vector.h"

#define DIM_VECTORS_MAX (KV_HEAD_DIM_MAX / LANES)

static void body_rmsnorm(float *y, const float *x, const float *w, uint32_t dim, float eps)
{
	vd sums[4] = { 0 };
	double sum, factor;
	uint32_t i = 0;

	for (; i + 4 * LANES_D <= dim; i += 4 * LANES_D) {
		for (uint32_t j = 0; j < 4; j++) {
			const vd v = v_load_d(x + i + j * LANES_D);

			sums[j] += v * v;
		}
	}
	sum = v_sum_d((sums[0] + sums[1]) + (sums[2] + sums[3]));
	for (uint32_t k = i; k < dim; k++)
		sum += (double)x[k] * x[k];
	factor = 1 / sqrt(sum / dim + (double)eps);

	for (i = 0; i + LANES_D <= dim; i += LANES_D) {
		const vd v = v_load_d(x + i) * factor * v_load_d(w + i);
		const vf2 rounded = __builtin_convertvector(v, vf2);

		memcpy(y + i, &rounded, sizeof(rounded));
	}
	for (; i < dim; i++)
		y[i] = (float)(x[i] * factor * w[i]);
}

static void body_rotate(float *x, const float *cos, const float *sin, uint32_t half)
{
	uint32_t i = 0;

	for (; i + LANES <= half; i += LANES) {
		const vf a = v_load(x + i), b = v_load(x + i + half);
		const vf c = v_load(cos + i), s = v_load(sin + i);

		v_store(x + i, a * c - b * s);
		v_store(x + i + half, b * c + a * s);
	}
	for (; i < half; i++) {
		const float a = x[i], b = x[i + half];

		x[i] = a * cos[i] - b * sin[i];
		x[i + half] = b * cos[i] + a * sin[i];
	}
}

/* Two chains for each row: even and odd vectors. */
INLINE void dots_of(double *ret, const float *x, const float *w, uint32_t dim, const uint32_t n_rows)
{
	vd even[4] = { 0 }, odd[4] = { 0 };
	uint32_t i = 0;

	for (; i + 2 * LANES_D <= dim; i += 2 * LANES_D) {
		const vd x_even = v_load_d(x + i), x_odd = v_load_d(x + i + LANES_D);

#pragma GCC unroll 4
		for (uint32_t r = 0; r < n_rows; r++) {
			even[r] += x_even * v_load_d(w + (size_t)r * dim + i);
			odd[r] += x_odd * v_load_d(w + (size_t)r * dim + i + LANES_D);
		}
	}
	for (uint32_t r = 0; r < n_rows; r++) {
		double sum = v_sum_d(even[r] + odd[r]);

		for (uint32_t k = i; k < dim; k++)
			sum += (double)x[k] * w[(size_t)r * dim + k];
		ret[r] = sum;
	}
}

static void body_dots(double *ret, const float *x, const float *w, uint32_t dim, uint32_t n_rows)
{
	uint32_t r = 0;

	for (; r + 4 <= n_rows; r += 4)
		dots_of(ret + r, x, w + (size_t)r * dim, dim, 4);
	for (; r < n_rows; r++)
		dots_of(ret + r, x, w + (size_t)r * dim, dim, 1);
}

/* Widens LANES positions from @at on, as far as @end, into @block [LANES][@stride], zeros behind head_dim. */
static void load_block(float *block, uint32_t stride, const struct attend *a, enum kv_part part,
		       uint32_t at, uint32_t end)
{
	const uint32_t head_dim = a->kv->head_dim;

	for (uint32_t p = 0; p < LANES && at + p < end; p++) {
		const void *row = kv_row(a->kv, a->seq, a->layer, part, a->kv_head, at + p);
		float *to = block + p * stride;
		uint32_t i = 0;

		if (a->kv->type == DT_F32) {
			memcpy(to, row, head_dim * sizeof(*to));
			continue;
		}
		for (; i + LANES <= head_dim; i += LANES)
			v_store(to + i, v_load_bf16((const uint16_t *)row + i));
		for (; i < head_dim; i++) {
			const uint32_t bits = (uint32_t)((const uint16_t *)row)[i] << 16;

			memcpy(to + i, &bits, sizeof(bits));
		}
	}
}

/*
 * Adds neighbouring runs of @run lanes of a and of b: in each pair of runs of
 * the result the first is a's sum, the second b's.
 */
INLINE vf fold(vf a, vf b, const int32_t run)
{
	vi first, second;

#pragma GCC unroll 16
	for (int32_t i = 0; i < LANES; i++) {
		const int32_t from = i - (i & run) + ((i & run) ? LANES : 0);

		first[i] = from;
		second[i] = from + run;
	}
	return __builtin_shuffle(a, b, first) + __builtin_shuffle(a, b, second);
}

/* Scores of one query with the LANES keys of @block, one in each lane. */
INLINE vf scores_of(const float *q, const float *block, uint32_t stride)
{
	vf acc[LANES] = { 0 };

	for (uint32_t i = 0; i < stride; i += LANES) {
		const vf part = v_load(q + i);

#pragma GCC unroll 16
		for (uint32_t p = 0; p < LANES; p++)
			acc[p] += part * v_load(block + p * stride + i);
	}

#pragma GCC unroll 4
	for (int32_t run = 1; run < LANES; run *= 2)
#pragma GCC unroll 8
		for (int32_t p = 0; p < LANES / 2; p++)
			if (p * run < LANES / 2)
				acc[p] = fold(acc[2 * p], acc[2 * p + 1], run);
	return acc[0];
}

/* acc[0 .. stride) += weights[p] * block[p] for p below n, in that order. */
INLINE void add_values(float *acc, const float *weights, const float *block, uint32_t stride,
		       uint32_t n, const uint32_t vectors)
{
	vf sum[8];

#pragma GCC unroll 8
	for (uint32_t j = 0; j < vectors; j++)
		sum[j] = v_load(acc + j * LANES);
	for (uint32_t p = 0; p < n; p++) {
		const vf weight = v_all(weights[p]);

#pragma GCC unroll 8
		for (uint32_t j = 0; j < vectors; j++)
			sum[j] += weight * v_load(block + p * stride + j * LANES);
	}
#pragma GCC unroll 8
	for (uint32_t j = 0; j < vectors; j++)
		v_store(acc + j * LANES, sum[j]);
}

static void add_block(float *acc, const float *weights, const float *block, uint32_t stride,
		      uint32_t n)
{
	uint32_t i = 0;

	for (; i + 8 * LANES <= stride; i += 8 * LANES)
		add_values(acc + i, weights, block + i, stride, n, 8);
	for (; i + 4 * LANES <= stride; i += 4 * LANES)
		add_values(acc + i, weights, block + i, stride, n, 4);
	for (; i < stride; i += LANES)
		add_values(acc + i, weights, block + i, stride, n, 1);
}

/* Turns @n scores into weights in place, zeros up to a whole vector; returns their largest and sum. */
static float soften(float *scores, uint32_t n, float *ret_sum)
{
	vf most = v_all(-INFINITY), sum = { 0 };
	float largest;

	for (uint32_t i = n; i % LANES; i++)
		scores[i] = -INFINITY;
	for (uint32_t i = 0; i < n; i += LANES)
		most = v_max(most, v_load(scores + i));
	largest = v_most(most);

	for (uint32_t i = 0; i < n; i += LANES) {
		const vf weights = v_exp(v_load(scores + i) - v_all(largest));

		v_store(scores + i, weights);
		sum += weights;
	}
	*ret_sum = v_sum(sum);
	return largest;
}

static void body_attend(const struct attend *a, uint32_t chunk, struct attend_part *ret)
{
	float q[ATTEND_ROWS_MAX * KV_HEAD_DIM_MAX], acc[ATTEND_ROWS_MAX * KV_HEAD_DIM_MAX];
	float scores[ATTEND_ROWS_MAX * ATTEND_CHUNK], block[LANES * KV_HEAD_DIM_MAX];
	uint32_t seen[ATTEND_ROWS_MAX];
	const uint32_t head_dim = a->kv->head_dim, begin = chunk * ATTEND_CHUNK;
	const uint32_t stride = (head_dim + LANES - 1) / LANES * LANES;
	const float scale = (float)(1 / sqrt(head_dim));
	uint32_t end = begin;

	memset(block, 0, LANES * stride * sizeof(*block));
	memset(acc, 0, a->n_rows * stride * sizeof(*acc));
	for (uint32_t r = 0; r < a->n_rows; r++) {
		const uint32_t row_end = a->positions[r] + 1;

		seen[r] = row_end <= begin ? 0 : row_end - begin;
		if (seen[r] > ATTEND_CHUNK)
			seen[r] = ATTEND_CHUNK;
		if (begin + seen[r] > end)
			end = begin + seen[r];
		memset(q + r * stride, 0, stride * sizeof(*q));
		memcpy(q + r * stride, a->q[r], head_dim * sizeof(*q));
	}

	for (uint32_t at = 0; begin + at < end; at += LANES) {
		load_block(block, stride, a, KV_K, begin + at, end);
		for (uint32_t r = 0; r < a->n_rows; r++)
			if (at < seen[r])
				v_store(scores + r * ATTEND_CHUNK + at,
					scores_of(q + r * stride, block, stride) * scale);
	}

	for (uint32_t r = 0; r < a->n_rows; r++) {
		ret->most[r] = -INFINITY;
		ret->sum[r] = 0;
		if (seen[r] > 0)
			ret->most[r] = soften(scores + r * ATTEND_CHUNK, seen[r], &ret->sum[r]);
	}

	for (uint32_t at = 0; begin + at < end; at += LANES) {
		load_block(block, stride, a, KV_V, begin + at, end);
		for (uint32_t r = 0; r < a->n_rows; r++)
			if (at < seen[r])
				add_block(acc + r * stride, scores + r * ATTEND_CHUNK + at, block,
					  stride, seen[r] - at < LANES ? seen[r] - at : LANES);
	}
	for (uint32_t r = 0; r < a->n_rows; r++)
		memcpy(ret->acc + r * head_dim, acc + r * stride, head_dim * sizeof(*acc));
}

static float exp_one(float x)
{
	return v_exp(v_all(x))[0];
}

static void body_merge(struct attend_part *total, const struct attend_part *part, uint32_t n_rows,
		       uint32_t head_dim)
{
	for (uint32_t r = 0; r < n_rows; r++) {
		const float most = total->most[r] > part->most[r] ? total->most[r] : part->most[r];
		float *to = total->acc + r * head_dim, keep, add;
		const float *from = part->acc + r * head_dim;
		uint32_t i = 0;

		if (part->sum[r] == 0)
			continue;
		keep = exp_one(total->most[r] - most);
		add = exp_one(part->most[r] - most);
		total->most[r] = most;
		total->sum[r] = total->sum[r] * keep + part->sum[r] * add;
		for (; i + LANES <= head_dim; i += LANES)
			v_store(to + i, v_load(to + i) * keep + v_load(from + i) * add);
		for (; i < head_dim; i++)
			to[i] = to[i] * keep + from[i] * add;
	}
}
