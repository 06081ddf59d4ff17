/* What ranks say to one another, each on a thread of its own. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/comm.h"

#define RANKS 8
#define FLOATS_MAX 5000
#define ROUNDS 300

/* A rank's part of a test; what it finds is told to the main thread, which alone may fail. */
struct rank {
	struct comm *comm;
	struct stream *st;
	pthread_t thread;
	void *(*part)(void *rank);
	float y[FLOATS_MAX], all[RANKS * 4];
	size_t n;
	uint32_t n_ranks, number, n_wrong;
	int r;
};

static struct rank ranks[RANKS];
static struct dev *dev;
static struct stream *st;

static int setup(void **state)
{
	(void)state;
	return dev_open(ISA_PORTABLE, 1, &dev) < 0 || st_open(dev, 0, &st) < 0;
}

static int teardown(void **state)
{
	(void)state;
	st_close(st);
	dev_close(dev);
	return 0;
}

static void open_ranks(uint32_t n_ranks, size_t n, void *(*part)(void *rank))
{
	struct comm *comms[RANKS];

	assert_int_equal(comm_open(n_ranks, comms), 0);
	for (uint32_t i = 0; i < n_ranks; i++) {
		assert_int_equal(comm_rank(comms[i]), i);
		assert_int_equal(comm_ranks(comms[i]), n_ranks);
		ranks[i].comm = comms[i];
		ranks[i].st = st;
		ranks[i].part = part;
		ranks[i].n = n;
		ranks[i].n_ranks = n_ranks;
		ranks[i].number = i;
		ranks[i].n_wrong = 0;
		ranks[i].r = 0;
	}
}

static void start(uint32_t i)
{
	assert_int_equal(pthread_create(&ranks[i].thread, NULL, ranks[i].part, &ranks[i]), 0);
}

static void end(uint32_t i)
{
	assert_int_equal(pthread_join(ranks[i].thread, NULL), 0);
}

static void run_all(uint32_t n_ranks)
{
	for (uint32_t i = 0; i < n_ranks; i++)
		start(i);
	for (uint32_t i = 0; i < n_ranks; i++)
		end(i);
}

/* Of sizes that show in which order they were added: (1e8 + 1) + … is not 1e8 + (1 + …). */
static float part_of(uint32_t rank, size_t i)
{
	return (rank % 2 ? 1.25f : 1e8f) * (rank % 3 ? 1 : -1) + (float)(i % 97) * 0.37f;
}

static void *add_up(void *userdata)
{
	struct rank *rank = userdata;

	for (uint32_t round = 0; rank->r == 0 && round < 3; round++) {
		for (size_t i = 0; i < FLOATS_MAX; i++)
			rank->y[i] = part_of(rank->number, i + round);
		rank->r = comm_sum(rank->comm, rank->st, rank->y, rank->n);
		for (size_t i = 0; i < FLOATS_MAX; i++) {
			float want = part_of(i < rank->n ? 0 : rank->number, i + round);

			for (uint32_t k = 1; i < rank->n && k < rank->n_ranks; k++)
				want += part_of(k, i + round);
			rank->n_wrong += memcmp(&rank->y[i], &want, sizeof(want)) != 0;
		}
	}
	return NULL;
}

static void sums_are_of_all_ranks_in_their_order(void **state)
{
	static const size_t sizes[] = { 0, 1, 15, 16, 17, 31, 100, 128, 1000, 4999 };

	(void)state;
	for (uint32_t n_ranks = 1; n_ranks <= RANKS; n_ranks++) {
		for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
			open_ranks(n_ranks, sizes[i], add_up);
			run_all(n_ranks);
			for (uint32_t k = 0; k < n_ranks; k++) {
				assert_int_equal(ranks[k].r, 0);
				assert_int_equal(ranks[k].n_wrong, 0);
			}
			comm_close(ranks[0].comm);
		}
	}
}

/* Every round the roots take turns, and nobody may see the round before or after. */
static void *tell(void *userdata)
{
	struct rank *rank = userdata;

	for (uint32_t round = 0; rank->r == 0 && round < ROUNDS; round++) {
		const uint32_t root = round % rank->n_ranks;
		float own[3] = { (float)rank->number, (float)round, 7 };

		rank->r = comm_gather(rank->comm, rank->st, rank->all, own, sizeof(own));
		for (uint32_t k = 0; k < rank->n_ranks; k++)
			rank->n_wrong += rank->all[3 * k] != (float)k ||
					 rank->all[3 * k + 1] != (float)round ||
					 rank->all[3 * k + 2] != 7;
		own[0] = (float)(100 * rank->number + round);
		if (rank->r == 0)
			rank->r = comm_broadcast(rank->comm, rank->st, own, sizeof(own), root);
		rank->n_wrong += own[0] != (float)(100 * root + round);
		if (rank->r == 0)
			rank->r = comm_broadcast(rank->comm, rank->st, NULL, 0, root);
	}
	return NULL;
}

static void pieces_reach_everybody_round_after_round(void **state)
{
	(void)state;
	for (uint32_t n_ranks = 1; n_ranks <= RANKS; n_ranks *= 2) {
		open_ranks(n_ranks, 0, tell);
		run_all(n_ranks);
		for (uint32_t k = 0; k < n_ranks; k++) {
			assert_int_equal(ranks[k].r, 0);
			assert_int_equal(ranks[k].n_wrong, 0);
		}
		assert_int_equal(comm_broadcast(ranks[0].comm, st, NULL, 0, n_ranks), -EINVAL);
		comm_close(ranks[0].comm);
	}
}

/* Behind a barrier all have written; n of rank 0 is what they look at. */
static void *count_up(void *userdata)
{
	struct rank *rank = userdata;

	for (uint32_t round = 1; rank->r == 0 && round <= ROUNDS; round++) {
		rank->n = round;
		rank->r = comm_barrier(rank->comm);
		for (uint32_t k = 0; k < rank->n_ranks; k++)
			rank->n_wrong += ranks[k].n != round;
		if (rank->r == 0)
			rank->r = comm_barrier(rank->comm);
	}
	return NULL;
}

static void behind_a_barrier_all_is_written(void **state)
{
	(void)state;
	open_ranks(4, 0, count_up);
	run_all(4);
	for (uint32_t k = 0; k < 4; k++) {
		assert_int_equal(ranks[k].r, 0);
		assert_int_equal(ranks[k].n_wrong, 0);
	}
	comm_close(ranks[0].comm);
}

static void *meet_once(void *userdata)
{
	struct rank *rank = userdata;

	rank->r = comm_sum(rank->comm, rank->st, rank->y, rank->n);
	return NULL;
}

static void one_that_fails_lets_nobody_wait(void **state)
{
	(void)state;
	open_ranks(4, 100, meet_once);
	for (uint32_t i = 0; i < 3; i++)
		start(i);
	comm_fail(ranks[3].comm); /* asleep or not yet there: they come back */
	comm_fail(ranks[3].comm);
	for (uint32_t i = 0; i < 3; i++) {
		end(i);
		assert_int_equal(ranks[i].r, -EIO);
	}
	assert_int_equal(comm_sum(ranks[3].comm, st, ranks[3].y, 100), -EIO);
	assert_int_equal(comm_barrier(ranks[3].comm), -EIO);
	comm_close(ranks[0].comm);
}

static void counts_that_differ_are_found(void **state)
{
	(void)state;
	open_ranks(3, 100, meet_once);
	ranks[1].n = 101;
	run_all(3);
	for (uint32_t i = 0; i < 3; i++)
		assert_true(ranks[i].r == -EINVAL || ranks[i].r == -EIO);
	assert_int_equal(comm_barrier(ranks[0].comm), -EIO);
	comm_close(ranks[0].comm);
}

static void there_are_one_to_eight_ranks(void **state)
{
	struct comm *comms[COMM_RANKS_MAX + 1];

	(void)state;
	assert_int_equal(comm_open(0, comms), -EINVAL);
	assert_int_equal(comm_open(COMM_RANKS_MAX + 1, comms), -EINVAL);
	assert_null(comm_close(NULL));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sums_are_of_all_ranks_in_their_order),
		cmocka_unit_test(pieces_reach_everybody_round_after_round),
		cmocka_unit_test(behind_a_barrier_all_is_written),
		cmocka_unit_test(one_that_fails_lets_nobody_wait),
		cmocka_unit_test(counts_that_differ_are_found),
		cmocka_unit_test(there_are_one_to_eight_ranks),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
