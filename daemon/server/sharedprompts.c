/* Who may write to a file that everybody's prompts are compared with is asked of the open file. */
#include "daemon/server/sharedprompts.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "client/wire/ownership.h"
#include "daemon/text/pyjson.h"

static void closedirp(DIR **d)
{
	if (*d)
		closedir(*d);
}

static void decrefp(json_t **o)
{
	json_decref(*o);
}

static int refuse(struct sharedprompts *s, const char *text)
{
	char **more = reallocarray(s->refused, s->n_refused + 1, sizeof(*more));

	if (!more)
		return -ENOMEM;
	s->refused = more;
	more[s->n_refused] = strdup(text);
	return more[s->n_refused] ? (s->n_refused++, 0) : -ENOMEM;
}

/* Nobody but root and this process's user can have written it. */
static int check_owner(const struct stat *st, struct err *err)
{
	if (st->st_uid != 0 && st->st_uid != geteuid())
		return err_set(err, -EPERM, "is of uid %u; uid 0 or %u is wanted", st->st_uid,
			       geteuid());
	if (st->st_mode & (S_IWGRP | S_IWOTH))
		return err_set(err, -EPERM,
			       "has mode %04o; one in which neither group nor others may write is "
			       "wanted",
			       st->st_mode & 07777);
	return 0;
}

static int read_all(int fd, struct bytes *text, struct err *err)
{
	for (;;) {
		char *room = bytes_room(text, 65536);
		const ssize_t n = room ? read(fd, room, 65536) : 0;

		if (!room)
			return -ENOMEM;
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return err_set(err, -errno, "cannot be read: %s", strerror(errno));
		text->n += (size_t)n;
		if (text->n > SHAREDPROMPTS_BYTES_MAX)
			return err_set(err, -E2BIG, "has more than %u bytes",
				       SHAREDPROMPTS_BYTES_MAX);
		if (n == 0)
			return 0;
	}
}

static int read_file(int dir_fd, const char *name, struct bytes *text, struct err *err)
{
	/* a FIFO must not be waited for, and nothing is read but where it is */
	_cleanup_(closep) int fd = openat(dir_fd, name,
					  O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	struct stat st;
	int r;

	if (fd < 0 && errno == ELOOP)
		return err_set(err, -ELOOP, "is a symbolic link; a file is wanted");
	if (fd < 0 || fstat(fd, &st) < 0)
		return err_set(err, -errno, "cannot be opened: %s", strerror(errno));
	if (!S_ISREG(st.st_mode))
		return err_set(err, -EINVAL, "is no regular file");
	r = check_owner(&st, err);
	return r < 0 ? r : read_all(fd, text, err);
}

static bool has_end(const char *name, const char *end)
{
	const size_t len = strlen(name), end_len = strlen(end);

	return len > end_len && strcmp(name + len - end_len, end) == 0;
}

/* The conversation that a file is the beginning of. */
static int conversation_of(const char *name, struct span text, json_t **ret, struct err *err)
{
	if (has_end(name, ".json"))
		return pyjson_load(text, ret, err);
	text.len -= text.len > 0 && text.data[text.len - 1] == '\n';
	*ret = json_pack("{s:[{s:s, s:s%}]}", "messages", "role", "system", "content", text.data,
			 text.len);
	return *ret ? 0 : err_set(err, -EBADMSG, "is not UTF-8");
}

static int encode(const char *name, struct span text, const struct tokenizer *tokenizer,
		  enum chat_layout layout, struct ids *ids, struct err *err)
{
	_cleanup_(chat_rendering_deinit) struct chat_rendering rendering = { 0 };
	_cleanup_(decrefp) json_t *conversation = NULL;
	int r;

	if (layout == CHAT_NONE)
		return err_set(err, -ENOTSUP, "the model has no chat template that steamd knows");
	r = conversation_of(name, text, &conversation, err);
	if (r >= 0)
		r = chat_render(layout, conversation, &rendering, err);
	return r < 0 ? r : chat_encode(&rendering, tokenizer, ids);
}

static int add(struct sharedprompts *s, const char *name, struct ids *ids)
{
	struct kvcache_shared *more = reallocarray(s->at, s->n + 1, sizeof(*more));
	char *copy = strdup(name);

	if (more)
		s->at = more;
	if (!more || !copy) {
		free(copy);
		return -ENOMEM;
	}
	more[s->n++] = (struct kvcache_shared){ copy, steal(ids->at), (uint32_t)ids->n };
	return 0;
}

static int take(struct sharedprompts *s, int dir_fd, const char *name,
		const struct tokenizer *tokenizer, enum chat_layout layout, struct err *err)
{
	_cleanup_(bytes_deinit) struct bytes text = { 0 };
	_cleanup_(ids_deinit) struct ids ids = { 0 };
	int r;

	if (!has_end(name, ".txt") && !has_end(name, ".json"))
		return err_set(err, -EINVAL, "ends in neither .txt nor .json");
	if (s->n >= SHAREDPROMPTS_MAX)
		return err_set(err, -E2BIG, "is one too many: %u are taken", SHAREDPROMPTS_MAX);
	r = read_file(dir_fd, name, &text, err);
	if (r >= 0)
		r = encode(name, bytes_span(&text), tokenizer, layout, &ids, err);
	return r < 0 ? r : add(s, name, &ids);
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

struct names {
	char **at;
	size_t n;
};

static void names_deinit(struct names *names)
{
	for (size_t i = 0; i < names->n; i++)
		free(names->at[i]);
	free(names->at);
}

static int list(DIR *d, struct names *names)
{
	struct dirent *entry;

	while ((entry = readdir(d))) {
		char **more;

		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		more = reallocarray(names->at, names->n + 1, sizeof(*more));
		if (!more)
			return -ENOMEM;
		names->at = more;
		more[names->n] = strdup(entry->d_name);
		if (!more[names->n])
			return -ENOMEM;
		names->n++;
	}
	if (names->n > 0)
		qsort(names->at, names->n, sizeof(*names->at), compare_names);
	return 0;
}

static int open_dir(const char *dir, DIR **ret, struct err *err)
{
	_cleanup_(closedirp) DIR *d = opendir(dir);
	struct stat st;
	int r;

	if (!d || fstat(dirfd(d), &st) < 0)
		return err_set(err, -errno, "cannot be opened: %s", strerror(errno));
	r = check_owner(&st, err);
	if (r >= 0)
		*ret = steal(d);
	return r;
}

static int read_dir(struct sharedprompts *s, DIR *d, const struct tokenizer *tokenizer,
		    enum chat_layout layout)
{
	_cleanup_(names_deinit) struct names names = { 0 };
	int r;

	r = list(d, &names);
	for (size_t i = 0; i < names.n && r >= 0; i++) {
		struct err err = { 0 };

		r = take(s, dirfd(d), names.at[i], tokenizer, layout, &err);
		if (r == -ENOMEM && !err.text[0])
			return r;
		if (r < 0) {
			err_wrap(&err, r, "SharedPrompts=: '%s'", names.at[i]);
			r = refuse(s, err.text);
		}
	}
	return r;
}

int sharedprompts_read(const char *dir, const struct tokenizer *tokenizer, enum chat_layout layout,
		       struct sharedprompts **ret)
{
	_cleanup_(sharedprompts_freep) struct sharedprompts *s = calloc(1, sizeof(*s));
	_cleanup_(closedirp) DIR *d = NULL;
	struct err err = { 0 };
	int r = 0;

	if (!s)
		return -ENOMEM;
	if (dir[0] && open_dir(dir, &d, &err) < 0) {
		err_wrap(&err, err.code, "SharedPrompts=: '%s'", dir);
		r = refuse(s, err.text);
	}
	if (d)
		r = read_dir(s, d, tokenizer, layout);
	if (r >= 0)
		*ret = steal(s);
	return r;
}

struct sharedprompts *sharedprompts_free(struct sharedprompts *s)
{
	if (!s)
		return NULL;
	for (uint32_t i = 0; i < s->n; i++) {
		free((char *)s->at[i].name);
		free((uint32_t *)s->at[i].ids);
	}
	for (uint32_t i = 0; i < s->n_refused; i++)
		free(s->refused[i]);
	free(s->refused);
	free(s->at);
	free(s);
	return NULL;
}
