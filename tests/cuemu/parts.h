/* Inside the emulator: blocks and their threads, memory and its shadows. */
#pragma once

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/cuemu/cuemu.h"
#include "tests/cuemu/device.h"

#define THREADS_MAX 1024
#define WARP 32
#define BARRIERS 16
#define SHARED_MAX (227 * 1024)

enum access { ACCESS_READ, ACCESS_WRITE, ACCESS_ATOMIC };

struct copy { /* of copy_async(): done when it is waited for */
	void *to;
	const void *from;
	uint32_t bytes, bytes_read; /* what is not read becomes zero */
	uint32_t group;
};

/* Where one thread is; @epoch etc. order its accesses to shared memory, see shadow.cc. */
struct thread {
	void *stack_pointer;
	char *stack;
	uint3 idx;
	uint32_t number;
	bool done, waited_pdl;
	uint32_t sync_time; /* of the warp's clock, at the last __syncwarp() */
	const char *at;	    /* what it waits at */
	void *slot;	    /* what it brought to a meeting of its warp */
	bool (*ready)(void *userdata);
	void *userdata;
	uint32_t groups_committed;
	uint32_t n_copies, copies_room;
	struct copy *copies;
};

/* Lanes that have come to an operation of the warp; several may be open, with masks apart. */
struct meeting {
	uint32_t mask, arrived;
	const char *what;
};

struct warp {
	uint32_t clock;
	uint32_t n_meetings;
	struct meeting meetings[WARP];
};

struct block {
	dim3 grid, dim;
	uint3 idx;
	uint32_t n_threads, n_live, n_warps;
	uint32_t serial; /* of all blocks ever run: names what a shadow belongs to */
	uint32_t epoch;	 /* barriers passed */
	bool pdl, failed;
	uint64_t order_seed;

	char *shared; /* dynamic */
	size_t shared_bytes;
	uintptr_t stacks; /* of all its threads */
	size_t stacks_bytes;

	struct thread *threads;
	struct warp warps[THREADS_MAX / WARP];
	struct { uint32_t arrived, total, result; } barriers[BARRIERS];

	uint32_t *queue; /* threads that can run: a ring of THREADS_MAX + 1 */
	uint32_t queue_head, queue_tail;
	struct thread *self;
	void *scheduler; /* its stack pointer */
};

extern thread_local struct block *cuemu_block; /* that runs on this thread of the host, or NULL */

/* fiber.cc: saves the registers on this stack, continues on another */
extern "C" void cuemu_switch(void **save_stack_pointer, void *stack_pointer);
void *fiber_begin(char *stack, size_t bytes, void (*entry)(void));

/* memory.cc */
[[noreturn]] void fault_in_kernel(const void *pc, const char *format, ...);
void fault_note(const char *format, ...);
bool fault_happened(void);
void memory_access(const void *at, size_t bytes, enum access access, const void *pc);
void memory_launch(bool pdl, const void *closure, size_t closure_bytes);
void memory_released_early(void);
void memory_warp_ended(void);
bool memory_is_device(const void *at, size_t bytes);
void *memory_reserve(size_t bytes, size_t alignment); /* addresses that are never given again */
void memory_map(void *at, size_t bytes);	       /* puts memory behind them */
bool memory_give(void *at);			       /* and takes it away */
void memory_zero(void *at, size_t bytes);	       /* without touching what nobody has */
bool memory_protect(void *at, size_t bytes, bool writable);
bool memory_charge(size_t bytes); /* whether the device has as much left */
void memory_discharge(size_t bytes);
size_t memory_left(void);
size_t memory_bytes(void);
void memory_host_waited(void);
void memory_pin(void *at, size_t bytes);
bool memory_unpin(void *at);

/* runtime.cc: a call that cuemu_calls() counts */
void allocation_count(void);

/* driver.cc: the device that has the memory behind these addresses; -1: none is known */
int memory_owner(const void *at);

/*
 * trouble.cc: what the file says that $CUEMU_TROUBLE names
 *
 * HANG		what is queued from now on never ends
 * LOST		it fails for good, and no new process finds a device
 * ECC		a new process finds one that it cannot use
 * FAIL		one that fails at the first thing that is queued
 */
enum trouble { TROUBLE_NONE, TROUBLE_HANG, TROUBLE_LOST, TROUBLE_ECC, TROUBLE_FAIL, TROUBLES };
enum trouble trouble_now(void);

/* shadow.cc: shared memory */
bool shadow_covers(const void *at);
void shadow_launch(void);
void shadow_access(const void *at, size_t bytes, enum access access, const void *pc);
void shadow_copy_begins(const void *at, size_t bytes, const void *pc);
void shadow_copy_ends(const void *at, size_t bytes, const void *pc);
void shadow_fill(void);
char *shadow_dynamic(void); /* SHARED_MAX bytes, aligned to 1024 */

/* warp.cc: a thread's copies, when it ends */
void copies_end(void);

/* block.cc */
[[noreturn]] void block_fail(void);
bool blocks_run_all(dim3 grid, dim3 dim, size_t shared_bytes, bool pdl, void (*entry)(void *),
		    void *closure, size_t closure_bytes);
void block_wait(const char *at);
struct thread *block_self(void);
