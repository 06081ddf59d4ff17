/*
 * How products are computed best, as it was measured, in a small file: of one
 * device, driver and library, for shapes and numbers of tokens. What is of
 * another one, of another version of this file or damaged counts as nothing.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define CHOICEFILE_VERSION 1 /* raised too when own kernels become another speed */
#define CHOICEFILE_JOBS_MAX 8
#define CHOICEFILE_ENTRIES_MAX 256

/* Of what the measurements are; unused bytes are 0. */
struct choicefile_of {
	char device[128];
	char driver[128];
	uint32_t library; /* its version */
	uint32_t n_sm;
};

enum choicefile_way {
	CHOICEFILE_OWN,	   /* by kernels of ours */
	CHOICEFILE_TWICE,  /* by the library: the high halves of activations, then the low ones */
	CHOICEFILE_BESIDE, /* by the library: both as tokens side by side, added up by a kernel of ours */
	CHOICEFILE_WAYS,
};
enum { CHOICEFILE_BIAS = 1, CHOICEFILE_ADD = 2 }; /* of a job */

struct choicefile_entry {
	uint32_t tokens, cols, n_jobs, zero;
	uint32_t rows[CHOICEFILE_JOBS_MAX], flags[CHOICEFILE_JOBS_MAX];
	uint32_t w_align, y_align;
	uint64_t room_bytes; /* of scratch behind the split activations */
	/* the above says of what it is, the below what was found */
	uint32_t way, pad;
	float own_us, library_us; /* of the library's quickest way; 0: it has none */
	uint64_t algorithms[CHOICEFILE_JOBS_MAX][8];
};

/* Whether two are of the same. */
bool choicefile_is_same(const struct choicefile_entry *a, const struct choicefile_entry *b);

/*
 * Reads up to CHOICEFILE_ENTRIES_MAX entries into @ret. Returns how many; -ENOENT:
 * there is no such file; -EBADMSG: it is no such file, or damaged; -ESTALE: it is
 * of something else than @of; or another negative errno.
 */
int choicefile_read(const char *path, const struct choicefile_of *of, struct choicefile_entry *ret);
/* Puts the file in the place of the one before, whole or not at all. 0 or a negative errno. */
int choicefile_write(const char *path, const struct choicefile_of *of,
		     const struct choicefile_entry *entries, uint32_t n);
