/*
 * Reading files that are read once: past the page cache, which would only be
 * filled with what stands in memory already, unless the page cache has it.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define DIRECT_ALIGN 4096u
/* Room that a read of @bytes needs at most. */
#define DIRECT_ROOM(bytes) ((bytes) + 2 * (size_t)DIRECT_ALIGN)

struct direct {
	int fd;	       /* the caller's */
	int direct_fd; /* the same file once more, or -1: its file system knows no O_DIRECT */
};

/* @fd	of a regular file, open for reading, outlives *@ret. Cannot fail. */
void direct_init(struct direct *ret, int fd);
void direct_deinit(struct direct *d);

/*
 * Reads bytes @at … @at + @bytes, fewer where the file ends, into @room
 * (aligned to DIRECT_ALIGN, DIRECT_ROOM(@bytes) long; several threads may each
 * read into their own). *@ret_data is where the first of them is.
 *
 * Blocks. Returns how many there are, or a negative errno.
 */
ssize_t direct_read(const struct direct *d, uint64_t at, size_t bytes, void *room,
		    void **ret_data);
