/*
 * The handles of ranks, their barrier, and how they show one another where
 * something is; what moves data is the backend's.
 */
#include <errno.h>
#include <stdlib.h>

#include "kernels/comm-ranks.h"
#include "kernels/wait.h"

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
		void *native; /* the backend's */
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
	if (!comm)
		return NULL;
	for (uint32_t i = 0; i < comm->group->n_ranks; i++)
		if (comm->group->ranks[i].native)
			comm_leave(comm->group->ranks[i].native, comm->group->failed);
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

int comm_show(struct comm *comm, void *data, size_t count)
{
	const struct group *g = comm->group;
	int r;

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

void *comm_shown(const struct comm *comm, uint32_t rank)
{
	return comm->group->ranks[rank].data;
}

void **comm_native(struct comm *comm)
{
	return &comm->native;
}
