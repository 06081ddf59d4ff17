/* The disk's thread beside a real loop, over a real directory: what was written is read back, or nothing. */
#include "daemon/kv/kvdisk.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "client/wire/ownership.h"
#include "daemon/kv/segments-ops.h"

#define PAGE_TOKENS 16
#define PAGE_BYTES 8192
#define WRITES_MAX 256 /* that may wait */

struct ends {
	uint32_t n;
	int r;
	uint64_t sum[2];
	uint32_t order; /* among all */
};

struct disk {
	char dir[64];
	struct segments_options options;
	sd_event *loop;
	struct kvdisk *d;
	uint32_t n_ready;
	uint8_t *payload, *room; /* PAGE_BYTES each */
};

static uint32_t n_ends;

static void on_ready(void *userdata)
{
	((struct disk *)userdata)->n_ready++;
}

static void on_done(int r, const uint64_t sum[2], void *userdata)
{
	struct ends *e = userdata;

	e->n++;
	e->r = r;
	memcpy(e->sum, sum, sizeof(e->sum));
	e->order = n_ends++;
}

static void open_again(struct disk *t)
{
	t->n_ready = 0;
	assert_int_equal(kvdisk_new(t->loop, &t->options, on_ready, t, &t->d), 0);
	assert_false(kvdisk_is_ready(t->d));
	while (!kvdisk_is_ready(t->d))
		assert_true(sd_event_run(t->loop, UINT64_MAX) >= 0);
	assert_int_equal(t->n_ready, 1);
}

static void make(struct disk *t)
{
	*t = (struct disk){ .options = { .layout = 1,
					 .page_tokens = PAGE_TOKENS,
					 .page_bytes = PAGE_BYTES,
					 .segment_bytes = 64 * PAGE_BYTES,
					 .limits.total_bytes = 256 * 1024 * 1024 } };
	snprintf(t->dir, sizeof(t->dir), "/tmp/steamd-kvdisk-XXXXXX");
	assert_non_null(mkdtemp(t->dir));
	t->options.dir = t->dir;
	memset(t->options.fingerprint, 7, sizeof(t->options.fingerprint));
	t->payload = aligned_alloc(4096, PAGE_BYTES);
	t->room = aligned_alloc(4096, PAGE_BYTES);
	assert_true(t->payload && t->room);
	assert_int_equal(sd_event_new(&t->loop), 0);
}

static void begin(struct disk *t)
{
	make(t);
	open_again(t);
	assert_string_equal(kvdisk_text(t->d), "");
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
	(void)st, (void)kind, (void)ftw;
	return remove(path);
}

static void end(struct disk *t)
{
	kvdisk_free(t->d);
	sd_event_unref(t->loop);
	nftw(t->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	free(t->payload);
	free(t->room);
}

static uint32_t waiting(const struct disk *t)
{
	struct kvdisk_counts n;

	kvdisk_count(t->d, &n);
	return n.n_waiting;
}

static uint64_t n_pages(const struct disk *t)
{
	struct kvdisk_counts n;

	kvdisk_count(t->d, &n);
	return n.n_pages;
}

static void run_all(struct disk *t)
{
	while (waiting(t) > 0)
		assert_true(sd_event_run(t->loop, UINT64_MAX) >= 0);
}

/* Page @i: uid 1000 + i % 2, 16 tokens. */
static struct kvdisk_key key_of(uint32_t i)
{
	static uint32_t tokens[PAGE_TOKENS];

	for (uint32_t k = 0; k < PAGE_TOKENS; k++)
		tokens[k] = 1000 * i + k;
	return (struct kvdisk_key){
		.hash = { 0x100000001ull * i, 3 },
		.parent = { 0x200000001ull * i, 5 },
		.root = { 11, 13 },
		.uid = 1000 + i % 2,
		.n_tokens = PAGE_TOKENS,
		.tokens = tokens,
	};
}

static void fill(uint8_t *payload, uint32_t i, uint64_t sum[2])
{
	XXH128_hash_t h;

	for (uint32_t k = 0; k < PAGE_BYTES; k++)
		payload[k] = (uint8_t)(i * 31 + k * 7 + k / 256);
	h = XXH3_128bits(payload, PAGE_BYTES);
	sum[0] = h.low64;
	sum[1] = h.high64;
}

static void write_one(struct disk *t, uint32_t i)
{
	const struct kvdisk_key key = key_of(i);
	struct ends e = { 0 };
	uint64_t sum[2];

	fill(t->payload, i, sum);
	assert_int_equal(kvdisk_write(t->d, &key, t->payload, sum, on_done, &e), 0);
	run_all(t);
	assert_int_equal(e.n, 1);
	assert_int_equal(e.r, 0);
}

/* What comes with 0 is what was written. */
static int read_one(struct disk *t, uint32_t i)
{
	const struct kvdisk_key key = key_of(i);
	struct ends e = { 0 };
	uint64_t sum[2];
	int r;

	memset(t->room, 0xee, PAGE_BYTES);
	r = kvdisk_read(t->d, &key, t->room, on_done, &e);
	if (r < 0) {
		run_all(t);
		assert_int_equal(e.n, 0);
		return r;
	}
	run_all(t);
	assert_int_equal(e.n, 1);
	if (e.r < 0)
		return e.r;
	fill(t->payload, i, sum);
	assert_memory_equal(t->room, t->payload, PAGE_BYTES);
	assert_true(e.sum[0] == sum[0] && e.sum[1] == sum[1]);
	return 0;
}

static bool has(const struct disk *t, uint32_t i)
{
	const struct kvdisk_key key = key_of(i);

	return kvdisk_has(t->d, &key);
}

static void a_page_that_was_written_is_read_back(void **state)
{
	struct disk t;
	struct ends e = { 0 };
	const struct kvdisk_key key = key_of(1);
	uint64_t sum[2];

	(void)state;
	begin(&t);
	assert_false(has(&t, 1));
	assert_int_equal(read_one(&t, 1), -ENOENT);
	fill(t.payload, 1, sum);
	assert_int_equal(kvdisk_write(t.d, &key, t.payload, sum, on_done, &e), 0);
	assert_true(has(&t, 1)); /* nobody writes it again */
	assert_int_equal(kvdisk_read(t.d, &key, t.room, on_done, &e), -ENOENT);
	assert_int_equal(e.n, 0);
	run_all(&t);
	assert_int_equal(e.n, 1);
	assert_int_equal(e.r, 0);
	assert_int_equal(read_one(&t, 1), 0);
	assert_int_equal(read_one(&t, 1), 0);
	assert_int_equal(n_pages(&t), 1);
	end(&t);
}

static void ends_come_home_in_the_order_of_the_jobs(void **state)
{
	struct disk t;
	struct ends e[40] = { { 0 } };
	uint64_t sum[2];

	(void)state;
	begin(&t);
	write_one(&t, 0);
	fill(t.payload, 1, sum);
	n_ends = 0;
	for (uint32_t i = 0; i < 40; i++) {
		const struct kvdisk_key key = key_of(i % 2 ? 0 : i + 1);

		assert_int_equal(i % 2 ? kvdisk_read(t.d, &key, t.room, on_done, &e[i])
				       : kvdisk_write(t.d, &key, t.payload, sum, on_done, &e[i]),
				 0);
	}
	run_all(&t);
	for (uint32_t i = 0; i < 40; i++) {
		assert_int_equal(e[i].n, 1);
		assert_int_equal(e[i].order, i);
	}
	end(&t);
}

static void another_key_is_another_page(void **state)
{
	struct disk t;
	struct kvdisk_key key = key_of(3);
	struct ends e = { 0 };
	uint32_t tokens[PAGE_TOKENS];

	(void)state;
	begin(&t);
	write_one(&t, 3);
	for (uint32_t i = 0; i < 7; i++) {
		key = key_of(3);
		*(i == 0   ? &key.hash.lo
		  : i == 1 ? &key.hash.hi
		  : i == 2 ? &key.parent.lo
		  : i == 3 ? &key.parent.hi
		  : i == 4 ? &key.root.lo
			   : &key.root.hi) ^= i < 6;
		if (i == 6)
			key.uid++;
		assert_false(kvdisk_has(t.d, &key));
		assert_int_equal(kvdisk_read(t.d, &key, t.room, on_done, &e), -ENOENT);
	}
	assert_int_equal(read_one(&t, 3), 0);
	/* all hashes right and a token wrong */
	key = key_of(3);
	memcpy(tokens, key.tokens, sizeof(tokens));
	tokens[15] ^= 1;
	key.tokens = tokens;
	assert_int_equal(kvdisk_read(t.d, &key, t.room, on_done, &e), 0);
	run_all(&t);
	assert_int_equal(e.n, 1);
	assert_true(e.r < 0);
	end(&t);
}

static void a_restart_finds_what_was_written(void **state)
{
	struct disk t;

	(void)state;
	begin(&t);
	for (uint32_t i = 0; i < 150; i++)
		write_one(&t, i);
	kvdisk_flush(t.d, NULL, NULL);
	run_all(&t);
	for (int round = 0; round < 2; round++) {
		t.d = kvdisk_free(t.d);
		open_again(&t);
		assert_int_equal(n_pages(&t), 150);
		for (uint32_t i = 0; i < 150; i++)
			assert_int_equal(read_one(&t, i), 0);
		assert_false(has(&t, 150));
	}
	/* and goes on behind it */
	write_one(&t, 150);
	assert_int_equal(read_one(&t, 150), 0);
	/* another model's are not found */
	t.d = kvdisk_free(t.d);
	t.options.fingerprint[0] ^= 1;
	open_again(&t);
	assert_int_equal(n_pages(&t), 0);
	assert_false(has(&t, 7));
	end(&t);
}

static void until_all_files_were_looked_into_nothing_is_written(void **state)
{
	struct disk t;
	const struct kvdisk_key key = key_of(2);
	struct ends e = { 0 };
	uint64_t sum[2] = { 0 };

	(void)state;
	begin(&t);
	write_one(&t, 1);
	t.d = kvdisk_free(t.d);
	assert_int_equal(kvdisk_new(t.loop, &t.options, NULL, NULL, &t.d), 0);
	assert_int_equal(kvdisk_write(t.d, &key, t.payload, sum, on_done, &e), -EAGAIN);
	assert_false(has(&t, 2));
	run_all(&t);
	assert_true(kvdisk_is_ready(t.d));
	assert_int_equal(e.n, 0);
	write_one(&t, 2);
	end(&t);
}

/* Flips a bit at @at in the first segment of uid 1001. */
static void damage(const struct disk *t, off_t at)
{
	char path[128];
	uint8_t byte;
	int fd;

	snprintf(path, sizeof(path), "%s/1001/seg-0000000000000001.kv", t->dir);
	fd = open(path, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &byte, 1, at), 1);
	byte ^= 0x10;
	assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	close(fd);
}

static void a_damaged_page_is_refused_once_and_forgotten(void **state)
{
	struct disk t;
	struct kvdisk_counts n;

	(void)state;
	begin(&t);
	write_one(&t, 1);
	write_one(&t, 3);
	t.d = kvdisk_free(t.d);
	/* a block of the file's header, one of the record's head, and then it itself */
	damage(&t, 4096 + 4096 + 77);
	open_again(&t);
	assert_true(has(&t, 1));
	assert_int_equal(read_one(&t, 1), -EBADMSG);
	assert_false(has(&t, 1));
	assert_int_equal(read_one(&t, 1), -ENOENT);
	assert_int_equal(read_one(&t, 3), 0);
	kvdisk_count(t.d, &n);
	assert_int_equal(n.store.n_damaged, 1);
	assert_int_equal(n.n_pages, 1);
	write_one(&t, 1); /* computed again, it may be written again */
	assert_int_equal(read_one(&t, 1), 0);
	end(&t);
}

static void a_file_that_is_gone_or_cut_is_computed_again(void **state)
{
	struct disk t;
	char path[128];

	(void)state;
	begin(&t);
	for (uint32_t i = 0; i < 4; i++)
		write_one(&t, i ^ 1); /* the first file is uid 1001's */
	t.d = kvdisk_free(t.d);
	open_again(&t);
	snprintf(path, sizeof(path), "%s/1001/seg-0000000000000001.kv", t.dir);
	assert_int_equal(truncate(path, 4096 + 4096 + 100), 0);
	assert_true(read_one(&t, 1) < 0);
	assert_true(read_one(&t, 3) < 0);
	assert_false(has(&t, 1));
	assert_int_equal(read_one(&t, 0), 0);
	assert_int_equal(read_one(&t, 2), 0);
	t.d = kvdisk_free(t.d);
	snprintf(path, sizeof(path), "%s/1000", t.dir);
	assert_int_equal(nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
	open_again(&t);
	assert_int_equal(n_pages(&t), 0);
	assert_int_equal(read_one(&t, 2), -ENOENT);
	write_one(&t, 2);
	end(&t);
}

static void without_a_directory_everything_fails_and_says_why(void **state)
{
	struct disk t, other;
	const struct kvdisk_key key = key_of(1);
	char dir[80], wanted[160];
	struct ends e = { 0 };
	uint64_t sum[2] = { 0 };

	(void)state;
	make(&t);
	snprintf(dir, sizeof(dir), "%s/none/kv", t.dir);
	t.options.dir = dir;
	open_again(&t);
	snprintf(wanted, sizeof(wanted), "cannot make '%s': No such file or directory", dir);
	assert_string_equal(kvdisk_text(t.d), wanted);
	assert_int_equal(kvdisk_write(t.d, &key, t.payload, sum, on_done, &e), -EAGAIN);
	assert_false(has(&t, 1));
	assert_int_equal(kvdisk_read(t.d, &key, t.room, on_done, &e), -ENOENT);
	kvdisk_flush(t.d, NULL, NULL);
	kvdisk_limit(t.d, &t.options.limits);
	run_all(&t);
	assert_int_equal(e.n, 0);
	kvdisk_free(t.d);

	t.options.dir = t.dir;
	open_again(&t);
	other = t;
	open_again(&other);
	assert_non_null(strstr(kvdisk_text(other.d), t.dir)); /* one process, one store */
	kvdisk_free(other.d);
	write_one(&t, 1);
	end(&t);
}

static void only_so_many_writes_may_wait(void **state)
{
	struct disk t;
	struct ends e[WRITES_MAX + 1] = { { 0 } };
	struct kvdisk_key key;
	uint64_t sum[2];

	(void)state;
	begin(&t);
	fill(t.payload, 1, sum);
	for (uint32_t i = 0; i < WRITES_MAX; i++) {
		key = key_of(i);
		assert_int_equal(kvdisk_write(t.d, &key, t.payload, sum, on_done, &e[i]), 0);
	}
	key = key_of(WRITES_MAX);
	assert_int_equal(kvdisk_write(t.d, &key, t.payload, sum, on_done, &e[WRITES_MAX]), -EAGAIN);
	assert_false(has(&t, WRITES_MAX));
	run_all(&t);
	for (uint32_t i = 0; i < WRITES_MAX; i++) {
		assert_int_equal(e[i].n, 1);
		assert_int_equal(e[i].r, 0);
	}
	assert_int_equal(e[WRITES_MAX].n, 0);
	write_one(&t, WRITES_MAX);
	end(&t);
}

static void what_there_is_no_room_for_is_not_there(void **state)
{
	struct disk t;
	const struct segments_limits little = { .total_bytes = 1 };
	const struct kvdisk_key key = key_of(1);
	struct ends e = { 0 };
	uint64_t sum[2];

	(void)state;
	begin(&t);
	kvdisk_limit(t.d, &little);
	fill(t.payload, 1, sum);
	assert_int_equal(kvdisk_write(t.d, &key, t.payload, sum, on_done, &e), 0);
	run_all(&t);
	assert_int_equal(e.n, 1);
	assert_int_equal(e.r, -EDQUOT);
	assert_false(has(&t, 1));
	assert_int_equal(n_pages(&t), 0);
	end(&t);
}

static void pages_of_a_segment_that_went_are_not_in_the_index(void **state)
{
	struct disk t;
	uint32_t n = 0;

	(void)state;
	make(&t);
	t.options.limits.total_bytes = 96 * PAGE_BYTES;
	open_again(&t);
	for (uint32_t i = 0; i < 200; i++)
		write_one(&t, i);
	assert_true(n_pages(&t) < 96);
	for (uint32_t i = 0; i < 200; i++) {
		const bool there = has(&t, i);

		n += there;
		assert_int_equal(read_one(&t, i), there ? 0 : -ENOENT);
	}
	assert_int_equal(n, n_pages(&t));
	assert_true(n > 0);
	end(&t);
}

static void freed_with_jobs_waiting_each_ends_once(void **state)
{
	struct disk t;
	struct ends e[WRITES_MAX], reads[100];
	uint64_t sum[2];
	uint32_t n_done = 0;

	(void)state;
	begin(&t);
	write_one(&t, 0);
	fill(t.payload, 1, sum);
	memset(e, 0, sizeof(e));
	memset(reads, 0, sizeof(reads));
	for (uint32_t i = 1; i < WRITES_MAX; i++) {
		const struct kvdisk_key key = key_of(i), first = key_of(0);

		assert_int_equal(kvdisk_write(t.d,
					      &(struct kvdisk_key){ .hash = { i, i },
								    .uid = 1000,
								    .n_tokens = PAGE_TOKENS,
								    .tokens = key.tokens },
					      t.payload, sum, on_done, &e[i]),
				 0);
		if (i < ARRAY_SIZE(reads))
			assert_int_equal(kvdisk_read(t.d, &first, t.room, on_done, &reads[i]), 0);
	}
	kvdisk_flush(t.d, NULL, NULL);
	t.d = kvdisk_free(t.d);
	for (uint32_t i = 1; i < WRITES_MAX; i++) {
		assert_int_equal(e[i].n, 1);
		assert_true(e[i].r == 0 || e[i].r == -ECANCELED);
		n_done += e[i].r == 0;
		if (i < ARRAY_SIZE(reads)) {
			assert_int_equal(reads[i].n, 1);
			assert_true(reads[i].r == 0 || reads[i].r == -ECANCELED);
		}
	}
	/* those that ended well, and no others */
	open_again(&t);
	assert_int_equal(n_pages(&t), 1 + n_done);
	end(&t);
}

static void it_may_be_freed_at_any_moment_of_its_opening(void **state)
{
	struct disk t;
	uint32_t n_ready;

	(void)state;
	begin(&t);
	for (uint32_t i = 0; i < 100; i++)
		write_one(&t, i);
	t.d = kvdisk_free(t.d);
	for (uint32_t i = 0; i < 60; i++) {
		t.n_ready = 0;
		assert_int_equal(kvdisk_new(t.loop, &t.options, on_ready, &t, &t.d), 0);
		for (uint32_t k = 0; k < i % 6 && !kvdisk_is_ready(t.d); k++)
			assert_true(sd_event_run(t.loop, UINT64_MAX) >= 0);
		n_ready = t.n_ready;
		t.d = kvdisk_free(t.d);
		assert_int_equal(t.n_ready, n_ready); /* nothing is ready by being freed */
	}
	open_again(&t);
	assert_int_equal(n_pages(&t), 100);
	end(&t);
}

enum { STRIPS = 4, PART_OF_TOKEN = PAGE_BYTES / PAGE_TOKENS };

/* The first @n tokens of page @i, behind its parent; as the cache names it. */
static struct kvdisk_key part_of(uint32_t i, uint32_t n)
{
	struct kvdisk_key key = key_of(i);

	key.n_tokens = n;
	key.n_strips = STRIPS;
	key.hash = chain_next(key.root, key.parent, key.tokens, n);
	return key;
}

/* The sum of what @n tokens have of each strip. */
static void sum_part(const uint8_t *payload, uint32_t n, uint64_t sum[2])
{
	static uint8_t part[PAGE_BYTES];
	const uint32_t bytes = n * PART_OF_TOKEN / STRIPS;
	XXH128_hash_t h;

	for (uint32_t i = 0; i < STRIPS; i++)
		memcpy(part + i * bytes, payload + i * PAGE_BYTES / STRIPS, bytes);
	h = XXH3_128bits(part, STRIPS * bytes);
	sum[0] = h.low64;
	sum[1] = h.high64;
}

static int write_part(struct disk *t, uint32_t i, uint32_t n)
{
	const struct kvdisk_key key = part_of(i, n);
	struct ends e = { 0 };
	uint64_t sum[2];

	fill(t->payload, i, sum);
	sum_part(t->payload, n, sum);
	assert_int_equal(kvdisk_write(t->d, &key, t->payload, sum, on_done, &e), 0);
	run_all(t);
	assert_int_equal(e.n, 1);
	return e.r;
}

/* The tokens of the longest part that page @i begins with, of @n looked at; it is read and compared. */
static uint32_t find_part(struct disk *t, uint32_t i, uint32_t n)
{
	struct kvdisk_key key = key_of(i);
	struct ends e = { 0 };
	uint64_t sum[2];
	uint32_t k;

	k = kvdisk_find_part(t->d, key.root, key.uid, key.parent, key.tokens, n, &key.hash);
	if (k == 0)
		return 0;
	key.n_tokens = k;
	key.n_strips = STRIPS;
	memset(t->room, 0xee, PAGE_BYTES);
	assert_int_equal(kvdisk_read(t->d, &key, t->room, on_done, &e), 0);
	run_all(t);
	assert_int_equal(e.r, 0);
	fill(t->payload, i, sum);
	sum_part(t->payload, k, sum);
	assert_true(e.sum[0] == sum[0] && e.sum[1] == sum[1]);
	for (uint32_t at = 0; at < PAGE_BYTES; at++) {
		const bool in = at % (PAGE_BYTES / STRIPS) < k * PART_OF_TOKEN / STRIPS;

		assert_int_equal(t->room[at], in ? t->payload[at] : 0);
	}
	return k;
}

static void a_part_is_found_by_all_of_its_tokens(void **state)
{
	struct disk t;
	struct kvdisk_key key;

	(void)state;
	begin(&t);
	assert_int_equal(find_part(&t, 2, 15), 0);
	assert_int_equal(write_part(&t, 2, 5), 0);
	assert_int_equal(write_part(&t, 2, 11), 0);
	for (int life = 0; life < 2; life++) {
		for (uint32_t n = 0; n <= PAGE_TOKENS; n++)
			assert_int_equal(find_part(&t, 2, n), n < 5 ? 0 : n < 11 ? 5 : 11);
		assert_int_equal(find_part(&t, 4, 15), 0); /* other tokens, another parent */
		key = key_of(2);
		assert_int_equal(kvdisk_find_part(t.d, key.root, key.uid + 1, key.parent,
						  key.tokens, 15, &key.hash),
				 0);
		key.root.hi++;
		assert_int_equal(kvdisk_find_part(t.d, key.root, key.uid, key.parent, key.tokens,
						  15, &key.hash),
				 0);
		t.d = kvdisk_free(t.d);
		open_again(&t);
	}
	end(&t);
}

static void a_part_that_is_not_what_its_sum_says_is_not_written(void **state)
{
	struct disk t;
	const struct kvdisk_key key = part_of(2, 7);
	struct ends e = { 0 };
	uint64_t sum[2];

	(void)state;
	begin(&t);
	fill(t.payload, 2, sum);
	sum_part(t.payload, 7, sum);
	t.payload[3]++;
	assert_int_equal(kvdisk_write(t.d, &key, t.payload, sum, on_done, &e), 0);
	run_all(&t);
	assert_int_equal(e.r, -EBADMSG);
	assert_int_equal(n_pages(&t), 0);
	assert_int_equal(find_part(&t, 2, 15), 0);
	end(&t);
}

/* The longer has all of the shorter, which stays until there is no room, and then is the only one to go. */
static void a_part_that_a_longer_one_has_goes_first(void **state)
{
	struct disk t;
	uint32_t n = 0;

	(void)state;
	make(&t);
	t.options.limits.total_bytes = 256 * PAGE_BYTES;
	open_again(&t);
	for (uint32_t i = 0; i < 50; i++)
		assert_int_equal(write_part(&t, 2 * i, 5), 0);
	for (uint32_t i = 0; i < 50; i++)
		assert_int_equal(write_part(&t, 2 * i, 9), 0);
	for (uint32_t i = 0; i < 50; i++)
		assert_int_equal(find_part(&t, 2 * i, 8), 5);
	while (n_pages(&t) == 100 + n)
		write_one(&t, 100 + 2 * n++);
	assert_true(n > 20); /* all parts but the last file's fit */
	assert_int_equal(n_pages(&t), 50 + n);
	for (uint32_t i = 0; i < 50; i++) {
		assert_int_equal(find_part(&t, 2 * i, 8), 0);
		assert_int_equal(find_part(&t, 2 * i, 15), 9);
	}
	end(&t);
}

/* Who reads payloads, and how: the threads take turns in it. */
struct readers {
	pthread_mutex_t lock;
	pthread_cond_t opened;
	bool is_shut;
	pthread_t first; /* the disk's own thread: it reads the first */
	uint32_t n_own, n_ahead;
	useconds_t ahead_us; /* that a read ahead takes */
};

static ssize_t watched_preadv(void *userdata, int fd, const struct iovec *to, int n, off_t at)
{
	struct readers *r = userdata;
	useconds_t us = 0;

	if (n == 2) { /* a head and a payload */
		pthread_mutex_lock(&r->lock);
		if (r->n_own == 0)
			r->first = pthread_self();
		if (pthread_equal(r->first, pthread_self())) {
			r->n_own++;
		} else {
			r->n_ahead++;
			us = r->ahead_us;
		}
		while (r->is_shut && us == 0)
			pthread_cond_wait(&r->opened, &r->lock);
		pthread_mutex_unlock(&r->lock);
	}
	if (us > 0)
		usleep(us);
	return segments_ops_real.preadv(NULL, fd, to, n, at);
}

static void let_read(struct readers *r)
{
	pthread_mutex_lock(&r->lock);
	r->is_shut = false;
	pthread_cond_broadcast(&r->opened);
	pthread_mutex_unlock(&r->lock);
}

static void open_watched(struct disk *t, struct segments_ops *ops, struct readers *r)
{
	*r = (struct readers){ .lock = PTHREAD_MUTEX_INITIALIZER,
			       .opened = PTHREAD_COND_INITIALIZER,
			       .is_shut = true };
	*ops = segments_ops_real;
	ops->preadv = watched_preadv;
	ops->userdata = r;
	make(t);
	t->options.ops = ops;
	open_again(t);
}

/* All but the first, which nobody knew of, and the second, which came while it was read. */
static void reads_that_wait_are_read_ahead(void **state)
{
	struct ends e[20] = { 0 };
	struct segments_ops ops;
	struct readers readers;
	uint64_t sum[2];
	struct disk t;
	uint8_t *rooms;

	(void)state;
	open_watched(&t, &ops, &readers);
	rooms = aligned_alloc(4096, ARRAY_SIZE(e) * PAGE_BYTES);
	assert_non_null(rooms);
	for (uint32_t i = 0; i < ARRAY_SIZE(e); i++)
		write_one(&t, i);
	for (uint32_t i = 0; i < ARRAY_SIZE(e); i++) {
		const struct kvdisk_key key = key_of(i);

		assert_int_equal(kvdisk_read(t.d, &key, rooms + i * PAGE_BYTES, on_done, &e[i]), 0);
	}
	let_read(&readers);
	run_all(&t);
	for (uint32_t i = 0; i < ARRAY_SIZE(e); i++) {
		assert_int_equal(e[i].n, 1);
		assert_int_equal(e[i].r, 0);
		fill(t.payload, i, sum);
		assert_memory_equal(rooms + i * PAGE_BYTES, t.payload, PAGE_BYTES);
	}
	assert_int_equal(readers.n_own + readers.n_ahead, ARRAY_SIZE(e));
	assert_true(readers.n_ahead >= ARRAY_SIZE(e) - 2);
	free(rooms);
	end(&t);
}

struct room {
	uint8_t *at;
	int r;
};

/* Its owner has it again, and writes something else there. */
static void on_room_back(int r, const uint64_t sum[2], void *userdata)
{
	struct room *room = userdata;

	(void)sum;
	room->r = r;
	memset(room->at, 0x11, PAGE_BYTES);
}

static void no_room_is_written_to_after_its_end(void **state)
{
	struct room rooms[8] = { 0 };
	struct segments_ops ops;
	struct readers readers;
	uint32_t n_canceled = 0;
	struct disk t;

	(void)state;
	open_watched(&t, &ops, &readers);
	for (uint32_t i = 0; i < ARRAY_SIZE(rooms); i++)
		write_one(&t, i);
	readers.ahead_us = 20000;
	for (uint32_t i = 0; i < ARRAY_SIZE(rooms); i++) {
		const struct kvdisk_key key = key_of(i);

		rooms[i] = (struct room){ aligned_alloc(4096, PAGE_BYTES), 1 };
		assert_int_equal(kvdisk_read(t.d, &key, rooms[i].at, on_room_back, &rooms[i]), 0);
	}
	let_read(&readers);
	while (rooms[1].r == 1)
		assert_true(sd_event_run(t.loop, UINT64_MAX) >= 0);
	t.d = kvdisk_free(t.d);
	for (uint32_t i = 0; i < ARRAY_SIZE(rooms); i++) {
		n_canceled += rooms[i].r == -ECANCELED;
		for (uint32_t k = 0; k < PAGE_BYTES; k++)
			if (rooms[i].at[k] != 0x11)
				fail_msg("byte %u of room %u was written to", k, i);
		free(rooms[i].at);
	}
	assert_true(n_canceled > 0 && readers.n_ahead > 0);
	end(&t);
}

static int fail_datasync(void *userdata, int fd)
{
	(void)userdata, (void)fd;
	return -EIO;
}

static void a_file_that_cannot_be_flushed_when_it_is_freed_is_given_up(void **state)
{
	struct segments_ops ops = segments_ops_real;
	struct disk t;

	(void)state;
	make(&t);
	ops.datasync = fail_datasync;
	t.options.ops = &ops;
	open_again(&t);
	write_one(&t, 0);
	t.d = kvdisk_free(t.d);
	open_again(&t);
	assert_int_equal(n_pages(&t), 0);
	end(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_page_that_was_written_is_read_back),
		cmocka_unit_test(ends_come_home_in_the_order_of_the_jobs),
		cmocka_unit_test(another_key_is_another_page),
		cmocka_unit_test(a_restart_finds_what_was_written),
		cmocka_unit_test(until_all_files_were_looked_into_nothing_is_written),
		cmocka_unit_test(a_damaged_page_is_refused_once_and_forgotten),
		cmocka_unit_test(a_file_that_is_gone_or_cut_is_computed_again),
		cmocka_unit_test(without_a_directory_everything_fails_and_says_why),
		cmocka_unit_test(only_so_many_writes_may_wait),
		cmocka_unit_test(what_there_is_no_room_for_is_not_there),
		cmocka_unit_test(pages_of_a_segment_that_went_are_not_in_the_index),
		cmocka_unit_test(freed_with_jobs_waiting_each_ends_once),
		cmocka_unit_test(it_may_be_freed_at_any_moment_of_its_opening),
		cmocka_unit_test(a_part_is_found_by_all_of_its_tokens),
		cmocka_unit_test(a_part_that_is_not_what_its_sum_says_is_not_written),
		cmocka_unit_test(a_part_that_a_longer_one_has_goes_first),
		cmocka_unit_test(reads_that_wait_are_read_ahead),
		cmocka_unit_test(no_room_is_written_to_after_its_end),
		cmocka_unit_test(a_file_that_cannot_be_flushed_when_it_is_freed_is_given_up),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
