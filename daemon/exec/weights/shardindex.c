/* Reading model.safetensors.index.json: which file has which tensor. */
#include <errno.h>
#include <jansson.h>
#include <string.h>

#include "daemon/exec/weights/safetensors.h"

static void json_freep(json_t **j)
{
	json_decref(*j);
}

static int check_name(const char *file, struct err *err)
{
	if (!*file || strlen(file) > 255 || strchr(file, '/') || strstr(file, ".."))
		return err_set(err, -EBADMSG,
			       "weight_map names the file '%.100s', wanted a plain name without "
			       "'/' and '..'",
			       file);
	return 0;
}

/* Few files, and neighbours in the map usually share one: the last match is tried first. */
static int add_file(struct st_index *x, const char *file, uint32_t *at, struct err *err)
{
	int r;

	if (x->n_files && strcmp(x->files[*at], file) == 0)
		return 0;
	for (uint32_t i = 0; i < x->n_files; i++)
		if (strcmp(x->files[i], file) == 0) {
			*at = i;
			return 0;
		}
	r = check_name(file, err);
	if (r < 0)
		return r;
	if (x->n_files == ST_INDEX_FILES_MAX)
		return err_set(err, -EBADMSG, "weight_map names more than %d files",
			       ST_INDEX_FILES_MAX);
	x->files[x->n_files] = strdup(file);
	if (!x->files[x->n_files])
		return -ENOMEM;
	*at = x->n_files++;
	return 0;
}

static int read_map(struct st_index *x, json_t *map, struct err *err)
{
	const size_t n = json_object_size(map);
	const char *name;
	uint32_t at = 0;
	json_t *file;
	int r;

	if (n == 0 || n > ST_INDEX_TENSORS_MAX)
		return err_set(err, -EBADMSG, "weight_map has %zu tensors, wanted 1 to %u", n,
			       ST_INDEX_TENSORS_MAX);
	x->files = calloc(ST_INDEX_FILES_MAX, sizeof(*x->files));
	x->tensors = calloc(n, sizeof(*x->tensors));
	x->in = calloc(n, sizeof(*x->in));
	if (!x->files || !x->tensors || !x->in)
		return -ENOMEM;
	json_object_foreach(map, name, file) {
		if (!json_is_string(file))
			return err_set(err, -EBADMSG, "weight_map: '%.200s' names no file", name);
		r = add_file(x, json_string_value(file), &at, err);
		if (r < 0)
			return r;
		x->in[x->n_tensors] = at;
		x->tensors[x->n_tensors] = strdup(name);
		if (!x->tensors[x->n_tensors])
			return -ENOMEM;
		x->n_tensors++;
	}
	return 0;
}

int st_index_parse(const char *text, size_t len, struct st_index **ret, struct err *err)
{
	_cleanup_(st_index_freep) struct st_index *x = NULL;
	_cleanup_(json_freep) json_t *root = NULL;
	json_error_t e;
	json_t *map;
	int r;

	if (len >= 23 && memcmp(text, "version https://git-lfs", 23) == 0)
		return err_set(err, -EBADMSG,
			       "a Git LFS pointer, wanted the file itself (git lfs pull)");
	root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &e);
	if (!root)
		return err_set(err, -EBADMSG, "not JSON: %s in line %d", e.text, e.line);
	map = json_object_get(root, "weight_map");
	if (!json_is_object(map))
		return err_set(err, -EBADMSG, "no object 'weight_map'");
	x = calloc(1, sizeof(*x));
	if (!x)
		return -ENOMEM;
	r = read_map(x, map, err);
	if (r == 0)
		*ret = steal(x);
	return r;
}

struct st_index *st_index_free(struct st_index *x)
{
	if (!x)
		return NULL;
	for (uint32_t i = 0; i < x->n_files; i++)
		free(x->files[i]);
	for (uint32_t i = 0; i < x->n_tensors; i++)
		free(x->tensors[i]);
	free(x->files);
	free(x->tensors);
	free(x->in);
	free(x);
	return NULL;
}
