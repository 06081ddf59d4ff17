/*
 * The system calls of the disk tier, in one table: the real ones, or those of
 * a test, which fails the Nth, ends the world at the Nth, or keeps a log.
 */
#pragma once

#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/types.h>
#include <sys/uio.h>

typedef int (*segments_name_fn)(void *arg, const char *name);

/*
 * Each is the call of its name, but returns -errno instead of -1; @userdata is
 * the table's. preadv is called by two threads at a time, the rest by one.
 */
struct segments_ops {
	int (*open)(void *userdata, int dir_fd, const char *name, int flags, mode_t mode);
	int (*mkdir)(void *userdata, int dir_fd, const char *name, mode_t mode);
	int (*unlink)(void *userdata, int dir_fd, const char *name);
	int (*lock)(void *userdata, int fd); /* flock, exclusive, without waiting */
	/* calls @each with every name in the directory; ends when that returns less than 0, and returns it */
	int (*list)(void *userdata, int dir_fd, segments_name_fn each, void *arg);
	int (*stat)(void *userdata, int fd, struct stat *ret);
	int (*statvfs)(void *userdata, int fd, struct statvfs *ret);
	ssize_t (*preadv)(void *userdata, int fd, const struct iovec *to, int n, off_t at);
	ssize_t (*pwrite)(void *userdata, int fd, const void *data, size_t bytes, off_t at);
	int (*fallocate)(void *userdata, int fd, int mode, off_t at, off_t bytes);
	int (*truncate)(void *userdata, int fd, off_t bytes);
	int (*datasync)(void *userdata, int fd);
	int (*sync)(void *userdata, int fd); /* of directories */
	void (*close)(void *userdata, int fd);
	void *userdata;
};

extern const struct segments_ops segments_ops_real;
