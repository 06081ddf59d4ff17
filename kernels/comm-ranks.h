/*
 * What kernels/comm.c gives the backends, which implement comm_join(),
 * comm_why(), comm_sum(), comm_gather() and comm_broadcast() with it.
 */
#pragma once

#include "kernels/comm.h"

/*
 * Shows the others @data of the host's, and returns when all have shown theirs:
 * 0, -EINVAL if they differ in @count, or -EIO. It stays until the next call.
 */
int comm_show(struct comm *comm, void *data, size_t count);
void *comm_shown(const struct comm *comm, uint32_t rank);

/* A place for what the backend keeps of a rank; what is there is given back by comm_leave(). */
void **comm_native(struct comm *comm);
void comm_leave(void *native, bool failed); /* the backend's */
