/* Matrix products in portable C: the same forms and the same exact group sums as the others. */
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

/* Codes less 8 of one group, a row of STRIP_ROWS for each column. */
static void unpack_group(float *codes, const uint8_t *lines)
{
	for (int j = 0; j < 4; j++, lines += 64, codes += 8 * STRIP_ROWS) {
		for (int byte = 0; byte < 64; byte++) {
			float *to = codes + byte % 4 * STRIP_ROWS + byte / 4;

			to[0] = (float)((lines[byte] & 15) - 8);
			to[4 * STRIP_ROWS] = (float)((lines[byte] >> 4) - 8);
		}
	}
}

/* out += codes * x of one group. All sums are integers below 2^24: exact, whatever their order. */
static void add_group(float *out, const float *codes, const vf scales[4], const int8_t *high,
		      float scale)
{
	vf sum[4] = { { 0 } };

	for (int k = 0; k < GROUP_COLS; k++, codes += STRIP_ROWS) {
		const float x = (float)(256 * high[k] + high[GROUP_COLS + k]);

		for (int i = 0; i < 4; i++)
			sum[i] += v_load(codes + 4 * i) * x;
	}
	for (int i = 0; i < 4; i++)
		v_store(out + 4 * i, v_load(out + 4 * i) + sum[i] * (scales[i] * scale));
}

static inline void mul_int4_any(float *out, const uint8_t *w, size_t strip_bytes, uint32_t n_strips,
				uint32_t n_groups, const uint8_t *const *x, uint32_t n_tokens,
				bool f32)
{
	const size_t bytes = group_bytes(f32 ? WEIGHT_INT4_F32 : WEIGHT_INT4);
	const size_t at_groups = (size_t)n_groups * 2 * GROUP_COLS;
	float codes[GROUP_COLS * STRIP_ROWS];
	vf scales[4];

	for (uint32_t s = 0; s < n_strips; s++, w += strip_bytes, out += STRIP_ROWS) {
		for (uint32_t t = 0; t < n_tokens; t++)
			memset(out + t * MUL_ROWS, 0, STRIP_ROWS * sizeof(*out));
		for (uint32_t g = 0; g < n_groups; g++) {
			const uint8_t *p = w + g * bytes;

			unpack_group(codes, p);
			for (int i = 0; i < 4; i++)
				scales[i] = f32 ? v_load((const float *)(p + 256) + 4 * i)
						: v_load_bf16((const uint16_t *)(p + 256) + 4 * i);
			for (uint32_t t = 0; t < n_tokens; t++) {
				const struct fixed_group *group =
					(const struct fixed_group *)(x[t] + at_groups) + g;

				add_group(out + t * MUL_ROWS, codes, scales,
					  (const int8_t *)x[t] + (size_t)g * 2 * GROUP_COLS,
					  group->scale);
			}
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
		[WEIGHT_BF16] = { .few = { ACT_F32, mul_bf16 } },
		[WEIGHT_F32] = { .few = { ACT_F32, mul_f32 } },
		[WEIGHT_INT4] = { .few = { ACT_FIXED, mul_int4 } },
		[WEIGHT_INT4_F32] = { .few = { ACT_FIXED, mul_int4_f32 } },
	},
};
