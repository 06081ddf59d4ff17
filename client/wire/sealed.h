/* Memory that is shared by descriptor and outlives who made it: nobody can resize it under the other's feet. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

/* A memfd of @bytes, mode 0600, close-on-exec, sealed against resizing. A descriptor or a negative errno. */
int sealed_memfd(const char *name, uint64_t bytes);
/* Whether @fd is sealed so. */
bool sealed_is(int fd);
/*
 * Its first bytes, and what it is: how many there are, up to @bytes; 0 too where @fd
 * is no file, which may be anybody's; or a negative errno, and then it may be tried again.
 */
ssize_t sealed_head(int fd, void *head, size_t bytes, struct stat *ret);
