/*
 * For tests of the operations of a device that is not the host: linked with
 * kernels/cuda on a GPU, and with the same sources on tests/cuemu's emulator.
 */
#pragma once

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/backend.h"

/* The device of all tests of a program; opened by open_device(), a group's setup. */
extern struct dev *dev;
extern struct stream *st;
int open_device(void **state); /* skips the program if there is no GPU */
int close_device(void **state);

/*
 * Device memory of @bytes, ending where nothing is mapped, and up to 63 bytes
 * and one page before it filled with a pattern that device_free() looks at.
 */
void *device_new(size_t bytes);
void device_free(void *at);
void *device_copy(const void *from, size_t bytes); /* a new one with that in it */

/* Tensors: of the host, of noise in [-scale, scale); the same on the device; and back. */
float noise(uint32_t *seed);
struct tensor host_tensor(uint32_t a, uint32_t b, uint32_t c, float scale, uint32_t seed);
struct tensor device_tensor(const struct tensor *host);
void read_back(const struct tensor *host, const struct tensor *device);
/* Elements differ by at most @tolerance, absolute; names the first that does not. */
void compare(const struct tensor *got, const struct tensor *want, double tolerance);

/*
 * Calls @queue(userdata), which queues operations on @st that write @y, with
 * blocks in each order that the emulator has (on a GPU: as often), and expects
 * the bits of the first time each time; @y begins with NaN, and is then read back to @host.
 */
void in_every_order(int (*queue)(void *userdata), void *userdata, const struct tensor *host,
		    const struct tensor *y);
