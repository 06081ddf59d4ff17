/*
 * Runs a fuzz target over files: all of the directories and files that the
 * arguments name; without arguments those of the target's corpus, which
 * tests/fuzz/fuzz-X has in $srcdir/tests/fuzz/corpus-X. A defect ends the
 * program by itself: an assertion, a sanitizer, a signal.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "client/wire/ownership.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void closedirp(DIR **dir)
{
	if (*dir)
		closedir(*dir);
}

static int replay_fd(int fd, uint64_t bytes)
{
	/* of the exact size, so that the address sanitizer sees a read past the end */
	_cleanup_(freep) uint8_t *data = malloc(bytes ? bytes : 1);
	uint64_t done = 0;
	ssize_t n;

	if (!data)
		return -ENOMEM;
	while (done < bytes) {
		n = read(fd, data + done, bytes - done);
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		done += (uint64_t)n;
	}
	LLVMFuzzerTestOneInput(data, bytes);
	return 1;
}

static int replay_directory(int fd);

/* Inputs replayed, or a negative errno. Takes @fd. */
static int replay_open(int fd)
{
	_cleanup_(closep) int owned = fd;
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -errno;
	if (S_ISDIR(st.st_mode))
		return replay_directory(steal_fd(&owned));
	return replay_fd(fd, (uint64_t)st.st_size);
}

static int replay_directory(int fd)
{
	_cleanup_(closedirp) DIR *dir = fdopendir(fd);
	const struct dirent *entry;
	int n = 0, r, at;

	if (!dir) {
		r = -errno;
		close(fd);
		return r;
	}
	while (errno = 0, (entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		at = openat(dirfd(dir), entry->d_name, O_RDONLY | O_CLOEXEC);
		r = at < 0 ? -errno : replay_open(at);
		if (r < 0) {
			fprintf(stderr, "%s: %s\n", entry->d_name, strerror(-r));
			return r;
		}
		n += r;
	}
	return errno ? -errno : n;
}

static bool replay(const char *path)
{
	const int fd = open(path, O_RDONLY | O_CLOEXEC);
	const int n = fd < 0 ? -errno : replay_open(fd);

	if (n < 0) {
		fprintf(stderr, "%s: %s\n", path, strerror(-n));
		return false;
	}
	if (n == 0) {
		fprintf(stderr, "%s: no inputs\n", path);
		return false;
	}
	printf("ok replay of %d inputs\n", n);
	return true;
}

int main(int argc, char **argv)
{
	const char *srcdir = getenv("srcdir"), *slash = strrchr(argv[0], '/');
	const char *target = slash ? slash + 1 : argv[0];
	_cleanup_(freep) char *corpus = NULL;
	bool good = true;

	for (int i = 1; i < argc; i++)
		good &= replay(argv[i]);
	if (argc > 1)
		return good ? EXIT_SUCCESS : EXIT_FAILURE;

	if (strncmp(target, "fuzz-", 5) != 0) {
		fprintf(stderr, "%s: not called fuzz-…, so say which files\n", target);
		return EXIT_FAILURE;
	}
	if (asprintf(&corpus, "%s/tests/fuzz/corpus-%s", srcdir ? srcdir : ".", target + 5) < 0)
		return EXIT_FAILURE;
	return replay(corpus) ? EXIT_SUCCESS : EXIT_FAILURE;
}
