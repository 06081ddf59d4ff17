/* Random numbers that are the same in every run. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* splitmix64: any seed will do. */
static inline uint64_t random_next(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static inline uint32_t random_below(uint64_t *state, uint32_t n)
{
	return (uint32_t)((random_next(state) >> 32) * n >> 32);
}

/* Bytes of any value; @bytes is a multiple of 8. */
static inline void random_fill(uint64_t seed, void *to, size_t bytes)
{
	for (size_t i = 0; i < bytes; i += 8) {
		const uint64_t z = random_next(&seed);

		memcpy((char *)to + i, &z, 8);
	}
}

/*
 * BF16 numbers of either sign, or of none, from 1/128 up to 1/8, so that sums
 * of their products stay small and none is a denormal; @bytes as above.
 */
static inline void random_fill_bf16(uint64_t seed, void *to, size_t bytes, int any_sign)
{
	const uint64_t keep = any_sign ? 0x81ff81ff81ff81ff : 0x01ff01ff01ff01ff;

	for (size_t i = 0; i < bytes; i += 8) {
		const uint64_t z = (random_next(&seed) & keep) | 0x3c003c003c003c00;

		memcpy((char *)to + i, &z, 8);
	}
}

/* F32 numbers between -1 and 1. */
static inline void random_fill_f32(uint64_t seed, float *to, size_t n)
{
	for (size_t i = 0; i < n; i++)
		to[i] = (float)(int32_t)(random_next(&seed) >> 32) * 0x1p-31f;
}

/* @n different numbers below @of, the first of them in @all[0 … n); @all holds each number once. */
static inline void random_choose(uint64_t *state, uint32_t *all, uint32_t n, uint32_t of)
{
	for (uint32_t i = 0; i < n; i++) {
		const uint32_t k = i + random_below(state, of - i), was = all[i];

		all[i] = all[k];
		all[k] = was;
	}
}
