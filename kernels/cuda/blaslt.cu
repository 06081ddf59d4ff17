/*
 * The table of cuBLASLt's calls. What is row-major here is column-major there: w is
 * transposed A, tokens are the columns of B, and y is D.
 */
#include "kernels/cuda/blaslt.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/blaslt-abi.h"
#include "kernels/cuda/calls.h"

#define FOUND_MAX 8
#define X_ALIGN 128

const char *blaslt_library;

struct blaslt {
	struct blaslt_calls call;
	blaslt_handle handle;
	blaslt_preference preference;
};

struct blaslt_product {
	struct blaslt *b;
	blaslt_desc plain, biased;
	blaslt_layout w, x, y;
	uint32_t tokens; /* that x and y have now */
};

static thread_local char why[256] = "no error";

const char *blaslt_why(void)
{
	return why;
}

static int find_all(void *library, struct blaslt_calls *c)
{
	const struct {
		const char *name;
		void *at;
	} symbols[] = {
		{ "cublasLtCreate", &c->create },
		{ "cublasLtDestroy", &c->destroy },
		{ "cublasLtGetVersion", &c->version },
		{ "cublasLtGetStatusName", &c->status_name },
		{ "cublasLtMatmulDescCreate", &c->desc_create },
		{ "cublasLtMatmulDescDestroy", &c->desc_destroy },
		{ "cublasLtMatmulDescSetAttribute", &c->desc_set },
		{ "cublasLtMatrixLayoutCreate", &c->layout_create },
		{ "cublasLtMatrixLayoutDestroy", &c->layout_destroy },
		{ "cublasLtMatrixLayoutSetAttribute", &c->layout_set },
		{ "cublasLtMatmulPreferenceCreate", &c->preference_create },
		{ "cublasLtMatmulPreferenceDestroy", &c->preference_destroy },
		{ "cublasLtMatmulPreferenceSetAttribute", &c->preference_set },
		{ "cublasLtMatmulAlgoGetHeuristic", &c->heuristic },
		{ "cublasLtMatmulAlgoCheck", &c->check },
		{ "cublasLtMatmul", &c->matmul },
	};

	for (const auto &symbol : symbols) {
		void *at = dlsym(library, symbol.name);

		if (!at) {
			snprintf(why, sizeof(why), "the library has no %s", symbol.name);
			return -ENOTSUP;
		}
		memcpy(symbol.at, &at, sizeof(at));
	}
	return 0;
}

/* What was loaded stays: drivers do not like to see code go. */
static int load(struct blaslt_calls *ret)
{
	static const char *const names[] = { "libcublasLt.so.13",
					     "/usr/local/cuda/lib64/libcublasLt.so.13",
					     "libcublasLt.so.12",
					     "/usr/local/cuda/lib64/libcublasLt.so.12" };
	const char *const *name = blaslt_library ? &blaslt_library : names;
	const char *const *end = name + (blaslt_library ? 1 : sizeof(names) / sizeof(*names));
	void *library = dlopen(*name, RTLD_NOW | RTLD_LOCAL);

	if (!library) /* by the name that it should have had */
		snprintf(why, sizeof(why), "%s", dlerror());
	while (!library && ++name < end)
		library = dlopen(*name, RTLD_NOW | RTLD_LOCAL);
	return library ? find_all(library, ret) : -ENOTSUP;
}

/*
 * Makes one call, or what calls_fail() wants instead. With @is_queued what the device
 * says is no refusal: it is lost.
 */
template <typename F>
static int make_call(const struct blaslt_calls *c, const char *name, bool is_queued, F f)
{
	cudaError_t due;
	int status;

	if (calls_due(&due)) {
		snprintf(why, sizeof(why), "%s: %s", name, cudaGetErrorString(due));
		return calls_result(due);
	}
	status = f();
	if (status == BLASLT_SUCCESS)
		return 0;
	snprintf(why, sizeof(why), "%s: %s", name, c->status_name(status));
	if (status == BLASLT_ALLOC_FAILED)
		return -ENOMEM;
	if (is_queued && (status == BLASLT_EXECUTION_FAILED || status == BLASLT_INTERNAL_ERROR ||
			  status == BLASLT_MAPPING_ERROR)) {
		due = cudaPeekAtLastError();
		return calls_result(due == cudaSuccess ? cudaErrorLaunchFailure : due);
	}
	return -ENOTSUP;
}

#define BLASLT_CALL(c, member, ...)                                                                \
	make_call(c, "cuBLASLt's " #member, false, [&] { return (c)->member(__VA_ARGS__); })

int blaslt_open(struct blaslt **ret)
{
	struct blaslt *b = (struct blaslt *)calloc(1, sizeof(*b));
	const uint32_t reductions = BLASLT_REDUCTION_COMPUTE_TYPE;
	int r;

	if (!b)
		return -ENOMEM;
	r = load(&b->call);
	if (r == 0)
		r = BLASLT_CALL(&b->call, create, &b->handle);
	if (r == 0)
		r = BLASLT_CALL(&b->call, preference_create, &b->preference);
	if (r == 0)
		r = BLASLT_CALL(&b->call, preference_set, b->preference, BLASLT_PREF_REDUCTION_MASK,
				&reductions, sizeof(reductions));
	if (r < 0) {
		blaslt_close(b);
		return r;
	}
	*ret = b;
	return 0;
}

struct blaslt *blaslt_close(struct blaslt *b)
{
	if (!b)
		return NULL;
	if (b->preference)
		(void)b->call.preference_destroy(b->preference);
	if (b->handle)
		(void)b->call.destroy(b->handle);
	free(b);
	return NULL;
}

/* 12.x says 120804 for 12.8.4 and 13.1.0 is 130100. */
uint32_t blaslt_version(const struct blaslt *b)
{
	return (uint32_t)b->call.version();
}

static int make_desc(const struct blaslt_calls *c, blaslt_desc *ret)
{
	const int32_t transposed = BLASLT_OP_T;
	int r = BLASLT_CALL(c, desc_create, ret, BLASLT_COMPUTE_32F, BLASLT_R_32F);

	return r < 0 ? r
		     : BLASLT_CALL(c, desc_set, *ret, BLASLT_DESC_TRANSA, &transposed,
				   sizeof(transposed));
}

int blaslt_product_new(struct blaslt *b, uint32_t rows, uint32_t cols, uint32_t w_pitch,
		       uint32_t x_pitch, struct blaslt_product **ret)
{
	struct blaslt_product *p = (struct blaslt_product *)calloc(1, sizeof(*p));
	const struct blaslt_calls *c = &b->call;
	const uint32_t epilogue = BLASLT_EPILOGUE_BIAS;
	int r;

	if (!p)
		return -ENOMEM;
	p->b = b;
	p->tokens = 1;
	r = make_desc(c, &p->plain);
	if (r == 0)
		r = make_desc(c, &p->biased);
	if (r == 0)
		r = BLASLT_CALL(c, desc_set, p->biased, BLASLT_DESC_EPILOGUE, &epilogue,
				sizeof(epilogue));
	if (r == 0)
		r = BLASLT_CALL(c, layout_create, &p->w, BLASLT_R_16BF, cols, rows, w_pitch);
	if (r == 0)
		r = BLASLT_CALL(c, layout_create, &p->x, BLASLT_R_16BF, cols, 1, x_pitch);
	if (r == 0)
		r = BLASLT_CALL(c, layout_create, &p->y, BLASLT_R_32F, rows, 1, rows);
	if (r < 0) {
		blaslt_product_free(p);
		return r;
	}
	*ret = p;
	return 0;
}

struct blaslt_product *blaslt_product_free(struct blaslt_product *p)
{
	if (!p)
		return NULL;
	for (blaslt_desc desc : { p->plain, p->biased })
		if (desc)
			(void)p->b->call.desc_destroy(desc);
	for (blaslt_layout layout : { p->w, p->x, p->y })
		if (layout)
			(void)p->b->call.layout_destroy(layout);
	free(p);
	return NULL;
}

/* Sets what differs from call to call. */
static int prepare(struct blaslt_product *p, uint32_t tokens, const float *bias, blaslt_desc *ret)
{
	const struct blaslt_calls *c = &p->b->call;
	const uint64_t cols = tokens;
	int r = 0;

	if (tokens != p->tokens) {
		p->tokens = 0;
		r = BLASLT_CALL(c, layout_set, p->x, BLASLT_LAYOUT_COLS, &cols, sizeof(cols));
		if (r == 0)
			r = BLASLT_CALL(c, layout_set, p->y, BLASLT_LAYOUT_COLS, &cols,
					sizeof(cols));
		if (r < 0)
			return r;
		p->tokens = tokens;
	}
	if (bias)
		r = BLASLT_CALL(c, desc_set, p->biased, BLASLT_DESC_BIAS_POINTER, &bias,
				sizeof(bias));
	*ret = bias ? p->biased : p->plain;
	return r;
}

int blaslt_find(struct blaslt_product *p, uint32_t tokens, uint32_t w_align, uint32_t y_align,
		const float *bias, size_t workspace_bytes, struct blaslt_algorithm *ret,
		uint32_t room)
{
	const struct blaslt *b = p->b;
	const struct blaslt_calls *c = &b->call;
	const uint64_t bytes = workspace_bytes;
	const uint32_t x_align = X_ALIGN;
	const struct {
		int attribute;
		const void *value;
		size_t bytes;
	} wishes[] = {
		{ BLASLT_PREF_WORKSPACE_BYTES, &bytes, sizeof(bytes) },
		{ BLASLT_PREF_ALIGN_A, &w_align, sizeof(w_align) },
		{ BLASLT_PREF_ALIGN_B, &x_align, sizeof(x_align) },
		{ BLASLT_PREF_ALIGN_C, &y_align, sizeof(y_align) },
		{ BLASLT_PREF_ALIGN_D, &y_align, sizeof(y_align) },
	};
	struct blaslt_found found[FOUND_MAX];
	blaslt_desc desc;
	uint32_t kept = 0;
	int r, n = 0;

	r = prepare(p, tokens, bias, &desc);
	for (const auto &wish : wishes)
		if (r == 0)
			r = BLASLT_CALL(c, preference_set, b->preference, wish.attribute,
					wish.value, wish.bytes);
	if (r == 0)
		r = BLASLT_CALL(c, heuristic, b->handle, desc, p->w, p->x, p->y, p->y,
				b->preference, (int)(room < FOUND_MAX ? room : FOUND_MAX), found,
				&n);
	if (r < 0)
		return r;
	for (int i = 0; i < n && i < FOUND_MAX; i++)
		if (found[i].state == BLASLT_SUCCESS && found[i].workspace_bytes <= workspace_bytes)
			memcpy(ret[kept++].data, found[i].algorithm, sizeof(ret->data));
	return kept ? (int)kept : -ENOTSUP;
}

int blaslt_check(struct blaslt_product *p, uint32_t tokens, const float *bias,
		 const struct blaslt_algorithm *a, size_t workspace_bytes)
{
	const struct blaslt *b = p->b;
	struct blaslt_found found;
	blaslt_desc desc;
	int r;

	r = prepare(p, tokens, bias, &desc);
	if (r == 0)
		r = BLASLT_CALL(&b->call, check, b->handle, desc, p->w, p->x, p->y, p->y, a->data,
				&found);
	if (r == 0 && found.workspace_bytes > workspace_bytes)
		r = -ENOTSUP;
	return r;
}

int blaslt_multiply(struct blaslt_product *p, const struct blaslt_algorithm *a, float *y,
		    const void *w, const void *x, uint32_t tokens, const float *bias, bool add,
		    void *workspace, size_t workspace_bytes, cudaStream_t stream)
{
	const struct blaslt *b = p->b;
	const float one = 1, old = add ? 1 : 0;
	blaslt_desc desc;
	const int r = prepare(p, tokens, bias, &desc);

	return r < 0 ? r : make_call(&b->call, "cublasLtMatmul", true, [&] {
		return b->call.matmul(b->handle, desc, &one, w, p->w, x, p->x, &old, y, p->y, y,
				      p->y, a->data, workspace, workspace_bytes, stream);
	});
}
