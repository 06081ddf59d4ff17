/* Cores and nodes out of trees such as sysfs has, and who belongs to which. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/cpu/topology.h"

struct tree {
	char dir[40];
	struct topology topology;
	cpu_set_t cpus;
};

static void write_file(const struct tree *t, const char *name, const char *text)
{
	char path[256];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", t->dir, name);
	for (char *slash = strchr(path + strlen(t->dir) + 1, '/'); slash;
	     slash = strchr(slash + 1, '/')) {
		*slash = '\0';
		mkdir(path, 0700);
		*slash = '/';
	}
	f = fopen(path, "w");
	assert_non_null(f);
	fputs(text, f);
	fclose(f);
}

static void tree_new(struct tree *t)
{
	snprintf(t->dir, sizeof(t->dir), "/tmp/test-topology-XXXXXX");
	assert_non_null(mkdtemp(t->dir));
	topology_sysfs = t->dir;
	CPU_ZERO(&t->cpus);
}

static void tree_free(struct tree *t)
{
	char command[80];

	snprintf(command, sizeof(command), "rm -r '%s'", t->dir);
	assert_int_equal(system(command), 0);
}

/* Two sockets of 4 cores with 2 threads each, numbered as Linux does: siblings are 8 apart. */
static void make_server(struct tree *t)
{
	char name[80], text[20];

	tree_new(t);
	for (int cpu = 0; cpu < 16; cpu++) {
		snprintf(name, sizeof(name), "cpu/cpu%d/topology/thread_siblings_list", cpu);
		snprintf(text, sizeof(text), "%d,%d\n", cpu % 8, cpu % 8 + 8);
		write_file(t, name, text);
		CPU_SET(cpu, &t->cpus);
	}
	write_file(t, "node/online", "0,2-3\n");
	write_file(t, "node/node0/cpulist", "0-3,8-11\n");
	write_file(t, "node/node2/cpulist", "4-7,12-15\n");
	write_file(t, "node/node3/cpulist", "\n"); /* memory alone */
}

static void cores_are_counted_once_and_nodes_without_processors_not_at_all(void **state)
{
	struct tree t;

	(void)state;
	make_server(&t);
	topology_read(&t.cpus, &t.topology);
	assert_int_equal(t.topology.n_cores, 8);
	assert_int_equal(t.topology.n_nodes, 2);
	assert_int_equal(t.topology.nodes[0].id, 0);
	assert_int_equal(t.topology.nodes[1].id, 2);
	assert_int_equal(t.topology.nodes[0].n_cores, 4);
	assert_int_equal(t.topology.nodes[1].n_cores, 4);
	for (int cpu = 0; cpu < 16; cpu++) {
		assert_int_equal(CPU_ISSET(cpu, &t.topology.nodes[0].cpus) != 0, cpu / 4 % 2 == 0);
		assert_int_equal(CPU_ISSET(cpu, &t.topology.nodes[1].cpus) != 0, cpu / 4 % 2 == 1);
	}
	assert_int_equal(topology_threads(&t.topology), 7);
	tree_free(&t);
}

static void only_what_may_be_used_counts(void **state)
{
	struct tree t;

	(void)state;
	make_server(&t);
	CPU_ZERO(&t.cpus);
	CPU_SET(9, &t.cpus); /* the second thread of core 1 */
	CPU_SET(4, &t.cpus);
	CPU_SET(12, &t.cpus);
	topology_read(&t.cpus, &t.topology);
	assert_int_equal(t.topology.n_cores, 2);
	assert_int_equal(t.topology.n_nodes, 2);
	assert_int_equal(t.topology.nodes[0].n_cores, 1);
	assert_int_equal(t.topology.nodes[1].n_cores, 1);
	assert_int_equal(CPU_COUNT(&t.topology.nodes[1].cpus), 2);
	assert_int_equal(topology_threads(&t.topology), 2);

	CPU_CLR(9, &t.cpus);
	topology_read(&t.cpus, &t.topology);
	assert_int_equal(t.topology.n_nodes, 1);
	assert_int_equal(t.topology.nodes[0].id, 2);
	tree_free(&t);
}

static void where_sysfs_is_silent_there_is_one_node(void **state)
{
	struct tree t;

	(void)state;
	tree_new(&t);
	for (int cpu = 0; cpu < 3; cpu++)
		CPU_SET(cpu, &t.cpus);
	topology_read(&t.cpus, &t.topology);
	assert_int_equal(t.topology.n_cores, 3);
	assert_int_equal(t.topology.n_nodes, 1);
	assert_true(CPU_EQUAL(&t.topology.nodes[0].cpus, &t.cpus));

	write_file(&t, "node/online", "nonsense");
	write_file(&t, "cpu/cpu1/topology/thread_siblings_list", "0-");
	topology_read(&t.cpus, &t.topology);
	assert_int_equal(t.topology.n_cores, 3);
	assert_int_equal(t.topology.n_nodes, 1);
	write_file(&t, "cpu/cpu1/topology/thread_siblings_list", "0-1");
	topology_read(&t.cpus, &t.topology);
	assert_int_equal(t.topology.n_cores, 2);
	tree_free(&t);
}

static void more_nodes_than_are_known_are_one(void **state)
{
	char name[40], text[20];
	struct tree t;

	(void)state;
	tree_new(&t);
	write_file(&t, "node/online", "0-16\n");
	for (int i = 0; i <= TOPOLOGY_NODES_MAX; i++) {
		snprintf(name, sizeof(name), "node/node%d/cpulist", i);
		snprintf(text, sizeof(text), "%d\n", i);
		write_file(&t, name, text);
		CPU_SET(i, &t.cpus);
	}
	topology_read(&t.cpus, &t.topology);
	assert_int_equal(t.topology.n_nodes, 1);
	assert_int_equal(CPU_COUNT(&t.topology.nodes[0].cpus), TOPOLOGY_NODES_MAX + 1);
	CPU_CLR(3, &t.cpus);
	topology_read(&t.cpus, &t.topology);
	assert_int_equal(t.topology.n_nodes, TOPOLOGY_NODES_MAX);
	tree_free(&t);
}

static void threads_are_dealt_by_cores(void **state)
{
	static const uint32_t eight[8] = { 0, 0, 0, 0, 0, 0, 1, 1 }, three[3] = { 0, 0, 1 };
	const struct topology t = {
		.n_cores = 8,
		.n_nodes = 2,
		.nodes = { { .n_cores = 6 }, { .n_cores = 2 } },
	};

	(void)state;
	for (uint32_t i = 0; i < 8; i++)
		assert_int_equal(topology_node_of(&t, i, 8), eight[i]);
	for (uint32_t i = 0; i < 3; i++)
		assert_int_equal(topology_node_of(&t, i, 3), three[i]);
	assert_int_equal(topology_node_of(&t, 0, 1), 0);
	assert_int_equal(topology_node_of(&t, 99, 100), 1);
}

static void one_core_is_left_where_there_are_more_than_two(void **state)
{
	static const uint32_t threads[] = { 1, 2, 2, 3 };

	(void)state;
	for (uint32_t n = 1; n <= 4; n++)
		assert_int_equal(topology_threads(&(struct topology){ .n_cores = n }),
				 threads[n - 1]);
}

/* Nodes with so many cores as their number, and ids of their own. */
static struct topology made_up(uint32_t n_nodes)
{
	struct topology t = { .n_nodes = n_nodes };

	for (uint32_t i = 0; i < n_nodes; i++) {
		t.nodes[i].id = 10 + i;
		t.nodes[i].n_cores = 1 + i;
		t.n_cores += 1 + i;
	}
	return t;
}

static void ranks_have_nodes_of_their_own_or_share_one(void **state)
{
	static const struct {
		uint32_t n_nodes, n_ranks, rank, first, n, cores;
	} cases[] = {
		{ 2, 2, 0, 0, 1, 1 }, { 2, 2, 1, 1, 1, 2 }, { 4, 2, 0, 0, 2, 3 },
		{ 4, 2, 1, 2, 2, 7 }, { 3, 2, 0, 0, 1, 1 }, { 3, 2, 1, 1, 2, 5 },
		{ 2, 4, 0, 0, 1, 1 }, { 2, 4, 1, 0, 1, 1 }, { 2, 4, 2, 1, 1, 2 },
		{ 2, 4, 3, 1, 1, 2 }, { 3, 8, 7, 2, 1, 3 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct topology t = made_up(cases[i].n_nodes);

		topology_take_part(&t, cases[i].rank, cases[i].n_ranks);
		assert_true(t.is_part);
		assert_int_equal(t.n_nodes, cases[i].n);
		assert_int_equal(t.n_cores, cases[i].cores);
		assert_int_equal(t.nodes[0].id, 10 + cases[i].first);
		assert_int_equal(t.nodes[t.n_nodes - 1].id, 10 + cases[i].first + cases[i].n - 1);
	}
	for (uint32_t n_ranks = 1; n_ranks <= 8; n_ranks++) {
		struct topology t = made_up(1);

		topology_take_part(&t, n_ranks - 1, n_ranks);
		assert_false(t.is_part);
		assert_int_equal(t.n_nodes, 1);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(cores_are_counted_once_and_nodes_without_processors_not_at_all),
		cmocka_unit_test(only_what_may_be_used_counts),
		cmocka_unit_test(where_sysfs_is_silent_there_is_one_node),
		cmocka_unit_test(more_nodes_than_are_known_are_one),
		cmocka_unit_test(threads_are_dealt_by_cores),
		cmocka_unit_test(one_core_is_left_where_there_are_more_than_two),
		cmocka_unit_test(ranks_have_nodes_of_their_own_or_share_one),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
