/* The kernels of linear-avx512bf16.c over dpbf16.h, for processors without the instruction. */
#include "kernels/cpu/dpbf16.h"

#define LINEAR_TABLE linear_avx512bf16_emulated
#define DOT_PAIRS(sum, w, x) dot_pairs((sum), (w), (x))

#include <immintrin.h>

static inline __m512 dot_pairs(__m512 sum, __m512i w, __m512i x)
{
	uint32_t a[16], b[16];
	float c[16];

	_mm512_storeu_si512(a, w);
	_mm512_storeu_si512(b, x);
	_mm512_storeu_ps(c, sum);
	for (int i = 0; i < 16; i++)
		c[i] = dpbf16(c[i], a[i], b[i]);
	return _mm512_loadu_ps(c);
}

#include "kernels/cpu/linear-bf16-body.h"
