/*
 * xxh3-128 of memory, at the speed of the widest instructions that the
 * processor has: 3 times that of a build for every x86. The same on all.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct digest {
	uint64_t low, high;
};

struct digest digest_of(const void *data, size_t bytes, uint64_t seed);

/* The variants, for their test: the plain one, and one for AVX2 or NULL. */
typedef struct digest (*digest_fn)(const void *data, size_t bytes, uint64_t seed);
digest_fn digest_plain(void);
digest_fn digest_avx2(void);
