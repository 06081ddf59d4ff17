/* Memory that is shared by descriptor and outlives who made it: nobody can resize it under the other's feet. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* A memfd of @bytes, mode 0600, close-on-exec, sealed against resizing. A descriptor or a negative errno. */
int sealed_memfd(const char *name, uint64_t bytes);
/* Whether @fd is sealed so. */
bool sealed_is(int fd);
