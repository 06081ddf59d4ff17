/* Golden JSON beside the sources, for tests. */
#pragma once

#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

static inline void golden_path(char path[PATH_MAX], const char *name)
{
	const char *srcdir = getenv("srcdir");

	snprintf(path, PATH_MAX, "%s/tests/golden/%s", srcdir ? srcdir : ".", name);
}

/* Exits with a message if the file is not there: no test can go on without it. */
static inline json_t *golden_load(const char *name)
{
	char path[PATH_MAX];
	json_error_t error;
	json_t *json;

	golden_path(path, name);
	json = json_load_file(path, JSON_ALLOW_NUL, &error);
	if (!json) {
		fprintf(stderr, "%s: %s\n", path, error.text);
		exit(99);
	}
	return json;
}
