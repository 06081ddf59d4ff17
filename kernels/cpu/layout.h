/*
 * How packed matrices lie in memory, and the forms activations take.
 *
 * A matrix is a row of strips; a strip is 16 rows and all columns, padded with
 * zeros to 32. Within a strip, group after group of 32 columns:
 *
 *	BF16	  64 bytes a pair of columns: lane r (32 bits) holds column 2j of
 *		  row r in its low half, column 2j + 1 in its high half
 *	F32	  64 bytes a column: lane r holds row r
 *	INT4	  4 lines of 64 bytes, then 16 scales in BF16. Lane r of line j
 *		  holds columns 8j … 8j + 7 of row r: byte i has column 8j + i in
 *		  its low and 8j + 4 + i in its high nibble. A nibble is the code
 *		  plus 8, so that masking gives the unsigned operand of vpdpbusd
 *	INT4_F32  the same with 16 scales in F32
 *
 * A padded row has code 8 (zero) and scale 0.
 *
 * Activations are taken into one of these forms once an operation:
 *
 *	ACT_F32	  columns padded with zeros to 32
 *	ACT_SPLIT x = high + low, both BF16: per group 16 words of high pairs,
 *		  then 16 of low pairs, a pair as in the BF16 layout
 *	ACT_FIXED x = scale * (256 * high + low), high and low signed bytes: per
 *		  group 32 high, 32 low bytes; behind all groups, for each of
 *		  them, its scale and 8 * the sum of its integers
 *	ACT_WIDE  the same integers as words of 16 bits, each 8 columns in the
 *		  order 0 2 1 3 4 6 5 7; behind all groups their scales
 */
#pragma once

#include "kernels/tensor.h"

#define STRIP_ROWS 16
#define GROUP_COLS 32

enum act { ACT_F32, ACT_SPLIT, ACT_FIXED, ACT_WIDE, ACT_N };

/* Largest integer of ACT_FIXED: 127 * 256 + 127, so that neither byte overflows. */
#define FIXED_MAX 32639

struct fixed_group {
	float scale;
	int32_t sum8;
};

static inline uint32_t groups_of(uint32_t cols)
{
	return (uint32_t)(((uint64_t)cols + GROUP_COLS - 1) / GROUP_COLS);
}

static inline uint32_t strips_of(uint32_t rows)
{
	return (uint32_t)(((uint64_t)rows + STRIP_ROWS - 1) / STRIP_ROWS);
}

/* Bytes of one group of one strip. */
static inline size_t group_bytes(enum weight_kind kind)
{
	switch (kind) {
	case WEIGHT_BF16: return GROUP_COLS * STRIP_ROWS * 2;
	case WEIGHT_F32: return GROUP_COLS * STRIP_ROWS * 4;
	case WEIGHT_INT4: return GROUP_COLS * STRIP_ROWS / 2 + STRIP_ROWS * 2;
	case WEIGHT_INT4_F32: return GROUP_COLS * STRIP_ROWS / 2 + STRIP_ROWS * 4;
	case WEIGHT_NONE: break;
	}
	return 0;
}

static inline size_t strip_bytes(enum weight_kind kind, uint32_t cols)
{
	return groups_of(cols) * group_bytes(kind);
}

/* Bytes of one activation row, a multiple of 64. */
static inline size_t act_bytes(enum act act, uint32_t cols)
{
	const size_t groups = groups_of(cols);

	if (act == ACT_FIXED)
		return (groups * (2 * GROUP_COLS + sizeof(struct fixed_group)) + 63) & ~(size_t)63;
	if (act == ACT_WIDE)
		return (groups * (2 * GROUP_COLS + sizeof(float)) + 63) & ~(size_t)63;
	return groups * GROUP_COLS * 4;
}
