/*
 * The processors of this machine as sysfs tells them: which share a core, and
 * which are near which memory.
 */
#pragma once

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

#define TOPOLOGY_NODES_MAX 16

struct topology {
	uint32_t n_cores; /* with at least one processor that may be used */
	uint32_t n_nodes; /* likewise; at least 1, and 1 on a machine with more than the maximum */
	bool is_part;	  /* there are nodes that are other ranks' */
	struct {
		uint32_t id;	  /* the kernel's number */
		uint32_t n_cores;
		cpu_set_t cpus;	  /* that may be used */
	} nodes[TOPOLOGY_NODES_MAX];
};

/* Where it is read from: "/sys/devices/system"; tests point it to a tree of their own. */
extern const char *topology_sysfs;

/* @cpus: those that may be used, at least one. Where sysfs is silent, each is a core of one node. */
void topology_read(const cpu_set_t *cpus, struct topology *ret);

/* Threads that compute by default: one per core, but with more than two one is left to the rest. */
uint32_t topology_threads(const struct topology *t);

/*
 * Leaves the nodes of rank @rank of @n_ranks: each has as many as the next, to
 * one, and where there are fewer nodes than ranks, ranks share one.
 */
void topology_take_part(struct topology *t, uint32_t rank, uint32_t n_ranks);

/* Node of thread @thread of @n_threads: runs of threads by node, in proportion to their cores. */
uint32_t topology_node_of(const struct topology *t, uint32_t thread, uint32_t n_threads);
