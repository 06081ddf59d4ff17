/*
 * Device memory of one device: addresses reserved for life, and physical pieces
 * mapped behind them, in multiples of 2 MiB.
 */
#pragma once

#include <stddef.h>

struct memory;

/* Finds the driver's calls. 0, -ENOMEM, -ENODEV if the driver has none of them, or -EIO. */
int memory_new(int ordinal, struct memory **ret);
struct memory *memory_free(struct memory *m); /* with all that is reserved */

void *memory_reserve(struct memory *m, size_t bytes);
int memory_back(struct memory *m, void *at, size_t bytes);
int memory_unback(struct memory *m, void *at, size_t bytes);
int memory_seal(struct memory *m, void *at, size_t bytes);
