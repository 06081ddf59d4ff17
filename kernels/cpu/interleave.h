/*
 * Turns rows of words into words of rows, which is what packing a whole strip
 * comes down to. In vectors of 16 bytes, which every processor of ours has.
 */
#pragma once

#include "kernels/cpu/layout.h"

/* What is moved at once: 4 words of each of the 16 rows, to 4 lines of 64 bytes. */
#define TILE_WORDS 4
#define TILE_BYTES (TILE_WORDS * STRIP_ROWS * 4)

/*
 * Word w of row r goes to lane r of line w: n_tiles tiles of them.
 *
 * to		aligned to 16; a tile begins to_stride bytes after the one before,
 *		at least TILE_BYTES
 * from		the first of 16 rows, row_bytes apart, each with n_tiles *
 *		TILE_WORDS words; any alignment, must not overlap @to
 */
void interleave_words(uint8_t *to, size_t to_stride, const uint8_t *from, size_t row_bytes,
		      uint32_t n_tiles);

/*
 * The same for words of eight int4 codes; their nibbles are put into the order
 * of WEIGHT_INT4: byte i has nibble i in its low, nibble 4 + i in its high half.
 */
void interleave_codes(uint8_t *to, size_t to_stride, const uint8_t *from, size_t row_bytes,
		      uint32_t n_tiles);
