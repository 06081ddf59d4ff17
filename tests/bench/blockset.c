/* A sorted array: there are hundreds of free blocks, not millions. */
#include "tests/bench/blockset.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

uint32_t blockset_from(const struct blockset *s, uint64_t size, uint64_t at)
{
	uint32_t low = 0, high = s->n;

	while (low < high) {
		const uint32_t i = low + (high - low) / 2;
		const struct block_key *k = &s->keys[i];

		if (k->size < size || (k->size == size && k->at < at))
			low = i + 1;
		else
			high = i;
	}
	return low;
}

void blockset_add(struct blockset *s, uint64_t size, uint64_t at, void *block)
{
	const uint32_t i = blockset_from(s, size, at);

	if (s->n == s->room) {
		s->room = s->room ? 2 * s->room : 64;
		s->keys = realloc(s->keys, s->room * sizeof(*s->keys));
		if (!s->keys)
			abort();
	}
	memmove(&s->keys[i + 1], &s->keys[i], (s->n - i) * sizeof(*s->keys));
	s->keys[i] = (struct block_key){ size, at, block };
	s->n++;
}

void blockset_remove(struct blockset *s, uint64_t size, uint64_t at)
{
	const uint32_t i = blockset_from(s, size, at);

	assert(i < s->n && s->keys[i].size == size && s->keys[i].at == at);
	s->n--;
	memmove(&s->keys[i], &s->keys[i + 1], (s->n - i) * sizeof(*s->keys));
}
