/*
 * The disk tier of the KV cache: pages written and read back through the thread
 * that the daemon has for it, with all its checks, beside the same bytes in one
 * file of the same file system.
 */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <string.h>
#include <xxhash.h>

#include "daemon/kv/kvdisk.h"
#include "tests/bench/bench.h"

#define READ_BAR 0.7		    /* of what plain reads give */
#define PAGE_BYTES (11776ull << 10) /* of GLM-4.5-Air, 64 tokens */
#define PAGES 44		    /* two segments */

#define ROOMS 3 /* that reads take in turn: one is summed, one is read, one waits */

struct tier {
	sd_event *loop;
	struct kvdisk *d;
	char dir[64], plain[80];
	uint64_t sum[2];
	void *rooms[ROOMS];
	uint32_t n_asked, n_done;
	int r;
	bool writes;
};

static int plain(struct tier *t, bool writes, double *ret)
{
	_cleanup_(closep) int fd = open(t->plain, O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
	const double from = bench_now_s();
	ssize_t n = fd < 0 ? -1 : 0;

	if (writes && n == 0)
		n = fallocate(fd, 0, 0, (off_t)(PAGES * PAGE_BYTES));
	for (uint32_t i = 0; i < PAGES && n >= 0; i++)
		n = writes ? pwrite(fd, t->rooms[0], PAGE_BYTES, (off_t)(i * PAGE_BYTES))
			   : pread(fd, t->rooms[0], PAGE_BYTES, (off_t)(i * PAGE_BYTES));
	if (n < 0 || (writes && fdatasync(fd) < 0))
		return -errno;
	*ret = PAGES * PAGE_BYTES / (bench_now_s() - from) / 1e9;
	return 0;
}

static struct kvdisk_key key_of(uint32_t i)
{
	static const uint32_t tokens[64];

	return (struct kvdisk_key){
		.hash = { i + 1, 0 }, .uid = 1000, .n_tokens = 64, .tokens = tokens
	};
}

static void on_done(int r, const uint64_t sum[2], void *userdata)
{
	struct tier *t = userdata;

	(void)sum;
	t->n_done++;
	if (r < 0)
		t->r = r;
}

static int run_until(struct tier *t, uint32_t n_done)
{
	while (t->n_done < n_done && t->r >= 0) {
		const int r = sd_event_run(t->loop, UINT64_MAX);

		if (r < 0)
			return r;
	}
	return t->r;
}

static int write_all(struct tier *t, double *ret)
{
	const double from = bench_now_s();
	int r = 0;

	t->n_done = 0;
	for (uint32_t i = 0; i < PAGES && r == 0; i++) {
		const struct kvdisk_key key = key_of(i);

		r = kvdisk_write(t->d, &key, t->rooms[0], t->sum, on_done, t);
	}
	if (r == 0)
		r = kvdisk_flush(t->d, on_done, t);
	if (r == 0)
		r = run_until(t, PAGES + 1);
	*ret = PAGES * PAGE_BYTES / (bench_now_s() - from) / 1e9;
	return r;
}

/* As many at a time as there are rooms, which is as the cache asks for a prompt's pages. */
static int read_all(struct tier *t, double *ret)
{
	const double from = bench_now_s();
	int r = 0;

	t->n_done = 0;
	for (uint32_t i = 0; i < PAGES && r == 0; i++) {
		const struct kvdisk_key key = key_of(i);

		if (i >= ROOMS)
			r = run_until(t, i - ROOMS + 1);
		if (r == 0)
			r = kvdisk_read(t->d, &key, t->rooms[i % ROOMS], on_done, t);
	}
	if (r == 0)
		r = run_until(t, PAGES);
	*ret = PAGES * PAGE_BYTES / (bench_now_s() - from) / 1e9;
	return r;
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
	(void)st, (void)kind, (void)ftw;
	return remove(path);
}

static void close_tier(struct tier *t)
{
	t->d = kvdisk_free(t->d);
	nftw(t->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	unlink(t->plain);
}

static int open_tier(struct tier *t)
{
	const struct segments_options options = { .dir = t->dir,
						  .page_bytes = PAGE_BYTES,
						  .page_tokens = 64,
						  .limits.total_bytes = 4ull << 30 };
	int r;

	t->r = 0;
	r = kvdisk_new(t->loop, &options, NULL, NULL, &t->d);
	while (r >= 0 && !kvdisk_is_ready(t->d))
		r = sd_event_run(t->loop, UINT64_MAX);
	return r < 0 ? r : kvdisk_text(t->d)[0] ? -EIO : 0;
}

static int once(void *userdata, double *ret_value, double *ret_limit)
{
	struct tier *t = userdata;
	double wrote, other;
	int r;

	close_tier(t);
	r = open_tier(t);
	if (r == 0)
		r = plain(t, true, &other);
	if (r == 0)
		r = write_all(t, &wrote);
	if (r == 0 && t->writes) {
		*ret_value = wrote;
		*ret_limit = other;
		return 0;
	}
	if (r == 0)
		r = plain(t, false, ret_limit);
	return r == 0 ? read_all(t, ret_value) : r;
}

static int prepare(struct tier *t)
{
	XXH128_hash_t sum;

	snprintf(t->dir, sizeof(t->dir), "bench-segments-%d", (int)getpid());
	snprintf(t->plain, sizeof(t->plain), "%s.plain", t->dir);
	for (int i = 0; i < ROOMS; i++) {
		t->rooms[i] = aligned_alloc(4096, PAGE_BYTES);
		if (!t->rooms[i])
			return -ENOMEM;
		memset(t->rooms[i], 37 + i, PAGE_BYTES);
	}
	sum = XXH3_128bits(t->rooms[0], PAGE_BYTES);
	t->sum[0] = sum.low64;
	t->sum[1] = sum.high64;
	return sd_event_new(&t->loop);
}

static void clean_up(struct tier *t)
{
	close_tier(t);
	sd_event_unref(t->loop);
	for (int i = 0; i < ROOMS; i++)
		free(t->rooms[i]);
}

static int measure(struct bench *b, const struct bench_figure *figure, struct err *err)
{
	struct bench_row row = { .name = figure->name,
				 .unit = "GB/s",
				 .kind = LIMIT_WANTED, /* a disk has moods */
				 .at_least = figure->n ? 0 : READ_BAR,
				 .limit_name = figure->n ? "O_DIRECT write" : "O_DIRECT read" };
	struct tier t = { .writes = figure->n == 1 };
	int r = prepare(&t);

	if (r >= 0)
		r = bench_rounds(b, 1, once, &t, &row);
	clean_up(&t);
	if (r == -EINVAL || r == -ENOTSUP)
		return bench_skip(figure->name, "the file system has no O_DIRECT");
	if (r < 0)
		return err_wrap(err, r, "cannot measure the disk tier");
	row.gbs = row.value;
	bench_print(b, &row);
	return 0;
}

const struct bench_figure figures_segments[] = {
	{ "kv-disk-read", "KV pages from the disk tier, checked", measure, 0, false },
	{ "kv-disk-write", "KV pages to the disk tier, synced", measure, 1, false },
	{ 0 },
};
