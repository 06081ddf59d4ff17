/*
 * What the two attention kernels share: a warp's 16 query rows against a tile of
 * keys in shared memory, and finding one's work in the batch.
 *
 * Queries and weights of softmax are F32, taken as two BF16 that add up to 16
 * bits of mantissa and more; products are exact, sums F32. Rows of K and V are
 * stored with their 16-byte chunks permuted, so that eight rows of one chunk lie
 * in different banks.
 */
#pragma once

#include "kernels/cuda/kv.h"
#include "kernels/cuda/ptx.h"
#include "kernels/cuda/sum.h"

#define ATTEND_ROWS 16
#define DECODE_TOKENS_MAX 4 /* of a sequence: more are for the other kernel */

struct attend_job {
	float *y;
	const float *q;
	float scale; /* log2(e) / sqrt(head_dim): weights are powers of two */
	uint32_t heads, kv_heads, group, head_tiles;
	struct layer_kv kv;
	struct batch batch;
	uint32_t n_seqs;
	uint32_t slots;	    /* blocks that a (kv head, head tile) has for all rows together */
	float *parts;	    /* of blocks that share a row */
	uint32_t *arrivals; /* 0, and 0 again afterwards */
};

/* A warp's rows: lane l has rows l / 4 (…[0]) and l / 4 + 8 (…[1]). */
template <int D> struct attend_rows {
	uint32_t high[D / 16][4], low[D / 16][4]; /* queries, fragments of A */
	float sums[D / 8][4];			  /* of weight x V, fragments of D */
	float most[2], weight[2];		  /* largest score; this lane's part of the sum of weights */
};

/* 16 bytes of a row of K or V. */
template <int D>
static __device__ __forceinline__ uint16_t *chunk_at(uint16_t *tile, uint32_t row, uint32_t chunk)
{
	return tile + row * D + (chunk ^ (row & (D / 8 < 8 ? D / 8 - 1 : 7))) * 8;
}

static __device__ __forceinline__ void halve(float a, float b, uint32_t &high, uint32_t &low)
{
	high = bf16_pair(a, b);
	low = bf16_pair(a - __uint_as_float(high << 16), b - __uint_as_float(high & 0xffff0000u));
}

/* @first, @second: the lane's two rows of queries of @n dims, or NULL: zero. */
template <int D>
static __device__ __forceinline__ void rows_begin(struct attend_rows<D> &w, const float *first,
						  const float *second, uint32_t n, float scale)
{
	const uint32_t column = threadIdx.x % 4 * 2;

#pragma unroll
	for (int k = 0; k < D / 16; k++) {
#pragma unroll
		for (int i = 0; i < 4; i++) {
			const float *row = i % 2 ? second : first;
			const uint32_t d = k * 16 + i / 2 * 8 + column;
			float2 v = make_float2(0, 0);

			if (row && d < n)
				v = *reinterpret_cast<const float2 *>(row + d);
			halve(v.x * scale, v.y * scale, w.high[k][i], w.low[k][i]);
		}
	}
#pragma unroll
	for (int i = 0; i < D / 8; i++)
		w.sums[i][0] = w.sums[i][1] = w.sums[i][2] = w.sums[i][3] = 0;
	w.most[0] = w.most[1] = -INFINITY;
	w.weight[0] = w.weight[1] = 0;
}

/* The scores of @KEYS keys: fragments of D, eight keys each. */
template <int D, int KEYS>
static __device__ __forceinline__ void score(float (&s)[KEYS / 8][4], const struct attend_rows<D> &w,
					     uint16_t *keys)
{
	const uint32_t lane = threadIdx.x % 32;

#pragma unroll
	for (int i = 0; i < KEYS / 8; i++)
		s[i][0] = s[i][1] = s[i][2] = s[i][3] = 0;
#pragma unroll
	for (int k = 0; k < D / 16; k++) {
#pragma unroll
		for (int i = 0; i < KEYS / 16; i++) {
			uint32_t b[4];

			load_matrices(b, chunk_at<D>(keys, i * 16 + lane / 16 * 8 + lane % 8,
						     k * 2 + lane / 8 % 2));
			mma_bf16(s[2 * i], w.high[k], { b[0], b[1] });
			mma_bf16(s[2 * i + 1], w.high[k], { b[2], b[3] });
			mma_bf16(s[2 * i], w.low[k], { b[0], b[1] });
			mma_bf16(s[2 * i + 1], w.low[k], { b[2], b[3] });
		}
	}
}

/*
 * Adds a tile of keys and values. @last: of the lane's two rows the last key
 * of the tile that counts, from 0; negative: none. Values that no row may see
 * are finite all the same.
 */
template <int D, int KEYS>
static __device__ __forceinline__ void attend_tile(struct attend_rows<D> &w, uint16_t *keys,
						   uint16_t *values, const int (&last)[2])
{
	const uint32_t lane = threadIdx.x % 32;
	float s[KEYS / 8][4], most[2] = { w.most[0], w.most[1] }, factor[2];

	score<D, KEYS>(s, w, keys);
#pragma unroll
	for (int i = 0; i < KEYS / 8; i++) {
#pragma unroll
		for (int e = 0; e < 4; e++) {
			if (i * 8 + (int)(lane % 4) * 2 + e % 2 > last[e / 2])
				s[i][e] = -INFINITY;
			most[e / 2] = fmaxf(most[e / 2], s[i][e]);
		}
	}
#pragma unroll
	for (int r = 0; r < 2; r++) {
		most[r] = fmaxf(most[r], __shfl_xor_sync(WARP_ALL, most[r], 1));
		most[r] = fmaxf(most[r], __shfl_xor_sync(WARP_ALL, most[r], 2));
		/* a row that has seen nothing yet has nothing to scale */
		factor[r] = w.most[r] == -INFINITY ? 0 : exp2f(w.most[r] - most[r]);
		w.weight[r] *= factor[r];
	}
	if (__any_sync(WARP_ALL, most[0] != w.most[0] || most[1] != w.most[1])) {
#pragma unroll
		for (int i = 0; i < D / 8; i++) {
#pragma unroll
			for (int e = 0; e < 4; e++)
				w.sums[i][e] *= factor[e / 2];
		}
	}
	w.most[0] = most[0];
	w.most[1] = most[1];

#pragma unroll
	for (int k = 0; k < KEYS / 16; k++) {
		uint32_t high[4], low[4];

#pragma unroll
		for (int i = 0; i < 4; i++) { /* fragment D of two tiles of eight keys is one of A */
			float *two = &s[2 * k + i / 2][i % 2 * 2];

#pragma unroll
			for (int e = 0; e < 2; e++) {
				two[e] = two[e] == -INFINITY ? 0 : exp2f(two[e] - most[i % 2]);
				w.weight[i % 2] += two[e];
			}
			halve(two[0], two[1], high[i], low[i]);
		}
#pragma unroll
		for (int d = 0; d < D / 16; d++) {
			uint32_t b[4];

			load_matrices_transposed(
				b, chunk_at<D>(values, k * 16 + lane / 8 % 2 * 8 + lane % 8,
					       d * 2 + lane / 16));
			mma_bf16(w.sums[2 * d], high, { b[0], b[1] });
			mma_bf16(w.sums[2 * d + 1], high, { b[2], b[3] });
			mma_bf16(w.sums[2 * d], low, { b[0], b[1] });
			mma_bf16(w.sums[2 * d + 1], low, { b[2], b[3] });
		}
	}
}

/* After the last tile: every lane of a row gets the sum of its weights. */
template <int D> static __device__ __forceinline__ void rows_end(struct attend_rows<D> &w)
{
#pragma unroll
	for (int r = 0; r < 2; r++) {
		w.weight[r] += __shfl_xor_sync(WARP_ALL, w.weight[r], 1);
		w.weight[r] += __shfl_xor_sync(WARP_ALL, w.weight[r], 2);
	}
}

/* Of the batch's sequences, each with count(seq) items, the one that has item @index; a warp looks. */
struct found {
	uint32_t seq, item; /* seq: n_seqs if there is none */
};

template <typename F>
static __device__ __forceinline__ struct found find_item(const struct batch &batch, uint32_t n_seqs,
							 uint32_t index, F count)
{
	const uint32_t lane = threadIdx.x % 32;

	for (uint32_t first = 0; first < n_seqs; first += 32) {
		const uint32_t n = first + lane < n_seqs ? count(batch.seqs[first + lane]) : 0;
		uint32_t upto = n, hit;

#pragma unroll
		for (uint32_t step = 1; step < 32; step *= 2) {
			const uint32_t before = __shfl_up_sync(WARP_ALL, upto, step);

			if (lane >= step)
				upto += before;
		}
		hit = __ballot_sync(WARP_ALL, index < upto);
		if (hit) {
			const int owner = __ffs((int)hit) - 1;

			return { first + owner,
				 index - __shfl_sync(WARP_ALL, upto - n, owner) };
		}
		index -= __shfl_sync(WARP_ALL, upto, 31);
	}
	return { n_seqs, 0 };
}
