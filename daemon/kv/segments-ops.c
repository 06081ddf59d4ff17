/* The real system calls. */
#include "daemon/kv/segments-ops.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include "client/wire/ownership.h"

static int real_open(void *userdata, int dir_fd, const char *name, int flags, mode_t mode)
{
	const int fd = openat(dir_fd, name, flags, mode);

	(void)userdata;
	return fd < 0 ? -errno : fd;
}

static int real_mkdir(void *userdata, int dir_fd, const char *name, mode_t mode)
{
	(void)userdata;
	return mkdirat(dir_fd, name, mode) < 0 ? -errno : 0;
}

static int real_unlink(void *userdata, int dir_fd, const char *name)
{
	(void)userdata;
	return unlinkat(dir_fd, name, 0) < 0 ? -errno : 0;
}

static int real_lock(void *userdata, int fd)
{
	(void)userdata;
	return flock(fd, LOCK_EX | LOCK_NB) < 0 ? -errno : 0;
}

static void closedirp(DIR **dir)
{
	if (*dir)
		closedir(*dir);
}

static int real_list(void *userdata, int dir_fd, segments_name_fn each, void *arg)
{
	_cleanup_(closep) int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_cleanup_(closedirp) DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	const struct dirent *entry;
	int r = 0;

	(void)userdata;
	if (!dir)
		return -errno;
	steal_fd(&fd);
	while (r >= 0 && (errno = 0, entry = readdir(dir)))
		r = each(arg, entry->d_name);
	return r < 0 ? r : -errno;
}

static int real_stat(void *userdata, int fd, struct stat *ret)
{
	(void)userdata;
	return fstat(fd, ret) < 0 ? -errno : 0;
}

static int real_statvfs(void *userdata, int fd, struct statvfs *ret)
{
	(void)userdata;
	return fstatvfs(fd, ret) < 0 ? -errno : 0;
}

static ssize_t real_preadv(void *userdata, int fd, const struct iovec *to, int n, off_t at)
{
	const ssize_t got = preadv(fd, to, n, at);

	(void)userdata;
	return got < 0 ? -errno : got;
}

static ssize_t real_pwrite(void *userdata, int fd, const void *data, size_t bytes, off_t at)
{
	const ssize_t done = pwrite(fd, data, bytes, at);

	(void)userdata;
	return done < 0 ? -errno : done;
}

static int real_fallocate(void *userdata, int fd, int mode, off_t at, off_t bytes)
{
	(void)userdata;
	return fallocate(fd, mode, at, bytes) < 0 ? -errno : 0;
}

static int real_truncate(void *userdata, int fd, off_t bytes)
{
	(void)userdata;
	return ftruncate(fd, bytes) < 0 ? -errno : 0;
}

static int real_datasync(void *userdata, int fd)
{
	(void)userdata;
	return fdatasync(fd) < 0 ? -errno : 0;
}

static int real_sync(void *userdata, int fd)
{
	(void)userdata;
	return fsync(fd) < 0 ? -errno : 0;
}

static void real_close(void *userdata, int fd)
{
	(void)userdata;
	close(fd);
}

const struct segments_ops segments_ops_real = {
	.open = real_open,
	.mkdir = real_mkdir,
	.unlink = real_unlink,
	.lock = real_lock,
	.list = real_list,
	.stat = real_stat,
	.statvfs = real_statvfs,
	.preadv = real_preadv,
	.pwrite = real_pwrite,
	.fallocate = real_fallocate,
	.truncate = real_truncate,
	.datasync = real_datasync,
	.sync = real_sync,
	.close = real_close,
};
