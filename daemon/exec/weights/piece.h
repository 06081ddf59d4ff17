/*
 * One piece of a checkpoint: rows of a matrix, or a whole vector, from the
 * bytes of files to where they stand in memory.
 */
#pragma once

#include "daemon/exec/weights/checkpoint.h"

struct dev;
struct fingerprint;

struct piece {
	const struct ck_linear *w; /* a matrix, or */
	struct ck_tensor vector;   /* what is kept as F32 in natural order */
	enum weight_kind kind;
	uint32_t first, rows; /* of the matrix; first is a multiple of 16 */
	void *data;
	uint64_t bytes; /* of codes, scales and vectors: what progress counts */
};

/* Bytes of a file that are in memory already. */
struct window {
	const struct st_file *file;
	uint64_t at;
	size_t bytes;
	const char *data;
};

/* The part of a file that most of a piece is in: its codes or values, its scales too if they are near. */
struct extent {
	const struct st_file *file;
	uint64_t from, to;
};

struct extent piece_extent(const struct piece *p);

/*
 * Packs or widens @p and checks its values. What @have does not hold is read.
 *
 * room		p->bytes, for what is read
 * fingerprint	gets what was loaded
 *
 * Returns 0, or what weights_load() says of bad or missing values.
 */
int piece_load(const struct piece *p, struct dev *dev, const struct window *have, void *room,
	       struct fingerprint *fingerprint, struct err *err);
