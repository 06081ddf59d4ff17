/* What benches need of a GPU beside kernels/backend.h: random data made there, times, and the card's peak. */
#pragma once

#include "kernels/backend.h"

/*
 * Fills @n elements, BF16 or F32, with uniform noise in ±[scale / 4, scale): no
 * zeros and no denormals. Queued. 0 or -EIO.
 */
int device_fill(struct stream *st, void *at, size_t n, enum dtype type, float scale, uint64_t seed);

size_t device_free_bytes(void); /* that could be allocated now */
size_t device_l2_bytes(const struct dev *dev);

/* Points in the stream's time, numbered from 0 to @n - 1. */
struct marks;
struct marks *marks_new(uint32_t n);
struct marks *marks_free(struct marks *m);
int marks_set(struct marks *m, struct stream *st, uint32_t i);
double marks_us(struct marks *m, uint32_t from, uint32_t to); /* once the stream has reached both; NAN: it failed */

/*
 * One product of bf16 matrices of @n cubed with F32 sums by cuBLASLt, found at
 * run time. peak_open() returns NULL, with a word why, if it cannot be used.
 */
struct peak;
struct peak *peak_open(struct dev *dev, struct stream *st, uint32_t n, const char **ret_why);
int peak_multiply(struct peak *p, struct stream *st);

/* What op_linears_choose() found for set and number of tokens @i. False: there are not so many. */
struct device_choice {
	uint32_t tokens, rows, cols; /* rows of all matrices of the set */
	const char *way;	     /* "own", or one of the library's */
	double own_us, library_us;   /* 0: the library has no way */
};
bool device_choice(const struct stream *st, uint32_t i, struct device_choice *ret);
void device_choose_for(double seconds); /* from now on, for want of which a server would start without */
