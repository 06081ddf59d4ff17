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
	uint32_t n_nodes;
	struct {
		_Alignas(64) _Atomic uint32_t next;
		uint32_t to;
	} nodes[TOPOLOGY_NODES_MAX];
};

/* @n	at most 2^31 */
void work_left_init(struct work_left *w, const struct dev *dev, uint32_t n);

/*
 * Takes the next unit: of @node's own share, and when that is done of the
 * others'. Each is taken once. Returns false when there are none.
 */
static inline bool work_left_take(struct work_left *w, uint32_t node, uint32_t *ret)
{
	for (uint32_t i = 0; i < w->n_nodes; i++) {
		const uint32_t at = node + i < w->n_nodes ? node + i : node + i - w->n_nodes;
		uint32_t unit;

		/* only looking, where all is taken, leaves the line with those who look too */
		if (atomic_load_explicit(&w->nodes[at].next, memory_order_relaxed) >= w->nodes[at].to)
			continue;
		unit = atomic_fetch_add_explicit(&w->nodes[at].next, 1, memory_order_relaxed);
		if (unit < w->nodes[at].to) {
			*ret = unit;
			return true;
		}
	}
	return false;
}
