/*
 * The disk tier of the KV cache: pages written and read back through it, with
 * all its checks, beside the same bytes in one file of the same file system.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <xxhash.h>

#include "daemon/kv/segments.h"
#include "tests/bench/bench.h"

#define PAGE_BYTES (11776ull << 10) /* of GLM-4.5-Air, 64 tokens */
#define PAGES 44		    /* two segments */

struct tier {
	struct segments *s;
	char dir[64], plain[80];
	struct segments_place places[PAGES];
	uint64_t sum[2];
	void *rooms[2];
	bool writes;
};

static struct segments_key key_of(uint32_t i)
{
	return (struct segments_key){ .hash = { i + 1 }, .uid = 1000, .n_tokens = 64 };
}

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

static int append_all(struct tier *t, double *ret)
{
	static const uint32_t tokens[64];
	const double from = bench_now_s();
	int r = 0;

	for (uint32_t i = 0; i < PAGES && r == 0; i++) {
		const struct segments_key key = key_of(i);

		r = segments_append(t->s, &key, tokens, t->rooms[0], t->sum, &t->places[i], NULL);
	}
	if (r == 0)
		r = segments_flush(t->s, NULL);
	*ret = PAGES * PAGE_BYTES / (bench_now_s() - from) / 1e9;
	return r;
}

static int read_all(struct tier *t, double *ret)
{
	static const uint32_t tokens[64];
	const double from = bench_now_s();
	int r = 0;

	for (uint32_t i = 0; i < PAGES && r == 0; i++) {
		const struct segments_key key = key_of(i);

		if (i + 1 < PAGES)
			segments_prefetch(t->s, t->places[i + 1], t->rooms[(i + 1) % 2]);
		r = segments_read(t->s, t->places[i], &key, tokens, t->rooms[i % 2], NULL, NULL);
	}
	*ret = PAGES * PAGE_BYTES / (bench_now_s() - from) / 1e9;
	return r;
}

static int once(void *userdata, double *ret_value, double *ret_limit)
{
	struct tier *t = userdata;
	double wrote, other;
	int r;

	segments_forget_user(t->s, SEGMENTS_ALL);
	unlink(t->plain);
	r = plain(t, true, &other);
	if (r == 0)
		r = append_all(t, &wrote);
	if (r == 0 && t->writes) {
		*ret_value = wrote;
		*ret_limit = other;
		return 0;
	}
	if (r == 0)
		r = plain(t, false, ret_limit);
	return r == 0 ? read_all(t, ret_value) : r;
}

static int prepare(struct tier *t, struct err *err)
{
	struct segments_options options = { .dir = t->dir,
					    .page_bytes = PAGE_BYTES,
					    .page_tokens = 64,
					    .limits.total_bytes = 4ull << 30 };
	XXH128_hash_t sum;
	int r;

	snprintf(t->dir, sizeof(t->dir), "bench-segments-%d", (int)getpid());
	snprintf(t->plain, sizeof(t->plain), "%s.plain", t->dir);
	for (int i = 0; i < 2; i++) {
		t->rooms[i] = aligned_alloc(4096, PAGE_BYTES);
		if (!t->rooms[i])
			return -ENOMEM;
		memset(t->rooms[i], 37 + i, PAGE_BYTES);
	}
	sum = XXH3_128bits(t->rooms[0], PAGE_BYTES);
	t->sum[0] = sum.low64;
	t->sum[1] = sum.high64;
	r = segments_open(&options, &t->s, err);
	while (r == 0 && (r = segments_scan(t->s, err)) > 0)
		r = 0;
	return r;
}

static void clean_up(struct tier *t)
{
	char user[80];

	if (t->s)
		segments_forget_user(t->s, SEGMENTS_ALL);
	t->s = segments_free(t->s);
	unlink(t->plain);
	snprintf(user, sizeof(user), "%s/1000", t->dir);
	rmdir(user);
	rmdir(t->dir);
	free(t->rooms[0]);
	free(t->rooms[1]);
}

static int measure(struct bench *b, const struct bench_figure *figure, struct err *err)
{
	struct bench_row row = { .name = figure->name,
				 .unit = "GB/s",
				 .kind = LIMIT_WANTED, /* a disk has moods */
				 .limit_name = figure->n ? "O_DIRECT write" : "O_DIRECT read" };
	struct tier t = { .writes = figure->n == 1 };
	int r = prepare(&t, err);

	if (r == 0)
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
