/*
 * The forms of activations, and the gate between the matrices of an MLP:
 * written once in vector extensions, included once by the matrix kernels of
 * each instruction set, which have defined LANES. Activation rows come out the
 * same bits in all of them.
 */
#pragma once

#include <string.h>

#include "kernels/cpu/bf16.h"
#include "kernels/cpu/kinds.h"
#include "kernels/cpu/vector.h"

typedef float act_f __attribute__((vector_size(64), aligned(4)));
typedef int32_t act_i __attribute__((vector_size(64), aligned(4)));

static inline void take_f32(uint8_t *row, uint32_t at, uint32_t row_groups, const float *x,
			    uint32_t n_groups)
{
	(void)row_groups;
	memcpy(row + (size_t)at * GROUP_COLS * 4, x, (size_t)n_groups * GROUP_COLS * 4);
}

static inline void take_split(uint8_t *row, uint32_t at, uint32_t row_groups, const float *x,
			      uint32_t n_groups)
{
	uint32_t *to = (uint32_t *)(row + (size_t)at * GROUP_COLS * 4);

	(void)row_groups;
	for (uint32_t g = 0; g < n_groups; g++, x += GROUP_COLS, to += GROUP_COLS) {
		for (int i = 0; i < GROUP_COLS / 2; i++) {
			const float x0 = x[2 * i], x1 = x[2 * i + 1];
			const uint16_t high0 = bf16_narrow(x0), high1 = bf16_narrow(x1);
			const uint16_t low0 = bf16_narrow(x0 - bf16_widen(high0));
			const uint16_t low1 = bf16_narrow(x1 - bf16_widen(high1));

			to[i] = high0 | (uint32_t)high1 << 16;
			to[GROUP_COLS / 2 + i] = low0 | (uint32_t)low1 << 16;
		}
	}
}

/* The largest magnitude of a group, as bits: those of positive floats are ordered as integers. */
static inline int32_t largest_bits(const float *x)
{
	const act_i a = *(const act_i *)x & 0x7fffffff, b = *(const act_i *)(x + 16) & 0x7fffffff;
	const act_i b_more = b > a;
	const act_i m = (b & b_more) | (a & ~b_more);
	int32_t largest = 0;

	for (int i = 0; i < 16; i++)
		largest = m[i] > largest ? m[i] : largest;
	return largest;
}

/*
 * Takes a group to integers of at most FIXED_MAX and returns its scale. Below
 * 1e-30 the reciprocal overflows, and the group is nothing beside any other; of
 * what is infinite or NaN the row shall show it.
 */
static inline float fix_group(int32_t v[GROUP_COLS], const float *x)
{
	const int32_t bits = largest_bits(x);
	float largest, to_fixed;

	memcpy(&largest, &bits, 4);
	if (largest < 1e-30f || bits >= 0x7f800000) {
		memset(v, 0, GROUP_COLS * sizeof(*v));
		return bits >= 0x7f800000 ? __builtin_nanf("") : 0;
	}
	to_fixed = (float)FIXED_MAX / largest;
	for (int half = 0; half < GROUP_COLS; half += 16) {
		/* 1.5 * 2^23 leaves the nearest integer, ties to even, in the low bits */
		const act_f shifted = *(const act_f *)(x + half) * to_fixed + 12582912.0f;

		*(act_i *)(v + half) = (act_i)shifted - 0x4b400000;
	}
	return largest / (float)FIXED_MAX;
}

static inline void take_fixed(uint8_t *row, uint32_t at, uint32_t row_groups, const float *x,
			      uint32_t n_groups)
{
	struct fixed_group *groups =
		(struct fixed_group *)(row + (size_t)row_groups * 2 * GROUP_COLS);

	for (uint32_t g = at; g < at + n_groups; g++, x += GROUP_COLS) {
		int8_t *high = (int8_t *)row + (size_t)g * 2 * GROUP_COLS, *low = high + GROUP_COLS;
		int32_t v[GROUP_COLS], sum = 0;

		groups[g].scale = fix_group(v, x);
		for (int i = 0; i < GROUP_COLS; i++) {
			const int32_t h = (v[i] + 128) >> 8;

			high[i] = (int8_t)h;
			low[i] = (int8_t)(v[i] - 256 * h);
			sum += v[i];
		}
		groups[g].sum8 = 8 * sum;
	}
}

static inline void take_wide(uint8_t *row, uint32_t at, uint32_t row_groups, const float *x,
			     uint32_t n_groups)
{
	static const uint8_t order[8] = { 0, 2, 1, 3, 4, 6, 5, 7 };
	float *scales = (float *)(row + (size_t)row_groups * 2 * GROUP_COLS);

	for (uint32_t g = at; g < at + n_groups; g++, x += GROUP_COLS) {
		int16_t *to = (int16_t *)row + (size_t)g * GROUP_COLS;
		int32_t v[GROUP_COLS];

		scales[g] = fix_group(v, x);
		for (int i = 0; i < GROUP_COLS; i++)
			to[i] = (int16_t)v[i - i % 8 + order[i % 8]];
	}
}

/* silu(z) = z / (1 + e^-z), through e^-|z| so that nothing overflows. */
static inline void gate_rows(float *h, const float *gate, const float *up)
{
	const vf zero = v_all(0), one = v_all(1);

	for (int i = 0; i < MUL_ROWS; i += LANES) {
		const vf z = v_load(gate + i);
		const vi negative = z < zero;
		const vf e = v_exp(v_select(negative, z, -z));

		v_store(h + i, z * v_select(negative, e, one) / (one + e) * v_load(up + i));
	}
}
