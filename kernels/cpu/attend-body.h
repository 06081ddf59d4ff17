/*
 * Attention of some queries over one chunk of positions, for whatever LANES
 * says: scores, softmax, then values. Queries are taken four at a time where
 * they see the same positions, so that what is loaded of a key or a value
 * serves all four; a query's additions have one order, whoever is beside it.
 */
#include <math.h>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/vector.h"

/* Dims that one load of BF16 brings: the even ones of them, then the odd ones. */
#define SPAN (2 * LANES)
/* Positions whose keys or values stay in the first cache while all queries go over them. */
#define BLOCK 32
/* Queries side by side. */
#define SIDE 4

/* Keys or values of some positions, in whole spans. */
struct attend_rows {
	const uint8_t *at[BLOCK];
	const uint8_t *ahead[BLOCK]; /* what will be read next; memory is asked for it meanwhile, */
	uint32_t n_ahead, asked, a_time; /* @a_time of these rows beside each tile */
	size_t bytes;			 /* of a row */
	_Alignas(64) uint8_t padded[BLOCK][KV_HEAD_DIM_MAX * sizeof(float)];
};

/* Addresses of positions @at … @at + n - 1. */
static void point_at(const uint8_t **rows, const struct attend *a, enum kv_part part, uint32_t at,
		     uint32_t n)
{
	const size_t bytes = a->kv->head_dim * dtype_bytes(a->kv->type);

	for (uint32_t p = 0; p < n;) {
		const uint8_t *row = kv_row(a->kv, a->seq, a->layer, part, a->kv_head, at + p);
		const uint32_t in_page = a->kv->page_tokens - (at + p) % a->kv->page_tokens;
		const uint32_t end = n - p < in_page ? n : p + in_page;

		for (; p < end; p++, row += bytes)
			rows[p] = row;
	}
}

/* Asks memory for some of the rows that will be read next. */
static inline void ask_ahead(struct attend_rows *rows)
{
	const uint32_t left = rows->n_ahead - rows->asked;
	const uint32_t end = rows->asked + (left < rows->a_time ? left : rows->a_time);

	for (; rows->asked < end; rows->asked++)
		for (size_t i = 0; i < rows->bytes; i += 64)
			__builtin_prefetch(rows->ahead[rows->asked] + i);
}

/* One of the two vectors that dims i … i + SPAN - 1 of a row make. */
INLINE vf load_half(const uint8_t *row, uint32_t i, const int half, const bool f32)
{
	vu pairs;

	if (f32)
		return v_load((const float *)row + i + half * LANES);
	memcpy(&pairs, row + i * sizeof(uint16_t), sizeof(pairs));
	return (vf)(half ? pairs & 0xffff0000 : pairs << 16);
}

/* Even and odd elements of two vectors; and back. */
INLINE void part_pairs(vf *even, vf *odd, vf a, vf b)
{
#define EVEN(i) (2 * (i))
#define ODD(i) (2 * (i) + 1)
	*even = __builtin_shuffle(a, b, (vi)V_EACH(EVEN));
	*odd = __builtin_shuffle(a, b, (vi)V_EACH(ODD));
}

INLINE void join_pairs(vf *a, vf *b, vf even, vf odd)
{
#define LOW(i) ((i) / 2 + (i) % 2 * LANES)
#define HIGH(i) (LOW(i) + LANES / 2)
	*a = __builtin_shuffle(even, odd, (vi)V_EACH(LOW));
	*b = __builtin_shuffle(even, odd, (vi)V_EACH(HIGH));
}

/* Lays the @n dims of a head out as load_half() brings them, zeros behind them up to @stride. */
static void to_spans(float *spans, const float *dims, uint32_t n, uint32_t stride, bool f32)
{
	float padded[KV_HEAD_DIM_MAX] = { 0 };

	memcpy(padded, dims, n * sizeof(*dims));
	for (uint32_t i = 0; i < stride; i += SPAN) {
		vf first = v_load(padded + i), second = v_load(padded + i + LANES);

		if (!f32)
			part_pairs(&first, &second, first, second);
		v_store(spans + i, first);
		v_store(spans + i + LANES, second);
	}
}

static void from_spans(float *dims, const float *spans, uint32_t n, uint32_t stride, bool f32)
{
	float padded[KV_HEAD_DIM_MAX];

	for (uint32_t i = 0; i < stride; i += SPAN) {
		vf first = v_load(spans + i), second = v_load(spans + i + LANES);

		if (!f32)
			join_pairs(&first, &second, first, second);
		v_store(padded + i, first);
		v_store(padded + i + LANES, second);
	}
	memcpy(dims, padded, n * sizeof(*dims));
}

/*
 * The sums over the lanes of LANES vectors, one in each lane: vectors are
 * halved and put side by side, then pairs of lanes are added.
 */
#define HALVES(i, half) ((i) & (half) ? LANES + ((i) ^ (half)) : (i))
#define HALVES_8(i) HALVES(i, 8)
#define HALVES_4(i) HALVES(i, 4)
#define HALVES_2(i) HALVES(i, 2)
#define OTHERS_8(i) (HALVES(i, 8) | 8)
#define OTHERS_4(i) (HALVES(i, 4) | 4)
#define OTHERS_2(i) (HALVES(i, 2) | 2)
#define PAIRS(i) ((i) - (i) % 4 + (i) % 2 * 2 + ((i) & 2 ? LANES : 0))
#define PAIRED(i) (PAIRS(i) + 1)
#define FOLD(a, b, ones, others)                                                                   \
	(__builtin_shuffle(a, b, (vi)V_EACH(ones)) + __builtin_shuffle(a, b, (vi)V_EACH(others)))

INLINE vf fold_all(vf v[LANES])
{
	vf a, b;

#if LANES > 8
#pragma GCC unroll 8
	for (int p = 0; p < 8; p++)
		v[p] = FOLD(v[p], v[p + 8], HALVES_8, OTHERS_8);
#endif
#if LANES > 4
#pragma GCC unroll 4
	for (int p = 0; p < 4; p++)
		v[p] = FOLD(v[p], v[p + 4], HALVES_4, OTHERS_4);
#endif
	a = FOLD(v[0], v[1], HALVES_2, OTHERS_2);
	b = FOLD(v[2], v[3], HALVES_2, OTHERS_2);
	return FOLD(a, b, PAIRS, PAIRED);
}

/* Queries and keys side by side: each key is widened for two queries, each query read for four keys. */
#define PAIR 2
#define KEYS 4

/* Products of N queries, @stride apart, with KEYS keys, not yet summed over the lanes. */
INLINE void multiply_keys(vf (*parts)[BLOCK], const float *q, uint32_t stride,
			  const uint8_t *const key[KEYS], const int N, const bool f32)
{
	vf sums[PAIR][KEYS] = { 0 };

	for (uint32_t i = 0; i < stride; i += SPAN) {
#pragma GCC unroll 2
		for (int half = 0; half < 2; half++) {
			vf part[KEYS];

#pragma GCC unroll 4
			for (int k = 0; k < KEYS; k++)
				part[k] = load_half(key[k], i, half, f32);
#pragma GCC unroll 2
			for (int r = 0; r < N; r++) {
				const vf one = v_load(q + r * stride + i + half * LANES);

#pragma GCC unroll 4
				for (int k = 0; k < KEYS; k++) {
					sums[r][k] = v_fma(one, part[k], sums[r][k]);
					V_KEEP(sums[r][k]);
				}
			}
		}
	}
#pragma GCC unroll 2
	for (int r = 0; r < N; r++)
#pragma GCC unroll 4
		for (int k = 0; k < KEYS; k++)
			parts[r][k] = sums[r][k];
}

/*
 * scores[r][p] = scale * q[r] . key p for N queries and n positions; up to a
 * whole vector more is written.
 */
INLINE void score_block(float *scores, const float *q, uint32_t stride,
			struct attend_rows *keys, uint32_t n, float scale, const int N,
			const bool f32)
{
	vf parts[PAIR][BLOCK];

	for (uint32_t p = 0; p < n; p += KEYS) {
		const uint8_t *key[KEYS];

		for (uint32_t k = 0; k < KEYS; k++)
			key[k] = keys->at[p + k < n ? p + k : n - 1];
		ask_ahead(keys);
		multiply_keys((vf(*)[BLOCK])(&parts[0][p]), q, stride, key, N, f32);
	}
	for (uint32_t p = 0; p < n; p += LANES)
#pragma GCC unroll 2
		for (int r = 0; r < N; r++)
			v_store(scores + r * ATTEND_CHUNK + p, fold_all(&parts[r][p]) * scale);
}

/* acc[r] += weights[r][p] * value p for N queries and n positions in their order. */
INLINE void add_values(float *acc, uint32_t stride, const float *weights,
		       struct attend_rows *values, uint32_t n, const int N, const bool f32)
{
	for (uint32_t i = 0; i < stride; i += SPAN) {
		vf first[SIDE], second[SIDE];

		ask_ahead(values);
#pragma GCC unroll 4
		for (int r = 0; r < N; r++) {
			first[r] = v_load(acc + r * stride + i);
			second[r] = v_load(acc + r * stride + i + LANES);
		}
#pragma GCC unroll 2
		for (uint32_t p = 0; p < n; p++) {
			const vf value_first = load_half(values->at[p], i, 0, f32);
			const vf value_second = load_half(values->at[p], i, 1, f32);
#pragma GCC unroll 4
			for (int r = 0; r < N; r++) {
				const vf weight = v_all(weights[r * ATTEND_CHUNK + p]);

				first[r] = v_fma(weight, value_first, first[r]);
				second[r] = v_fma(weight, value_second, second[r]);
			}
		}
#pragma GCC unroll 4
		for (int r = 0; r < N; r++) {
			v_store(acc + r * stride + i, first[r]);
			v_store(acc + r * stride + i + LANES, second[r]);
		}
	}
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

/* What the queries of one call share while they are worked on. */
struct attending {
	const struct attend *a;
	uint32_t begin, end, stride; /* positions of the chunk that anybody sees; floats of a row */
	uint32_t seen[ATTEND_ROWS_MAX];
	struct attend_rows rows;
	_Alignas(64) float q[ATTEND_ROWS_MAX * KV_HEAD_DIM_MAX];
	_Alignas(64) float acc[ATTEND_ROWS_MAX * KV_HEAD_DIM_MAX];
	_Alignas(64) float scores[ATTEND_ROWS_MAX * ATTEND_CHUNK];
};

/* Positions of the block from @at on that query @r sees. */
static inline uint32_t seen_by(const struct attending *s, uint32_t r, uint32_t at)
{
	return s->seen[r] <= at ? 0 : s->seen[r] - at < BLOCK ? s->seen[r] - at : BLOCK;
}

static inline bool see_alike(const struct attending *s, uint32_t r, uint32_t n, uint32_t at)
{
	if (r + n > s->a->n_rows)
		return false;
	for (uint32_t i = r + 1; i < r + n; i++)
		if (seen_by(s, i, at) != seen_by(s, r, at))
			return false;
	return true;
}

INLINE void score_all(struct attending *s, uint32_t at, const bool f32)
{
	const float scale = (float)(1 / sqrt(s->a->kv->head_dim));

	for (uint32_t r = 0; r < s->a->n_rows;) {
		float *scores = s->scores + r * ATTEND_CHUNK + at;
		const float *q = s->q + r * s->stride;
		const uint32_t n = seen_by(s, r, at);

		if (see_alike(s, r, PAIR, at)) {
			score_block(scores, q, s->stride, &s->rows, n, scale, PAIR, f32);
			r += PAIR;
		} else {
			score_block(scores, q, s->stride, &s->rows, n, scale, 1, f32);
			r++;
		}
	}
}

INLINE void add_all(struct attending *s, uint32_t at, const bool f32)
{
	for (uint32_t r = 0; r < s->a->n_rows;) {
		const float *weights = s->scores + r * ATTEND_CHUNK + at;
		float *acc = s->acc + r * s->stride;
		const uint32_t n = seen_by(s, r, at);

		if (see_alike(s, r, SIDE, at)) {
			add_values(acc, s->stride, weights, &s->rows, n, SIDE, f32);
			r += SIDE;
		} else {
			add_values(acc, s->stride, weights, &s->rows, n, 1, f32);
			r++;
		}
	}
}

static void begin_attending(struct attending *s, const struct attend *a, uint32_t chunk)
{
	const uint32_t head_dim = a->kv->head_dim;
	const bool f32 = a->kv->type == DT_F32;

	s->a = a;
	s->begin = s->end = chunk * ATTEND_CHUNK;
	s->stride = (head_dim + SPAN - 1) / SPAN * SPAN;
	memset(s->acc, 0, a->n_rows * s->stride * sizeof(*s->acc));
	for (uint32_t r = 0; r < a->n_rows; r++) {
		const uint32_t row_end = a->positions[r] + 1;

		s->seen[r] = row_end <= s->begin ? 0 : row_end - s->begin;
		if (s->seen[r] > ATTEND_CHUNK)
			s->seen[r] = ATTEND_CHUNK;
		if (s->begin + s->seen[r] > s->end)
			s->end = s->begin + s->seen[r];
		to_spans(s->q + r * s->stride, a->q[r], head_dim, s->stride, f32);
	}
	s->rows.bytes = head_dim * dtype_bytes(a->kv->type);
	s->rows.n_ahead = s->end - s->begin < BLOCK ? s->end - s->begin : BLOCK;
	point_at(s->rows.ahead, a, KV_K, s->begin, s->rows.n_ahead);
}

/*
 * Turns to the rows that were ahead, and looks for those that come next: more
 * of @part, the values behind the keys, the next chunk's keys behind those. A
 * head of no whole spans is padded.
 */
static void next_rows(struct attending *s, enum kv_part part, uint32_t at, uint32_t tiles)
{
	const struct attend *a = s->a;
	struct attend_rows *rows = &s->rows;
	const uint32_t n = rows->n_ahead;
	uint32_t next = s->begin + at + n, end = s->end;

	for (uint32_t p = 0; p < n; p++) {
		rows->at[p] = rows->ahead[p];
		if (a->kv->head_dim % SPAN != 0) {
			memset(rows->padded[p], 0, sizeof(rows->padded[p]));
			memcpy(rows->padded[p], rows->at[p], rows->bytes);
			rows->at[p] = rows->padded[p];
		}
	}
	if (next == end && part == KV_K) {
		part = KV_V;
		next = s->begin;
	} else if (next == end) {
		part = KV_K;
		end = a->positions[a->n_rows - 1] + 1;
	}
	rows->n_ahead = end - next < BLOCK ? end - next : BLOCK;
	rows->asked = 0;
	rows->a_time = (BLOCK + tiles - 1) / tiles;
	point_at(rows->ahead, a, part, next, rows->n_ahead);
}

static void body_attend(const struct attend *a, uint32_t chunk, struct attend_part *ret)
{
	const uint32_t head_dim = a->kv->head_dim;
	const bool f32 = a->kv->type == DT_F32;
	struct attending s;

	begin_attending(&s, a, chunk);
	for (uint32_t at = 0; s.begin + at < s.end; at += BLOCK) {
		next_rows(&s, KV_K, at, (a->n_rows + PAIR - 1) / PAIR * (BLOCK / KEYS));
		if (f32)
			score_all(&s, at, true);
		else
			score_all(&s, at, false);
	}
	for (uint32_t r = 0; r < a->n_rows; r++) {
		ret->most[r] = -INFINITY;
		ret->sum[r] = 0;
		if (s.seen[r] > 0)
			ret->most[r] = soften(s.scores + r * ATTEND_CHUNK, s.seen[r], &ret->sum[r]);
	}
	for (uint32_t at = 0; s.begin + at < s.end; at += BLOCK) {
		next_rows(&s, KV_V, at, (a->n_rows + SIDE - 1) / SIDE * (s.stride / SPAN));
		if (f32)
			add_all(&s, at, true);
		else
			add_all(&s, at, false);
	}
	for (uint32_t r = 0; r < a->n_rows; r++)
		from_spans(ret->acc + r * head_dim, s.acc + r * s.stride, head_dim, s.stride, f32);
}

/* Rows of the finished total: values over the sum of their weights. */
static void body_divide(float *y, const float *acc, float sum, uint32_t head_dim)
{
	uint32_t i = 0;

	for (; i + LANES <= head_dim; i += LANES)
		v_store(y + i, v_load(acc + i) / sum);
	for (; i < head_dim; i++)
		y[i] = acc[i] / sum;
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
