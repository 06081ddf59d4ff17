/* Random matrices as checkpoints hold them, for the tests of kernels/. */
#pragma once

#include <stdlib.h>
#include <string.h>

#include "kernels/linear.h"

/* xorshift: the same matrices in every run. */
static uint64_t random_state = 88172645463325252u;

static inline uint32_t random_u32(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (uint32_t)(random_state >> 16);
}

/* Between -1 and 1. */
static inline float random_f32(void)
{
	return (float)(random_u32() & 0xffffff) / 8388608.0f - 1.0f;
}

/* One way that a checkpoint holds a matrix. */
struct form {
	enum dtype type, scale_type;
	uint32_t group; /* 0: the whole row */
};

struct matrix {
	struct weight_source src;
	struct weight packed;
	uint8_t *bytes, *scale_bytes; /* one byte before the data: nothing is aligned */
};

static inline uint16_t half_bits(enum dtype type)
{
	if (type == DT_BF16) /* 0x3c… to 0x3f…: at most 2, at least 0.0078 */
		return (uint16_t)((random_u32() & 0x8000) | (0x3c00 + random_u32() % 0x380));
	return (uint16_t)((random_u32() & 0x8000) | (random_u32() % 0x3c00)); /* F16 below 1, denormals too */
}

static inline void put_random(void *at, enum dtype type, size_t i, bool positive)
{
	const uint16_t half = half_bits(type) & (positive ? 0x7fff : 0xffff);
	const float wide = positive ? 0.01f + (random_f32() + 1) / 64 : random_f32();
	const uint16_t scale = type == DT_BF16 ? 0x3c00 + (half & 0xff) : 0x2000 + (half & 0x3ff);

	if (type == DT_F32)
		memcpy((uint8_t *)at + 4 * i, &wide, 4);
	else
		memcpy((uint8_t *)at + 2 * i, positive ? &scale : &half, 2);
}

static inline struct matrix matrix_new(struct dev *dev, const struct form *form, uint32_t rows,
				       uint32_t cols)
{
	struct matrix m = { .src = { .rows = rows, .cols = cols, .type = form->type,
				     .scale_type = form->scale_type,
				     .group = form->group ? form->group : cols } };
	const size_t words = (size_t)rows * (((size_t)cols + 7) / 8), n = (size_t)rows * cols;
	const size_t bytes = form->type == DT_I32 ? words * 4 : n * dtype_bytes(form->type);

	m.bytes = malloc(bytes + 1);
	m.src.data = m.bytes + 1;
	if (form->type == DT_I32) {
		const size_t n_scales = (size_t)rows * (cols / m.src.group);

		for (size_t i = 0; i < bytes; i++)
			m.bytes[1 + i] = (uint8_t)random_u32();
		m.scale_bytes = malloc(n_scales * dtype_bytes(form->scale_type) + 1);
		m.src.scales = m.scale_bytes + 1;
		for (size_t i = 0; i < n_scales; i++)
			put_random(m.scale_bytes + 1, form->scale_type, i, true);
	} else {
		for (size_t i = 0; i < n; i++)
			put_random(m.bytes + 1, form->type, i, false);
	}
	m.packed = (struct weight){ .kind = weight_kind_of(&m.src), .rows = rows, .cols = cols };
	m.packed.data = aligned_alloc(
		64, (weight_bytes(dev, m.packed.kind, rows, cols) + 63) & ~(size_t)63);
	return m;
}

static inline void matrix_free(struct matrix *m)
{
	free(m->bytes);
	free(m->scale_bytes);
	free(m->packed.data);
}

static inline struct tensor batch(float *data, uint32_t tokens, uint32_t cols)
{
	return (struct tensor){ .data = data, .type = DT_F32, .shape = { 1, tokens, cols } };
}
