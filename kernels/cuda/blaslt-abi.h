/* What is used of cublasLt.h; numbers and structs that tests/gpu/device.cu compares with it. */
#pragma once

#include <cuda_runtime.h>
#include <stddef.h>
#include <stdint.h>

enum {
	BLASLT_SUCCESS = 0,
	BLASLT_ALLOC_FAILED = 3,
	BLASLT_MAPPING_ERROR = 11,
	BLASLT_EXECUTION_FAILED = 13,
	BLASLT_INTERNAL_ERROR = 14,
};
enum { BLASLT_R_32F = 0, BLASLT_R_16BF = 14 };	/* of matrices */
enum { BLASLT_COMPUTE_32F = 68 };
enum { BLASLT_OP_T = 1 };
enum { BLASLT_LAYOUT_COLS = 3 };		/* u64 */
enum {
	BLASLT_DESC_TRANSA = 3,			/* i32 */
	BLASLT_DESC_EPILOGUE = 7,		/* u32 */
	BLASLT_DESC_BIAS_POINTER = 8,
};
enum { BLASLT_EPILOGUE_BIAS = 4 };
enum {
	BLASLT_PREF_WORKSPACE_BYTES = 1,	/* u64 */
	BLASLT_PREF_REDUCTION_MASK = 3,		/* u32 */
	BLASLT_PREF_ALIGN_A = 5,		/* u32 each */
	BLASLT_PREF_ALIGN_B = 6,
	BLASLT_PREF_ALIGN_C = 7,
	BLASLT_PREF_ALIGN_D = 8,
};
enum { BLASLT_REDUCTION_COMPUTE_TYPE = 2 };	/* parts in F32 in the workspace, added up in order */

struct blaslt_found {
	uint64_t algorithm[8];
	size_t workspace_bytes;
	int state;
	float waves;
	int reserved[4];
};

typedef struct blaslt_context *blaslt_handle;
typedef struct blaslt_desc_opaque *blaslt_desc;
typedef struct blaslt_layout_opaque *blaslt_layout;
typedef struct blaslt_preference_opaque *blaslt_preference;

struct blaslt_calls {
	int (*create)(blaslt_handle *ret);
	int (*destroy)(blaslt_handle handle);
	size_t (*version)(void);
	const char *(*status_name)(int status);
	int (*desc_create)(blaslt_desc *ret, int compute, int scale);
	int (*desc_destroy)(blaslt_desc desc);
	int (*desc_set)(blaslt_desc desc, int attribute, const void *value, size_t bytes);
	int (*layout_create)(blaslt_layout *ret, int type, uint64_t rows, uint64_t cols, int64_t pitch);
	int (*layout_destroy)(blaslt_layout layout);
	int (*layout_set)(blaslt_layout layout, int attribute, const void *value, size_t bytes);
	int (*preference_create)(blaslt_preference *ret);
	int (*preference_destroy)(blaslt_preference preference);
	int (*preference_set)(blaslt_preference preference, int attribute, const void *value, size_t bytes);
	int (*heuristic)(blaslt_handle handle, blaslt_desc desc, blaslt_layout a, blaslt_layout b,
			 blaslt_layout c, blaslt_layout d, blaslt_preference preference, int room,
			 struct blaslt_found *ret, int *ret_n);
	int (*check)(blaslt_handle handle, blaslt_desc desc, blaslt_layout a, blaslt_layout b,
		     blaslt_layout c, blaslt_layout d, const void *algorithm, struct blaslt_found *ret);
	int (*matmul)(blaslt_handle handle, blaslt_desc desc, const void *alpha, const void *a,
		      blaslt_layout a_layout, const void *b, blaslt_layout b_layout, const void *beta,
		      const void *c, blaslt_layout c_layout, void *d, blaslt_layout d_layout,
		      const void *algorithm, void *workspace, size_t workspace_bytes,
		      cudaStream_t stream);
};
