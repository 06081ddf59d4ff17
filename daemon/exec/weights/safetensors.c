/*
 * Reading and checking safetensors headers: the table of types, the checks of
 * every range, and the two orders (by offset, by name) tensors are found in.
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <string.h>
#include <sys/stat.h>

#include "daemon/exec/weights/safetensors.h"

#define LFS_MARK "version https://git-lfs"
#define MESSAGE_NAME_MAX 200 /* of a tensor's name that a sentence repeats */

struct st_file {
	char *path;
	int fd;
	struct stat opened;
	json_t *header; /* owns the names */
	struct st_tensor *tensors, **by_name;
	uint32_t n_tensors;
};

static const struct {
	const char *name;
	enum dtype type;
	uint32_t bytes;
} types[] = {
	{ "F32", DT_F32, 4 },	{ "BF16", DT_BF16, 2 }, { "F16", DT_F16, 2 },
	{ "I32", DT_I32, 4 },	{ "I64", DT_I64, 8 },	{ "U32", DT_U32, 4 },
	{ "BOOL", DT_NONE, 1 }, { "U8", DT_NONE, 1 },	{ "I8", DT_NONE, 1 },
	{ "I16", DT_NONE, 2 },	{ "U16", DT_NONE, 2 },	{ "F8_E4M3", DT_NONE, 1 },
	{ "F64", DT_NONE, 8 },	{ "U64", DT_NONE, 8 },	{ "F8_E5M2", DT_NONE, 1 },
};

static int bad(struct err *err, const char *name, const char *what)
{
	return err_set(err, -EBADMSG, "tensor '%.*s': %s", MESSAGE_NAME_MAX, name, what);
}

const char *st_tensor_describe(const struct st_tensor *t, char *buffer, size_t len)
{
	int at = snprintf(buffer, len, "%s [", t->type_name);

	for (uint32_t i = 0; i < t->rank && at > 0 && (size_t)at < len; i++)
		at += snprintf(buffer + at, len - (size_t)at, "%s%llu", i ? ", " : "",
			       (unsigned long long)t->shape[i]);
	if (at > 0 && (size_t)at < len)
		snprintf(buffer + at, len - (size_t)at, "]");
	return buffer;
}

/* Bytes of the type, 0 for one that is not known, which is then left alone. */
static uint32_t read_type(const json_t *j, struct st_tensor *t)
{
	snprintf(t->type_name, sizeof(t->type_name), "%s", json_string_value(j));
	for (size_t i = 0; i < ARRAY_SIZE(types); i++)
		if (strcmp(types[i].name, json_string_value(j)) == 0) {
			t->type = types[i].type;
			return types[i].bytes;
		}
	return 0;
}

static int read_tensor(const char *name, const json_t *j, uint64_t data_at, uint64_t data_bytes,
		       struct st_tensor *t, struct err *err)
{
	const json_t *type = json_object_get(j, "dtype"), *shape = json_object_get(j, "shape");
	const json_t *range = json_object_get(j, "data_offsets"), *begin, *end;
	uint64_t wanted;
	uint32_t element;
	char text[128];

	t->name = name;
	if (!json_is_string(type))
		return bad(err, name, "no 'dtype' string");
	if (!json_is_array(shape) || json_array_size(shape) > SAFETENSORS_RANK_MAX)
		return bad(err, name, "no 'shape' of at most 8 dimensions");
	begin = json_array_get(range, 0);
	end = json_array_get(range, 1);
	if (json_array_size(range) != 2 || !json_is_integer(begin) || !json_is_integer(end) ||
	    json_integer_value(begin) < 0 || json_integer_value(end) < json_integer_value(begin))
		return bad(err, name, "'data_offsets' is no pair of rising offsets");

	wanted = element = read_type(type, t);
	t->rank = (uint32_t)json_array_size(shape);
	for (uint32_t i = 0; i < t->rank; i++) {
		const json_t *n = json_array_get(shape, i);

		if (!json_is_integer(n) || json_integer_value(n) < 0)
			return bad(err, name, "'shape' has something that is no size");
		t->shape[i] = (uint64_t)json_integer_value(n);
		if (__builtin_mul_overflow(wanted, t->shape[i], &wanted))
			return bad(err, name, "'shape' is larger than any file");
	}
	t->bytes = (uint64_t)(json_integer_value(end) - json_integer_value(begin));
	t->offset = data_at + (uint64_t)json_integer_value(begin);
	if ((uint64_t)json_integer_value(end) > data_bytes)
		return err_set(err, -EBADMSG,
			       "tensor '%.*s' ends at byte %llu of the data, but the file has only "
			       "%llu: it is truncated",
			       MESSAGE_NAME_MAX, name, (unsigned long long)json_integer_value(end),
			       (unsigned long long)data_bytes);
	if (element && wanted != t->bytes)
		return err_set(err, -EBADMSG,
			       "tensor '%.*s': %s takes %llu bytes, but 'data_offsets' hold %llu",
			       MESSAGE_NAME_MAX, name, st_tensor_describe(t, text, sizeof(text)),
			       (unsigned long long)wanted, (unsigned long long)t->bytes);
	return 0;
}

static int by_offset(const void *a, const void *b)
{
	const struct st_tensor *x = a, *y = b;

	if (x->offset != y->offset)
		return x->offset < y->offset ? -1 : 1;
	return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

static int by_name(const void *a, const void *b)
{
	return strcmp((*(struct st_tensor *const *)a)->name, (*(struct st_tensor *const *)b)->name);
}

/* Every byte of the data belongs to exactly one tensor. */
static int check_cover(const struct st_file *f, uint64_t data_at, uint64_t data_bytes,
		       struct err *err)
{
	uint64_t at = data_at;

	for (uint32_t i = 0; i < f->n_tensors; i++) {
		const struct st_tensor *t = &f->tensors[i];

		if (t->offset < at)
			return err_set(err, -EBADMSG,
				       "tensors '%.*s' and '%.*s' overlap by %llu bytes",
				       MESSAGE_NAME_MAX, f->tensors[i - 1].name, MESSAGE_NAME_MAX,
				       t->name, (unsigned long long)(at - t->offset));
		if (t->offset > at)
			return err_set(err, -EBADMSG,
				       "%llu bytes before tensor '%.*s' belong to no tensor",
				       (unsigned long long)(t->offset - at), MESSAGE_NAME_MAX,
				       t->name);
		at += t->bytes;
	}
	if (at != data_at + data_bytes)
		return err_set(err, -EBADMSG, "the last %llu bytes belong to no tensor",
			       (unsigned long long)(data_at + data_bytes - at));
	return 0;
}

static int read_tensors(struct st_file *f, uint64_t data_at, uint64_t data_bytes, struct err *err)
{
	const size_t n = json_object_size(f->header);
	const char *name;
	json_t *j;
	int r;

	f->tensors = calloc(n + 1, sizeof(*f->tensors));
	f->by_name = calloc(n + 1, sizeof(*f->by_name));
	if (!f->tensors || !f->by_name)
		return -ENOMEM;

	json_object_foreach(f->header, name, j) {
		if (strcmp(name, "__metadata__") == 0)
			continue;
		r = read_tensor(name, j, data_at, data_bytes, &f->tensors[f->n_tensors], err);
		if (r < 0)
			return r;
		f->n_tensors++;
	}
	qsort(f->tensors, f->n_tensors, sizeof(*f->tensors), by_offset);
	for (uint32_t i = 0; i < f->n_tensors; i++)
		f->by_name[i] = &f->tensors[i];
	qsort(f->by_name, f->n_tensors, sizeof(*f->by_name), by_name);
	return check_cover(f, data_at, data_bytes, err);
}

static int parse_into(struct st_file *f, const char *text, size_t len, uint64_t data_bytes,
		      struct err *err)
{
	json_error_t e;

	if (len == 0 || text[0] != '{')
		return err_set(err, -EBADMSG, "the header does not begin with '{'");
	f->header = json_loadb(text, len, JSON_REJECT_DUPLICATES, &e);
	if (!f->header && json_error_code(&e) == json_error_duplicate_key)
		return err_set(err, -EBADMSG, "the header has a name twice: %s", e.text);
	if (!f->header)
		return err_set(err, -EBADMSG, "the header is not JSON: %s", e.text);
	return read_tensors(f, 8 + (uint64_t)len, data_bytes, err);
}

int st_header_parse(const char *text, size_t len, uint64_t data_bytes, struct st_file **ret,
		    struct err *err)
{
	_cleanup_(st_file_closep) struct st_file *f = calloc(1, sizeof(*f));
	int r;

	if (!f)
		return -ENOMEM;
	f->fd = -1;
	if (data_bytes > INT64_MAX || len > SAFETENSORS_HEADER_MAX)
		return err_set(err, -EBADMSG, "a header of %zu bytes, wanted at most %u", len,
			       SAFETENSORS_HEADER_MAX);
	r = parse_into(f, text, len, data_bytes, err);
	if (r == 0)
		*ret = steal(f);
	return r;
}

static int read_at(const struct st_file *f, uint64_t at, void *buffer, uint64_t bytes,
		   struct err *err)
{
	for (uint64_t done = 0; done < bytes;) {
		ssize_t n = pread(f->fd, (char *)buffer + done, MIN(bytes - done, 1u << 30),
				  (off_t)(at + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return err_wrap(err, -errno, "reading byte %llu",
					(unsigned long long)(at + done));
		if (n == 0)
			return err_set(err, -EIO,
				       "the file has nothing at byte %llu, wanted all up to %llu: "
				       "it got shorter",
				       (unsigned long long)(at + done),
				       (unsigned long long)(at + bytes));
		done += (uint64_t)n;
	}
	return 0;
}

static int read_header(struct st_file *f, struct err *err)
{
	const uint64_t file_bytes = (uint64_t)f->opened.st_size;
	_cleanup_(freep) char *text = NULL;
	uint64_t len = 0;
	char mark[sizeof(LFS_MARK) - 1];
	int r;

	if (!S_ISREG(f->opened.st_mode))
		return err_set(err, -EBADMSG, "not a regular file");
	if (file_bytes >= sizeof(mark)) {
		r = read_at(f, 0, mark, sizeof(mark), err);
		if (r < 0)
			return r;
		if (memcmp(mark, LFS_MARK, sizeof(mark)) == 0)
			return err_set(err, -EBADMSG,
				       "a Git LFS pointer, wanted the file itself (git lfs pull)");
	}
	if (file_bytes < 8)
		return err_set(
			err, -EBADMSG,
			"%llu bytes, wanted at least the 8 of the header's length: it is truncated",
			(unsigned long long)file_bytes);
	r = read_at(f, 0, &len, sizeof(len), err);
	if (r < 0)
		return r;
	if (len > SAFETENSORS_HEADER_MAX)
		return err_set(err, -EBADMSG, "a header of %llu bytes, wanted at most %u",
			       (unsigned long long)len, SAFETENSORS_HEADER_MAX);
	if (len > file_bytes - 8)
		return err_set(
			err, -EBADMSG,
			"a header of %llu bytes, but the file has only %llu: it is truncated",
			(unsigned long long)len, (unsigned long long)file_bytes);
	text = malloc(len + 1);
	if (!text)
		return -ENOMEM;
	r = read_at(f, 8, text, len, err);
	return r < 0 ? r : parse_into(f, text, len, file_bytes - 8 - len, err);
}

int st_file_open(const char *path, struct st_file **ret, struct err *err)
{
	_cleanup_(st_file_closep) struct st_file *f = calloc(1, sizeof(*f));
	int r;

	if (!f)
		return -ENOMEM;
	f->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (f->fd < 0 || fstat(f->fd, &f->opened) < 0)
		return err_wrap(err, -errno, "cannot open '%s'", path);
	f->path = strdup(path);
	if (!f->path)
		return -ENOMEM;
	r = read_header(f, err);
	if (r < 0)
		return err_wrap(err, r, "'%s'", path);
	*ret = steal(f);
	return 0;
}

struct st_file *st_file_close(struct st_file *f)
{
	if (!f)
		return NULL;
	if (f->fd >= 0)
		close(f->fd);
	json_decref(f->header);
	free(f->tensors);
	free(f->by_name);
	free(f->path);
	free(f);
	return NULL;
}

const struct st_tensor *st_file_find(const struct st_file *f, const char *name)
{
	const struct st_tensor wanted = { .name = name }, *key = &wanted;
	struct st_tensor **found;

	found = f->n_tensors ? bsearch(&key, f->by_name, f->n_tensors, sizeof(*f->by_name), by_name)
			     : NULL;
	return found ? *found : NULL;
}

uint32_t st_file_count(const struct st_file *f)
{
	return f->n_tensors;
}

const struct st_tensor *st_file_at(const struct st_file *f, uint32_t i)
{
	return &f->tensors[i];
}

uint64_t st_file_bytes(const struct st_file *f)
{
	return (uint64_t)f->opened.st_size;
}

const char *st_file_path(const struct st_file *f)
{
	return f->path;
}

int st_file_fd(const struct st_file *f)
{
	return f->fd;
}

int st_file_read(const struct st_file *f, const struct st_tensor *t, void *buffer, struct err *err)
{
	const int r = read_at(f, t->offset, buffer, t->bytes, err);

	return r < 0 ? err_wrap(err, r, "'%s': tensor '%.*s'", f->path, MESSAGE_NAME_MAX, t->name)
		     : 0;
}

int st_file_unchanged(const struct st_file *f, struct err *err)
{
	struct stat now;

	if (fstat(f->fd, &now) < 0)
		return err_wrap(err, -errno, "'%s'", f->path);
	if (now.st_size != f->opened.st_size)
		return err_set(err, -EBADMSG,
			       "'%s' had %lld bytes when it was opened and has %lld now", f->path,
			       (long long)f->opened.st_size, (long long)now.st_size);
	if (now.st_ino != f->opened.st_ino || now.st_mtim.tv_sec != f->opened.st_mtim.tv_sec ||
	    now.st_mtim.tv_nsec != f->opened.st_mtim.tv_nsec)
		return err_set(err, -EBADMSG, "'%s' was written to since it was opened", f->path);
	return 0;
}
