/* BF16 as the upper half of an F32: widening is exact, narrowing rounds to nearest, ties to even. */
#pragma once

#include <stdint.h>
#include <string.h>

static inline float bf16_widen(uint16_t half)
{
	const uint32_t bits = (uint32_t)half << 16;
	float value;

	memcpy(&value, &bits, sizeof(value));
	return value;
}

static inline uint16_t bf16_narrow(float value)
{
	uint32_t bits;

	memcpy(&bits, &value, sizeof(bits));
	if ((bits & 0x7fffffff) > 0x7f800000)
		return (uint16_t)(bits >> 16 | 0x40); /* rounding up could make NaN an infinity */
	return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
