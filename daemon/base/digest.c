/* The plain variant, and the choice. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <stdatomic.h>

#include "daemon/base/digest.h"

static struct digest plain(const void *data, size_t bytes, uint64_t seed)
{
	const XXH128_hash_t hash = XXH3_128bits_withSeed(data, bytes, seed);

	return (struct digest){ hash.low64, hash.high64 };
}

digest_fn digest_plain(void)
{
	return plain;
}

struct digest digest_of(const void *data, size_t bytes, uint64_t seed)
{
	static _Atomic digest_fn chosen;
	digest_fn fn = atomic_load_explicit(&chosen, memory_order_relaxed);

	if (!fn) {
		fn = digest_avx2() ? digest_avx2() : plain;
		atomic_store_explicit(&chosen, fn, memory_order_relaxed);
	}
	return fn(data, bytes, seed);
}
