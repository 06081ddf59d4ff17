/*
 * What decoding cannot be faster than: the rate at which the device's own
 * threads read the weights where they lie. The executor measures it once, when
 * they are loaded, as only it has both; it takes some tens of milliseconds,
 * whatever the size of the model, so that nobody has to ask for it.
 */
#pragma once

#include "kernels/backend.h"

/*
 * Bytes a second that all threads of @dev together read of @memory, which is
 * not in their caches if @bytes are many: of a few passes over different parts
 * the fastest. 0 if there is nothing to read. Where memory has several nodes,
 * threads read far parts of it as well as near ones.
 */
uint64_t readrate_measure(struct dev *dev, const void *memory, size_t bytes);
