/*
 * Work and memory by NUMA node. A matrix is cut by rows: each node has a run of
 * its strips, as long as it has threads, in memory of its own, and its threads
 * take those first. With one node all this is one run and one counter.
 */
#pragma once

#include <stdatomic.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/topology.h"

/* Nodes are numbered from 0; one that got no thread has no share. */
uint32_t node_of_thread(const struct dev *dev, uint32_t thread);
/* Node @node's share of @n strips (or other units of rows, in order) is [*ret_from, *ret_to). */
void node_share(const struct dev *dev, uint32_t node, uint32_t n, uint32_t *ret_from,
		uint32_t *ret_to);

/* Units that are still to be done, a counter per node: made by the caller of pool_run(). */
struct work_left {
	uint32_t n_nodes, turns, later, most;
	struct {
		_Alignas(64) _Atomic uint32_t next;
		uint32_t to;
	} nodes[TOPOLOGY_NODES_MAX];
};

/*
 * @n	at most 2^31
 * @later	units of the work that the threads go to after this, of about the same size
 * @most	that a thread takes at a time
 */
void work_left_init(struct work_left *w, const struct dev *dev, uint32_t n, uint32_t later,
		    uint32_t most);

/*
 * Takes a run of units, each of them once: of @node's own share, and when that is done of the
 * others'. A run is half of what falls to each thread of all that is left: long at first, for
 * memory is read best so, and then ever shorter, so that the threads end together. Returns how
 * many it is, 0 when there are none.
 */
static inline uint32_t work_left_take(struct work_left *w, uint32_t node, uint32_t *ret_first)
{
	for (uint32_t i = 0; i < w->n_nodes; i++) {
		const uint32_t at = node + i < w->n_nodes ? node + i : node + i - w->n_nodes;
		const uint32_t to = w->nodes[at].to;
		uint32_t first = atomic_load_explicit(&w->nodes[at].next, memory_order_relaxed), n;

		while (first < to) {
			n = ((to - first) * w->n_nodes + w->later) / w->turns;
			if (n > w->most)
				n = w->most;
			if (n > to - first)
				n = to - first;
			if (!n)
				n = 1;
			if (!atomic_compare_exchange_weak_explicit(&w->nodes[at].next, &first,
								   first + n, memory_order_relaxed,
								   memory_order_relaxed))
				continue;
			*ret_first = first;
			return n;
		}
	}
	return 0;
}
