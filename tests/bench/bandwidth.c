/*
 * Loops that read 64 bytes a line and loops that copy. What is the fastest way
 * differs between processors, so that a few are tried: one stream or more at
 * once, the processor's own prefetching or ours, stores past the cache or not.
 */
#include "tests/bench/bandwidth.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "tests/bench/bench.h"
#include "tests/bench/random.h"

#define BYTES_MIN ((size_t)512 << 20)
#define CACHES_TIMES 4
#define PASSES 3
#define TIMES 4 /* in a round */
#define PIECE_BYTES ((size_t)1 << 20)
#define AHEAD 2048

/*
 * Reads @bytes, a multiple of PIECE_BYTES, and returns something made of all
 * of them; or copies them to @to.
 */
typedef uint64_t (*pass_fn)(char *to, const char *from, size_t bytes);

struct loop {
	enum isa isa;
	pass_fn pass;
};

/* What a thread filled, and so has near itself, and reads first; who is done early helps the others. */
struct slice {
	_Alignas(64) _Atomic size_t next; /* piece, counted in the slice */
	uint64_t sum;			  /* of what the thread read: it must be used */
};

struct bandwidth {
	struct dev *dev;
	char *memory;
	size_t bytes, slice_pieces;
	size_t pass_pieces;   /* of a slice, in the pass under way */
	pass_fn pass;	      /* likewise */
	pass_fn read, copy;   /* the fastest */
	struct slice *slices; /* [threads] */
};

static uint64_t read_plain(char *to, const char *from, size_t bytes)
{
	const uint64_t *p = (const uint64_t *)from;
	uint64_t sum[8] = { 0 };

	(void)to;
	for (size_t i = 0; i < bytes / sizeof(*p); i += 8)
		for (int k = 0; k < 8; k++)
			sum[k] ^= p[i + k];
	return sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
}

static uint64_t copy_plain(char *to, const char *from, size_t bytes)
{
	memcpy(to, from, bytes);
	return 0;
}

#if defined(__x86_64__)
#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f")))
#define INLINE __attribute__((always_inline)) static inline

/* @n streams, 4 at most, each with its own part of the bytes; @ahead 0: without prefetching. */
INLINE AVX2 uint64_t read_avx2(const char *from, size_t bytes, size_t n, size_t ahead)
{
	const size_t stride = bytes / n;
	__m256i sum[8];

	for (size_t k = 0; k < 8; k++)
		sum[k] = _mm256_setzero_si256();
	for (size_t i = 0; i < stride; i += 64) {
		for (size_t k = 0; k < n; k++) {
			const char *p = from + k * stride + i;

			if (ahead)
				_mm_prefetch(p + ahead, _MM_HINT_T0);
			sum[2 * k] = _mm256_xor_si256(sum[2 * k],
						      _mm256_load_si256((const __m256i *)p));
			sum[2 * k + 1] = _mm256_xor_si256(
				sum[2 * k + 1], _mm256_load_si256((const __m256i *)(p + 32)));
		}
	}
	for (size_t k = 1; k < 8; k++)
		sum[0] = _mm256_xor_si256(sum[0], sum[k]);
	return (uint64_t)(_mm256_extract_epi64(sum[0], 0) ^ _mm256_extract_epi64(sum[0], 1) ^
			  _mm256_extract_epi64(sum[0], 2) ^ _mm256_extract_epi64(sum[0], 3));
}

INLINE AVX512 uint64_t read_avx512(const char *from, size_t bytes, size_t n, size_t ahead)
{
	const size_t stride = bytes / n;
	__m512i sum[4];

	for (size_t k = 0; k < 4; k++)
		sum[k] = _mm512_setzero_si512();
	for (size_t i = 0; i < stride; i += 64) {
		for (size_t k = 0; k < n; k++) {
			const char *p = from + k * stride + i;

			if (ahead)
				_mm_prefetch(p + ahead, _MM_HINT_T0);
			sum[k] = _mm512_xor_si512(sum[k], _mm512_load_si512(p));
		}
	}
	sum[0] = _mm512_xor_si512(_mm512_xor_si512(sum[0], sum[1]),
				  _mm512_xor_si512(sum[2], sum[3]));
	return (uint64_t)_mm512_reduce_or_epi64(sum[0]);
}

#define READ_LOOP(isa, attribute, n, ahead)                                                        \
	attribute static uint64_t read_##isa##_##n##_##ahead(char *to, const char *from,           \
							     size_t bytes)                         \
	{                                                                                          \
		(void)to;                                                                          \
		return read_##isa(from, bytes, n, ahead);                                          \
	}

READ_LOOP(avx2, AVX2, 1, 0)
READ_LOOP(avx2, AVX2, 1, AHEAD)
READ_LOOP(avx2, AVX2, 2, 0)
READ_LOOP(avx2, AVX2, 2, AHEAD)
READ_LOOP(avx2, AVX2, 4, 0)
READ_LOOP(avx2, AVX2, 4, AHEAD)
READ_LOOP(avx512, AVX512, 1, 0)
READ_LOOP(avx512, AVX512, 1, AHEAD)
READ_LOOP(avx512, AVX512, 2, AHEAD)
READ_LOOP(avx512, AVX512, 4, 0)
READ_LOOP(avx512, AVX512, 4, AHEAD)

/* Past the cache, so that what is written is not read first. */
AVX2 static uint64_t copy_avx2(char *to, const char *from, size_t bytes)
{
	for (size_t i = 0; i < bytes; i += 64) {
		const __m256i a = _mm256_load_si256((const __m256i *)(from + i));
		const __m256i b = _mm256_load_si256((const __m256i *)(from + i + 32));

		_mm256_stream_si256((__m256i *)(to + i), a);
		_mm256_stream_si256((__m256i *)(to + i + 32), b);
	}
	_mm_sfence();
	return 0;
}

AVX512 static uint64_t copy_avx512(char *to, const char *from, size_t bytes)
{
	for (size_t i = 0; i < bytes; i += 64)
		_mm512_stream_si512((__m512i *)(to + i), _mm512_load_si512(from + i));
	_mm_sfence();
	return 0;
}
#endif

static const struct loop reads[] = {
	{ ISA_PORTABLE, read_plain },
#if defined(__x86_64__)
	{ ISA_AVX2, read_avx2_1_0 },	     { ISA_AVX2, read_avx2_1_AHEAD },
	{ ISA_AVX2, read_avx2_2_0 },	     { ISA_AVX2, read_avx2_2_AHEAD },
	{ ISA_AVX2, read_avx2_4_0 },	     { ISA_AVX2, read_avx2_4_AHEAD },
	{ ISA_AVX512, read_avx512_1_0 },     { ISA_AVX512, read_avx512_1_AHEAD },
	{ ISA_AVX512, read_avx512_2_AHEAD }, { ISA_AVX512, read_avx512_4_0 },
	{ ISA_AVX512, read_avx512_4_AHEAD },
#endif
};

static const struct loop copies[] = {
	{ ISA_PORTABLE, copy_plain },
#if defined(__x86_64__)
	{ ISA_AVX2, copy_avx2 },
	{ ISA_AVX512, copy_avx512 },
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

size_t bandwidth_least_bytes(void)
{
	return MAX(BYTES_MIN, CACHES_TIMES * cache_bytes());
}

static char *piece_at(const struct bandwidth *b, uint32_t slice, size_t piece)
{
	return b->memory + (slice * b->slice_pieces + piece) * PIECE_BYTES;
}

static void fill(void *userdata, uint32_t thread, uint32_t n_threads)
{
	struct bandwidth *b = userdata;

	(void)n_threads;
	random_fill(thread, piece_at(b, thread, 0), b->slice_pieces * PIECE_BYTES);
}

static void pass(void *userdata, uint32_t thread, uint32_t n_threads)
{
	struct bandwidth *b = userdata;
	const size_t away = b->slice_pieces - b->pass_pieces;
	uint64_t sum = 0;

	for (uint32_t i = 0; i < n_threads; i++) {
		const uint32_t at = (thread + i) % n_threads;
		size_t piece;

		while ((piece = atomic_fetch_add(&b->slices[at].next, 1)) < b->pass_pieces)
			sum ^= b->pass(piece_at(b, at, piece + away), piece_at(b, at, piece),
				       PIECE_BYTES);
	}
	b->slices[thread].sum = sum;
}

/* Bytes per second of @loop over the first @pieces of every slice. */
static double run(struct bandwidth *b, pass_fn loop, size_t pieces)
{
	const uint32_t threads = dev_threads(b->dev);
	double from;

	b->pass = loop;
	b->pass_pieces = pieces;
	for (uint32_t i = 0; i < threads; i++)
		atomic_store(&b->slices[i].next, 0);
	from = bench_now_s();
	dev_run(b->dev, pass, b);
	return (double)pieces * PIECE_BYTES * threads / (bench_now_s() - from);
}

double bandwidth_pass(struct bandwidth *b)
{
	return run(b, b->read, b->slice_pieces);
}

double bandwidth_copy(struct bandwidth *b)
{
	return run(b, b->copy, b->slice_pieces / 2);
}

/* By the best of a few passes each, in turns, so that a slow moment of the machine hits them all. */
static pass_fn fastest(struct bandwidth *b, const struct loop *loops, size_t n, size_t pieces)
{
	pass_fn fastest = loops[0].pass;
	double best = 0;

	for (size_t i = 0; i < PASSES * n; i++) {
		double rate;

		if (!isa_supported(loops[i % n].isa))
			continue;
		rate = run(b, loops[i % n].pass, pieces);
		if (rate > best) {
			best = rate;
			fastest = loops[i % n].pass;
		}
	}
	return fastest;
}

int bandwidth_new(struct dev *dev, struct bandwidth **ret, struct err *err)
{
	_cleanup_(bandwidth_freep) struct bandwidth *b = calloc(1, sizeof(*b));
	const size_t bytes = bandwidth_least_bytes();

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
	b->read = fastest(b, reads, ARRAY_SIZE(reads), b->slice_pieces);
	b->copy = fastest(b, copies, ARRAY_SIZE(copies), b->slice_pieces / 2);
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

static int read_once(void *memory, double *ret_value, double *ret_limit)
{
	(void)ret_limit;
	*ret_value = bandwidth_pass(memory) / 1e9;
	return 0;
}

static int copy_once(void *memory, double *ret_value, double *ret_limit)
{
	(void)ret_limit;
	*ret_value = bandwidth_copy(memory) / 1e9;
	return 0;
}

static int measure(struct bench *b, const struct bench_figure *figure, struct err *err)
{
	struct bench_row row = { .name = figure->name, .unit = "GB/s" };
	struct bandwidth *memory;
	int r;

	r = bench_memory(b, &memory, err);
	if (r < 0)
		return r;
	r = bench_rounds(b, TIMES, figure->n ? copy_once : read_once, memory, &row);
	bench_print(b, &row);
	return r;
}

const struct bench_figure figures_bandwidth[] = {
	{ "read-bandwidth", "memory that all threads read together", measure, 0, false },
	{ "copy", "memory that they copy", measure, 1, false },
	{ 0 },
};
