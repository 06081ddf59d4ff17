/* Rows that go through a kernel side by side: how many, and as a constant. */
#pragma once

#include <stdint.h>

/* Of @n_tokens, those of the next tile: as many as the others, so that none is left for a small one. */
static inline uint32_t tile_of(uint32_t n_tokens, uint32_t most)
{
	const uint32_t n_tiles = (n_tokens + most - 1) / most;

	return (n_tokens + n_tiles - 1) / n_tiles;
}

/*
 * Does @call with T the number @n as a constant, for kernels that are inlined: n from 1 to 3, 5, 6
 * or 12.
 */
#define TILE_CASE(t, call)                                                                         \
	case t: {                                                                                  \
		enum { T = t };                                                                    \
		call;                                                                              \
		break;                                                                             \
	}
#define TILE_CASES_3(call)                                                                         \
	TILE_CASE(1, call)                                                                         \
	TILE_CASE(2, call)                                                                         \
	TILE_CASE(3, call)
#define TILE_CASES_5(call)                                                                         \
	TILE_CASES_3(call)                                                                         \
	TILE_CASE(4, call)                                                                         \
	TILE_CASE(5, call)
#define TILE_CASES_6(call)                                                                         \
	TILE_CASES_5(call)                                                                         \
	TILE_CASE(6, call)
#define WITH_TILE_3(n, call)                                                                       \
	switch (n) {                                                                               \
		TILE_CASES_3(call)                                                                 \
	}
#define WITH_TILE_5(n, call)                                                                       \
	switch (n) {                                                                               \
		TILE_CASES_5(call)                                                                 \
	}
#define WITH_TILE_6(n, call)                                                                       \
	switch (n) {                                                                               \
		TILE_CASES_6(call)                                                                 \
	}
#define WITH_TILE_12(n, call)                                                                      \
	switch (n) {                                                                               \
		TILE_CASES_6(call)                                                                 \
		TILE_CASE(7, call)                                                                 \
		TILE_CASE(8, call)                                                                 \
		TILE_CASE(9, call)                                                                 \
		TILE_CASE(10, call)                                                                \
		TILE_CASE(11, call)                                                                \
		TILE_CASE(12, call)                                                                \
	}
