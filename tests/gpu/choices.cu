/* What was chosen of products, for benches; and cublasLt.h against what kernels/cuda declares of it. */
#include <cublasLt.h>
#include <stddef.h>

#include <type_traits>

#include "kernels/cuda/blaslt-abi.h"
#include "kernels/cuda/choice.h"

extern "C" {
#include "tests/gpu/device.h"
}

/* What kernels/cuda declares of the library, for want of its header elsewhere, is what the header says. */
static_assert(
	(int)BLASLT_SUCCESS == CUBLAS_STATUS_SUCCESS &&
		(int)BLASLT_ALLOC_FAILED == CUBLAS_STATUS_ALLOC_FAILED &&
		(int)BLASLT_MAPPING_ERROR == CUBLAS_STATUS_MAPPING_ERROR &&
		(int)BLASLT_EXECUTION_FAILED == CUBLAS_STATUS_EXECUTION_FAILED &&
		(int)BLASLT_INTERNAL_ERROR == CUBLAS_STATUS_INTERNAL_ERROR &&
		(int)BLASLT_R_32F == CUDA_R_32F && (int)BLASLT_R_16BF == CUDA_R_16BF &&
		(int)BLASLT_COMPUTE_32F == CUBLAS_COMPUTE_32F && (int)BLASLT_OP_T == CUBLAS_OP_T &&
		(int)BLASLT_LAYOUT_COLS == CUBLASLT_MATRIX_LAYOUT_COLS &&
		(int)BLASLT_DESC_TRANSA == CUBLASLT_MATMUL_DESC_TRANSA &&
		(int)BLASLT_DESC_EPILOGUE == CUBLASLT_MATMUL_DESC_EPILOGUE &&
		(int)BLASLT_DESC_BIAS_POINTER == CUBLASLT_MATMUL_DESC_BIAS_POINTER &&
		(int)BLASLT_EPILOGUE_BIAS == CUBLASLT_EPILOGUE_BIAS &&
		(int)BLASLT_PREF_WORKSPACE_BYTES == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES &&
		(int)BLASLT_PREF_REDUCTION_MASK == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK &&
		(int)BLASLT_PREF_ALIGN_A == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES &&
		(int)BLASLT_PREF_ALIGN_B == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES &&
		(int)BLASLT_PREF_ALIGN_C == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES &&
		(int)BLASLT_PREF_ALIGN_D == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES &&
		(int)BLASLT_REDUCTION_COMPUTE_TYPE == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE &&
		sizeof(struct blaslt_found) == sizeof(cublasLtMatmulHeuristicResult_t) &&
		offsetof(struct blaslt_found, workspace_bytes) ==
			offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize) &&
		offsetof(struct blaslt_found, state) ==
			offsetof(cublasLtMatmulHeuristicResult_t, state) &&
		sizeof(struct blaslt_algorithm) == sizeof(cublasLtMatmulAlgo_t),
	"blaslt-abi.h is not cublasLt.h");
/* Each call, made as if with our types: whether arguments are as many, and integers as wide. */
static_assert(
	std::is_same<decltype(&cublasLtMatmul),
		     cublasStatus_t (*)(cublasLtHandle_t, cublasLtMatmulDesc_t, const void *,
					const void *, cublasLtMatrixLayout_t, const void *,
					cublasLtMatrixLayout_t, const void *, const void *,
					cublasLtMatrixLayout_t, void *, cublasLtMatrixLayout_t,
					const cublasLtMatmulAlgo_t *, void *, size_t,
					cudaStream_t)>::value &&
		std::is_same<decltype(&cublasLtMatrixLayoutCreate),
			     cublasStatus_t (*)(cublasLtMatrixLayout_t *, cudaDataType, uint64_t,
						uint64_t, int64_t)>::value &&
		std::is_same<decltype(&cublasLtMatmulDescCreate),
			     cublasStatus_t (*)(cublasLtMatmulDesc_t *, cublasComputeType_t,
						cudaDataType_t)>::value &&
		std::is_same<decltype(&cublasLtMatmulAlgoGetHeuristic),
			     cublasStatus_t (*)(cublasLtHandle_t, cublasLtMatmulDesc_t,
						cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
						cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
						cublasLtMatmulPreference_t, int,
						cublasLtMatmulHeuristicResult_t *, int *)>::value &&
		std::is_same<decltype(&cublasLtMatmulAlgoCheck),
			     cublasStatus_t (*)(cublasLtHandle_t, cublasLtMatmulDesc_t,
						cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
						cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
						const cublasLtMatmulAlgo_t *,
						cublasLtMatmulHeuristicResult_t *)>::value,
	"cublasLt.h has other calls than blaslt-abi.h");

bool device_choice(const struct stream *st, uint32_t i, struct device_choice *ret)
{
	static const char *const ways[] = { "own", "cublaslt-twice", "cublaslt-beside" };
	const struct choice *c = st->choice;

	for (uint32_t s = 0; c && s < c->n_sets; i -= c->sets[s++].n_buckets) {
		const struct choicefile_entry *e = &c->sets[s].buckets[i].entry;

		if (i >= c->sets[s].n_buckets)
			continue;
		*ret = { e->tokens, 0, e->cols, ways[e->way], e->own_us, e->library_us };
		for (uint32_t k = 0; k < e->n_jobs; k++)
			ret->rows += e->rows[k];
		return true;
	}
	return false;
}

void device_choose_for(double seconds)
{
	choice_budget_us = (uint64_t)(seconds * 1e6);
}
