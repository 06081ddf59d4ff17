/* Files in memory, faults by number, and what is left of a log when the power goes. */
#include "tests/unit/segdisk.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>

#include "client/wire/ownership.h"

enum event_kind { EVENT_ADD, EVENT_DELETE, EVENT_WRITE, EVENT_SIZE, EVENT_SYNC, EVENT_SYNC_DIR };

struct segdisk_event {
	enum event_kind kind;
	uint32_t file;
	uint64_t at, bytes;
	uint8_t *data; /* of a write; NULL: zeros */
};

static void *must(void *p)
{
	if (!p)
		abort();
	return p;
}

void segdisk_resize(struct segdisk_file *f, uint64_t bytes)
{
	f->data = must(realloc(f->data, bytes ? bytes : 1));
	if (bytes > f->bytes)
		memset(f->data + f->bytes, 0, bytes - f->bytes);
	f->bytes = bytes;
}

struct segdisk_file *segdisk_add(struct segdisk *d, const char *name, bool is_dir)
{
	struct segdisk_file *f = &d->files[d->n_files++];

	assert(d->n_files <= SEGDISK_FILES_MAX);
	snprintf(f->name, sizeof(f->name), "%s", name);
	snprintf(f->born, sizeof(f->born), "%s", name);
	f->is_dir = is_dir;
	return f;
}

struct segdisk_file *segdisk_find(struct segdisk *d, const char *name)
{
	for (uint32_t i = 0; i < d->n_files; i++)
		if (strcmp(d->files[i].name, name) == 0 && name[0])
			return &d->files[i];
	return NULL;
}

static void put(struct segdisk_file *f, uint64_t at, const void *data, uint64_t bytes)
{
	if (bytes == 0)
		return;
	if (at + bytes > f->bytes)
		segdisk_resize(f, at + bytes);
	if (data)
		memcpy(f->data + at, data, bytes);
	else
		memset(f->data + at, 0, bytes);
}

static void note(struct segdisk *d, enum event_kind kind, const struct segdisk_file *f, uint64_t at,
		 uint64_t bytes, const void *data)
{
	struct segdisk_event *e;

	if (!d->logs)
		return;
	if (d->n_log == d->log_room) {
		d->log_room += 256;
		d->log = must(reallocarray(d->log, d->log_room, sizeof(*d->log)));
	}
	e = &d->log[d->n_log++];
	*e = (struct segdisk_event){ kind, (uint32_t)(f - d->files), at, bytes, NULL };
	if (data) {
		e->data = must(malloc(bytes));
		memcpy(e->data, data, bytes);
	}
}

/*
 * Every call asks here first. 0: go on; 1: only with a part of its bytes; or
 * the error. @call tells kinds of calls apart.
 */
static int fault(struct segdisk *d, const void *call)
{
	d->n_calls++;
	if (d->dead)
		return -EIO;
	if (d->n_calls == d->at)
		d->lasting_call = call;
	else if (!d->lasting || d->lasting_call != call)
		return 0;
	if (d->fault == FAULT_DEATH)
		d->dead = true;
	return d->fault == FAULT_ERROR ? -d->error : 1;
}

/* The same for a call that has no parts. */
static int fault_whole(struct segdisk *d, const void *call)
{
	const int r = fault(d, call);

	if (r > 0)
		return d->fault == FAULT_DEATH ? -EIO : 0;
	return r;
}

static uint64_t part(const struct segdisk *d, uint64_t bytes)
{
	return d->fault == FAULT_SCRAP ? MIN(bytes, 100) : bytes / 2 / 512 * 512;
}

static struct segdisk_file *file_of(struct segdisk *d, int fd)
{
	assert(fd >= 0 && fd < SEGDISK_FDS_MAX && d->fds[fd] > 0);
	return &d->files[d->fds[fd] - 1];
}

static int new_fd(struct segdisk *d, const struct segdisk_file *f)
{
	int fd = 0;

	while (d->fds[fd] > 0)
		fd++;
	assert(fd < SEGDISK_FDS_MAX);
	d->fds[fd] = (uint32_t)(f - d->files) + 1;
	return fd;
}

static bool has_parent(struct segdisk *d, const char *name)
{
	char parent[64];
	char *slash;

	snprintf(parent, sizeof(parent), "%s", name);
	slash = strchr(parent, '/');
	if (!slash)
		return true;
	*slash = 0;
	return segdisk_find(d, parent) != NULL;
}

static int disk_open(void *userdata, int dir_fd, const char *name, int flags, mode_t mode)
{
	struct segdisk *d = userdata;
	const int r = fault_whole(d, disk_open);
	struct segdisk_file *f = dir_fd == AT_FDCWD ? d->files : segdisk_find(d, name);

	if (r < 0)
		return r;
	if (flags & O_DIRECT && d->no_direct)
		return -EINVAL;
	if (f && flags & O_EXCL)
		return -EEXIST;
	if (f && flags & O_DIRECTORY && !f->is_dir)
		return -ENOTDIR;
	if (!f && (!(flags & O_CREAT) || !has_parent(d, name)))
		return -ENOENT;
	if (!f) {
		assert(mode == 0600);
		f = segdisk_add(d, name, false);
		note(d, EVENT_ADD, f, 0, 0, NULL);
	}
	assert(flags & O_CLOEXEC && (f->is_dir || flags & O_NOFOLLOW));
	return new_fd(d, f);
}

static int disk_mkdir(void *userdata, int dir_fd, const char *name, mode_t mode)
{
	struct segdisk *d = userdata;
	const int r = fault_whole(d, disk_mkdir);

	if (r < 0)
		return r;
	assert(mode == 0700);
	if (dir_fd == AT_FDCWD || segdisk_find(d, name))
		return -EEXIST;
	note(d, EVENT_ADD, segdisk_add(d, name, true), 0, 0, NULL);
	return 0;
}

static int disk_unlink(void *userdata, int dir_fd, const char *name)
{
	struct segdisk *d = userdata;
	const int r = fault_whole(d, disk_unlink);
	struct segdisk_file *f = segdisk_find(d, name);

	(void)dir_fd;
	if (r < 0)
		return r;
	if (!f)
		return -ENOENT;
	note(d, EVENT_DELETE, f, 0, 0, NULL);
	f->name[0] = 0; /* its data stays for who has it open */
	return 0;
}

static int disk_lock(void *userdata, int fd)
{
	(void)fd;
	return fault_whole(userdata, disk_lock);
}

static int disk_list(void *userdata, int dir_fd, segments_name_fn each, void *arg)
{
	struct segdisk *d = userdata;
	const char *dir = file_of(d, dir_fd)->name;
	const size_t n = file_of(d, dir_fd) == d->files ? 0 : strlen(dir) + 1;
	int r = fault_whole(d, disk_list);

	for (uint32_t i = 1; i < d->n_files && r >= 0; i++) {
		const char *name = d->files[i].name;

		if (!name[0] || (n > 0 && (strncmp(name, dir, n - 1) != 0 || name[n - 1] != '/')))
			continue;
		if (!strchr(name + n, '/'))
			r = each(arg, name + n);
	}
	return r;
}

static int disk_stat(void *userdata, int fd, struct stat *ret)
{
	const int r = fault_whole(userdata, disk_stat);
	const struct segdisk_file *f = file_of(userdata, fd);

	*ret = (struct stat){ .st_size = (off_t)f->bytes,
			      .st_blocks = (blkcnt_t)((f->bytes + 511) / 512) };
	return r;
}

static uint64_t used_bytes(const struct segdisk *d)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < d->n_files; i++)
		bytes += d->files[i].name[0] ? d->files[i].bytes : 0;
	return bytes;
}

static int disk_statvfs(void *userdata, int fd, struct statvfs *ret)
{
	struct segdisk *d = userdata;
	const uint64_t used = used_bytes(d);

	(void)fd;
	*ret = (struct statvfs){ .f_frsize = 512, .f_blocks = d->total_bytes / 512 };
	ret->f_bavail = (d->total_bytes - MIN(used, d->total_bytes)) / 512;
	return fault_whole(d, disk_statvfs);
}

static ssize_t disk_preadv(void *userdata, int fd, const struct iovec *to, int n, off_t at)
{
	struct segdisk *d = userdata;
	const int r = fault(d, disk_preadv);
	const struct segdisk_file *f = file_of(d, fd);
	uint64_t from = (uint64_t)at, left = 0, done = 0;

	if (r < 0 || d->dead)
		return r < 0 ? r : -EIO;
	for (int i = 0; i < n; i++)
		left += to[i].iov_len;
	if (r > 0)
		left = part(d, left);
	left = from < f->bytes ? MIN(left, f->bytes - from) : 0;
	for (int i = 0; i < n && left > 0; i++) {
		const uint64_t bytes = MIN(left, to[i].iov_len);

		memcpy(to[i].iov_base, f->data + from + done, bytes);
		done += bytes;
		left -= bytes;
	}
	return (ssize_t)done;
}

static ssize_t disk_pwrite(void *userdata, int fd, const void *data, size_t bytes, off_t at)
{
	struct segdisk *d = userdata;
	const int r = fault(d, disk_pwrite);
	struct segdisk_file *f = file_of(d, fd);

	assert((uintptr_t)data % 4096 == 0 && bytes % 4096 == 0 && at % 4096 == 0);
	if (r < 0)
		return r;
	if (r > 0)
		bytes = part(d, bytes);
	put(f, (uint64_t)at, data, bytes);
	note(d, EVENT_WRITE, f, (uint64_t)at, bytes, data);
	return d->dead ? -EIO : (ssize_t)bytes;
}

static int disk_truncate(void *userdata, int fd, off_t bytes)
{
	struct segdisk *d = userdata;
	const int r = fault_whole(d, disk_truncate);

	if (r < 0)
		return r;
	segdisk_resize(file_of(d, fd), (uint64_t)bytes);
	note(d, EVENT_SIZE, file_of(d, fd), (uint64_t)bytes, 0, NULL);
	return 0;
}

static int disk_fallocate(void *userdata, int fd, int mode, off_t at, off_t bytes)
{
	struct segdisk *d = userdata;
	const int r = fault_whole(d, disk_fallocate);
	struct segdisk_file *f = file_of(d, fd);
	const uint64_t end = (uint64_t)(at + bytes);

	if (r < 0)
		return r;
	if (d->no_fallocate)
		return -EOPNOTSUPP;
	if (mode & FALLOC_FL_PUNCH_HOLE) {
		const uint64_t there = (uint64_t)at < f->bytes ? MIN(f->bytes, end) : (uint64_t)at;

		put(f, (uint64_t)at, NULL, there - (uint64_t)at);
		note(d, EVENT_WRITE, f, (uint64_t)at, there - (uint64_t)at, NULL);
		return 0;
	}
	if (used_bytes(d) + end - MIN(end, f->bytes) > d->total_bytes)
		return -ENOSPC;
	segdisk_resize(f, MAX(end, f->bytes));
	note(d, EVENT_SIZE, f, f->bytes, 0, NULL);
	return 0;
}

static int disk_datasync(void *userdata, int fd)
{
	struct segdisk *d = userdata;
	const int r = fault_whole(d, disk_datasync);

	if (r == 0)
		note(d, EVENT_SYNC, file_of(d, fd), 0, 0, NULL);
	return r;
}

static int disk_sync(void *userdata, int fd)
{
	struct segdisk *d = userdata;
	const int r = fault_whole(d, disk_sync);

	assert(file_of(d, fd)->is_dir);
	if (r == 0)
		note(d, EVENT_SYNC_DIR, file_of(d, fd), 0, 0, NULL);
	return r;
}

static void disk_close(void *userdata, int fd)
{
	struct segdisk *d = userdata;

	assert(d->fds[fd] > 0);
	d->fds[fd] = 0;
}

struct segdisk *segdisk_new(void)
{
	struct segdisk *d = must(calloc(1, sizeof(*d)));

	d->ops = (struct segments_ops){
		.open = disk_open,
		.mkdir = disk_mkdir,
		.unlink = disk_unlink,
		.lock = disk_lock,
		.list = disk_list,
		.stat = disk_stat,
		.statvfs = disk_statvfs,
		.preadv = disk_preadv,
		.pwrite = disk_pwrite,
		.fallocate = disk_fallocate,
		.truncate = disk_truncate,
		.datasync = disk_datasync,
		.sync = disk_sync,
		.close = disk_close,
		.userdata = d,
	};
	d->total_bytes = 1 << 30;
	segdisk_add(d, ".", true);
	return d;
}

struct segdisk *segdisk_free(struct segdisk *d)
{
	if (!d)
		return NULL;
	for (uint32_t i = 0; i < d->n_files; i++)
		free(d->files[i].data);
	for (uint32_t i = 0; i < d->n_log; i++)
		free(d->log[i].data);
	free(d->log);
	free(d);
	return NULL;
}

struct segdisk *segdisk_copy(const struct segdisk *d)
{
	struct segdisk *copy = segdisk_new();

	for (uint32_t i = 1; i < d->n_files; i++) {
		struct segdisk_file *f;

		if (!d->files[i].name[0])
			continue;
		f = segdisk_add(copy, d->files[i].name, d->files[i].is_dir);
		put(f, 0, d->files[i].data, d->files[i].bytes);
	}
	copy->total_bytes = d->total_bytes;
	return copy;
}

/* A pseudo-random bit; the same for the same seed. */
static bool toss(uint32_t *seed)
{
	*seed = *seed * 1664525u + 1013904223u;
	return *seed >> 31;
}

static uint32_t parent_of(const struct segdisk *d, uint32_t file)
{
	const char *born = d->files[file].born, *slash = strchr(born, '/');

	for (uint32_t i = 1; i < d->n_files && slash; i++) {
		const char *dir = d->files[i].born;

		if (d->files[i].is_dir && strlen(dir) == (size_t)(slash - born) &&
		    strncmp(dir, born, strlen(dir)) == 0)
			return i;
	}
	return 0;
}

/* Was event @i followed by the sync that makes it last, before event @n? */
static bool is_lasting(const struct segdisk *d, uint32_t i, uint32_t n)
{
	const struct segdisk_event *e = &d->log[i];
	const bool is_name = e->kind == EVENT_ADD || e->kind == EVENT_DELETE;
	const uint32_t on = is_name ? parent_of(d, e->file) : e->file;

	for (i++; i < n; i++)
		if (d->log[i].kind == (is_name ? EVENT_SYNC_DIR : EVENT_SYNC) &&
		    d->log[i].file == on)
			return true;
	return false;
}

static void write_part(struct segdisk_file *f, const struct segdisk_event *e, uint32_t unit,
		       uint32_t *seed)
{
	for (uint64_t at = 0; at < e->bytes; at += unit)
		if (toss(seed))
			put(f, e->at + at, e->data ? e->data + at : NULL, MIN(unit, e->bytes - at));
}

static void replay(struct segdisk *to, const struct segdisk_event *e, bool whole,
		   enum segdisk_cut how, uint32_t *seed)
{
	struct segdisk_file *f = &to->files[e->file];

	if (e->kind == EVENT_WRITE && !whole && how >= CUT_512) {
		write_part(f, e, how == CUT_512 ? 512 : 4096, seed);
		return;
	}
	if (!whole && (how == CUT_ALL || toss(seed)))
		return;
	switch (e->kind) {
	case EVENT_ADD:
		memcpy(f->name, f->born, sizeof(f->name));
		break;
	case EVENT_DELETE:
		f->name[0] = 0;
		break;
	case EVENT_WRITE:
		put(f, e->at, e->data, e->bytes);
		break;
	case EVENT_SIZE:
		segdisk_resize(f, e->at);
		break;
	default:
		break;
	}
}

/* A file whose directory is not there is not there. */
static void drop_orphans(struct segdisk *d)
{
	for (uint32_t i = 1; i < d->n_files; i++)
		if (!has_parent(d, d->files[i].name))
			d->files[i].name[0] = 0;
}

struct segdisk *segdisk_cut(const struct segdisk *d, uint32_t n, enum segdisk_cut how,
			    uint32_t seed)
{
	struct segdisk *to = segdisk_new();

	to->total_bytes = d->total_bytes;
	for (uint32_t i = 1; i < d->n_files; i++)
		segdisk_add(to, d->files[i].born, d->files[i].is_dir)->name[0] = 0;
	for (uint32_t i = 0; i < n; i++)
		replay(to, &d->log[i], how == CUT_NOTHING || is_lasting(d, i, n), how, &seed);
	drop_orphans(to);
	return to;
}

uint32_t segdisk_open_fds(const struct segdisk *d)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < SEGDISK_FDS_MAX; i++)
		n += d->fds[i] > 0;
	return n;
}
