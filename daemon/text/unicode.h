/*
 * Character classes of Unicode 16, as the split pattern and the word rule of
 * added tokens see them. The C library's tables are older.
 */
#pragma once

#include <stdint.h>

#define UNICODE_END 0x110000u

enum unicode_class {
	UNICODE_L = 1, /* \p{L} */
	UNICODE_N = 2, /* \p{N} */
	UNICODE_S = 4, /* \s */
	UNICODE_W = 8, /* \w: alphabetic, marks, decimal numbers, connectors, joiners */
};

struct unicode_range {
	uint32_t first, last; /* inclusive */
	uint8_t classes;
};
extern const struct unicode_range unicode_ranges[]; /* ascending, disjoint */
extern const uint32_t unicode_n_ranges;

/* Classes by code point, UNICODE_END bytes; built on the first call, which may come from any thread. */
const uint8_t *unicode_classes(void);
