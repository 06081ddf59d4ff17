/*
 * Tensors, packed weights, and the one name each dimension has:
 *
 *	tokens		rows of a batch		dim		hidden size
 *	heads		query heads		kv_heads	key/value heads
 *	head_dim	size of a head		ffn_dim		width of an MLP
 *	experts		routed experts		top_k		experts chosen for a token
 *	vocab		rows of the head	pages, page_tokens	of the KV cache
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum dtype { DT_NONE, DT_F32, DT_BF16, DT_F16, DT_I32, DT_I64, DT_U32 };

/* Dense, row-major, innermost last: [shape[0], shape[1], shape[2]]; unused leading dimensions are 1. */
struct tensor {
	void *data;
	enum dtype type;
	uint32_t shape[3];
};

static inline size_t dtype_bytes(enum dtype type)
{
	switch (type) {
	case DT_F32: case DT_I32: case DT_U32: return 4;
	case DT_BF16: case DT_F16: return 2;
	case DT_I64: return 8;
	case DT_NONE: break;
	}
	return 0;
}

static inline size_t tensor_elements(const struct tensor *t)
{
	return (size_t)t->shape[0] * t->shape[1] * t->shape[2];
}

/* How a backend holds the matrix of a Linear: y = W x, W [rows, cols]. */
enum weight_kind {
	WEIGHT_NONE,
	WEIGHT_BF16,
	WEIGHT_F32,	   /* F16 and F32 checkpoints: F16 widens exactly */
	WEIGHT_INT4,	   /* groups of 32 columns, BF16 scales */
	WEIGHT_INT4_F32,   /* groups of 32 columns, F32 scales (F16 widens exactly) */
};

/* A matrix in the backend's own layout, as op_repack() writes it. */
struct weight {
	enum weight_kind kind; /* WEIGHT_NONE: there is none (a bias left out, a tied head) */
	uint32_t rows, cols;
	void *data;	       /* weight_bytes(kind, rows, cols), aligned to 64 */
};

/* A matrix as a checkpoint has it. */
struct weight_source {
	uint32_t rows, cols;
	enum dtype type;	/* BF16, F16, F32; or I32: int4 codes, 8 to a word along the columns */
	const void *data;	/* [rows, cols], or I32 [rows, ceil(cols / 8)], any alignment */
	const void *scales;	/* I32: [rows, cols / group] */
	enum dtype scale_type;	/* BF16, F16, F32 */
	uint32_t group;		/* columns that share a scale: a multiple of 32, or cols itself */
};
