/* The bytes of packed matrices against the layout's description, with and without padding. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cpu/layout.h"
#include "kernels/linear.h"

static const struct {
	uint32_t rows, cols;
} shapes[] = { { 16, 32 }, { 48, 160 }, { 33, 96 }, { 32, 72 }, { 5, 33 }, { 16, 512 } };

struct source {
	struct weight_source src;
	uint8_t *memory;
	struct weight to;
};

static uint8_t next_byte(void)
{
	static uint32_t x = 1;

	return (uint8_t)((x = x * 1664525u + 1013904223u) >> 24);
}

/* One byte off any alignment, as tensors of files are. */
static void *random_bytes(size_t n)
{
	uint8_t *p = malloc(n + 1);

	assert_non_null(p);
	for (size_t i = 0; i <= n; i++)
		p[i] = next_byte() & 0x3f; /* as scales, positive and finite in each type */
	return p;
}

static struct source source_new(enum dtype type, enum dtype scale_type, uint32_t rows,
				uint32_t cols, uint32_t group)
{
	const size_t words = (cols + 7) / 8;
	struct source s = { 0 };
	uint8_t *scales;

	s.memory = random_bytes(rows * (type == DT_I32 ? words * 4 : cols * dtype_bytes(type)));
	s.src = (struct weight_source){
		.rows = rows, .cols = cols, .type = type, .data = s.memory + 1, .group = group
	};
	if (type == DT_I32) {
		for (size_t i = 0; i < rows * words * 4; i++)
			s.memory[1 + i] = next_byte();
		scales = random_bytes((size_t)rows * (cols / group) * dtype_bytes(scale_type));
		for (size_t i = 0; i < (size_t)rows * (cols / group) * dtype_bytes(scale_type); i++)
			scales[1 + i] |= 1;
		s.src.scales = scales + 1;
		s.src.scale_type = scale_type;
	}
	s.to = (struct weight){ weight_kind_of(&s.src), rows, cols, NULL };
	s.to.data = aligned_alloc(64, (weight_bytes(NULL, s.to.kind, rows, cols) + 63) & ~63ul);
	memset(s.to.data, 0xee, weight_bytes(NULL, s.to.kind, rows, cols));
	return s;
}

static void source_free(struct source *s)
{
	free(s->memory);
	if (s->src.scales)
		free((uint8_t *)s->src.scales - 1);
	free(s->to.data);
}

static const uint8_t *group_at(const struct source *s, uint32_t row, uint32_t col)
{
	return (const uint8_t *)s->to.data + row / 16 * strip_bytes(s->to.kind, s->src.cols) +
	       col / 32 * group_bytes(s->to.kind);
}

static uint32_t strip_rows(const struct source *s)
{
	return (s->src.rows + 15) / 16 * 16;
}

static void plain_values_stand_where_the_layout_says(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++)
		for (int wide = 0; wide < 2; wide++) {
			const uint32_t cols = shapes[i].cols, bytes = wide ? 4 : 2;
			struct source s = source_new(wide ? DT_F32 : DT_BF16, DT_NONE,
						     shapes[i].rows, cols, 0);

			assert_int_equal(op_repack(NULL, &s.to, &s.src, NULL), 0);
			for (uint32_t r = 0; r < strip_rows(&s); r++)
				for (uint32_t c = 0; c < groups_of(cols) * 32; c++) {
					const uint32_t k = c % 32, lane = r % 16;
					const uint8_t *at =
						group_at(&s, r, c) +
						(wide ? k * 64 + lane * 4
						      : k / 2 * 64 + lane * 4 + k % 2 * 2);
					const uint8_t zero[4] = { 0 };
					const uint8_t *from =
						r < s.src.rows && c < cols
							? (const uint8_t *)s.src.data +
								  ((size_t)r * cols + c) * bytes
							: zero;

					assert_memory_equal(at, from, bytes);
				}
			source_free(&s);
		}
}

static uint32_t code_in_source(const struct source *s, uint32_t r, uint32_t c)
{
	const uint8_t *row = (const uint8_t *)s->src.data + (size_t)r * ((s->src.cols + 7) / 8) * 4;

	if (r >= s->src.rows || c >= s->src.cols)
		return 8;
	return row[c / 2] >> c % 2 * 4 & 15;
}

static void check_codes(const struct source *s)
{
	for (uint32_t r = 0; r < strip_rows(s); r++)
		for (uint32_t c = 0; c < groups_of(s->src.cols) * 32; c++) {
			const uint32_t k = c % 32;
			const uint8_t byte = group_at(s, r, c)[k / 8 * 64 + r % 16 * 4 + k % 4];

			assert_int_equal(byte >> (k % 8 < 4 ? 0 : 4) & 15, code_in_source(s, r, c));
		}
}

static void check_scales(const struct source *s, uint32_t bytes)
{
	const uint32_t per_row = s->src.cols / s->src.group;
	const uint8_t zero[4] = { 0 };

	for (uint32_t r = 0; r < strip_rows(s); r++)
		for (uint32_t c = 0; c < s->src.cols; c += 32) {
			const uint8_t *from = (const uint8_t *)s->src.scales +
					      ((size_t)r * per_row + c / s->src.group) * bytes;

			assert_memory_equal(group_at(s, r, c) + 256 + r % 16 * bytes,
					    r < s->src.rows ? from : zero, bytes);
		}
}

static void codes_and_scales_stand_where_the_layout_says(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++)
		for (int wide = 0; wide < 2; wide++) {
			const uint32_t cols = shapes[i].cols;
			struct source s = source_new(DT_I32, wide ? DT_F32 : DT_BF16,
						     shapes[i].rows, cols,
						     cols % 32 || i == 5 ? cols : 32);

			assert_int_equal(op_repack(NULL, &s.to, &s.src, NULL), 0);
			check_codes(&s);
			check_scales(&s, wide ? 4 : 2);
			source_free(&s);
		}
}

static void a_bad_scale_is_found_wherever_it_stands(void **state)
{
	static const uint16_t bad[] = { 0, 0x8000, 0x7f80, 0xff80, 0x7fc0, 0xbf80, 0x8001 };
	static const uint16_t good[] = { 1, 0x7f7f };
	struct source s = source_new(DT_I32, DT_BF16, 48, 160, 32);
	size_t which = 999;

	(void)state;
	for (size_t i = 0; i < 48 * 5; i++) {
		uint8_t *at = (uint8_t *)s.src.scales + 2 * i, was[2];

		memcpy(was, at, 2);
		memcpy(at, &bad[i % 7], 2);
		assert_int_equal(op_repack(NULL, &s.to, &s.src, &which), -EDOM);
		assert_int_equal(which, i);
		memcpy(at, &good[i % 2], 2);
		assert_int_equal(op_repack(NULL, &s.to, &s.src, NULL), 0);
		memcpy(at, was, 2);
	}
	source_free(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(plain_values_stand_where_the_layout_says),
		cmocka_unit_test(codes_and_scales_stand_where_the_layout_says),
		cmocka_unit_test(a_bad_scale_is_found_wherever_it_stands),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
