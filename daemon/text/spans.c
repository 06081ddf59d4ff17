/* A table of spans by 128-bit key, with a list per user in the order of their use. */
#include "daemon/text/spans.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/random.h>
#define XXH_STATIC_LINKING_ONLY /* for states on the stack */
#include <xxhash.h>

#include "client/wire/ownership.h"
#include "daemon/text/places.h"

struct owner {
	uint32_t uid;
	size_t bytes;
	TAILQ_HEAD(entries, span_entry) used; /* the latest first */
	TAILQ_ENTRY(owner) link;
};

struct span_entry {
	XXH128_hash_t key;
	struct span_entry *next; /* in its bucket */
	struct owner *owner;
	TAILQ_ENTRY(span_entry) link;
	uint32_t n_ids, ids[];
};

struct spans {
	pthread_mutex_t lock; /* guards all below but the seed */
	uint64_t seed;	      /* so that nobody can make two texts meet in one key */
	struct span_entry **buckets;
	size_t n_buckets, n_entries;
	TAILQ_HEAD(owners, owner) owners; /* the one that spoke last first */
	size_t n_owners;
};

int spans_new(struct spans **ret)
{
	_cleanup_(spans_freep) struct spans *s = calloc(1, sizeof(*s));

	if (!s)
		return -ENOMEM;
	pthread_mutex_init(&s->lock, NULL);
	TAILQ_INIT(&s->owners);
	if (getrandom(&s->seed, sizeof(s->seed), 0) != (ssize_t)sizeof(s->seed))
		return -errno;
	s->n_buckets = 1024;
	s->buckets = calloc(s->n_buckets, sizeof(struct span_entry *));
	if (!s->buckets)
		return -ENOMEM;
	*ret = steal(s);
	return 0;
}

static size_t entry_bytes(size_t n_ids)
{
	return sizeof(struct span_entry) + n_ids * sizeof(uint32_t);
}

static struct span_entry **find(struct spans *s, XXH128_hash_t key)
{
	struct span_entry **at = &s->buckets[key.low64 & (s->n_buckets - 1)];

	while (*at && !XXH128_isEqual((*at)->key, key))
		at = &(*at)->next;
	return at;
}

static void drop(struct spans *s, struct span_entry **at)
{
	struct span_entry *e = *at;

	*at = e->next;
	TAILQ_REMOVE(&e->owner->used, e, link);
	e->owner->bytes -= entry_bytes(e->n_ids);
	s->n_entries--;
	free(e);
}

static void drop_owner(struct spans *s, struct owner *o)
{
	struct span_entry *e;

	while ((e = TAILQ_FIRST(&o->used)))
		drop(s, find(s, e->key));
	TAILQ_REMOVE(&s->owners, o, link);
	s->n_owners--;
	free(o);
}

struct spans *spans_free(struct spans *s)
{
	struct owner *o;

	if (!s)
		return NULL;
	while ((o = TAILQ_FIRST(&s->owners)))
		drop_owner(s, o);
	pthread_mutex_destroy(&s->lock);
	free(s->buckets);
	free(s);
	return NULL;
}

static struct owner *find_owner(struct spans *s, uint32_t uid)
{
	struct owner *o;

	TAILQ_FOREACH(o, &s->owners, link) {
		if (o->uid == uid)
			return o;
	}
	return NULL;
}

static struct owner *owner_new(struct spans *s, uint32_t uid)
{
	struct owner *o = calloc(1, sizeof(*o));

	if (!o)
		return NULL;
	o->uid = uid;
	TAILQ_INIT(&o->used);
	s->n_owners++;
	return o;
}

/* The user's, made if need be, and first from now on. */
static struct owner *take_owner(struct spans *s, uint32_t uid)
{
	struct owner *o = find_owner(s, uid);

	if (o)
		TAILQ_REMOVE(&s->owners, o, link);
	else
		o = owner_new(s, uid);
	if (!o)
		return NULL;
	TAILQ_INSERT_HEAD(&s->owners, o, link);
	if (s->n_owners > SPANS_USERS_MAX)
		drop_owner(s, TAILQ_LAST(&s->owners, owners));
	return o;
}

static void grow(struct spans *s)
{
	const size_t n = 2 * s->n_buckets;
	struct span_entry **more = calloc(n, sizeof(*more));

	if (!more)
		return; /* slower, not wrong */
	for (size_t i = 0; i < s->n_buckets; i++) {
		struct span_entry *e, *next;

		for (e = s->buckets[i]; e; e = next) {
			next = e->next;
			e->next = more[e->key.low64 & (n - 1)];
			more[e->key.low64 & (n - 1)] = e;
		}
	}
	free(s->buckets);
	s->buckets = more;
	s->n_buckets = n;
}

static void touch(struct span_entry *e)
{
	TAILQ_REMOVE(&e->owner->used, e, link);
	TAILQ_INSERT_HEAD(&e->owner->used, e, link);
}

/* The same for one that is recalled: last, and only while others need not go for it. */
static int recall_owner(struct spans *s, uint32_t uid, struct owner **ret)
{
	*ret = find_owner(s, uid);
	if (*ret)
		return 0;
	if (s->n_owners == SPANS_USERS_MAX)
		return -ENOSPC;
	*ret = owner_new(s, uid);
	if (!*ret)
		return -ENOMEM;
	TAILQ_INSERT_TAIL(&s->owners, *ret, link);
	return 0;
}

/*
 * Puts it in the place of what has the key. Whoever has too much loses what was
 * not used for longest; what is recalled is last instead, and -ENOSPC then.
 */
static int put(struct spans *s, struct owner *o, bool recalled, XXH128_hash_t key,
	       const uint32_t *ids, size_t n)
{
	struct span_entry **at = find(s, key), *e = *at;

	if (e && recalled)
		return 0; /* what is there is newer */
	if (recalled && o->bytes + entry_bytes(n) > SPANS_USER_BYTES)
		return -ENOSPC;
	if (e && e->n_ids == n && memcmp(e->ids, ids, n * sizeof(*ids)) == 0) {
		touch(e);
		return 0;
	}
	if (e)
		drop(s, at);
	if (entry_bytes(n) > SPANS_USER_BYTES)
		return 0;
	while (o->bytes + entry_bytes(n) > SPANS_USER_BYTES)
		drop(s, find(s, TAILQ_LAST(&o->used, entries)->key));
	e = malloc(entry_bytes(n));
	if (!e)
		return -ENOMEM;
	if (s->n_entries >= s->n_buckets)
		grow(s);
	*e = (struct span_entry){ .key = key, .owner = o, .n_ids = (uint32_t)n };
	memcpy(e->ids, ids, n * sizeof(*ids));
	at = &s->buckets[key.low64 & (s->n_buckets - 1)];
	e->next = *at;
	*at = e;
	if (recalled)
		TAILQ_INSERT_TAIL(&o->used, e, link);
	else
		TAILQ_INSERT_HEAD(&o->used, e, link);
	o->bytes += entry_bytes(n);
	s->n_entries++;
	return 0;
}

/* What a key is made of; zeroed, so that padding does not count. */
struct named {
	XXH128_hash_t text, before; /* before: of all ids in front; 0: anywhere */
	uint64_t label;
	uint32_t uid, kind;
};

static XXH128_hash_t make_key(const struct spans *s, const struct spans_who *who,
			      enum place_kind kind, struct span text, const XXH3_state_t *before)
{
	struct named n;

	memset(&n, 0, sizeof(n));
	n.text = XXH3_128bits_withSeed(text.data, text.len, s->seed);
	if (before)
		n.before = XXH3_128bits_digest(before);
	n.label = XXH3_64bits_withSeed(who->label, strlen(who->label), s->seed);
	n.uid = who->uid;
	n.kind = kind;
	return XXH3_128bits_withSeed(&n, sizeof(n), s->seed);
}

/* Learning: a walk along the ids, span by span. */

struct learning {
	struct spans *s;
	const struct spans_who *who;
	const struct tokenizer *t;
	struct owner *owner;
	struct places at;
	XXH3_state_t before;
	const uint32_t *ids;
	size_t n_prompt;
	bool recalled;
};

static int learn_span(struct learning *l, size_t from, size_t to)
{
	_cleanup_(freep) char *text = NULL;
	size_t len;
	int r;

	if (from == to || l->at.kind == PLACE_NONE)
		return 0;
	r = tokenizer_decode(l->t, l->ids + from, to - from, true, &text, &len);
	if (r < 0 || len == 0)
		return r;
	r = put(l->s, l->owner, l->recalled,
		make_key(l->s, l->who, l->at.kind, (struct span){ text, len }, &l->before),
		l->ids + from, to - from);
	if (r < 0 || from < l->n_prompt)
		return r;
	return put(l->s, l->owner, l->recalled,
		   make_key(l->s, l->who, l->at.kind, (struct span){ text, len }, NULL),
		   l->ids + from, to - from);
}

static int learn(struct learning *l, size_t n_ids)
{
	size_t from = 0;
	int r = 0;

	for (size_t i = 0; i <= n_ids && r == 0; i++) {
		if (i < n_ids && !tokenizer_is_added(l->t, l->ids[i]))
			continue;
		r = learn_span(l, from, i);
		if (i == n_ids)
			break;
		XXH3_128bits_update(&l->before, l->ids + from, (i + 1 - from) * sizeof(*l->ids));
		places_pass(&l->at, l->ids[i]);
		from = i + 1;
	}
	return r;
}

static int learn_turn(struct learning *l, size_t n_ids)
{
	struct spans *s = l->s;
	int r = -ENOMEM;

	places_begin(&l->at, l->t);
	XXH3_128bits_reset(&l->before);
	pthread_mutex_lock(&s->lock);
	if (l->recalled)
		r = recall_owner(s, l->who->uid, &l->owner);
	else if ((l->owner = take_owner(s, l->who->uid)))
		r = 0;
	if (r == 0)
		r = learn(l, n_ids);
	pthread_mutex_unlock(&s->lock);
	return r;
}

int spans_learn(struct spans *s, const struct spans_who *who, const struct tokenizer *t,
		const uint32_t *ids, size_t n_prompt, size_t n_ids)
{
	struct learning l = { .s = s, .who = who, .t = t, .ids = ids, .n_prompt = n_prompt };

	return learn_turn(&l, n_ids);
}

int spans_recall(struct spans *s, const struct spans_who *who, const struct tokenizer *t,
		 const uint32_t *ids, size_t n_prompt, size_t n_ids)
{
	struct learning l = {
		.s = s, .who = who, .t = t, .ids = ids, .n_prompt = n_prompt, .recalled = true
	};

	return learn_turn(&l, n_ids);
}

/* Encoding: the same walk along the pieces of a rendering. */

struct encoding {
	struct spans *s;
	const struct spans_who *who;
	const struct tokenizer *t;
	struct places at;
	XXH3_state_t before;
	struct ids *ids;
};

/* Appends the ids under @key if they are exactly @text. 1, 0 or -ENOMEM. */
static int use(struct encoding *e, XXH128_hash_t key, struct span text)
{
	_cleanup_(freep) char *back = NULL;
	const size_t n = e->ids->n;
	struct span_entry *entry;
	size_t len;
	int r = 0;

	pthread_mutex_lock(&e->s->lock);
	entry = *find(e->s, key);
	if (entry) {
		touch(entry);
		r = ids_append(e->ids, entry->ids, entry->n_ids);
	}
	pthread_mutex_unlock(&e->s->lock);
	if (!entry || r < 0)
		return r;
	r = tokenizer_decode(e->t, e->ids->at + n, e->ids->n - n, true, &back, &len);
	if (r == 0 && len == text.len && memcmp(back, text.data, len) == 0)
		return 1;
	e->ids->n = n; /* of another tokenizer */
	return r;
}

static int encode_text(struct encoding *e, struct span text)
{
	const size_t n = e->ids->n;
	int r = 0;

	if (text.len == 0)
		return 0;
	if (e->at.kind != PLACE_NONE) {
		r = use(e, make_key(e->s, e->who, e->at.kind, text, &e->before), text);
		if (r == 0)
			r = use(e, make_key(e->s, e->who, e->at.kind, text, NULL), text);
	}
	if (r == 0)
		r = tokenizer_encode(e->t, text, TOKENIZER_ADDED_NONE, e->ids);
	if (r >= 0)
		XXH3_128bits_update(&e->before, e->ids->at + n,
				    (e->ids->n - n) * sizeof(*e->ids->at));
	return MIN(r, 0);
}

static int encode_marker(struct encoding *e, uint32_t id)
{
	XXH3_128bits_update(&e->before, &id, sizeof(id));
	places_pass(&e->at, id);
	return ids_append(e->ids, &id, 1);
}

int spans_encode(struct spans *s, const struct spans_who *who, const struct chat_rendering *r,
		 const struct tokenizer *t, struct ids *ids)
{
	struct encoding e = { .s = s, .who = who, .t = t, .ids = ids };
	size_t from = 0; /* of the text that was not encoded yet */

	places_begin(&e.at, t);
	XXH3_128bits_reset(&e.before);
	if (ids->n > 0)
		XXH3_128bits_update(&e.before, ids->at, ids->n * sizeof(*ids->at));
	for (size_t i = 0; i < r->n_pieces; i++) {
		const struct chat_piece *p = &r->pieces[i];
		const uint32_t id = chat_marker_id(r, p, t);
		int x;

		if (id == UINT32_MAX)
			continue;
		x = encode_text(&e, (struct span){ r->text + from, p->begin - from });
		if (x == 0)
			x = encode_marker(&e, id);
		if (x < 0)
			return x;
		from = p->begin + p->len;
	}
	return encode_text(&e, (struct span){ r->text + from, r->len - from });
}

size_t spans_user_bytes(struct spans *s, uint32_t uid)
{
	const struct owner *o;
	size_t bytes;

	pthread_mutex_lock(&s->lock);
	o = find_owner(s, uid);
	bytes = o ? o->bytes : 0;
	pthread_mutex_unlock(&s->lock);
	return bytes;
}
