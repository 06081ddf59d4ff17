/*
 * The GPU that is not there: runs the kernels of kernels/cuda on the CPU, one
 * block after the other, each thread of a block a fiber that runs until it has
 * to meet others. <cuda_runtime.h>, <cuda_bf16.h> and kernels/cuda/ptx.h of this
 * folder stand before the real ones in the include path.
 *
 * The .cu sources are compiled with -fsanitize=thread, but without its library:
 * the calls that this puts before every load and store come here. What a kernel
 * does wrong is a fault: the first one is printed with the source line, the
 * kernel ends, and every later call of the runtime returns an error, as after a
 * sticky error of a device. Faults are:
 *
 * - a load or store of memory that is neither shared, the thread's own, nor
 *   within an allocation (to the byte), or that is not aligned to its size;
 * - shared memory that is read before this block wrote it;
 * - two threads at one byte of shared memory, one of them writing, with neither a
 *   barrier of the block nor, within a warp, __syncwarp() between them;
 * - shared memory that is touched while a copy in the background writes it;
 * - threads that wait for each other for ever, or meet at different operations;
 * - in a kernel launched with LAUNCH_PDL: anything written before pdl_wait(), or
 *   read that a kernel wrote which need not have ended by then (the one before;
 *   and those before that one, if it released its successor before its own wait);
 * - what such a kernel wrote, or this one, loaded by __ldg(), also after pdl_wait():
 *   the compiler takes such memory to stay as it is while a kernel lives.
 *
 * Not seen: races between blocks (but compare the bits of the three orders),
 * races in global memory within a block, what only weak ordering of a real
 * device shows, and accesses that the host's compiler removed.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum cuemu_order { CUEMU_FORWARDS, CUEMU_BACKWARDS, CUEMU_SHUFFLED, CUEMU_ORDERS };

/*
 * Order in which blocks run, and threads within a block where they are free to;
 * at first what the environment's CUEMU_ORDER says: forwards, backwards or shuffled.
 */
void cuemu_set_order(enum cuemu_order order);

/* The first fault since the last cuemu_forget(), or NULL; that also ends the error. */
const char *cuemu_fault(void);
void cuemu_forget(void);
/* Whether a fault is printed; it is unless a test plants one. */
void cuemu_set_loud(bool loud);

/*
 * Since the program began: kernels that ran, and calls that take memory from the device or give it
 * back, or pin the host's, or make a graph.
 */
#ifdef __cplusplus
extern "C"
#endif
void cuemu_calls(uint64_t *ret_launches, uint64_t *ret_allocations);

/* Global memory as seen by the kernels since the last cuemu_count(true). */
struct cuemu_counts {
	uint64_t read_bytes, written_bytes;
	uint64_t read_requests, read_sectors;	/* of warps; sectors of 32 bytes */
	uint64_t written_requests, written_sectors;
};
/* Starts from zero, or stops: counting requests is slow. */
void cuemu_count(bool on);
struct cuemu_counts cuemu_counted(void);
