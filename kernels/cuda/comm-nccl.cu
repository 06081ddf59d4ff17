/*
 * Ranks whose data is in the memory of a GPU each, by NCCL, of which only what
 * is used is declared: it is loaded by name, so that a program without several
 * GPUs does without it. Its calls go through the table of CUDA's (calls.h).
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/comm-nccl.h"
#include "kernels/cuda/cuda.h"

extern "C" {
#include "kernels/comm-ranks.h"
}

const char *comm_nccl_library = "libnccl.so.2";

/* nccl.h of NCCL 2 */
typedef struct ncclComm *nccl_comm;
struct nccl_id {
	char bytes[128];
};
enum { NCCL_SUCCESS = 0 };
enum { NCCL_UINT8 = 1, NCCL_FLOAT32 = 7 };
enum { NCCL_SUM = 0 };

struct nccl {
	int (*get_unique_id)(struct nccl_id *id);
	int (*comm_init_rank)(nccl_comm *ret, int n_ranks, struct nccl_id id, int rank);
	int (*comm_destroy)(nccl_comm comm);
	int (*comm_abort)(nccl_comm comm);
	int (*all_reduce)(const void *from, void *to, size_t n, int type, int op, nccl_comm comm,
			  cudaStream_t stream);
	int (*all_gather)(const void *from, void *to, size_t n, int type, nccl_comm comm,
			  cudaStream_t stream);
	int (*broadcast)(const void *from, void *to, size_t n, int type, int root, nccl_comm comm,
			 cudaStream_t stream);
	const char *(*get_error_string)(int result);
};

/* What comm_native() of a rank points to. */
struct native {
	const struct nccl *nccl;
	nccl_comm comm;
};

static thread_local char why[256] = "no error";

const char *comm_why(void)
{
	return why;
}

/* By rank 0 alone; what was loaded once stays. */
static const struct nccl *load(void)
{
	static struct nccl nccl;
	const struct {
		const char *name;
		void *at;
	} symbols[] = {
		{ "ncclGetUniqueId", &nccl.get_unique_id },
		{ "ncclCommInitRank", &nccl.comm_init_rank },
		{ "ncclCommDestroy", &nccl.comm_destroy },
		{ "ncclCommAbort", &nccl.comm_abort },
		{ "ncclAllReduce", &nccl.all_reduce },
		{ "ncclAllGather", &nccl.all_gather },
		{ "ncclBroadcast", &nccl.broadcast },
		{ "ncclGetErrorString", &nccl.get_error_string },
	};
	void *library = dlopen(comm_nccl_library, RTLD_NOW | RTLD_LOCAL);

	if (!library) {
		snprintf(why, sizeof(why), "%s", dlerror());
		return NULL;
	}
	for (const auto &symbol : symbols) {
		void *at = dlsym(library, symbol.name);

		if (!at) {
			snprintf(why, sizeof(why), "'%s' has no %s", comm_nccl_library,
				 symbol.name);
			return NULL;
		}
		memcpy(symbol.at, &at, sizeof(at));
	}
	return &nccl;
}

/* Makes one call of NCCL, or what calls_fail() wants instead. */
template <typename F> static int call(struct comm *comm, const struct nccl *nccl, F f)
{
	cudaError_t due;
	int result;

	if (calls_due(&due)) {
		snprintf(why, sizeof(why), "%s", cudaGetErrorString(due));
		calls_result(due);
		comm_fail(comm);
		return -EIO;
	}
	result = f();
	if (result == NCCL_SUCCESS)
		return 0;
	snprintf(why, sizeof(why), "NCCL: %s", nccl->get_error_string(result));
	comm_fail(comm);
	return -EIO;
}

struct invitation {
	const struct nccl *nccl; /* NULL: there is none */
	struct nccl_id id;
};

static int invite(struct comm *comm, struct invitation *ret)
{
	if (comm_rank(comm) != 0)
		return 0;
	ret->nccl = load();
	return ret->nccl ? call(comm, ret->nccl,
				[&] { return ret->nccl->get_unique_id(&ret->id); })
			 : 0;
}

int comm_join(struct comm *comm, struct stream *st)
{
	struct invitation own = {}, of_first;
	struct native *native;
	int r;

	(void)st; /* the device is the thread's */
	r = invite(comm, &own);
	if (r == 0)
		r = comm_show(comm, &own, sizeof(own));
	if (r < 0)
		return r;
	of_first = *(const struct invitation *)comm_shown(comm, 0);
	r = comm_barrier(comm); /* it is on rank 0's stack */
	if (r < 0)
		return r;
	if (!of_first.nccl) {
		if (comm_rank(comm) != 0)
			snprintf(why, sizeof(why), "rank 0 could not load '%s'",
				 comm_nccl_library);
		return -ENOTSUP;
	}
	native = (struct native *)calloc(1, sizeof(*native));
	if (!native) {
		comm_fail(comm);
		return -ENOMEM;
	}
	*comm_native(comm) = native;
	native->nccl = of_first.nccl;
	return call(comm, native->nccl, [&] {
		return native->nccl->comm_init_rank(&native->comm, (int)comm_ranks(comm),
						    of_first.id, (int)comm_rank(comm));
	});
}

/* One that waits for a rank that has failed does not end by itself. */
void comm_leave(void *of_rank, bool failed)
{
	struct native *native = (struct native *)of_rank;

	if (native->comm && failed)
		native->nccl->comm_abort(native->comm);
	else if (native->comm)
		native->nccl->comm_destroy(native->comm);
	free(native);
}

static const struct native *joined(struct comm *comm)
{
	return (const struct native *)*comm_native(comm);
}

int comm_sum(struct comm *comm, struct stream *st, float *y, size_t n)
{
	const struct native *native = joined(comm);

	if (n == 0)
		return 0;
	return call(comm, native->nccl, [&] {
		return native->nccl->all_reduce(y, y, n, NCCL_FLOAT32, NCCL_SUM, native->comm,
						st->handle);
	});
}

int comm_gather(struct comm *comm, struct stream *st, void *to, const void *from, size_t bytes)
{
	const struct native *native = joined(comm);

	if (bytes == 0)
		return 0;
	return call(comm, native->nccl, [&] {
		return native->nccl->all_gather(from, to, bytes, NCCL_UINT8, native->comm,
						st->handle);
	});
}

int comm_broadcast(struct comm *comm, struct stream *st, void *data, size_t bytes, uint32_t root)
{
	const struct native *native = joined(comm);

	if (root >= comm_ranks(comm))
		return -EINVAL;
	if (bytes == 0)
		return 0;
	return call(comm, native->nccl, [&] {
		return native->nccl->broadcast(data, data, bytes, NCCL_UINT8, (int)root,
					       native->comm, st->handle);
	});
}
