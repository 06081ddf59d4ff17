/*
 * A libcublasLt that keeps account, for the emulator: it computes on the host in the
 * stream's order, refuses what the true one refuses, spoils the workspace that an
 * algorithm says it needs, and writes down what it multiplies.
 *
 * It has three algorithms for a product: number 0 is slow, number 1 is not, and number
 * 2, slow too, does not take an odd number of tokens.
 */
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OK = 0, INVALID = 7, FAILED = 13, UNSUPPORTED = 15 };
#define ALGORITHMS 3
#define MAGIC 0x636c6177u
#define SPOILED 4096 /* bytes of workspace that algorithms need */

struct desc {
	int compute, scale, transposed;
	uint32_t epilogue;
	const float *bias;
};
struct layout {
	int type;
	uint64_t rows, cols;
	int64_t pitch;
};
struct preference {
	uint64_t workspace;
	uint32_t reductions, align[4];
};
struct found {
	uint64_t algorithm[8];
	size_t workspace;
	int state;
	float waves;
	int reserved[4];
};

/* What a test wants of it. */
void fake_blaslt_behave(
	const char *how); /* "": well; "wrong", "slow", "none", "fails", "starts not" */
const char *fake_blaslt_log(void);
void fake_blaslt_forget(void);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards all below */
static char behaviour[16], log_text[65536];

int cudaLaunchHostFunc(void *stream, void (*fn)(void *userdata), void *userdata);

int cublasLtCreate(void **ret);
int cublasLtDestroy(void *handle);
size_t cublasLtGetVersion(void);
const char *cublasLtGetStatusName(int status);
int cublasLtMatmulDescCreate(struct desc **ret, int compute, int scale);
int cublasLtMatmulDescDestroy(struct desc *d);
int cublasLtMatmulDescSetAttribute(struct desc *d, int attribute, const void *value, size_t bytes);
int cublasLtMatrixLayoutCreate(struct layout **ret, int type, uint64_t rows, uint64_t cols,
			       int64_t pitch);
int cublasLtMatrixLayoutDestroy(struct layout *l);
int cublasLtMatrixLayoutSetAttribute(struct layout *l, int attribute, const void *value,
				     size_t bytes);
int cublasLtMatmulPreferenceCreate(struct preference **ret);
int cublasLtMatmulPreferenceDestroy(struct preference *p);
int cublasLtMatmulPreferenceSetAttribute(struct preference *p, int attribute, const void *value,
					 size_t bytes);
int cublasLtMatmulAlgoGetHeuristic(void *handle, struct desc *d, struct layout *a, struct layout *b,
				   struct layout *c, struct layout *y, struct preference *p,
				   int room, struct found *ret, int *ret_n);
int cublasLtMatmulAlgoCheck(void *handle, struct desc *d, struct layout *a, struct layout *b,
			    struct layout *c, struct layout *y, const uint64_t *algorithm,
			    struct found *ret);
int cublasLtMatmul(void *handle, struct desc *d, const float *alpha, const void *a,
		   struct layout *la, const void *b, struct layout *lb, const float *beta,
		   const void *c, struct layout *lc, void *y, struct layout *ly,
		   const uint64_t *algorithm, void *workspace, size_t workspace_bytes,
		   void *stream);

void fake_blaslt_behave(const char *how)
{
	pthread_mutex_lock(&lock);
	snprintf(behaviour, sizeof(behaviour), "%s", how);
	pthread_mutex_unlock(&lock);
}

/* Or what the environment says, in a process that no test is in. */
static bool behaves(const char *how)
{
	const char *set = getenv("FAKE_BLASLT");
	bool does;

	pthread_mutex_lock(&lock);
	does = strcmp(behaviour, how) == 0 || (set && strcmp(set, how) == 0);
	pthread_mutex_unlock(&lock);
	return does;
}

const char *fake_blaslt_log(void)
{
	return log_text;
}

void fake_blaslt_forget(void)
{
	memset(log_text, 0, sizeof(log_text));
}

__attribute__((format(printf, 1, 2))) static void note(const char *format, ...)
{
	size_t len;
	va_list ap;

	pthread_mutex_lock(&lock);
	len = strlen(log_text);
	va_start(ap, format);
	vsnprintf(log_text + len, sizeof(log_text) - len, format, ap);
	va_end(ap);
	pthread_mutex_unlock(&lock);
}

int cublasLtCreate(void **ret)
{
	if (behaves("starts not"))
		return 1;
	*ret = malloc(1);
	return OK;
}

int cublasLtDestroy(void *handle)
{
	free(handle);
	return OK;
}

size_t cublasLtGetVersion(void)
{
	return 130203;
}

const char *cublasLtGetStatusName(int status)
{
	return status == 1	       ? "CUBLAS_STATUS_NOT_INITIALIZED"
	       : status == INVALID     ? "CUBLAS_STATUS_INVALID_VALUE"
	       : status == FAILED      ? "CUBLAS_STATUS_EXECUTION_FAILED"
	       : status == UNSUPPORTED ? "CUBLAS_STATUS_NOT_SUPPORTED"
				       : "?";
}

int cublasLtMatmulDescCreate(struct desc **ret, int compute, int scale)
{
	*ret = calloc(1, sizeof(**ret));
	**ret = (struct desc){ .compute = compute, .scale = scale, .epilogue = 1 };
	return OK;
}

int cublasLtMatmulDescDestroy(struct desc *d)
{
	free(d);
	return OK;
}

/* Takes a value of just the size that it should have. */
static int take(void *to, size_t size, const void *value, size_t bytes)
{
	if (bytes != size)
		return INVALID;
	memcpy(to, value, size);
	return OK;
}

int cublasLtMatmulDescSetAttribute(struct desc *d, int attribute, const void *value, size_t bytes)
{
	switch (attribute) {
	case 3:
		return take(&d->transposed, sizeof(d->transposed), value, bytes);
	case 7:
		return take(&d->epilogue, sizeof(d->epilogue), value, bytes);
	case 8:
		return take(&d->bias, sizeof(d->bias), value, bytes);
	default:
		return INVALID;
	}
}

int cublasLtMatrixLayoutCreate(struct layout **ret, int type, uint64_t rows, uint64_t cols,
			       int64_t pitch)
{
	*ret = calloc(1, sizeof(**ret));
	**ret = (struct layout){ type, rows, cols, pitch };
	return OK;
}

int cublasLtMatrixLayoutDestroy(struct layout *l)
{
	free(l);
	return OK;
}

int cublasLtMatrixLayoutSetAttribute(struct layout *l, int attribute, const void *value,
				     size_t bytes)
{
	return attribute == 3 ? take(&l->cols, sizeof(l->cols), value, bytes) : INVALID;
}

int cublasLtMatmulPreferenceCreate(struct preference **ret)
{
	*ret = calloc(1, sizeof(**ret));
	**ret = (struct preference){ 0, 7, { 256, 256, 256, 256 } };
	return OK;
}

int cublasLtMatmulPreferenceDestroy(struct preference *p)
{
	free(p);
	return OK;
}

int cublasLtMatmulPreferenceSetAttribute(struct preference *p, int attribute, const void *value,
					 size_t bytes)
{
	if (attribute == 1)
		return take(&p->workspace, sizeof(p->workspace), value, bytes);
	if (attribute == 3)
		return take(&p->reductions, sizeof(p->reductions), value, bytes);
	if (attribute >= 5 && attribute <= 8)
		return take(&p->align[attribute - 5], sizeof(p->align[0]), value, bytes);
	return INVALID;
}

/* BF16 times BF16 in F32, A transposed; a bias where the epilogue wants one, and none elsewhere. */
static bool fits(const struct desc *d, const struct layout *a, const struct layout *b,
		 const struct layout *c, const struct layout *y)
{
	return d->compute == 68 && d->scale == 0 && d->transposed == 1 && c == y && a->type == 14 &&
	       b->type == 14 && y->type == 0 && a->rows == b->rows && a->cols == y->rows &&
	       b->cols == y->cols && a->pitch >= (int64_t)a->rows && b->pitch >= (int64_t)b->rows &&
	       y->pitch >= (int64_t)y->rows && a->pitch % 8 == 0 && b->pitch % 8 == 0 &&
	       (d->epilogue == 1 || (d->epilogue == 4 && d->bias));
}

static uint64_t align_of(const struct preference *p)
{
	return p->align[0] < 16 || p->align[1] < 16 || p->align[2] < 4 || p->align[3] < 4 ? 0 : 1;
}

static int state_of(uint64_t number, const struct layout *y)
{
	return number == 2 && y->cols % 2 ? UNSUPPORTED : OK;
}

int cublasLtMatmulAlgoGetHeuristic(void *handle, struct desc *d, struct layout *a, struct layout *b,
				   struct layout *c, struct layout *y, struct preference *p,
				   int room, struct found *ret, int *ret_n)
{
	(void)handle;
	if (!fits(d, a, b, c, y) || p->reductions != 2)
		return INVALID;
	*ret_n = 0;
	if (!align_of(p) || p->workspace < SPOILED || behaves("none"))
		return UNSUPPORTED;
	for (uint64_t i = 0; i < ALGORITHMS && *ret_n < room; i++)
		ret[(*ret_n)++] = (struct found){
			{ MAGIC, i, a->cols, a->rows }, SPOILED, state_of(i, y), 1, { 0 }
		};
	return OK;
}

int cublasLtMatmulAlgoCheck(void *handle, struct desc *d, struct layout *a, struct layout *b,
			    struct layout *c, struct layout *y, const uint64_t *algorithm,
			    struct found *ret)
{
	(void)handle;
	if (!fits(d, a, b, c, y) || algorithm[0] != MAGIC || algorithm[1] >= ALGORITHMS ||
	    algorithm[2] != a->cols || algorithm[3] != a->rows)
		return INVALID;
	ret->workspace = SPOILED;
	ret->state = state_of(algorithm[1], y);
	return ret->state;
}

/* One product, as it will be computed whenever the stream comes to it. */
struct product {
	struct layout a, b, y;
	const uint16_t *w, *x;
	const float *bias;
	float *to, beta;
	void *workspace;
	long pause_ns;
	bool wrong;
	struct product *next;
};
static struct product *products; /* for as long as they may be replayed: for ever */

static float widened(uint16_t bf16)
{
	const uint32_t bits = (uint32_t)bf16 << 16;
	float f;

	memcpy(&f, &bits, sizeof(f));
	return f;
}

static void compute(void *userdata)
{
	const struct product *p = userdata;
	const struct timespec pause = { 0, p->pause_ns };

	memset(p->workspace, 0xa5, SPOILED);
	if (p->pause_ns)
		nanosleep(&pause, NULL);
	for (uint64_t t = 0; t < p->y.cols; t++)
		for (uint64_t r = 0; r < p->y.rows; r++) {
			float *to = p->to + t * p->y.pitch + r;
			double sum = p->wrong ? 1 : 0;

			for (uint64_t k = 0; k < p->a.rows; k++)
				sum += (double)widened(p->w[r * p->a.pitch + k]) *
				       widened(p->x[t * p->b.pitch + k]);
			/* what is not wanted is not read, as the true one does it */
			*to = (float)sum + (p->beta != 0 ? p->beta * *to : 0) +
			      (p->bias ? p->bias[r] : 0);
		}
}

int cublasLtMatmul(void *handle, struct desc *d, const float *alpha, const void *a,
		   struct layout *la, const void *b, struct layout *lb, const float *beta,
		   const void *c, struct layout *lc, void *y, struct layout *ly,
		   const uint64_t *algorithm, void *workspace, size_t workspace_bytes, void *stream)
{
	struct found found;
	const int r = cublasLtMatmulAlgoCheck(handle, d, la, lb, lc, ly, algorithm, &found);
	struct product *p;

	if (r != OK)
		return r;
	if (*alpha != 1 || c != y || workspace_bytes < SPOILED || (uintptr_t)workspace % 256 ||
	    (uintptr_t)a % 16 || (uintptr_t)b % 16 || (uintptr_t)y % 4)
		return INVALID;
	if (behaves("fails"))
		return FAILED;
	note("%llu x %llu, %llu tokens, algorithm %llu%s%s\n", (unsigned long long)ly->rows,
	     (unsigned long long)la->rows, (unsigned long long)ly->cols,
	     (unsigned long long)algorithm[1], d->epilogue == 4 ? ", bias" : "",
	     *beta != 0 ? ", added" : "");
	p = malloc(sizeof(*p));
	*p = (struct product){
		.a = *la,
		.b = *lb,
		.y = *ly,
		.w = a,
		.x = b,
		.bias = d->epilogue == 4 ? d->bias : NULL,
		.to = y,
		.beta = *beta,
		.workspace = workspace,
		.pause_ns = behaves("slow")	? 20000000
			    : algorithm[1] == 1 ? 0
						: 1000000,
		.wrong = behaves("wrong"),
	};
	pthread_mutex_lock(&lock);
	p->next = products;
	products = p;
	pthread_mutex_unlock(&lock);
	return cudaLaunchHostFunc(stream, compute, p) ? FAILED : OK;
}
