/* Interval colouring of buffers of different sizes; see lifetimes.h. */
#include "kernels/cuda/lifetimes.h"

#include <stdbool.h>

static size_t rounded(size_t bytes, size_t align)
{
	return bytes > SIZE_MAX - align ? SIZE_MAX : (bytes + align - 1) / align * align;
}

static bool meet(const struct lifetime *a, const struct lifetime *b)
{
	return a->first <= b->last && b->first <= a->last;
}

/* The largest that has no place yet; of equals the one that begins first. NULL: all have one. */
static struct lifetime *next(struct lifetime *l, uint32_t n)
{
	struct lifetime *best = NULL;

	for (uint32_t i = 0; i < n; i++)
		if (l[i].at == SIZE_MAX &&
		    (!best || l[i].bytes > best->bytes ||
		     (l[i].bytes == best->bytes && l[i].first < best->first)))
			best = &l[i];
	return best;
}

/* The lowest place for @x above @at that is free of one other; @at if it is. */
static size_t above(const struct lifetime *x, const struct lifetime *other, size_t at, size_t align)
{
	const size_t end = other->at + rounded(other->bytes, align);

	if (other->at == SIZE_MAX || other->bytes == 0 || !meet(x, other) || at >= end ||
	    at + rounded(x->bytes, align) <= other->at)
		return at;
	return end;
}

size_t lifetimes_place(struct lifetime *l, uint32_t n, size_t align)
{
	struct lifetime *x;
	size_t total = 0;

	for (uint32_t i = 0; i < n; i++) {
		if (rounded(l[i].bytes, align) > SIZE_MAX / 2 / (n + 1))
			return SIZE_MAX;
		l[i].at = SIZE_MAX;
	}
	while ((x = next(l, n))) {
		size_t at = 0, before;

		do { /* each round jumps over one that is in the way, upwards only */
			before = at;
			for (uint32_t i = 0; i < n; i++)
				at = above(x, &l[i], at, align);
		} while (at != before);
		x->at = at;
		if (at + rounded(x->bytes, align) > total)
			total = at + rounded(x->bytes, align);
	}
	return total;
}

size_t lifetimes_floor(const struct lifetime *l, uint32_t n, size_t align)
{
	size_t most = 0;

	for (uint32_t i = 0; i < n; i++) {
		size_t alive = 0;

		for (uint32_t j = 0; j < n; j++)
			if (l[j].first <= l[i].first && l[i].first <= l[j].last)
				alive += rounded(l[j].bytes, align);
		most = alive > most ? alive : most;
	}
	return most;
}
