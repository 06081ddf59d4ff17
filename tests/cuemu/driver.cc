/* The driver's calls for memory behind reserved addresses, as cudaGetDriverEntryPoint() gives them. */
#include <map>
#include <mutex>
#include <string.h>

#include <cuda.h>
#include <cuda_runtime.h>

#include "tests/cuemu/parts.h"

#define GRANULE ((size_t)2 << 20)

static std::mutex lock; /* guards the maps */
static std::map<CUmemGenericAllocationHandle, size_t> handles;
static std::map<CUmemGenericAllocationHandle, int> owners; /* devices */
static std::map<CUdeviceptr, size_t> reserved, mapped;
static std::map<CUdeviceptr, int> mapped_of; /* device */
static CUmemGenericAllocationHandle next_handle = 1;

static bool lies_in(const std::map<CUdeviceptr, size_t> &ranges, CUdeviceptr at, size_t bytes)
{
	auto it = ranges.upper_bound(at);

	if (it == ranges.begin())
		return false;
	--it;
	return at - it->first <= it->second && bytes <= it->second - (at - it->first);
}

static CUresult reserve(CUdeviceptr *ret, size_t bytes, size_t alignment, CUdeviceptr, unsigned long long)
{
	allocation_count();
	std::lock_guard<std::mutex> hold(lock);
	void *at;

	if (bytes == 0 || bytes % GRANULE || (alignment && GRANULE % alignment))
		return CUDA_ERROR_INVALID_VALUE;
	at = memory_reserve(bytes, GRANULE);
	if (!at)
		return CUDA_ERROR_OUT_OF_MEMORY;
	*ret = (CUdeviceptr)at;
	reserved[*ret] = bytes;
	return CUDA_SUCCESS;
}

static CUresult unreserve(CUdeviceptr at, size_t bytes)
{
	std::lock_guard<std::mutex> hold(lock);
	auto it = reserved.find(at);

	if (it == reserved.end() || it->second != bytes)
		return CUDA_ERROR_INVALID_VALUE;
	reserved.erase(it);
	return CUDA_SUCCESS;
}

static CUresult create(CUmemGenericAllocationHandle *ret, size_t bytes,
		       const CUmemAllocationProp *prop, unsigned long long)
{
	allocation_count();
	std::lock_guard<std::mutex> hold(lock);

	if (bytes == 0 || bytes % GRANULE)
		return CUDA_ERROR_INVALID_VALUE;
	if (!memory_charge(bytes))
		return CUDA_ERROR_OUT_OF_MEMORY;
	*ret = next_handle++;
	handles[*ret] = bytes;
	owners[*ret] = prop->location.id;
	return CUDA_SUCCESS;
}

static CUresult release(CUmemGenericAllocationHandle handle)
{
	allocation_count();
	std::lock_guard<std::mutex> hold(lock);
	auto it = handles.find(handle);

	if (it == handles.end())
		return CUDA_ERROR_INVALID_VALUE;
	memory_discharge(it->second);
	handles.erase(it);
	return CUDA_SUCCESS;
}

static CUresult map(CUdeviceptr at, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
		    unsigned long long)
{
	allocation_count();
	std::lock_guard<std::mutex> hold(lock);
	auto it = handles.find(handle);

	if (it == handles.end() || offset != 0 || bytes > it->second || at % GRANULE ||
	    !lies_in(reserved, at, bytes) || lies_in(mapped, at, 1))
		return CUDA_ERROR_INVALID_VALUE;
	memory_map((void *)at, bytes);
	mapped[at] = bytes;
	mapped_of[at] = owners[handle];
	return CUDA_SUCCESS;
}

static CUresult unmap(CUdeviceptr at, size_t bytes)
{
	allocation_count();
	std::lock_guard<std::mutex> hold(lock);
	auto it = mapped.find(at);

	if (it == mapped.end() || it->second != bytes)
		return CUDA_ERROR_INVALID_VALUE;
	memory_give((void *)at);
	mapped.erase(it);
	mapped_of.erase(at);
	return CUDA_SUCCESS;
}

static CUresult set_access(CUdeviceptr at, size_t bytes, const CUmemAccessDesc *access, size_t n)
{
	std::lock_guard<std::mutex> hold(lock);

	if (n != 1)
		return CUDA_ERROR_INVALID_VALUE;
	for (auto it = mapped_of.lower_bound(at); it != mapped_of.end() && it->first < at + bytes; ++it)
		if (it->second != access->location.id)
			return CUDA_ERROR_INVALID_VALUE;
	return memory_protect((void *)at, bytes, access->flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE) ?
		       CUDA_SUCCESS :
		       CUDA_ERROR_INVALID_VALUE;
}

int memory_owner(const void *at)
{
	std::lock_guard<std::mutex> hold(lock);
	auto it = mapped_of.upper_bound((CUdeviceptr)at);

	if (it == mapped_of.begin())
		return -1;
	--it;
	return (CUdeviceptr)at < it->first + mapped[it->first] ? it->second : -1;
}

static CUresult granularity(size_t *ret, const CUmemAllocationProp *, CUmemAllocationGranularity_flags)
{
	*ret = GRANULE;
	return CUDA_SUCCESS;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **ret, unsigned, unsigned long long,
					     enum cudaDriverEntryPointQueryResult *found)
{
	static const struct {
		const char *symbol;
		void *function;
	} all[] = {
		{ "cuMemAddressReserve", (void *)reserve },
		{ "cuMemAddressFree", (void *)unreserve },
		{ "cuMemCreate", (void *)create },
		{ "cuMemRelease", (void *)release },
		{ "cuMemMap", (void *)map },
		{ "cuMemUnmap", (void *)unmap },
		{ "cuMemSetAccess", (void *)set_access },
		{ "cuMemGetAllocationGranularity", (void *)granularity },
	};

	*ret = NULL;
	for (const auto &one : all)
		if (strcmp(one.symbol, symbol) == 0)
			*ret = one.function;
	if (found)
		*found = *ret ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
	return *ret ? cudaSuccess : cudaErrorSymbolNotFound;
}

cudaError_t cudaGetDriverEntryPoint(const char *symbol, void **ret, unsigned long long flags,
				    enum cudaDriverEntryPointQueryResult *found)
{
	return cudaGetDriverEntryPointByVersion(symbol, ret, 0, flags, found);
}
