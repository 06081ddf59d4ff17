/*
 * A stream of frames, cut into reads at places that the input chooses: its
 * first byte is the size of each write, the rest is the stream.
 */
#include <assert.h>
#include <errno.h>
#include <sys/socket.h>

#include "client/wire/frame.h"

#define FRAME_MAX 4096
#define STREAM_MAX 65536

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const size_t step = size > 0 ? data[0] + 1 : 1;
	struct frame_in in;
	size_t taken = 0, at = 1;
	struct span got;
	int fds[2], r = 0;

	if (size > STREAM_MAX || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
		return 0;
	frame_in_init(&in, FRAME_MAX);
	while (at < size && r >= 0) {
		const size_t n = MIN(step, size - at);

		assert(write(fds[0], data + at, n) == (ssize_t)n);
		at += n;
		assert(frame_in_read(&in, fds[1]) == (ssize_t)n);
		while ((r = frame_in_next(&in, &got, NULL)) > 0) {
			assert(got.len <= FRAME_MAX);
			taken += got.len + FRAME_HEADER_BYTES;
		}
		assert(r == 0 || r == -EMSGSIZE);
	}
	assert(taken <= size);
	frame_in_deinit(&in);
	close(fds[0]);
	close(fds[1]);
	return 0;
}
