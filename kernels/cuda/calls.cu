/* The count of CUDA calls, and what one of them returned first that cannot be mended. */
#include "kernels/cuda/calls.h"

#include <errno.h>

/* relaxed: loaders make calls too, and which of them fails is anybody's */
static uint64_t n_made, fail_at;
static cudaError_t fail_with;
static bool fail_on;
static cudaError_t first_error;

void calls_fail(uint64_t nth, cudaError_t error, bool for_ever)
{
	fail_at = nth;
	fail_with = error;
	fail_on = for_ever;
	first_error = cudaSuccess;
	__atomic_store_n(&n_made, 0, __ATOMIC_RELAXED);
}

uint64_t calls_made(void)
{
	return __atomic_load_n(&n_made, __ATOMIC_RELAXED);
}

bool calls_due(cudaError_t *ret)
{
	const uint64_t n = __atomic_add_fetch(&n_made, 1, __ATOMIC_RELAXED);

	if (first_error != cudaSuccess) {
		*ret = first_error;
		return true;
	}
	*ret = fail_with;
	return fail_at && (n == fail_at || (fail_on && n > fail_at));
}

int calls_result(cudaError_t error)
{
	if (error == cudaSuccess)
		return 0;
	(void)cudaGetLastError(); /* or the next launch would return it again */
	if (error == cudaErrorMemoryAllocation)
		return -ENOMEM;
	if (first_error == cudaSuccess)
		first_error = error;
	return -EIO;
}

/* The driver's numbers are the runtime's. */
int calls_result(CUresult result)
{
	return calls_result((cudaError_t)result);
}

bool calls_lost(void)
{
	return first_error != cudaSuccess;
}

const char *calls_why(void)
{
	return cudaGetErrorString(first_error);
}
