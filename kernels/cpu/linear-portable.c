/* Matrix products in plain C: the same forms and integer sums as the vector ones. */
#include <string.h>

#define LANES 4
#include "kernels/cpu/act.h"

static void mul_bf16(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
		     uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens)
{
	for (uint32_t s = 0; s < n_strips; s++, w += strip_bytes) {
		for (uint32_t t = 0; t < n_tokens; t++) {
			const uint32_t *p = (const uint32_t *)w;
			const float *xt = (const float *)x[t];
			float even[STRIP_ROWS] = { 0 }, odd[STRIP_ROWS] = { 0 };

			for (uint32_t k = 0; k < n_groups * GROUP_COLS; k += 2, p += STRIP_ROWS) {
				for (int r = 0; r < STRIP_ROWS; r++) {
					even[r] += bf16_widen((uint16_t)p[r]) * xt[k];
					odd[r] += bf16_widen((uint16_t)(p[r] >> 16)) * xt[k + 1];
				}
			}
			for (int r = 0; r < STRIP_ROWS; r++)
				out[t * MUL_ROWS + s * STRIP_ROWS + r] = even[r] + odd[r];
		}
	}
}

static void mul_f32(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
		    uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens)
{
	for (uint32_t s = 0; s < n_strips; s++, w += strip_bytes) {
		for (uint32_t t = 0; t < n_tokens; t++) {
			const float *p = (const float *)w;
			const float *xt = (const float *)x[t];
			float even[STRIP_ROWS] = { 0 }, odd[STRIP_ROWS] = { 0 };

			for (uint32_t k = 0; k < n_groups * GROUP_COLS; k += 2) {
				for (int r = 0; r < STRIP_ROWS; r++) {
					even[r] += p[r] * xt[k];
					odd[r] += p[STRIP_ROWS + r] * xt[k + 1];
				}
				p += 2 * STRIP_ROWS;
			}
			for (int r = 0; r < STRIP_ROWS; r++)
				out[t * MUL_ROWS + s * STRIP_ROWS + r] = even[r] + odd[r];
		}
	}
}

/* The exact integer sum of one row and group: codes less 8, times the activation's integers. */
static int32_t sum_group(const uint8_t *lines, int row, const int8_t *high,
			 const struct fixed_group *group)
{
	int32_t sum_high = 0, sum_low = 0;

	for (int j = 0; j < 4; j++) {
		const uint8_t *byte = lines + 64 * j + 4 * row;
		const int8_t *h = high + 8 * j, *l = h + GROUP_COLS;

		for (int i = 0; i < 4; i++) {
			sum_high += (byte[i] & 15) * h[i] + (byte[i] >> 4) * h[4 + i];
			sum_low += (byte[i] & 15) * l[i] + (byte[i] >> 4) * l[4 + i];
		}
	}
	return 256 * sum_high + sum_low - group->sum8;
}

static float scale_at(const uint8_t *scales, int row, bool f32)
{
	return f32 ? ((const float *)scales)[row] : bf16_widen(((const uint16_t *)scales)[row]);
}

static inline void mul_int4_any(float *out, const uint8_t *w, size_t strip_bytes,
				uint32_t n_strips, uint32_t n_groups, const uint8_t *const *x,
				uint32_t n_tokens, bool f32)
{
	const size_t bytes = group_bytes(f32 ? WEIGHT_INT4_F32 : WEIGHT_INT4);

	for (uint32_t s = 0; s < n_strips; s++, w += strip_bytes) {
		for (uint32_t t = 0; t < n_tokens; t++) {
			const struct fixed_group *group = (const struct fixed_group *)
				(x[t] + (size_t)n_groups * 2 * GROUP_COLS);
			const int8_t *high = (const int8_t *)x[t];
			const uint8_t *p = w;
			float sum[STRIP_ROWS] = { 0 };

			for (uint32_t g = 0; g < n_groups; g++) {
				for (int r = 0; r < STRIP_ROWS; r++)
					sum[r] += (float)sum_group(p, r, high, group) *
						  (scale_at(p + 256, r, f32) * group->scale);
				high += 2 * GROUP_COLS;
				p += bytes;
				group++;
			}
			memcpy(out + t * MUL_ROWS + s * STRIP_ROWS, sum, sizeof(sum));
		}
	}
}

static void mul_int4(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
		     uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens)
{
	mul_int4_any(out, w, strip_bytes, n_strips, n_groups, x, n_tokens, false);
}

static void mul_int4_f32(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
			 uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens)
{
	mul_int4_any(out, w, strip_bytes, n_strips, n_groups, x, n_tokens, true);
}

const struct linear_kernels linear_portable = {
	.gate = gate_rows,
	.act = { [ACT_F32] = take_f32, [ACT_SPLIT] = take_split, [ACT_FIXED] = take_fixed },
	.kinds = {
		[WEIGHT_BF16] = { ACT_F32, mul_bf16 },
		[WEIGHT_F32] = { ACT_F32, mul_f32 },
		[WEIGHT_INT4] = { ACT_FIXED, mul_int4 },
		[WEIGHT_INT4_F32] = { ACT_FIXED, mul_int4_f32 },
	},
};
