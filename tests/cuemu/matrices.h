/* Random matrices in device memory, and what they are in double, for the tests of kernels/cuda. */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <memory>
#include <vector>

extern "C" {
#include <cmocka.h>
}

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/matrix.h"
#include "tests/cuemu/cuemu.h"

/* xorshift: the same numbers in every run */
static uint64_t random_state = 88172645463325252u;

static uint32_t random_u32(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (uint32_t)(random_state >> 16);
}

static float random_f32(void)
{
	return (float)(random_u32() & 0xffffff) / 8388608.0f - 1.0f;
}

static inline std::vector<float> random_floats(size_t n)
{
	std::vector<float> x(n);

	for (size_t i = 0; i < n; i++)
		x[i] = random_f32() * (i % 97 == 0 ? 30 : 1); /* as hidden states have outliers */
	return x;
}

/* Device memory of exactly that size: the emulator faults what is beside it. */
struct device_memory {
	char *at;
	size_t bytes;

	explicit device_memory(size_t n, const void *from = NULL) : at(NULL), bytes(n)
	{
		assert_int_equal(cudaMalloc(&at, n ? n : 1), cudaSuccess);
		if (from)
			write(from);
	}
	~device_memory()
	{
		cudaFree(at);
	}
	device_memory(const device_memory &) = delete;
	void write(const void *from)
	{
		assert_int_equal(cudaMemcpy(at, from, bytes, cudaMemcpyHostToDevice), cudaSuccess);
	}
	template <typename T> std::vector<T> read(struct stream *st) const
	{
		std::vector<T> to(bytes / sizeof(T));

		assert_int_equal(cudaStreamSynchronize(st->handle), cudaSuccess);
		assert_int_equal(cudaMemcpy(to.data(), at, bytes, cudaMemcpyDeviceToHost),
				 cudaSuccess);
		return to;
	}
};

/* A way that a checkpoint holds a matrix. */
struct form {
	enum dtype type, scale_type;
	uint32_t group; /* 0: the whole row */
};

struct matrix {
	struct weight_source src;
	std::vector<uint8_t> bytes, scales; /* one byte before the data: nothing is aligned */
	std::vector<double> values;
	struct weight packed;
	std::unique_ptr<device_memory> memory;
};

static void put_random(uint8_t *at, enum dtype type, size_t i, bool positive)
{
	const uint16_t bf16 = (uint16_t)((positive ? 0 : random_u32() & 0x8000) | (0x3c00 + random_u32() % 0x380));
	const uint16_t f16 = (uint16_t)((positive ? 0 : random_u32() & 0x8000) | (0x1000 + random_u32() % 0x2800));
	const float f32 = positive ? 0.01f + (random_f32() + 1) / 64 : random_f32();

	if (type == DT_F32)
		memcpy(at + 4 * i, &f32, 4);
	else
		memcpy(at + 2 * i, type == DT_BF16 ? &bf16 : &f16, 2);
}

static double value_of(const struct weight_source *w, uint32_t row, uint32_t col)
{
	if (w->type != DT_I32)
		return source_value(w->type, w->data, (size_t)row * w->cols + col);
	return ((int)(source_codes(w, row, col / 8 * 8) >> 4 * (col % 8) & 15) - 8) *
	       (double)source_value(w->scale_type, w->scales,
				    (size_t)row * (w->cols / w->group) + col / w->group);
}

/* Packed at @at, or in memory of its own. */
static inline void matrix_make(struct dev *dev, struct matrix *m, const struct form &form, uint32_t rows,
			uint32_t cols, char *at = NULL)
{
	const size_t n = (size_t)rows * cols, words = (size_t)rows * ((cols + 7) / 8);
	const uint32_t group = form.group ? form.group : cols;

	m->bytes.resize(1 + (form.type == DT_I32 ? words * 4 : n * dtype_bytes(form.type)));
	if (form.type == DT_I32)
		for (uint8_t &byte : m->bytes)
			byte = (uint8_t)random_u32();
	for (size_t i = 0; i < n && form.type != DT_I32; i++)
		put_random(m->bytes.data() + 1, form.type, i, false);
	m->scales.resize(1 + (size_t)rows * (cols / group) * dtype_bytes(form.scale_type));
	for (size_t i = 0; i < (size_t)rows * (cols / group) && form.scale_type != DT_NONE; i++)
		put_random(m->scales.data() + 1, form.scale_type, i, true);
	m->src = { rows, cols, form.type, m->bytes.data() + 1, m->scales.data() + 1,
		   form.scale_type, group };
	m->values.resize(n);
	for (size_t i = 0; i < n; i++)
		m->values[i] = value_of(&m->src, i / cols, i % cols);
	m->packed = { weight_kind_of(&m->src), rows, cols, at };
	if (!at) {
		m->memory = std::make_unique<device_memory>(
			weight_bytes(dev, m->packed.kind, rows, cols));
		m->packed.data = m->memory->at;
	}
	assert_int_equal(op_repack(dev, &m->packed, &m->src, NULL), 0);
}

static inline struct tensor batch(const void *data, uint32_t tokens, uint32_t cols)
{
	return { (void *)data, DT_F32, { 1, tokens, cols } };
}

/* A device and a stream, as small as a test wants them, that saw no fault when they go. */
struct rig {
	struct dev *dev;
	struct stream *st;

	explicit rig(uint32_t n_sm, size_t shared_max = 227 << 10, size_t scratch_bytes = 64 << 20)
	{
		assert_int_equal(dev_open(ISA_CUDA, 1, &dev), 0);
		dev->n_sm = n_sm;
		dev->shared_max = shared_max;
		assert_int_equal(st_open(dev, scratch_bytes, &st), 0);
	}
	~rig()
	{
		st_close(st);
		dev_close(dev);
		if (cuemu_fault())
			print_error("%s\n", cuemu_fault());
		assert_null(cuemu_fault());
	}
};
