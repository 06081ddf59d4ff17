/* Shares of nodes, and memory that is first touched where it will be read. */
#include "kernels/cpu/nodes.h"

#include <linux/mempolicy.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels/cpu/layout.h"
#include "kernels/linear.h"

#define HUGE_PAGE ((size_t)2 << 20)
#define SMALL_PAGE 4096

uint32_t node_of_thread(const struct dev *dev, uint32_t thread)
{
	return topology_node_of(pool_topology(dev->pool), thread, dev->n_threads);
}

void node_share(const struct dev *dev, uint32_t node, uint32_t n, uint32_t *ret_from,
		uint32_t *ret_to)
{
	const uint32_t from = pool_first_thread(dev->pool, node);
	const uint32_t to = pool_first_thread(dev->pool, node + 1);

	*ret_from = (uint32_t)((uint64_t)n * from / dev->n_threads);
	*ret_to = (uint32_t)((uint64_t)n * to / dev->n_threads);
}

void work_left_init(struct work_left *w, const struct dev *dev, uint32_t n, uint32_t later,
		    uint32_t most)
{
	w->n_nodes = pool_topology(dev->pool)->n_nodes;
	w->turns = 2 * dev->n_threads;
	w->later = later;
	w->most = most;
	for (uint32_t node = 0; node < w->n_nodes; node++) {
		uint32_t from;

		node_share(dev, node, n, &from, &w->nodes[node].to);
		atomic_store_explicit(&w->nodes[node].next, from, memory_order_relaxed);
	}
}

static uint32_t node_of_strip(const struct dev *dev, uint32_t strip, uint32_t n_strips)
{
	const uint32_t n_nodes = pool_topology(dev->pool)->n_nodes;
	uint32_t from, to = 0, node = 0;

	for (; node < n_nodes; node++) {
		node_share(dev, node, n_strips, &from, &to);
		if (strip < to)
			break;
	}
	return node < n_nodes ? node : n_nodes - 1;
}

/* Where the calling thread's next pages come from; a wish, which a sandbox may refuse. */
static void prefer(const struct topology *t, uint32_t node)
{
	unsigned long mask[CPU_SETSIZE / (8 * sizeof(unsigned long))] = { 0 };
	const uint32_t id = t->nodes[node].id, bits = 8 * sizeof(*mask);

	mask[id / bits] = 1ul << id % bits;
	syscall(SYS_set_mempolicy, MPOL_PREFERRED, mask, 8 * sizeof(mask));
}

/*
 * A page goes to the node of the strip at its middle, or of the nearest one
 * where the middle is another matrix's.
 */
void weight_touch(const struct dev *dev, const struct weight *part, uint32_t first, uint32_t rows)
{
	const struct topology *t = pool_topology(dev->pool);
	const size_t bytes = strip_bytes(part->kind, part->cols);
	const uintptr_t from = (uintptr_t)part->data, to = from + strips_of(part->rows) * bytes;

	if ((t->n_nodes == 1 && !t->is_part) || from == to)
		return; /* the packing touches it */
	for (uintptr_t page = from & ~(HUGE_PAGE - 1); page < to; page += HUGE_PAGE) {
		const uintptr_t middle = page + HUGE_PAGE / 2;
		const uintptr_t begin = page < from ? from : page;
		const uintptr_t end = page + HUGE_PAGE < to ? page + HUGE_PAGE : to;
		const uintptr_t at = middle < from ? from : middle < to ? middle : to - 1;
		const uint32_t strip = first / STRIP_ROWS + (uint32_t)((at - from) / bytes);

		prefer(t, node_of_strip(dev, strip, strips_of(rows)));
		/* one write where the page is huge; else each small page has its own */
		for (uintptr_t small = begin; small < end; small += SMALL_PAGE)
			*(volatile char *)small = 0;
	}
	syscall(SYS_set_mempolicy, MPOL_DEFAULT, NULL, 0);
}
