/*
 * A disk in memory for the disk tier of the KV cache: the system calls of
 * segments-ops.h, of which any can fail or be the last, and a log of what was
 * written, from which the disk after a power cut is made.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/kv/segments-ops.h"

#define SEGDISK_FILES_MAX 512
#define SEGDISK_FDS_MAX 256

enum segdisk_fault {
	FAULT_ERROR, /* the call fails with the error and does nothing */
	FAULT_SHORT, /* a read or write of half its bytes; of other calls nothing */
	FAULT_SCRAP, /* the same with 100 bytes, which is no block */
	FAULT_DEATH, /* half of a write, and nothing at all from then on */
};

enum segdisk_cut {
	CUT_NOTHING, /* all that was written is there */
	CUT_ALL,     /* only what was synced is there */
	CUT_512,     /* of what was not synced, any 512 bytes may be there or not */
	CUT_4096,
	CUT_WAYS,
};

struct segdisk_file {
	char name[64]; /* "": deleted, or never there */
	char born[64]; /* its first name */
	bool is_dir;
	uint8_t *data;
	uint64_t bytes;
};

struct segdisk_event;

struct segdisk {
	struct segments_ops ops; /* to be handed out; userdata is the disk */
	struct segdisk_file files[SEGDISK_FILES_MAX];
	uint32_t n_files; /* number 0 is the directory itself */
	uint32_t fds[SEGDISK_FDS_MAX]; /* of files, plus 1; 0: free */
	uint64_t total_bytes;	       /* of the file system */
	bool no_direct, no_fallocate;

	/* the call number @at (from 1) fails; 0: none does */
	uint64_t n_calls, at;
	enum segdisk_fault fault;
	int error;
	bool lasting; /* and all of the same kind after it */
	const void *lasting_call;
	bool dead;

	bool logs;
	struct segdisk_event *log;
	uint32_t n_log, log_room;
};

struct segdisk *segdisk_new(void);
struct segdisk *segdisk_free(struct segdisk *d);
/* What a restart finds after the first @n events of @d's log, if the power went then. */
struct segdisk *segdisk_cut(const struct segdisk *d, uint32_t n, enum segdisk_cut how,
			    uint32_t seed);
/* What a restart finds if it was only the process that ended. */
struct segdisk *segdisk_copy(const struct segdisk *d);
/* By name below the directory, "1000/seg-0000000000000001.kv", or NULL. */
struct segdisk_file *segdisk_find(struct segdisk *d, const char *name);
struct segdisk_file *segdisk_add(struct segdisk *d, const char *name, bool is_dir);
void segdisk_resize(struct segdisk_file *f, uint64_t bytes);
uint32_t segdisk_open_fds(const struct segdisk *d);

static inline void segdisk_freep(struct segdisk **d)
{
	*d = segdisk_free(*d);
}
