/*
 * A store of the disk tier on a disk in memory or a real one, and what a test
 * knows about it: every page is made from its number, so that whatever is
 * served can be compared with what it has to be.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/kv/segfile.h"
#include "daemon/kv/segments.h"
#include "tests/unit/segdisk.h"

#define WORLD_PAGE_TOKENS 16
#define WORLD_PAGES_MAX 256

struct world_page {
	bool held, read; /* by what the store said; has been read back since it was found */
	struct segments_place place;
	enum segments_why why; /* if it is not held any more, but was */
	uint32_t n_found, n_gone;
};

struct world {
	struct segdisk *disk; /* NULL: a real one */
	char dir[64];
	struct segments_options opts;
	struct segments *s;
	struct world_page pages[WORLD_PAGES_MAX];
	uint32_t n_strangers; /* found, but no page of ours */
	uint8_t *payload, *room;
	struct err err;
	void (*on_gone)(struct world *w, uint32_t page);
};

/* Pages of @page_bytes, three of them in a file. On a real disk in a directory of its own if @disk is NULL. */
void world_init(struct world *w, struct segdisk *disk, uint64_t page_bytes);
void world_deinit(struct world *w); /* not the disk; a real directory is deleted */
void world_segment(struct world *w, uint32_t n_slots); /* how many pages in a file */

/* Opens the store, looks into all files. What was held before is forgotten. */
int world_open(struct world *w);
void world_close(struct world *w);
int world_reopen(struct world *w);

/* Page @i is of uid 1000 + i % 2; it has 1 to 16 tokens. */
struct segments_key world_key(uint32_t i);
void world_tokens(uint32_t i, uint32_t *ret);
void world_payload(const struct world *w, uint32_t i, uint8_t *ret);
int world_append(struct world *w, uint32_t i);
/* What comes with 0 is compared with what it has to be. */
int world_read(struct world *w, uint32_t i);
void world_forget(struct world *w, uint32_t i);
uint32_t world_held(const struct world *w);
/* Reads all that are held; returns how many are right. The rest is refused, or the test fails. */
uint32_t world_read_all(struct world *w);
struct segments_stats world_stats(const struct world *w);
