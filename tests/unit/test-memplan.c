/* Plans of GPU memory: what fits on which cards, what does not, and that no buffer is too small. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/exec/weights/memplan.h"
#include "kernels/cuda/lifetimes.h"
#include "kernels/linear.h"

#define GIB (1ull << 30)

static struct memplan_limits limits_of(uint32_t n_gpus, const char *card, uint32_t context)
{
	struct memplan_limits l = { .n_gpus = n_gpus,
				    .context_tokens = context,
				    .page_tokens = 64,
				    .max_rows = 32,
				    .batch_tokens = 512 };

	assert_int_equal(memplan_card_bytes(card, &l.card_bytes, NULL), 0);
	return l;
}

static struct memplan air_on(uint32_t n_gpus, const char *card, uint32_t context)
{
	const struct memplan_limits l = limits_of(n_gpus, card, context);
	struct memplan_model air;
	struct err err = { 0 };
	struct memplan p;

	memplan_air(&air);
	if (memplan_make(&air, &l, &p, &err) < 0)
		fail_msg("%s", err.text);
	return p;
}

static void a_card_has_what_it_is_sold_for_less_what_its_driver_keeps(void **state)
{
	static const struct {
		const char *text;
		double least, most;
	} sold[] = {
		{ "24GB", 23.50, 23.64 }, { "48GB", 47.30, 47.40 },  { "80GB", 79.00, 79.11 },
		{ "96GB", 94.90, 94.97 }, { "141GB", 139.4, 139.8 },
	};
	uint64_t bytes;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(sold); i++) {
		assert_int_equal(memplan_card_bytes(sold[i].text, &bytes, NULL), 0);
		assert_true((double)bytes / GIB > sold[i].least &&
			    (double)bytes / GIB < sold[i].most);
	}
	assert_int_equal(memplan_card_bytes("94.5GiB", &bytes, NULL), 0);
	assert_int_equal(bytes, 189 * GIB / 2);
	assert_int_equal(memplan_card_bytes("24256MiB", &bytes, NULL), 0);
	assert_int_equal(bytes, 24256ull << 20);
}

static void what_is_no_size_is_refused(void **state)
{
	static const char *const texts[] = { "",      "GB",  "96",    "96gb",  "96 GB",	 "96GBx",
					     "-96GB", "0GB", "0.2GB", "nanGB", "infGiB", "1e9GB" };
	struct err err = { 0 };
	uint64_t bytes;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(texts); i++)
		assert_int_equal(memplan_card_bytes(texts[i], &bytes, &err), -EINVAL);
	memplan_card_bytes("96", &bytes, &err);
	assert_string_equal(
		err.text,
		"'96' is no size of a GPU's memory; 96GB (as it is sold) or 94.5GiB would be");
}

static void air_has_the_bytes_that_its_checkpoint_has(void **state)
{
	const struct memplan p = air_on(1, "96GB", 131072);

	(void)state;
	/* 128 experts of 45 layers, three matrices of 4096 x 1408 at 4.5 bits */
	assert_int_equal(p.part_bytes[MEMPLAN_EXPERTS], 45ull * 128 * 3 * 4096 * 1408 * 9 / 16);
	assert_int_equal(p.part_bytes[MEMPLAN_ATTENTION],
			 46ull * (4096 * 12288 * 2 + 2 * 4096 * 1024) * 2);
	assert_int_equal(p.part_bytes[MEMPLAN_SHARED], 45ull * 3 * 4096 * 1408 * 2);
	assert_int_equal(p.part_bytes[MEMPLAN_DENSE], 3ull * 4096 * 10944 * 2);
	assert_int_equal(p.part_bytes[MEMPLAN_HEAD], 151552ull * 4096 * 2);
	assert_int_equal(p.part_bytes[MEMPLAN_EMBEDDING], 151552ull * 4096 * 2);
	assert_int_equal(p.page_bytes, 12058624);
	assert_int_equal(p.group_pages, 4);
	assert_int_equal(p.part_bytes[MEMPLAN_KV], 23 * GIB);
	assert_true((double)p.weights_bytes / GIB > 65.6 && (double)p.weights_bytes / GIB < 65.7);
}

static void air_fits_with_room_to_spare(void **state)
{
	static const struct {
		uint32_t n_gpus;
		const char *card;
		uint32_t context;
		double spare;
	} bars[] = {
		{ 1, "96GB", 131072, 2.0 }, { 2, "48GB", 131072, 2.0 }, { 4, "24GB", 131072, 0.3 },
		{ 1, "96GB", 65536, 2.0 },  { 2, "48GB", 65536, 2.0 },	{ 4, "24GB", 65536, 2.0 },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bars); i++) {
		const struct memplan p = air_on(bars[i].n_gpus, bars[i].card, bars[i].context);

		assert_true((double)p.spare_bytes >= bars[i].spare * GIB);
		assert_int_equal(p.total_bytes + p.spare_bytes, p.limits.card_bytes);
		assert_int_equal(memplan_fits(&p, NULL), 0);
		assert_int_equal(p.context_fits, 131072);
	}
}

static void the_largest_steps_that_can_be_set_fit_too(void **state)
{
	static const struct {
		uint32_t n_gpus;
		const char *card;
		double spare;
	} bars[] = {
		{ 1, "96GB", 2.0 },
		{ 2, "48GB", 2.0 },
		{ 4, "24GB", 0.3 },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bars); i++) {
		struct memplan_limits l = limits_of(bars[i].n_gpus, bars[i].card, 131072);
		struct memplan_model air;
		struct memplan p;

		l.max_rows = 64;
		l.batch_tokens = 2048;
		memplan_air(&air);
		assert_int_equal(memplan_make(&air, &l, &p, NULL), 0);
		assert_true((double)p.spare_bytes >= bars[i].spare * GIB);
	}
}

static void what_does_not_fit_is_refused_with_the_context_that_would(void **state)
{
	struct memplan p = air_on(1, "80GB", 131072), less;
	struct err err = { 0 };
	char end[64];

	(void)state;
	assert_true(p.spare_bytes < 0);
	assert_int_equal(memplan_fits(&p, &err), -ENOSPC);
	assert_non_null(
		strstr(err.text, "131072 tokens of context do not fit: each GPU wants 10."));
	snprintf(end, sizeof(end), "; %u tokens would fit", p.context_fits);
	assert_non_null(strstr(err.text, end));
	assert_true(p.context_fits > 60000 && p.context_fits < 80000);

	/* so many do, and a page more does not */
	less = air_on(1, "80GB", p.context_fits);
	assert_int_equal(memplan_fits(&less, NULL), 0);
	less = air_on(1, "80GB", p.context_fits + 4 * 64);
	assert_int_equal(memplan_fits(&less, NULL), -ENOSPC);
}

static void where_the_weights_alone_do_not_fit_that_is_said(void **state)
{
	struct memplan p = air_on(2, "24GB", 65536);
	struct err err = { 0 };

	(void)state;
	assert_int_equal(p.context_fits, 0);
	assert_int_equal(memplan_fits(&p, &err), -ENOSPC);
	assert_non_null(strstr(err.text, "no context fits: each GPU wants 15."));
}

static void what_cannot_be_divided_is_named(void **state)
{
	struct memplan_limits l = limits_of(8, "24GB", 65536);
	struct memplan_model air;
	struct err err = { 0 };
	struct memplan p;

	(void)state;
	memplan_air(&air);
	assert_int_equal(memplan_make(&air, &l, &p, &err), -ENOTSUP);
	assert_string_equal(err.text,
			    "1408 columns of the routed experts cannot be divided among 8 GPUs in "
			    "multiples of 32");
	l.n_gpus = 3;
	assert_int_equal(memplan_make(&air, &l, &p, &err), -ENOTSUP);
	assert_string_equal(
		err.text,
		"96 heads with 8 heads of keys and values cannot be divided among 3 GPUs");
	l.n_gpus = 9;
	assert_int_equal(memplan_make(&air, &l, &p, &err), -EINVAL);
	l.n_gpus = 0;
	assert_int_equal(memplan_make(&air, &l, &p, &err), -EINVAL);
}

static void ranks_together_hold_the_model_once_and_little_twice(void **state)
{
	const struct memplan one = air_on(1, "96GB", 65536), four = air_on(4, "24GB", 65536);

	(void)state;
	for (int i = 0; i < MEMPLAN_WEIGHTS_END; i++) {
		if (i == MEMPLAN_SMALL)
			continue;
		assert_true(4 * four.part_bytes[i] >= one.part_bytes[i]);
		assert_true(4 * four.part_bytes[i] <= one.part_bytes[i] + one.part_bytes[i] / 100);
	}
	assert_int_equal(4 * four.part_bytes[MEMPLAN_KV], one.part_bytes[MEMPLAN_KV]);
	assert_int_equal(four.group_pages, 16);
}

/* Every buffer against its formula, written out anew for one pass of Air. */
static void buffers_hold_what_a_pass_puts_into_them(void **state)
{
	const struct memplan_limits l = limits_of(1, "96GB", 131072);
	struct lifetime b[MEMPLAN_BUFFERS];
	struct memplan_model air;

	(void)state;
	memplan_air(&air);
	memplan_buffers(&air.config, &l, 512, b);
	assert_int_equal(b[MEMPLAN_HIDDEN].bytes, 512 * 4096 * 4);
	assert_int_equal(b[MEMPLAN_Q].bytes, 512 * 96 * 128 * 4);
	assert_int_equal(b[MEMPLAN_K].bytes, 512 * 8 * 128 * 4);
	assert_int_equal(b[MEMPLAN_SUMMED].bytes, 0);
	assert_int_equal(b[MEMPLAN_SCORES].bytes, 512 * 128 * 4);
	assert_int_equal(b[MEMPLAN_CHOSEN].bytes, 512 * 8 * 8);
	assert_int_equal(b[MEMPLAN_LISTS].bytes, (512 * 8 + 128 * 8 + 129) * 4);
	assert_int_equal(b[MEMPLAN_ACTIVATED].bytes, 512 * MAX(8 * 1408, 10944) * 4);
	assert_int_equal(b[MEMPLAN_PLAIN].bytes, 3 * 4096 * 1408 * 2);
	assert_int_equal(b[MEMPLAN_LOGITS].bytes, 32 * 151552 * 4);
	/* what a pass reads while it writes is not where it writes */
	lifetimes_place(b, MEMPLAN_BUFFERS, MEMPLAN_BUFFER_ALIGN);
	assert_true(b[MEMPLAN_Q].at + b[MEMPLAN_Q].bytes <= b[MEMPLAN_ATTENDED].at ||
		    b[MEMPLAN_ATTENDED].at + b[MEMPLAN_ATTENDED].bytes <= b[MEMPLAN_Q].at);
}

/* Shapes far beyond Air's: nothing wraps, nothing is capped, all grow with what they are for. */
static void no_number_of_experts_overflows_a_buffer(void **state)
{
	static const uint32_t experts[] = { 1, 8, 128, 129, 256, 1024 };
	struct memplan_limits l = limits_of(1, "141GB", 4096);
	struct lifetime b[MEMPLAN_BUFFERS];
	struct memplan_model m;

	(void)state;
	memplan_air(&m);
	l.batch_tokens = 2048;
	for (size_t i = 0; i < ARRAY_SIZE(experts); i++) {
		m.config.experts = experts[i];
		m.config.top_k = MIN(experts[i], 64);
		memplan_buffers(&m.config, &l, 2048, b);
		/* each row in each of its experts' lists, the last of each list padded to 8 */
		assert_true(b[MEMPLAN_LISTS].bytes / 4 >=
			    2048ull * m.config.top_k + 7ull * experts[i] + experts[i] + 1);
		assert_true(b[MEMPLAN_SCORES].bytes >= 2048ull * experts[i] * 4);
		assert_true(b[MEMPLAN_ACTIVATED].bytes >= 2048ull * m.config.top_k * 1408 * 4);
	}
	m.config.ffn_dim = 1u << 20;
	m.config.vocab = 1u << 24;
	m.config.dim = 1u << 16;
	l.max_rows = 64;
	memplan_buffers(&m.config, &l, 2048, b);
	assert_int_equal(b[MEMPLAN_HIDDEN].bytes, 2048ull << 18);
	assert_int_equal(b[MEMPLAN_LOGITS].bytes, 64ull << 26);
	assert_true(lifetimes_place(b, MEMPLAN_BUFFERS, MEMPLAN_BUFFER_ALIGN) != SIZE_MAX);
}

static void the_workspace_is_that_of_the_largest_pass_and_near_the_least(void **state)
{
	const struct memplan p = air_on(1, "96GB", 131072);
	struct lifetime b[MEMPLAN_BUFFERS];
	struct memplan_model air;

	(void)state;
	memplan_air(&air);
	assert_int_equal(p.n_passes, 7); /* 1, 2, 4, 8, 16, 32 rows, and 512 tokens */
	for (uint32_t i = 0; i < p.n_passes; i++) {
		const struct memplan_pass *pass = &p.passes[i];

		assert_int_equal(pass->decode, i < 6);
		assert_true(pass->bytes <= p.part_bytes[MEMPLAN_WORKSPACE]);
		memplan_buffers(&air.config, &p.limits, pass->tokens, b);
		assert_true(pass->bytes <= lifetimes_floor(b, MEMPLAN_BUFFERS, 256) * 1.05);
	}
}

static void a_checkpoint_is_planned_by_its_own_tensors(void **state)
{
	const char *top = getenv("srcdir");
	struct memplan_limits l = limits_of(1, "1GiB", 1024);
	_cleanup_(checkpoint_freep) struct checkpoint *ck = NULL;
	struct memplan_model m;
	struct err err = { 0 };
	struct memplan p;
	char path[4096];

	(void)state;
	snprintf(path, sizeof(path), "%s/tests/golden/air", top ? top : ".");
	if (checkpoint_open(path, &ck, &err) < 0)
		fail_msg("%s", err.text);
	m = (struct memplan_model){ .name = "air", .config = ck->config, .checkpoint = ck };
	assert_int_equal(memplan_make(&m, &l, &p, &err), 0);
	assert_int_equal(memplan_fits(&p, &err), 0);
	/* 16 experts of 3 layers, int4 in groups of 32 */
	assert_int_equal(p.part_bytes[MEMPLAN_EXPERTS], 3 * 16 * 3 * 128 * 64 * 9 / 16);
	/* as a whole: the file's bytes, F32 where it has BF16 vectors, and padding */
	assert_true(p.weights_bytes > ck->bytes && p.weights_bytes < 2 * ck->bytes + (4u << 20));
}

static void a_plan_can_be_read(void **state)
{
	const struct memplan p = air_on(4, "24GB", 131072);
	char text[8192] = "";
	struct memplan_model air;
	FILE *f = fmemopen(text, sizeof(text) - 1, "w");

	(void)state;
	memplan_air(&air);
	assert_non_null(f);
	memplan_print(&p, &air, f);
	fclose(f);
	assert_non_null(strstr(text, "GPUs               4, 23.550 GiB each\n"));
	assert_non_null(strstr(text, "  KV cache                     5.750 GiB  2048 pages of "
				     "2.875 MiB, in groups of 16\n"));
	assert_non_null(strstr(text, "longest context    131072 tokens\n"));
	assert_non_null(strstr(text, "  NCCL "));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_card_has_what_it_is_sold_for_less_what_its_driver_keeps),
		cmocka_unit_test(what_is_no_size_is_refused),
		cmocka_unit_test(air_has_the_bytes_that_its_checkpoint_has),
		cmocka_unit_test(air_fits_with_room_to_spare),
		cmocka_unit_test(the_largest_steps_that_can_be_set_fit_too),
		cmocka_unit_test(what_does_not_fit_is_refused_with_the_context_that_would),
		cmocka_unit_test(where_the_weights_alone_do_not_fit_that_is_said),
		cmocka_unit_test(what_cannot_be_divided_is_named),
		cmocka_unit_test(ranks_together_hold_the_model_once_and_little_twice),
		cmocka_unit_test(buffers_hold_what_a_pass_puts_into_them),
		cmocka_unit_test(no_number_of_experts_overflows_a_buffer),
		cmocka_unit_test(the_workspace_is_that_of_the_largest_pass_and_near_the_least),
		cmocka_unit_test(a_checkpoint_is_planned_by_its_own_tensors),
		cmocka_unit_test(a_plan_can_be_read),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
