/*
 * Read loops of 64 bytes a load, one slice of the memory for each thread. What
 * is the fastest way to read differs between processors, so that a few ways
 * are tried: one stream or four, the processor's own prefetching or ours.
 */
#include "tests/bench/bandwidth.h"

#include <errno.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "tests/bench/bench.h"

#define BYTES_MIN ((size_t)512 << 20)
#define CACHES_TIMES 4
#define PASSES 3
#define STREAMS 4
#define BLOCK ((size_t)STREAMS * 4096) /* slices are multiples of it */
#define AHEAD 2048

/* Reads @bytes, a multiple of BLOCK, and returns something made of all of them. */
typedef uint64_t (*read_fn)(const char *from, size_t bytes);

struct slice_result {
	_Alignas(64) uint64_t sum;
};

struct bandwidth {
	struct dev *dev;
	char *memory;
	size_t bytes;
	read_fn read;
	struct slice_result *results; /* [threads]: what was read must be used */
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
		snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%ld/cache/index3/size", cpu);
		size = read_size(path, &unit);
		sum += size << (unit == 'M' ? 20 : unit == 'K' ? 10 : 0);
	}
	return sum;
}

static void slice_of(const struct bandwidth *b, uint32_t thread, uint32_t n_threads, char **ret,
		     size_t *ret_bytes)
{
	*ret_bytes = b->bytes / n_threads / BLOCK * BLOCK;
	*ret = b->memory + thread * *ret_bytes;
}

static void fill(void *userdata, uint32_t thread, uint32_t n_threads)
{
	struct bandwidth *b = userdata;
	size_t bytes;
	char *slice;

	slice_of(b, thread, n_threads, &slice, &bytes);
	memset(slice, 0x5a, bytes);
}

static void pass(void *userdata, uint32_t thread, uint32_t n_threads)
{
	struct bandwidth *b = userdata;
	size_t bytes;
	char *slice;

	slice_of(b, thread, n_threads, &slice, &bytes);
	b->results[thread].sum = b->read(slice, bytes);
}

int bandwidth_new(struct dev *dev, struct bandwidth **ret, struct err *err)
{
	_cleanup_(bandwidth_freep) struct bandwidth *b = calloc(1, sizeof(*b));
	size_t bytes = MAX(BYTES_MIN, CACHES_TIMES * cache_bytes());

	if (!b)
		return -ENOMEM;
	b->dev = dev;
	b->results = aligned_alloc(64, dev_threads(dev) * sizeof(*b->results));
	b->memory = dev_reserve(dev, bytes);
	if (!b->results || !b->memory || dev_back(dev, b->memory, bytes) < 0)
		return err_set(err, -ENOMEM, "cannot have %zu bytes to read", bytes);
	b->bytes = bytes;
	dev_run(dev, fill, b);
	*ret = steal(b);
	return 0;
}

struct bandwidth *bandwidth_free(struct bandwidth *b)
{
	if (!b)
		return NULL;
	if (b->bytes)
		dev_unback(b->dev, b->memory, b->bytes);
	free(b->results);
	free(b);
	return NULL;
}

static double measure_loop(struct bandwidth *b, read_fn read)
{
	const uint32_t threads = dev_threads(b->dev);
	const double bytes = (double)(b->bytes / threads / BLOCK * BLOCK) * threads;
	struct bench_series rates = { .n = 0 };

	b->read = read;
	for (int i = 0; i < PASSES; i++) {
		const double from = bench_now_s();

		dev_run(b->dev, pass, b);
		bench_add(&rates, bytes / (bench_now_s() - from));
	}
	return bench_median(&rates);
}

double bandwidth_measure(struct bandwidth *b)
{
	double best = 0;

	for (size_t i = 0; i < ARRAY_SIZE(loops); i++)
		if (isa_supported(loops[i].isa))
			best = MAX(best, measure_loop(b, loops[i].read));
	return best;
}
