/*
 * Byte-pair merging of one piece: the pair of lowest rank first, the leftmost
 * of equals. Short pieces by scanning, long ones by queues of positions per
 * rank, so that a piece of a million bytes costs per byte what a word does.
 */
#pragma once

#include "daemon/text/vocab.h"

#define BPE_NONE UINT32_MAX
#define BPE_PIECE_MAX (1u << 30)

struct bpe_pair {
	uint32_t left, right; /* left is BPE_NONE in a free slot */
	uint32_t rank, id;
};

struct bpe {
	struct bpe_pair *pairs;
	uint32_t n_slots; /* a power of two, or 0 */
	uint32_t *ids;	  /* what a merge makes, by rank */
	uint32_t n_merges, cap_merges;
	uint32_t byte_ids[256];
};

void bpe_deinit(struct bpe *b);
/* The next rank. 0; -EBADMSG: the pair is there already; -ENOMEM. */
int bpe_add(struct bpe *b, uint32_t left, uint32_t right, uint32_t id, struct err *err);

/* Working memory, reused between pieces; zero-initialised is empty. */
struct bpe_scratch;
struct bpe_scratch *bpe_scratch_free(struct bpe_scratch *s);

/*
 * Writes the ids of @piece, 1 up to BPE_PIECE_MAX bytes, to @out, which has
 * room for one a byte. *@scratch starts as NULL. Returns how many, or -ENOMEM.
 */
long bpe_encode(const struct bpe *b, struct span piece, struct bpe_scratch **scratch, uint32_t *out);
