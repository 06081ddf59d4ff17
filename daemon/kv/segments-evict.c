/* Limits, and who has to go for them. */
#include <errno.h>

#include "daemon/base/clock.h"
#include "daemon/kv/segments-parts.h"
#include "daemon/kv/value.h"

#define FILE_BYTES_DEFAULT (256ull << 20)
#define TOTAL_BYTES_DEFAULT 50000000000ull
#define HALF_LIFE_US (24 * 3600 * 1000000ull) /* of what a record is worth */
#define PARTS_OF_A_LIMIT 4		      /* so that to evict one file is to lose a part */

static uint64_t total_bytes(const struct segments *s)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < s->n_users; i++)
		bytes += s->users[i]->bytes;
	return bytes;
}

void segments_set_limits(struct segments *s, const struct segments_limits *limits)
{
	struct segments_limits *own = &s->opts.limits;
	uint64_t file_bytes = s->opts.segment_bytes ? s->opts.segment_bytes : FILE_BYTES_DEFAULT;
	struct statvfs fs;

	*own = *limits;
	if (own->total_bytes == 0) {
		own->total_bytes = TOTAL_BYTES_DEFAULT;
		if (s->ops->statvfs(s->ops->userdata, s->dir_fd, &fs) == 0)
			own->total_bytes = MIN(own->total_bytes, fs.f_blocks * fs.f_frsize / 10);
	}
	if (own->user_bytes == 0)
		own->user_bytes = own->total_bytes;
	file_bytes = MIN(file_bytes, own->total_bytes / PARTS_OF_A_LIMIT);
	file_bytes = MIN(file_bytes, own->user_bytes / PARTS_OF_A_LIMIT);
	s->layout = segfile_layout(s->opts.page_bytes, s->opts.page_tokens, file_bytes);
}

/* A byte that was written: room that its user is still to fill would be wanted again at once. */
static double worth(const struct segments_file *f)
{
	const uint64_t now_us = clock_wall_us();
	double sum = VALUE_NONE;

	for (uint32_t i = 0; i < f->layout.n_slots && f->n_live > 0; i++) {
		const struct segments_record *r = &f->records[i];

		if (r->key.n_tokens > 0 && !r->outlived)
			sum = value_sum(
				sum,
				/* a clock that was ahead makes nothing worth more than what is new */
				value_of(r->key.n_tokens, r->hits, MIN(r->used_us, now_us),
					 HALF_LIFE_US),
				HALF_LIFE_US);
	}
	return value_part(sum, (double)MIN(f->bytes, f->next * f->layout.stride) + 1, HALF_LIFE_US);
}

uint64_t segments_left_to_others(const struct segments *s)
{
	const struct segments_limits *limits = &s->opts.limits;
	const uint64_t file_bytes = segfile_bytes(&s->layout);
	uint32_t n_users = 1; /* one that comes */

	for (uint32_t i = 0; i < s->n_users; i++)
		n_users += s->users[i]->bytes > 0;
	return MIN(limits->total_bytes / 100 * limits->user_min_percent,
		   limits->total_bytes / n_users) /
	       file_bytes * file_bytes;
}

static bool may_take(struct segments *s, const struct segments_file *f, uint32_t uid,
		     enum segments_whose whose)
{
	if (f->state != SEGMENT_FOREIGN && f->state != SEGMENT_SOUND)
		return false;
	if (f->uid == uid || whose == WHOSE_ANY)
		return true;
	if (whose == WHOSE_OWN)
		return false;
	return f->state == SEGMENT_FOREIGN ||
	       segments_user_of(s, f->uid)->bytes >= f->bytes + segments_left_to_others(s);
}

static struct segments_file *worth_least(struct segments *s, uint32_t uid,
					 enum segments_whose whose, const struct segments_file *but)
{
	struct segments_file *least = NULL;
	double least_worth = 0;

	for (uint32_t i = 0; i < s->n_files; i++) {
		struct segments_file *f = s->files[i];
		double is;

		if (f == but || !may_take(s, f, uid, whose))
			continue;
		if (f->state == SEGMENT_FOREIGN)
			return f;
		is = worth(f);
		if (least && is >= least_worth)
			continue;
		least = f;
		least_worth = is;
	}
	return least;
}

static struct segments_file *any_outlived(struct segments *s, uint32_t uid,
					  enum segments_whose whose)
{
	for (uint32_t i = 0; i < s->n_files; i++)
		if (s->files[i]->state == SEGMENT_SOUND && s->files[i]->n_outlived > 0 &&
		    may_take(s, s->files[i], uid, whose))
			return s->files[i];
	return NULL;
}

/* Forgets what others have all of. Returns the bytes that this gave back, as far as can be told. */
static uint64_t forget_outlived(struct segments *s, uint32_t uid, enum segments_whose whose)
{
	const uint64_t before = total_bytes(s);
	struct segments_file *f;

	while ((f = any_outlived(s, uid, whose))) {
		uint32_t slot = 0;

		while (!f->records[slot].outlived || f->records[slot].key.n_tokens == 0)
			slot++;
		segments_file_forget(s, f, slot, true, SEGMENTS_EVICTED); /* may free @f */
	}
	return before - total_bytes(s);
}

uint64_t segments_evict_one(struct segments *s, uint32_t uid, enum segments_whose whose,
			    const struct segments_file *but)
{
	struct segments_file *f;
	uint64_t bytes = forget_outlived(s, uid, whose);

	if (bytes > 0)
		return bytes;
	/* one that cannot be deleted frees nothing, and is no candidate any more */
	while (bytes == 0 && (f = worth_least(s, uid, whose, but)))
		bytes = segments_file_drop(s, f, true, SEGMENTS_EVICTED);
	s->stats.n_evicted += bytes > 0;
	return bytes;
}

static bool is_disk_full(struct segments *s, uint64_t bytes)
{
	struct statvfs fs;
	uint64_t free_bytes;

	if (s->ops->statvfs(s->ops->userdata, s->dir_fd, &fs) < 0)
		return false; /* making the file will tell */
	free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
	return free_bytes < bytes ||
	       free_bytes - bytes < fs.f_blocks * fs.f_frsize / 100 * s->opts.limits.keep_free;
}

int segments_make_room(struct segments *s, struct segments_user *u, uint64_t bytes, struct err *err)
{
	const struct segments_limits *limits = &s->opts.limits;

	while (u->bytes + bytes > limits->user_bytes) {
		const uint64_t freed = segments_evict_one(s, u->uid, WHOSE_OWN, NULL);

		u->evicted_bytes += freed;
		if (freed == 0)
			return err_set(err, -EDQUOT,
				       "uid %u has %llu bytes in '%s' and may have %llu; a file of "
				       "%llu is wanted",
				       u->uid, (unsigned long long)u->bytes, s->dir,
				       (unsigned long long)limits->user_bytes,
				       (unsigned long long)bytes);
	}
	while (total_bytes(s) + bytes > limits->total_bytes)
		if (!segments_evict_one(s, u->uid, WHOSE_SHARED, NULL))
			return err_set(err, -ENOSPC,
				       "'%s' has %llu bytes and may have %llu; a file of %llu is "
				       "wanted",
				       s->dir, (unsigned long long)total_bytes(s),
				       (unsigned long long)limits->total_bytes,
				       (unsigned long long)bytes);
	while (is_disk_full(s, bytes))
		if (!segments_evict_one(s, u->uid, WHOSE_SHARED, NULL))
			return err_set(err, -ENOSPC,
				       "the file system of '%s' has no room for a file of %llu "
				       "bytes if %u %% of it are to stay free",
				       s->dir, (unsigned long long)bytes, limits->keep_free);
	return 0;
}

uint64_t segments_evict(struct segments *s, uint64_t bytes, uid_t uid)
{
	uint64_t freed = 0, more = 1;

	while (freed < bytes && more > 0) {
		more = segments_evict_one(s, uid, uid == SEGMENTS_ALL ? WHOSE_ANY : WHOSE_OWN,
					  NULL);
		freed += more;
	}
	return freed;
}
