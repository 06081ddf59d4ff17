/* What is on the disk at start: names first, then file by file the keys in it. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "daemon/kv/segments-parts.h"

struct listing {
	struct segments *s;
	struct segments_user *u;
};

/* Names that are not ours are left alone. */
static int on_file_name(void *arg, const char *name)
{
	struct listing *l = arg;
	struct segments_file *f;
	uint64_t seq;

	if (!segfile_parse_name(name, &seq))
		return 0;
	l->s->next_seq = MAX(l->s->next_seq, seq + 1);
	return segments_file_add(l->s, l->u->uid, seq, &f);
}

static int on_user_name(void *arg, const char *name)
{
	struct listing *l = arg;
	struct segments *s = l->s;
	uint32_t uid;
	int fd, r;

	if (!segfile_parse_uid(name, &uid))
		return 0;
	fd = s->ops->open(s->ops->userdata, s->dir_fd, name,
			  O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
	if (fd == -ENOTDIR || fd == -ELOOP || fd == -ENOENT)
		return 0;
	if (fd < 0)
		return fd;
	l->u = segments_user_of(s, uid);
	r = l->u ? s->ops->list(s->ops->userdata, fd, on_file_name, l) : -ENOMEM;
	if (l->u)
		l->u->has_dir = true;
	s->ops->close(s->ops->userdata, fd);
	return r;
}

int segments_list(struct segments *s, struct err *err)
{
	struct listing l = { .s = s };
	const int r = s->ops->list(s->ops->userdata, s->dir_fd, on_user_name, &l);

	return r < 0 ? err_wrap(err, r, "cannot list '%s'", s->dir) : 0;
}

static bool is_of_this_model(const struct segments *s, const struct segfile_header *h)
{
	return h->version == SEGFILE_VERSION && h->layout == s->opts.layout &&
	       memcmp(h->fingerprint, s->opts.fingerprint, sizeof(h->fingerprint)) == 0 &&
	       h->page_bytes == s->opts.page_bytes && h->page_tokens == s->opts.page_tokens;
}

/* Of a copy of a file, or one that was put back, at most one is listened to. */
static bool has_twin(const struct segments *s, const struct segments_file *f)
{
	for (uint32_t i = 0; i < s->n_files; i++)
		if (s->files[i] != f && s->files[i]->seq == f->seq &&
		    s->files[i]->state == SEGMENT_SOUND)
			return true;
	return false;
}

static void put_record(struct segments_file *f, uint32_t slot, const struct segments_key *key,
		       uint64_t used_us)
{
	f->records[slot] = (struct segments_record){ .key = *key, .used_us = used_us };
	f->n_live += key->n_tokens > 0;
}

/* -ENOENT: there is none; anything else is no good one. */
static int read_footer(struct segments *s, struct segments_file *f, uint64_t used_us)
{
	const uint64_t bytes = segfile_footer_bytes(&f->layout);
	struct segfile_footer *footer = segments_bounce(s, bytes);
	struct iovec to = { footer, bytes };
	int r = footer ? segments_file_read(s, f, &to, 1, segfile_footer_at(&f->layout)) : -ENOMEM;

	if (r == 0)
		r = segfile_footer_check(footer, f->h, NULL);
	for (uint32_t i = 0; i < f->layout.n_slots && r == 0; i++)
		put_record(f, i, &footer->keys[i], used_us);
	return r;
}

/*
 * Slots lie at known places, so one that is no good hides none of the others.
 * It is not written to again: a later record there could not be told from what
 * may yet come to light of it.
 */
static void read_heads(struct segments *s, struct segments_file *f, uint64_t file_bytes,
		       uint64_t used_us)
{
	struct iovec to = { s->head, SEGFILE_BLOCK };

	for (uint32_t i = 0; i < f->layout.n_slots; i++) {
		const uint64_t at = segfile_slot(&f->layout, i);
		int r;

		if (at + f->layout.stride > file_bytes)
			break;
		r = segments_file_read(s, f, &to, 1, at);
		if (r == 0)
			r = segfile_record_check(s->head, f->h, at, NULL);
		if (r == -ENOENT)
			continue;
		f->next = i + 1;
		if (r == 0)
			put_record(f, i, &s->head->key, used_us);
		else
			s->stats.n_damaged++;
	}
}

/*
 * The newest file of a user that has slots left goes on being written to. Into
 * one that lost its end nothing is written; nor into an older one, which was
 * given up for the newer.
 */
static void find_next(struct segments *s, struct segments_file *f, uint64_t file_bytes)
{
	struct segments_user *u = segments_user_of(s, f->uid);

	if (f->next == f->layout.n_slots)
		return;
	if (u->active || file_bytes < segfile_bytes(&f->layout))
		f->next = f->layout.n_slots;
	else
		u->active = f;
}

static void read_records(struct segments *s, struct segments_file *f, const struct stat *st)
{
	const uint64_t used_us = (uint64_t)st->st_mtim.tv_sec * US_PER_S;
	int r = read_footer(s, f, used_us);

	if (r == 0) {
		f->footer = true;
		f->next = f->layout.n_slots;
		return;
	}
	s->stats.n_damaged += r != -ENOENT;
	read_heads(s, f, (uint64_t)st->st_size, used_us);
	find_next(s, f, (uint64_t)st->st_size);
}

/* 0: it is one of ours, and what is in it can be read. */
static int read_file(struct segments *s, struct segments_file *f, struct stat *st)
{
	_cleanup_(freep) struct segfile_header *h = aligned_alloc(SEGFILE_BLOCK, sizeof(*h));
	struct segfile_layout layout;
	struct iovec to = { h, sizeof(*h) };
	int r;

	if (!h)
		return -ENOMEM;
	r = segments_file_open(s, f);
	if (r == 0)
		r = s->ops->stat(s->ops->userdata, f->fd, st);
	if (r < 0)
		return r;
	segments_user_of(s, f->uid)->bytes -= f->bytes; /* of a try for which there was no memory */
	f->bytes = MIN((uint64_t)st->st_size, (uint64_t)st->st_blocks * 512);
	segments_user_of(s, f->uid)->bytes += f->bytes;
	r = segments_file_read(s, f, &to, 1, 0);
	if (r == 0)
		r = segfile_header_check(h, f->uid, f->seq, &layout, NULL);
	if (r < 0) {
		s->stats.n_damaged++;
		return r;
	}
	if (!is_of_this_model(s, h) || has_twin(s, f))
		return -ESTALE;
	return segments_file_sound(f, &h, &layout);
}

static void tell(struct segments *s, const struct segments_file *f)
{
	for (uint32_t i = 0; i < f->layout.n_slots && s->opts.found; i++) {
		const struct segments_place place = { .segment = f->seq, .slot = i };

		if (f->records[i].key.n_tokens > 0)
			s->opts.found(s->opts.userdata, &f->records[i].key, place);
	}
}

static struct segments_file *next_listed(const struct segments *s)
{
	for (uint32_t i = s->n_files; i-- > 0;)
		if (s->files[i]->state == SEGMENT_LISTED)
			return s->files[i];
	return NULL;
}

int segments_scan(struct segments *s, struct err *err)
{
	struct segments_file *f = next_listed(s);
	struct stat st;
	int r;

	if (!f) {
		s->scanned = true;
		return 0;
	}
	r = read_file(s, f, &st);
	if (segments_is_passing(r))
		return err_set(err, r, "cannot look into '%s/%s': %s", s->dir,
			       segments_file_name(f).text, strerror(-r));
	if (r < 0) {
		f->state = SEGMENT_FOREIGN;
		return 1;
	}
	read_records(s, f, &st);
	tell(s, f);
	return 1;
}
