/*
 * Sampling in two kernels. The first has a block for each slice of a row's ids, and
 * finds its best candidate; the second has a block for each row, and looks into those
 * slices alone whose best is not cut.
 *
 * Candidates are never sorted whole: a cut or a draw is a place in falling order where
 * a count or a mass is reached. It is looked for in a histogram over values, then in one
 * of its bins, until what is left fits into shared memory and is sorted there.
 */
#include <float.h>
#include <math.h>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/ptx.h"
#include "kernels/cuda/sum.h"

extern "C" {
#include "kernels/sample.h"
}

#define SAMPLE_THREADS 1024
#define SAMPLE_WARPS (SAMPLE_THREADS / 32)
#define SLICES 256 /* of a row */
#define SLICE_THREADS 128
#define SLICE_WARPS (SLICE_THREADS / 32)
#define BINS SAMPLE_THREADS
#define LIST_MAX SAMPLE_THREADS
#define GREEDY_BELOW 1e-5
#define FIRST_SPAN 32.0 /* of values below the largest: further down they share the last bin */
#define FRACTION 0x1p45 /* a mass of 1: as many candidates as there may be fit into 64 bits */
#define SPAN_MIN 1e-300 /* values closer than this are one */
#define NO_ID 0xffffffffu

struct candidate {
	double value; /* logit / temperature, counted from the largest */
	uint32_t id;
};

/* Up to here in falling order, the candidate itself included. */
struct place {
	double value;
	uint32_t id;
};

/*
 * What a row's block shares. Masses are sums of integers, one of FRACTIONs and
 * one of FRACTIONs of those, so that they do not depend on who adds first.
 */
struct desk {
	struct sample_row row;
	struct candidate list[LIST_MAX], sorted[LIST_MAX];
	double sums[BINS];
	unsigned long long high[BINS], low[BINS];
	uint32_t counts[BINS];
	double warp_values[SAMPLE_WARPS], warp_others[SAMPLE_WARPS];
	uint32_t warp_ids[SAMPLE_WARPS];
	double tops[SLICES]; /* the values of slices' best */
	double bound;
	uint32_t n_listed, first;
};

struct view {
	const struct sample_row *row;
	const float *logits;
	struct desk *desk;
	const uint32_t *special; /* a bit for each id with a bias or a mask */
	double most;		 /* the largest logit / temperature */
	double floor;		 /* values below are cut */
	float cut;		 /* and logits below have such values: most are told by this alone */
	struct place last;	 /* candidates behind are cut */
};

static __device__ __forceinline__ bool is_before(const struct candidate &a, const struct candidate &b)
{
	return a.value > b.value || (a.value == b.value && a.id < b.id);
}

static __device__ __forceinline__ bool is_special(const uint32_t *special, uint32_t id)
{
	return special[id / 32] >> id % 32 & 1;
}

/* Whether a logit is taken as it is. */
static __device__ __forceinline__ bool is_plain(const struct sample_row *row, const uint32_t *special,
						uint32_t id)
{
	return !is_special(special, id) &&
	       (!row->counts || (row->counts[id].prompt == 0 && row->counts[id].output == 0));
}

/* No product is fused with what follows it: the host's are not. */
static __device__ double logit_of(const struct sample_row *row, float logit, const uint32_t *special,
				  uint32_t id)
{
	double z = isnan(logit) ? -INFINITY : (double)fminf(logit, FLT_MAX);

	if (is_special(special, id))
		for (uint32_t i = 0; i < row->n_bias; i++)
			if (row->bias_ids[i] == id)
				z = __dadd_rn(z, (double)row->bias_values[i]);
	if (row->counts) {
		const struct sample_count c = row->counts[id];

		if (c.prompt || c.output)
			z = z > 0 ? z / row->repetition : __dmul_rn(z, row->repetition);
		if (c.output)
			z = __dsub_rn(__dsub_rn(z, __dmul_rn(row->frequency, (double)c.output)),
				      row->presence);
	}
	if (is_special(special, id))
		for (uint32_t i = 0; i < row->n_masked; i++)
			if (row->masked[i] == id)
				z = -INFINITY;
	return z;
}

/* Sets what is cut by value. Doubles are dear on some cards: @cut is a little low, and decides most. */
static __device__ void set_floor(struct view &v, double floor)
{
	const double size = (fabs(floor) + fabs(v.most)) * v.row->temperature;

	v.floor = floor;
	v.cut = __double2float_rd((floor + v.most) * v.row->temperature - 1e-9 * size);
}

static __device__ __forceinline__ bool is_candidate(const struct view &v, uint32_t id, double &value)
{
	const float logit = v.logits[id];

	if (logit < v.cut && is_plain(v.row, v.special, id))
		return false;
	value = __dsub_rn(logit_of(v.row, logit, v.special, id) / v.row->temperature, v.most);
	return value >= v.floor &&
	       (value > v.last.value || (value == v.last.value && id <= v.last.id));
}

/* What is asked of the row, to where it is read often. */
static __device__ void take_row(struct sample_row *to, const struct sample_row *from)
{
	static_assert(sizeof(*to) % 4 == 0 && sizeof(*to) / 4 <= SLICE_THREADS, "a word for each thread");
	if (threadIdx.x < sizeof(*to) / 4)
		((uint32_t *)to)[threadIdx.x] = ((const uint32_t *)from)[threadIdx.x];
	__syncthreads();
}

/* Ids of a slice: whole words of bits. */
static __device__ __forceinline__ uint32_t slice_ids(const struct sample_row *row)
{
	return (row->vocab_real + SLICES * 32 - 1) / (SLICES * 32) * 32;
}

/* Calls f(value, id) for this thread's candidates; those below @low may be left out. */
template <typename F>
static __device__ __forceinline__ void each(const struct view &v, double low, F f)
{
	const uint32_t ids = slice_ids(v.row), lane = threadIdx.x % 32;

	low = fmax(low, v.floor);
	for (uint32_t slice = threadIdx.x / 32; slice < SLICES; slice += SAMPLE_WARPS) {
		const uint32_t first = slice * ids;
		const uint32_t end = min(first + ids, v.row->vocab_real);

		if (v.desk->tops[slice] < low)
			continue;
		for (uint32_t id = first + lane; id < end; id += 32) {
			double value;

			if (is_candidate(v, id, value))
				f(value, id);
		}
	}
}

/* Bits of ids from @first to @end, of those whose logits are changed one by one; @first is a multiple of 32. */
template <int THREADS>
static __device__ void mark_special(uint32_t *special, const struct sample_row *row, uint32_t first,
				    uint32_t end)
{
	const auto mark = [=](uint32_t id) {
		if (id >= first && id < end)
			atomicOr(&special[(id - first) / 32], 1u << id % 32);
	};

	for (uint32_t i = threadIdx.x; first + i * 32 < end; i += THREADS)
		special[i] = 0;
	__syncthreads();
	for (uint32_t i = threadIdx.x; i < row->n_bias; i += THREADS)
		mark(row->bias_ids[i]);
	for (uint32_t i = threadIdx.x; i < row->n_masked; i += THREADS)
		mark(row->masked[i]);
	__syncthreads();
}

static __device__ struct candidate first_of_warp(struct candidate c)
{
	for (int bits = 16; bits > 0; bits /= 2) {
		const struct candidate other = { __shfl_xor_sync(WARP_ALL, c.value, bits),
						 __shfl_xor_sync(WARP_ALL, c.id, bits) };

		if (is_before(other, c))
			c = other;
	}
	return c;
}

/* The first of all threads' candidates in falling order; the value of none is -inf, and its id NO_ID. */
static __device__ struct candidate first_of_all(struct desk *d, struct candidate c)
{
	c = first_of_warp(c);
	__syncthreads();
	if (threadIdx.x % 32 == 0) {
		d->warp_values[threadIdx.x / 32] = c.value;
		d->warp_ids[threadIdx.x / 32] = c.id;
	}
	__syncthreads();
	for (int i = 0; i < SAMPLE_WARPS; i++) {
		const struct candidate other = { d->warp_values[i], d->warp_ids[i] };

		if (is_before(other, c))
			c = other;
	}
	return c;
}

static __device__ double sum_of_all(struct desk *d, double v)
{
	double sum = 0;

	for (int bits = 16; bits > 0; bits /= 2)
		v += __shfl_xor_sync(WARP_ALL, v, bits);
	__syncthreads();
	if (threadIdx.x % 32 == 0)
		d->warp_values[threadIdx.x / 32] = v;
	__syncthreads();
	for (int i = 0; i < SAMPLE_WARPS; i++)
		sum += d->warp_values[i];
	return sum;
}

/* What is first reached in falling order: a rank, or a mass (more than it, if @beyond). */
struct goal {
	bool rank, beyond;
	double amount;
};

static __device__ __forceinline__ bool is_reached(const struct goal &g, double sum)
{
	return g.beyond ? sum > g.amount : sum >= g.amount;
}

static __device__ __forceinline__ double weight_of(const struct goal &g, double value)
{
	return g.rank ? 1 : exp(value);
}

/*
 * Sums up d->sums[n] in place, each with what is before it, and returns the
 * first whose sum with @before reaches the goal; the last that is not empty,
 * if rounding hides it.
 */
static __device__ uint32_t find_in_sums(struct desk *d, const struct goal &g, double before,
					uint32_t n, bool empty)
{
	const uint32_t t = threadIdx.x;

	if (t == 0)
		d->first = NO_ID;
	if (t < BINS && t >= n)
		d->sums[t] = 0;
	for (uint32_t step = 1; step < BINS; step *= 2) {
		double other;

		__syncthreads();
		other = t >= step ? d->sums[t - step] : 0;
		__syncthreads();
		d->sums[t] += other;
	}
	__syncthreads();
	if (t < n && !empty && is_reached(g, before + d->sums[t]))
		atomicMin(&d->first, t);
	__syncthreads();
	if (d->first == NO_ID) {
		__syncthreads();
		if (t == 0)
			d->first = 0;
		__syncthreads();
		if (t < n && !empty)
			atomicMax(&d->first, t);
		__syncthreads();
	}
	return d->first;
}

/* The candidates between @low and @high go to the list, in no order; all of them are counted. */
static __device__ uint32_t list(const struct view &v, double low, double high)
{
	struct desk *d = v.desk;

	__syncthreads();
	if (threadIdx.x == 0)
		d->n_listed = 0;
	__syncthreads();
	each(v, low, [=](double value, uint32_t id) {
		if (value >= low && value <= high) {
			const uint32_t at = atomicAdd(&d->n_listed, 1u);

			if (at < LIST_MAX)
				d->list[at] = { value, id };
		}
	});
	__syncthreads();
	return d->n_listed;
}

static __device__ void sort_list(struct desk *d, uint32_t n)
{
	uint32_t rank = 0;

	if (threadIdx.x < n) {
		const struct candidate own = { d->list[threadIdx.x].value, d->list[threadIdx.x].id };

		for (uint32_t i = 0; i < n; i++)
			rank += is_before(d->list[i], own);
		d->sorted[rank] = own;
	}
	__syncthreads();
}

/* In the list of @n, sorted, with @before in front of it. Returns the index; d->sums has the masses. */
static __device__ uint32_t find_in_list(struct desk *d, const struct goal &g, double before, uint32_t n)
{
	__syncthreads();
	if (threadIdx.x < n)
		d->sums[threadIdx.x] = weight_of(g, d->sorted[threadIdx.x].value);
	return find_in_sums(d, g, before, n, false);
}

/* One bin, as a sum. */
static __device__ __forceinline__ double mass_of_bin(const struct desk *d, uint32_t bin, double unit)
{
	const double high = (double)d->high[bin], low = (double)d->low[bin];

	return (high + low / FRACTION) / FRACTION * unit;
}

static __device__ __forceinline__ uint32_t bin_of(double value, double high, double per_value)
{
	const double at = (high - value) * per_value;

	return at < BINS - 1 ? (uint32_t)at : BINS - 1;
}

/* Counts and masses by bins of candidates from @low to @high. */
static __device__ void fill_bins(const struct view &v, const struct goal &g, double low, double high,
				 double per_value)
{
	struct desk *d = v.desk;

	__syncthreads();
	d->counts[threadIdx.x] = 0;
	d->high[threadIdx.x] = d->low[threadIdx.x] = 0;
	__syncthreads();
	each(v, low, [=](double value, uint32_t) {
		if (value < low || value > high)
			return;
		const uint32_t bin = bin_of(value, high, per_value);

		atomicAdd(&d->counts[bin], 1u);
		if (!g.rank) {
			const double part = exp(value - high) * FRACTION;
			const double whole = floor(part);

			atomicAdd(&d->high[bin], (unsigned long long)whole);
			atomicAdd(&d->low[bin], (unsigned long long)((part - whole) * FRACTION));
		}
	});
	__syncthreads();
}

/* The @nth, from 1, in order of id, of the candidates between @low and @high, which are as good as one. */
static __device__ struct place find_among_equals(const struct view &v, double low, double high,
						 double nth)
{
	double passed = 0;

	for (uint32_t first = 0; first < v.row->vocab_real; first += SAMPLE_THREADS) {
		const uint32_t id = first + threadIdx.x;
		struct desk *d = v.desk;
		double value;
		const bool own = id < v.row->vocab_real && is_candidate(v, id, value) &&
				 value >= low && value <= high;
		const uint32_t n = (uint32_t)__syncthreads_count(own);

		if (passed + n < nth) {
			passed += n;
			continue;
		}
		d->sums[threadIdx.x] = own;
		return { low, first + find_in_sums(d, { true, false, nth }, passed, BINS, !own) };
	}
	return { low, NO_ID };
}

/* The place where the goal is reached among the candidates of @v. */
static __device__ struct place find_place(const struct view &v, const struct goal &g)
{
	struct desk *d = v.desk;
	double low = v.floor, high = 0, span = FIRST_SPAN, before = 0;

	for (;;) {
		const double per_value = BINS / span;
		uint32_t bin, n;
		double lowest = INFINITY, highest = -INFINITY;

		fill_bins(v, g, low, high, per_value);
		d->sums[threadIdx.x] = g.rank ? (double)d->counts[threadIdx.x] :
						mass_of_bin(d, threadIdx.x, exp(high));
		bin = find_in_sums(d, g, before, BINS, d->counts[threadIdx.x] == 0);
		before += bin > 0 ? d->sums[bin - 1] : 0;
		n = d->counts[bin];

		/* a bin further down than it ends, for roundings */
		each(v, bin < BINS - 1 ? fmax(low, high - (bin + 2) / per_value) : low,
		     [&](double value, uint32_t) {
			if (value >= low && value <= high && bin_of(value, high, per_value) == bin) {
				lowest = fmin(lowest, value);
				highest = fmax(highest, value);
			}
		});
		highest = first_of_all(d, { highest, threadIdx.x }).value;
		lowest = -first_of_all(d, { -lowest, threadIdx.x }).value;
		if (n <= LIST_MAX) {
			list(v, lowest, highest);
			sort_list(d, n);
			bin = find_in_list(d, g, before, n);
			return { d->sorted[bin].value, d->sorted[bin].id };
		}
		span = highest - lowest;
		if (span < SPAN_MIN) {
			const double weight = weight_of(g, lowest);
			double nth = ceil((g.amount - before) / weight);

			if (g.beyond && before + nth * weight <= g.amount)
				nth++;
			return find_among_equals(v, lowest, highest,
						 fmin(fmax(nth, 1.0), (double)n));
		}
		low = lowest;
		high = highest;
	}
}

static __device__ double mass_of(const struct view &v)
{
	double sum = 0;

	each(v, v.floor, [&](double value, uint32_t) { sum += exp(value); });
	return sum_of_all(v.desk, sum);
}

/* The 53-bit uniform of Philox 4x32-10 at (seed, position), as the host's sampler has it. */
static __device__ double uniform(uint64_t seed, uint64_t position)
{
	uint32_t c0 = (uint32_t)position, c1 = (uint32_t)(position >> 32), c2 = 0, c3 = 0;
	uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);

	for (int round = 0; round < 10; round++) {
		const uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;

		c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
		c1 = (uint32_t)b;
		c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
		c3 = (uint32_t)a;
		k0 += 0x9E3779B9u;
		k1 += 0xBB67AE85u;
	}
	return (double)(((uint64_t)c1 << 32 | c0) >> 11) * 0x1p-53;
}

/* The draw, when all candidates are in the list. */
static __device__ uint32_t draw_from_list(struct desk *d, const struct sample_row *row, uint32_t n,
					  uint32_t top_k)
{
	double sum;
	uint32_t at;

	sort_list(d, n);
	if (top_k > 0 && top_k < n) { /* equals of the last stay */
		const double least = d->sorted[top_k - 1].value;

		n = (uint32_t)__syncthreads_count(threadIdx.x < n &&
						  d->sorted[threadIdx.x].value >= least);
	}
	sum = sum_of_all(d, threadIdx.x < n ? exp(d->sorted[threadIdx.x].value) : 0);
	if (row->top_p < 1) {
		n = find_in_list(d, { false, false, row->top_p * sum }, 0, n) + 1;
		sum = d->sums[n - 1];
	}
	at = find_in_list(d, { false, true, uniform(row->seed, row->position) * sum }, 0, n);
	return d->sorted[at].id;
}

/* Of the slices' best the @nth: so many candidates there are from it on, at least. */
static __device__ double nth_top(struct desk *d, uint32_t nth)
{
	if (threadIdx.x < SLICES) {
		const double own = d->tops[threadIdx.x];
		uint32_t rank = 1;

		for (uint32_t i = 0; i < SLICES; i++)
			rank += d->tops[i] > own || (d->tops[i] == own && i < threadIdx.x);
		if (rank == nth)
			d->bound = own;
	}
	__syncthreads();
	return d->bound;
}

static __device__ uint32_t draw(struct view v)
{
	const struct sample_row *row = v.row;
	uint32_t n, top_k = row->top_k;
	double sum;

	if (top_k > 0 && top_k <= SLICES) {
		const double bound = nth_top(v.desk, top_k);

		if (bound > v.floor)
			set_floor(v, bound);
	}
	n = list(v, v.floor, 0);
	if (n > LIST_MAX && top_k > 0 && top_k < n) {
		set_floor(v, find_place(v, { true, false, (double)top_k }).value);
		top_k = 0;
		n = list(v, v.floor, 0);
	}
	if (n <= LIST_MAX)
		return draw_from_list(v.desk, row, n, top_k);

	sum = mass_of(v);
	if (row->top_p < 1) {
		v.last = find_place(v, { false, false, row->top_p * sum });
		set_floor(v, v.last.value);
		sum = mass_of(v);
	}
	return find_place(v, { false, true, uniform(row->seed, row->position) * sum }).id;
}

/* The lowest id that is not masked: the choice when no logit says anything. */
static __device__ uint32_t first_allowed(const struct sample_row *row)
{
	for (uint32_t id = 0; id < row->vocab_real; id++) {
		bool masked = false;

		for (uint32_t i = 0; i < row->n_masked; i++)
			masked |= row->masked[i] == id;
		if (!masked)
			return id;
	}
	return 0;
}

/* The best candidate of one slice of a row: logits as they are with biases, before temperature. */
static __global__ void __launch_bounds__(SLICE_THREADS)
	k_best(struct candidate *tops, const float *logits, uint32_t vocab, const struct sample_row *rows)
{
	__shared__ struct sample_row own_row;
	__shared__ double warp_values[SLICE_WARPS];
	__shared__ uint32_t warp_ids[SLICE_WARPS];
	uint32_t *bits = shared_memory<uint32_t>();
	const struct sample_row *row = &own_row;
	const float *own = logits + (size_t)blockIdx.y * vocab;
	struct candidate best = { -INFINITY, NO_ID };
	float least = -INFINITY; /* at most the best so far */
	uint32_t first, end;

	pdl_release();
	pdl_wait();
	take_row(&own_row, rows + blockIdx.y);
	first = blockIdx.x * slice_ids(row);
	end = min(first + slice_ids(row), row->vocab_real);
	mark_special<SLICE_THREADS>(bits, row, first, end);
	for (uint32_t i = first + threadIdx.x; i < end; i += SLICE_THREADS) {
		const uint32_t *special = bits - first / 32;
		const float logit = own[i];
		struct candidate c;

		if (logit < least && is_plain(row, special, i))
			continue;
		c = { logit_of(row, logit, special, i), i };
		if (c.value > -INFINITY && is_before(c, best)) {
			best = c;
			least = __double2float_rd(best.value);
		}
	}
	best = first_of_warp(best);
	if (threadIdx.x % 32 == 0) {
		warp_values[threadIdx.x / 32] = best.value;
		warp_ids[threadIdx.x / 32] = best.id;
	}
	__syncthreads();
	if (threadIdx.x > 0)
		return;
	for (int i = 1; i < SLICE_WARPS; i++) {
		const struct candidate other = { warp_values[i], warp_ids[i] };

		if (is_before(other, best))
			best = other;
	}
	tops[blockIdx.y * SLICES + blockIdx.x] = best;
}

static __global__ void __launch_bounds__(SAMPLE_THREADS)
	k_sample(uint32_t *ret_ids, const struct candidate *tops, const float *logits, uint32_t vocab,
		 const struct sample_row *rows)
{
	struct desk *d = shared_memory<struct desk>();
	uint32_t *special = (uint32_t *)(d + 1);
	const struct sample_row *row = &d->row;
	struct candidate best = { -INFINITY, NO_ID }, top;
	struct view v = { row,	    logits + (size_t)blockIdx.x * vocab,
			  d,	    special,
			  0,	    0,
			  -INFINITY, { -INFINITY, NO_ID } };
	uint32_t id;

	pdl_release();
	pdl_wait();
	take_row(&d->row, rows + blockIdx.x);
	if (threadIdx.x < SLICES)
		best = tops[blockIdx.x * SLICES + threadIdx.x];
	top = best;
	best = first_of_all(d, best);
	if (best.id == NO_ID) {
		id = first_allowed(row);
	} else if (row->temperature < GREEDY_BELOW) {
		id = best.id;
	} else {
		v.most = best.value / row->temperature;
		if (threadIdx.x < SLICES)
			d->tops[threadIdx.x] = __dsub_rn(top.value / row->temperature, v.most);
		mark_special<SAMPLE_THREADS>(special, row, 0, row->vocab_real);
		set_floor(v, row->min_p > 0 ? log(row->min_p) : -DBL_MAX);
		id = draw(v);
	}
	if (threadIdx.x == 0)
		ret_ids[blockIdx.x] = id;
}

static size_t shared_bytes(uint32_t vocab)
{
	return sizeof(struct desk) + ((size_t)vocab + 31) / 32 * 4;
}

/* Bits of a slice. */
static size_t slice_bytes(uint32_t vocab)
{
	return ((size_t)vocab + SLICES * 32 - 1) / (SLICES * 32) * 4;
}

size_t sample_scratch(const struct op_limits *limits)
{
	const uint32_t rows = limits->tokens < OP_SAMPLE_ROWS ? limits->tokens : OP_SAMPLE_ROWS;

	return (size_t)rows * SLICES * sizeof(struct candidate);
}

bool op_samples(const struct dev *dev, uint32_t vocab)
{
	return vocab > 0 && shared_bytes(vocab) <= dev->shared_max;
}

int op_sample(struct stream *st, uint32_t *ret_ids, const struct tensor *logits,
	      const struct sample_row *rows)
{
	const uint32_t n = logits->shape[1], vocab = logits->shape[2];
	struct candidate *tops = (struct candidate *)st->scratch;
	int r;

	if (logits->type != DT_F32 || logits->shape[0] != 1 || n > OP_SAMPLE_ROWS ||
	    n * SLICES * sizeof(*tops) > st->scratch_bytes || !op_samples(st->dev, vocab))
		return -EINVAL;
	if (n == 0)
		return 0;
	r = launch(st, LAUNCH_PDL, k_best, dim3(SLICES, n), dim3(SLICE_THREADS), slice_bytes(vocab), tops,
		   (const float *)logits->data, vocab, rows);
	return r < 0 ? r
		     : launch(st, LAUNCH_PDL, k_sample, dim3(n), dim3(SAMPLE_THREADS), shared_bytes(vocab),
			      ret_ids, tops, (const float *)logits->data, vocab, rows);
}

static __global__ void k_count(struct sample_count *counts, uint32_t vocab, const uint32_t *ids,
			       uint32_t n, bool output)
{
	const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;

	pdl_release();
	pdl_wait();
	if (i < n && ids[i] < vocab)
		atomicAdd(output ? &counts[ids[i]].output : &counts[ids[i]].prompt, 1u);
}

int op_count(struct stream *st, struct sample_count *counts, uint32_t vocab, const uint32_t *ids,
	     uint32_t n, bool output)
{
	if (n == 0)
		return 0;
	return launch(st, LAUNCH_PDL, k_count, dim3((n + 255) / 256), dim3(256), 0, counts, vocab, ids,
		      n, output);
}
