/* The scales of a group of int4 codes, for the files that compute with AVX-512: after act.h. */
#pragma once

/* The 16 at @p, one a row: F32, or BF16 widened. */
INLINE __m512 load_scales(const uint8_t *p, const bool f32)
{
	if (f32)
		return _mm512_loadu_ps(p);
	return _mm512_castsi512_ps(_mm512_slli_epi32(
		_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
