/* The same source for AVX2; nothing on other processors. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx2")
#define XXH_INLINE_ALL
#define XXH_VECTOR 2 /* XXH_AVX2 */
#include <xxhash.h>
#define HAS_AVX2 1
#endif

#include "daemon/base/digest.h"

#ifdef HAS_AVX2

static struct digest avx2(const void *data, size_t bytes, uint64_t seed)
{
	const XXH128_hash_t hash = XXH3_128bits_withSeed(data, bytes, seed);

	return (struct digest){ hash.low64, hash.high64 };
}

digest_fn digest_avx2(void)
{
	return __builtin_cpu_supports("avx2") ? avx2 : NULL;
}

#else

digest_fn digest_avx2(void)
{
	return NULL;
}

#endif
