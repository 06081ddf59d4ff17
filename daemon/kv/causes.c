/* The ring's layout, and beside it, in memory that dies, which of its entries are behind which page. */
#include "daemon/kv/causes.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "client/wire/ownership.h"
#include "client/wire/sealed.h"

#define NONE UINT16_MAX

struct entry {
	_Atomic uint32_t cause; /* 0: there is none; set last, cleared first */
	uint32_t n_tokens;
	struct kv_hash parent, hash;
	uint16_t marks[CAUSES_MARKS]; /* of its first tokens: see mark() */
	uint32_t n_marks, pad;
	uint64_t check; /* of the others */
};
_Static_assert(sizeof(struct entry) == 184, "the layout outlives its writer");
_Static_assert(offsetof(struct entry, n_tokens) == 4, "the layout outlives its writer");

struct head {
	uint64_t magic;
	uint32_t version, n_entries, entry_bytes;
	uint32_t next;			   /* to be written */
	uint64_t models[CAUSES_MODELS][2]; /* zeros: none */
	uint64_t pad[7];
};

struct ring {
	struct head head;
	struct entry entries[CAUSES_N];
};
_Static_assert(offsetof(struct ring, entries) == 128, "the layout outlives its writer");
_Static_assert(CAUSES_N < NONE, "an entry's number fits");

struct causes {
	int memfd;
	struct ring *ring;
	uint16_t heads[CAUSES_N]; /* by the parent's hash */
	uint16_t behind[CAUSES_N];
};

static uint16_t *head_of(const struct causes *c, struct kv_hash parent)
{
	return (uint16_t *)&c->heads[parent.lo % CAUSES_N];
}

static uint64_t check_of(const struct entry *e, uint32_t cause)
{
	const size_t from = offsetof(struct entry, n_tokens), to = offsetof(struct entry, check);

	return XXH3_64bits_withSeed((const char *)e + from, to - from, cause);
}

static uint32_t cause_of(const struct entry *e)
{
	return atomic_load_explicit(&((struct entry *)e)->cause, memory_order_acquire);
}

static void set_cause(struct entry *e, uint32_t cause)
{
	atomic_store_explicit(&e->cause, cause, memory_order_release);
}

static void link_entry(struct causes *c, uint16_t i)
{
	uint16_t *head = head_of(c, c->ring->entries[i].parent);

	c->behind[i] = *head;
	*head = i;
}

/* @at: where its number stands. */
static void forget(struct causes *c, uint16_t *at)
{
	set_cause(&c->ring->entries[*at], 0);
	*at = c->behind[*at];
}

static int map(int memfd, struct causes **ret, struct err *err)
{
	struct causes *c = calloc(1, sizeof(*c));

	if (!c)
		return err_set(err, -ENOMEM, "out of memory");
	c->ring = mmap(NULL, sizeof(*c->ring), PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	if (c->ring == MAP_FAILED) {
		const int r = -errno;

		free(c);
		return err_wrap(err, r, "cannot map the causes of lost KV");
	}
	c->memfd = memfd;
	for (uint32_t i = 0; i < CAUSES_N; i++)
		c->heads[i] = NONE;
	*ret = c;
	return 0;
}

int causes_new(struct causes **ret, struct err *err)
{
	_cleanup_(closep) int memfd = sealed_memfd("steamd-causes", sizeof(struct ring));
	struct head *head;
	int r;

	if (memfd < 0)
		return err_wrap(err, memfd, "cannot make a memfd of %zu bytes",
				sizeof(struct ring));
	r = map(memfd, ret, err);
	if (r < 0)
		return r;
	memfd = -1;
	head = &(*ret)->ring->head;
	head->version = CAUSES_VERSION;
	head->n_entries = CAUSES_N;
	head->entry_bytes = sizeof(struct entry);
	atomic_thread_fence(memory_order_release);
	head->magic = CAUSES_MAGIC;
	return 0;
}

int causes_adopt(int memfd, struct causes **ret, struct err *err)
{
	struct causes *c;
	struct head head;
	struct stat st;
	ssize_t n;
	int r;

	n = sealed_head(memfd, &head, sizeof(head), &st);
	if (n < 0)
		return err_wrap(err, (int)n, "cannot read the causes of lost KV");
	if (n != (ssize_t)sizeof(head))
		return err_set(err, -EBADMSG, "the causes of lost KV end in their head");
	if (head.magic != CAUSES_MAGIC || head.version != CAUSES_VERSION)
		return err_set(err, -EBADMSG,
			       "the causes of lost KV are not of this version of steamd");
	if (head.n_entries != CAUSES_N || head.entry_bytes != sizeof(struct entry) ||
	    (uint64_t)st.st_size != sizeof(struct ring))
		return err_set(err, -EBADMSG,
			       "the causes of lost KV are %u of %u bytes in %lld; %u, %zu and %zu "
			       "are wanted",
			       head.n_entries, head.entry_bytes, (long long)st.st_size, CAUSES_N,
			       sizeof(struct entry), sizeof(struct ring));
	if (!sealed_is(memfd))
		return err_set(err, -EBADMSG,
			       "the causes of lost KV are not sealed against resizing");
	r = map(memfd, &c, err);
	if (r < 0)
		return r;
	c->ring->head.next %= CAUSES_N;
	for (uint16_t i = 0; i < CAUSES_N; i++) {
		struct entry *e = &c->ring->entries[i];
		const uint32_t cause = cause_of(e);

		if (cause && e->n_tokens > 0 && e->n_marks <= CAUSES_MARKS &&
		    check_of(e, cause) == e->check)
			link_entry(c, i);
		else
			set_cause(e, 0);
	}
	*ret = c;
	return 0;
}

struct causes *causes_free(struct causes *c)
{
	if (!c)
		return NULL;
	munmap(c->ring, sizeof(*c->ring));
	closep(&c->memfd);
	free(c);
	return NULL;
}

int causes_fd(const struct causes *c)
{
	return c ? c->memfd : -1;
}

/*
 * What tells that a page begins with so many tokens, but for one text in
 * 65536: bits of a hash that each token is mixed into. @at: of the tokens
 * before; what is before the first says whose they are, and behind which page.
 */
static uint16_t mark(uint64_t *at, uint64_t token)
{
	*at = (*at ^ token) * 0x9e3779b97f4a7c15ull;
	*at ^= *at >> 29;
	return (uint16_t)(*at >> 32);
}

static uint64_t before_first(struct kv_hash root, struct kv_hash parent)
{
	uint64_t at = root.lo;

	mark(&at, root.hi);
	mark(&at, parent.lo);
	mark(&at, parent.hi);
	return at;
}

/* Forgets the entry number @i, if it says anything. */
static void forget_number(struct causes *c, uint32_t i)
{
	const struct entry *e = &c->ring->entries[i];
	uint16_t *at = head_of(c, e->parent);

	if (!cause_of(e))
		return;
	while (*at != i)
		at = &c->behind[*at];
	forget(c, at);
}

void causes_note(struct causes *c, struct kv_hash root, struct kv_hash parent, struct kv_hash hash,
		 const uint32_t *tokens, uint32_t n_tokens, uint32_t cause)
{
	uint64_t at_mark = before_first(root, parent);
	struct entry *e;
	uint32_t i;

	if (!c)
		return;
	assert(cause && n_tokens > 0);
	for (uint16_t *at = head_of(c, parent); *at != NONE; at = &c->behind[*at]) {
		if (!chain_equal(c->ring->entries[*at].hash, hash))
			continue;
		forget(c, at);
		break;
	}
	i = c->ring->head.next;
	forget_number(c, i);
	e = &c->ring->entries[i];
	e->n_tokens = n_tokens;
	e->parent = parent;
	e->hash = hash;
	e->n_marks = tokens ? MIN(n_tokens, CAUSES_MARKS) : 0;
	for (uint32_t k = 0; k < CAUSES_MARKS; k++)
		e->marks[k] = k < e->n_marks ? mark(&at_mark, tokens[k]) : 0;
	e->check = check_of(e, cause);
	set_cause(e, cause);
	link_entry(c, (uint16_t)i);
	c->ring->head.next = (i + 1) % CAUSES_N;
}

/* A text behind a page, and the hash of its last beginning that was asked for: most pages are of one length. */
struct text {
	struct kv_hash root, parent, hash;
	const uint32_t *ids;
	uint32_t n, n_hashed;
};

static bool is_beginning(struct text *t, const struct entry *e)
{
	if (!chain_equal(e->parent, t->parent) || e->n_tokens > t->n)
		return false;
	if (t->n_hashed != e->n_tokens) {
		t->hash = chain_next(t->root, t->parent, t->ids, e->n_tokens);
		t->n_hashed = e->n_tokens;
	}
	return chain_equal(e->hash, t->hash);
}

/* Whether the text ends in it. */
static bool is_beginning_of(const struct text *t, const struct entry *e)
{
	uint64_t at = before_first(t->root, t->parent);

	if (!chain_equal(e->parent, t->parent) || t->n == 0 || t->n > e->n_marks)
		return false;
	for (uint32_t k = 0; k < t->n; k++) {
		if (e->marks[k] != mark(&at, t->ids[k]))
			return false;
	}
	return true;
}

void causes_drop(struct causes *c, struct kv_hash root, struct kv_hash parent, const uint32_t *ids,
		 uint32_t n)
{
	struct text t = { .root = root, .parent = parent, .ids = ids, .n = n };
	uint16_t *at;

	if (!c)
		return;
	at = head_of(c, parent);
	while (*at != NONE) {
		if (is_beginning(&t, &c->ring->entries[*at]))
			forget(c, at);
		else
			at = &c->behind[*at];
	}
}

uint32_t causes_find(const struct causes *c, struct kv_hash root, struct kv_hash parent,
		     const uint32_t *ids, uint32_t n, uint32_t least, uint32_t *ret_cause)
{
	struct text t = { .root = root, .parent = parent, .ids = ids, .n = n };
	uint32_t most = least;

	if (!c)
		return 0;
	for (uint16_t i = *head_of(c, parent); i != NONE; i = c->behind[i]) {
		const struct entry *e = &c->ring->entries[i];

		if (MIN(e->n_tokens, n) <= most || !(is_beginning(&t, e) || is_beginning_of(&t, e)))
			continue;
		most = MIN(e->n_tokens, n);
		*ret_cause = cause_of(e);
	}
	return most > least ? most : 0;
}

void causes_note_model(struct causes *c, const uint64_t fingerprint[2])
{
	uint64_t(*models)[2] = c ? c->ring->head.models : NULL;
	uint32_t i = 0;

	if (!c || (fingerprint[0] | fingerprint[1]) == 0)
		return;
	while (i < CAUSES_MODELS - 1 && memcmp(models[i], fingerprint, sizeof(models[i])) != 0)
		i++;
	memmove(models + 1, models, i * sizeof(models[0]));
	memcpy(models[0], fingerprint, sizeof(models[0]));
}

bool causes_model(const struct causes *c, uint32_t i, uint64_t ret[2])
{
	if (!c || i >= CAUSES_MODELS ||
	    (c->ring->head.models[i][0] | c->ring->head.models[i][1]) == 0)
		return false;
	memcpy(ret, c->ring->head.models[i], sizeof(c->ring->head.models[i]));
	return true;
}
