/* For tests in C: a CUDA call that fails, see kernels/cuda/calls.h. */
#include "kernels/cuda/calls.h"

extern "C" {
void failing_call(uint64_t nth, bool for_want_of_memory);
uint64_t failing_made(void);
}

void failing_call(uint64_t nth, bool for_want_of_memory)
{
	calls_fail(nth, for_want_of_memory ? cudaErrorMemoryAllocation : cudaErrorUnknown,
		   !for_want_of_memory);
}

uint64_t failing_made(void)
{
	return calls_made();
}
