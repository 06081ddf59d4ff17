/* Reading a record and making certain of it; and a thread that reads ahead of that. */
#include <errno.h>
#include <string.h>
#include <xxhash.h>

#include "daemon/base/clock.h"
#include "daemon/kv/segments-parts.h"

/* Without a copy: O_DIRECT wants addresses and sizes so. */
static bool is_plain(const struct segments *s, const void *payload)
{
	return (uintptr_t)payload % SEGFILE_BLOCK == 0 && s->opts.page_bytes % SEGFILE_BLOCK == 0;
}

static struct segments_ahead *oldest_asked(struct segments_reader *r)
{
	struct segments_ahead *oldest = NULL;

	for (uint32_t i = 0; i < SEGMENTS_PREFETCH_MAX; i++) {
		struct segments_ahead *a = &r->ahead[i];

		if (a->state == AHEAD_ASKED && (!oldest || a->turn < oldest->turn))
			oldest = a;
	}
	return oldest;
}

static int read_ahead(const struct segments_ops *ops, const struct segments_ahead *a)
{
	const struct iovec to[2] = { { a->head, SEGFILE_BLOCK }, { a->payload, a->bytes } };

	return segments_read_blocks(ops, a->fd, to, 2, a->at);
}

static void *read_on(void *userdata)
{
	struct segments *s = userdata;
	struct segments_reader *r = &s->reader;
	struct segments_ahead *a;

	pthread_mutex_lock(&r->mutex);
	while (!r->quit) {
		a = oldest_asked(r);
		if (!a) {
			pthread_cond_wait(&r->asked, &r->mutex);
			continue;
		}
		a->state = AHEAD_READING;
		pthread_mutex_unlock(&r->mutex);
		a->r = read_ahead(s->ops, a);
		pthread_mutex_lock(&r->mutex);
		a->state = AHEAD_READ;
		pthread_cond_signal(&r->done);
	}
	pthread_mutex_unlock(&r->mutex);
	return NULL;
}

int segments_reader_init(struct segments_reader *r)
{
	int n = -pthread_mutex_init(&r->mutex, NULL);

	if (n == 0)
		n = -pthread_cond_init(&r->asked, NULL);
	if (n == 0)
		n = -pthread_cond_init(&r->done, NULL);
	return n;
}

void segments_reader_deinit(struct segments_reader *r)
{
	if (r->runs) {
		pthread_mutex_lock(&r->mutex);
		r->quit = true;
		pthread_cond_signal(&r->asked);
		pthread_mutex_unlock(&r->mutex);
		pthread_join(r->thread, NULL);
	}
	for (uint32_t i = 0; i < SEGMENTS_PREFETCH_MAX; i++)
		free(r->ahead[i].head);
	pthread_cond_destroy(&r->done);
	pthread_cond_destroy(&r->asked);
	pthread_mutex_destroy(&r->mutex);
}

static int start(struct segments *s)
{
	struct segments_reader *r = &s->reader;
	int n;

	for (uint32_t i = 0; i < SEGMENTS_PREFETCH_MAX; i++) {
		if (!r->ahead[i].head)
			r->ahead[i].head = aligned_alloc(SEGFILE_BLOCK, SEGFILE_BLOCK);
		if (!r->ahead[i].head)
			return -ENOMEM;
	}
	if (r->runs)
		return 0;
	n = -pthread_create(&r->thread, NULL, read_on, s);
	r->runs = n == 0;
	return n;
}

int segments_prefetch(struct segments *s, struct segments_place place, void *payload)
{
	struct segments_file *f = segments_file_at(s, place);
	struct segments_ahead *a = NULL;
	int r;

	if (!f || f->state != SEGMENT_SOUND)
		return -ENOENT;
	if (!is_plain(s, payload))
		return -EINVAL;
	/* only this thread asks, and ends what is asked: NONE stays so */
	for (uint32_t i = 0; i < SEGMENTS_PREFETCH_MAX && !a; i++)
		if (!s->reader.ahead[i].file)
			a = &s->reader.ahead[i];
	if (!a)
		return -EAGAIN;
	r = start(s);
	if (r == 0)
		r = segments_file_open(s, f);
	if (r < 0)
		return r;

	f->reads++;
	pthread_mutex_lock(&s->reader.mutex);
	a->place = place;
	a->file = f;
	a->fd = f->fd;
	a->payload = payload;
	a->at = segfile_slot(&f->layout, place.slot);
	a->bytes = s->opts.page_bytes;
	a->turn = ++s->reader.turn;
	a->state = AHEAD_ASKED;
	pthread_cond_signal(&s->reader.asked);
	pthread_mutex_unlock(&s->reader.mutex);
	return 0;
}

/* Waits if it is being read, and if @read also if it has yet to be. */
static int end_ahead(struct segments *s, struct segments_ahead *a, bool read)
{
	int r;

	pthread_mutex_lock(&s->reader.mutex);
	while (a->state == AHEAD_READING || (a->state == AHEAD_ASKED && read))
		pthread_cond_wait(&s->reader.done, &s->reader.mutex);
	r = a->state == AHEAD_READ ? a->r : -ECANCELED;
	a->state = AHEAD_NONE;
	pthread_mutex_unlock(&s->reader.mutex);
	steal(a->file)->reads--;
	return r;
}

void segments_reader_end(struct segments *s, const struct segments_file *f)
{
	for (uint32_t i = 0; i < SEGMENTS_PREFETCH_MAX; i++) {
		struct segments_ahead *a = &s->reader.ahead[i];

		if (a->file && (!f || a->file == f))
			end_ahead(s, a, false);
	}
}

void segments_cancel(struct segments *s)
{
	segments_reader_end(s, NULL);
}

/* What was read ahead of the head and @payload, if it was; its head is in s->head then. */
static int take_ahead(struct segments *s, struct segments_place place, const void *payload)
{
	for (uint32_t i = 0; i < SEGMENTS_PREFETCH_MAX; i++) {
		struct segments_ahead *a = &s->reader.ahead[i];
		int r;

		if (!a->file || a->payload != payload)
			continue;
		r = end_ahead(s, a, true);
		if (a->place.segment != place.segment || a->place.slot != place.slot)
			return -ENOENT;
		memcpy(s->head, a->head, SEGFILE_BLOCK);
		return r;
	}
	return -ENOENT;
}

static int read_slot(struct segments *s, struct segments_file *f, uint32_t slot, void *payload)
{
	const bool plain = is_plain(s, payload);
	const uint64_t bytes = f->layout.stride - SEGFILE_BLOCK;
	void *room = plain ? payload : segments_bounce(s, bytes);
	const struct iovec to[2] = { { s->head, SEGFILE_BLOCK }, { room, bytes } };
	int r = room ? segments_file_read(s, f, to, 2, segfile_slot(&f->layout, slot)) : -ENOMEM;

	if (r == 0 && !plain)
		memcpy(payload, room, s->opts.page_bytes);
	return r;
}

/* What has been read against what is wanted and what the head itself says. */
static int check(struct segments *s, const struct segments_file *f, uint32_t slot,
		 const uint32_t *tokens, const void *payload, struct err *err)
{
	const struct segfile_record *head = s->head;
	const uint64_t at = segfile_slot(&f->layout, slot);
	XXH128_hash_t sum;
	int r;

	r = segfile_record_check(head, f->h, at, err);
	if (r < 0)
		return -EBADMSG;
	if (memcmp(&head->key, &f->records[slot].key, sizeof(head->key)) != 0)
		return err_set(err, -EBADMSG, "it is another page than it was");
	for (uint32_t i = 0; i < head->key.n_tokens; i++)
		if (head->tokens[i] != tokens[i])
			return err_set(err, -EBADMSG, "its token %u is %u, and not %u", i,
				       head->tokens[i], tokens[i]);
	sum = XXH3_128bits(payload, s->opts.page_bytes);
	if (sum.low64 != head->payload_sum[0] || sum.high64 != head->payload_sum[1])
		return err_set(err, -EBADMSG,
			       "the sum of its payload is %016llx%016llx, and not %016llx%016llx",
			       (unsigned long long)sum.high64, (unsigned long long)sum.low64,
			       (unsigned long long)head->payload_sum[1],
			       (unsigned long long)head->payload_sum[0]);
	return 0;
}

/* The record does not stand, or its file is not there any more. */
static int give_up(struct segments *s, struct segments_file *f, uint32_t slot, int r,
		   struct err *err)
{
	if (r != -EBADMSG)
		err_set(err, -EIO, "%s", strerror(-r));
	err_wrap(err, r == -EBADMSG ? r : -EIO, "record %u of '%s/%s'", slot, s->dir,
		 segments_file_name(f).text);
	s->stats.n_damaged++;
	if (r == -ENOENT && f->state == SEGMENT_SOUND)
		segments_file_drop(s, f, true, SEGMENTS_DAMAGED);
	else
		segments_file_forget(s, f, slot, true, SEGMENTS_DAMAGED);
	return r == -EBADMSG ? r : -EIO;
}

int segments_read(struct segments *s, struct segments_place place, const struct segments_key *key,
		  const uint32_t *tokens, void *payload, uint64_t ret_sum[2], struct err *err)
{
	struct segments_file *f = segments_file_at(s, place);
	const int ahead = take_ahead(s, place, payload);
	struct segments_record *record = f ? &f->records[place.slot] : NULL;
	int r = 0;

	if (!record || memcmp(&record->key, key, sizeof(*key)) != 0)
		return err_set(err, -ENOENT, "no such record in slot %u of segment %016llx of '%s'",
			       place.slot, (unsigned long long)place.segment, s->dir);
	if (ahead < 0) /* or it failed: this is the one whose failure counts */
		r = read_slot(s, f, place.slot, payload);
	if (r < 0 && segments_is_passing(r))
		return err_wrap(err, r, "cannot read from '%s/%s'", s->dir,
				segments_file_name(f).text);
	if (r == 0)
		r = check(s, f, place.slot, tokens, payload, err);
	else if (r == -EBADMSG) /* so may a file system say it, of its own sums */
		r = -EIO;
	if (r < 0)
		return give_up(s, f, place.slot, r, err);

	record->used_us = clock_wall_us();
	record->hits++;
	s->stats.n_read++;
	if (ret_sum)
		memcpy(ret_sum, s->head->payload_sum, sizeof(s->head->payload_sum));
	return 0;
}
