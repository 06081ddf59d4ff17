/*
 * A file of the disk tier: its first byte says of which blocks the sums are
 * made good, so that what is behind them is reached too; the rest is the file.
 * Whatever is in it, looking into it and reading from it ends, and what is
 * found lies within its bounds.
 */
#include <assert.h>
#include <string.h>

#include "daemon/kv/segfile.h"
#include "daemon/kv/segments.h"
#include "tests/unit/segdisk.h"

#define PAGE_BYTES 4096
#define PAGE_TOKENS 16
#define FILE_MAX (64 << 10)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct finding {
	struct segments_key key;
	struct segments_place place;
	uint32_t n;
};

static void on_found(void *userdata, const struct segments_key *key, struct segments_place place)
{
	struct finding *last = userdata;

	assert(key->uid == 1000 && key->n_tokens > 0 && key->n_tokens <= PAGE_TOKENS);
	assert(place.segment == 1 && place.slot < SEGFILE_SLOTS_MAX);
	*last = (struct finding){ *key, place, last->n + 1 };
}

static void make_good(struct segdisk_file *f, uint8_t which)
{
	if (which & 1 && f->bytes >= SEGFILE_BLOCK)
		segfile_header_seal((struct segfile_header *)f->data);
	for (uint64_t at = SEGFILE_BLOCK; which & 2 && at + SEGFILE_BLOCK <= f->bytes;
	     at += SEGFILE_BLOCK + PAGE_BYTES)
		segfile_record_seal((struct segfile_record *)(f->data + at));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static _Alignas(4096) uint8_t room[PAGE_BYTES];
	static const uint32_t tokens[PAGE_TOKENS] = { 0 };
	_cleanup_(segdisk_freep) struct segdisk *disk = segdisk_new();
	_cleanup_(segments_freep) struct segments *s = NULL;
	struct finding last = { 0 };
	const struct segments_options options = {
		.dir = "/cache",
		.fingerprint = "a certain model",
		.layout = 3,
		.page_tokens = PAGE_TOKENS,
		.page_bytes = PAGE_BYTES,
		.limits = { .total_bytes = 1 << 20 },
		.found = on_found,
		.userdata = &last,
		.ops = &disk->ops,
	};
	struct segdisk_file *f;
	int r;

	if (size < 1 || size > FILE_MAX)
		return 0;
	segdisk_add(disk, "1000", true);
	f = segdisk_add(disk, "1000/seg-0000000000000001.kv", false);
	segdisk_resize(f, size - 1);
	memcpy(f->data, data + 1, size - 1);
	make_good(f, data[0]);

	assert(segments_open(&options, &s, NULL) == 0);
	while ((r = segments_scan(s, NULL)) > 0)
		;
	assert(r == 0);
	if (last.n > 0)
		segments_read(s, last.place, &last.key, tokens, room, NULL, NULL);
	segments_flush(s, NULL);
	return 0;
}
