/*
 * One piece of a checkpoint: some rows of a matrix, all columns or a run of
 * them, or a vector or a run of it, from the bytes of files to where they stand
 * in the memory of one rank. Ranks that have columns of the same rows have a
 * piece each of the same bytes, which are read together.
 */
#pragma once

#include "daemon/exec/weights/checkpoint.h"

struct dev;
struct fingerprint;

struct piece {
	const struct ck_linear *w; /* a matrix, or */
	struct ck_tensor vector;   /* what is kept as F32 in natural order */
	enum weight_kind kind;
	uint32_t first_row, rows; /* of the matrix or vector; of a matrix first_row is a multiple of 16 */
	uint32_t first_col, cols; /* of the matrix; first_col is a multiple of 32 if it is int4 */
	struct dev *dev;	  /* of the rank, */
	uint32_t at_row, of_rows; /* whose matrix has of_rows, these from at_row on, a multiple of 16 */
	void *data;
	uint64_t bytes; /* of codes, scales and vectors, of whole rows or the whole vector */
	bool repeats;	/* another rank's piece is of the same bytes, and counts them */
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
/* Bytes that piece_load() needs room for. */
size_t piece_room(const struct piece *p);

/*
 * Packs or widens @p and checks its values. What @have does not hold is read.
 *
 * room		piece_room(), for what is read, and cut
 * fingerprint	gets what was loaded, unless p->repeats
 *
 * Returns 0, or what weights_load() says of bad or missing values.
 */
int piece_load(const struct piece *p, const struct window *have, void *room,
	       struct fingerprint *fingerprint, struct err *err);
