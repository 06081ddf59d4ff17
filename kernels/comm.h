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
 * The data of these ranks is in the host's memory, which all of them share. A
 * rank that waits spins as the threads of a device do (kernels/wait.h), then
 * sleeps for as long as it takes: ranks that wait for work cost nothing.
 *
 * All calls return 0; -EINVAL for counts that differ, or for a stream whose
 * memory is not the host's; or -EIO once any rank has failed.
 */
#pragma once

#include "kernels/backend.h"

#define COMM_RANKS_MAX 8

struct comm;

/* Makes the handles of @n_ranks, 1 … COMM_RANKS_MAX, in ret[n_ranks]. 0, -EINVAL or -ENOMEM. */
int comm_open(uint32_t n_ranks, struct comm **ret);
/* Frees all handles, of which @comm is any. Nobody is in a call, or will be. Returns NULL. */
struct comm *comm_close(struct comm *comm);

uint32_t comm_rank(const struct comm *comm);
uint32_t comm_ranks(const struct comm *comm);

/*
 * y[i] = sum over the ranks r, rising, of what y[i] is on rank r
 *
 * y	F32 [n], another one on each rank
 *
 * In F32, one addition after the other: all ranks have the same bits, and they
 * do not depend on n. n may be 0.
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
