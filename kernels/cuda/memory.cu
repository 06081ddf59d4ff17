/* The driver's virtual memory calls, found at run time, as the card of vram.h; and regions by their addresses. */
#include "kernels/cuda/memory.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/cuda/cuda.h"
extern "C" {
#include "kernels/cuda/vram.h"
}

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
	pthread_mutex_t lock; /* guards vram */
	struct vram *vram;
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

static CUmemAllocationProp prop_of(const struct memory *m)
{
	CUmemAllocationProp prop = {};

	prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
	prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
	prop.location.id = m->ordinal;
	return prop;
}

static int on_create(void *card, size_t bytes, uint64_t *ret_chunk)
{
	struct memory *m = (struct memory *)card;
	const CUmemAllocationProp prop = prop_of(m);
	CUmemGenericAllocationHandle handle;
	const int r = CUDA_CALL(m->call.create(&handle, bytes, &prop, 0));

	if (r == 0)
		*ret_chunk = handle;
	return r;
}

/* Memory is given back on a device that is lost, too, and a refusal loses none. */
static int given_back(CUresult result)
{
	return result == CUDA_SUCCESS ? 0 : -EIO;
}

static int on_release(void *card, uint64_t chunk)
{
	return given_back(((struct memory *)card)->call.release(chunk));
}

static int on_reserve(void *card, size_t bytes, uint64_t *ret_at)
{
	struct memory *m = (struct memory *)card;
	CUdeviceptr at;
	const int r = CUDA_CALL(m->call.reserve(&at, bytes, VRAM_GRANULE, 0, 0));

	if (r == 0)
		*ret_at = at;
	return r;
}

static int on_unreserve(void *card, uint64_t at, size_t bytes)
{
	return given_back(((struct memory *)card)->call.unreserve(at, bytes));
}

static int on_map(void *card, uint64_t at, uint64_t chunk, size_t bytes)
{
	return CUDA_CALL(((struct memory *)card)->call.map(at, bytes, 0, chunk, 0));
}

static int on_unmap(void *card, uint64_t at, size_t bytes)
{
	return given_back(((struct memory *)card)->call.unmap(at, bytes));
}

/* A driver that cannot protect the device's memory leaves it writable. */
static int on_access(void *card, uint64_t at, size_t bytes, enum vram_access wanted)
{
	struct memory *m = (struct memory *)card;
	CUmemAccessDesc access = {};
	CUresult result;

	access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
	access.location.id = m->ordinal;
	access.flags = wanted == VRAM_READ ? CU_MEM_ACCESS_FLAGS_PROT_READ :
					     CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
	if (wanted != VRAM_READ)
		return CUDA_CALL(m->call.set_access(at, bytes, &access, 1));
	result = m->call.set_access(at, bytes, &access, 1);
	if (result == CUDA_ERROR_NOT_SUPPORTED || result == CUDA_ERROR_INVALID_VALUE)
		return 0;
	return calls_result(result);
}

static const struct vram_ops ops = { on_create, on_release, on_reserve, on_unreserve, on_map, on_unmap,
				     on_access, NULL,	    NULL,	NULL };

int memory_new(int ordinal, struct memory **ret)
{
	struct memory *m = (struct memory *)calloc(1, sizeof(*m));
	int r;

	if (!m)
		return -ENOMEM;
	m->ordinal = ordinal;
	pthread_mutex_init(&m->lock, NULL);
	r = find_all(&m->call);
	if (r == 0)
		r = vram_new(&ops, m, UINT64_MAX, &m->vram);
	if (r < 0) {
		memory_free(m);
		return r;
	}
	*ret = m;
	return 0;
}

struct memory *memory_free(struct memory *m)
{
	if (!m)
		return NULL;
	vram_free(m->vram);
	pthread_mutex_destroy(&m->lock);
	free(m);
	return NULL;
}

void *memory_reserve(struct memory *m, const char *name, size_t bytes, size_t chunk_bytes)
{
	struct vram_region *region = NULL;

	pthread_mutex_lock(&m->lock);
	if (vram_reserve(m->vram, name, bytes ? bytes : 1, chunk_bytes ? chunk_bytes : VRAM_GRANULE,
			 &region) < 0)
		region = NULL;
	pthread_mutex_unlock(&m->lock);
	return region ? (void *)vram_at(region) : NULL;
}

/* Chunks of the region that an address lies in. */
struct part {
	struct vram_region *region;
	uint32_t first, n;
};

/* 0, or -EINVAL: not reserved, or not whole chunks. The rest of the last chunk counts as asked for. */
static int find_part(struct memory *m, const void *at, size_t bytes, struct part *ret)
{
	const struct vram_region *region;

	for (uint32_t i = 0; (region = vram_region_at(m->vram, i)) != NULL; i++) {
		const size_t from = (uint64_t)at - vram_at(region), chunk = vram_chunk_bytes(region);

		if ((uint64_t)at < vram_at(region) || from >= vram_bytes(region))
			continue;
		if (from % chunk || bytes > vram_bytes(region) - from)
			return -EINVAL;
		/* memory's own regions, which nobody else changes */
		*ret = { const_cast<struct vram_region *>(region), (uint32_t)(from / chunk),
			 (uint32_t)((bytes - 1) / chunk + 1) };
		return 0;
	}
	return -EINVAL;
}

static int zero(void *at, size_t bytes)
{
	const int r = CUDA_CALL(cudaMemset(at, 0, bytes));

	return r < 0 ? r : CUDA_CALL(cudaDeviceSynchronize());
}

static int back(const struct part *part, void *at, size_t bytes)
{
	int r;

	for (uint32_t i = 0; i < part->n; i++)
		if (vram_is_backed(part->region, part->first + i))
			return -EINVAL;
	r = vram_back(part->region, part->first, part->n);
	if (r < 0)
		return r;
	r = zero(at, bytes);
	if (r < 0)
		(void)vram_unback(part->region, part->first, part->n);
	return r;
}

int memory_back(struct memory *m, void *at, size_t bytes)
{
	struct part part;
	int r;

	if (!bytes)
		return 0;
	if (bytes > SIZE_MAX - VRAM_GRANULE)
		return -EINVAL;
	pthread_mutex_lock(&m->lock);
	r = find_part(m, at, vram_round(bytes), &part);
	if (r == 0)
		r = back(&part, at, vram_round(bytes));
	pthread_mutex_unlock(&m->lock);
	return r;
}

int memory_unback(struct memory *m, void *at, size_t bytes)
{
	struct part part;
	int r;

	if (!bytes)
		return 0;
	if (bytes > SIZE_MAX - VRAM_GRANULE)
		return -EINVAL;
	pthread_mutex_lock(&m->lock);
	r = find_part(m, at, vram_round(bytes), &part);
	if (r == 0) {
		(void)cudaDeviceSynchronize(); /* what is queued may still use it */
		(void)vram_unback(part.region, part.first, part.n); /* what is stuck is counted */
	}
	pthread_mutex_unlock(&m->lock);
	return r;
}

int memory_seal(struct memory *m, void *at, size_t bytes)
{
	struct part part;
	int r;

	if (!bytes)
		return 0;
	pthread_mutex_lock(&m->lock);
	r = find_part(m, at, vram_round(bytes), &part);
	if (r == 0)
		r = vram_seal(part.region, part.first, part.n);
	pthread_mutex_unlock(&m->lock);
	return r;
}

void memory_set_serving(struct memory *m, bool serving)
{
	pthread_mutex_lock(&m->lock);
	vram_set_serving(m->vram, serving);
	pthread_mutex_unlock(&m->lock);
}

static struct dev_region describe(const struct vram_region *region)
{
	struct dev_region ret = {};

	static_assert(sizeof(ret.name) >= VRAM_NAME_MAX, "names fit");
	snprintf(ret.name, sizeof(ret.name), "%s", vram_name(region));
	ret.bytes = vram_bytes(region);
	ret.chunk_bytes = vram_chunk_bytes(region);
	for (uint32_t i = 0; i < vram_chunks(region); i++)
		if (vram_is_backed(region, i))
			ret.backed_bytes += i + 1 < vram_chunks(region) ? ret.chunk_bytes :
									  ret.bytes - i * ret.chunk_bytes;
	return ret;
}

uint32_t memory_look(struct memory *m, struct dev_memory *ret, struct dev_region *ret_regions, uint32_t room)
{
	const struct vram_region *region;
	struct vram_figures f;
	uint32_t n;

	pthread_mutex_lock(&m->lock);
	vram_figures(m->vram, &f);
	for (n = 0; n < room && (region = vram_region_at(m->vram, n)) != NULL; n++)
		ret_regions[n] = describe(region);
	pthread_mutex_unlock(&m->lock);
	*ret = {};
	ret->taken_bytes = f.taken_bytes;
	ret->peak_bytes = f.peak_bytes;
	ret->reserved_bytes = f.reserved_bytes;
	ret->stuck_bytes = f.stuck_bytes;
	ret->refused_bytes = f.refused_bytes;
	for (uint64_t calls : f.calls)
		ret->n_calls += calls;
	return n;
}
