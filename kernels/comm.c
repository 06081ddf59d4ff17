/*
 * Ranks that share the host's memory. One barrier carries everything: before it
 * a rank says where its data is, behind it each works on a run of all ranks'
 * data that nobody else touches.
 */
#include "kernels/comm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/wait.h"

#define LINE_FLOATS 16 /* runs begin at a cache line of everybody's data, if that does */

/* Each word that ranks spin on has a cache line of its own. */
struct group {
	_Alignas(64) _Atomic uint32_t epoch;   /* bumped by the last to arrive */
	_Alignas(64) _Atomic uint32_t arrived; /* in this epoch */
	_Alignas(64) _Atomic uint32_t sleepers;
	_Atomic bool failed;
	uint32_t n_ranks;
	struct comm {
		_Alignas(64) struct group *group;
		uint32_t rank;
		/* what it brought to the call under way; written before a barrier, read behind it */
		void *data;
		size_t count;
	} ranks[COMM_RANKS_MAX];
};

int comm_open(uint32_t n_ranks, struct comm **ret)
{
	struct group *g;

	if (n_ranks == 0 || n_ranks > COMM_RANKS_MAX)
		return -EINVAL;
	g = aligned_alloc(64, sizeof(*g));
	if (!g)
		return -ENOMEM;
	*g = (struct group){ .n_ranks = n_ranks };
	for (uint32_t i = 0; i < n_ranks; i++) {
		g->ranks[i].group = g;
		g->ranks[i].rank = i;
		ret[i] = &g->ranks[i];
	}
	return 0;
}

struct comm *comm_close(struct comm *comm)
{
	if (comm)
		free(comm->group);
	return NULL;
}

uint32_t comm_rank(const struct comm *comm)
{
	return comm->rank;
}

uint32_t comm_ranks(const struct comm *comm)
{
	return comm->group->n_ranks;
}

static void go_on(struct group *g)
{
	atomic_fetch_add(&g->epoch, 1);
	if (atomic_load(&g->sleepers))
		wait_wake(&g->epoch);
}

int comm_barrier(struct comm *comm)
{
	struct group *g = comm->group;
	const uint32_t epoch = atomic_load(&g->epoch);

	/* behind the epoch, so that a failure in between is either seen here or has bumped it */
	if (atomic_load(&g->failed))
		return -EIO;
	if (atomic_fetch_add(&g->arrived, 1) + 1 == g->n_ranks) {
		atomic_store(&g->arrived, 0);
		go_on(g);
	} else {
		wait_while(&g->epoch, epoch, &g->sleepers);
	}
	return atomic_load(&g->failed) ? -EIO : 0;
}

void comm_fail(struct comm *comm)
{
	atomic_store(&comm->group->failed, true);
	go_on(comm->group);
}

/* Shows the others @data, and sees theirs. */
static int meet(struct comm *comm, struct stream *st, void *data, size_t count)
{
	const struct group *g = comm->group;
	int r;

	if (!dev_is_host(st_dev(st)))
		return -EINVAL;
	comm->data = data;
	comm->count = count;
	r = comm_barrier(comm);
	for (uint32_t i = 0; r == 0 && i < g->n_ranks; i++)
		if (g->ranks[i].count != count)
			r = -EINVAL;
	if (r == -EINVAL)
		comm_fail(comm);
	return r;
}

static void add(float *restrict y, const float *restrict x, size_t n)
{
	for (size_t i = 0; i < n; i++)
		y[i] += x[i];
}

int comm_sum(struct comm *comm, struct stream *st, float *y, size_t n)
{
	const struct group *g = comm->group;
	const size_t lines = (n + LINE_FLOATS - 1) / LINE_FLOATS;
	const size_t from = lines * comm->rank / g->n_ranks * LINE_FLOATS;
	const size_t end = lines * (comm->rank + 1) / g->n_ranks * LINE_FLOATS;
	const size_t some = (end < n ? end : n) - from;
	float *sum;
	int r;

	if (g->n_ranks == 1)
		return 0;
	r = meet(comm, st, y, n);
	if (r < 0)
		return r;
	if (some > 0) {
		sum = (float *)g->ranks[0].data + from;
		for (uint32_t i = 1; i < g->n_ranks; i++)
			add(sum, (const float *)g->ranks[i].data + from, some);
		for (uint32_t i = 1; i < g->n_ranks; i++)
			memcpy((float *)g->ranks[i].data + from, sum, some * sizeof(*sum));
	}
	return comm_barrier(comm);
}

int comm_gather(struct comm *comm, struct stream *st, void *to, const void *from, size_t bytes)
{
	const struct group *g = comm->group;
	const int r = meet(comm, st, (void *)from, bytes);

	if (r < 0)
		return r;
	for (uint32_t i = 0; bytes > 0 && i < g->n_ranks; i++)
		memcpy((char *)to + i * bytes, g->ranks[i].data, bytes);
	return comm_barrier(comm); /* nobody's data changes before all have it */
}

int comm_broadcast(struct comm *comm, struct stream *st, void *data, size_t bytes, uint32_t root)
{
	const struct group *g = comm->group;
	int r;

	if (root >= g->n_ranks)
		return -EINVAL;
	r = meet(comm, st, data, bytes);
	if (r < 0)
		return r;
	if (comm->rank != root && bytes > 0)
		memcpy(data, g->ranks[root].data, bytes);
	return comm_barrier(comm);
}
