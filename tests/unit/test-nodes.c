/* Shares of strips and work by node, on two nodes that a made-up sysfs tells of. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "kernels/cpu/layout.h"
#include "kernels/cpu/nodes.h"
#include "kernels/linear.h"
#include "tests/unit/nodes-made-up.h"

#define UNITS_MAX 1000

static int make_nodes(void **state)
{
	(void)state;
	nodes_make();
	return 0;
}

static int remove_nodes(void **state)
{
	(void)state;
	nodes_remove();
	return 0;
}

static void threads_and_strips_are_dealt_alike(void **state)
{
	struct dev *dev;
	uint32_t from, to;

	(void)state;
	assert_int_equal(dev_open(ISA_PORTABLE, 4, &dev), 0);
	for (uint32_t i = 0; i < 4; i++)
		assert_int_equal(node_of_thread(dev, i), i / 2);
	node_share(dev, 0, 101, &from, &to);
	assert_true(from == 0 && to == 50);
	node_share(dev, 1, 101, &from, &to);
	assert_true(from == 50 && to == 101);
	dev_close(dev);

	assert_int_equal(dev_open(ISA_PORTABLE, 3, &dev), 0);
	node_share(dev, 0, 99, &from, &to);
	assert_true(from == 0 && to == (node_of_thread(dev, 1) == 0 ? 66 : 33));
	dev_close(dev);
}

static void one_thread_has_all_strips_whichever_node_it_is_of(void **state)
{
	struct dev *dev;
	uint32_t from, to, sum = 0;

	(void)state;
	assert_int_equal(dev_open(ISA_PORTABLE, 1, &dev), 0);
	for (uint32_t node = 0; node < 2; node++) {
		node_share(dev, node, 77, &from, &to);
		assert_true(to - from == (node == node_of_thread(dev, 0) ? 77 : 0));
		sum += to - from;
	}
	assert_int_equal(sum, 77);
	dev_close(dev);
}

static void a_node_takes_its_own_first_then_the_others(void **state)
{
	struct work_left w;
	struct dev *dev;
	uint32_t unit;

	(void)state;
	assert_int_equal(dev_open(ISA_PORTABLE, 4, &dev), 0);
	work_left_init(&w, dev, 7, 0, 1);
	for (uint32_t i = 3; i < 7; i++) {
		assert_int_equal(work_left_take(&w, 1, &unit), 1);
		assert_int_equal(unit, i);
	}
	for (uint32_t i = 0; i < 3; i++) {
		assert_int_equal(work_left_take(&w, 1 - i % 2, &unit), 1);
		assert_int_equal(unit, i);
	}
	assert_int_equal(work_left_take(&w, 0, &unit), 0);
	assert_int_equal(work_left_take(&w, 1, &unit), 0);
	work_left_init(&w, dev, 0, 9, 1);
	assert_int_equal(work_left_take(&w, 0, &unit), 0);
	dev_close(dev);
}

/* A thread of each node: half of what is left to it, of this work and of what comes after. */
static void runs_grow_shorter_to_the_end_of_all_work(void **state)
{
	static const uint32_t alone[] = { 20, 10, 5, 2, 1, 1, 1 };
	static const uint32_t before_others[] = { 25, 12, 3 };
	struct work_left w;
	struct dev *dev;
	uint32_t first, at = 0;

	(void)state;
	assert_int_equal(dev_open(ISA_PORTABLE, 2, &dev), 0);
	work_left_init(&w, dev, 80, 0, 100);
	for (size_t i = 0; i < sizeof(alone) / sizeof(*alone); i++) {
		assert_int_equal(work_left_take(&w, 0, &first), alone[i]);
		assert_int_equal(first, at);
		at += alone[i];
	}
	assert_int_equal(at, 40);
	assert_int_equal(work_left_take(&w, 1, &first), 20);
	work_left_init(&w, dev, 80, 20, 100);
	for (size_t i = 0; i < sizeof(before_others) / sizeof(*before_others); i++)
		assert_int_equal(work_left_take(&w, 0, &first), before_others[i]);
	work_left_init(&w, dev, 80, 1000, 12);
	assert_int_equal(work_left_take(&w, 0, &first), 12);
	work_left_init(&w, dev, 80, 1000, 100);
	assert_int_equal(work_left_take(&w, 0, &first), 40);
	dev_close(dev);
}

struct taking {
	struct work_left left;
	struct dev *dev;
	_Atomic uint32_t taken[UNITS_MAX];
};

static void take_all(void *userdata, uint32_t thread, uint32_t n_threads)
{
	struct taking *t = userdata;
	uint32_t unit, n;

	(void)n_threads;
	while ((n = work_left_take(&t->left, node_of_thread(t->dev, thread), &unit)))
		while (n--)
			t->taken[unit + n]++;
}

static void every_unit_is_taken_once(void **state)
{
	static struct taking t;

	(void)state;
	for (uint32_t threads = 1; threads <= 6; threads++) {
		assert_int_equal(dev_open(ISA_PORTABLE, threads, &t.dev), 0);
		for (uint32_t n = 0; n <= UNITS_MAX; n += 250) {
			memset(t.taken, 0, sizeof(t.taken));
			work_left_init(&t.left, t.dev, n, threads * 7, 1 + n / 3);
			dev_run(t.dev, take_all, &t);
			for (uint32_t i = 0; i < UNITS_MAX; i++)
				assert_int_equal(t.taken[i], i < n);
		}
		dev_close(t.dev);
	}
}

/* All of a part has memory behind it, and nothing beside it was written. */
static void expect_touched_alone(struct dev *dev)
{
	const size_t strip = 64 * 1024, huge = 2 << 20; /* 1024 columns of F32 */
	unsigned char resident[2 * 512];
	char *at;

	at = dev_reserve(dev, 2 * huge);
	assert_int_equal(dev_back(dev, at, 2 * huge), 0);
	madvise(at, 2 * huge, MADV_NOHUGEPAGE);
	at[10 * strip - 1] = at[50 * strip] = 7;
	weight_touch(dev, &(struct weight){ WEIGHT_F32, 640, 1024, at + 10 * strip }, 16, 1600);
	assert_true(at[10 * strip - 1] == 7 && at[50 * strip] == 7);
	assert_int_equal(mincore(at, 2 * huge, resident), 0);
	for (size_t i = 0; i < 1024; i++)
		assert_int_equal(resident[i] & 1, i >= 10 * 16 - 1 && i <= 50 * 16);
}

static void memory_is_touched_where_a_part_is_and_nowhere_else(void **state)
{
	struct dev *dev;

	(void)state;
	assert_int_equal(dev_open(ISA_PORTABLE, 4, &dev), 0);
	expect_touched_alone(dev);
	dev_close(dev);
}

/* The threads that pack may be anywhere: a rank's memory is its node's all the same. */
static void a_rank_has_the_threads_and_the_memory_of_its_node(void **state)
{
	struct dev *dev;

	(void)state;
	for (uint32_t rank = 0; rank < 2; rank++) {
		assert_int_equal(dev_open_rank(ISA_PORTABLE, 3, rank, 2, &dev), 0);
		assert_int_equal(dev_threads(dev), 3);
		assert_int_equal(pool_topology(dev->pool)->n_nodes, 1);
		assert_int_equal(pool_topology(dev->pool)->nodes[0].id, rank);
		expect_touched_alone(dev);
		dev_close(dev);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(threads_and_strips_are_dealt_alike),
		cmocka_unit_test(one_thread_has_all_strips_whichever_node_it_is_of),
		cmocka_unit_test(a_node_takes_its_own_first_then_the_others),
		cmocka_unit_test(runs_grow_shorter_to_the_end_of_all_work),
		cmocka_unit_test(every_unit_is_taken_once),
		cmocka_unit_test(memory_is_touched_where_a_part_is_and_nowhere_else),
		cmocka_unit_test(a_rank_has_the_threads_and_the_memory_of_its_node),
	};

	return cmocka_run_group_tests(tests, make_nodes, remove_nodes);
}
