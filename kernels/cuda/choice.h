/*
 * Which way products of BF16 matrices with more tokens than 4 are computed: by
 * kernels of ours or by cuBLASLt, as op_linears_choose() has measured it for sets of
 * matrices that have their activations in common.
 */
#pragma once

#include "kernels/cuda/blaslt.h"
#include "kernels/cuda/matrix.h"

extern "C" {
#include "kernels/cuda/choicefile.h"
}

#define CHOICE_SETS_MAX 16
#define CHOICE_BUCKETS_MAX 16		    /* 8, 16, 32 … tokens */
#define CHOICE_ROOM_MAX ((size_t)32 << 20)  /* that the library works in */

struct choice_bucket {
	struct choicefile_entry entry; /* for up to entry.tokens */
	uint8_t *known;		       /* [entry.tokens + 1]: of each number CHOICE_FITS, CHOICE_REFUSED or 0 */
};
enum { CHOICE_FITS = 1, CHOICE_REFUSED };

struct choice_set {
	uint32_t cols, n_jobs, rows[OP_LINEARS_MAX], flags[OP_LINEARS_MAX];
	uint32_t w_align, y_align;
	struct blaslt_product *products[CHOICEFILE_WAYS][OP_LINEARS_MAX];
	uint32_t n_buckets;
	struct choice_bucket buckets[CHOICE_BUCKETS_MAX]; /* by rising tokens */
};

struct choice {
	struct blaslt *library;
	uint32_t n_sets;
	struct choice_set sets[CHOICE_SETS_MAX];
};

/*
 * The BF16 ones among @jobs, checked, if the library is to compute them.
 *
 * split	of their activations
 * at		where the stream's scratch is free from
 *
 * Returns 1: they are queued; 0: they are left to kernels of ours; or a negative errno.
 */
int choice_run(struct stream *st, const struct linear_job *jobs, uint32_t n_jobs,
	       const uint16_t *split, uint32_t tokens, uint32_t cols, size_t at);
struct choice *choice_free(struct choice *c);

extern uint64_t choice_budget_us; /* after which op_linears_choose() begins to time nothing more */

/* For op_linears_choose(). The jobs that are BF16; how many. */
uint32_t choice_jobs(const struct linear_job *jobs, uint32_t n_jobs, const struct linear_job **ret);
uint32_t choice_flags(const struct linear_job *job);
struct choice_set *choice_find(struct choice *c, const struct linear_job *const *jobs, uint32_t n,
			       uint32_t cols);
uint32_t choice_alignment(const void *at); /* a power of two up to 256 */

/* What one way needs beside the split activations. */
struct choice_room {
	float *sums; /* of BESIDE: [2 * tokens][rows] of the largest matrix */
	void *workspace;
	size_t workspace_bytes;
};

/* False: there is none. */
bool choice_room(const struct stream *st, const struct choice_set *set, uint32_t way, uint32_t tokens,
		 size_t at, struct choice_room *ret);
/* Whether the library would do job @i of a set so. 0, -ENOTSUP, or what is worse. */
int choice_check(const struct choice_set *set, uint32_t way, uint32_t i,
		 const struct blaslt_algorithm *a, const float *bias, uint32_t tokens,
		 const struct choice_room *room);
/* Queues it. 0; -ENOTSUP: nothing was queued; or what is worse. */
int choice_multiply(struct stream *st, const struct choice_set *set, uint32_t way, uint32_t i,
		    const struct blaslt_algorithm *a, const struct linear_job *job,
		    const uint16_t *split, uint32_t tokens, const struct choice_room *room);
