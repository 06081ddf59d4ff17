/* A store in a folder of its own, and turns through it in one line each. */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/wire/ownership.h"
#include "daemon/session/store.h"

#define VOCAB 0x1234567890abcdefull
#define SESSIONS_MAX 5

static _unused_ const struct store_limits limits = { .max_sessions = SESSIONS_MAX };

static _unused_ const struct store_who alice = { 1000, "" }, bob = { 1001, "" },
				       alice_at_work = { 1000, "work" };

struct folder {
	char path[64], db[96];
};

static _unused_ void folder_open(struct folder *f)
{
	snprintf(f->path, sizeof(f->path), "/tmp/steamd-store-XXXXXX");
	assert_non_null(mkdtemp(f->path));
	snprintf(f->db, sizeof(f->db), "%s/state.db", f->path);
}

static _unused_ void folder_empty(struct folder *f)
{
	DIR *dir = opendir(f->path);
	struct dirent *entry;

	assert_non_null(dir);
	while ((entry = readdir(dir)))
		if (entry->d_name[0] != '.')
			unlinkat(dirfd(dir), entry->d_name, 0);
	closedir(dir);
}

static _unused_ void folder_close(struct folder *f)
{
	folder_empty(f);
	rmdir(f->path);
}

static _unused_ struct store *open_store(const struct folder *f)
{
	struct store *s = NULL;
	struct err err = { 0 };

	if (store_open(f->db, NULL, &s, &err) < 0)
		fail_msg("%s", err.text);
	return s;
}

/* "hello" becomes {"messages": [{"role": "user", "content": "hello"}]}. */
static _unused_ struct span request_of(const char *text)
{
	static char json[512];

	snprintf(json, sizeof(json), "{\"messages\": [{\"role\": \"user\", \"content\": \"%s\"}]}",
		 text);
	return span_of(json);
}

static _unused_ int begin(struct store *s, const struct store_who *who, const char *name,
			  const char *text, struct store_begun *ret, struct err *err)
{
	return store_begin(s, who, span_of(name), true, &limits, request_of(text), VOCAB, ret,
			   err);
}

/* The turn's ids: those of the turn before, then @n more from @first on. */
static _unused_ int commit(struct store *s, const struct store_begun *b, const char *answer,
			   uint32_t first, uint32_t n, struct err *err)
{
	uint32_t ids[4096];
	char json[512];
	const struct store_end end = {
		.session = b->session,
		.turn = b->turn,
		.answer = { json, (size_t)snprintf(json, sizeof(json),
						   "{\"role\": \"assistant\", \"content\": \"%s\"}",
						   answer) },
		.finish = SPAN("stop"),
		.ids = ids,
		.n_prompt = (uint32_t)b->n_ids + n / 2,
		.n_ids = (uint32_t)b->n_ids + n,
		.n_cached = 3,
		.n_reasoning = 2,
		.vocab = VOCAB,
	};

	assert_true(b->n_ids + n <= ARRAY_SIZE(ids));
	if (b->n_ids > 0)
		memcpy(ids, b->ids, b->n_ids * sizeof(*ids));
	for (uint32_t i = 0; i < n; i++)
		ids[b->n_ids + i] = first + i;
	return store_commit(s, &end, err);
}

static _unused_ void say(struct store *s, const struct store_who *who, const char *name,
			 const char *text, const char *answer, uint32_t first, uint32_t n)
{
	_cleanup_(store_begun_deinit) struct store_begun b = { 0 };
	struct err err = { 0 };

	if (begin(s, who, name, text, &b, &err) < 0 || commit(s, &b, answer, first, n, &err) < 0)
		fail_msg("%s", err.text);
}

static _unused_ json_t *load(struct bytes *b)
{
	json_t *o = json_loadb(b->at, b->n, 0, NULL);

	assert_non_null(o);
	bytes_deinit(b);
	return o;
}

static _unused_ void export(struct store *s, struct bytes *ret)
{
	struct err err = { 0 };

	if (store_export(s, &alice, SPAN("talk"), ret, &err) < 0)
		fail_msg("%s", err.text);
}

static _unused_ int import(struct store *s, struct span file, const char *name, uint64_t vocab,
		  uint32_t vocab_size, json_t **ret, struct err *err)
{
	struct bytes out = { 0 };
	int r;

	r = store_import(s, &bob, file, span_of(name), vocab, vocab_size,
			 &(struct store_limits){ .max_sessions = 1000 }, &out, err);
	*ret = r < 0 ? NULL : load(&out);
	if (r < 0)
		bytes_deinit(&out);
	return r;
}

static _unused_ size_t not_taken(json_t *o, const char *what, const char *why)
{
	const json_t *list = json_object_get(o, "not_taken"), *first = json_array_get(list, 0);

	if (what) {
		assert_string_equal(json_string_value(json_object_get(first, "what")), what);
		assert_string_equal(json_string_value(json_object_get(first, "why")), why);
	}
	return json_array_size(list);
}
