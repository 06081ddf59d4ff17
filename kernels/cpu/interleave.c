/*
 * Four rows by four words at a time. A line of the source, four tiles, is used
 * up before the next four rows are looked at: rows of a power of two would push
 * each other out of the first cache.
 */
#include "kernels/cpu/interleave.h"

#include <string.h>

#define TILES_AT_ONCE 4

typedef uint32_t words __attribute__((vector_size(16)));

static inline words load(const uint8_t *from)
{
	words w;

	memcpy(&w, from, sizeof(w));
	return w;
}

static inline void store(uint8_t *to, uint32_t line, words w)
{
	memcpy(__builtin_assume_aligned(to + line * STRIP_ROWS * 4, 16), &w, sizeof(w));
}

/* Nibbles 0 1 2 3 4 5 6 7 to 0 4 1 5 2 6 3 7: the inner bytes change places, then the inner nibbles. */
static inline words deal_nibbles(words w)
{
	words t = (w ^ (w >> 8)) & 0x0000ff00;

	w ^= t ^ (t << 8);
	t = (w ^ (w >> 4)) & 0x00f000f0;
	return w ^ t ^ (t << 4);
}

static inline void move_rows(uint8_t *to, const uint8_t *from, size_t row_bytes, bool are_codes)
{
	words row[4], low[2], high[2];

	for (int r = 0; r < 4; r++) {
		row[r] = load(from + r * row_bytes);
		if (are_codes)
			row[r] = deal_nibbles(row[r]);
	}
	for (int i = 0; i < 2; i++) {
		low[i] = __builtin_shuffle(row[2 * i], row[2 * i + 1], (words){ 0, 4, 1, 5 });
		high[i] = __builtin_shuffle(row[2 * i], row[2 * i + 1], (words){ 2, 6, 3, 7 });
	}
	store(to, 0, __builtin_shuffle(low[0], low[1], (words){ 0, 1, 4, 5 }));
	store(to, 1, __builtin_shuffle(low[0], low[1], (words){ 2, 3, 6, 7 }));
	store(to, 2, __builtin_shuffle(high[0], high[1], (words){ 0, 1, 4, 5 }));
	store(to, 3, __builtin_shuffle(high[0], high[1], (words){ 2, 3, 6, 7 }));
}

static inline void move(uint8_t *to, size_t to_stride, const uint8_t *from, size_t row_bytes,
			uint32_t n_tiles, bool are_codes)
{
	for (uint32_t first = 0; first < n_tiles; first += TILES_AT_ONCE) {
		const uint32_t left = n_tiles - first;
		const uint32_t n = left < TILES_AT_ONCE ? left : TILES_AT_ONCE;

		for (uint32_t r = 0; r < STRIP_ROWS; r += 4)
			for (uint32_t t = first; t < first + n; t++)
				move_rows(to + t * to_stride + r * 4,
					  from + r * row_bytes + (size_t)t * TILE_WORDS * 4,
					  row_bytes, are_codes);
	}
}

void interleave_words(uint8_t *to, size_t to_stride, const uint8_t *from, size_t row_bytes,
		      uint32_t n_tiles)
{
	move(to, to_stride, from, row_bytes, n_tiles, false);
}

void interleave_codes(uint8_t *to, size_t to_stride, const uint8_t *from, size_t row_bytes,
		      uint32_t n_tiles)
{
	move(to, to_stride, from, row_bytes, n_tiles, true);
}
