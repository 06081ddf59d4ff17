/*
 * Checkpoints with one thing wrong: a copy of a golden one in a directory of
 * its own, with calls that edit its JSON and the tensors of its files.
 */
#pragma once

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>

#include "client/wire/err.h"

struct edited {
	char dir[48];
};

static inline const char *edited_path(const struct edited *e, const char *name)
{
	static char path[512];

	snprintf(path, sizeof(path), "%s/%s", e->dir, name);
	return path;
}

static inline char *edited_read(const char *path, size_t *ret_len)
{
	FILE *f = fopen(path, "r");
	struct stat st;
	char *data;

	assert_non_null(f);
	assert_int_equal(fstat(fileno(f), &st), 0);
	data = malloc((size_t)st.st_size + 1);
	assert_non_null(data);
	assert_int_equal(fread(data, 1, (size_t)st.st_size, f), st.st_size);
	fclose(f);
	*ret_len = (size_t)st.st_size;
	return data;
}

/* In one piece and under another inode, so that who has the old one open keeps it. */
static inline void edited_write(const struct edited *e, const char *name, const void *data,
				size_t len)
{
	const char *path = edited_path(e, name);
	FILE *f;

	unlink(path);
	f = fopen(path, "w");
	assert_non_null(f);
	assert_int_equal(fwrite(data, 1, len, f), len);
	assert_int_equal(fclose(f), 0);
}

static inline void edited_make(struct edited *e)
{
	*e = (struct edited){ "/tmp/test-checkpoint-XXXXXX" };
	assert_non_null(mkdtemp(e->dir));
}

/* Copies the golden checkpoint @golden. */
static inline void edited_open(struct edited *e, const char *golden)
{
	const char *srcdir = getenv("srcdir");
	struct dirent *entry;
	char from[512], *path;
	size_t len;
	DIR *dir;

	edited_make(e);
	snprintf(from, sizeof(from), "%s/tests/golden/%s", srcdir ? srcdir : ".", golden);
	dir = opendir(from);
	assert_non_null(dir);
	while ((entry = readdir(dir))) {
		if (!strstr(entry->d_name, "safetensors") && !strstr(entry->d_name, "config.json"))
			continue;
		assert_true(asprintf(&path, "%s/%s", from, entry->d_name) > 0);
		_cleanup_(freep) char *data = edited_read(path, &len);
		edited_write(e, entry->d_name, data, len);
		free(path);
	}
	closedir(dir);
}

static inline void edited_remove(const char *dir)
{
	struct dirent *entry;
	DIR *d = opendir(dir);
	char *path;

	assert_non_null(d);
	while ((entry = readdir(d))) {
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		assert_true(asprintf(&path, "%s/%s", dir, entry->d_name) > 0);
		if (unlink(path) < 0)
			edited_remove(path);
		free(path);
	}
	closedir(d);
	assert_int_equal(rmdir(dir), 0);
}

static inline void edited_close(struct edited *e)
{
	edited_remove(e->dir);
}

/* Sets @key, "a/b/c" from the root, of the JSON file @name to @value in JSON; NULL removes it. */
static inline void edited_json(const struct edited *e, const char *name, const char *key,
			       const char *value)
{
	json_t *root = json_load_file(edited_path(e, name), 0, NULL), *at = root;
	_cleanup_(freep) char *text = NULL;
	const char *slash;
	char step[100];

	assert_non_null(root);
	while ((slash = strchr(key, '/'))) {
		snprintf(step, sizeof(step), "%.*s", (int)(slash - key), key);
		at = json_object_get(at, step);
		assert_non_null(at);
		key = slash + 1;
	}
	if (value) {
		json_t *j = json_loads(value, JSON_DECODE_ANY, NULL);

		assert_non_null(j);
		assert_int_equal(json_object_set_new(at, key, j), 0);
	} else {
		assert_int_equal(json_object_del(at, key), 0);
	}
	text = json_dumps(root, 0);
	edited_write(e, name, text, strlen(text));
	json_decref(root);
}

/* A safetensors file in memory; ranges need not be in order until it is written. */
struct edited_shard {
	char *file, *data;
	size_t bytes; /* of data */
	json_t *header;
};

static inline struct edited_shard edited_shard_read(const struct edited *e, const char *name)
{
	struct edited_shard s = { 0 };
	uint64_t header;
	size_t len;

	s.file = edited_read(edited_path(e, name), &len);
	memcpy(&header, s.file, 8);
	s.header = json_loadb(s.file + 8, header, 0, NULL);
	assert_non_null(s.header);
	s.data = s.file + 8 + header;
	s.bytes = len - 8 - header;
	json_object_del(s.header, "__metadata__");
	return s;
}

/* Writes the tensors one behind the other and lets go of @s. */
static inline void edited_shard_write(const struct edited *e, const char *name,
				      struct edited_shard *s)
{
	_cleanup_(freep) char *out = NULL, *text = NULL;
	uint64_t at = 0, header;
	const char *tensor;
	json_t *t;

	out = malloc(s->bytes + (1 << 20));
	assert_non_null(out);
	json_object_foreach(s->header, tensor, t)
	{
		json_t *range = json_object_get(t, "data_offsets");
		const uint64_t from = (uint64_t)json_integer_value(json_array_get(range, 0));
		const uint64_t n = (uint64_t)json_integer_value(json_array_get(range, 1)) - from;

		memcpy(out + at, s->data + from, n);
		json_object_set_new(t, "data_offsets",
				    json_pack("[I, I]", (json_int_t)at, (json_int_t)(at + n)));
		at += n;
	}
	text = json_dumps(s->header, JSON_COMPACT);
	header = strlen(text);

	_cleanup_(freep) char *file = malloc(8 + header + at);
	assert_non_null(file);
	memcpy(file, &header, 8);
	memcpy(file + 8, text, header);
	memcpy(file + 8 + header, out, at);
	edited_write(e, name, file, 8 + header + at);
	json_decref(s->header);
	free(s->file);
}

static inline void edited_drop(const struct edited *e, const char *name, const char *tensor)
{
	struct edited_shard s = edited_shard_read(e, name);

	assert_int_equal(json_object_del(s.header, tensor), 0);
	edited_shard_write(e, name, &s);
}

/* The same bytes under another name. */
static inline void edited_rename(const struct edited *e, const char *name, const char *from,
				 const char *to)
{
	struct edited_shard s = edited_shard_read(e, name);

	assert_int_equal(json_object_set(s.header, to, json_object_get(s.header, from)), 0);
	assert_int_equal(json_object_del(s.header, from), 0);
	edited_shard_write(e, name, &s);
}

/* Adds or replaces a tensor; @shape in JSON; its @bytes are zero unless @data. */
static inline void edited_put(const struct edited *e, const char *name, const char *tensor,
			      const char *type, const char *shape, const void *data, size_t bytes)
{
	struct edited_shard s = edited_shard_read(e, name);
	_cleanup_(freep) char *longer = calloc(1, s.bytes + bytes);
	json_t *dims = json_loads(shape, 0, NULL);

	assert_non_null(longer);
	assert_non_null(dims);
	memcpy(longer, s.data, s.bytes);
	if (data)
		memcpy(longer + s.bytes, data, bytes);
	json_object_set_new(s.header, tensor,
			    json_pack("{s:s, s:o, s:[I, I]}", "dtype", type, "shape", dims,
				      "data_offsets", (json_int_t)s.bytes,
				      (json_int_t)(s.bytes + bytes)));
	s.data = longer;
	s.bytes += bytes;
	edited_shard_write(e, name, &s);
}

/* Overwrites @bytes of a tensor at its byte @at. */
static inline void edited_poke(const struct edited *e, const char *name, const char *tensor,
			       size_t at, const void *data, size_t bytes)
{
	struct edited_shard s = edited_shard_read(e, name);
	const json_t *range = json_object_get(json_object_get(s.header, tensor), "data_offsets");

	assert_non_null(range);
	memcpy(s.data + json_integer_value(json_array_get(range, 0)) + at, data, bytes);
	edited_shard_write(e, name, &s);
}

/* @text with each '@' replaced by the directory. */
static inline const char *edited_sentence(const struct edited *e, const char *text)
{
	static char out[1024];
	size_t n = 0;

	for (; *text && n < sizeof(out) - 1; text++)
		n += *text == '@' ? (size_t)snprintf(out + n, sizeof(out) - n, "%s", e->dir)
				  : (size_t)snprintf(out + n, sizeof(out) - n, "%c", *text);
	return out;
}
