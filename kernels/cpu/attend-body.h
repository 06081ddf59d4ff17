/*
 * Attention of some queries over one chunk of positions, for whatever LANES
 * says: scores, softmax, then values. Keys are turned into panels, a position
 * a lane, which all queries go over, some side by side, so that what is loaded
 * of a key or a value serves many. A query's additions have one order, whoever
 * is beside it.
 */
#include <math.h>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/tile.h"
#include "kernels/cpu/vector.h"

/* Dims that one load of BF16 brings: the even ones of them, then the odd ones. */
#define SPAN (2 * LANES)
/* Positions whose keys or values stay in the first cache while all queries go over them. */
#define BLOCK 64
/* Queries side by side, with two vectors of sums each: as many as there are registers for. */
#if LANES > 8
#define SIDE 12
#define WITH_SIDE WITH_TILE_12
#else
#define SIDE 5
#define WITH_SIDE WITH_TILE_5
#endif
/* Floats from a query to the next: no power of two, so that they do not share places in the cache. */
#define STRIDE (KV_HEAD_DIM_MAX + 16)

/* Keys or values of some positions, in whole spans. */
struct attend_rows {
	const uint8_t *at[BLOCK];
	const uint8_t *ahead[BLOCK]; /* what will be read next; memory is asked for it meanwhile, */
	uint32_t n_ahead, asked;
	size_t asked_bytes; /* of the row asked last */
	uint32_t a_time; /* lines that are asked for together: more than a few would have to wait */
	size_t bytes;	 /* of a row */
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

/* Asks memory for some of what will be read next. */
static inline void ask_ahead(struct attend_rows *rows)
{
	for (uint32_t i = 0; i < rows->a_time && rows->asked < rows->n_ahead; i++) {
		__builtin_prefetch(rows->ahead[rows->asked] + rows->asked_bytes);
		rows->asked_bytes += 64;
		if (rows->asked_bytes >= rows->bytes) {
			rows->asked_bytes = 0;
			rows->asked++;
		}
	}
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

/* What load_half() brought of a span, as dims in their order. */
static void from_spans(float *dims, const float *spans, uint32_t n, uint32_t stride, bool f32)
{
#define LOW(i) ((i) / 2 + (i) % 2 * LANES)
#define HIGH(i) (LOW(i) + LANES / 2)
	float padded[KV_HEAD_DIM_MAX];

	for (uint32_t i = 0; i < stride; i += SPAN) {
		const vf a = v_load(spans + i), b = v_load(spans + i + LANES);

		v_store(padded + i, f32 ? a : __builtin_shuffle(a, b, (vi)V_EACH(LOW)));
		v_store(padded + i + LANES, f32 ? b : __builtin_shuffle(a, b, (vi)V_EACH(HIGH)));
	}
	memcpy(dims, padded, n * sizeof(*dims));
}

/*
 * Turns LANES vectors over the diagonal of the square that they make: in fours
 * of lanes and vectors first, then the fours change places.
 */
#define PAIRS(i) ((i) - (i) % 4 + (i) % 4 / 2 + (i) % 2 * LANES)
#define PAIRS_2(i) (PAIRS(i) + 2)
#define HALVES(i) ((i) - (i) % 4 + (i) % 2 + (i) % 4 / 2 * LANES)
#define HALVES_2(i) (HALVES(i) + 2)
#define NEAR(i, n) ((i) & (n) ? LANES + (i) - (n) : (i))
#define FAR(i, n) ((i) & (n) ? LANES + (i) : (i) + (n))
#define NEAR_4(i) NEAR(i, 4)
#define NEAR_8(i) NEAR(i, 8)
#define FAR_4(i) FAR(i, 4)
#define FAR_8(i) FAR(i, 8)
#define MIX(a, b, first, second)                                                                   \
	do {                                                                                       \
		const vf a_ = a, b_ = b;                                                           \
                                                                                                   \
		a = __builtin_shuffle(a_, b_, (vi)V_EACH(first));                                  \
		b = __builtin_shuffle(a_, b_, (vi)V_EACH(second));                                 \
	} while (0)

INLINE void transpose(vf v[LANES])
{
#pragma GCC unroll 4
	for (int i = 0; i < LANES; i += 4) {
		vf second;

		MIX(v[i], v[i + 1], PAIRS, PAIRS_2);
		MIX(v[i + 2], v[i + 3], PAIRS, PAIRS_2);
		second = v[i + 2];
		v[i + 2] = v[i + 1];
		v[i + 1] = second;
		MIX(v[i], v[i + 1], HALVES, HALVES_2);
		MIX(v[i + 2], v[i + 3], HALVES, HALVES_2);
	}
#if LANES > 4
#pragma GCC unroll 16
	for (int i = 0; i < LANES; i++)
		if (!(i & 4))
			MIX(v[i], v[i + 4], NEAR_4, FAR_4);
#endif
#if LANES > 8
#pragma GCC unroll 8
	for (int i = 0; i < 8; i++)
		MIX(v[i], v[i + 8], NEAR_8, FAR_8);
#endif
}

/*
 * Lays n keys out by what is read of them at once, a pair of dims or an F32: panel[i][p] is number
 * i of key p, up to whole vectors of keys.
 */
INLINE void make_panel(float (*panel)[BLOCK], struct attend_rows *keys, uint32_t words, uint32_t n)
{
	for (uint32_t p = 0; p < n; p += LANES) {
		for (uint32_t i = 0; i < words; i += LANES) {
			vf square[LANES];

			ask_ahead(keys);
#pragma GCC unroll 16
			for (uint32_t k = 0; k < LANES; k++) {
				const uint8_t *key = keys->at[p + k < n ? p + k : n - 1];

				square[k] = v_load((const float *)key + i);
			}
			transpose(square);
#pragma GCC unroll 16
			for (uint32_t k = 0; k < LANES; k++)
				v_store(panel[i + k] + p, square[k]);
		}
	}
}

/* One dim of LANES keys: a word of theirs as it is, or the lower or upper half of it. */
INLINE vf load_dim(const float *words, const int half, const bool f32)
{
	vu pairs;

	if (f32)
		return v_load(words);
	memcpy(&pairs, words, sizeof(pairs));
	return (vf)(half ? pairs & 0xffff0000 : pairs << 16);
}

/* scores[r][p] = scale * q[r] . key p for N queries and the positions of two vectors */
INLINE void score_tile(float *scores, const float *q, struct attend_rows *keys,
		       const float (*panel)[BLOCK], uint32_t words, float scale, const int N,
		       const bool f32)
{
	vf first[SIDE] = { 0 }, second[SIDE] = { 0 };

	for (uint32_t i = 0; i < words; i++) {
		if (i % LANES == 0)
			ask_ahead(keys);
#pragma GCC unroll 2
		for (int half = 0; half < 2; half++) {
			const float *at = panel[i], *dim = q + (f32 ? i : 2 * i + half);
			vf key_first, key_second;

			if (f32 && half)
				continue;
			V_HIDE(at);
			V_HIDE(dim);
			key_first = load_dim(at, half, f32);
			key_second = load_dim(at + LANES, half, f32);
#pragma GCC unroll 12
			for (int r = 0; r < N; r++) {
				const vf one = v_all(dim[r * STRIDE]);

				v_add_product(&first[r], one, key_first);
				v_add_product(&second[r], one, key_second);
			}
		}
	}
#pragma GCC unroll 12
	for (int r = 0; r < N; r++) {
		v_store(scores + r * ATTEND_CHUNK, first[r] * scale);
		v_store(scores + r * ATTEND_CHUNK + LANES, second[r] * scale);
	}
}

/* acc[r] += weights[r][p] * value p for N queries and n positions in their order. */
INLINE void add_values(float *acc, const float *weights, struct attend_rows *values, uint32_t dims,
		       uint32_t n, const int N, const bool f32)
{
	for (uint32_t i = 0; i < dims; i += SPAN) {
		vf first[SIDE], second[SIDE];

#pragma GCC unroll 12
		for (int r = 0; r < N; r++) {
			first[r] = v_load(acc + r * STRIDE + i);
			second[r] = v_load(acc + r * STRIDE + i + LANES);
		}
		for (uint32_t p = 0; p < n; p++) {
			const vf value_first = load_half(values->at[p], i, 0, f32);
			const vf value_second = load_half(values->at[p], i, 1, f32);

			if (p % 4 == 0)
				ask_ahead(values);
#pragma GCC unroll 12
			for (int r = 0; r < N; r++) {
				const vf weight = v_all(weights[r * ATTEND_CHUNK + p]);

				v_add_product(&first[r], weight, value_first);
				v_add_product(&second[r], weight, value_second);
			}
		}
#pragma GCC unroll 12
		for (int r = 0; r < N; r++) {
			v_store(acc + r * STRIDE + i, first[r]);
			v_store(acc + r * STRIDE + i + LANES, second[r]);
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
	uint32_t begin, end; /* positions of the chunk that anybody sees */
	uint32_t dims;	     /* in whole spans */
	uint32_t seen[ATTEND_ROWS_MAX];
	struct attend_rows rows;
	_Alignas(64) float panel[KV_HEAD_DIM_MAX][BLOCK];
	_Alignas(64) float q[ATTEND_ROWS_MAX * STRIDE];
	_Alignas(64) float acc[ATTEND_ROWS_MAX * STRIDE];
	_Alignas(64) float scores[ATTEND_ROWS_MAX * ATTEND_CHUNK];
};

/* Positions of the block from @at on that query @r sees. */
static inline uint32_t seen_by(const struct attending *s, uint32_t r, uint32_t at)
{
	return s->seen[r] <= at ? 0 : s->seen[r] - at < BLOCK ? s->seen[r] - at : BLOCK;
}

/* Scores of all queries that see any of the block; what one does not see of it goes nowhere. */
INLINE void score_all(struct attending *s, uint32_t at, const bool f32)
{
	const float scale = (float)(1 / sqrt(s->a->kv->head_dim));
	const uint32_t left = s->end - s->begin - at, n = left < BLOCK ? left : BLOCK;
	const uint32_t words = f32 ? s->dims : s->dims / 2;
	uint32_t r = 0, n_rows;

	make_panel(s->panel, &s->rows, words, n);
	while (seen_by(s, r, at) == 0)
		r++;
	for (; r < s->a->n_rows; r += n_rows) {
		n_rows = tile_of(s->a->n_rows - r, SIDE);
		for (uint32_t p = 0; p < n; p += 2 * LANES)
			WITH_SIDE(n_rows, score_tile(s->scores + r * ATTEND_CHUNK + at + p,
						     s->q + r * STRIDE, &s->rows,
						     (const float(*)[BLOCK])(&s->panel[0][p]),
						     words, scale, T, f32))
	}
}

/* Of the queries from @r on, those that see as much of the block from @at on as it does. */
static uint32_t run_of(const struct attending *s, uint32_t r, uint32_t at)
{
	uint32_t n = 1;

	while (r + n < s->a->n_rows && seen_by(s, r + n, at) == seen_by(s, r, at))
		n++;
	return n;
}

INLINE void add_all(struct attending *s, uint32_t at, const bool f32)
{
	for (uint32_t r = 0, n_rows; r < s->a->n_rows; r += n_rows) {
		const float *weights = s->scores + r * ATTEND_CHUNK + at;
		const uint32_t n = seen_by(s, r, at);

		n_rows = tile_of(run_of(s, r, at), SIDE);
		WITH_SIDE(n_rows,
			  add_values(s->acc + r * STRIDE, weights, &s->rows, s->dims, n, T, f32))
	}
}

static void begin_attending(struct attending *s, const struct attend *a, uint32_t chunk)
{
	const uint32_t head_dim = a->kv->head_dim;

	s->a = a;
	s->begin = s->end = chunk * ATTEND_CHUNK;
	s->dims = (head_dim + SPAN - 1) / SPAN * SPAN;
	for (uint32_t r = 0; r < a->n_rows; r++) {
		const uint32_t row_end = a->positions[r] + 1;

		s->seen[r] = row_end <= s->begin ? 0 : row_end - s->begin;
		if (s->seen[r] > ATTEND_CHUNK)
			s->seen[r] = ATTEND_CHUNK;
		if (s->begin + s->seen[r] > s->end)
			s->end = s->begin + s->seen[r];
		memset(s->q + r * STRIDE + head_dim, 0, (s->dims - head_dim) * sizeof(*s->q));
		memcpy(s->q + r * STRIDE, a->q[r], head_dim * sizeof(*s->q));
		memset(s->acc + r * STRIDE, 0, s->dims * sizeof(*s->acc));
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
static void next_rows(struct attending *s, enum kv_part part, uint32_t at, uint32_t times)
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
	rows->asked_bytes = 0;
	rows->a_time = (uint32_t)(rows->n_ahead * ((rows->bytes + 63) / 64) / times + 1);
	point_at(rows->ahead, a, part, next, rows->n_ahead);
}

static void body_attend(const struct attend *a, uint32_t chunk, struct attend_part *ret)
{
	const uint32_t head_dim = a->kv->head_dim;
	const bool f32 = a->kv->type == DT_F32;
	const uint32_t tiles = (a->n_rows + SIDE - 1) / SIDE;
	const uint32_t spans = (head_dim + SPAN - 1) / SPAN;
	struct attending s;

	begin_attending(&s, a, chunk);
	for (uint32_t at = 0; s.begin + at < s.end; at += BLOCK) {
		next_rows(&s, KV_K, at, (BLOCK / LANES + BLOCK / LANES / 2 * tiles) * spans);
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
		next_rows(&s, KV_V, at, BLOCK / 4 * tiles * spans);
		if (f32)
			add_all(&s, at, true);
		else
			add_all(&s, at, false);
	}
	for (uint32_t r = 0; r < a->n_rows; r++)
		from_spans(ret->acc + r * head_dim, s.acc + r * STRIDE, head_dim, s.dims, f32);
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
