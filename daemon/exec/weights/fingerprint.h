/*
 * What a checkpoint is, in 16 bytes: xxh3-128 over config.json, the headers of
 * all files in use and the contents of every tensor that is loaded, summed by
 * 64 MiB of each file. The contents are taken from the bytes as they are read
 * and packed, by the threads that do it and in any order: nothing is read for
 * it. Tokenizer, template and generation_config.json are left out, and so are
 * names and times of files: a copy has the fingerprint of the original.
 *
 * Two parts: the head (config and headers) is known once the checkpoint is
 * open, the whole when it is loaded.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "client/wire/err.h"

#define FINGERPRINT_BYTES 16
#define FINGERPRINT_BLOCK_BYTES (64ull << 20)
#define FINGERPRINT_ROWS 16 /* of a matrix, summed together: however pieces are cut, at multiples of it */

struct checkpoint;
struct st_file;
struct fingerprint;

/* Knows the head of @c, which outlives fingerprint_finish(). 0 or -ENOMEM. */
int fingerprint_new(const struct checkpoint *c, struct fingerprint **ret);
struct fingerprint *fingerprint_free(struct fingerprint *f);

/*
 * Adds @bytes at @data, which are at byte @at of @file (one of the checkpoint's),
 * in units of @unit_bytes from there on, the last as long as it is. The same
 * bytes must come in the same units every time, each once. Any thread.
 */
void fingerprint_add(struct fingerprint *f, const struct st_file *file, uint64_t at,
		     const void *data, size_t bytes, size_t unit_bytes);
/* Everything was added: the whole is known, and the checkpoint may go. */
void fingerprint_finish(struct fingerprint *f);

/* FINGERPRINT_BYTES, after fingerprint_finish(); never all zero. */
const uint8_t *fingerprint_whole(const struct fingerprint *f);

/*
 * 0 if @now is what @then was, as far as @now is known: after fingerprint_new()
 * only the heads are compared. Else -ESTALE and what differs: config.json, the
 * header of which file, or between which bytes of it.
 */
int fingerprint_compare(const struct fingerprint *then, const struct fingerprint *now,
			struct err *err);

static inline void fingerprint_freep(struct fingerprint **f)
{
	*f = fingerprint_free(*f);
}
