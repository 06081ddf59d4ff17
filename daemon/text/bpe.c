/*
 * Every symbol carries the rank of the pair it begins. Positions of one rank
 * form a list in ascending order, and a heap holds the ranks whose list is not
 * empty; a position that would have to be inserted in a list's middle goes to
 * a second heap. A merge can never make its own pair again, since text only
 * grows, so a (position, rank) names one entry for ever.
 */
#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "daemon/text/bpe.h"

#define SCAN_BYTES_MAX 48 /* up to here scanning beats the queues */

void bpe_deinit(struct bpe *b)
{
	free(b->pairs);
	free(b->ids);
	*b = (struct bpe){ 0 };
}

static inline uint32_t hash_pair(uint32_t left, uint32_t right, uint32_t n_slots)
{
	const uint64_t key = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15u;

	return (key ^ key >> 29) >> 20 & (n_slots - 1);
}

static inline struct bpe_pair *slot_of(const struct bpe *b, uint32_t left, uint32_t right)
{
	uint32_t i = hash_pair(left, right, b->n_slots);

	while (b->pairs[i].left != BPE_NONE &&
	       (b->pairs[i].left != left || b->pairs[i].right != right))
		i = (i + 1) & (b->n_slots - 1);
	return &b->pairs[i];
}

static int grow_pairs(struct bpe *b)
{
	struct bpe bigger = { .n_slots = MAX(1024u, b->n_slots * 2) };

	bigger.pairs = malloc(bigger.n_slots * sizeof(*bigger.pairs));
	if (!bigger.pairs)
		return -ENOMEM;
	memset(bigger.pairs, 0xff, bigger.n_slots * sizeof(*bigger.pairs));
	for (uint32_t i = 0; i < b->n_slots; i++)
		if (b->pairs[i].left != BPE_NONE)
			*slot_of(&bigger, b->pairs[i].left, b->pairs[i].right) = b->pairs[i];
	free(b->pairs);
	b->pairs = bigger.pairs;
	b->n_slots = bigger.n_slots;
	return 0;
}

int bpe_add(struct bpe *b, uint32_t left, uint32_t right, uint32_t id, struct err *err)
{
	struct bpe_pair *slot;

	if ((uint64_t)b->n_merges * 2 >= b->n_slots && grow_pairs(b) < 0)
		return -ENOMEM;
	if (b->n_merges == b->cap_merges) {
		const uint32_t cap = MAX(1024u, b->cap_merges * 2);
		uint32_t *ids = realloc(b->ids, cap * sizeof(*ids));

		if (!ids)
			return -ENOMEM;
		b->ids = ids;
		b->cap_merges = cap;
	}
	slot = slot_of(b, left, right);
	if (slot->left != BPE_NONE)
		return err_set(err, -EBADMSG, "is the same as merges[%u]", slot->rank);
	*slot = (struct bpe_pair){ left, right, b->n_merges, id };
	b->ids[b->n_merges++] = id;
	return 0;
}

static inline uint32_t rank_of(const struct bpe *b, uint32_t left, uint32_t right)
{
	if (!b->n_slots)
		return BPE_NONE;
	return slot_of(b, left, right)->rank; /* BPE_NONE in a free slot too */
}

static long encode_short(const struct bpe *b, struct span piece, uint32_t *out)
{
	uint32_t ranks[SCAN_BYTES_MAX];
	size_t n = piece.len, best;

	for (size_t i = 0; i < n; i++)
		out[i] = b->byte_ids[(uint8_t)piece.data[i]];
	for (size_t i = 0; i + 1 < n; i++)
		ranks[i] = rank_of(b, out[i], out[i + 1]);

	while (n > 1) {
		best = 0;
		for (size_t i = 1; i + 1 < n; i++)
			if (ranks[i] < ranks[best])
				best = i;
		if (ranks[best] == BPE_NONE)
			break;

		out[best] = b->ids[ranks[best]];
		n--;
		for (size_t i = best + 1; i < n; i++) {
			out[i] = out[i + 1];
			ranks[i - 1] = ranks[i];
		}
		if (best > 0)
			ranks[best - 1] = rank_of(b, out[best - 1], out[best]);
		if (best + 1 < n)
			ranks[best] = rank_of(b, out[best], out[best + 1]);
	}
	return n;
}

struct symbol {
	uint32_t id;
	uint32_t prev, next;   /* neighbours in the piece */
	uint32_t rank;	       /* of the pair with next, or BPE_NONE */
	uint32_t above, below; /* neighbours in the list of that rank; LOOSE above: in the heap */
};

#define END (UINT32_MAX - 1)
#define LOOSE (UINT32_MAX - 2)
#define RECENT 64 /* a power of two */

struct list {
	uint32_t first, last; /* positions plus one; 0: empty */
	bool queued;	      /* the rank is in the heap of ranks */
};

struct heap {
	uint64_t *at;
	size_t n, cap;
};

struct bpe_scratch {
	struct symbol *symbols;
	size_t cap;
	struct list *lists;
	struct heap ranks;
	struct heap loose;		/* rank << 32 | position */
	struct bpe_pair recent[RECENT]; /* looked up last: monotonous text asks for the same few */
};

struct bpe_scratch *bpe_scratch_free(struct bpe_scratch *s)
{
	if (s) {
		free(s->symbols);
		free(s->lists);
		free(s->ranks.at);
		free(s->loose.at);
		free(s);
	}
	return NULL;
}

static int heap_push(struct heap *h, uint64_t value)
{
	size_t i = h->n;

	if (h->n == h->cap) {
		const size_t cap = MAX(64u, h->cap * 2);
		uint64_t *at = realloc(h->at, cap * sizeof(*at));

		if (!at)
			return -ENOMEM;
		h->at = at;
		h->cap = cap;
	}
	for (h->n++; i > 0 && h->at[(i - 1) / 2] > value; i = (i - 1) / 2)
		h->at[i] = h->at[(i - 1) / 2];
	h->at[i] = value;
	return 0;
}

static void heap_pop(struct heap *h)
{
	const uint64_t value = h->at[--h->n];
	size_t i = 0, child;

	while ((child = 2 * i + 1) < h->n) {
		if (child + 1 < h->n && h->at[child + 1] < h->at[child])
			child++;
		if (h->at[child] >= value)
			break;
		h->at[i] = h->at[child];
		i = child;
	}
	if (h->n)
		h->at[i] = value;
}

static int enqueue(struct bpe_scratch *s, uint32_t pos, uint32_t rank)
{
	struct symbol *symbol = &s->symbols[pos];
	struct list *list = &s->lists[rank];
	uint32_t at = pos + 1;

	symbol->rank = rank;
	if (!list->first || list->last < at) {
		symbol->above = list->first ? list->last - 1 : END;
		symbol->below = END;
		if (list->first)
			s->symbols[list->last - 1].below = pos;
		else
			list->first = at;
		list->last = at;
	} else if (at < list->first) {
		symbol->above = END;
		symbol->below = list->first - 1;
		s->symbols[list->first - 1].above = pos;
		list->first = at;
	} else {
		symbol->above = LOOSE;
		return heap_push(&s->loose, (uint64_t)rank << 32 | pos);
	}
	if (list->queued)
		return 0;
	list->queued = true;
	return heap_push(&s->ranks, rank);
}

/* A loose entry stays in its heap; its symbol no longer has that rank. */
static void dequeue(struct bpe_scratch *s, uint32_t pos)
{
	struct symbol *symbol = &s->symbols[pos];
	struct list *list;

	if (symbol->rank != BPE_NONE && symbol->above != LOOSE) {
		list = &s->lists[symbol->rank];
		if (symbol->above == END)
			list->first = symbol->below == END ? 0 : symbol->below + 1;
		else
			s->symbols[symbol->above].below = symbol->below;
		if (symbol->below == END)
			list->last = symbol->above == END ? 0 : symbol->above + 1;
		else
			s->symbols[symbol->below].above = symbol->above;
	}
	symbol->rank = BPE_NONE;
}

/* The next pair to merge: lowest rank, leftmost; END if there is none. */
static uint32_t first(struct bpe_scratch *s)
{
	uint64_t loose = UINT64_MAX, listed = UINT64_MAX;

	while (s->loose.n) {
		const struct symbol *symbol = &s->symbols[(uint32_t)s->loose.at[0]];

		if (symbol->rank == s->loose.at[0] >> 32 && symbol->above == LOOSE) {
			loose = s->loose.at[0];
			break;
		}
		heap_pop(&s->loose);
	}
	while (s->ranks.n) {
		struct list *list = &s->lists[s->ranks.at[0]];

		if (list->first) {
			listed = s->ranks.at[0] << 32 | (list->first - 1);
			break;
		}
		list->queued = false;
		heap_pop(&s->ranks);
	}
	return MIN(loose, listed) == UINT64_MAX ? END : (uint32_t)MIN(loose, listed);
}

static inline uint32_t recent_rank(const struct bpe *b, struct bpe_scratch *s, uint32_t left,
				   uint32_t right)
{
	struct bpe_pair *pair = &s->recent[(left * 5 + right) & (RECENT - 1)];

	if (pair->left != left || pair->right != right)
		*pair = (struct bpe_pair){ left, right, rank_of(b, left, right), 0 };
	return pair->rank;
}

static int update(const struct bpe *b, struct bpe_scratch *s, uint32_t pos)
{
	const struct symbol *symbol = &s->symbols[pos];
	uint32_t rank;

	dequeue(s, pos);
	if (symbol->next == END)
		return 0;
	rank = recent_rank(b, s, symbol->id, s->symbols[symbol->next].id);
	return rank == BPE_NONE ? 0 : enqueue(s, pos, rank);
}

static int merge(const struct bpe *b, struct bpe_scratch *s, uint32_t pos)
{
	struct symbol *symbol = &s->symbols[pos];
	const uint32_t right = symbol->next;
	int r;

	symbol->id = b->ids[symbol->rank];
	dequeue(s, right);
	symbol->next = s->symbols[right].next;
	if (symbol->next != END)
		s->symbols[symbol->next].prev = pos;
	r = update(b, s, pos);
	if (r == 0 && symbol->prev != END)
		r = update(b, s, symbol->prev);
	return r;
}

static int prepare(const struct bpe *b, struct span piece, struct bpe_scratch **scratch)
{
	struct bpe_scratch *s = *scratch;
	struct symbol *symbols;

	if (!s) {
		s = calloc(1, sizeof(*s));
		if (!s)
			return -ENOMEM;
		memset(s->recent, 0xff, sizeof(s->recent));
		*scratch = s;
	}
	if (!s->lists)
		s->lists = calloc(b->n_merges + 1, sizeof(*s->lists));
	if (!s->lists)
		return -ENOMEM;
	if (s->cap < piece.len) {
		symbols = malloc(piece.len * sizeof(*symbols));
		if (!symbols)
			return -ENOMEM;
		free(s->symbols);
		s->symbols = symbols;
		s->cap = piece.len;
	}
	return 0;
}

long bpe_encode(const struct bpe *b, struct span piece, struct bpe_scratch **scratch, uint32_t *out)
{
	const uint32_t len = piece.len;
	struct bpe_scratch *s;
	uint32_t pos, n = 0;
	int r;

	if (len <= SCAN_BYTES_MAX)
		return encode_short(b, piece, out);
	r = prepare(b, piece, scratch);
	if (r < 0)
		return r;

	s = *scratch;
	for (uint32_t i = 0; i < len; i++)
		s->symbols[i] = (struct symbol){
			.id = b->byte_ids[(uint8_t)piece.data[i]],
			.prev = i ? i - 1 : END,
			.next = i + 1 < len ? i + 1 : END,
			.rank = BPE_NONE,
		};
	for (uint32_t i = 0; i < len; i++) {
		r = update(b, s, i);
		if (r < 0)
			return r;
	}
	while ((pos = first(s)) != END) {
		r = merge(b, s, pos);
		if (r < 0)
			return r;
	}
	for (pos = 0; pos != END; pos = s->symbols[pos].next)
		out[n++] = s->symbols[pos].id;
	return n;
}
