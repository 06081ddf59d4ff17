/*
 * What a model takes of each of a number of GPUs, to the byte where it is ours
 * to decide, computed before anything is allocated: from the shapes of the
 * model and the configured maxima alone, without a GPU and without reading
 * weights. What is planned here is what the executor takes.
 *
 * Of what the driver and its libraries take, this file says what it assumes.
 */
#pragma once

#include <stdio.h>

#include "daemon/exec/weights/checkpoint.h"
#include "daemon/exec/weights/share.h"

#define MEMPLAN_GPUS_MAX SHARE_RANKS_MAX
#define MEMPLAN_CONTEXT 131072u /* tokens where nothing is said; or the model's maximum */

/*
 * Assumed, in bytes a card:
 *
 * CONTEXT	a CUDA context with the executor's and cuBLASLt's code loaded; bare contexts
 *		are reported at 200 … 500 MiB, by card and driver
 * NODE		of one kernel of one recorded graph, of which a layer has at most KERNELS_PER_LAYER,
 *		KERNELS_OF_LIBRARY more where cuBLASLt computes q, k, v and o (each half of
 *		the activations by a product and the sum of its parts), and a step
 *		KERNELS_AROUND more
 * RANK, RANKS	NCCL with few channels: so much, and so much again for each rank
 */
#define MEMPLAN_CONTEXT_BYTES ((uint64_t)448 << 20)
#define MEMPLAN_KERNELS_PER_LAYER 14u
#define MEMPLAN_KERNELS_OF_LIBRARY 14u
#define MEMPLAN_KERNELS_AROUND 6u
#define MEMPLAN_NODE_BYTES ((uint64_t)16 << 10)
#define MEMPLAN_RANKS_BYTES ((uint64_t)128 << 20)
#define MEMPLAN_RANK_BYTES ((uint64_t)32 << 20)

/* A model: one that is there, or one of which only the dimensions are known. */
struct memplan_model {
	const char *name;
	struct config config;
	const struct checkpoint *checkpoint; /* NULL: experts int4 with BF16 scales, all else BF16 */
};

/* GLM-4.5-Air. */
void memplan_air(struct memplan_model *ret);

struct memplan_limits {
	uint32_t n_gpus;
	uint64_t card_bytes;	/* what there is for one process on each, before it begins */
	uint32_t context_tokens; /* of the KV cache, all sequences together */
	uint32_t page_tokens;
	uint32_t max_rows;	/* sequences computed at once, and slots */
	uint32_t batch_tokens;	/* of one step */
};

enum memplan_part {
	MEMPLAN_EXPERTS, MEMPLAN_ATTENTION, MEMPLAN_SHARED, MEMPLAN_DENSE, MEMPLAN_SMALL,
	MEMPLAN_EMBEDDING, MEMPLAN_HEAD,
	MEMPLAN_WEIGHTS_END, /* those above are one region */
	MEMPLAN_KV = MEMPLAN_WEIGHTS_END, MEMPLAN_WORKSPACE, MEMPLAN_SLOTS,
	MEMPLAN_GRAPHS, MEMPLAN_RANKS, MEMPLAN_DRIVER, MEMPLAN_PARTS,
};
const char *memplan_part_name(enum memplan_part part);

/*
 * The passes that are recorded (decode; here a power of two of rows or all of them)
 * or launched eagerly (as many tokens as a step may have), and what each could do
 * with, were its buffers placed by the times they are needed. Only one runs at a
 * time, so they share the workspace; it has a place for every buffer.
 */
struct memplan_pass {
	uint32_t tokens;
	bool decode;
	uint64_t bytes;
};
#define MEMPLAN_PASSES_MAX 40

struct memplan {
	struct memplan_limits limits;
	uint64_t part_bytes[MEMPLAN_PARTS]; /* on each card; the largest, should they differ */
	uint64_t weights_bytes;		    /* of the region: the parts of the weights, rounded to granules */
	uint64_t total_bytes;
	int64_t spare_bytes;		    /* of card_bytes; below 0: it does not fit */
	uint64_t page_bytes;
	uint32_t n_pages, group_pages;	    /* of the KV pool, see kernels/cuda/pagepool.h */
	uint32_t context_fits;		    /* the most tokens that do; 0: not even a page */
	uint32_t n_passes;
	struct memplan_pass passes[MEMPLAN_PASSES_MAX];
};

/* Pages of the KV cache that come and go together on a device, see kernels/cuda/pagepool.h. */
uint32_t memplan_group_pages(size_t page_bytes, uint32_t n_pages);

/*
 * Returns 0, also if it does not fit; -EINVAL for limits that make no sense;
 * -ENOTSUP with what cannot be divided among so many GPUs, or packed.
 */
int memplan_make(const struct memplan_model *m, const struct memplan_limits *limits,
		 struct memplan *ret, struct err *err);
/* 0, or -ENOSPC with how much is wanting, and the context that would fit. */
int memplan_fits(const struct memplan *p, struct err *err);
void memplan_print(const struct memplan *p, const struct memplan_model *m, FILE *f);

/*
 * What one process may have of a card, from "96GB": the size it is sold as, in
 * truth GiB, less what driver and hardware keep for themselves; or from
 * "94.5GiB", "96768MiB": just that.
 *
 * Kept: 256 MiB and a 120th. cudaMemGetInfo() totals that users of PyTorch
 * report: 23.5 … 23.7 GiB of 24 (RTX 3090, 4090), 47.4 … 47.5 of 48 (A6000 and
 * RTX 6000 Ada with ECC off; on, it takes 3 GiB more), 79.1 of 80 (H100),
 * 94.97 of 96 (RTX PRO 6000), 139.8 of 141 (H200). By this rule: 23.55, 47.35,
 * 79.08, 94.95, 139.58.
 *
 * Returns 0 or -EINVAL with a sentence.
 */
int memplan_card_bytes(const char *text, uint64_t *ret, struct err *err);

/*
 * The buffers of one pass, with the points of a layer between which they are
 * needed; lifetimes_place() (kernels/cuda/lifetimes.h) says where they stand.
 * A buffer that a pass has not, has no bytes.
 */
enum memplan_buffer {
	MEMPLAN_HIDDEN,		/* F32 [tokens, dim]: the residual stream */
	MEMPLAN_NORM,		/* F32 [tokens, dim], before attention */
	MEMPLAN_Q,		/* F32 [tokens, heads, head_dim] */
	MEMPLAN_K, MEMPLAN_V,	/* F32 [tokens, kv_heads, head_dim] */
	MEMPLAN_PARTIALS,	/* F32: of attention that is cut along the context */
	MEMPLAN_ATTENDED,	/* F32 [tokens, heads, head_dim] */
	MEMPLAN_SUMMED,		/* F32 [tokens, dim]: to be added up over the ranks, after attention */
	MEMPLAN_NORM2,		/* F32 [tokens, dim], before the MLP */
	MEMPLAN_SCORES,		/* F32 [tokens, experts] */
	MEMPLAN_CHOSEN,		/* u32 and F32 [tokens, top_k] */
	MEMPLAN_LISTS,		/* u32: rows by expert, each expert's padded to 8, and where they begin */
	MEMPLAN_ACTIVATED,	/* F32 [tokens, top_k, moe_ffn_dim] or, if that is more, [tokens, ffn_dim] */
	MEMPLAN_SHARED_ACTIVATED, /* F32 [tokens, moe_ffn_dim * shared_experts] */
	MEMPLAN_PLAIN,		/* BF16: one expert's matrices, for batches of over MEMPLAN_PLAIN_TOKENS */
	MEMPLAN_ADDED,		/* F32 [tokens, dim]: the MLP's, to be added up over experts and ranks */
	MEMPLAN_LAST,		/* F32 [rows, dim] */
	MEMPLAN_LOGITS,		/* F32 [rows, vocab] */
	MEMPLAN_BLAS,		/* cuBLASLt's own */
	MEMPLAN_BUFFERS,
};
#define MEMPLAN_PLAIN_TOKENS 256
#define MEMPLAN_BUFFER_ALIGN 256

struct lifetime;
/* @ret	MEMPLAN_BUFFERS of them, of one rank;  @tokens	at most batch_tokens */
void memplan_buffers(const struct config *c, const struct memplan_limits *limits, uint32_t tokens,
		     struct lifetime *ret);
