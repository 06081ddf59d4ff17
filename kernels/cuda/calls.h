/*
 * Every call of CUDA that can fail is made through CUDA_CALL(), or launch(),
 * so that a test can have the Nth of them fail.
 */
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>
#include <stdint.h>

/*
 * @nth		the call that fails, counted from 1 and from now; 0: none
 * @error	what it returns: cudaErrorMemoryAllocation, or what makes -EIO of it
 * @for_ever	all later ones fail too
 */
void calls_fail(uint64_t nth, cudaError_t error, bool for_ever);
uint64_t calls_made(void); /* since calls_fail() or the start */

/* 0, -ENOMEM; or -EIO: the device is lost, what failed first is kept for calls_why(), and nothing is called any more. */
int calls_result(cudaError_t error);
int calls_result(CUresult result);
bool calls_due(cudaError_t *ret); /* counts one call; whether it has to fail, and how */
bool calls_lost(void);		  /* whether one has failed so */
const char *calls_why(void);	  /* in CUDA's words; "no error" if none failed */

#define CUDA_CALL(call)                                                                            \
	([&]() -> int {                                                                            \
		cudaError_t due;                                                                   \
		return calls_due(&due) ? calls_result(due) : calls_result(call);                   \
	}())
