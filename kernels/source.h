/* What a checkpoint's matrices hold, for the packing of every backend. */
#pragma once

#include "kernels/tensor.h"

/* Element @i of an array of BF16, F16 or F32, widened exactly; any alignment. */
float source_value(enum dtype type, const void *data, size_t i);

/*
 * Whether op_repack() may pack @src into @dst: 0, -EINVAL, or -EDOM with the
 * index of the first bad scale, all as kernels/linear.h has them.
 */
int source_check(const struct weight *dst, const struct weight_source *src, size_t *ret_bad);

/*
 * The word of eight int4 codes of @row that begins at column @col, a multiple
 * of 8; what is beyond the matrix is code 8, which is zero.
 */
uint32_t source_codes(const struct weight_source *src, size_t row, uint32_t col);

/* Whether @w is a packed matrix of these sizes. */
bool weight_is_whole(const struct weight *w, uint32_t rows, uint32_t cols);
