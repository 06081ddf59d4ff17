/* A segment's file: found, made, read, written, given up. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <string.h>
#include <sys/random.h>

#include "daemon/base/clock.h"
#include "daemon/kv/segments-parts.h"

struct segments_name segments_file_name(const struct segments_file *f)
{
	struct segments_name name;

	segfile_name(f->uid, f->seq, name.text);
	return name;
}

/* The first file of @seq or of a later one. */
static uint32_t index_of(const struct segments *s, uint64_t seq)
{
	uint32_t low = 0, high = s->n_files;

	while (low < high) {
		const uint32_t middle = low + (high - low) / 2;

		if (s->files[middle]->seq < seq)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* Copies of a file in other directories have its number as well; one of them at most is sound. */
struct segments_file *segments_file_at(const struct segments *s, struct segments_place place)
{
	for (uint32_t i = index_of(s, place.segment); i < s->n_files; i++) {
		struct segments_file *f = s->files[i];

		if (f->seq != place.segment)
			break;
		if (f->state != SEGMENT_SOUND && f->state != SEGMENT_LEAVING)
			continue;
		if (place.slot < f->layout.n_slots && f->records[place.slot].key.n_tokens > 0)
			return f;
	}
	return NULL;
}

struct segments_user *segments_user_of(struct segments *s, uint32_t uid)
{
	struct segments_user *u, **more;

	for (uint32_t i = 0; i < s->n_users; i++)
		if (s->users[i]->uid == uid)
			return s->users[i];
	if (s->n_users == s->users_room) {
		more = reallocarray(s->users, s->users_room + 16, sizeof(*more));
		if (!more)
			return NULL;
		s->users = more;
		s->users_room += 16;
	}
	u = calloc(1, sizeof(*u));
	if (!u)
		return NULL;
	u->uid = uid;
	s->users[s->n_users++] = u;
	return u;
}

int segments_file_add(struct segments *s, uint32_t uid, uint64_t seq, struct segments_file **ret)
{
	struct segments_file *f, **more;
	uint32_t at;

	if (s->n_files == s->files_room) {
		more = reallocarray(s->files, s->files_room + 64, sizeof(*more));
		if (!more)
			return -ENOMEM;
		s->files = more;
		s->files_room += 64;
	}
	f = calloc(1, sizeof(*f));
	if (!f)
		return -ENOMEM;
	f->uid = uid;
	f->seq = seq;
	f->fd = -1;
	at = index_of(s, seq);
	memmove(s->files + at + 1, s->files + at, (s->n_files - at) * sizeof(*s->files));
	s->files[at] = f;
	s->n_files++;
	*ret = f;
	return 0;
}

static void close_file(struct segments *s, struct segments_file *f)
{
	if (f->fd < 0)
		return;
	s->ops->close(s->ops->userdata, steal_fd(&f->fd));
	s->n_open--;
}

/* What only a sound one has. */
static void strip(struct segments_file *f)
{
	free(steal(f->h));
	free(steal(f->records));
	f->n_live = f->n_outlived = 0;
}

struct segments_file *segments_file_free(struct segments *s, struct segments_file *f)
{
	uint32_t at;

	if (!f)
		return NULL;
	for (at = index_of(s, f->seq); s->files[at] != f; at++)
		;
	memmove(s->files + at, s->files + at + 1, (s->n_files - at - 1) * sizeof(*s->files));
	s->n_files--;
	close_file(s, f);
	strip(f);
	free(f);
	return NULL;
}

static void close_one(struct segments *s)
{
	struct segments_file *oldest = NULL;

	for (uint32_t i = 0; i < s->n_files; i++) {
		struct segments_file *f = s->files[i];

		if (f->fd >= 0 && f->reads == 0 && (!oldest || f->fd_used < oldest->fd_used))
			oldest = f;
	}
	if (oldest)
		close_file(s, oldest);
}

static int open_with(struct segments *s, struct segments_file *f, int flags)
{
	const int more = O_CLOEXEC | O_NOFOLLOW | (s->direct ? O_DIRECT : 0);
	int fd;

	if (s->n_open >= SEGMENTS_OPEN_MAX)
		close_one(s);
	fd = s->ops->open(s->ops->userdata, s->dir_fd, segments_file_name(f).text, flags | more,
			  0600);
	if (fd < 0)
		return fd;
	f->fd = fd;
	f->direct = s->direct;
	s->n_open++;
	return 0;
}

/* Some file systems know no O_DIRECT: then none of this store's files is opened so. */
static int open_file(struct segments *s, struct segments_file *f, int flags)
{
	int r = open_with(s, f, flags);

	if (r != -EINVAL || !s->direct)
		return r;
	s->direct = false;
	return open_with(s, f, flags & ~O_EXCL);
}

int segments_file_open(struct segments *s, struct segments_file *f)
{
	int r = 0;

	if (f->fd < 0)
		r = open_file(s, f, O_RDWR);
	if (r == -EROFS)
		r = open_file(s, f, O_RDONLY);
	f->fd_used = ++s->fd_turn;
	return r;
}

/* Or they know it, but not for such a range. */
static int open_without_direct(struct segments *s, struct segments_file *f)
{
	segments_reader_end(s, f);
	close_file(s, f);
	s->direct = false;
	return segments_file_open(s, f);
}

int segments_read_blocks(const struct segments_ops *ops, int fd, const struct iovec *to, int n,
			 uint64_t at)
{
	struct iovec left[2];
	bool stalled = false;
	ssize_t got;

	assert(n > 0 && n <= 2);
	memcpy(left, to, (size_t)n * sizeof(*to));
	while (n > 0) {
		got = ops->preadv(ops->userdata, fd, left, n, (off_t)at);
		if (got == -EINTR)
			continue;
		if (got < 0)
			return (int)got;
		got -= got % SEGFILE_BLOCK; /* or what is left to read would not be aligned */
		if (got == 0 && stalled)
			return -ENODATA;
		stalled = got == 0;
		at += (uint64_t)got;
		while (n > 0 && (size_t)got >= left[0].iov_len) {
			got -= (ssize_t)left[0].iov_len;
			left[0] = left[1];
			n--;
		}
		if (n > 0) {
			left[0].iov_base = (char *)left[0].iov_base + got;
			left[0].iov_len -= (size_t)got;
		}
	}
	return 0;
}

int segments_file_read(struct segments *s, struct segments_file *f, const struct iovec *to, int n,
		       uint64_t at)
{
	int r = segments_file_open(s, f);

	if (r == 0)
		r = segments_read_blocks(s->ops, f->fd, to, n, at);
	if (r == -EINVAL && f->direct) {
		r = open_without_direct(s, f);
		if (r == 0)
			r = segments_read_blocks(s->ops, f->fd, to, n, at);
	}
	return r;
}

int segments_file_write(struct segments *s, struct segments_file *f, const void *data,
			uint64_t bytes, uint64_t at)
{
	int r = segments_file_open(s, f);
	bool stalled = false;
	uint64_t done = 0;
	ssize_t n;

	f->dirty = true;
	while (r == 0 && done < bytes) {
		n = s->ops->pwrite(s->ops->userdata, f->fd, (const char *)data + done, bytes - done,
				   (off_t)(at + done));
		if (n == -EINTR)
			continue;
		if (n == -EINVAL && f->direct) {
			r = open_without_direct(s, f);
			continue;
		}
		if (n < 0)
			return (int)n;
		n -= n % SEGFILE_BLOCK;
		if (n == 0 && stalled)
			return -EIO;
		stalled = n == 0;
		done += (uint64_t)n;
	}
	return r;
}

int segments_file_sync(struct segments *s, struct segments_file *f)
{
	int r = segments_file_open(s, f);

	if (r == 0)
		r = s->ops->datasync(s->ops->userdata, f->fd);
	if (r == 0)
		f->dirty = false;
	return r;
}

void *segments_bounce(struct segments *s, uint64_t bytes)
{
	if (bytes > s->bounce_bytes) {
		free(steal(s->bounce));
		s->bounce_bytes = 0;
		s->bounce = aligned_alloc(SEGFILE_BLOCK, bytes);
		if (s->bounce)
			s->bounce_bytes = bytes;
	}
	return s->bounce;
}

static int write_footer(struct segments *s, struct segments_file *f)
{
	const uint64_t bytes = segfile_footer_bytes(&f->layout);
	struct segfile_footer *footer = segments_bounce(s, bytes);

	if (!footer)
		return -ENOMEM;
	memset(footer, 0, bytes);
	for (uint32_t i = 0; i < f->layout.n_slots; i++)
		if (f->records[i].key.n_tokens > 0)
			footer->keys[i] = f->records[i].key;
	segfile_footer_seal(footer, f->h);
	return segments_file_write(s, f, footer, bytes, segfile_footer_at(&f->layout));
}

int segments_file_seal(struct segments *s, struct segments_file *f)
{
	const int written = write_footer(s, f);
	int r;

	/* it does without one, if there is no room for it */
	if (written < 0 && written != -ENOMEM && !segments_is_full(written))
		return written;
	r = segments_file_sync(s, f);
	f->footer = r == 0 && written == 0;
	return r;
}

int segments_file_sound(struct segments_file *f, struct segfile_header **h,
			const struct segfile_layout *layout)
{
	f->records = calloc(layout->n_slots, sizeof(*f->records));
	if (!f->records)
		return -ENOMEM;
	f->h = steal(*h);
	f->layout = *layout;
	f->state = SEGMENT_SOUND;
	return 0;
}

static int new_header(const struct segments *s, const struct segments_file *f,
		      struct segfile_header **ret)
{
	struct segfile_header *h = aligned_alloc(SEGFILE_BLOCK, sizeof(*h));

	if (!h)
		return -ENOMEM;
	memset(h, 0, sizeof(*h));
	if (getrandom(h->id, sizeof(h->id), 0) != sizeof(h->id)) {
		free(h);
		return -EIO;
	}
	h->layout = s->opts.layout;
	memcpy(h->fingerprint, s->opts.fingerprint, sizeof(h->fingerprint));
	h->seq = f->seq;
	h->uid = f->uid;
	h->page_bytes = s->layout.page_bytes;
	h->page_tokens = s->layout.page_tokens;
	h->n_slots = s->layout.n_slots;
	segfile_header_seal(h);
	*ret = h;
	return 0;
}

static int make_dir(struct segments *s, struct segments_user *u)
{
	char name[16];
	int r;

	if (u->has_dir)
		return 0;
	snprintf(name, sizeof(name), "%u", u->uid);
	r = s->ops->mkdir(s->ops->userdata, s->dir_fd, name, 0700);
	if (r == -EEXIST)
		r = 0;
	if (r == 0)
		r = s->ops->sync(s->ops->userdata, s->dir_fd);
	u->has_dir = r == 0;
	return r;
}

int segments_sync_dir(struct segments *s, const struct segments_user *u)
{
	char name[16];
	int fd, r;

	snprintf(name, sizeof(name), "%u", u->uid);
	fd = s->ops->open(s->ops->userdata, s->dir_fd, name,
			  O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
	if (fd < 0)
		return fd;
	r = s->ops->sync(s->ops->userdata, fd);
	s->ops->close(s->ops->userdata, fd);
	return r;
}

/* Blocks of the file system, so that they are one behind the other, and there when they are written. */
static int reserve(struct segments *s, struct segments_file *f, uint64_t bytes)
{
	int r;

	do
		r = s->ops->fallocate(s->ops->userdata, f->fd, 0, 0, (off_t)bytes);
	while (r == -EINTR);
	if (r == -EOPNOTSUPP || r == -ENOSYS)
		r = s->ops->truncate(s->ops->userdata, f->fd, (off_t)bytes);
	return r;
}

static int create(struct segments *s, struct segments_user *u, struct segments_file *f)
{
	int r = make_dir(s, u);

	if (r == 0)
		r = open_file(s, f, O_RDWR | O_CREAT | O_EXCL);
	if (r == -ENOENT) { /* somebody has deleted the directory: all of this may be deleted */
		u->has_dir = false;
		r = make_dir(s, u);
		if (r == 0)
			r = open_file(s, f, O_RDWR | O_CREAT | O_EXCL);
	}
	return r;
}

static int fill_new(struct segments *s, struct segments_user *u, struct segments_file *f)
{
	_cleanup_(freep) struct segfile_header *h = NULL;
	int r = new_header(s, f, &h);

	if (r == 0)
		r = reserve(s, f, f->bytes);
	if (r == 0)
		r = segments_file_write(s, f, h, sizeof(*h), 0);
	if (r == 0)
		r = segments_sync_dir(s, u);
	if (r == 0)
		r = segments_file_sound(f, &h, &s->layout);
	return r;
}

int segments_file_make(struct segments *s, struct segments_user *u, struct segments_file **ret,
		       struct err *err)
{
	struct segments_file *f;
	int r;

	r = segments_file_add(s, u->uid, s->next_seq++, &f);
	if (r < 0)
		return r;
	f->bytes = segfile_bytes(&s->layout);
	r = create(s, u, f);
	if (r == 0) {
		r = fill_new(s, u, f);
		if (r < 0)
			s->ops->unlink(s->ops->userdata, s->dir_fd, segments_file_name(f).text);
	}
	if (r < 0) {
		err_wrap(err, r, "cannot make '%s/%s'", s->dir, segments_file_name(f).text);
		segments_file_free(s, f);
		return r;
	}
	u->bytes += f->bytes;
	*ret = f;
	return 0;
}

static void tell(struct segments *s, struct segments_file *f, uint32_t slot, enum segments_why why)
{
	const struct segments_place place = { .segment = f->seq, .slot = slot };

	if (s->opts.gone)
		s->opts.gone(s->opts.userdata, &f->records[slot].key, place, why);
}

static void leave(struct segments *s, struct segments_file *f, bool gone, enum segments_why why)
{
	f->state = SEGMENT_LEAVING;
	for (uint32_t i = 0; i < f->layout.n_slots && gone; i++)
		if (f->records[i].key.n_tokens > 0)
			tell(s, f, i, why);
}

uint64_t segments_file_drop(struct segments *s, struct segments_file *f, bool gone,
			    enum segments_why why)
{
	struct segments_user *u = segments_user_of(s, f->uid);
	const uint64_t bytes = f->bytes;
	int r;

	assert(u);
	segments_reader_end(s, f);
	if (u->active == f)
		u->active = NULL;
	if (f->state == SEGMENT_SOUND)
		leave(s, f, gone, why);
	close_file(s, f);
	strip(f);
	r = s->ops->unlink(s->ops->userdata, s->dir_fd, segments_file_name(f).text);
	if (r < 0 && r != -ENOENT) {
		f->state = SEGMENT_STUCK;
		return 0;
	}
	u->bytes -= bytes;
	u->unlinked = true;
	segments_file_free(s, f);
	return bytes;
}

void segments_file_fail(struct segments *s, struct segments_file *f)
{
	s->stats.n_failed++;
	segments_file_drop(s, f, true, SEGMENTS_FAILED);
}

static int empty_slot(struct segments *s, struct segments_file *f, uint32_t slot)
{
	const uint64_t at = segfile_slot(&f->layout, slot);
	int r = segments_file_open(s, f);

	f->dirty = true;
	if (r == 0)
		r = s->ops->fallocate(s->ops->userdata, f->fd,
				      FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at,
				      (off_t)f->layout.stride);
	if (r == 0) {
		const uint64_t bytes = MIN(f->bytes, f->layout.stride);

		f->bytes -= bytes;
		segments_user_of(s, f->uid)->bytes -= bytes;
	}
	if (r != -EOPNOTSUPP && r != -ENOSYS)
		return r;
	memset(s->head, 0, SEGFILE_BLOCK);
	return segments_file_write(s, f, s->head, SEGFILE_BLOCK, at);
}

void segments_file_forget(struct segments *s, struct segments_file *f, uint32_t slot, bool gone,
			  enum segments_why why)
{
	int r;

	if (f->state != SEGMENT_SOUND) /* it goes already, and all in it */
		return;
	if (gone)
		tell(s, f, slot, why);
	f->records[slot].key.n_tokens = 0;
	f->n_live--;
	f->n_outlived -= f->records[slot].outlived;
	if (f->n_live == 0 && f->next == f->layout.n_slots) {
		segments_file_drop(s, f, false, why);
		return;
	}
	/* the footer first: it never names what is not there */
	r = f->footer ? write_footer(s, f) : 0;
	if (r == 0)
		r = empty_slot(s, f, slot);
	if (r < 0)
		segments_file_fail(s, f);
}
