/* Reservations and mappings by the driver's virtual memory calls, found at run time. */
#include "kernels/cuda/memory.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "kernels/cuda/cuda.h"

#define CHUNK_BYTES ((size_t)2 << 20)
#define PIECE_BYTES ((size_t)256 << 20) /* of one physical allocation; few of them make loading quick */

struct piece {
	struct piece *next;
	char *at;
	size_t bytes;
	CUmemGenericAllocationHandle handle;
};

struct reservation {
	struct reservation *next;
	char *at;
	size_t bytes;
	struct piece *pieces;
};

struct driver {
	CUresult (*reserve)(CUdeviceptr *, size_t, size_t, CUdeviceptr, unsigned long long);
	CUresult (*unreserve)(CUdeviceptr, size_t);
	CUresult (*create)(CUmemGenericAllocationHandle *, size_t, const CUmemAllocationProp *,
			   unsigned long long);
	CUresult (*release)(CUmemGenericAllocationHandle);
	CUresult (*map)(CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle,
			unsigned long long);
	CUresult (*unmap)(CUdeviceptr, size_t);
	CUresult (*set_access)(CUdeviceptr, size_t, const CUmemAccessDesc *, size_t);
};

struct memory {
	int ordinal;
	struct driver call;
	pthread_mutex_t lock; /* guards the lists */
	struct reservation *reservations;
};

static int find(const char *symbol, void *ret)
{
	cudaDriverEntryPointQueryResult found;
	int r;

	r = CUDA_CALL(cudaGetDriverEntryPointByVersion(symbol, (void **)ret, 12000,
						       cudaEnableDefault, &found));
	if (r < 0)
		return r;
	return found == cudaDriverEntryPointSuccess ? 0 : -ENODEV;
}

static int find_all(struct driver *call)
{
	const struct {
		const char *symbol;
		void *at;
	} wanted[] = {
		{ "cuMemAddressReserve", &call->reserve }, { "cuMemAddressFree", &call->unreserve },
		{ "cuMemCreate", &call->create },	   { "cuMemRelease", &call->release },
		{ "cuMemMap", &call->map },		   { "cuMemUnmap", &call->unmap },
		{ "cuMemSetAccess", &call->set_access },
	};

	for (const auto &w : wanted) {
		const int r = find(w.symbol, w.at);

		if (r < 0)
			return r;
	}
	return 0;
}

int memory_new(int ordinal, struct memory **ret)
{
	struct memory *m = (struct memory *)calloc(1, sizeof(*m));
	int r;

	if (!m)
		return -ENOMEM;
	m->ordinal = ordinal;
	pthread_mutex_init(&m->lock, NULL);
	r = find_all(&m->call);
	if (r < 0) {
		memory_free(m);
		return r;
	}
	*ret = m;
	return 0;
}

/* What fails while memory is given back is of no use to anybody. */
static void drop_piece(struct memory *m, struct piece *p)
{
	(void)m->call.unmap((CUdeviceptr)p->at, p->bytes);
	(void)m->call.release(p->handle);
	free(p);
}

struct memory *memory_free(struct memory *m)
{
	if (!m)
		return NULL;
	while (m->reservations) {
		struct reservation *res = m->reservations;

		m->reservations = res->next;
		while (res->pieces) {
			struct piece *p = res->pieces;

			res->pieces = p->next;
			drop_piece(m, p);
		}
		(void)m->call.unreserve((CUdeviceptr)res->at, res->bytes);
		free(res);
	}
	pthread_mutex_destroy(&m->lock);
	free(m);
	return NULL;
}

static size_t rounded(size_t bytes)
{
	return (bytes + CHUNK_BYTES - 1) / CHUNK_BYTES * CHUNK_BYTES;
}

void *memory_reserve(struct memory *m, size_t bytes)
{
	struct reservation *res;
	CUdeviceptr at;

	if (bytes > SIZE_MAX - CHUNK_BYTES)
		return NULL;
	res = (struct reservation *)calloc(1, sizeof(*res));
	if (!res)
		return NULL;
	res->bytes = rounded(bytes ? bytes : 1);
	if (CUDA_CALL(m->call.reserve(&at, res->bytes, CHUNK_BYTES, 0, 0)) < 0) {
		free(res);
		return NULL;
	}
	res->at = (char *)at;
	pthread_mutex_lock(&m->lock);
	res->next = m->reservations;
	m->reservations = res;
	pthread_mutex_unlock(&m->lock);
	return res->at;
}

static struct reservation *find_reservation(struct memory *m, const char *at, size_t bytes)
{
	for (struct reservation *res = m->reservations; res; res = res->next)
		if (at >= res->at && (size_t)(at - res->at) <= res->bytes &&
		    bytes <= res->bytes - (size_t)(at - res->at))
			return res;
	return NULL;
}

static CUmemAccessDesc access_of(const struct memory *m, CUmemAccess_flags flags)
{
	CUmemAccessDesc access = {};

	access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
	access.location.id = m->ordinal;
	access.flags = flags;
	return access;
}

static int add_piece(struct memory *m, struct reservation *res, char *at, size_t bytes)
{
	struct piece *p = (struct piece *)calloc(1, sizeof(*p));
	CUmemAllocationProp prop = {};
	int r;

	if (!p)
		return -ENOMEM;
	prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
	prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
	prop.location.id = m->ordinal;
	p->at = at;
	p->bytes = bytes;
	r = CUDA_CALL(m->call.create(&p->handle, bytes, &prop, 0));
	if (r < 0) {
		free(p);
		return r;
	}
	r = CUDA_CALL(m->call.map((CUdeviceptr)at, bytes, 0, p->handle, 0));
	if (r < 0) {
		(void)m->call.release(p->handle);
		free(p);
		return r;
	}
	p->next = res->pieces;
	res->pieces = p;
	return 0;
}

static bool overlaps(const struct piece *p, const char *at, size_t bytes)
{
	return p->at < at + bytes && at < p->at + p->bytes;
}

static bool lies_in(const struct piece *p, const char *at, size_t bytes)
{
	return p->at >= at && p->at + p->bytes <= at + bytes;
}

static void drop_pieces(struct memory *m, struct reservation *res, const char *at, size_t bytes)
{
	struct piece **link = &res->pieces;

	while (*link) {
		struct piece *p = *link;

		if (lies_in(p, at, bytes)) {
			*link = p->next;
			drop_piece(m, p);
		} else {
			link = &p->next;
		}
	}
}

static int fill(struct memory *m, struct reservation *res, char *at, size_t bytes)
{
	const CUmemAccessDesc access = access_of(m, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
	size_t piece;
	int r = 0;

	for (size_t done = 0; r == 0 && done < bytes; done += piece) {
		piece = bytes - done < PIECE_BYTES ? bytes - done : PIECE_BYTES;
		r = add_piece(m, res, at + done, piece);
	}
	if (r == 0)
		r = CUDA_CALL(m->call.set_access((CUdeviceptr)at, bytes, &access, 1));
	if (r == 0)
		r = CUDA_CALL(cudaMemset(at, 0, bytes));
	if (r == 0)
		r = CUDA_CALL(cudaDeviceSynchronize());
	if (r < 0)
		drop_pieces(m, res, at, bytes);
	return r;
}

int memory_back(struct memory *m, void *at, size_t bytes)
{
	struct reservation *res;
	int r = 0;

	if (!bytes)
		return 0;
	if (bytes > SIZE_MAX - CHUNK_BYTES)
		return -EINVAL;
	bytes = rounded(bytes);
	pthread_mutex_lock(&m->lock);
	res = find_reservation(m, (char *)at, bytes);
	if (!res || (size_t)((char *)at - res->at) % CHUNK_BYTES)
		r = -EINVAL;
	for (const struct piece *p = res ? res->pieces : NULL; p; p = p->next)
		if (overlaps(p, (char *)at, bytes))
			r = -EINVAL;
	if (r == 0)
		r = fill(m, res, (char *)at, bytes);
	pthread_mutex_unlock(&m->lock);
	return r;
}

int memory_unback(struct memory *m, void *at, size_t bytes)
{
	struct reservation *res;
	int r = 0;

	if (!bytes)
		return 0;
	if (bytes > SIZE_MAX - CHUNK_BYTES)
		return -EINVAL;
	bytes = rounded(bytes);
	pthread_mutex_lock(&m->lock);
	res = find_reservation(m, (char *)at, bytes);
	if (!res)
		r = -EINVAL;
	for (const struct piece *p = res ? res->pieces : NULL; p; p = p->next)
		if (overlaps(p, (char *)at, bytes) && !lies_in(p, (char *)at, bytes))
			r = -EINVAL;
	if (r == 0) {
		(void)cudaDeviceSynchronize(); /* what is queued may still use it */
		drop_pieces(m, res, (char *)at, bytes);
	}
	pthread_mutex_unlock(&m->lock);
	return r;
}

/* A driver that cannot protect the device's memory leaves it writable. */
int memory_seal(struct memory *m, void *at, size_t bytes)
{
	const CUmemAccessDesc access = access_of(m, CU_MEM_ACCESS_FLAGS_PROT_READ);
	CUresult result;

	if (!bytes)
		return 0;
	if (!find_reservation(m, (char *)at, bytes))
		return -EINVAL;
	result = m->call.set_access((CUdeviceptr)at, rounded(bytes), &access, 1);
	if (result == CUDA_ERROR_NOT_SUPPORTED || result == CUDA_ERROR_INVALID_VALUE)
		return 0;
	return calls_result(result);
}
