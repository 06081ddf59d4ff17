/*
 * What NVIDIA's management library says of a GPU, asked when somebody wants to
 * know. It is loaded by name at the first question and needs no headers of its
 * own. From any thread.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

extern const char *nvml_library; /* "libnvidia-ml.so.1" */

enum { NVML_KNOWS_MEMORY = 1, NVML_KNOWS_POWER = 2, NVML_KNOWS_LIMIT = 4, NVML_KNOWS_TEMPERATURE = 8 };

struct nvml_facts {
	uint32_t known; /* NVML_KNOWS_…: a card may lack a sensor */
	uint32_t power_mw, power_limit_mw, temperature_c;
	uint64_t total_bytes, free_bytes; /* free: for any process */
};

/*
 * @bus_id	as CUDA gives it: "0000:65:00.0"
 * @ret_why	on failure a sentence: what was called, and what it said
 *
 * 0, -ENOENT: there is no such library, or it lacks a call; or -EIO.
 */
int nvml_read(const char *bus_id, struct nvml_facts *ret, char *ret_why, size_t why_bytes);
