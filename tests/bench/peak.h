/* The most that all threads of a device together can multiply and add, from registers. */
#pragma once

#include "client/wire/err.h"
#include "kernels/backend.h"

enum peak {
	PEAK_FMA,   /* F32 */
	PEAK_BF16,  /* dot products of BF16 */
	PEAK_INT16, /* integers of 16 bits, or of 8 by halves of 16: what exact activations take */
	PEAK_INT8,  /* integers of 8 bits */
	PEAK_N,
};

struct peaks;

/* Finds the fastest loop for each that the device's instruction set has. Takes a second. 0 or -ENOMEM. */
int peaks_new(struct dev *dev, struct peaks **ret, struct err *err);
struct peaks *peaks_free(struct peaks *p);

const char *peaks_name(enum peak peak);
bool peaks_has(const struct peaks *p, enum peak peak);
/* Operations a second, a product with its sum being two; takes some 20 ms. @peak is one that there is. */
double peaks_pass(struct peaks *p, enum peak peak);

/*
 * The one that a matrix product with weights of @kind cannot exceed with this
 * instruction set, or PEAK_N if none is known.
 */
enum peak peaks_of(const struct peaks *p, enum weight_kind kind);

static inline void peaks_freep(struct peaks **p)
{
	*p = peaks_free(*p);
}
