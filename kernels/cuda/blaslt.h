/*
 * cuBLASLt, of which only what is used is declared: it is loaded by name, so that
 * a program does without it where there is none. Its calls go through the table
 * of CUDA's (calls.h). It is given the memory that it works in, and takes none of
 * its own while it multiplies; so its products can be recorded.
 */
#pragma once

#include <cuda_runtime.h>
#include <stddef.h>
#include <stdint.h>

extern const char *blaslt_library; /* NULL: by the names that it has; set by tests */

/* One way to compute a product, of a version of the library: its bytes may be kept in a file. */
struct blaslt_algorithm {
	uint64_t data[8];
};

struct blaslt;

/* Loads it and makes a handle for the thread's device. 0; -ENOTSUP: see blaslt_why(); -ENOMEM or -EIO. */
int blaslt_open(struct blaslt **ret);
struct blaslt *blaslt_close(struct blaslt *b);
const char *blaslt_why(void); /* of this thread's last failure: what was called, and what it said */
uint32_t blaslt_version(const struct blaslt *b); /* 130100 is 13.1.0 */

/*
 * y[t,r] = sum_c w[r,c] x[t,c]  (+ bias[r])  (+ y[t,r]), sums in F32
 *
 * w	BF16 [rows, cols], rows @w_pitch elements apart
 * x	BF16, tokens @x_pitch elements apart, as many as a call says
 * y	F32 [tokens, rows];  bias F32 [rows]
 */
struct blaslt_product;
int blaslt_product_new(struct blaslt *b, uint32_t rows, uint32_t cols, uint32_t w_pitch,
		       uint32_t x_pitch, struct blaslt_product **ret);
struct blaslt_product *blaslt_product_free(struct blaslt_product *p);

/*
 * Ways that the library thinks well of, the best first.
 *
 * w_align, y_align	bytes, powers of two up to 256, that addresses will be multiples
 *			of; those of x are multiples of 128
 * bias			one that will be used, or NULL
 *
 * Returns how many, at most @room; -ENOTSUP: it knows none; -ENOMEM or -EIO.
 */
int blaslt_find(struct blaslt_product *p, uint32_t tokens, uint32_t w_align, uint32_t y_align,
		const float *bias, size_t workspace_bytes, struct blaslt_algorithm *ret, uint32_t room);
/* Whether that way will do for so many tokens. 0; -ENOTSUP: it will not, or wants more workspace; -ENOMEM or -EIO. */
int blaslt_check(struct blaslt_product *p, uint32_t tokens, const float *bias,
		 const struct blaslt_algorithm *a, size_t workspace_bytes);
/* Queues it. 0; -ENOTSUP: refused, nothing was queued; -ENOMEM; or -EIO: the device is lost. */
int blaslt_multiply(struct blaslt_product *p, const struct blaslt_algorithm *a, float *y,
		    const void *w, const void *x, uint32_t tokens, const float *bias, bool add,
		    void *workspace, size_t workspace_bytes, cudaStream_t stream);
