/*
 * Frames on a stream socket: u32 length (little-endian), then that many bytes
 * of one message. A descriptor travels on the first byte of its frame.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "client/wire/err.h"
#include "client/wire/span.h"

#define FRAME_HEADER_BYTES 4
#define FRAME_BYTES_MAX (1u << 20)	  /* what the daemon accepts unless told otherwise */
#define FRAME_BYTES_MAX_DOWN (256u << 20) /* what a client accepts */
#define FRAME_FDS_MAX 4			  /* descriptors received and not yet claimed */
#define FRAME_READ_BYTES ((size_t)64 << 10) /* of one frame_in_read(), where there is room for them */

/* Receives: a growing buffer, never larger than one frame plus one read. */
struct frame_in {
	char *data;
	size_t len, cap, taken;
	uint32_t max_bytes; /* largest payload accepted */
	int fds[FRAME_FDS_MAX];
	uint32_t n_fds;
	bool no_fds; /* set it where none is wanted: the kernel closes those that come, and reading is cheaper */
};

void frame_in_init(struct frame_in *in, uint32_t max_bytes);
void frame_in_deinit(struct frame_in *in); /* closes unclaimed descriptors */

/*
 * Reads what is there, at most FRAME_READ_BYTES. Descriptors arrive close-on-exec.
 *
 * Returns the bytes read; 0 at the end of the stream; -EAGAIN if nothing was
 * there; -EMFILE if more descriptors came than are allowed or some were cut
 * off (all are closed); -ENOBUFS if whole frames wait in a full buffer, see
 * frame_in_next(); -ENOMEM; or the system's error.
 */
ssize_t frame_in_read(struct frame_in *in, int fd);

/*
 * The next whole frame's payload, valid until the next frame_in_read().
 *
 * Returns 1 and *@ret, 0 if it is not complete yet, or -EMSGSIZE if its
 * declared length exceeds the limit (nothing was allocated for it).
 */
int frame_in_next(struct frame_in *in, struct span *ret, struct err *err);

/* Whether frame_in_next() would say anything but 0. */
bool frame_in_is_whole(const struct frame_in *in);

/* Takes the oldest received descriptor, or returns -1. */
int frame_in_take_fd(struct frame_in *in);

/*
 * Sends: a queue of encoded frames, which its owner bounds. Small frames lie
 * in one piece and leave with one call; the memory of a short queue stays for
 * the next one.
 */
struct frame_out {
	struct frame_chunk *first, *last;
	size_t queued_bytes, sent; /* sent: of the first chunk */
};

void frame_out_init(struct frame_out *out);
void frame_out_deinit(struct frame_out *out);

/*
 * Queues @data (malloc'd, taken over also on failure) with @fd on its first
 * byte, or without if @fd is -1 (duplicated, not taken). Returns 0, -ENOMEM,
 * or -EMFILE if the descriptor could not be duplicated.
 */
int frame_out_push(struct frame_out *out, char *data, size_t len, int fd);

/*
 * Room for a frame of up to @bytes at the queue's end, or NULL without memory.
 * frame_out_fill() then says how many were written; without it nothing is queued.
 */
char *frame_out_room(struct frame_out *out, size_t bytes);
void frame_out_fill(struct frame_out *out, size_t bytes);

/*
 * Sends without blocking and without SIGPIPE until the queue is empty, the
 * socket is full, the kernel has no memory, or @budget bytes are gone. Returns 1 if the queue is empty, 0
 * if something is left, or sendmsg's error.
 */
int frame_out_flush(struct frame_out *out, int fd, size_t budget);
