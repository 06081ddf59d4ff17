/*
 * Prompts in descriptors. Only a memfd that can neither shrink nor change is
 * read, and it is copied: nothing a client holds is ever mapped.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "daemon/server/request.h"

int attached_check(int fd, uint64_t max_bytes, uint64_t *ret_bytes, struct err *err)
{
	const int wanted = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
	struct stat st;
	int seals;

	/* only memfds and the like have seals; all else fails here */
	seals = fcntl(fd, F_GET_SEALS);
	if (seals < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return err_set(err, -EBADMSG, "the descriptor attached is not a memfd");
	if ((seals & wanted) != wanted)
		return err_set(err, -EBADMSG,
			       "the memfd attached is not sealed against shrinking, growing and "
			       "writing");
	if (st.st_size <= 0)
		return err_set(err, -EBADMSG, "the memfd attached is empty");
	if ((uint64_t)st.st_size > max_bytes)
		return err_set(err, -E2BIG,
			       "the memfd attached has %lld bytes; at most %llu are taken",
			       (long long)st.st_size, (unsigned long long)max_bytes);
	*ret_bytes = (uint64_t)st.st_size;
	return 0;
}

int attached_read(int fd, uint64_t bytes, char **ret, struct err *err)
{
	_cleanup_(freep) char *data = malloc(bytes + 1);
	uint64_t done = 0;

	if (!data)
		return err_set(err, -ENOMEM, "out of memory");
	while (done < bytes) {
		const ssize_t n = pread(fd, data + done, bytes - done, (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return err_set(err, n < 0 ? -errno : -EBADMSG,
				       "the memfd attached could not be read: %s",
				       n < 0 ? strerror(errno) : "it is shorter than it said");
		done += (uint64_t)n;
	}
	data[bytes] = '\0';
	*ret = steal(data);
	return 0;
}
