/*
 * Threads that take block after block of all files together: one block a
 * thread is what the disk has to do at any time.
 */
#include "tests/bench/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "tests/bench/bench.h"

#define THREADS 8
#define BLOCK_BYTES ((size_t)4 << 20)
#define ALIGNMENT 4096

struct reader {
	const struct checkpoint *c;
	int *fds;	       /* [n_files] */
	_Atomic uint64_t next; /* block, counted through all files */
	_Atomic int r;
};

static uint64_t blocks_of(const struct st_file *f)
{
	return (st_file_bytes(f) + BLOCK_BYTES - 1) / BLOCK_BYTES;
}

/* The end of a file is no whole block: less than was asked for comes, which is no failure. */
static int read_block(struct reader *d, uint64_t block, void *buffer)
{
	uint32_t file = 0;

	while (file < d->c->n_files && block >= blocks_of(d->c->files[file]))
		block -= blocks_of(d->c->files[file++]);
	if (file == d->c->n_files)
		return 0;
	if (pread(d->fds[file], buffer, BLOCK_BYTES, (off_t)(block * BLOCK_BYTES)) < 0)
		return -errno;
	return 1;
}

static void *read_blocks(void *userdata)
{
	struct reader *d = userdata;
	_cleanup_(freep) void *buffer = aligned_alloc(ALIGNMENT, BLOCK_BYTES);
	int r = buffer ? 1 : -ENOMEM;

	while (r > 0)
		r = read_block(d, atomic_fetch_add(&d->next, 1), buffer);
	if (r < 0)
		d->r = r;
	return NULL;
}

static int run(struct reader *d)
{
	pthread_t threads[THREADS];
	int n = 0, r = 0;

	while (n < THREADS && r == 0) {
		r = -pthread_create(&threads[n], NULL, read_blocks, d);
		n += r == 0;
	}
	while (n > 0)
		pthread_join(threads[--n], NULL);
	return r < 0 ? r : d->r;
}

int disk_read(const struct checkpoint *c, double *ret_rate, struct err *err)
{
	_cleanup_(freep) int *fds = calloc(c->n_files, sizeof(*fds));
	struct reader d = { .c = c, .fds = fds };
	double bytes = 0, from;
	uint32_t n = 0;
	int r = 0;

	if (!fds)
		return err_wrap(err, -ENOMEM, "cannot read the disk");
	for (; n < c->n_files && r == 0; n++) {
		fds[n] = open(st_file_path(c->files[n]), O_RDONLY | O_DIRECT | O_CLOEXEC);
		if (fds[n] < 0)
			r = -errno;
		bytes += (double)st_file_bytes(c->files[n]);
	}
	from = bench_now_s();
	if (r == 0)
		r = run(&d);
	*ret_rate = bytes / (bench_now_s() - from);
	while (n > 0)
		closep(&fds[--n]);
	return r < 0 ? err_wrap(err, r, "cannot read '%s' past the page cache", c->dir) : 0;
}

int disk_forget(const struct checkpoint *c, struct err *err)
{
	for (uint32_t i = 0; i < c->n_files; i++) {
		_cleanup_(closep) int fd = open(st_file_path(c->files[i]), O_RDONLY | O_CLOEXEC);
		int r;

		if (fd < 0 || fsync(fd) < 0)
			return err_wrap(err, -errno, "cannot have '%s' on the disk",
					st_file_path(c->files[i]));
		r = posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
		if (r)
			return err_wrap(err, -r, "cannot have '%s' out of the page cache",
					st_file_path(c->files[i]));
	}
	return 0;
}

static int once(void *checkpoint, double *ret_value, double *ret_limit)
{
	const int r = disk_read(checkpoint, ret_value, NULL);

	(void)ret_limit;
	*ret_value /= 1e9;
	return r;
}

static int measure(struct bench *b, const struct bench_figure *figure, struct err *err)
{
	struct bench_row row = { .name = figure->name, .unit = "GB/s" };
	const struct checkpoint *checkpoint;
	int r;

	r = bench_checkpoint(b, &checkpoint, err);
	if (r == 0)
		r = disk_forget(checkpoint, err);
	if (r < 0)
		return r;
	r = bench_rounds(b, 1, once, (void *)checkpoint, &row);
	if (r == -EINVAL || r == -ENOTSUP)
		return bench_skip(figure->name, "the file system has no O_DIRECT");
	if (r < 0)
		return err_wrap(err, r, "cannot read '%s' past the page cache", checkpoint->dir);
	bench_print(b, &row);
	return 0;
}

const struct bench_figure figures_disk[] = {
	{ "disk", "the model's files, read past the page cache", measure, 0, false },
	{ 0 },
};
