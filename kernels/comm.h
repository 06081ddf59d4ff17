/*
 * What the ranks of one model say to one another: every rank has a part of each
 * matrix, and the parts of a sum, or the pieces of a vector, come together here.
 *
 * A rank is a thread of this process with a device of its own; its handle is
 * used by that thread alone. A call is collective: all ranks make the same
 * calls in the same order with the same counts, each on its own stream, and
 * none has its result before all have called. One that was called with another
 * count than the others fails on all of them, and so does everything after it.
 *
 * On CPUs ranks share the host's memory, and a call is complete when it
 * returns. On GPUs the data is in the memory of each rank's own, and NCCL, which
 * is loaded when the ranks join, moves it in the order of their streams.
 *
 * A rank that waits for the others spins as the threads of a device do
 * (kernels/wait.h), then sleeps for as long as it takes: ranks that wait for work
 * cost nothing.
 *
 * All calls return 0; -EINVAL for counts that differ, which NCCL does not find;
 * or -EIO once any rank has failed.
 */
#pragma once

#include "kernels/backend.h"

#define COMM_RANKS_MAX 8

struct comm;

/* Makes the handles of @n_ranks, 1 … COMM_RANKS_MAX, in ret[n_ranks]. 0, -EINVAL or -ENOMEM. */
int comm_open(uint32_t n_ranks, struct comm **ret);
/* Frees all handles, of which @comm is any. Nobody is in a call, or will be. Returns NULL. */
struct comm *comm_close(struct comm *comm);

/*
 * Readies the device that this thread computes on for the three calls below;
 * once, before them. -ENOTSUP if what they need is not installed; comm_why() says
 * it in words, until it is asked again by this thread.
 */
int comm_join(struct comm *comm, struct stream *st);
const char *comm_why(void);

uint32_t comm_rank(const struct comm *comm);
uint32_t comm_ranks(const struct comm *comm);

/*
 * y[i] = sum over the ranks r, rising, of what y[i] is on rank r
 *
 * y	F32 [n], another one on each rank
 *
 * In F32, one addition after the other: all ranks have the same bits, and they
 * do not depend on n; with NCCL the order is its own. n may be 0.
 */
int comm_sum(struct comm *comm, struct stream *st, float *y, size_t n);

/*
 * to[r * bytes …] = what @from is on rank r, for all of them
 *
 * to	bytes * n_ranks, which no rank's @from overlaps
 */
int comm_gather(struct comm *comm, struct stream *st, void *to, const void *from, size_t bytes);

/* @data of rank @root, which all name alike, to @data of the others. */
int comm_broadcast(struct comm *comm, struct stream *st, void *data, size_t bytes, uint32_t root);

/* Returns when all have called: what each wrote before, the others see after. */
int comm_barrier(struct comm *comm);

/* Lets all that wait, and all calls to come, fail with -EIO. From any thread, any number of times. */
void comm_fail(struct comm *comm);
