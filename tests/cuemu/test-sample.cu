/* How much of a row of logits is read for a token; which token it is, is check-sample's matter. */
#include <math.h>

#include "tests/cuemu/matrices.h"

extern "C" {
#include "kernels/sample.h"
}

#define VOCAB 151552
#define ROWS 2

/* Sums of a few are about as normal as logits are. */
static std::vector<float> make_logits(void)
{
	std::vector<float> x((size_t)ROWS * VOCAB);

	for (float &logit : x)
		logit = 2 * (random_f32() + random_f32() + random_f32() + random_f32());
	return x;
}

/* Bytes read, against those of all logits. */
static double share_read(const struct sample_row &row)
{
	const struct op_limits limits = { .tokens = ROWS,
					  .dim = 32,
					  .heads = 1,
					  .kv_heads = 1,
					  .head_dim = 32,
					  .ffn_dim = 32,
					  .experts = 0,
					  .top_k = 0,
					  .vocab = VOCAB,
					  .max_context = 64,
					  .moe_ffn_dim = 0 };
	struct rig rig(4);
	const std::vector<float> logits = make_logits();
	const std::vector<struct sample_row> rows(ROWS, row);
	device_memory dlogits(logits.size() * 4, logits.data()), ids(ROWS * 4);
	device_memory drows(ROWS * sizeof(row), rows.data());
	const struct tensor t = batch(dlogits.at, ROWS, VOCAB);
	double share;

	assert_true(op_scratch(rig.dev, &limits) <= rig.st->scratch_bytes);
	cuemu_count(true);
	assert_int_equal(op_sample(rig.st, (uint32_t *)ids.at, &t, (struct sample_row *)drows.at),
			 0);
	share = (double)cuemu_counted().read_sectors * 32 / (double)dlogits.bytes;
	cuemu_count(false);
	for (uint32_t id : ids.read<uint32_t>(rig.st))
		assert_true(id < VOCAB - 100);
	return share;
}

static struct sample_row make_row(void)
{
	struct sample_row row = {};

	row.temperature = row.top_p = row.repetition = 1;
	row.seed = 7;
	row.vocab_real = VOCAB - 100;
	return row;
}

static void the_largest_is_found_in_one_reading(void **state)
{
	struct sample_row row = make_row();

	(void)state;
	row.temperature = 0;
	assert_true(share_read(row) <= 1.1);
}

static void what_is_cut_is_not_read_again(void **state)
{
	struct sample_row top_k = make_row(), min_p = make_row();

	(void)state;
	top_k.top_k = 40;
	assert_true(share_read(top_k) <= 1.3);
	min_p.min_p = 0.2;
	assert_true(share_read(min_p) <= 2);
}

static void a_draw_from_all_reads_them_a_few_times(void **state)
{
	struct sample_row all = make_row(), top_p = make_row();

	(void)state;
	assert_true(share_read(all) <= 6.5);
	top_p.top_p = 0.5;
	assert_true(share_read(top_p) <= 10.6);
}

static void more_rows_than_there_is_room_for_are_refused(void **state)
{
	struct rig rig(4, 227 << 10, 256 * 16 * 3);
	const struct tensor t = batch(&rig, 4, 300), many = batch(&rig, OP_SAMPLE_ROWS + 1, 300);

	(void)state;
	assert_int_equal(op_sample(rig.st, NULL, &t, NULL), -EINVAL);
	assert_int_equal(op_sample(rig.st, NULL, &many, NULL), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_largest_is_found_in_one_reading),
		cmocka_unit_test(what_is_cut_is_not_read_again),
		cmocka_unit_test(a_draw_from_all_reads_them_a_few_times),
		cmocka_unit_test(more_rows_than_there_is_room_for_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
