/*
 * All of PTX that steamd uses, one function each; tests/cuemu has a twin of
 * every function, and a function without one fails its build. Kernels call
 * these and CUDA's own intrinsics, never asm.
 */
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

/* Dynamic shared memory of the block, aligned to 128. */
template <typename T> static __device__ __forceinline__ T *shared_memory()
{
	extern __shared__ __align__(128) unsigned char ptx_shared[];

	return reinterpret_cast<T *>(ptx_shared);
}

/* Ends when the kernels queued before this one have ended and their writes are visible (sm 90 on). */
static __device__ __forceinline__ void pdl_wait()
{
#if __CUDA_ARCH__ >= 900
	asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* From here on the next kernel's blocks may begin, once every block of this one has called it. */
static __device__ __forceinline__ void pdl_release()
{
#if __CUDA_ARCH__ >= 900
	asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/* Has what lies at @at brought to the second cache. */
static __device__ __forceinline__ void prefetch(const void *at)
{
	asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
}

/* Both rounded to BF16, to nearest even: @low to the lower half. */
static __device__ __forceinline__ uint32_t bf16_pair(float low, float high)
{
	uint32_t v;

	asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
	return v;
}

/* Sums of two pairs of BF16, each rounded once. */
static __device__ __forceinline__ uint32_t add_bf16_pairs(uint32_t a, uint32_t b)
{
	uint32_t v;

	asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(0x3f803f80u), "r"(b));
	return v;
}

/* 16 bytes from global to shared memory, in the background; both aligned to 16. */
static __device__ __forceinline__ void copy_async(void *shared, const void *global)
{
	asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(
			     (uint32_t)__cvta_generic_to_shared(shared)),
		     "l"(global)
		     : "memory");
}

static __device__ __forceinline__ void copy_async_commit()
{
	asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Waits until at most N of this thread's committed groups are under way. */
template <int N> static __device__ __forceinline__ void copy_async_wait()
{
	asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* Four 8x8 matrices of 16 bits; lane l gives the address of row l % 8 of matrix l / 8. */
static __device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void *shared_row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
		     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
		     : "r"((uint32_t)__cvta_generic_to_shared(shared_row)));
}

/* The same, each matrix transposed. */
static __device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4],
								const void *shared_row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
		     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
		     : "r"((uint32_t)__cvta_generic_to_shared(shared_row)));
}

/* d[16x8] += a[16x16] b[16x8]: bf16, sums in F32; the fragments of mma.m16n8k16. */
static __device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4],
						const uint32_t (&b)[2])
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
		     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
		     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
		     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
