/* Passes over parts of the weights: half of them trust the processor's prefetching, half do not. */
#include "daemon/exec/readrate.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

#include "client/wire/ownership.h"

#define PASSES 4
#define PASS_BYTES ((size_t)128 << 20)
#define PIECE_BYTES ((size_t)256 << 10) /* that a thread takes at once */
#define AHEAD_BYTES 2048

struct pass {
	const char *from;
	size_t bytes;
	bool prefetches;
	_Atomic size_t next;  /* first byte that nobody has taken */
	_Atomic uint64_t sum; /* of what was read: so that it is */
};

static uint64_t read_words(const char *from, size_t bytes, bool prefetches)
{
	const uint64_t *at = (const uint64_t *)from;
	uint64_t sum[8] = { 0 };

	for (size_t i = 0; i < bytes / sizeof(*at); i += ARRAY_SIZE(sum)) {
		if (prefetches)
			__builtin_prefetch((const char *)(at + i) + AHEAD_BYTES);
		for (size_t k = 0; k < ARRAY_SIZE(sum); k++)
			sum[k] ^= at[i + k];
	}
	return sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
}

static void read_pieces(void *userdata, uint32_t thread, uint32_t n_threads)
{
	struct pass *p = userdata;
	uint64_t sum = 0;
	size_t at;

	(void)thread, (void)n_threads;
	while ((at = atomic_fetch_add(&p->next, PIECE_BYTES)) < p->bytes)
		sum ^= read_words(p->from + at, MIN(PIECE_BYTES, p->bytes - at), p->prefetches);
	atomic_fetch_xor(&p->sum, sum);
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

uint64_t readrate_measure(struct dev *dev, const void *memory, size_t bytes)
{
	const size_t part = MIN(bytes / PASSES, PASS_BYTES) / 64 * 64;
	uint64_t best = 0;

	/* a model that is smaller than the caches is read from them, as decoding does */
	for (uint32_t i = 0; i < PASSES && part > 0; i++) {
		struct pass p = {
			.from = (const char *)memory + i * (bytes / PASSES / 64 * 64),
			.bytes = part,
			.prefetches = i % 2,
		};
		const uint64_t begun_ns = now_ns();

		dev_run(dev, read_pieces, &p);
		best = MAX(best,
			   (uint64_t)((double)part * 1e9 / (double)MAX(now_ns() - begun_ns, 1u)));
	}
	return best;
}
