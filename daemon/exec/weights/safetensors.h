/*
 * The header of one safetensors file: names, types, shapes and byte ranges,
 * checked so that every byte of the file belongs to exactly one tensor.
 */
#pragma once

#include <stdint.h>

#include "client/wire/err.h"
#include "kernels/tensor.h"

#define SAFETENSORS_HEADER_MAX 100000000u
#define SAFETENSORS_RANK_MAX 8

struct st_tensor {
	const char *name;	/* in the file's own memory */
	enum dtype type;	/* DT_NONE: a type that no model of ours uses; see type_name */
	char type_name[12];
	uint32_t rank;
	uint64_t shape[SAFETENSORS_RANK_MAX];
	uint64_t offset, bytes; /* offset from the beginning of the file */
};

struct st_file;

/*
 * Opens @path (symbolic links are followed), reads and checks the header.
 *
 * Returns 0; -EBADMSG: truncated, overlapping or uncovered ranges, a header
 * that is too long or no JSON, a duplicate name, a shape that does not match
 * its bytes, a Git LFS pointer; or errno of opening or reading.
 */
int st_file_open(const char *path, struct st_file **ret, struct err *err);
struct st_file *st_file_close(struct st_file *f);

const struct st_tensor *st_file_find(const struct st_file *f, const char *name); /* or NULL */
uint32_t st_file_count(const struct st_file *f);
const struct st_tensor *st_file_at(const struct st_file *f, uint32_t i); /* by offset */
uint64_t st_file_bytes(const struct st_file *f); /* the whole file's length */
const char *st_file_path(const struct st_file *f);
int st_file_fd(const struct st_file *f);

/* Parses a header alone: @text of @len bytes, of a file with @data_bytes after it. For the fuzzer. */
int st_header_parse(const char *text, size_t len, uint64_t data_bytes, struct st_file **ret,
		    struct err *err);

/* Reads the whole tensor into @buffer (t->bytes) with pread. -EIO also if the file got shorter. */
int st_file_read(const struct st_file *f, const struct st_tensor *t, void *buffer, struct err *err);

/* 0, or -EBADMSG if length, time of change or inode are not what they were at st_file_open(). */
int st_file_unchanged(const struct st_file *f, struct err *err);

/* "I32 [4096, 512]", for messages. Returns @buffer. */
const char *st_tensor_describe(const struct st_tensor *t, char *buffer, size_t len);

/*
 * The weight_map of a model.safetensors.index.json: which file has which tensor.
 */
struct st_index {
	char **files;	  /* distinct names, each without '/' and '..' */
	uint32_t n_files;
	char **tensors;	  /* names, in the file's order */
	uint32_t *in;	  /* index into files of each */
	uint32_t n_tensors;
};
#define ST_INDEX_FILES_MAX 512
#define ST_INDEX_TENSORS_MAX 4000000u

/* Returns 0; -EBADMSG for anything else than an object with a weight_map of plain file names. */
int st_index_parse(const char *text, size_t len, struct st_index **ret, struct err *err);
struct st_index *st_index_free(struct st_index *x);

static inline void st_index_freep(struct st_index **x)
{
	*x = st_index_free(*x);
}

static inline void st_file_closep(struct st_file **f)
{
	*f = st_file_close(*f);
}
