/* The book that a driver keeps; see card.h. */
#include "tests/unit/card.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool fails(struct card *c)
{
	c->n_calls++;
	return c->fail_at && c->n_calls >= c->fail_at && c->n_calls < c->fail_at + c->fail_n;
}

static struct card_chunk *by_handle(struct card *c, uint64_t handle)
{
	for (uint32_t i = 0; i < c->n_chunks; i++)
		if (c->chunks[i].handle == handle)
			return &c->chunks[i];
	assert(!"there is no such chunk");
	return NULL;
}

/* The chunk that is mapped where @at is. */
static struct card_chunk *by_address(struct card *c, uint64_t at)
{
	for (uint32_t i = 0; i < c->n_chunks; i++)
		if (c->chunks[i].at && c->chunks[i].at <= at &&
		    at - c->chunks[i].at < c->chunks[i].bytes)
			return &c->chunks[i];
	return NULL;
}

static bool is_reserved(const struct card *c, uint64_t at, size_t bytes)
{
	for (uint32_t i = 0; i < c->n_reserved; i++)
		if (at >= c->reserved[i].at &&
		    at + bytes <= c->reserved[i].at + c->reserved[i].bytes)
			return true;
	return false;
}

static uint64_t add_chunk(struct card *c, struct card_memory *memory)
{
	if (c->n_chunks == c->room) {
		c->room = c->room ? 2 * c->room : 64;
		c->chunks = realloc(c->chunks, c->room * sizeof(*c->chunks));
		assert(c->chunks);
	}
	c->chunks[c->n_chunks++] = (struct card_chunk){ .handle = ++c->next_handle,
							.bytes = memory->bytes,
							.memory = memory };
	return c->next_handle;
}

static void unref(struct card *c, struct card_memory *memory)
{
	if (--memory->n_refs > 0)
		return;
	c->taken_bytes -= memory->bytes;
	free(memory);
}

static int create(void *card, size_t bytes, uint64_t *ret_chunk)
{
	struct card *c = card;
	const size_t n_words = c->has_contents ? bytes / CARD_WORD_BYTES : 0;
	struct card_memory *memory;

	assert(bytes > 0 && bytes % VRAM_GRANULE == 0);
	if (fails(c))
		return c->fail_with;
	if (c->taken_bytes + bytes > c->bytes)
		return -ENOMEM;
	memory = calloc(1, sizeof(*memory) + n_words * sizeof(uint64_t));
	assert(memory);
	memory->n_refs = 1;
	memory->bytes = bytes;
	c->taken_bytes += bytes;
	c->peak_bytes = c->taken_bytes > c->peak_bytes ? c->taken_bytes : c->peak_bytes;
	*ret_chunk = add_chunk(c, memory);
	return 0;
}

static int release(void *card, uint64_t handle)
{
	struct card *c = card;
	struct card_chunk *k = by_handle(c, handle);

	assert(!k->at);
	if (fails(c))
		return c->fail_with;
	unref(c, k->memory);
	*k = c->chunks[--c->n_chunks];
	return 0;
}

static int export_fd(void *card, uint64_t handle, int *ret_fd)
{
	struct card *c = card;
	struct card_chunk *k = by_handle(c, handle);
	int fd = 0;

	if (fails(c))
		return c->fail_with;
	while (c->exports[fd])
		fd++;
	assert(fd < CARD_EXPORTS_MAX);
	k->memory->n_refs++;
	c->exports[fd] = k->memory;
	*ret_fd = fd;
	return 0;
}

static int import_fd(void *card, int fd, size_t bytes, uint64_t *ret_chunk)
{
	struct card *c = card;

	assert(fd >= 0 && fd < CARD_EXPORTS_MAX && c->exports[fd]);
	if (fails(c))
		return c->fail_with;
	if (c->exports[fd]->bytes != bytes)
		return -EINVAL;
	c->exports[fd]->n_refs++;
	*ret_chunk = add_chunk(c, c->exports[fd]);
	return 0;
}

void card_close(struct card *c, int fd)
{
	unref(c, c->exports[fd]);
	c->exports[fd] = NULL;
}

static int reserve(void *card, size_t bytes, uint64_t *ret_at)
{
	struct card *c = card;

	assert(bytes > 0 && bytes % VRAM_GRANULE == 0);
	if (fails(c))
		return c->fail_with;
	assert(c->n_reserved < VRAM_REGIONS_MAX + 1);
	*ret_at = c->next_at;
	c->reserved[c->n_reserved].at = c->next_at;
	c->reserved[c->n_reserved++].bytes = bytes;
	c->next_at += bytes + VRAM_GRANULE;
	c->reserved_bytes += bytes;
	return 0;
}

static int unreserve(void *card, uint64_t at, size_t bytes)
{
	struct card *c = card;
	uint32_t i = 0;

	for (uint32_t k = 0; k < c->n_chunks; k++)
		assert(c->chunks[k].at < at || c->chunks[k].at >= at + bytes);
	while (i < c->n_reserved && c->reserved[i].at != at)
		i++;
	assert(i < c->n_reserved && c->reserved[i].bytes == bytes);
	if (fails(c))
		return c->fail_with;
	c->reserved[i] = c->reserved[--c->n_reserved];
	c->reserved_bytes -= bytes;
	return 0;
}

static int map(void *card, uint64_t at, uint64_t handle, size_t bytes)
{
	struct card *c = card;
	struct card_chunk *k = by_handle(c, handle);

	assert(!k->at && k->bytes == bytes && is_reserved(c, at, bytes));
	assert(!by_address(c, at) && !by_address(c, at + bytes - 1));
	if (fails(c))
		return c->fail_with;
	k->at = at;
	k->access = VRAM_NO_ACCESS;
	return 0;
}

static int unmap(void *card, uint64_t at, size_t bytes)
{
	struct card *c = card;
	struct card_chunk *k = by_address(c, at);

	assert(k && k->at == at && k->bytes == bytes);
	if (fails(c))
		return c->fail_with;
	k->at = 0;
	return 0;
}

static int set_access(void *card, uint64_t at, size_t bytes, enum vram_access access)
{
	struct card *c = card;

	for (uint64_t i = at; i < at + bytes;) {
		const struct card_chunk *k = by_address(c, i);

		assert(k && k->at == i && k->at + k->bytes <= at + bytes);
		i += k->bytes;
	}
	if (fails(c))
		return c->fail_with;
	for (uint64_t i = at; i < at + bytes;) {
		struct card_chunk *k = by_address(c, i);

		k->access = access;
		i += k->bytes;
	}
	return 0;
}

uint64_t *card_word(struct card *c, uint64_t at)
{
	const struct card_chunk *k = by_address(c, at);

	assert(k && k->access != VRAM_NO_ACCESS);
	return &k->memory->words[(at - k->at) / CARD_WORD_BYTES];
}

static int copy(void *card, uint64_t to, uint64_t from, size_t bytes)
{
	struct card *c = card;
	const struct card_chunk *a = by_address(c, from), *b = by_address(c, to);

	assert(a && b && a == by_address(c, from + bytes - 1) &&
	       b == by_address(c, to + bytes - 1));
	assert(a->access != VRAM_NO_ACCESS && b->access == VRAM_READ_WRITE);
	assert(to + bytes <= from || from + bytes <= to);
	if (fails(c))
		return c->fail_with;
	for (size_t i = 0; c->has_contents && i < bytes; i += CARD_WORD_BYTES)
		*card_word(c, to + i) = *card_word(c, from + i);
	c->copied_bytes += bytes;
	return 0;
}

const struct vram_ops card_ops = {
	.create = create,
	.release = release,
	.reserve = reserve,
	.unreserve = unreserve,
	.map = map,
	.unmap = unmap,
	.access = set_access,
	.copy = copy,
	.export_fd = export_fd,
	.import_fd = import_fd,
};

void card_init(struct card *c, uint64_t bytes, bool has_contents)
{
	*c = (struct card){ .bytes = bytes,
			    .has_contents = has_contents,
			    .fail_n = 1,
			    .fail_with = -EIO,
			    .next_at = 1ull << 40 };
}

void card_deinit(struct card *c)
{
	for (uint32_t i = 0; i < c->n_chunks; i++)
		unref(c, c->chunks[i].memory);
	free(c->chunks);
	*c = (struct card){ 0 };
}
