/* Which heads, rows, columns and tokens belong to which rank. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/exec/weights/memplan.h"
#include "daemon/exec/weights/share.h"

static struct config air(void)
{
	struct memplan_model m;

	memplan_air(&m);
	return m.config;
}

static void the_shares_of_air_are_whole_heads_and_strips(void **state)
{
	const struct config c = air();
	struct share s;

	(void)state;
	assert_int_equal(share_make(&c, 3, 4, "ranks", &s, NULL), 0);
	assert_int_equal(s.rank, 3);
	assert_int_equal(s.n_ranks, 4);
	assert_int_equal(s.heads, 24);
	assert_int_equal(s.kv_heads, 2);
	assert_int_equal(s.first_kv_head, 6);
	assert_int_equal(s.ffn_dim, 2736);
	assert_int_equal(s.moe_ffn_dim, 352);
	assert_int_equal(s.shared_ffn_dim, 352);
	assert_int_equal(s.first_vocab, 113664);
	assert_int_equal(s.vocab, 37888);

	assert_int_equal(share_make(&c, 0, 1, "ranks", &s, NULL), 0);
	assert_int_equal(s.heads, 96);
	assert_int_equal(s.kv_heads, 8);
	assert_int_equal(s.first_vocab, 0);
	assert_int_equal(s.vocab, 151552);
}

static void parts_are_what_a_strip_or_a_group_allows(void **state)
{
	struct share_part p;
	uint32_t unit = 0;

	(void)state;
	/* down of Air's experts: 1408 = 44 groups */
	assert_int_equal(share_matrix(4096, 1408, WEIGHT_INT4, SPLIT_COLS, 1, 4, &p, &unit), 0);
	assert_int_equal(p.first_row, 0);
	assert_int_equal(p.rows, 4096);
	assert_int_equal(p.first_col, 352);
	assert_int_equal(p.cols, 352);
	assert_int_equal(share_matrix(4096, 1408, WEIGHT_INT4, SPLIT_COLS, 0, 8, &p, &unit),
			 -ENOTSUP);
	assert_int_equal(unit, 32);
	assert_int_equal(share_matrix(4096, 1408, WEIGHT_INT4_F32, SPLIT_COLS, 0, 8, &p, NULL),
			 -ENOTSUP);
	/* as bf16 176 columns are whole strips of what they are multiplied with */
	assert_int_equal(share_matrix(4096, 1408, WEIGHT_BF16, SPLIT_COLS, 7, 8, &p, NULL), 0);
	assert_int_equal(p.first_col, 1232);
	assert_int_equal(p.cols, 176);
	/* gate and up of them */
	assert_int_equal(share_matrix(1408, 4096, WEIGHT_INT4, SPLIT_ROWS, 7, 8, &p, NULL), 0);
	assert_int_equal(p.first_row, 1232);
	assert_int_equal(p.rows, 176);
	assert_int_equal(share_matrix(1408, 4096, WEIGHT_INT4, SPLIT_ROWS, 0, 3, &p, &unit),
			 -ENOTSUP);
	assert_int_equal(unit, 16);
	/* a router is everybody's */
	assert_int_equal(share_matrix(10, 33, WEIGHT_F32, SPLIT_NOT, 2, 3, &p, NULL), 0);
	assert_int_equal(p.rows, 10);
	assert_int_equal(p.cols, 33);
}

static void a_vocabulary_is_cut_at_strips_without_gap(void **state)
{
	static const uint32_t sizes[] = { 17, 112, 113, 128, 500, 512, 1009, 6064, 151552 };

	(void)state;
	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		for (uint32_t n = 1; n <= SHARE_RANKS_MAX; n++) {
			uint32_t next = 0, most = 0;
			struct share_part p;
			int r = 0;

			for (uint32_t rank = 0; r == 0 && rank < n; rank++) {
				r = share_matrix(sizes[i], 64, WEIGHT_BF16, SPLIT_VOCAB, rank, n,
						 &p, NULL);
				if (r < 0)
					break;
				assert_int_equal(p.first_row, next);
				assert_int_equal(p.first_row % 16, 0);
				assert_true(p.rows > 0);
				next += p.rows;
				if (rank < n - 1)
					most = most < p.rows ? p.rows : most;
			}
			if ((sizes[i] + 15) / 16 < n) {
				assert_int_equal(r, -ENOTSUP);
				continue;
			}
			assert_int_equal(r, 0);
			assert_int_equal(next, sizes[i]);
			/* the last is the largest, as memory is planned */
			assert_true((p.rows + 15) / 16 * 16 >= most);
		}
	}
}

static void what_cannot_be_divided_is_said_with_the_numbers(void **state)
{
	struct config c = air();
	struct err err = { 0 };
	struct share s;

	(void)state;
	assert_int_equal(share_make(&c, 0, 3, "ranks", &s, &err), -ENOTSUP);
	assert_string_equal(err.text, "96 heads with 8 heads of keys and values cannot be divided "
				      "among 3 ranks");
	c.vocab = 48;
	assert_int_equal(share_make(&c, 0, 4, "ranks", &s, &err), -ENOTSUP);
	assert_string_equal(err.text, "a vocabulary of 48 cannot be divided among 4 ranks in "
				      "multiples of 16");
	assert_int_equal(share_make(&c, 2, 2, "ranks", &s, &err), -EINVAL);
	assert_int_equal(share_make(&c, 0, 9, "ranks", &s, &err), -EINVAL);
	assert_int_equal(share_make(&c, 0, 0, "ranks", &s, &err), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_shares_of_air_are_whole_heads_and_strips),
		cmocka_unit_test(parts_are_what_a_strip_or_a_group_allows),
		cmocka_unit_test(a_vocabulary_is_cut_at_strips_without_gap),
		cmocka_unit_test(what_cannot_be_divided_is_said_with_the_numbers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
