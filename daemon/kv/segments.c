/* The calls of the disk tier. */
#include "daemon/kv/segments.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "daemon/kv/segments-parts.h"

static int check_options(const struct segments_options *o, struct err *err)
{
	if (o->page_bytes == 0 || o->page_bytes > SEGFILE_PAGE_BYTES_MAX || o->page_tokens == 0 ||
	    o->page_tokens > SEGMENTS_PAGE_TOKENS_MAX || o->limits.keep_free > 99)
		return err_set(err, -EINVAL,
			       "no KV cache on disk has pages of %llu bytes and %u tokens and "
			       "keeps %u %% free",
			       (unsigned long long)o->page_bytes, o->page_tokens,
			       o->limits.keep_free);
	return 0;
}

static int open_dir(struct segments *s, struct err *err)
{
	int r = s->ops->mkdir(s->ops->userdata, AT_FDCWD, s->dir, 0700);

	if (r < 0 && r != -EEXIST)
		return err_wrap(err, r, "cannot make '%s'", s->dir);
	s->dir_fd = s->ops->open(s->ops->userdata, AT_FDCWD, s->dir,
				 O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
	if (s->dir_fd < 0)
		return err_wrap(err, s->dir_fd, "cannot open '%s'", s->dir);
	r = s->ops->lock(s->ops->userdata, s->dir_fd);
	if (r == -EWOULDBLOCK)
		return err_set(err, -EBUSY, "'%s' is in use by another process", s->dir);
	return r < 0 ? err_wrap(err, r, "cannot lock '%s'", s->dir) : 0;
}

static int new_store(const struct segments_options *opts, struct segments **ret)
{
	_cleanup_(freep) struct segments *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return -ENOMEM;
	r = segments_reader_init(&s->reader);
	if (r < 0)
		return r;
	s->opts = *opts;
	s->ops = opts->ops ? opts->ops : &segments_ops_real;
	s->dir_fd = -1;
	s->direct = true;
	s->next_seq = 1;
	*ret = steal(s);
	return 0;
}

int segments_open(const struct segments_options *opts, struct segments **ret, struct err *err)
{
	_cleanup_(segments_freep) struct segments *s = NULL;
	int r;

	r = check_options(opts, err);
	if (r < 0)
		return r;
	r = new_store(opts, &s);
	if (r < 0)
		return r;
	s->dir = strdup(opts->dir);
	s->head = aligned_alloc(SEGFILE_BLOCK, SEGFILE_BLOCK);
	if (!s->dir || !s->head)
		return -ENOMEM;
	s->opts.dir = s->dir;
	r = open_dir(s, err);
	if (r < 0)
		return r;
	segments_set_limits(s, &opts->limits);
	r = segments_list(s, err);
	if (r < 0)
		return r;
	*ret = steal(s);
	return 0;
}

struct segments *segments_free(struct segments *s)
{
	if (!s)
		return NULL;
	segments_cancel(s);
	segments_reader_deinit(&s->reader);
	while (s->n_files > 0)
		segments_file_free(s, s->files[s->n_files - 1]);
	for (uint32_t i = 0; i < s->n_users; i++)
		free(s->users[i]);
	if (s->dir_fd >= 0)
		s->ops->close(s->ops->userdata, s->dir_fd);
	free(s->files);
	free(s->users);
	free(s->head);
	free(s->bounce);
	free(s->dir);
	free(s);
	return NULL;
}

void segments_limit(struct segments *s, const struct segments_limits *limits)
{
	segments_set_limits(s, limits);
}

static void fill_head(struct segments *s, const struct segments_file *f, uint64_t at,
		      const struct segments_key *key, const uint32_t *tokens, const uint64_t sum[2])
{
	struct segfile_record *head = s->head;

	memset(head, 0, sizeof(*head));
	memcpy(head->id, f->h->id, sizeof(head->id));
	head->offset = at;
	head->key = *key;
	head->payload_bytes = s->opts.page_bytes;
	memcpy(head->payload_sum, sum, sizeof(head->payload_sum));
	memcpy(head->tokens, tokens, key->n_tokens * sizeof(*tokens));
	segfile_record_seal(head);
}

/* The payload in whole blocks; what is behind it in the last one is zeros, and nobody's. */
static const void *whole_payload(struct segments *s, const void *payload, uint64_t bytes)
{
	char *copy;

	if ((uintptr_t)payload % SEGFILE_BLOCK == 0 && s->opts.page_bytes == bytes)
		return payload;
	copy = segments_bounce(s, bytes);
	if (copy) {
		memcpy(copy, payload, s->opts.page_bytes);
		memset(copy + s->opts.page_bytes, 0, bytes - s->opts.page_bytes);
	}
	return copy;
}

/* First the payload, then the head that makes it a record: a process that is killed leaves no half. */
static int write_record(struct segments *s, struct segments_file *f, const struct segments_key *key,
			const uint32_t *tokens, const void *payload, const uint64_t sum[2])
{
	const uint64_t at = segfile_slot(&f->layout, f->next);
	const uint64_t bytes = f->layout.stride - SEGFILE_BLOCK;
	const void *whole = whole_payload(s, payload, bytes);
	int r;

	if (!whole)
		return -ENOMEM;
	r = segments_file_write(s, f, whole, bytes, at + SEGFILE_BLOCK);
	if (r < 0)
		return r;
	fill_head(s, f, at, key, tokens, sum);
	return segments_file_write(s, f, s->head, SEGFILE_BLOCK, at);
}

static void hold(struct segments_file *f, const struct segments_key *key)
{
	f->records[f->next++] = (struct segments_record){ .key = *key, .used_us = clock_wall_us() };
	f->n_live++;
}

/* Nobody was told of it yet, so that nobody is told that it goes. */
static void drop_last(struct segments_file *f)
{
	f->records[f->next - 1].key.n_tokens = 0;
	f->n_live--;
}

/* Stores it in the user's file. Only after -ENOSPC, -EDQUOT and what passes the file is still there. */
static int store(struct segments *s, struct segments_user *u, const struct segments_key *key,
		 const uint32_t *tokens, const void *payload, const uint64_t sum[2],
		 struct segments_place *ret, struct err *err)
{
	struct segments_file *f = u->active;
	const struct segments_name name = segments_file_name(f);
	const struct segments_place place = { .segment = f->seq, .slot = f->next };
	int r;

	r = write_record(s, f, key, tokens, payload, sum);
	if (segments_is_full(r) || segments_is_passing(r))
		return err_wrap(err, r, "cannot write to '%s/%s'", s->dir, name.text);
	if (r == 0) {
		hold(f, key);
		if (f->next == f->layout.n_slots) {
			u->active = NULL;
			r = segments_file_seal(s, f);
			if (r < 0)
				drop_last(f);
		}
	}
	if (r < 0) {
		segments_file_fail(s, f);
		err_set(err, -EIO, "%s", strerror(-r));
		return err_wrap(err, -EIO, "writing '%s/%s' failed, which is given up", s->dir,
				name.text);
	}
	*ret = place;
	return 0;
}

/* @u gets a file to append to if it has none. *ret_may: false if the limits leave no room for one. */
static int have_active(struct segments *s, struct segments_user *u, bool *ret_may, struct err *err)
{
	int r;

	*ret_may = true;
	if (u->active)
		return 0;
	r = segments_make_room(s, u, segfile_bytes(&s->layout), err);
	*ret_may = r == 0;
	return r < 0 ? r : segments_file_make(s, u, &u->active, err);
}

/* Twice if need be: the second time to another file, or with more room. */
static int append(struct segments *s, struct segments_user *u, const struct segments_key *key,
		  const uint32_t *tokens, const void *payload, const uint64_t sum[2],
		  struct segments_place *ret, struct err *err)
{
	bool may;
	int r;

	for (int tries = 0;; tries++) {
		*err = (struct err){ 0 };
		r = have_active(s, u, &may, err);
		if (r == 0)
			r = store(s, u, key, tokens, payload, sum, ret, err);
		if (r == 0 || tries > 0 || !may || segments_is_passing(r))
			return r;
		if (segments_is_full(r) && !segments_evict_one(s, u->uid, WHOSE_SHARED, u->active))
			return r;
	}
}

int segments_append(struct segments *s, const struct segments_key *key, const uint32_t *tokens,
		    const void *payload, const uint64_t sum[2], struct segments_place *ret,
		    struct err *err)
{
	struct segments_user *u;
	struct err own;
	int r;

	if (key->n_tokens == 0 || key->n_tokens > s->opts.page_tokens || key->uid == SEGMENTS_ALL)
		return err_set(err, -EINVAL, "no page of uid %u has %u tokens", key->uid,
			       key->n_tokens);
	if (!s->scanned)
		return err_set(err, -EAGAIN, "what is in '%s' is not known yet", s->dir);
	u = segments_user_of(s, key->uid);
	if (!u)
		return -ENOMEM;
	r = append(s, u, key, tokens, payload, sum, ret, &own);
	if (r < 0 && err)
		*err = own;
	s->stats.n_appended += r == 0;
	s->stats.n_refused += segments_is_full(r);
	return r;
}

void segments_outlive(struct segments *s, struct segments_place place)
{
	struct segments_file *f = segments_file_at(s, place);

	if (!f || f->records[place.slot].outlived)
		return;
	f->records[place.slot].outlived = true;
	f->n_outlived++;
}

void segments_forget(struct segments *s, struct segments_place place)
{
	struct segments_file *f = segments_file_at(s, place);

	if (f)
		segments_file_forget(s, f, place.slot, false, SEGMENTS_EVICTED);
}

void segments_forget_user(struct segments *s, uid_t uid)
{
	for (uint32_t i = s->n_files; i-- > 0;)
		if (uid == SEGMENTS_ALL || s->files[i]->uid == uid)
			segments_file_drop(s, s->files[i], false, SEGMENTS_EVICTED);
}

static int flush_file(struct segments *s, struct segments_file *f, struct err *err)
{
	const struct segments_name name = segments_file_name(f);
	int r = 0;

	if (f->state != SEGMENT_SOUND)
		return 0;
	if (f->next == f->layout.n_slots && !f->footer)
		r = segments_file_seal(s, f);
	else if (f->dirty)
		r = segments_file_sync(s, f);
	if (r == 0)
		return 0;
	if (!segments_is_passing(r))
		segments_file_fail(s, f);
	return err_set(err, r, "cannot sync '%s/%s': %s", s->dir, name.text, strerror(-r));
}

static int flush_dir(struct segments *s, struct segments_user *u, struct err *err)
{
	int r;

	if (!u->unlinked)
		return 0;
	r = segments_sync_dir(s, u);
	u->unlinked = r < 0 && r != -ENOENT;
	if (!u->unlinked)
		return 0;
	return err_set(err, r, "cannot sync '%s/%u': %s", s->dir, u->uid, strerror(-r));
}

int segments_flush(struct segments *s, struct err *err)
{
	int r, last = 0;

	for (uint32_t i = s->n_files; i-- > 0;) {
		r = flush_file(s, s->files[i], err);
		last = r < 0 ? r : last;
	}
	for (uint32_t i = 0; i < s->n_users; i++) {
		r = flush_dir(s, s->users[i], err);
		last = r < 0 ? r : last;
	}
	return last;
}

static void count(struct segments_stats *ret, const struct segments_file *f)
{
	if (f->state == SEGMENT_FOREIGN || f->state == SEGMENT_STUCK) {
		ret->n_foreign++;
		ret->foreign_bytes += f->bytes;
		return;
	}
	ret->n_segments++;
	ret->n_records += f->n_live;
}

void segments_stats(const struct segments *s, struct segments_stats *ret)
{
	*ret = s->stats;
	ret->direct = s->direct;
	ret->least_bytes = MIN(segments_left_to_others(s), s->opts.limits.user_bytes);
	for (uint32_t i = 0; i < s->n_files; i++)
		count(ret, s->files[i]);
	for (uint32_t i = 0; i < s->n_users; i++)
		ret->bytes += s->users[i]->bytes;
}

uint64_t segments_user_bytes(const struct segments *s, uid_t uid)
{
	for (uint32_t i = 0; i < s->n_users; i++)
		if (s->users[i]->uid == uid)
			return s->users[i]->bytes;
	return 0;
}

uint32_t segments_usage(const struct segments *s, struct segments_usage **ret)
{
	struct segments_usage *at = calloc(MAX(s->n_users, 1u), sizeof(*at));

	if (!at)
		return 0;
	for (uint32_t i = 0; i < s->n_users; i++)
		at[i] = (struct segments_usage){ s->users[i]->uid, s->users[i]->bytes,
						 s->users[i]->evicted_bytes };
	*ret = at;
	return s->n_users;
}
