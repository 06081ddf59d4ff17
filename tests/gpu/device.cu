/* Random data, times, and cuBLASLt behind tests/gpu/device.h. */
#include <cublasLt.h>
#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>

#include "kernels/cuda/cuda.h"

extern "C" {
#include "tests/gpu/device.h"
}

#define FILL_THREADS 256
#define WORKSPACE_BYTES ((size_t)64 << 20)

struct marks {
	uint32_t n;
	cudaEvent_t events[];
};

/* The finalizer of splitmix64: any two numbers give unrelated bits. */
static __device__ uint64_t scrambled(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

static __device__ float noise_of(uint64_t seed, size_t i, float scale)
{
	const uint64_t bits = scrambled(seed * 0x9e3779b97f4a7c15u + i + 1);
	const float size = 0.25f + 0.75f * (float)(bits >> 40) / 16777216.0f;

	return bits & 1 ? size * scale : -size * scale;
}

static __global__ void k_fill_bf16(uint16_t *at, size_t n, float scale, uint64_t seed)
{
	const size_t stride = (size_t)gridDim.x * blockDim.x;

	for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride)
		at[i] = (uint16_t)(__float_as_uint(noise_of(seed, i, scale)) >> 16);
}

static __global__ void k_fill_f32(float *at, size_t n, float scale, uint64_t seed)
{
	const size_t stride = (size_t)gridDim.x * blockDim.x;

	for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride)
		at[i] = noise_of(seed, i, scale);
}

int device_fill(struct stream *st, void *at, size_t n, enum dtype type, float scale, uint64_t seed)
{
	const dim3 grid(st->dev->n_sm * 8), block(FILL_THREADS);

	if (type == DT_BF16)
		return launch(st, LAUNCH_PLAIN, k_fill_bf16, grid, block, 0, (uint16_t *)at, n,
			      scale, seed);
	return launch(st, LAUNCH_PLAIN, k_fill_f32, grid, block, 0, (float *)at, n, scale, seed);
}

size_t device_free_bytes(void)
{
	size_t free_bytes = 0, total;

	(void)cudaMemGetInfo(&free_bytes, &total);
	return free_bytes;
}

size_t device_l2_bytes(const struct dev *dev)
{
	return dev->l2_bytes;
}

struct marks *marks_new(uint32_t n)
{
	struct marks *m = (struct marks *)calloc(1, sizeof(*m) + n * sizeof(cudaEvent_t));

	if (!m)
		return NULL;
	m->n = n;
	for (uint32_t i = 0; i < n; i++)
		if (cudaEventCreate(&m->events[i]) != cudaSuccess)
			return marks_free(m);
	return m;
}

struct marks *marks_free(struct marks *m)
{
	for (uint32_t i = 0; m && i < m->n; i++)
		if (m->events[i])
			(void)cudaEventDestroy(m->events[i]);
	free(m);
	return NULL;
}

int marks_set(struct marks *m, struct stream *st, uint32_t i)
{
	return CUDA_CALL(cudaEventRecord(m->events[i], st->handle));
}

double marks_us(struct marks *m, uint32_t from, uint32_t to)
{
	float ms;

	if (cudaEventElapsedTime(&ms, m->events[from], m->events[to]) != cudaSuccess)
		return NAN;
	return ms * 1e3;
}

struct peak {
	cublasLtHandle_t handle;
	cublasLtMatmulDesc_t product;
	cublasLtMatrixLayout_t layout;
	cublasLtMatmulAlgo_t algorithm;
	void *a, *b, *c, *workspace;
	decltype(&cublasLtMatmul) multiply;
};

static void *open_library(void)
{
	static const char *const names[] = {
		"libcublasLt.so.13", "/usr/local/cuda/lib64/libcublasLt.so.13", "libcublasLt.so.12",
		"/usr/local/cuda/lib64/libcublasLt.so.12",
	};
	void *library = NULL;

	for (const char *name : names)
		if (!library)
			library = dlopen(name, RTLD_NOW);
	return library;
}

#define FIND(name) decltype(&name) call_##name = (decltype(&name))dlsym(library, #name)

/* Asks cuBLASLt what it would do with such a product: column-major, which is all the same to squares. */
static const char *choose(struct peak *p, void *library, uint32_t n)
{
	FIND(cublasLtCreate);
	FIND(cublasLtMatmulDescCreate);
	FIND(cublasLtMatrixLayoutCreate);
	FIND(cublasLtMatmulPreferenceCreate);
	FIND(cublasLtMatmulPreferenceSetAttribute);
	FIND(cublasLtMatmulAlgoGetHeuristic);
	const size_t workspace = WORKSPACE_BYTES;
	cublasLtMatmulHeuristicResult_t result;
	cublasLtMatmulPreference_t preference;
	int found = 0;

	p->multiply = (decltype(&cublasLtMatmul))dlsym(library, "cublasLtMatmul");
	if (!call_cublasLtCreate || !call_cublasLtMatmulDescCreate ||
	    !call_cublasLtMatrixLayoutCreate || !call_cublasLtMatmulPreferenceCreate ||
	    !call_cublasLtMatmulPreferenceSetAttribute || !call_cublasLtMatmulAlgoGetHeuristic ||
	    !p->multiply)
		return "cuBLASLt lacks a function";
	if (call_cublasLtCreate(&p->handle) || call_cublasLtMatmulDescCreate(
						       &p->product, CUBLAS_COMPUTE_32F, CUDA_R_32F) ||
	    call_cublasLtMatrixLayoutCreate(&p->layout, CUDA_R_16BF, n, n, n) ||
	    call_cublasLtMatmulPreferenceCreate(&preference) ||
	    call_cublasLtMatmulPreferenceSetAttribute(preference,
						      CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
						      &workspace, sizeof(workspace)) ||
	    call_cublasLtMatmulAlgoGetHeuristic(p->handle, p->product, p->layout, p->layout,
						p->layout, p->layout, preference, 1, &result,
						&found) ||
	    found == 0)
		return "cuBLASLt knows no way";
	p->algorithm = result.algo;
	return NULL;
}

struct peak *peak_open(struct dev *dev, struct stream *st, uint32_t n, const char **ret_why)
{
	struct peak *p = (struct peak *)calloc(1, sizeof(*p));
	void *library = open_library(), **const rooms[] = { &p->a, &p->b, &p->c, &p->workspace };
	const size_t bytes = (size_t)n * n * 2;

	*ret_why = library ? choose(p, library, n) : "libcublasLt.so.13 cannot be loaded";
	if (*ret_why)
		return NULL;
	for (void **room : rooms) {
		*room = dev_reserve(dev, bytes > WORKSPACE_BYTES ? bytes : WORKSPACE_BYTES);
		if (!*room ||
		    dev_back(dev, *room, bytes > WORKSPACE_BYTES ? bytes : WORKSPACE_BYTES) < 0) {
			*ret_why = "no memory";
			return NULL;
		}
	}
	if (device_fill(st, p->a, (size_t)n * n, DT_BF16, 1, 1) < 0 ||
	    device_fill(st, p->b, (size_t)n * n, DT_BF16, 1, 2) < 0) {
		*ret_why = calls_why();
		return NULL;
	}
	return p;
}

int peak_multiply(struct peak *p, struct stream *st)
{
	const float one = 1, zero = 0;

	return p->multiply(p->handle, p->product, &one, p->a, p->layout, p->b, p->layout, &zero,
			   p->c, p->layout, p->c, p->layout, &p->algorithm, p->workspace,
			   WORKSPACE_BYTES, st->handle)
		       ? -EIO
		       : 0;
}
