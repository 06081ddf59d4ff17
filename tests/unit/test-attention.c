/* Rotation, the paged cache and attention: against double, and bits across batches and threads. */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/attention.h"

#define TOL_ATTENTION 2e-6
#define TOL_ROPE 1e-6
#define PAGES 200

static const struct tensor none;

static float noise(uint32_t *seed)
{
	*seed = *seed * 1664525 + 1013904223;
	return (float)(*seed >> 8) / (1 << 23) - 1;
}

static struct tensor random_tensor(uint32_t a, uint32_t b, uint32_t c, float scale, uint32_t seed)
{
	struct tensor t = { .type = DT_F32, .shape = { a, b, c } };
	float *data = malloc((tensor_elements(&t) + 1) * sizeof(float));

	assert_non_null(data);
	for (size_t i = 0; i < tensor_elements(&t); i++)
		data[i] = scale * noise(&seed);
	t.data = data;
	return t;
}

/* A cache of finite noise whose pages are handed out backwards. */
struct fixture {
	struct kv_cache kv;
	uint32_t pages[PAGES];
};

static void fixture_init(struct fixture *f, enum dtype type, uint32_t kv_heads, uint32_t head_dim,
			 uint32_t page_tokens)
{
	uint32_t seed = 99;
	size_t n;

	f->kv = (struct kv_cache){
		.type = type,
		.n_pages = PAGES,
		.page_tokens = page_tokens,
		.layers = 2,
		.kv_heads = kv_heads,
		.head_dim = head_dim,
	};
	f->kv.base = malloc(PAGES * kv_page_bytes(&f->kv));
	assert_non_null(f->kv.base);
	n = PAGES * kv_page_bytes(&f->kv) / dtype_bytes(type);
	for (size_t i = 0; i < n; i++) {
		const float value = noise(&seed);
		uint32_t bits;

		memcpy(&bits, &value, sizeof(bits));
		if (type == DT_F32)
			((float *)f->kv.base)[i] = value;
		else
			((uint16_t *)f->kv.base)[i] = (uint16_t)(bits >> 16);
	}
	for (uint32_t i = 0; i < PAGES; i++)
		f->pages[i] = PAGES - 1 - i;
}

static struct stream *open_stream(enum isa isa, uint32_t threads, struct dev **ret_dev)
{
	const struct op_limits limits = {
		.tokens = 512,
		.dim = 64,
		.heads = 96,
		.kv_heads = 8,
		.head_dim = 128,
		.ffn_dim = 64,
		.experts = 8,
		.top_k = 2,
		.vocab = 64,
		.max_context = 4096,
	};
	struct stream *st;

	assert_int_equal(dev_open(isa, threads, ret_dev), 0);
	assert_int_equal(st_open(*ret_dev, op_scratch(*ret_dev, &limits), &st), 0);
	return st;
}

static void attend(enum isa isa, uint32_t threads, const struct tensor *y, const struct tensor *q,
		   const struct kv_cache *kv, const struct seq *seqs, uint32_t n_seqs)
{
	struct dev *dev;
	struct stream *st = open_stream(isa, threads, &dev);

	assert_int_equal(op_attention(st, y, q, kv, 1, seqs, n_seqs), 0);
	st_close(st);
	dev_close(dev);
}

static void compare(const struct tensor *got, const struct tensor *want, double tolerance)
{
	for (size_t i = 0; i < tensor_elements(want); i++) {
		const double a = ((float *)got->data)[i], b = ((float *)want->data)[i];

		if (!(fabs(a - b) <= tolerance))
			fail_msg("element %zu is %.9g, not %.9g", i, a, b);
	}
}

static void check_shape(enum dtype type, uint32_t group, uint32_t kv_heads, uint32_t head_dim,
			uint32_t page_tokens, float scale)
{
	struct fixture f;
	struct tensor q, want, got;

	fixture_init(&f, type, kv_heads, head_dim, page_tokens);
	const struct seq seqs[] = {
		{ .first = 0, .n_tokens = 1, .at = 0, .n_pages = PAGES, .pages = f.pages },
		{ .first = 1,
		  .n_tokens = 37,
		  .at = 240,
		  .n_pages = PAGES - 3,
		  .pages = f.pages + 3 },
		{ .first = 38,
		  .n_tokens = 1,
		  .at = 516,
		  .n_pages = PAGES - 7,
		  .pages = f.pages + 7 },
	};

	q = random_tensor(39, group * kv_heads, head_dim, scale, 5);
	want = random_tensor(39, group * kv_heads, head_dim, 1, 6);
	got = random_tensor(39, group * kv_heads, head_dim, 1, 7);
	assert_int_equal(ref_attention(&want, &q, &f.kv, 1, seqs, 3), 0);
	for (enum isa isa = ISA_REF; isa < ISA_N; isa++) {
		if (!isa_supported(isa))
			continue;
		attend(isa, 2, &got, &q, &f.kv, seqs, 3);
		compare(&got, &want, TOL_ATTENTION * (1 + scale));
	}
	free(q.data);
	free(want.data);
	free(got.data);
	free(f.kv.base);
}

static void attention_agrees_with_double_at_every_shape(void **state)
{
	(void)state;

	check_shape(DT_BF16, 1, 2, 16, 8, 3);
	check_shape(DT_BF16, 5, 1, 64, 16, 3);
	check_shape(DT_BF16, 6, 2, 32, 64, 3);
	check_shape(DT_BF16, 12, 2, 128, 64, 3);
	check_shape(DT_F32, 12, 1, 128, 16, 3);
	check_shape(DT_BF16, 33, 1, 24, 16, 3); /* wider than a tile; a tail behind the vectors */
	check_shape(DT_F32, 2, 1, 100, 7, 3);
}

static void large_scores_do_not_overflow(void **state)
{
	struct fixture f;
	struct tensor q, y;

	(void)state;

	fixture_init(&f, DT_F32, 1, 16, 16);
	q = random_tensor(1, 1, 16, 1e6f, 3);
	y = random_tensor(1, 1, 16, 1, 4);
	for (enum isa isa = ISA_REF; isa < ISA_N; isa++) {
		const struct seq seq = {
			.n_tokens = 1, .at = 900, .n_pages = PAGES, .pages = f.pages
		};

		if (!isa_supported(isa))
			continue;
		attend(isa, 1, &y, &q, &f.kv, &seq, 1);
		for (uint32_t i = 0; i < 16; i++)
			assert_true(fabsf(((float *)y.data)[i]) <= 1);
	}
	free(q.data);
	free(y.data);
	free(f.kv.base);
}

static void bits_do_not_depend_on_chunks_or_threads(void **state)
{
	const uint32_t heads = 10, head_dim = 64, tokens = 70;
	struct tensor q, whole, single;
	struct fixture f;

	(void)state;

	fixture_init(&f, DT_BF16, 2, head_dim, 16);
	q = random_tensor(tokens, heads, head_dim, 3, 5);
	whole = random_tensor(tokens, heads, head_dim, 1, 6);
	single = random_tensor(tokens, heads, head_dim, 1, 7);
	for (enum isa isa = ISA_REF; isa < ISA_N; isa++) {
		struct seq seq = {
			.n_tokens = tokens, .at = 700, .n_pages = PAGES, .pages = f.pages
		};

		if (!isa_supported(isa))
			continue;
		attend(isa, 1, &whole, &q, &f.kv, &seq, 1);
		for (uint32_t t = 0; t < tokens; t += 23) {
			const size_t at = (size_t)t * heads * head_dim;
			struct tensor one = q, to = single;

			one.data = (float *)q.data + at;
			to.data = (float *)single.data + at;
			one.shape[0] = to.shape[0] = 1;
			seq.n_tokens = 1;
			seq.at = 700 + t;
			attend(isa, 2, &to, &one, &f.kv, &seq, 1);
			assert_memory_equal(to.data, (float *)whole.data + at,
					    heads * head_dim * sizeof(float));
		}
	}
	free(q.data);
	free(whole.data);
	free(single.data);
	free(f.kv.base);
}

static void query_heads_share_their_kv_head_in_runs(void **state)
{
	const uint32_t heads = 96, kv_heads = 8;
	struct tensor q, y;
	struct fixture f;

	(void)state;

	fixture_init(&f, DT_F32, kv_heads, 16, 8);
	q = random_tensor(1, heads, 16, 1, 5);
	y = random_tensor(1, heads, 16, 1, 6);
	for (enum isa isa = ISA_REF; isa < ISA_N; isa++) {
		const struct seq seq = { .n_tokens = 1, .n_pages = 1, .pages = f.pages };
		const float *values = (const float *)((const uint8_t *)f.kv.base +
						      (PAGES - 1) * kv_page_bytes(&f.kv)) +
				      (size_t)3 * kv_heads * 8 * 16;

		if (!isa_supported(isa))
			continue;
		attend(isa, 1, &y, &q, &f.kv, &seq, 1); /* one position: the value itself */
		for (uint32_t h = 0; h < heads; h++)
			assert_memory_equal((float *)y.data + h * 16, values + h / 12 * 8 * 16,
					    16 * sizeof(float));
	}
	free(q.data);
	free(y.data);
	free(f.kv.base);
}

/* All pages of the table are one page: only the angles matter here. */
static void check_angles(struct stream *st, const struct rope_table *rope,
			 const struct kv_cache *kv, const json_t *row)
{
	const uint32_t at = (uint32_t)json_integer_value(json_object_get(row, "pos"));
	static const uint32_t pages[128];
	const struct seq seq = { .n_tokens = 1, .at = at, .n_pages = 128, .pages = pages };
	struct tensor q = random_tensor(1, 1, 128, 1, 5), k = random_tensor(1, 1, 128, 1, 6);
	float *x = q.data;

	for (uint32_t d = 0; d < 128; d++)
		x[d] = d < 32 || d >= 64; /* first of each pair, and the dims that stay */
	assert_int_equal(op_rope_kv(st, &q, &k, &k, &none, &none, 0, rope, kv, 0, &seq, 1), 0);
	for (uint32_t d = 0; d < 32; d++) {
		const double c =
			json_number_value(json_array_get(json_object_get(row, "f32_angle_cos"), d));
		const double s =
			json_number_value(json_array_get(json_object_get(row, "f32_angle_sin"), d));

		assert_true(fabs(x[d] - c) < 1e-7 && fabs(x[d + 32] - s) < 1e-7);
	}
	for (uint32_t d = 64; d < 128; d++)
		assert_true(x[d] == 1);
	free(q.data);
	free(k.data);
}

static void the_angles_are_those_of_the_reference_table(void **state)
{
	struct kv_cache kv = { .type = DT_F32,
			       .n_pages = 1,
			       .page_tokens = 1024,
			       .layers = 1,
			       .kv_heads = 1,
			       .head_dim = 128 };
	const char *top = getenv("srcdir");
	struct rope_table rope;
	char path[4096];
	json_t *root, *rows;

	(void)state;

	snprintf(path, sizeof(path), "%s/tests/golden/rope/table.json", top ? top : ".");
	root = json_load_file(path, 0, NULL);
	rows = json_object_get(root, "rows");
	assert_int_equal(json_array_size(rows), 6);
	assert_int_equal(rope_table_init(&rope, 1e6, 64, 131072), 0);
	kv.base = calloc(1, kv_page_bytes(&kv));
	assert_non_null(kv.base);

	for (enum isa isa = ISA_REF; isa < ISA_N; isa++) {
		struct dev *dev;
		struct stream *st;

		if (!isa_supported(isa))
			continue;
		st = open_stream(isa, 1, &dev);
		for (size_t i = 0; i < 6; i++)
			check_angles(st, &rope, &kv, json_array_get(rows, i));
		st_close(st);
		dev_close(dev);
	}
	json_decref(root);
	rope_table_deinit(&rope);
	free(kv.base);
}

static void check_rope(enum isa isa, const struct tensor *norm)
{
	struct tensor q[2], k[2], v = random_tensor(40, 2, 64, 1, 8);
	struct fixture f[2];
	struct rope_table rope;
	struct dev *dev;
	struct stream *st = open_stream(isa, 2, &dev);
	size_t bytes;

	assert_int_equal(rope_table_init(&rope, 1e4, 32, 1024), 0);
	for (int i = 0; i < 2; i++) {
		fixture_init(&f[i], DT_F32, 2, 64, 8);
		q[i] = random_tensor(40, 10, 64, 1, 5);
		k[i] = random_tensor(40, 2, 64, 1, 6);
	}
	const struct seq seqs[] = {
		{ .n_tokens = 39, .at = 5, .n_pages = 20, .pages = f[0].pages },
		{ .first = 39,
		  .n_tokens = 1,
		  .at = 1000,
		  .n_pages = 126,
		  .pages = f[0].pages + 30 },
	};

	assert_int_equal(
		ref_rope_kv(&q[0], &k[0], &v, norm, norm, 1e-5f, &rope, &f[0].kv, 1, seqs, 2), 0);
	assert_int_equal(
		op_rope_kv(st, &q[1], &k[1], &v, norm, norm, 1e-5f, &rope, &f[1].kv, 1, seqs, 2),
		0);
	compare(&q[1], &q[0], 4 * TOL_ROPE);
	bytes = PAGES * kv_page_bytes(&f[0].kv);
	for (size_t i = 0; i < bytes / sizeof(float); i++)
		assert_true(fabsf(((float *)f[0].kv.base)[i] - ((float *)f[1].kv.base)[i]) <=
			    4 * TOL_ROPE);
	for (int i = 0; i < 2; i++) {
		free(q[i].data);
		free(k[i].data);
		free(f[i].kv.base);
	}
	free(v.data);
	rope_table_deinit(&rope);
	st_close(st);
	dev_close(dev);
}

static void rotation_and_storing_agree_with_double(void **state)
{
	struct tensor norm = random_tensor(1, 1, 64, 1, 11);

	(void)state;

	for (enum isa isa = ISA_REF; isa < ISA_N; isa++) {
		if (!isa_supported(isa))
			continue;
		check_rope(isa, &norm);
		check_rope(isa, &none);
	}
	free(norm.data);
}

static void positions_without_page_or_angle_are_refused(void **state)
{
	struct tensor q = random_tensor(1, 1, 16, 1, 1), y = random_tensor(1, 1, 16, 1, 2);
	struct rope_table rope;
	struct fixture f;
	struct dev *dev;
	struct stream *st = open_stream(ISA_PORTABLE, 1, &dev);

	(void)state;

	fixture_init(&f, DT_BF16, 1, 16, 8);
	assert_int_equal(rope_table_init(&rope, 1e4, 3, 64), -EINVAL);
	assert_int_equal(rope_table_init(&rope, 1e4, 16, 9), 0);
	struct seq seq = { .n_tokens = 1, .at = 8, .n_pages = 1, .pages = f.pages };

	assert_int_equal(op_attention(st, &y, &q, &f.kv, 0, &seq, 1), -EINVAL);
	seq.n_pages = 2;
	assert_int_equal(op_attention(st, &y, &q, &f.kv, 0, &seq, 1), 0);
	assert_int_equal(op_rope_kv(st, &q, &y, &y, &none, &none, 0, &rope, &f.kv, 0, &seq, 1), 0);
	seq.at = 9;
	assert_int_equal(op_rope_kv(st, &q, &y, &y, &none, &none, 0, &rope, &f.kv, 0, &seq, 1),
			 -EINVAL);
	f.pages[1] = PAGES;
	assert_int_equal(op_attention(st, &y, &q, &f.kv, 0, &seq, 1), -EINVAL);
	rope_table_deinit(&rope);
	free(q.data);
	free(y.data);
	free(f.kv.base);
	st_close(st);
	dev_close(dev);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(attention_agrees_with_double_at_every_shape),
		cmocka_unit_test(large_scores_do_not_overflow),
		cmocka_unit_test(bits_do_not_depend_on_chunks_or_threads),
		cmocka_unit_test(query_heads_share_their_kv_head_in_runs),
		cmocka_unit_test(the_angles_are_those_of_the_reference_table),
		cmocka_unit_test(rotation_and_storing_agree_with_double),
		cmocka_unit_test(positions_without_page_or_angle_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
