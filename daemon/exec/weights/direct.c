/* What the page cache has comes from there; the rest comes from the disk, page by page aligned. */
#include "daemon/exec/weights/direct.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/uio.h>
#include <unistd.h>

#include "client/wire/ownership.h"

void direct_init(struct direct *ret, int fd)
{
	char same[40];

	snprintf(same, sizeof(same), "/proc/self/fd/%d", fd);
	*ret = (struct direct){ fd, open(same, O_RDONLY | O_CLOEXEC | O_DIRECT) };
	/* or else to ask the page cache for a page would read many more into it */
	if (ret->direct_fd >= 0)
		posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
}

void direct_deinit(struct direct *d)
{
	if (d->direct_fd >= 0)
		close(d->direct_fd);
	d->direct_fd = -1;
}

/* Reads until @bytes are there, the file ends, or a read fails: then what came before it counts. */
static ssize_t read_all(int fd, uint64_t at, size_t bytes, char *to, int flags)
{
	size_t done = 0;

	while (done < bytes) {
		struct iovec rest = { to + done, MIN(bytes - done, (size_t)1 << 30) };
		const ssize_t n = preadv2(fd, &rest, 1, (off_t)(at + done), flags);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && done == 0)
			return -errno;
		if (n <= 0)
			break;
		done += (size_t)n;
	}
	return (ssize_t)done;
}

/* How many of the bytes the page cache had. */
static size_t read_cached(const struct direct *d, uint64_t at, size_t bytes, char *to)
{
	ssize_t n = read_all(d->fd, at, MIN(bytes, (size_t)DIRECT_ALIGN), to, RWF_NOWAIT);

	if (n == DIRECT_ALIGN && bytes > DIRECT_ALIGN)
		n = read_all(d->fd, at, bytes, to, RWF_NOWAIT);
	return n > 0 ? (size_t)n : 0;
}

ssize_t direct_read(const struct direct *d, uint64_t at, size_t bytes, void *room, void **ret_data)
{
	const size_t before = at % DIRECT_ALIGN, wanted = before + bytes;
	char *const to = room;
	size_t have = 0;
	ssize_t n = 0;

	*ret_data = to + before;
	if (d->direct_fd >= 0) {
		have = read_cached(d, at - before, wanted, to);
		if (have < wanted) {
			const size_t aligned = (wanted + DIRECT_ALIGN - 1) & ~(DIRECT_ALIGN - 1ul);

			have &= ~(DIRECT_ALIGN - 1ul);
			n = read_all(d->direct_fd, at - before + have, aligned - have, to + have,
				     0);
		}
	}
	/* no O_DIRECT at all, or none for this range: the plain way, which tells what is wrong */
	if (d->direct_fd < 0 || n < 0) {
		have = 0;
		n = read_all(d->fd, at - before, wanted, to, 0);
	}
	if (n < 0)
		return n;
	have = MIN(have + (size_t)n, wanted);
	return have > before ? (ssize_t)(have - before) : 0;
}
