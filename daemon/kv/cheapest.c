/* A pairing heap: children are lists, and merged in pairs when what was above them goes. */
#include "daemon/kv/cheapest.h"

#include <assert.h>

/* Both are alone: nothing is before or next to them. Returns the one that is above. */
static struct cheapest_link *merge(struct cheapest_link *a, struct cheapest_link *b)
{
	struct cheapest_link *above = !b || (a && a->value <= b->value) ? a : b;
	struct cheapest_link *below = above == a ? b : a;

	if (!below)
		return above;
	below->next = above->child;
	if (below->next)
		below->next->before = below;
	below->before = above;
	above->child = below;
	return above;
}

static struct cheapest_link *cut(struct cheapest_link *link)
{
	if (link)
		link->next = link->before = NULL;
	return link;
}

/* The first two, the next two and so on; then all of these from the last on. */
static struct cheapest_link *merge_all(struct cheapest_link *list)
{
	struct cheapest_link *pairs = NULL, *all = NULL;

	while (list) {
		struct cheapest_link *a = list, *b = a->next, *pair;

		list = b ? b->next : NULL;
		cut(a);
		pair = merge(a, cut(b));
		pair->next = pairs;
		pairs = pair;
	}
	while (pairs) {
		struct cheapest_link *pair = pairs;

		pairs = pair->next;
		all = merge(all, cut(pair));
	}
	return all;
}

void cheapest_add(struct cheapest *heap, struct cheapest_link *link)
{
	assert(!link->is_in);
	link->child = NULL;
	link->is_in = true;
	heap->first = merge(heap->first, cut(link));
}

void cheapest_remove(struct cheapest *heap, struct cheapest_link *link)
{
	struct cheapest_link *below = merge_all(link->child);

	assert(link->is_in);
	link->is_in = false;
	link->child = NULL;
	if (heap->first == link) {
		heap->first = below;
		return;
	}
	if (link->before->child == link)
		link->before->child = link->next;
	else
		link->before->next = link->next;
	if (link->next)
		link->next->before = link->before;
	cut(link);
	heap->first = merge(heap->first, below);
}
