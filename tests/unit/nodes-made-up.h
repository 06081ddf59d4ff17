/* Two NUMA nodes in a sysfs of our own. Both have all processors, so that one is enough to test on. */
#pragma once

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "kernels/cpu/topology.h"

static char nodes_dir[40];

static inline void nodes_write(const char *name, const char *text)
{
	char path[128];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", nodes_dir, name);
	f = fopen(path, "w");
	assert_non_null(f);
	fputs(text, f);
	fclose(f);
}

/* From here on devices are opened on two nodes, until nodes_remove(). */
static inline void nodes_make(void)
{
	static const char *const dirs[] = { "node", "node/node0", "node/node1" };
	char path[80];

	snprintf(nodes_dir, sizeof(nodes_dir), "/tmp/test-nodes-XXXXXX");
	assert_non_null(mkdtemp(nodes_dir));
	for (size_t i = 0; i < sizeof(dirs) / sizeof(*dirs); i++) {
		snprintf(path, sizeof(path), "%s/%s", nodes_dir, dirs[i]);
		assert_int_equal(mkdir(path, 0700), 0);
	}
	nodes_write("node/online", "0-1");
	nodes_write("node/node0/cpulist", "0-1023");
	nodes_write("node/node1/cpulist", "0-1023");
	topology_sysfs = nodes_dir;
}

static inline void nodes_remove(void)
{
	char command[80];

	topology_sysfs = "/sys/devices/system";
	snprintf(command, sizeof(command), "rm -r '%s'", nodes_dir);
	assert_int_equal(system(command), 0);
}
