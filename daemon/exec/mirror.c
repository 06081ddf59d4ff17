/* Which frame has which page, and the copies between the device and the arena. */
#include "daemon/exec/mirror.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define NONE UINT32_MAX

struct frame {
	uint32_t page; /* NONE: free */
	bool dirty;    /* what it has is newer than the arena's */
	bool soiled;   /* it has had a page since it was backed */
	uint64_t used; /* the turn of its last use */
};

struct mirror {
	struct dev *dev;
	struct kv_cache arena, kv;
	uint32_t group_pages, n_groups, least_frames;
	uint32_t n_backed, n_live; /* frames */
	uint64_t turn;		   /* frames of this one stay */
	struct frame *frames;	   /* [n_groups * group_pages] */
	bool *backed;		   /* [n_groups] */
	uint32_t *frame_of;	   /* [arena.n_pages] */
	struct seq *seqs;	   /* mirror_use()'s answer */
	uint32_t *pages;
	uint32_t seqs_room, pages_room;
	uint64_t n_up, n_down, n_moved;
	pthread_mutex_t lock; /* guards what mirror_look() reads, against its owner's changes */
};

static uint64_t group_bytes(const struct mirror *m)
{
	return m->group_pages * (uint64_t)kv_page_bytes(&m->kv);
}

static char *page_of(const struct kv_cache *kv, uint32_t page)
{
	return (char *)kv->base + page * kv_page_bytes(kv);
}

static int back(struct mirror *m, uint32_t group)
{
	const int r = dev_back(m->dev, page_of(&m->kv, group * m->group_pages), group_bytes(m));

	if (r < 0)
		return r;
	for (uint32_t i = 0; i < m->group_pages; i++)
		m->frames[group * m->group_pages + i] = (struct frame){ .page = NONE };
	m->backed[group] = true;
	m->n_backed += m->group_pages;
	return 0;
}

static uint32_t live_in(const struct mirror *m, uint32_t group)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < m->group_pages; i++)
		n += m->frames[group * m->group_pages + i].page != NONE;
	return n;
}

static int unback(struct mirror *m, uint32_t group)
{
	const int r = dev_unback(m->dev, page_of(&m->kv, group * m->group_pages), group_bytes(m));

	if (r < 0)
		return r;
	m->backed[group] = false;
	m->n_backed -= m->group_pages;
	return 0;
}

/* Gives groups up again that have no page, down to @least frames, until the device has its spare. */
static int leave_spare(struct mirror *m, uint32_t least)
{
	uint64_t given = 0;
	int r = 0;

	for (uint32_t g = m->n_groups; r == 0 && g-- > 0 && given < MIRROR_SPARE_BYTES;) {
		if (!m->backed[g] || live_in(m, g) > 0)
			continue;
		if (m->n_backed < least + m->group_pages)
			break;
		r = unback(m, g);
		given += group_bytes(m);
	}
	return r;
}

/* The lowest that have none, until there are @frames. */
static int grow(struct mirror *m, uint32_t frames)
{
	const uint32_t least = MAX(m->n_backed, m->least_frames);
	int r = 0;

	for (uint32_t g = 0; r == 0 && g < m->n_groups && m->n_backed < frames; g++)
		if (!m->backed[g])
			r = back(m, g);
	if (r == -ENOMEM && m->n_backed > least) {
		const int given = leave_spare(m, least);

		return given < 0 ? given : r;
	}
	return r;
}

/* Frames that so many bytes are for: whole groups. */
static uint32_t frames_for(const struct mirror *m, uint64_t bytes)
{
	return (uint32_t)MIN(bytes / group_bytes(m), m->n_groups) * m->group_pages;
}

static int open_frames(struct mirror *m, struct err *err)
{
	int r;

	m->kv.base = dev_reserve_named(m->dev, "KV cache", m->n_groups * group_bytes(m),
				       group_bytes(m));
	r = m->kv.base ? grow(m, m->least_frames) : -ENOMEM;
	if (r < 0)
		return err_set(
			err, r,
			"no memory on the device for %u pages of the KV cache, %llu bytes; "
			"%llu bytes could be had",
			m->least_frames,
			(unsigned long long)(m->least_frames * (uint64_t)kv_page_bytes(&m->kv)),
			(unsigned long long)(m->n_backed * (uint64_t)kv_page_bytes(&m->kv)));
	return 0;
}

int mirror_new(struct dev *dev, const struct kv_cache *arena, const struct mirror_size *size,
	       struct mirror **ret, struct kv_cache *ret_kv, struct err *err)
{
	_cleanup_(mirror_freep) struct mirror *m = calloc(1, sizeof(*m));
	uint32_t n_frames;
	int r;

	if (!m)
		return -ENOMEM;
	pthread_mutex_init(&m->lock, NULL);
	m->dev = dev;
	m->arena = m->kv = *arena;
	m->kv.page_heads = 0;
	m->kv.base = NULL;
	m->group_pages = size->group_pages;
	m->n_groups = (arena->n_pages - 1) / m->group_pages + 1;
	n_frames = m->kv.n_pages = m->n_groups * m->group_pages;
	m->least_frames = MIN(MAX(size->least_pages, 1), n_frames);
	m->frames = calloc(n_frames, sizeof(*m->frames));
	m->backed = calloc(m->n_groups, sizeof(*m->backed));
	m->frame_of = malloc(arena->n_pages * sizeof(*m->frame_of));
	if (!m->frames || !m->backed || !m->frame_of)
		return -ENOMEM;
	memset(m->frame_of, 0xff, arena->n_pages * sizeof(*m->frame_of));
	r = open_frames(m, err);
	if (r < 0)
		return r;
	*ret_kv = m->kv;
	*ret = steal(m);
	return 0;
}

struct mirror *mirror_free(struct mirror *m)
{
	if (!m)
		return NULL;
	if (m->kv.base && m->n_backed > 0)
		dev_unback(m->dev, m->kv.base, m->n_groups * group_bytes(m));
	pthread_mutex_destroy(&m->lock);
	free(m->frames);
	free(m->backed);
	free(m->frame_of);
	free(m->seqs);
	free(m->pages);
	free(m);
	return NULL;
}

uint32_t mirror_frames(const struct mirror *m)
{
	return m->n_backed;
}

bool mirror_is_short(const struct mirror *m)
{
	return m->n_backed < m->arena.n_pages;
}

/* Between the heads of one layer's K or V and those of the next. */
static size_t pitch_of(const struct kv_cache *kv)
{
	return kv_page_heads(kv) * kv_head_bytes(kv);
}

static int copy(const struct mirror *m, struct stream *st, const struct kv_cache *to,
		uint32_t to_page, const struct kv_cache *from, uint32_t from_page)
{
	return st_copy2d(st, page_of(to, to_page), pitch_of(to), page_of(from, from_page),
			 pitch_of(from), pitch_of(&m->kv), (size_t)2 * m->kv.layers);
}

static int bring_down(struct mirror *m, struct stream *st, uint32_t frame)
{
	const int r = copy(m, st, &m->arena, m->frames[frame].page, &m->kv, frame);

	if (r == 0) {
		m->frames[frame].dirty = false;
		m->n_down++;
	}
	return r;
}

static bool has_frame(const struct mirror *m, uint32_t frame)
{
	return m->backed[frame / m->group_pages];
}

/* The frame is nobody's from here on. */
static void forget(struct mirror *m, uint32_t frame)
{
	struct frame *f = &m->frames[frame];

	if (f->page == NONE)
		return;
	m->frame_of[f->page] = NONE;
	f->page = NONE;
	f->dirty = false;
	m->n_live--;
}

/* What only the device has of it goes down first: it may be summed yet. */
static int give_way(struct mirror *m, struct stream *st, uint32_t frame)
{
	const struct frame *f = &m->frames[frame];
	int r = 0;

	if (f->page != NONE && f->dirty)
		r = bring_down(m, st, frame);
	if (r == 0)
		forget(m, frame);
	return r;
}

/* The one that was used longest ago, not in this turn, of groups that stay. NONE: there is none. */
static uint32_t oldest(const struct mirror *m, const bool *goes)
{
	uint32_t best = NONE;

	for (uint32_t i = 0; i < m->n_groups * m->group_pages; i++) {
		const struct frame *f = &m->frames[i];

		if (has_frame(m, i) && !(goes && goes[i / m->group_pages]) && f->page != NONE &&
		    f->used < m->turn && (best == NONE || f->used < m->frames[best].used))
			best = i;
	}
	return best;
}

static uint32_t lowest_free(const struct mirror *m, const bool *goes)
{
	for (uint32_t i = 0; i < m->n_groups * m->group_pages; i++)
		if (has_frame(m, i) && !(goes && goes[i / m->group_pages]) &&
		    m->frames[i].page == NONE)
			return i;
	return NONE;
}

/* Frames are 32 bits of zeros, whatever their type. */
static int scrub(struct mirror *m, struct stream *st, uint32_t frame)
{
	const struct tensor words = { page_of(&m->kv, frame),
				      DT_F32,
				      { 1, 2 * m->kv.layers,
					(uint32_t)(pitch_of(&m->kv) / sizeof(float)) } };

	return op_clear(st, &words);
}

/* A frame for a page that has none; what is in it is nobody's. */
static int take(struct mirror *m, struct stream *st, uint32_t page, uint32_t *ret)
{
	uint32_t frame = m->n_live < m->n_backed ? lowest_free(m, NULL) : NONE;
	int r = 0;

	if (frame == NONE) {
		frame = oldest(m, NULL);
		if (frame == NONE)
			return -ENOSPC;
		r = give_way(m, st, frame);
		if (r < 0)
			return r;
	}
	m->frames[frame].page = page;
	m->frames[frame].dirty = false;
	m->frames[frame].used = m->turn;
	m->frame_of[page] = frame;
	m->n_live++;
	*ret = frame;
	return r;
}

/* The frame that has what the arena or the device holds of a page. */
static int bring_up(struct mirror *m, struct stream *st, uint32_t page, uint32_t *ret)
{
	uint32_t frame = m->frame_of[page];
	int r;

	if (frame == NONE) {
		r = take(m, st, page, &frame);
		if (r < 0)
			return r;
		r = copy(m, st, &m->kv, frame, &m->arena, page);
		if (r < 0) {
			forget(m, frame);
			return r;
		}
		m->frames[frame].soiled = true;
		m->n_up++;
	}
	m->frames[frame].used = m->turn;
	*ret = frame;
	return 0;
}

/* The frame that will be computed into: what was in the page is nobody's any more. */
static int begin(struct mirror *m, struct stream *st, uint32_t page, uint32_t *ret)
{
	uint32_t frame = m->frame_of[page];
	int r = 0;

	if (frame == NONE) {
		r = take(m, st, page, &frame);
		if (r == 0 && m->frames[frame].soiled)
			r = scrub(m, st, frame);
		if (r < 0)
			return r;
	}
	m->frames[frame].used = m->turn;
	m->frames[frame].dirty = m->frames[frame].soiled = true;
	*ret = frame;
	return 0;
}

static int use(struct mirror *m, struct stream *st, const struct seq *seq, uint32_t *ret_pages)
{
	const uint32_t page_tokens = m->kv.page_tokens;
	const uint32_t n_old = (seq->at + page_tokens - 1) / page_tokens;
	const uint32_t n_all = (seq->at + seq->n_tokens + page_tokens - 1) / page_tokens;
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < seq->n_pages; i++) {
		if (i < n_old)
			r = bring_up(m, st, seq->pages[i], &ret_pages[i]);
		else if (i < n_all)
			r = begin(m, st, seq->pages[i], &ret_pages[i]);
		else
			ret_pages[i] = 0; /* granted ahead: nobody looks there yet */
		if (r == 0 && i < n_all && (i + 1) * page_tokens > seq->at)
			m->frames[ret_pages[i]].dirty = true;
	}
	return r;
}

static int make_room(struct mirror *m, const struct seq *seqs, uint32_t n_seqs)
{
	uint32_t n_pages = 0;

	for (uint32_t i = 0; i < n_seqs; i++)
		n_pages += seqs[i].n_pages;
	if (n_seqs > m->seqs_room) {
		free(m->seqs);
		m->seqs = calloc(n_seqs, sizeof(*m->seqs));
		m->seqs_room = m->seqs ? n_seqs : 0;
	}
	if (n_pages > m->pages_room) {
		free(m->pages);
		m->pages = calloc(n_pages, sizeof(*m->pages));
		m->pages_room = m->pages ? n_pages : 0;
	}
	return (m->seqs || !n_seqs) && (m->pages || !n_pages) ? 0 : -ENOMEM;
}

int mirror_use(struct mirror *m, struct stream *st, const struct seq *seqs, uint32_t n_seqs,
	       const struct seq **ret)
{
	uint32_t *pages;
	int r = make_room(m, seqs, n_seqs);

	pages = m->pages;
	pthread_mutex_lock(&m->lock);
	m->turn++;
	for (uint32_t i = 0; r == 0 && i < n_seqs; i++) {
		r = use(m, st, &seqs[i], pages);
		m->seqs[i] = seqs[i];
		m->seqs[i].pages = pages;
		pages += seqs[i].n_pages;
	}
	pthread_mutex_unlock(&m->lock);
	*ret = m->seqs;
	return r;
}

/* Of a page of the arena, the heads that are this rank's. */
static void clear(const struct mirror *m, uint32_t page)
{
	char *at = page_of(&m->arena, page);

	for (uint32_t i = 0; i < 2 * m->kv.layers; i++)
		memset(at + i * pitch_of(&m->arena), 0, pitch_of(&m->kv));
}

/* A page of the device in whole: positions that nobody has computed yet are nobody's. */
static int move(struct mirror *m, struct stream *st, const struct step_move *one)
{
	uint32_t from, to;
	int r;

	m->turn++;
	if (one->from == STEP_NO_PAGE) {
		r = st_wait(st); /* a copy from there may be under way */
		if (r < 0)
			return r;
		clear(m, one->to);
		if (m->frame_of[one->to] != NONE)
			forget(m, m->frame_of[one->to]);
		return 0;
	}
	if (one->flags & STEP_MOVE_CHECK && m->frame_of[one->from] != NONE)
		forget(m, m->frame_of[one->from]);
	r = bring_up(m, st, one->from, &from);
	to = from;
	if (r == 0 && one->from != one->to) {
		r = begin(m, st, one->to, &to);
		if (r == 0)
			r = copy(m, st, &m->kv, to, &m->kv, from);
	}
	if (r == 0 && !(one->flags & STEP_MOVE_CHECK))
		r = bring_down(m, st, to);
	return r;
}

int mirror_move(struct mirror *m, struct stream *st, const struct step_move *moves, uint32_t n)
{
	int r = 0;

	pthread_mutex_lock(&m->lock);
	for (uint32_t i = 0; r == 0 && i < n; i++)
		r = move(m, st, &moves[i]);
	pthread_mutex_unlock(&m->lock);
	return r < 0 ? r : st_wait(st);
}

/* The backed group with the fewest pages that stays so far; of equals the highest. */
static uint32_t emptiest(const struct mirror *m, const bool *goes)
{
	uint32_t best = NONE, fewest = NONE;

	for (uint32_t g = m->n_groups; g-- > 0 && fewest > 0;) {
		const uint32_t n = m->backed[g] && !goes[g] ? live_in(m, g) : NONE;

		if (n < fewest) {
			fewest = n;
			best = g;
		}
	}
	return best;
}

/* What is in a group that goes: to a free frame of one that stays, or away. */
static int evacuate(struct mirror *m, struct stream *st, uint32_t frame, const bool *goes)
{
	const struct frame f = m->frames[frame];
	const uint32_t to = f.page == NONE ? NONE : lowest_free(m, goes);
	int r;

	if (to == NONE)
		return give_way(m, st, frame);
	r = copy(m, st, &m->kv, to, &m->kv, frame);
	if (r < 0)
		return r;
	m->frames[to] = f;
	m->frames[to].soiled = true;
	m->frame_of[f.page] = to;
	m->frames[frame].page = NONE;
	m->n_moved++;
	return 0;
}

static int shrink(struct mirror *m, struct stream *st, uint32_t frames)
{
	bool *goes = calloc(m->n_groups, sizeof(*goes));
	int r = goes ? 0 : -ENOMEM;

	m->turn++;
	while (r == 0 && m->n_live > frames)
		r = give_way(m, st, oldest(m, NULL));
	for (uint32_t left = m->n_backed; r == 0 && left > frames; left -= m->group_pages)
		goes[emptiest(m, goes)] = true;
	for (uint32_t i = 0; r == 0 && i < m->n_groups * m->group_pages; i++)
		if (goes[i / m->group_pages])
			r = evacuate(m, st, i, goes);
	if (r == 0)
		r = st_wait(st);
	for (uint32_t g = 0; r == 0 && g < m->n_groups; g++)
		if (goes[g])
			r = unback(m, g);
	free(goes);
	return r;
}

int mirror_resize(struct mirror *m, struct stream *st, uint64_t most_bytes)
{
	const uint32_t frames = frames_for(m, most_bytes);
	int r;

	pthread_mutex_lock(&m->lock);
	r = frames < m->n_backed ? shrink(m, st, frames) : grow(m, frames);
	pthread_mutex_unlock(&m->lock);
	return r;
}

/* Of frames [from, to). */
static char draw(const struct mirror *m, uint32_t from, uint32_t to)
{
	uint32_t n_backed = 0, n_live = 0;

	for (uint32_t i = from; i < to; i++) {
		n_backed += has_frame(m, i);
		n_live += has_frame(m, i) && m->frames[i].page != NONE;
	}
	return n_backed == 0 ? ' ' : n_live == 0 ? '.' : n_live < n_backed ? 'o' : '#';
}

static void count(const struct mirror *m, struct mirror_figures *f)
{
	uint32_t run = 0, beside_live = 0;

	for (uint32_t g = 0; g < m->n_groups; g++) {
		const uint32_t n = m->backed[g] ? live_in(m, g) : 0;

		if (n > 0)
			beside_live += m->group_pages - n;
		for (uint32_t i = 0; i < m->group_pages; i++) {
			const struct frame *frame = &m->frames[g * m->group_pages + i];

			run = m->backed[g] && frame->page == NONE ? run + 1 : 0;
			f->largest_free_run = MAX(f->largest_free_run, run);
		}
	}
	if (m->n_backed > m->n_live)
		f->fragmentation = (double)beside_live / (m->n_backed - m->n_live);
}

void mirror_look(struct mirror *m, struct mirror_figures *ret, char *map, uint32_t room)
{
	const uint32_t n = m->n_groups * m->group_pages, n_chars = map ? MIN(room, n) : 0;

	pthread_mutex_lock(&m->lock);
	*ret = (struct mirror_figures){
		.page_bytes = kv_page_bytes(&m->kv),
		.group_bytes = group_bytes(m),
		.bytes = m->n_backed * (uint64_t)kv_page_bytes(&m->kv),
		.most_bytes = m->n_groups * group_bytes(m),
		.frames = m->n_backed,
		.live_frames = m->n_live,
		.n_up = m->n_up,
		.n_down = m->n_down,
		.n_moved = m->n_moved,
	};
	count(m, ret);
	for (uint32_t i = 0; i < n_chars; i++)
		map[i] = draw(m, (uint32_t)((uint64_t)i * n / n_chars),
			      (uint32_t)((uint64_t)(i + 1) * n / n_chars));
	if (map)
		map[n_chars] = '\0';
	pthread_mutex_unlock(&m->lock);
}
