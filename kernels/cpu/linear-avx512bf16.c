/* Matrix products with the processor's bf16 dot product. */
#define LINEAR_TABLE linear_avx512bf16
#define DOT_PAIRS(sum, w, x) _mm512_dpbf16_ps((sum), (__m512bh)(w), (__m512bh)(x))

#include "kernels/cpu/linear-bf16-body.h"
