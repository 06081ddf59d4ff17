/* Which pages the device has, and the copies between it and the arena. */
#include "daemon/exec/mirror.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct mirror {
	struct dev *dev;
	struct kv_cache arena, kv;
	size_t bytes; /* of kv */
	bool *has;    /* [n_pages]: the device's is the newer or the same */
};

int mirror_new(struct dev *dev, const struct kv_cache *arena, struct mirror **ret,
	       struct kv_cache *ret_kv, struct err *err)
{
	_cleanup_(mirror_freep) struct mirror *m = calloc(1, sizeof(*m));
	int r;

	if (!m)
		return -ENOMEM;
	m->dev = dev;
	m->arena = m->kv = *arena;
	m->kv.page_heads = 0;
	m->bytes = arena->n_pages * kv_page_bytes(&m->kv);
	m->has = calloc(arena->n_pages, sizeof(*m->has));
	m->kv.base = dev_reserve(dev, m->bytes);
	r = m->has && m->kv.base ? dev_back(dev, m->kv.base, m->bytes) : -ENOMEM;
	if (r < 0) {
		m->kv.base = NULL;
		return err_set(err, r,
			       "no memory on the device for %u pages of the KV cache, %zu bytes",
			       arena->n_pages, m->bytes);
	}
	*ret_kv = m->kv;
	*ret = steal(m);
	return 0;
}

struct mirror *mirror_free(struct mirror *m)
{
	if (!m)
		return NULL;
	if (m->kv.base)
		dev_unback(m->dev, m->kv.base, m->bytes);
	free(m->has);
	free(m);
	return NULL;
}

static char *page_of(const struct kv_cache *kv, uint32_t page)
{
	return (char *)kv->base + page * kv_page_bytes(kv);
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

/* Of a page of the arena, the heads that are this rank's. */
static void clear(const struct mirror *m, uint32_t page)
{
	char *at = page_of(&m->arena, page);

	for (uint32_t i = 0; i < 2 * m->kv.layers; i++)
		memset(at + i * pitch_of(&m->arena), 0, pitch_of(&m->kv));
}

static int bring_up(struct mirror *m, struct stream *st, uint32_t page)
{
	int r = 0;

	if (!m->has[page])
		r = copy(m, st, &m->kv, page, &m->arena, page);
	if (r == 0)
		m->has[page] = true;
	return r;
}

int mirror_use(struct mirror *m, struct stream *st, const struct seq *seq)
{
	const uint32_t page_tokens = m->kv.page_tokens;
	const uint32_t n_old = (seq->at + page_tokens - 1) / page_tokens;
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < n_old; i++)
		r = bring_up(m, st, seq->pages[i]);
	for (uint32_t i = n_old; i * page_tokens < seq->at + seq->n_tokens; i++)
		m->has[seq->pages[i]] = true;
	return r;
}

/* A page of the device in whole: positions that nobody has computed yet are nobody's. */
static int move(struct mirror *m, struct stream *st, const struct step_move *one)
{
	int r;

	if (one->from == STEP_NO_PAGE) {
		r = st_wait(st); /* a copy from there may be under way */
		if (r < 0)
			return r;
		clear(m, one->to);
		m->has[one->to] = false;
		return bring_up(m, st, one->to);
	}
	if (one->flags & STEP_MOVE_CHECK)
		m->has[one->from] = false;
	r = bring_up(m, st, one->from);
	if (r == 0 && one->from != one->to) {
		r = copy(m, st, &m->kv, one->to, &m->kv, one->from);
		m->has[one->to] = true;
	}
	if (r == 0 && !(one->flags & STEP_MOVE_CHECK))
		r = copy(m, st, &m->arena, one->to, &m->kv, one->to);
	return r;
}

int mirror_move(struct mirror *m, struct stream *st, const struct step_move *moves, uint32_t n)
{
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < n; i++)
		r = move(m, st, &moves[i]);
	return r < 0 ? r : st_wait(st);
}
