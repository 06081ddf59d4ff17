/*
 * Device memory of one device: the regions of vram.h, found by their addresses,
 * over the driver's virtual memory calls. From any thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct memory;
struct dev_memory;
struct dev_region;

/* Finds the driver's calls. 0, -ENOMEM, -ENODEV if the driver has none of them, or -EIO. */
int memory_new(int ordinal, struct memory **ret);
struct memory *memory_free(struct memory *m); /* with all that is reserved */

/* As the dev_…() of kernels/backend.h. */
void *memory_reserve(struct memory *m, const char *name, size_t bytes, size_t chunk_bytes);
int memory_back(struct memory *m, void *at, size_t bytes);
int memory_unback(struct memory *m, void *at, size_t bytes);
int memory_seal(struct memory *m, void *at, size_t bytes);
void memory_set_serving(struct memory *m, bool serving);
uint32_t memory_look(struct memory *m, struct dev_memory *ret, struct dev_region *ret_regions, uint32_t room);
