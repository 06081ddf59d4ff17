/* What ranks on GPUs call of NCCL: against a library that writes it down. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

#include "kernels/cuda/comm-nccl.h"
#include "tests/cuemu/matrices.h"

extern "C" {
#include "kernels/comm.h"
}

#define RANKS 4
#define FAKE "tests/cuemu/.libs/fake-nccl.so"

static const char *(*fake_log)(int rank);
static void (*fake_forget)(void);

static int setup(void **state)
{
	void *library = dlopen(FAKE, RTLD_NOW);

	(void)state;
	if (!library) {
		print_error("%s\n", dlerror());
		return -1;
	}
	fake_log = (const char *(*)(int))dlsym(library, "fake_nccl_log");
	fake_forget = (void (*)(void))dlsym(library, "fake_nccl_forget");
	return fake_log && fake_forget ? 0 : -1;
}

/* A rank on a thread of its own; the main thread alone looks at what it found. */
struct rank {
	struct comm *comm;
	struct stream *st;
	pthread_t thread;
	void *(*part)(void *rank);
	float sums[100], pieces[2 * RANKS], told[3];
	int r[5];
	char why[256];
};

struct ranks {
	struct rig rig;
	struct rank of[RANKS];
	uint32_t n;

	ranks(uint32_t n_ranks, void *(*part)(void *rank)) : rig(4), of(), n(n_ranks)
	{
		struct comm *comms[COMM_RANKS_MAX];

		fake_forget();
		assert_int_equal(comm_open(n, comms), 0);
		for (uint32_t i = 0; i < n; i++) {
			of[i].comm = comms[i];
			of[i].part = part;
			assert_int_equal(st_open(rig.dev, 0, &of[i].st), 0);
		}
	}
	void run()
	{
		for (uint32_t i = 0; i < n; i++)
			assert_int_equal(pthread_create(&of[i].thread, NULL, of[i].part, &of[i]), 0);
		for (uint32_t i = 0; i < n; i++)
			assert_int_equal(pthread_join(of[i].thread, NULL), 0);
	}
	~ranks()
	{
		comm_close(of[0].comm);
		for (uint32_t i = 0; i < n; i++)
			st_close(of[i].st);
	}
};

static void *use_all(void *userdata)
{
	struct rank *rank = (struct rank *)userdata;
	const uint32_t number = comm_rank(rank->comm);
	const float own[2] = { (float)number, 7 };

	for (uint32_t i = 0; i < 100; i++)
		rank->sums[i] = (float)(number * 1000 + i);
	rank->told[0] = rank->told[1] = rank->told[2] = (float)number;
	rank->r[0] = comm_join(rank->comm, rank->st);
	rank->r[1] = comm_sum(rank->comm, rank->st, rank->sums, 100);
	rank->r[2] = comm_gather(rank->comm, rank->st, rank->pieces, own, sizeof(own));
	rank->r[3] = comm_broadcast(rank->comm, rank->st, rank->told, sizeof(rank->told),
				    comm_ranks(rank->comm) - 1);
	/* nothing is nothing to do */
	rank->r[4] = comm_sum(rank->comm, rank->st, NULL, 0);
	return NULL;
}

static void ranks_call_nccl_alike_each_on_its_stream(void **state)
{
	static const uint32_t counts[] = { 1, 2, 4 };

	(void)state;
	comm_nccl_library = FAKE;
	for (uint32_t n : counts) {
		char want[RANKS][1024];

		{
			struct ranks ranks(n, use_all);

			ranks.run();
			for (uint32_t i = 0; i < n; i++) {
				const struct rank *rank = &ranks.of[i];
				const void *stream = (const void *)rank->st->handle;

				for (int r : rank->r)
					assert_int_equal(r, 0);
				for (uint32_t k = 0; k < 100; k++)
					assert_true(rank->sums[k] ==
						    (float)(n * (n - 1) / 2 * 1000 + n * k));
				for (uint32_t k = 0; k < n; k++)
					assert_true(rank->pieces[2 * k] == (float)k &&
						    rank->pieces[2 * k + 1] == 7);
				assert_true(rank->told[2] == (float)(n - 1));
				snprintf(want[i], sizeof(want[i]),
					 "init %u of %u\n"
					 "all-reduce 100 type 7 op 0 in place on %p\n"
					 "all-gather 8 type 1 on %p\n"
					 "broadcast 12 type 1 from %u on %p\n"
					 "destroy\n",
					 i, n, stream, stream, n - 1, stream);
			}
		}
		for (uint32_t i = 0; i < n; i++)
			assert_string_equal(fake_log((int)i), want[i]);
	}
}

static void *fail_once(void *userdata)
{
	struct rank *rank = (struct rank *)userdata;
	const bool fails = comm_rank(rank->comm) == 1;

	rank->r[0] = comm_join(rank->comm, rank->st);
	/* the other waits for the host, as it does between steps */
	rank->r[1] = fails ? comm_sum(rank->comm, rank->st, rank->sums, 666) :
			     comm_barrier(rank->comm);
	snprintf(rank->why, sizeof(rank->why), "%s", comm_why());
	rank->r[2] = comm_barrier(rank->comm);
	return NULL;
}

static void a_call_that_fails_ends_all_ranks(void **state)
{
	(void)state;
	comm_nccl_library = FAKE;
	{
		struct ranks ranks(2, fail_once);

		ranks.run();
		assert_int_equal(ranks.of[1].r[1], -EIO);
		assert_string_equal(ranks.of[1].why, "NCCL: invalid usage");
		assert_int_equal(ranks.of[0].r[1], -EIO);
		assert_int_equal(ranks.of[0].r[2], -EIO);
	}
	assert_string_equal(fake_log(0), "init 0 of 2\nabort\n");
	assert_string_equal(fake_log(1), "init 1 of 2\nabort\n");
}

static void *join_and_add(void *userdata)
{
	struct rank *rank = (struct rank *)userdata;

	rank->r[0] = comm_join(rank->comm, rank->st);
	snprintf(rank->why, sizeof(rank->why), "%s", comm_why());
	if (rank->r[0] == 0)
		rank->r[1] = comm_sum(rank->comm, rank->st, rank->sums, 100);
	return NULL;
}

/* Of one rank: id, init, all-reduce. */
static void each_call_can_be_made_to_fail(void **state)
{
	(void)state;
	comm_nccl_library = FAKE;
	for (uint64_t nth = 1; nth <= 4; nth++) {
		struct ranks ranks(1, join_and_add);

		calls_fail(nth, cudaErrorUnknown, false);
		ranks.run();
		assert_int_equal(ranks.of[0].r[0], nth <= 2 ? -EIO : 0);
		assert_int_equal(ranks.of[0].r[1], nth == 3 ? -EIO : 0);
		calls_fail(0, cudaSuccess, false);
	}
}

static void without_the_library_ranks_cannot_join(void **state)
{
	(void)state;
	comm_nccl_library = "/nonexistent/libnccl.so.2";
	{
		struct ranks ranks(2, join_and_add);

		ranks.run();
		assert_int_equal(ranks.of[0].r[0], -ENOTSUP);
		assert_int_equal(ranks.of[1].r[0], -ENOTSUP);
		assert_non_null(strstr(ranks.of[0].why, "/nonexistent/libnccl.so.2"));
	}
	comm_nccl_library = "libm.so.6";
	{
		struct ranks ranks(1, join_and_add);

		ranks.run();
		assert_int_equal(ranks.of[0].r[0], -ENOTSUP);
		assert_string_equal(ranks.of[0].why, "'libm.so.6' has no ncclGetUniqueId");
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ranks_call_nccl_alike_each_on_its_stream),
		cmocka_unit_test(a_call_that_fails_ends_all_ranks),
		cmocka_unit_test(each_call_can_be_made_to_fail),
		cmocka_unit_test(without_the_library_ranks_cannot_join),
	};

	return cmocka_run_group_tests(tests, setup, NULL);
}
