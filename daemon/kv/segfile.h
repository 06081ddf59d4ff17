/*
 * What is in a segment's file: a header, slots of one record each, and once
 * all slots are used a footer, which says what is in them. All of whole blocks
 * of 4 KiB, little-endian, each under a sum of its own that also says where it
 * belongs: a block that comes from elsewhere does not pass for one of here.
 *
 *	0			header, one block
 *	block + slot * stride	record: its head, one block, then its payload
 *	block + slots * stride	footer
 *
 * A slot whose head is all zeros is empty: never written, or forgotten.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "client/wire/err.h"
#include "daemon/kv/segments.h"

#define SEGFILE_BLOCK 4096u
#define SEGFILE_VERSION 1u
#define SEGFILE_SLOTS_MAX 65536u
#define SEGFILE_PAGE_BYTES_MAX (1ull << 32)
#define SEGFILE_NAME_MAX 48 /* "<uid>/seg-<16 digits>.kv" */

/* The first three members and the sum of a whole block are the same in every version, for ever. */
struct segfile_header {
	uint64_t sum[2];	 /* xxh3-128 of the rest of the block */
	uint64_t magic;
	uint32_t version;
	uint32_t layout;	 /* of a payload */
	uint8_t fingerprint[16]; /* of the model */
	uint64_t id[2];		 /* random */
	uint64_t seq;		 /* as in the file's name */
	uint64_t page_bytes;
	uint32_t page_tokens;
	uint32_t n_slots;
	uint32_t uid;		 /* as in the directory's name */
	uint32_t pad[1001];
};
_Static_assert(sizeof(struct segfile_header) == SEGFILE_BLOCK, "one block");

struct segfile_record {
	uint64_t sum[2]; /* xxh3-128 of the rest of the block */
	uint64_t magic;
	uint64_t id[2];	 /* of the segment */
	uint64_t offset; /* of this block in the file */
	struct segments_key key;
	uint64_t payload_bytes;
	uint64_t payload_sum[2]; /* xxh3-128 */
	uint32_t tokens[SEGMENTS_PAGE_TOKENS_MAX]; /* key.n_tokens of them, then zeros */
};
_Static_assert(sizeof(struct segments_key) == 56, "in files");
_Static_assert(sizeof(struct segfile_record) == SEGFILE_BLOCK, "one block");

/* n_slots keys follow; that of an empty slot is zeros. */
struct segfile_footer {
	uint64_t sum[2]; /* xxh3-128 of the rest, up to the end of its last block */
	uint64_t magic;
	uint64_t id[2];	 /* of the segment */
	uint64_t n_slots;
	struct segments_key keys[];
};

/* Of a file: where things are. From a header, or for files to come. */
struct segfile_layout {
	uint64_t page_bytes, stride;
	uint32_t page_tokens, n_slots;
};

/* As many slots as fit into @file_bytes, but at least one. */
struct segfile_layout segfile_layout(uint64_t page_bytes, uint32_t page_tokens,
				     uint64_t file_bytes);
uint64_t segfile_slot(const struct segfile_layout *l, uint32_t slot); /* its offset */
uint64_t segfile_footer_at(const struct segfile_layout *l);
uint64_t segfile_footer_bytes(const struct segfile_layout *l);
uint64_t segfile_bytes(const struct segfile_layout *l); /* of the whole file */

/* "<uid>/seg-<seq>.kv" into @ret of SEGFILE_NAME_MAX bytes; and whether @name, without the directory, is one. */
void segfile_name(uint32_t uid, uint64_t seq, char *ret);
bool segfile_parse_name(const char *name, uint64_t *ret_seq);
bool segfile_parse_uid(const char *name, uint32_t *ret_uid);

/* Fills in magic, version and sum; the rest is the caller's, and zeros. */
void segfile_header_seal(struct segfile_header *h);
/*
 * Is it a header, and of this very file? -EBADMSG: it is not, and why. 0: it
 * is; whether it is of a version and model that one knows is for the caller to
 * see, and *ret is only to be used if they are.
 */
int segfile_header_check(const struct segfile_header *h, uint32_t uid, uint64_t seq,
			 struct segfile_layout *ret, struct err *err);

void segfile_record_seal(struct segfile_record *r);
/* Is it the head of the record at @offset of the segment @h? -ENOENT: the slot is empty; -EBADMSG. */
int segfile_record_check(const struct segfile_record *r, const struct segfile_header *h,
			 uint64_t offset, struct err *err);

/* The footer of the segment @h with its keys in place. */
void segfile_footer_seal(struct segfile_footer *f, const struct segfile_header *h);
/* -ENOENT: there is none; -EBADMSG: something, but not it. */
int segfile_footer_check(const struct segfile_footer *f, const struct segfile_header *h,
			 struct err *err);
