/*
 * What vdpbf16ps does to one lane, in C: the product of the upper halves is
 * added to the sum, then that of the lower halves, each addition fused and
 * rounded to nearest even; denormal operands count as zero and denormal
 * results become zero, whatever the thread's own settings are.
 */
#pragma once

#include <stdint.h>
#include <string.h>

static inline float dpbf16_flush(float x)
{
	uint32_t bits;

	memcpy(&bits, &x, sizeof(bits));
	if (!(bits & 0x7f800000))
		bits &= 0x80000000;
	memcpy(&x, &bits, sizeof(x));
	return x;
}

static inline float dpbf16_half(uint32_t bits)
{
	float x;

	memcpy(&x, &bits, sizeof(x));
	return dpbf16_flush(x);
}

static inline float dpbf16(float sum, uint32_t a, uint32_t b)
{
	sum = dpbf16_flush(sum);
	sum = dpbf16_flush(__builtin_fmaf(dpbf16_half(a & 0xffff0000), dpbf16_half(b & 0xffff0000),
					  sum));
	return dpbf16_flush(__builtin_fmaf(dpbf16_half(a << 16), dpbf16_half(b << 16), sum));
}
