/*
 * Read loops of 64 bytes a load. What is the fastest way differs between
 * processors, so that a few are tried: one stream or four, the processor's own
 * prefetching or ours.
 */
#include "tests/bench/bandwidth.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "tests/bench/bench.h"

#define BYTES_MIN ((size_t)512 << 20)
#define CACHES_TIMES 4
#define PASSES 3
#define STREAMS 4
#define PIECE_BYTES ((size_t)1 << 20)
#define AHEAD 2048

/* Reads @bytes, a multiple of PIECE_BYTES, and returns something made of all of them. */
typedef uint64_t (*read_fn)(const char *from, size_t bytes);

/* What a thread filled, and so has near itself, and reads first; who is done early helps the others. */
struct slice {
	_Alignas(64) _Atomic size_t next; /* piece, counted in the slice */
	uint64_t sum;			  /* of what the thread read: it must be used */
};

struct bandwidth {
	struct dev *dev;
	char *memory;
	size_t bytes, slice_pieces;
	read_fn read;	      /* the fastest */
	struct slice *slices; /* [threads] */
};

static uint64_t read_plain(const char *from, size_t bytes)
{
	const uint64_t *p = (const uint64_t *)from;
	uint64_t sum[8] = { 0 };

	for (size_t i = 0; i < bytes / sizeof(*p); i += 8)
		for (int k = 0; k < 8; k++)
			sum[k] ^= p[i + k];
	return sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static uint64_t read_avx2(const char *from, size_t bytes)
{
	__m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;

	for (size_t i = 0; i < bytes; i += 128) {
		a = _mm256_xor_si256(a, _mm256_load_si256((const __m256i *)(from + i)));
		b = _mm256_xor_si256(b, _mm256_load_si256((const __m256i *)(from + i + 32)));
		c = _mm256_xor_si256(c, _mm256_load_si256((const __m256i *)(from + i + 64)));
		d = _mm256_xor_si256(d, _mm256_load_si256((const __m256i *)(from + i + 96)));
	}
	a = _mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d));
	return (uint64_t)(_mm256_extract_epi64(a, 0) ^ _mm256_extract_epi64(a, 1) ^
			  _mm256_extract_epi64(a, 2) ^ _mm256_extract_epi64(a, 3));
}

__attribute__((target("avx2"))) static uint64_t read_avx2_ahead(const char *from, size_t bytes)
{
	__m256i a = _mm256_setzero_si256(), b = a;

	for (size_t i = 0; i < bytes; i += 64) {
		_mm_prefetch(from + i + AHEAD, _MM_HINT_T0);
		a = _mm256_xor_si256(a, _mm256_load_si256((const __m256i *)(from + i)));
		b = _mm256_xor_si256(b, _mm256_load_si256((const __m256i *)(from + i + 32)));
	}
	a = _mm256_xor_si256(a, b);
	return (uint64_t)(_mm256_extract_epi64(a, 0) ^ _mm256_extract_epi64(a, 1) ^
			  _mm256_extract_epi64(a, 2) ^ _mm256_extract_epi64(a, 3));
}

__attribute__((target("avx512f"))) static uint64_t read_avx512(const char *from, size_t bytes)
{
	__m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;

	for (size_t i = 0; i < bytes; i += 256) {
		a = _mm512_xor_si512(a, _mm512_load_si512(from + i));
		b = _mm512_xor_si512(b, _mm512_load_si512(from + i + 64));
		c = _mm512_xor_si512(c, _mm512_load_si512(from + i + 128));
		d = _mm512_xor_si512(d, _mm512_load_si512(from + i + 192));
	}
	a = _mm512_xor_si512(_mm512_xor_si512(a, b), _mm512_xor_si512(c, d));
	return (uint64_t)_mm512_reduce_or_epi64(a);
}

__attribute__((target("avx512f"))) static uint64_t read_avx512_ahead(const char *from, size_t bytes)
{
	__m512i a = _mm512_setzero_si512(), b = a;

	for (size_t i = 0; i < bytes; i += 128) {
		_mm_prefetch(from + i + AHEAD, _MM_HINT_T0);
		_mm_prefetch(from + i + AHEAD + 64, _MM_HINT_T0);
		a = _mm512_xor_si512(a, _mm512_load_si512(from + i));
		b = _mm512_xor_si512(b, _mm512_load_si512(from + i + 64));
	}
	return (uint64_t)_mm512_reduce_or_epi64(_mm512_xor_si512(a, b));
}

__attribute__((target("avx512f"))) static uint64_t read_avx512_streams(const char *from,
								       size_t bytes)
{
	const size_t stride = bytes / STREAMS;
	__m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;

	for (size_t i = 0; i < stride; i += 64) {
		a = _mm512_xor_si512(a, _mm512_load_si512(from + i));
		b = _mm512_xor_si512(b, _mm512_load_si512(from + stride + i));
		c = _mm512_xor_si512(c, _mm512_load_si512(from + 2 * stride + i));
		d = _mm512_xor_si512(d, _mm512_load_si512(from + 3 * stride + i));
	}
	a = _mm512_xor_si512(_mm512_xor_si512(a, b), _mm512_xor_si512(c, d));
	return (uint64_t)_mm512_reduce_or_epi64(a);
}
#endif

static const struct {
	enum isa isa;
	read_fn read;
} loops[] = {
	{ ISA_PORTABLE, read_plain },
#if defined(__x86_64__)
	{ ISA_AVX2, read_avx2 },
	{ ISA_AVX2, read_avx2_ahead },
	{ ISA_AVX512, read_avx512 },
	{ ISA_AVX512, read_avx512_ahead },
	{ ISA_AVX512, read_avx512_streams },
#endif
};

/* The content of a one-line file of sysfs as a number with its unit, 0 if there is none. */
static size_t read_size(const char *path, char *ret_unit)
{
	_cleanup_(fclosep) FILE *f = fopen(path, "re");
	size_t size = 0;

	*ret_unit = 0;
	if (!f || fscanf(f, "%zu%c", &size, ret_unit) < 1)
		return 0;
	return size;
}

/* Bytes of all last level caches: each is counted at the first processor that it serves. */
static size_t cache_bytes(void)
{
	const long n_cpus = sysconf(_SC_NPROCESSORS_CONF);
	size_t sum = 0;

	for (long cpu = 0; cpu < n_cpus; cpu++) {
		char path[96], unit;
		size_t size;

		snprintf(path, sizeof(path),
			 "/sys/devices/system/cpu/cpu%ld/cache/index3/shared_cpu_list", cpu);
		if (read_size(path, &unit) != (size_t)cpu)
			continue;
		snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%ld/cache/index3/size",
			 cpu);
		size = read_size(path, &unit);
		sum += size << (unit == 'M' ? 20 : unit == 'K' ? 10 : 0);
	}
	return sum;
}

static char *piece_at(const struct bandwidth *b, uint32_t slice, size_t piece)
{
	return b->memory + (slice * b->slice_pieces + piece) * PIECE_BYTES;
}

static void fill(void *userdata, uint32_t thread, uint32_t n_threads)
{
	struct bandwidth *b = userdata;

	(void)n_threads;

	memset(piece_at(b, thread, 0), 0x5a, b->slice_pieces * PIECE_BYTES);
}

static void pass(void *userdata, uint32_t thread, uint32_t n_threads)
{
	struct bandwidth *b = userdata;
	uint64_t sum = 0;

	for (uint32_t i = 0; i < n_threads; i++) {
		const uint32_t at = (thread + i) % n_threads;
		size_t piece;

		while ((piece = atomic_fetch_add(&b->slices[at].next, 1)) < b->slice_pieces)
			sum ^= b->read(piece_at(b, at, piece), PIECE_BYTES);
	}
	b->slices[thread].sum = sum;
}

double bandwidth_pass(struct bandwidth *b)
{
	const uint32_t threads = dev_threads(b->dev);
	double from;

	for (uint32_t i = 0; i < threads; i++)
		atomic_store(&b->slices[i].next, 0);
	from = bench_now_s();
	dev_run(b->dev, pass, b);
	return (double)b->slice_pieces * PIECE_BYTES * threads / (bench_now_s() - from);
}

/* The best of a few passes each, in turns, so that a slow moment of the machine hits them all. */
static void choose_loop(struct bandwidth *b)
{
	read_fn fastest = loops[0].read;
	double best = 0;

	for (size_t i = 0; i < PASSES * ARRAY_SIZE(loops); i++) {
		double rate;

		if (!isa_supported(loops[i % ARRAY_SIZE(loops)].isa))
			continue;
		b->read = loops[i % ARRAY_SIZE(loops)].read;
		rate = bandwidth_pass(b);
		if (rate > best) {
			best = rate;
			fastest = b->read;
		}
	}
	b->read = fastest;
}

int bandwidth_new(struct dev *dev, struct bandwidth **ret, struct err *err)
{
	_cleanup_(bandwidth_freep) struct bandwidth *b = calloc(1, sizeof(*b));
	const size_t bytes = MAX(BYTES_MIN, CACHES_TIMES * cache_bytes());

	if (!b)
		return -ENOMEM;
	b->dev = dev;
	b->slice_pieces = bytes / PIECE_BYTES / dev_threads(dev);
	b->slices = aligned_alloc(64, dev_threads(dev) * sizeof(*b->slices));
	b->memory = dev_reserve(dev, bytes);
	if (!b->slices || !b->memory || dev_back(dev, b->memory, bytes) < 0)
		return err_set(err, -ENOMEM, "cannot have %zu bytes to read", bytes);
	b->bytes = bytes;
	dev_run(dev, fill, b);
	choose_loop(b);
	*ret = steal(b);
	return 0;
}

struct bandwidth *bandwidth_free(struct bandwidth *b)
{
	if (!b)
		return NULL;
	if (b->bytes)
		dev_unback(b->dev, b->memory, b->bytes);
	free(b->slices);
	free(b);
	return NULL;
}
