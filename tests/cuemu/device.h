/* Types of <cuda_runtime.h> and what its device functions are made of. */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct uint3 { unsigned x, y, z; };
struct dim3 {
	unsigned x, y, z;
	constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

void *cuemu_shared(void) __attribute__((const));

enum cuemu_tally { CUEMU_TALLY_NONE, CUEMU_TALLY_COUNT, CUEMU_TALLY_OR, CUEMU_TALLY_AND };
uint32_t cuemu_barrier(uint32_t id, uint32_t n_threads, enum cuemu_tally tally, bool value);

/* Lanes of @mask meet; ret[lane] is what each brought. Returns this thread's lane. */
uint32_t cuemu_gather(uint32_t mask, const char *what, uint64_t bring, uint64_t ret[32]);
/* All lanes meet, and the last one does @all for them. */
void cuemu_meet(const char *what, uint64_t bring, void (*all)(const uint64_t brought[32]));
void cuemu_syncwarp(uint32_t mask);

void cuemu_matrices(uint32_t (&r)[4], const void *row, bool transposed);
void cuemu_mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

void cuemu_copy_async(void *shared, const void *global, uint32_t bytes, uint32_t bytes_read);
void cuemu_copy_commit(void);
void cuemu_copy_wait(uint32_t n_left);

void cuemu_constant(const void *at, size_t bytes); /* stays as it is while the kernel lives */
void cuemu_pdl_wait(void);
void cuemu_pdl_release(void);

void cuemu_read(const void *at, size_t bytes);
void cuemu_write(void *at, size_t bytes);
/* Before an atomic operation on it, which nothing can come between. */
void cuemu_atomic(void *at, size_t bytes);
[[noreturn]] void cuemu_trap(const char *why);
void cuemu_wait_until(const char *what, bool (*ready)(void *userdata), void *userdata);
