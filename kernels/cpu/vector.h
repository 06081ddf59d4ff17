/*
 * Vectors of LANES floats, and of half as many doubles, through the compiler's
 * vector types. Included once by a file for one instruction set, which has
 * defined LANES; all is static, so that nothing is shared between files.
 */
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__FMA__)
#include <immintrin.h>
#endif

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef uint16_t vh __attribute__((vector_size(LANES * 2)));
typedef float vf2 __attribute__((vector_size(LANES * 2)));
typedef double vd __attribute__((vector_size(LANES * 4)));

#define LANES_D (LANES / 2)
#define INLINE static inline __attribute__((always_inline))

/* A constant vector of f(0), f(1), …: the compiler finds the instruction for a constant shuffle alone. */
#if LANES == 4
#define V_EACH(f)                                                                                  \
	{                                                                                          \
		f(0), f(1), f(2), f(3)                                                             \
	}
#elif LANES == 8
#define V_EACH(f)                                                                                  \
	{                                                                                          \
		f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7)                                     \
	}
#else
#define V_EACH(f)                                                                                  \
	{                                                                                          \
		f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), f(9), f(10), f(11), f(12),   \
			f(13), f(14), f(15)                                                        \
	}
#endif

/* a * b + c, rounded once where the instruction set can. */
INLINE vf v_fma(vf a, vf b, vf c)
{
#if LANES == 8 && defined(__FMA__)
	return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif LANES == 16 && defined(__AVX512F__)
	return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
	return a * b + c;
#endif
}

/*
 * *sum += a * b, likewise rounded. In assembly, so that the sum stays in its register: the compiler
 * would rather have it take turns with the factors, and spill.
 */
INLINE void v_add_product(vf *sum, vf a, vf b)
{
#if LANES == 16 && defined(__AVX512F__)
	__asm__("vfmadd231ps %2, %1, %0" : "+v"(*sum) : "v"(a), "v"(b));
#elif LANES == 8 && defined(__FMA__)
	__asm__("vfmadd231ps %2, %1, %0" : "+x"(*sum) : "x"(a), "x"(b));
#else
	*sum = a * b + *sum;
#endif
}

/* What is behind a pointer hidden from the compiler is read again, and takes no register meanwhile. */
#define V_HIDE(p) __asm__ volatile("" : "+r"(p))

INLINE vf v_all(float x)
{
	return x - (vf){ 0 };
}

INLINE vf v_load(const float *p)
{
	vf v;

	memcpy(&v, p, sizeof(v));
	return v;
}

INLINE void v_store(float *p, vf v)
{
	memcpy(p, &v, sizeof(v));
}

INLINE vf v_load_bf16(const uint16_t *p)
{
	vh h;

	memcpy(&h, p, sizeof(h));
	return (vf)(__builtin_convertvector(h, vu) << 16);
}

INLINE vd v_load_d(const float *p)
{
	vf2 v;

	memcpy(&v, p, sizeof(v));
	return __builtin_convertvector(v, vd);
}

INLINE vf v_select(vi mask, vf a, vf b)
{
	return (vf)((mask & (vi)a) | (~mask & (vi)b));
}

INLINE vf v_max(vf a, vf b)
{
#if LANES == 8 && defined(__AVX__)
	return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#elif LANES == 16 && defined(__AVX512F__)
	return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#else
	return v_select(a > b, a, b);
#endif
}

/* Of all lanes, halves first: one fixed order. */
#define OTHERS_8(i) ((i) ^ 8)
#define OTHERS_4(i) ((i) ^ 4)
#define OTHERS_2(i) ((i) ^ 2)
#define OTHERS_1(i) ((i) ^ 1)
#define V_FOLD(v, op)                                                                              \
	do {                                                                                       \
		V_FOLD_8(v, op);                                                                   \
		V_FOLD_4(v, op);                                                                   \
		v = op(v, __builtin_shuffle(v, (vi)V_EACH(OTHERS_2)));                             \
		v = op(v, __builtin_shuffle(v, (vi)V_EACH(OTHERS_1)));                             \
	} while (0)
#if LANES > 8
#define V_FOLD_8(v, op) v = op(v, __builtin_shuffle(v, (vi)V_EACH(OTHERS_8)))
#else
#define V_FOLD_8(v, op)
#endif
#if LANES > 4
#define V_FOLD_4(v, op) v = op(v, __builtin_shuffle(v, (vi)V_EACH(OTHERS_4)))
#else
#define V_FOLD_4(v, op)
#endif

INLINE vf v_add(vf a, vf b)
{
	return a + b;
}

INLINE float v_sum(vf v)
{
	V_FOLD(v, v_add);
	return v[0];
}

INLINE double v_sum_d(vd v)
{
	double x[LANES_D];

	memcpy(x, &v, sizeof(x));
	for (uint32_t n = LANES_D / 2; n > 0; n /= 2)
		for (uint32_t i = 0; i < n; i++)
			x[i] += x[i + n];
	return x[0];
}

INLINE float v_most(vf v)
{
	V_FOLD(v, v_max);
	return v[0];
}

/*
 * e^x for x up to 0, to 2e-7 relative; 0 where the result would be denormal.
 * x = n ln 2 + r, with ln 2 in two parts and a polynomial of degree 7 for r.
 */
INLINE vf v_exp(vf x)
{
	const vf least = v_all(-87.3f), magic = v_all(12582912.0f);
	const vi tiny = x < least;
	const vf at = v_max(least, x);
	const vf n = v_fma(at, v_all(1.44269504f), magic) - magic;
	const vf r = v_fma(n, v_all(2.12194440e-4f), v_fma(n, v_all(-0.693359375f), at));
	vf p = v_all(1.0f / 5040);
	vi scale;

	p = v_fma(p, r, v_all(1.0f / 720));
	p = v_fma(p, r, v_all(1.0f / 120));
	p = v_fma(p, r, v_all(1.0f / 24));
	p = v_fma(p, r, v_all(1.0f / 6));
	p = v_fma(p, r, v_all(0.5f));
	p = v_fma(p, r, v_all(1.0f));
	p = v_fma(p, r, v_all(1.0f));
	scale = (__builtin_convertvector(n, vi) + 127) << 23;
	return (vf)(~tiny & (vi)(p * (vf)scale));
}
