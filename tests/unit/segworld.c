/* Pages by number, put in and taken out of a store. */
#include "tests/unit/segworld.h"

#include <errno.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <xxhash.h>

static uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15ull;
	return x ^ (x >> 29);
}

struct segments_key world_key(uint32_t i)
{
	return (struct segments_key){
		.hash = { i + 1, mix(i + 1) },
		.parent = { i, mix(i) },
		.root = { 77, 1000 + i % 2 },
		.uid = 1000 + i % 2,
		.n_tokens = 1 + i % WORLD_PAGE_TOKENS,
	};
}

void world_tokens(uint32_t i, uint32_t *ret)
{
	for (uint32_t t = 0; t < WORLD_PAGE_TOKENS; t++)
		ret[t] = 1000 * i + t;
}

void world_payload(const struct world *w, uint32_t i, uint8_t *ret)
{
	for (uint64_t at = 0; at < w->opts.page_bytes; at++)
		ret[at] = (uint8_t)mix(at * 1000 + i);
}

static void on_found(void *userdata, const struct segments_key *key, struct segments_place place)
{
	struct world *w = userdata;
	const uint32_t i = (uint32_t)key->hash[0] - 1;
	const struct segments_key own = world_key(i);

	if (i >= WORLD_PAGES_MAX || memcmp(&own, key, sizeof(own)) != 0) {
		w->n_strangers++;
		return;
	}
	w->pages[i].held = true;
	w->pages[i].place = place;
	w->pages[i].n_found++;
}

static void on_gone(void *userdata, const struct segments_key *key, struct segments_place place,
		    enum segments_why why)
{
	struct world *w = userdata;
	const uint32_t i = (uint32_t)key->hash[0] - 1;

	assert_true(i < WORLD_PAGES_MAX);
	/* a process that is dead learns nothing of its files */
	if (w->disk && w->disk->dead)
		return;
	w->pages[i].n_gone++;
	w->pages[i].why = why;
	if (w->pages[i].place.segment != place.segment || w->pages[i].place.slot != place.slot)
		return; /* another copy of it is held */
	if (w->on_gone)
		w->on_gone(w, i);
	w->pages[i].held = false;
}

void world_segment(struct world *w, uint32_t n_slots)
{
	struct segfile_layout l = segfile_layout(w->opts.page_bytes, WORLD_PAGE_TOKENS, 0);

	l.n_slots = n_slots;
	w->opts.segment_bytes = segfile_bytes(&l);
}

void world_init(struct world *w, struct segdisk *disk, uint64_t page_bytes)
{
	*w = (struct world){
		.disk = disk,
		.dir = "/tmp/test-segments-XXXXXX",
		.opts = { .fingerprint = "a certain model",
			  .layout = 3,
			  .page_tokens = WORLD_PAGE_TOKENS,
			  .page_bytes = page_bytes,
			  .limits = { .total_bytes = 1 << 30 },
			  .found = on_found,
			  .gone = on_gone },
	};
	if (!disk)
		assert_non_null(mkdtemp(w->dir));
	w->opts.dir = w->dir;
	w->opts.userdata = w;
	w->opts.ops = disk ? &disk->ops : NULL;
	w->payload = aligned_alloc(4096, (page_bytes + 4095) / 4096 * 4096);
	w->room = aligned_alloc(4096, (page_bytes + 4095) / 4096 * 4096);
	assert_non_null(w->payload);
	assert_non_null(w->room);
	world_segment(w, 3);
}

static int delete (const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
	(void)st, (void)kind, (void)ftw;
	return remove(path);
}

void world_deinit(struct world *w)
{
	world_close(w);
	free(w->payload);
	free(w->room);
	if (!w->disk)
		assert_int_equal(nftw(w->dir, delete, 8, FTW_DEPTH | FTW_PHYS), 0);
}

int world_open(struct world *w)
{
	int r;

	memset(w->pages, 0, sizeof(w->pages));
	w->n_strangers = 0;
	w->err = (struct err){ 0 };
	r = segments_open(&w->opts, &w->s, &w->err);
	while (r == 0 && (r = segments_scan(w->s, &w->err)) > 0)
		r = 0;
	return r;
}

void world_close(struct world *w)
{
	w->s = segments_free(w->s);
	if (w->disk)
		assert_int_equal(segdisk_open_fds(w->disk), 0);
}

int world_reopen(struct world *w)
{
	world_close(w);
	return world_open(w);
}

int world_append(struct world *w, uint32_t i)
{
	const struct segments_key key = world_key(i);
	uint32_t tokens[WORLD_PAGE_TOKENS];
	struct segments_place place;
	XXH128_hash_t hash;
	uint64_t sum[2];
	int r;

	world_tokens(i, tokens);
	world_payload(w, i, w->payload);
	hash = XXH3_128bits(w->payload, w->opts.page_bytes);
	sum[0] = hash.low64;
	sum[1] = hash.high64;
	w->err = (struct err){ 0 };
	r = segments_append(w->s, &key, tokens, w->payload, sum, &place, &w->err);
	assert_true(r <= 0);
	if (r == 0) {
		w->pages[i].held = true;
		w->pages[i].place = place;
	}
	return r;
}

int world_read(struct world *w, uint32_t i)
{
	const struct segments_key key = world_key(i);
	uint32_t tokens[WORLD_PAGE_TOKENS];
	uint64_t sum[2];
	int r;

	world_tokens(i, tokens);
	w->err = (struct err){ 0 };
	r = segments_read(w->s, w->pages[i].place, &key, tokens, w->room, sum, &w->err);
	assert_true(r == 0 || (r < 0 && w->err.text[0]));
	if (r == 0) {
		world_payload(w, i, w->payload);
		assert_memory_equal(w->room, w->payload, w->opts.page_bytes);
		assert_true(sum[0] == XXH3_128bits(w->room, w->opts.page_bytes).low64);
	}
	return r;
}

void world_forget(struct world *w, uint32_t i)
{
	segments_forget(w->s, w->pages[i].place);
	w->pages[i].held = false;
}

uint32_t world_held(const struct world *w)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < WORLD_PAGES_MAX; i++)
		n += w->pages[i].held;
	return n;
}

uint32_t world_read_all(struct world *w)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < WORLD_PAGES_MAX; i++) {
		w->pages[i].read = w->pages[i].held && world_read(w, i) == 0;
		n += w->pages[i].read;
	}
	return n;
}

struct segments_stats world_stats(const struct world *w)
{
	struct segments_stats stats;

	segments_stats(w->s, &stats);
	return stats;
}
