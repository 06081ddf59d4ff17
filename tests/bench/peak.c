/* Loops over registers alone: enough accumulators that no pipe waits for its own result. */
#include "tests/bench/peak.h"

#include <errno.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "tests/bench/bench.h"

#define PASS_S 0.02
#define TRIES 3
#define TIMES 4 /* in a round */

typedef void (*turn_fn)(uint64_t turns);

struct loop {
	enum peak peak;
	enum isa isa;
	turn_fn run;
	double ops; /* of a turn */
};

struct peaks {
	struct dev *dev;
	const struct loop *best[PEAK_N]; /* NULL: none for this instruction set */
	uint64_t turns[PEAK_N];		 /* that take PASS_S */
	double rates[PEAK_N];		 /* of the best, when it was chosen */
	enum peak under_way;
};

#if defined(__x86_64__)
#define AVX2 __attribute__((target("avx2,fma")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#define AVX512BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))

/*
 * Turns of one instruction, or of two, for each accumulator of a list of
 * registers. In assembly, for compilers spill them, or find out that they are
 * all alike.
 */
#define LOOP(name, attribute, operand, set, accumulators, body, ...)                               \
	attribute static void name(uint64_t turns)                                                 \
	{                                                                                          \
		const operand a = set(1), b = set(2);                                              \
                                                                                                   \
		__asm__ volatile(".irp r," accumulators "\n\t"                                     \
				 "vpxor %%xmm\\r, %%xmm\\r, %%xmm\\r\n\t"                          \
				 ".endr\n"                                                         \
				 "1:\n\t"                                                          \
				 ".irp r," accumulators "\n\t" body "\n\t"                         \
				 ".endr\n\t"                                                       \
				 "dec %[turns]\n\t"                                                \
				 "jnz 1b"                                                          \
				 : [turns] "+r"(turns)                                             \
				 : [a] "v"(a), [b] "v"(b)                                          \
				 : "cc", __VA_ARGS__);                                             \
	}

#define LOW8 "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7"
#define LOW13 LOW8, "xmm8", "xmm9", "xmm10", "xmm11", "xmm12"
#define LOW16 LOW13, "xmm13", "xmm14", "xmm15"
#define SET_F256(i) _mm256_set1_ps(1e-3f * (float)(i))
#define SET_F512(i) _mm512_set1_ps(1e-3f * (float)(i))
#define SET_BF16(i) _mm512_set1_epi16((short)(0x3c00 + (i)))
#define ACC12 "0,1,2,3,4,5,6,7,8,9,10,11"
#define ACC16 ACC12 ",12,13,14,15"
#define ACC8 "0,1,2,3,4,5,6,7"

LOOP(fma_avx2, AVX2, __m256, SET_F256, ACC12, "vfmadd231ps %[a], %[b], %%ymm\\r", LOW13)
LOOP(int16_avx2, AVX2, __m256i, _mm256_set1_epi16, ACC8,
     "vpmaddwd %[a], %[b], %%ymm12\n\tvpaddd %%ymm12, %%ymm\\r, %%ymm\\r", LOW13)
LOOP(int8_avx2, AVX2, __m256i, _mm256_set1_epi8, ACC8,
     "vpmaddubsw %[a], %[b], %%ymm12\n\tvpaddw %%ymm12, %%ymm\\r, %%ymm\\r", LOW13)
LOOP(fma_avx512, AVX512, __m512, SET_F512, ACC16, "vfmadd231ps %[a], %[b], %%zmm\\r", LOW16)
LOOP(int16_avx512, AVX512, __m512i, _mm512_set1_epi16, ACC16, "vpdpwssd %[a], %[b], %%zmm\\r",
     LOW16)
LOOP(int8_avx512, AVX512, __m512i, _mm512_set1_epi8, ACC16, "vpdpbusd %[a], %[b], %%zmm\\r", LOW16)
LOOP(bf16_avx512, AVX512BF16, __m512i, SET_BF16, ACC16, "vdpbf16ps %[a], %[b], %%zmm\\r", LOW16)

/* Whole tiles: 16 rows of 64 bytes; six sums, and two operands that are zero. */
#define TILE_SUMS 6
#define TILE_LOOP(name, product)                                                                   \
	__attribute__((target("amx-tile,amx-int8,amx-bf16"))) static void name(uint64_t turns)     \
	{                                                                                          \
		static const struct {                                                              \
			uint8_t palette, zero[15];                                                 \
			uint16_t row_bytes[16];                                                    \
			uint8_t rows[16];                                                          \
		} config = { 1,                                                                    \
			     { 0 },                                                                \
			     { 64, 64, 64, 64, 64, 64, 64, 64 },                                   \
			     { 16, 16, 16, 16, 16, 16, 16, 16 } };                                 \
                                                                                                   \
		__asm__ volatile("ldtilecfg %[config]\n\t"                                         \
				 ".irp r,0,1,2,3,4,5,6,7\n\t"                                      \
				 "tilezero %%tmm\\r\n\t"                                           \
				 ".endr\n"                                                         \
				 "1:\n\t"                                                          \
				 ".irp r,0,1,2,3,4,5\n\t" product " %%tmm6, %%tmm7, %%tmm\\r\n\t"  \
				 ".endr\n\t"                                                       \
				 "dec %[turns]\n\t"                                                \
				 "jnz 1b\n\t"                                                      \
				 "tilerelease"                                                     \
				 : [turns] "+r"(turns)                                             \
				 : [config] "m"(config)                                            \
				 : "cc");                                                          \
	}
TILE_LOOP(bf16_amx, "tdpbf16ps")
TILE_LOOP(int8_amx, "tdpbsud")
#endif

/* An instruction takes lanes x products of a lane x 2 operations. */
static const struct loop loops[] = {
#if defined(__x86_64__)
	{ PEAK_FMA, ISA_AVX2, fma_avx2, 12 * 8 * 2 },
	{ PEAK_FMA, ISA_AVX512, fma_avx512, 16 * 16 * 2 },
	{ PEAK_BF16, ISA_AVX512BF16, bf16_avx512, 16 * 16 * 2 * 2 },
	{ PEAK_INT16, ISA_AVX2, int16_avx2, 8 * 8 * 2 * 2 },
	{ PEAK_INT16, ISA_AVX2, int8_avx2, 8 * 8 * 4 * 2 / 2 },
	{ PEAK_INT16, ISA_AVX512, int16_avx512, 16 * 16 * 2 * 2 },
	{ PEAK_INT16, ISA_AVX512, int8_avx512, 16 * 16 * 4 * 2 / 2 },
	{ PEAK_INT8, ISA_AVX2, int8_avx2, 8 * 8 * 4 * 2 },
	{ PEAK_INT8, ISA_AVX512, int8_avx512, 16 * 16 * 4 * 2 },
	{ PEAK_BF16, ISA_AMX, bf16_amx, TILE_SUMS * 16 * 16 * 32 * 2 },
	{ PEAK_INT16, ISA_AMX, int8_amx, TILE_SUMS * 16 * 16 * 64 * 2 / 2 },
	{ PEAK_INT8, ISA_AMX, int8_amx, TILE_SUMS * 16 * 16 * 64 * 2 },
#endif
};

const char *peaks_name(enum peak peak)
{
	static const char *const names[PEAK_N] = {
		[PEAK_FMA] = "fp32 FMA peak",
		[PEAK_BF16] = "bf16 dot peak",
		[PEAK_INT16] = "int16 peak",
		[PEAK_INT8] = "int8 peak",
	};

	return names[peak];
}

bool peaks_has(const struct peaks *p, enum peak peak)
{
	return peak < PEAK_N && p->best[peak];
}

/* The emulated set has all of AVX512 and nothing of BF16. */
static bool has(enum isa isa, enum isa wanted)
{
	if (isa == ISA_AVX512BF16_EMULATED)
		isa = ISA_AVX512;
	return wanted <= isa && isa_supported(wanted);
}

static void run(void *userdata, uint32_t thread, uint32_t n_threads)
{
	struct peaks *p = userdata;

	(void)thread, (void)n_threads;
	p->best[p->under_way]->run(p->turns[p->under_way]);
}

double peaks_pass(struct peaks *p, enum peak peak)
{
	double from;

	p->under_way = peak;
	from = bench_now_s();
	dev_run(p->dev, run, p);
	return p->best[peak]->ops * (double)p->turns[peak] * dev_threads(p->dev) /
	       (bench_now_s() - from);
}

/* Tries a loop with so many turns that it takes PASS_S, and keeps it if it is the fastest. */
static void try_loop(struct peaks *p, const struct loop *loop)
{
	const struct loop *const was = p->best[loop->peak];
	const uint64_t turns_was = p->turns[loop->peak];
	double best = 0;

	p->best[loop->peak] = loop;
	p->turns[loop->peak] = 100000;
	for (int i = 0; i < TRIES; i++) {
		best = MAX(best, peaks_pass(p, loop->peak));
		p->turns[loop->peak] = (uint64_t)(best / loop->ops / dev_threads(p->dev) * PASS_S) +
				       1;
	}
	if (best > p->rates[loop->peak]) {
		p->rates[loop->peak] = best;
		return;
	}
	p->best[loop->peak] = was;
	p->turns[loop->peak] = turns_was;
}

int peaks_new(struct dev *dev, struct peaks **ret, struct err *err)
{
	_cleanup_(peaks_freep) struct peaks *p = calloc(1, sizeof(*p));

	if (!p)
		return err_wrap(err, -ENOMEM, "cannot measure the processor");
	p->dev = dev;
	for (size_t i = 0; i < ARRAY_SIZE(loops); i++)
		if (has(dev_isa(dev), loops[i].isa))
			try_loop(p, &loops[i]);
	*ret = steal(p);
	return 0;
}

struct peaks *peaks_free(struct peaks *p)
{
	free(p);
	return NULL;
}

enum peak peaks_of(const struct peaks *p, enum weight_kind kind)
{
	const enum peak floats = peaks_has(p, PEAK_BF16) ? PEAK_BF16 : PEAK_FMA;

	if (!peaks_has(p, PEAK_FMA))
		return PEAK_N;
	if (kind == WEIGHT_F32)
		return PEAK_FMA;
	if (kind == WEIGHT_BF16)
		return floats;
	/* codes may be taken for integers or for numbers: whichever this processor is better at */
	return p->rates[PEAK_INT16] > p->rates[floats] ? PEAK_INT16 : floats;
}

struct pass {
	struct peaks *peaks;
	enum peak peak;
};

static int pass_once(void *userdata, double *ret_value, double *ret_limit)
{
	const struct pass *pass = userdata;

	(void)ret_limit;
	*ret_value = peaks_pass(pass->peaks, pass->peak) / 1e9;
	return 0;
}

static int measure(struct bench *b, const struct bench_figure *figure, struct err *err)
{
	struct bench_row row = { .name = figure->name, .unit = "GFLOP/s" };
	struct pass pass = { .peak = figure->n };
	int r;

	r = bench_peaks(b, &pass.peaks, err);
	if (r < 0)
		return r;
	if (!peaks_has(pass.peaks, pass.peak))
		return bench_skip(figure->name, "%s has no such instructions", isa_name(b->isa));
	r = bench_rounds(b, TIMES, pass_once, &pass, &row);
	bench_print(b, &row);
	return r;
}

const struct bench_figure figures_peaks[] = {
	{ "peak-fma", "products and sums of fp32, from registers", measure, PEAK_FMA, false },
	{ "peak-bf16", "dot products of bf16", measure, PEAK_BF16, false },
	{ "peak-int16", "of 16-bit integers, or of bytes by their halves", measure, PEAK_INT16,
	  false },
	{ "peak-int8", "of bytes (VNNI, or maddubs)", measure, PEAK_INT8, false },
	{ 0 },
};
