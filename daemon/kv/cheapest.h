/*
 * A heap of what can be given up: the one of least value is first. Links are
 * embedded in what they stand for. Adding is O(1), removing O(log n) over many.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct cheapest_link {
	double value; /* set before it is added, and as it was then until it is removed */
	struct cheapest_link *child, *next, *before; /* before: who has it as child or next */
	bool is_in;
};

/* Zeroed: empty. */
struct cheapest {
	struct cheapest_link *first; /* NULL: it is empty */
};

/* @link is in no heap. */
void cheapest_add(struct cheapest *heap, struct cheapest_link *link);
/* @link is in this heap. */
void cheapest_remove(struct cheapest *heap, struct cheapest_link *link);
