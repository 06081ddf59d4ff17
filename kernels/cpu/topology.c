/* Reading the lists of sysfs, such as 0-3,8-11. */
#include "kernels/cpu/topology.h"

#include <stdio.h>

const char *topology_sysfs = "/sys/devices/system";

/* Returns whether there is such a list. What is in it beyond CPU_SETSIZE is left out. */
static bool read_list(const char *path, cpu_set_t *ret)
{
	FILE *f = fopen(path, "re");
	int from, to, n;
	char separator;

	CPU_ZERO(ret);
	if (!f)
		return false;
	do {
		separator = '\n';
		n = fscanf(f, "%d%c", &from, &separator);
		to = from;
		if (n == 2 && separator == '-' && fscanf(f, "%d%c", &to, &separator) < 1)
			break;
		for (int i = from; n > 0 && i >= 0 && i <= to && i < CPU_SETSIZE; i++)
			CPU_SET(i, ret);
	} while (n > 0 && separator == ',');
	fclose(f);
	return true;
}

static int first_of(const cpu_set_t *set)
{
	for (int i = 0; i < CPU_SETSIZE; i++)
		if (CPU_ISSET(i, set))
			return i;
	return -1;
}

/* Cores are counted at the first of their processors in @cpus. */
static uint32_t count_cores(const cpu_set_t *cpus)
{
	uint32_t n = 0;

	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		char path[256];
		cpu_set_t siblings;

		if (!CPU_ISSET(cpu, cpus))
			continue;
		snprintf(path, sizeof(path), "%s/cpu/cpu%d/topology/thread_siblings_list",
			 topology_sysfs, cpu);
		read_list(path, &siblings);
		CPU_SET(cpu, &siblings);
		CPU_AND(&siblings, &siblings, cpus);
		n += first_of(&siblings) == cpu;
	}
	return n;
}

/* A node without processors of ours has nobody to be near to. */
static void read_nodes(const cpu_set_t *cpus, struct topology *t)
{
	cpu_set_t ids, of_node;
	char path[256];

	snprintf(path, sizeof(path), "%s/node/online", topology_sysfs);
	read_list(path, &ids);
	for (int id = 0; id < CPU_SETSIZE; id++) {
		if (!CPU_ISSET(id, &ids))
			continue;
		snprintf(path, sizeof(path), "%s/node/node%d/cpulist", topology_sysfs, id);
		read_list(path, &of_node);
		CPU_AND(&of_node, &of_node, cpus);
		if (CPU_COUNT(&of_node) == 0)
			continue;
		if (t->n_nodes < TOPOLOGY_NODES_MAX) {
			t->nodes[t->n_nodes].id = (uint32_t)id;
			t->nodes[t->n_nodes].n_cores = count_cores(&of_node);
			t->nodes[t->n_nodes].cpus = of_node;
		}
		t->n_nodes++;
	}
}

void topology_read(const cpu_set_t *cpus, struct topology *ret)
{
	*ret = (struct topology){ .n_cores = count_cores(cpus) };
	read_nodes(cpus, ret);
	if (ret->n_nodes > 0 && ret->n_nodes <= TOPOLOGY_NODES_MAX)
		return;
	ret->n_nodes = 1;
	ret->nodes[0].id = 0;
	ret->nodes[0].n_cores = ret->n_cores;
	ret->nodes[0].cpus = *cpus;
}

uint32_t topology_threads(const struct topology *t)
{
	return t->n_cores > 2 ? t->n_cores - 1 : t->n_cores;
}

void topology_take_part(struct topology *t, uint32_t rank, uint32_t n_ranks)
{
	const uint32_t from = t->n_nodes * rank / n_ranks, end = t->n_nodes * (rank + 1) / n_ranks;
	const uint32_t n = end > from ? end - from : 1;

	if (n == t->n_nodes)
		return;
	t->is_part = true;
	t->n_cores = 0;
	t->n_nodes = n;
	for (uint32_t i = 0; i < n; i++) {
		t->nodes[i] = t->nodes[from + i];
		t->n_cores += t->nodes[i].n_cores;
	}
}

uint32_t topology_node_of(const struct topology *t, uint32_t thread, uint32_t n_threads)
{
	uint64_t cores = 0, upto = 0;
	uint32_t node = 0;

	for (uint32_t i = 0; i < t->n_nodes; i++)
		cores += t->nodes[i].n_cores;
	/* the thread's middle, so that few threads are spread over all nodes */
	while (node + 1 < t->n_nodes && (2 * (uint64_t)thread + 1) * cores >=
						2 * (upto += t->nodes[node].n_cores) * n_threads)
		node++;
	return node;
}
