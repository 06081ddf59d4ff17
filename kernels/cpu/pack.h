/* Packed matrices read back row by row, exactly. */
#pragma once

#include "kernels/source.h"

/* y[c] = W[row, c] for all columns, as the packed form means it. */
void unpack_row(double *y, const struct weight *w, uint32_t row);
void unpack_row_f32(float *y, const struct weight *w, uint32_t row);
