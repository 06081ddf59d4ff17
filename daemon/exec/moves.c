/*
 * A page is strips, one for each layer, K or V, and head, each of positions one
 * after the other. Threads share the strips of all moves for copying, so that
 * each strip sees the moves in their order, and then the moves for summing.
 */
#include "daemon/exec/moves.h"

#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

struct run {
	const struct kv_cache *kv;
	const struct step_move *moves;
	uint32_t n, n_strips;
	size_t position_bytes; /* of one position in one strip */
	size_t strip_bytes;    /* of all of a page's positions */
	struct step_moved *ret;
};

static char *page_at(const struct run *r, uint32_t page)
{
	return (char *)r->kv->base + page * kv_page_bytes(r->kv);
}

static void copy(void *userdata, uint32_t thread, uint32_t n_threads)
{
	const struct run *r = userdata;

	for (uint32_t i = 0; i < r->n; i++) {
		const struct step_move *m = &r->moves[i];
		char *to = page_at(r, m->to);

		if (m->from == m->to)
			continue;
		for (uint32_t s = thread; s < r->n_strips; s += n_threads) {
			if (m->from == STEP_NO_PAGE)
				memset(to + s * r->strip_bytes, 0, r->strip_bytes);
			else
				memcpy(to + s * r->strip_bytes,
				       page_at(r, m->from) + s * r->strip_bytes,
				       m->n_tokens * r->position_bytes);
		}
	}
}

static void sum(void *userdata, uint32_t thread, uint32_t n_threads)
{
	const struct run *r = userdata;

	for (uint32_t i = thread; i < r->n; i += n_threads) {
		const struct step_move *m = &r->moves[i];
		XXH3_state_t state;
		XXH128_hash_t hash;

		r->ret[i] = (struct step_moved){ 0 };
		if (m->from == STEP_NO_PAGE)
			continue;
		XXH3_INITSTATE(&state);
		XXH3_128bits_reset(&state);
		for (uint32_t s = 0; s < r->n_strips; s++)
			XXH3_128bits_update(&state, page_at(r, m->to) + s * r->strip_bytes,
					    m->n_tokens * r->position_bytes);
		hash = XXH3_128bits_digest(&state);
		r->ret[i] = (struct step_moved){ { hash.low64, hash.high64 } };
	}
}

static struct run run_of(const struct kv_cache *kv, const struct step_move *moves, uint32_t n,
			 struct step_moved *ret)
{
	const size_t position_bytes = (size_t)kv->head_dim * dtype_bytes(kv->type);

	return (struct run){
		.kv = kv,
		.moves = moves,
		.n = n,
		.n_strips = kv->layers * 2 * kv->kv_heads,
		.position_bytes = position_bytes,
		.strip_bytes = position_bytes * kv->page_tokens,
		.ret = ret,
	};
}

void moves_run(struct dev *dev, const struct kv_cache *kv, const struct step_move *moves,
	       uint32_t n, struct step_moved *ret)
{
	struct run r = run_of(kv, moves, n, ret);

	dev_run(dev, copy, &r);
	dev_run(dev, sum, &r);
}

void moves_sum(struct dev *dev, const struct kv_cache *kv, const struct step_move *moves,
	       uint32_t n, struct step_moved *ret)
{
	struct run r = run_of(kv, moves, n, ret);

	dev_run(dev, sum, &r);
}
