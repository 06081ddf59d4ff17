/* One struct behind another, with a sum over all of it. */
#include "kernels/cuda/choicefile.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char magic[8] = "steamdch";

struct head {
	char magic[8];
	uint32_t version, n_entries;
	struct choicefile_of of;
	uint64_t sum; /* of entries, and of the head with 0 here */
};
_Static_assert(sizeof(struct choicefile_of) == 264 && sizeof(struct choicefile_entry) == 624 &&
		       sizeof(struct head) == 288,
	       "written as they are");

/* FNV-1a */
static uint64_t add_to_sum(uint64_t sum, const void *data, size_t bytes)
{
	const uint8_t *p = data;

	for (size_t i = 0; i < bytes; i++)
		sum = (sum ^ p[i]) * 0x100000001b3ull;
	return sum;
}

static uint64_t sum_of(const struct head *head, const struct choicefile_entry *entries)
{
	struct head h = *head;

	h.sum = 0;
	return add_to_sum(add_to_sum(0xcbf29ce484222325ull, &h, sizeof(h)), entries,
			  head->n_entries * sizeof(*entries));
}

bool choicefile_is_same(const struct choicefile_entry *a, const struct choicefile_entry *b)
{
	return memcmp(a, b, offsetof(struct choicefile_entry, way)) == 0;
}

static int read_all(int fd, void *to, size_t bytes)
{
	for (size_t done = 0; done < bytes;) {
		const ssize_t n = read(fd, (char *)to + done, bytes - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EBADMSG;
		done += (size_t)n;
	}
	return 0;
}

static int write_all(int fd, const void *from, size_t bytes)
{
	for (size_t done = 0; done < bytes;) {
		const ssize_t n = write(fd, (const char *)from + done, bytes - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		done += (size_t)n;
	}
	return 0;
}

static bool is_sound(const struct choicefile_entry *e)
{
	return e->n_jobs > 0 && e->n_jobs <= CHOICEFILE_JOBS_MAX && e->way < CHOICEFILE_WAYS;
}

static int read_file(int fd, const struct choicefile_of *of, struct choicefile_entry *ret)
{
	struct head head;
	struct stat st;
	int r;

	if (fstat(fd, &st) < 0)
		return -errno;
	r = read_all(fd, &head, sizeof(head));
	if (r < 0)
		return r;
	if (memcmp(head.magic, magic, sizeof(magic)) != 0 ||
	    head.n_entries > CHOICEFILE_ENTRIES_MAX)
		return -EBADMSG;
	if (head.version != CHOICEFILE_VERSION)
		return -ESTALE;
	if ((uint64_t)st.st_size != sizeof(head) + head.n_entries * sizeof(*ret))
		return -EBADMSG;
	r = read_all(fd, ret, head.n_entries * sizeof(*ret));
	if (r < 0)
		return r;
	if (sum_of(&head, ret) != head.sum)
		return -EBADMSG;
	for (uint32_t i = 0; i < head.n_entries; i++)
		if (!is_sound(&ret[i]))
			return -EBADMSG;
	return memcmp(&head.of, of, sizeof(*of)) == 0 ? (int)head.n_entries : -ESTALE;
}

int choicefile_read(const char *path, const struct choicefile_of *of, struct choicefile_entry *ret)
{
	const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	int r;

	if (fd < 0)
		return -errno;
	r = read_file(fd, of, ret);
	close(fd);
	return r;
}

int choicefile_write(const char *path, const struct choicefile_of *of,
		     const struct choicefile_entry *entries, uint32_t n)
{
	struct head head = { .version = CHOICEFILE_VERSION, .n_entries = n, .of = *of };
	char beside[4096];
	int fd, r;

	if (n > CHOICEFILE_ENTRIES_MAX ||
	    snprintf(beside, sizeof(beside), "%s.%d", path, (int)getpid()) >= (int)sizeof(beside))
		return -EINVAL;
	memcpy(head.magic, magic, sizeof(magic));
	head.sum = sum_of(&head, entries);
	fd = open(beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return -errno;
	r = write_all(fd, &head, sizeof(head));
	if (r == 0)
		r = write_all(fd, entries, n * sizeof(*entries));
	if (close(fd) < 0 && r == 0)
		r = -errno;
	if (r == 0 && rename(beside, path) < 0)
		r = -errno;
	if (r < 0)
		unlink(beside);
	return r;
}
