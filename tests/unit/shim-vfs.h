/*
 * A file system for SQLite that fails or goes dark at the Nth operation that
 * changes something, and knows what would be on the disk after a power cut.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define SHIM_VFS "shim"

enum shim_fault {
	SHIM_NONE,
	SHIM_FAIL, /* the Nth operation fails, those after it work again */
	SHIM_READ, /* the Nth read fails, and nothing else; reads alone are counted */
	SHIM_CUT,  /* nothing works from the Nth operation on */
};

/* What a machine finds when it is on again. */
enum shim_image {
	SHIM_KILLED,   /* only the process died: all that was written */
	SHIM_SYNCED,   /* what was synced and nothing else */
	SHIM_SOME,     /* what was synced, and of later writes some, as @seed says */
	SHIM_IMAGES,
};

/* Registers it; forgets all files, none of which may be open. Operations count from 1. */
void shim_reset(enum shim_fault fault, uint64_t at);
uint64_t shim_count(void);
bool shim_was_hit(void);
void shim_cut_now(void);

/* Makes the files that were opened what @image says. Nothing may have them open. */
void shim_restore(enum shim_image image, uint64_t seed);
