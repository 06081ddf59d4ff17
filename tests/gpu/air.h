/* A model of GLM-4.5-Air's dimensions, with random weights made on the device, for benches. */
#pragma once

#include "daemon/exec/weights/weights.h"

#define AIR_LAYERS 46

/*
 * Makes as many of its first layers as are asked for, in @ret: all that
 * model_new() looks at. Uses @st for what it queues, and leaves the memory to
 * the device. Returns 0, -ENOMEM (free what there is by closing the device), -EIO.
 */
int air_new(struct dev *dev, struct stream *st, uint32_t layers, struct weights *ret);

/* Bytes of so many layers' weights, embedding and head included. */
size_t air_bytes(struct dev *dev, uint32_t layers);
