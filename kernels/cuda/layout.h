/*
 * How packed matrices lie in device memory. weight_bytes() of rows is a sum
 * over strips of 16 rows, so that pieces can be packed apart.
 *
 *	BF16, F32 row-major, rows padded with zeros to 32 columns
 *	INT4	  strips of 16 rows, each with all its codes, then its scales. A
 *		  tile is 64 columns, or 32 at the end of a row:
 *		  codes	 of lane l = 4 g + t of a warp, 16 bytes: 8 codes of row
 *			 g, columns 8t and on, then of row g + 8, then both for
 *			 columns 32 + 8t and on. Column 2j of the eight is at
 *			 bits 4j, column 2j + 1 at bits 16 + 4j
 *		  scales [g][row g, row g + 8][group of 32 columns], BF16
 *	INT4_F32  the same with F32 scales
 *
 * A short tile has the first half of each lane's codes, 8 bytes a lane, and one
 * group of scales. A nibble is the code plus 8; a padded row has code 8 (zero)
 * and scale 0. With the columns of a lane renamed so, its bytes are what
 * mma.m16n8k16 wants of it as A, and 16 contiguous bytes of a token are what it
 * wants as B.
 */
#pragma once

#include "kernels/tensor.h"

#define STRIP_ROWS 16
#define GROUP_COLS 32
#define TILE_COLS 64
#define GROUP_CODE_BYTES (STRIP_ROWS * GROUP_COLS / 2)

#ifdef __CUDACC__
#define LAYOUT_FN static inline __host__ __device__
#else
#define LAYOUT_FN static inline
#endif

LAYOUT_FN uint32_t groups_of(uint32_t cols)
{
	return cols / GROUP_COLS + (cols % GROUP_COLS != 0);
}

LAYOUT_FN uint32_t tiles_of(uint32_t cols)
{
	return cols / TILE_COLS + (cols % TILE_COLS != 0);
}

LAYOUT_FN uint32_t strips_of(uint32_t rows)
{
	return rows / STRIP_ROWS + (rows % STRIP_ROWS != 0);
}

LAYOUT_FN uint32_t scale_bytes(int kind)
{
	return kind == WEIGHT_INT4 ? 2 : 4;
}

/* Bytes of one group of 32 columns of a strip. */
LAYOUT_FN uint32_t group_bytes(int kind)
{
	if (kind == WEIGHT_BF16)
		return STRIP_ROWS * GROUP_COLS * 2;
	if (kind == WEIGHT_F32)
		return STRIP_ROWS * GROUP_COLS * 4;
	return GROUP_CODE_BYTES + STRIP_ROWS * scale_bytes(kind);
}

LAYOUT_FN size_t strip_bytes(int kind, uint32_t cols)
{
	return (size_t)groups_of(cols) * group_bytes(kind);
}

/* Elements of a row of activations as kernels take them: padded with zeros to whole tiles. */
LAYOUT_FN uint32_t padded_cols(uint32_t cols)
{
	return tiles_of(cols) * TILE_COLS;
}
