/*
 * Text to ids: added tokens are cut out, the rest is split into pieces, each
 * piece is looked up or merged. Words repeat, so a call remembers the ids of
 * the pieces it has merged.
 */
#include <errno.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "client/wire/utf8.h"
#include "daemon/text/split.h"
#include "daemon/text/tokenizer-parts.h"

#define CACHE_PIECE_MAX 30
#define CACHE_IDS_MAX 8
#define CACHE_ENTRIES_MAX 8192u
#define CACHE_ENTRIES_MIN 64u

struct cached {
	uint8_t len; /* 0: free */
	uint8_t n;
	char piece[CACHE_PIECE_MAX];
	uint32_t ids[CACHE_IDS_MAX];
};
_Static_assert(sizeof(struct cached) == 64, "an entry is a cache line");

struct encoder {
	const struct tokenizer *t;
	enum tokenizer_added added;
	struct ids *ids;
	struct cached *cache;
	uint32_t n_cache; /* a power of two */
	struct bpe_scratch *scratch;
};

struct tokenizer *tokenizer_free(struct tokenizer *t)
{
	if (!t)
		return NULL;
	vocab_deinit(&t->vocab);
	bpe_deinit(&t->bpe);
	for (uint32_t i = 0; i < t->n_added; i++)
		free(t->added[i].content);
	free(t->added);
	added_trie_deinit(&t->raw);
	added_trie_deinit(&t->normalized);
	ids_deinit(&t->before);
	ids_deinit(&t->after);
	free(t);
	return NULL;
}

uint32_t tokenizer_size(const struct tokenizer *t)
{
	return t->vocab.size;
}

struct span tokenizer_bytes(const struct tokenizer *t, uint32_t id)
{
	return vocab_bytes(&t->vocab, id);
}

bool tokenizer_is_added(const struct tokenizer *t, uint32_t id)
{
	return id < t->vocab.size && (t->vocab.tokens[id].flags & VOCAB_ADDED);
}

bool tokenizer_is_special(const struct tokenizer *t, uint32_t id)
{
	return id < t->vocab.size && (t->vocab.tokens[id].flags & VOCAB_SPECIAL);
}

uint32_t tokenizer_added_id(const struct tokenizer *t, const char *content)
{
	for (uint32_t i = 0; i < t->n_added; i++)
		if (span_is((struct span){ t->added[i].content, t->added[i].len }, content))
			return t->added[i].id;
	return UINT32_MAX;
}

void ids_deinit(struct ids *ids)
{
	free(ids->at);
	*ids = (struct ids){ 0 };
}

static int reserve(struct ids *ids, size_t n)
{
	const size_t wanted = MAX(ids->n + n, ids->cap + ids->cap / 2);
	uint32_t *at;

	if (ids->at && ids->n + n <= ids->cap)
		return 0;
	at = reallocarray(ids->at, MAX(wanted, (size_t)16), sizeof(*at));
	if (!at)
		return -ENOMEM;
	ids->at = at;
	ids->cap = MAX(wanted, (size_t)16);
	return 0;
}

int ids_append(struct ids *ids, const uint32_t *at, size_t n)
{
	if (reserve(ids, n) < 0)
		return -ENOMEM;
	if (n)
		memcpy(ids->at + ids->n, at, n * sizeof(*at));
	ids->n += n;
	return 0;
}

/* Where @piece is remembered, or would be. */
static struct cached *cached_at(const struct encoder *e, struct span piece)
{
	return &e->cache[XXH3_64bits(piece.data, piece.len) & (e->n_cache - 1)];
}

/* Room for a piece's ids has been made: at most one a byte. */
static int encode_piece(struct encoder *e, struct span piece)
{
	const struct tokenizer *t = e->t;
	uint32_t *out = e->ids->at + e->ids->n;
	struct cached *cached = NULL;
	uint32_t id;
	long n;

	if (piece.len == 1) {
		out[0] = t->bpe.byte_ids[(uint8_t)piece.data[0]];
		e->ids->n++;
		return 0;
	}
	if (piece.len <= CACHE_PIECE_MAX) {
		cached = cached_at(e, piece);
		if (cached->len == piece.len && memcmp(cached->piece, piece.data, piece.len) == 0) {
			memcpy(out, cached->ids, cached->n * sizeof(*out));
			e->ids->n += cached->n;
			return 0;
		}
	}
	id = t->ignore_merges && piece.len <= t->vocab.longest ? vocab_find(&t->vocab, piece, 0)
							       : VOCAB_NONE;
	if (id != VOCAB_NONE) {
		out[0] = id;
		n = 1;
	} else {
		n = bpe_encode(&t->bpe, piece, &e->scratch, out);
		if (n < 0)
			return n;
	}
	e->ids->n += n;
	if (cached && n <= CACHE_IDS_MAX) {
		cached->len = piece.len;
		cached->n = n;
		memcpy(cached->piece, piece.data, piece.len);
		memcpy(cached->ids, out, n * sizeof(*out));
	}
	return 0;
}

static int encode_text(struct encoder *e, struct span text)
{
	int r;

	for (size_t at = 0, end; at < text.len; at = end) {
		end = split_next(e->t->classes, text.data, text.len, at);
		r = reserve(e->ids, end - at);
		if (r == 0)
			r = encode_piece(e, (struct span){ text.data + at, end - at });
		if (r < 0)
			return r;
	}
	return 0;
}

static struct added_walk walk(const struct encoder *e, const struct added_trie *trie,
			      struct span text)
{
	return (struct added_walk){
		.trie = trie,
		.tokens = e->t->added,
		.classes = e->t->classes,
		.skip_special = e->added == TOKENIZER_ADDED_PLAIN,
		.text = text,
		.pending = ADDED_NONE,
	};
}

/* Cuts out the tokens of @trie; the text between is cut by @next, or encoded if that is NULL. */
static int encode_added(struct encoder *e, const struct added_trie *trie,
			const struct added_trie *next, struct span text)
{
	struct added_walk w = walk(e, trie, text);
	struct added_part part;
	int r = 0;

	while (r == 0 && added_walk_next(&w, &part)) {
		const struct span between = { text.data + part.begin, part.len };

		if (part.token != ADDED_NONE)
			r = ids_append(e->ids, &e->t->added[part.token].id, 1);
		else if (next)
			r = encode_added(e, next, NULL, between);
		else
			r = encode_text(e, between);
	}
	return r;
}

int tokenizer_encode(const struct tokenizer *t, struct span text, enum tokenizer_added added,
		     struct ids *ids)
{
	_cleanup_(freep) char *repaired = NULL;
	struct encoder e = { .t = t, .added = added, .ids = ids, .n_cache = CACHE_ENTRIES_MIN };
	const size_t n_before = ids->n;
	int r;

	if (text.len > TOKENIZER_TEXT_MAX)
		return -E2BIG;
	if (text.len && utf8_valid_bytes(text) != text.len) {
		r = utf8_repair(text, &repaired, &text.len);
		if (r < 0)
			return r;
		text.data = repaired;
	}
	while (e.n_cache < CACHE_ENTRIES_MAX && e.n_cache < text.len / 16)
		e.n_cache *= 2;
	e.cache = calloc(e.n_cache, sizeof(*e.cache));
	if (!e.cache)
		return -ENOMEM;

	r = added == TOKENIZER_ADDED_NONE ? encode_text(&e, text)
					  : encode_added(&e, &t->raw, &t->normalized, text);
	if (r < 0)
		ids->n = n_before;
	bpe_scratch_free(e.scratch);
	free(e.cache);
	return r;
}

int tokenizer_encode_processed(const struct tokenizer *t, struct span text, struct ids *ids)
{
	const size_t n_before = ids->n;
	int r;

	r = ids_append(ids, t->before.at, t->before.n);
	if (r == 0)
		r = tokenizer_encode(t, text, TOKENIZER_ADDED_ALL, ids);
	if (r == 0)
		r = ids_append(ids, t->after.at, t->after.n);
	if (r < 0)
		ids->n = n_before;
	return r;
}
