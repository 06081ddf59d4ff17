/*
 * A card for the allocator's tests and benches: nothing but the book that a
 * driver keeps. It refuses what a driver would, asserts that nothing is asked
 * of it that a driver would not forgive, and can fail any call.
 */
#pragma once

#include "kernels/cuda/vram.h"

#define CARD_WORD_BYTES 65536u /* of memory for which one word of contents is kept */

/* What is there while a chunk or a descriptor is. */
struct card_memory {
	uint32_t n_refs;
	size_t bytes;
	uint64_t words[]; /* contents; none if the card has none */
};

struct card_chunk {
	uint64_t handle;
	size_t bytes;
	uint64_t at; /* 0: not mapped */
	enum vram_access access;
	struct card_memory *memory;
};

#define CARD_EXPORTS_MAX 16

struct card {
	uint64_t bytes, taken_bytes, peak_bytes; /* of the card; in chunks; the most of them */
	bool has_contents;
	uint32_t fail_at, fail_n; /* calls from number fail_at on, fail_n of them, fail; 0: none does */
	int fail_with;
	uint32_t n_calls;
	uint64_t next_handle, next_at, reserved_bytes, copied_bytes;
	struct card_chunk *chunks;
	uint32_t n_chunks, room;
	struct { uint64_t at; size_t bytes; } reserved[VRAM_REGIONS_MAX + 1];
	uint32_t n_reserved;
	struct card_memory *exports[CARD_EXPORTS_MAX]; /* by descriptor */
};

extern const struct vram_ops card_ops;

void card_init(struct card *c, uint64_t bytes, bool has_contents);
void card_deinit(struct card *c);
void card_close(struct card *c, int fd); /* a descriptor of an exported chunk */
/* The word at an address that is backed and may be read; asserts that it is. */
uint64_t *card_word(struct card *c, uint64_t at);
