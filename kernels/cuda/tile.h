/*
 * Products on tensor cores, with weights as A and tokens as B: what a warp
 * does with 16 rows and 64 columns of a packed matrix. Activations are taken
 * as high + low, both BF16, so that 16 of their bits count; weights are exact
 * (F32 ones as three BF16); sums are F32, taken up from the tensor cores at
 * least every 32 columns, since these only cut what they drop.
 */
#pragma once

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/ptx.h"

/* Two activations as two pairs of BF16. */
static __device__ __forceinline__ void split_pair(uint32_t *high, uint32_t *low, float a, float b)
{
	const uint32_t pair = bf16_pair(a, b);

	*high = pair;
	*low = bf16_pair(a - __uint_as_float(pair << 16), b - __uint_as_float(pair & 0xffff0000u));
}

/* Bytes that a tile takes in shared memory. */
template <int KIND>
static constexpr uint32_t tile_bytes = KIND == WEIGHT_BF16   ? 2048
				       : KIND == WEIGHT_F32  ? 4096
				       : KIND == WEIGHT_INT4 ? 576
							     : 640;

/* Where a strip begins, for copy_tile(). */
template <int KIND>
static __device__ __forceinline__ const char *strip_at(const void *matrix, uint32_t number,
						       uint32_t groups)
{
	return (const char *)matrix + (size_t)number * groups * group_bytes(KIND);
}

/*
 * A warp queues the copy of a tile to shared memory. Rows of BF16 and F32 are 128
 * and 256 bytes there, and every other one has chunks of 16 bytes swapped, so that
 * two rows use all banks.
 */
template <int KIND>
static __device__ __forceinline__ void copy_tile(char *to, const char *strip, uint32_t groups,
						 uint32_t number, uint32_t lane)
{
	const bool is_whole = 2 * number + 1 < groups;

	if (KIND == WEIGHT_BF16 || KIND == WEIGHT_F32) {
		constexpr uint32_t chunks = KIND == WEIGHT_BF16 ? 8 : 16;
		constexpr uint32_t swap = KIND == WEIGHT_BF16 ? 4 : 1;
		const uint32_t first = lane / chunks, c = lane % chunks, rows = 32 / chunks;
		const uint32_t pitch = groups * (chunks / 2) * 16;
		const char *from = strip + first * pitch + (number * chunks + c) * 16;

		/* rows that a lane copies are an even number apart, so chunks are swapped in all or in none */
		to += (first * chunks + (c ^ first % 2 * swap)) * 16;
		if (!is_whole && c >= chunks / 2)
			return;
#pragma unroll
		for (uint32_t i = 0; i < STRIP_ROWS / rows; i++)
			copy_async(to + i * 512, from + i * (rows * pitch));
	} else {
		constexpr uint32_t of_scales = 2 * STRIP_ROWS * (KIND == WEIGHT_INT4 ? 2 : 4);
		const char *codes = strip + number * (2 * GROUP_CODE_BYTES);
		const char *scales = strip + groups * GROUP_CODE_BYTES + number * of_scales;

		if (is_whole || lane < 16)
			copy_async(to + lane * 16, codes + lane * 16);
		if (lane < (is_whole ? of_scales : of_scales / 2) / 16)
			copy_async(to + 2 * GROUP_CODE_BYTES + lane * 16, scales + lane * 16);
	}
}

/* Four columns of a row, as far as there are any. */
static __device__ __forceinline__ float4 four_columns(const float *row, uint32_t c, uint32_t cols,
						     bool is_aligned)
{
	if (is_aligned && c < cols)
		return *(const float4 *)(row + c);
	return make_float4(c < cols ? row[c] : 0, c + 1 < cols ? row[c + 1] : 0,
			   c + 2 < cols ? row[c + 2] : 0, c + 3 < cols ? row[c + 3] : 0);
}

/* What one lane holds of 32 columns of a tile, rows g and g + 8. */
template <int KIND> struct group;

template <> struct group<WEIGHT_BF16> {
	uint4 top, low;
};
template <> struct group<WEIGHT_F32> {
	uint4 top[2], low[2]; /* columns 0 … 3 and 4 … 7 of the lane's */
};
template <> struct group<WEIGHT_INT4> {
	uint32_t top, low;
	float top_scale, low_scale;
};
template <> struct group<WEIGHT_INT4_F32> {
	uint32_t top, low;
	float top_scale, low_scale;
};

/* Group @number of a tile that is in shared memory; the second one only if it is whole. */
static __device__ __forceinline__ void read_group(group<WEIGHT_BF16> &w, const char *at, int number,
						  bool, uint32_t lane)
{
	const uint32_t g = lane / 4, c = (number * 4 + lane % 4) ^ g % 2 * 4;

	w.top = *(const uint4 *)(at + g * 128 + c * 16);
	w.low = *(const uint4 *)(at + (g + 8) * 128 + c * 16);
}

static __device__ __forceinline__ void read_group(group<WEIGHT_F32> &w, const char *at, int number,
						  bool, uint32_t lane)
{
	const uint32_t g = lane / 4;

#pragma unroll
	for (uint32_t i = 0; i < 2; i++) {
		const uint32_t c = (number * 8 + lane % 4 * 2 + i) ^ g % 2;

		w.top[i] = *(const uint4 *)(at + g * 256 + c * 16);
		w.low[i] = *(const uint4 *)(at + (g + 8) * 256 + c * 16);
	}
}

template <int KIND>
static __device__ __forceinline__ void read_codes(group<KIND> &w, const char *at, int number,
						  bool is_whole, uint32_t lane)
{
	const uint2 codes = *(const uint2 *)(at + (is_whole ? lane * 16 + number * 8 : lane * 8));

	w.top = codes.x;
	w.low = codes.y;
}

static __device__ __forceinline__ void read_group(group<WEIGHT_INT4> &w, const char *at, int number,
						  bool is_whole, uint32_t lane)
{
	const uint16_t *scales = (const uint16_t *)(at + 2 * GROUP_CODE_BYTES) +
				 lane / 4 * (is_whole ? 4 : 2) + number;

	read_codes(w, at, number, is_whole, lane);
	w.top_scale = __uint_as_float((uint32_t)scales[0] << 16);
	w.low_scale = __uint_as_float((uint32_t)scales[is_whole ? 2 : 1] << 16);
}

static __device__ __forceinline__ void read_group(group<WEIGHT_INT4_F32> &w, const char *at,
						  int number, bool is_whole, uint32_t lane)
{
	const float *scales = (const float *)(at + 2 * GROUP_CODE_BYTES) +
			      lane / 4 * (is_whole ? 4 : 2) + number;

	read_codes(w, at, number, is_whole, lane);
	w.top_scale = scales[0];
	w.low_scale = scales[is_whole ? 2 : 1];
}

/* Parts that a weight is the sum of. */
template <int KIND> static constexpr int tile_parts = KIND == WEIGHT_F32 ? 3 : 1;

/* A of 16 columns, number @step of the group's two; @part of F32 weights. */
static __device__ __forceinline__ void fragment(uint32_t (&a)[4], const group<WEIGHT_BF16> &w,
						int step, int)
{
	a[0] = step ? w.top.z : w.top.x;
	a[1] = step ? w.low.z : w.low.x;
	a[2] = step ? w.top.w : w.top.y;
	a[3] = step ? w.low.w : w.low.y;
}

static __device__ __forceinline__ uint32_t part_of(uint32_t a, uint32_t b, int part)
{
	float x = __uint_as_float(a), y = __uint_as_float(b);
	uint32_t pair = bf16_pair(x, y);

	for (int i = 0; i < part; i++) {
		x -= __uint_as_float(pair << 16);
		y -= __uint_as_float(pair & 0xffff0000u);
		pair = bf16_pair(x, y);
	}
	return pair;
}

static __device__ __forceinline__ void fragment(uint32_t (&a)[4], const group<WEIGHT_F32> &w,
						int step, int part)
{
	a[0] = part_of(w.top[step].x, w.top[step].y, part);
	a[1] = part_of(w.low[step].x, w.low[step].y, part);
	a[2] = part_of(w.top[step].z, w.top[step].w, part);
	a[3] = part_of(w.low[step].z, w.low[step].w, part);
}

/* Codes 0 … 15 in the bits of BF16 128 and on are 128 + code: exact, and so is less 136. */
static __device__ __forceinline__ uint32_t widen_codes(uint32_t word, int pair)
{
	return add_bf16_pairs((word >> 4 * pair & 0x000f000fu) | 0x43004300u, 0xc308c308u);
}

template <int KIND>
static __device__ __forceinline__ void fragment(uint32_t (&a)[4], const group<KIND> &w, int step, int)
{
	a[0] = widen_codes(w.top, step * 2);
	a[1] = widen_codes(w.low, step * 2);
	a[2] = widen_codes(w.top, step * 2 + 1);
	a[3] = widen_codes(w.low, step * 2 + 1);
}

/* acc += sum of a group's columns, times the scales of its rows. */
static __device__ __forceinline__ void take_up(float (&acc)[4], const float (&d)[4],
					       const group<WEIGHT_BF16> &)
{
	for (int i = 0; i < 4; i++)
		acc[i] += d[i];
}

static __device__ __forceinline__ void take_up(float (&acc)[4], const float (&d)[4],
					       const group<WEIGHT_F32> &)
{
	for (int i = 0; i < 4; i++)
		acc[i] += d[i];
}

template <int KIND>
static __device__ __forceinline__ void take_up(float (&acc)[4], const float (&d)[4],
					       const group<KIND> &w)
{
	acc[0] = fmaf(d[0], w.top_scale, acc[0]);
	acc[1] = fmaf(d[1], w.top_scale, acc[1]);
	acc[2] = fmaf(d[2], w.low_scale, acc[2]);
	acc[3] = fmaf(d[3], w.low_scale, acc[3]);
}

/* acc[m][n] += group of strip m * B[n] */
template <int KIND, int M, int N, int PARTS, typename COLUMNS>
static __device__ __forceinline__ void multiply_group(float (&acc)[M][N][4], const char *tiles,
						      int number, bool is_whole, uint32_t lane,
						      COLUMNS columns)
{
	uint32_t a[M][tile_parts<KIND>][2][4];
	group<KIND> w[M];

#pragma unroll
	for (int m = 0; m < M; m++) {
		read_group(w[m], tiles + m * tile_bytes<KIND>, number, is_whole, lane);
#pragma unroll
		for (int part = 0; part < tile_parts<KIND>; part++) {
			fragment(a[m][part][0], w[m], 0, part);
			fragment(a[m][part][1], w[m], 1, part);
		}
	}
#pragma unroll
	for (int n = 0; n < N; n++) {
		float d[M][4] = {};

#pragma unroll
		for (int part = 0; part < PARTS; part++) {
			const uint4 x = columns(n, part, number);
			const uint32_t first[2] = { x.x, x.y }, second[2] = { x.z, x.w };

#pragma unroll
			for (int i = 0; i < tile_parts<KIND>; i++) {
#pragma unroll
				for (int m = 0; m < M; m++)
					mma_bf16(d[m], a[m][i][0], first);
#pragma unroll
				for (int m = 0; m < M; m++)
					mma_bf16(d[m], a[m][i][1], second);
			}
		}
#pragma unroll
		for (int m = 0; m < M; m++)
			take_up(acc[m][n], d[m], w[m]);
	}
}

/*
 * acc[m][n] += tile m * B[n], tiles in shared memory, of 64 columns or, if not
 * whole, of 32. @columns(n, part, group) gives 8 columns of this lane's token of
 * eight number n: the high halves for part 0, the low ones for part 1. With PARTS 1
 * acc holds what columns() mixes.
 */
template <int KIND, int M, int N, int PARTS, typename COLUMNS>
static __device__ __forceinline__ void multiply(float (&acc)[M][N][4], const char *tiles,
						bool is_whole, uint32_t lane, COLUMNS columns)
{
	/* many sums leave no registers for two groups at a time */
#pragma unroll(M *N > 4 ? 1 : 2)
	for (int number = 0; number < 2; number++)
		if (number == 0 || is_whole)
			multiply_group<KIND, M, N, PARTS>(acc, tiles, number, is_whole, lane, columns);
}
