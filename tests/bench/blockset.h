/* Free blocks in order: by size, then address, as most allocators look for them. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct blockset {
	struct block_key {
		uint64_t size, at;
		void *block;
	} *keys;
	uint32_t n, room;
};

void blockset_add(struct blockset *s, uint64_t size, uint64_t at, void *block);
void blockset_remove(struct blockset *s, uint64_t size, uint64_t at);
/* Index of the first that is not before (@size, @at); s->n: there is none. */
uint32_t blockset_from(const struct blockset *s, uint64_t size, uint64_t at);
