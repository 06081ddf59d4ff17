/* How fast the files of a checkpoint can be read, past the page cache. */
#pragma once

#include "daemon/exec/weights/checkpoint.h"

/*
 * Reads all of them with O_DIRECT, several blocks at a time. Returns 0 and
 * bytes per second; -EINVAL or -ENOTSUP if the file system has no such reads;
 * -ENOMEM; or errno of reading.
 */
int disk_read(const struct checkpoint *c, double *ret_rate, struct err *err);

/* Takes the files out of the page cache, once they are on the disk. Returns 0 or a negative errno. */
int disk_forget(const struct checkpoint *c, struct err *err);
