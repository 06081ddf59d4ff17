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

/* What one lane holds of a tile. */
template <int KIND> struct tile;

template <> struct tile<WEIGHT_BF16> {
	uint4 v[4]; /* [group][row g, row g + 8] */
};
template <> struct tile<WEIGHT_F32> {
	uint4 v[8]; /* [group][row g, row g + 8][columns 0 … 3, 4 … 7 of the lane's] */
};
template <> struct tile<WEIGHT_INT4> {
	uint4 codes;  /* [group][row g, row g + 8] */
	uint2 scales; /* [row g, row g + 8], of both groups */
};
template <> struct tile<WEIGHT_INT4_F32> {
	uint4 codes;
	uint4 scales; /* [row g, row g + 8][group] */
};

/* Where a lane finds its part of the tiles of a strip. */
struct strip {
	const char *at;
	uint32_t groups;
};

template <int KIND>
static __device__ __forceinline__ strip strip_of(const void *matrix, uint32_t number,
						 uint32_t groups, uint32_t lane)
{
	const char *at = (const char *)matrix + (size_t)number * groups * group_bytes(KIND);

	if (KIND == WEIGHT_BF16)
		at += lane / 4 * groups * 64 + lane % 4 * 16;
	if (KIND == WEIGHT_F32)
		at += lane / 4 * groups * 128 + lane % 4 * 32;
	return { at, groups };
}

static __device__ __forceinline__ void load_tile(tile<WEIGHT_BF16> &to, const strip &s,
						 uint32_t number, uint32_t lane)
{
	const char *top = s.at + number * 128u, *low = top + s.groups * (8 * 64u);

	(void)lane;
	to.v[0] = load_once(top);
	to.v[1] = load_once(low);
	to.v[2] = to.v[3] = make_uint4(0, 0, 0, 0);
	if (2 * number + 1 < s.groups) {
		to.v[2] = load_once(top + 64);
		to.v[3] = load_once(low + 64);
	}
}

static __device__ __forceinline__ void load_tile(tile<WEIGHT_F32> &to, const strip &s,
						 uint32_t number, uint32_t lane)
{
	const char *top = s.at + number * 256u, *low = top + s.groups * (8 * 128u);

	(void)lane;
	for (uint32_t q = 0; q < 2; q++)
		for (uint32_t i = 0; i < 4; i++)
			to.v[4 * q + i] =
				2 * number + q < s.groups
					? load_once((i < 2 ? top : low) + q * 128 + i % 2 * 16)
					: make_uint4(0, 0, 0, 0);
}

static __device__ __forceinline__ void load_tile(tile<WEIGHT_INT4> &to, const strip &s,
						 uint32_t number, uint32_t lane)
{
	const char *codes = s.at + number * 512u;
	const char *scales = s.at + s.groups * GROUP_CODE_BYTES + number * 64u;

	if (2 * number + 1 < s.groups) {
		to.codes = load_once(codes + lane * 16);
		to.scales = load_once_8(scales + lane / 4 * 8);
	} else {
		const uint2 half = load_once_8(codes + lane * 8);
		const uint32_t both = __ldg((const uint32_t *)scales + lane / 4);

		to.codes = make_uint4(half.x, half.y, 0, 0);
		to.scales = make_uint2(both & 0xffff, both >> 16);
	}
}

static __device__ __forceinline__ void load_tile(tile<WEIGHT_INT4_F32> &to, const strip &s,
						 uint32_t number, uint32_t lane)
{
	const char *codes = s.at + number * 512u;
	const char *scales = s.at + s.groups * GROUP_CODE_BYTES + number * 128u;

	if (2 * number + 1 < s.groups) {
		to.codes = load_once(codes + lane * 16);
		to.scales = load_once(scales + lane / 4 * 16);
	} else {
		const uint2 half = load_once_8(codes + lane * 8);
		const uint2 both = load_once_8(scales + lane / 4 * 8);

		to.codes = make_uint4(half.x, half.y, 0, 0);
		to.scales = make_uint4(both.x, 0, both.y, 0);
	}
}

/* Parts that a weight is the sum of. */
template <int KIND> static constexpr int tile_parts = KIND == WEIGHT_F32 ? 3 : 1;

/* A of 16 columns, number @step of the tile's four; @part of F32 weights. */
static __device__ __forceinline__ void fragment(uint32_t (&a)[4], const tile<WEIGHT_BF16> &w,
						int step, int part)
{
	const uint4 top = w.v[step / 2 * 2], low = w.v[step / 2 * 2 + 1];

	(void)part;
	a[0] = step % 2 ? top.z : top.x;
	a[1] = step % 2 ? low.z : low.x;
	a[2] = step % 2 ? top.w : top.y;
	a[3] = step % 2 ? low.w : low.y;
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

static __device__ __forceinline__ void fragment(uint32_t (&a)[4], const tile<WEIGHT_F32> &w,
						int step, int part)
{
	const uint4 top = w.v[step / 2 * 4 + step % 2], low = w.v[step / 2 * 4 + 2 + step % 2];

	a[0] = part_of(top.x, top.y, part);
	a[1] = part_of(low.x, low.y, part);
	a[2] = part_of(top.z, top.w, part);
	a[3] = part_of(low.z, low.w, part);
}

/* Codes 0 … 15 in the bits of BF16 128 and on are 128 + code: exact, and so is less 136. */
static __device__ __forceinline__ uint32_t widen_codes(uint32_t word, int pair)
{
	return add_bf16_pairs((word >> 4 * pair & 0x000f000fu) | 0x43004300u, 0xc308c308u);
}

static __device__ __forceinline__ void fragment_of_codes(uint32_t (&a)[4], const uint4 &codes,
							 int step)
{
	const uint32_t top = step / 2 ? codes.z : codes.x, low = step / 2 ? codes.w : codes.y;
	const int pair = step % 2 * 2;

	a[0] = widen_codes(top, pair);
	a[1] = widen_codes(low, pair);
	a[2] = widen_codes(top, pair + 1);
	a[3] = widen_codes(low, pair + 1);
}

static __device__ __forceinline__ void fragment(uint32_t (&a)[4], const tile<WEIGHT_INT4> &w,
						int step, int part)
{
	(void)part;
	fragment_of_codes(a, w.codes, step);
}

static __device__ __forceinline__ void fragment(uint32_t (&a)[4], const tile<WEIGHT_INT4_F32> &w,
						int step, int part)
{
	(void)part;
	fragment_of_codes(a, w.codes, step);
}

/* acc += sum of a group's columns, times the scales of its rows. */
template <int KIND>
static __device__ __forceinline__ void take_up(float (&acc)[4], const float (&d)[4],
					       const tile<KIND> &, int)
{
	for (int i = 0; i < 4; i++)
		acc[i] += d[i];
}

static __device__ __forceinline__ void scale_up(float (&acc)[4], const float (&d)[4], float top,
						float low)
{
	acc[0] = fmaf(d[0], top, acc[0]);
	acc[1] = fmaf(d[1], top, acc[1]);
	acc[2] = fmaf(d[2], low, acc[2]);
	acc[3] = fmaf(d[3], low, acc[3]);
}

template <>
__device__ __forceinline__ void take_up(float (&acc)[4], const float (&d)[4],
					const tile<WEIGHT_INT4> &w, int group)
{
	const uint32_t top = group ? w.scales.x & 0xffff0000u : w.scales.x << 16;
	const uint32_t low = group ? w.scales.y & 0xffff0000u : w.scales.y << 16;

	scale_up(acc, d, __uint_as_float(top), __uint_as_float(low));
}

template <>
__device__ __forceinline__ void take_up(float (&acc)[4], const float (&d)[4],
					const tile<WEIGHT_INT4_F32> &w, int group)
{
	scale_up(acc, d, __uint_as_float(group ? w.scales.y : w.scales.x),
		 __uint_as_float(group ? w.scales.w : w.scales.z));
}

/*
 * acc[n] += tile * B[n]. @columns(n, part, group) gives 8 columns of this
 * lane's token of eight number n: the high halves for part 0, the low ones for
 * part 1. With N tokens of eight and PARTS 1, acc holds what columns() mixes.
 */
template <int KIND, int N, int PARTS, typename COLUMNS>
static __device__ __forceinline__ void multiply(float (&acc)[N][4], const tile<KIND> &w,
						COLUMNS columns)
{
#pragma unroll
	for (int group = 0; group < 2; group++) {
		uint32_t a[tile_parts<KIND>][2][4];

#pragma unroll
		for (int part = 0; part < tile_parts<KIND>; part++) {
			fragment(a[part][0], w, 2 * group, part);
			fragment(a[part][1], w, 2 * group + 1, part);
		}
#pragma unroll
		for (int n = 0; n < N; n++) {
			float d[4] = { 0, 0, 0, 0 };

#pragma unroll
			for (int part = 0; part < PARTS; part++) {
				const uint4 x = columns(n, part, group);
				const uint32_t first[2] = { x.x, x.y }, second[2] = { x.z, x.w };

#pragma unroll
				for (int i = 0; i < tile_parts<KIND>; i++) {
					mma_bf16(d, a[i][0], first);
					mma_bf16(d, a[i][1], second);
				}
			}
			take_up(acc[n], d, w, group);
		}
	}
}
