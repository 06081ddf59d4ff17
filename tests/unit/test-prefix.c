/* What the index finds along random texts is what a list of all texts has. */
#include "daemon/kv/prefix.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "client/wire/ownership.h"

#define PAGE 4
#define TEXT_MAX (6 * PAGE)
#define NODES_MAX 512

/* The model: one entry a node, with all of its text; looked through from first to last. */
struct known {
	struct prefix_node *node;
	uint32_t space, n, ids[TEXT_MAX]; /* of the whole chain */
	kv_page page;
};

struct model {
	struct prefix *p;
	struct kv_hash roots[3];
	struct prefix_node *spaces[3];
	struct known known[NODES_MAX];
	uint32_t n;
};

static const uint64_t fingerprint[2] = { 1, 2 };

static struct kv_hash root_of(uint32_t uid, const char *label)
{
	return chain_root(fingerprint, 2, uid, label);
}

static struct prefix *new_prefix(void)
{
	struct prefix *p = NULL;

	assert_int_equal(prefix_new(PAGE, 64, &p), 0);
	return p;
}

/* In the namespace of the parent. */
static struct prefix_node *add_below(struct prefix *p, struct prefix_node *parent,
				     struct kv_hash hash, const uint32_t *ids, uint32_t n)
{
	return prefix_add(p, parent, parent->root, parent->uid, hash, ids, n);
}

/* A text of which nothing is shared. */
static void match_own(const struct prefix *p, struct kv_hash root, const uint32_t *ids, uint32_t n,
		      struct prefix_match *ret)
{
	const struct prefix_whose whose = { .root = root };

	prefix_match(p, &whose, ids, n, ret);
}

/* The node of the last page of @ids, every page on the way made and given a page of the arena. */
static struct prefix_node *add_text(struct prefix *p, struct kv_hash root, uint32_t uid,
				    const uint32_t *ids, uint32_t n, kv_page page)
{
	struct prefix_node *node = prefix_space(p, root, uid);

	for (uint32_t at = 0; at < n; at += PAGE) {
		const uint32_t k = n - at < PAGE ? n - at : PAGE;

		node = add_below(p, node, chain_next(root, node->hash, ids + at, k), ids + at, k);
		assert_non_null(node);
		prefix_set_page(p, node, page++);
	}
	return node;
}

static uint32_t common(const uint32_t *a, const uint32_t *b, uint32_t n)
{
	uint32_t i = 0;

	while (i < n && a[i] == b[i])
		i++;
	return i;
}

/* The model's node that is exactly this text, or NULL. */
static struct known *known_of(struct model *m, uint32_t space, const uint32_t *ids, uint32_t n)
{
	for (uint32_t i = 0; i < m->n; i++) {
		struct known *k = &m->known[i];

		if (k->space == space && k->n == n && common(k->ids, ids, n) == n)
			return k;
	}
	return NULL;
}

static void assert_match(struct model *m, uint32_t space, const uint32_t *ids, uint32_t n)
{
	struct prefix_match got;
	struct known *k, *next = NULL, *last = NULL;
	uint32_t n_pages = 0, part = 0;

	while ((n_pages + 1) * PAGE <= n) {
		next = known_of(m, space, ids, (n_pages + 1) * PAGE);
		if (!next || next->page == KV_PAGE_NONE)
			break;
		last = next;
		next = NULL;
		n_pages++;
	}
	for (k = m->known; k < m->known + m->n; k++) {
		const uint32_t before = n_pages * PAGE;
		uint32_t same;

		if (k->space != space || k->page == KV_PAGE_NONE || k->n <= before ||
		    k->n > before + PAGE || common(k->ids, ids, before) < before)
			continue;
		same = common(k->ids + before, ids + before, MIN(k->n, n) - before);
		part = MAX(part, same);
	}
	match_own(m->p, m->roots[space], ids, n, &got);
	assert_int_equal(got.n_pages, n_pages);
	assert_ptr_equal(got.last, last ? last->node : m->spaces[space]);
	assert_int_equal(got.part_tokens, part);
	assert_int_equal(got.part != NULL, part > 0);
	if (part > 0) {
		assert_ptr_equal(got.part->parent, got.last);
		assert_true(got.part->page != KV_PAGE_NONE);
		assert_int_equal(common(got.part->tokens, ids + n_pages * PAGE,
					MIN(got.part->n_tokens, n - n_pages * PAGE)),
				 part);
	}
	assert_ptr_equal(got.gone, next ? next->node : NULL);
}

static void random_text(uint32_t *ids, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		ids[i] = rand() % 10 < 8 ? 0 : 1 + rand() % 2;
}

static void learn(struct model *m, uint32_t space, const uint32_t *ids, uint32_t n)
{
	struct prefix_node *node = m->spaces[space];
	uint32_t at, k;

	for (at = 0; at < n; at += k) {
		struct known *known = known_of(m, space, ids, MIN(at + PAGE, n));

		k = MIN(n - at, PAGE);
		node = add_below(m->p, node, chain_next(m->roots[space], node->hash, ids + at, k),
				 ids + at, k);
		assert_non_null(node);
		if (known) {
			assert_ptr_equal(known->node, node);
			continue;
		}
		assert_int_equal(node->page, KV_PAGE_NONE);
		assert_int_equal(node->gone, PREFIX_EVICTED);
		assert_int_equal(node->depth, at / PAGE + 1);
		assert_int_equal(node->uid, space);
		assert_true(m->n < NODES_MAX);
		known = &m->known[m->n++];
		*known = (struct known){
			.node = node, .space = space, .n = at + k, .page = KV_PAGE_NONE
		};
		memcpy(known->ids, ids, (at + k) * sizeof(*ids));
	}
}

static void flip_page(struct model *m)
{
	struct known *k = &m->known[(uint32_t)rand() % m->n];

	k->page = k->page == KV_PAGE_NONE ? (kv_page)(k - m->known) : KV_PAGE_NONE;
	prefix_set_page(m->p, k->node, k->page);
	assert_int_equal(k->node->gone, k->page == KV_PAGE_NONE ? PREFIX_EVICTED : PREFIX_THERE);
}

static bool is_below(const struct known *k, const struct known *top)
{
	return k->space == top->space && k->n >= top->n &&
	       common(k->ids, top->ids, top->n) == top->n && (k == top || top->n % PAGE == 0);
}

/* Removes a node and all below it, if none has a page. */
static void remove_some(struct model *m)
{
	const struct known top = m->known[(uint32_t)rand() % m->n];
	const struct known *at = known_of(m, top.space, top.ids, top.n);
	uint32_t n = 0;

	for (uint32_t i = 0; i < m->n; i++) {
		if (is_below(&m->known[i], at) && m->known[i].page != KV_PAGE_NONE)
			return;
	}
	prefix_remove(m->p, at->node);
	for (uint32_t i = 0; i < m->n; i++) {
		const bool goes = top.n % PAGE == 0 ? is_below(&m->known[i], &top)
						    : m->known[i].node == top.node;

		if (!goes)
			m->known[n++] = m->known[i];
	}
	m->n = n;
}

static uint32_t paged_children(struct model *m, const struct prefix_node *of)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < m->n; i++)
		n += m->known[i].page != KV_PAGE_NONE && m->known[i].node->parent == of;
	return n;
}

static void assert_books(struct model *m)
{
	const struct prefix_node *node = NULL;
	uint32_t n = 0;

	while ((node = prefix_next(m->p, node))) {
		assert_int_equal(node->n_paged_children, paged_children(m, node));
		assert_ptr_equal(prefix_find(m->p, node->hash), node);
		n++;
	}
	assert_int_equal(n, m->n + 3);
	assert_int_equal(prefix_nodes(m->p), n);
}

static void random_texts_match_as_in_a_list_of_all(void **state)
{
	uint32_t ids[TEXT_MAX];

	(void)state;
	for (uint32_t seed = 0; seed < 40; seed++) {
		struct model *m = calloc(1, sizeof(*m));

		srand(seed);
		m->p = new_prefix();
		for (uint32_t i = 0; i < 3; i++) {
			m->roots[i] = root_of(i, i == 2 ? "app" : "");
			m->spaces[i] = prefix_space(m->p, m->roots[i], i);
		}
		for (uint32_t i = 0; i < 600; i++) {
			const uint32_t n = 1 + (uint32_t)rand() % TEXT_MAX;

			random_text(ids, n);
			if (m->n < NODES_MAX - TEXT_MAX && rand() % 3 == 0)
				learn(m, (uint32_t)rand() % 3, ids, n);
			if (m->n > 0 && rand() % 2)
				flip_page(m);
			if (m->n > 0 && rand() % 8 == 0)
				remove_some(m);
			random_text(ids, n);
			assert_match(m, (uint32_t)rand() % 3, ids, n);
			assert_match(m, (uint32_t)rand() % 3, ids, 0);
		}
		assert_books(m);
		prefix_free(m->p);
		free(m);
	}
}

static void namespaces_are_apart(void **state)
{
	static const uint32_t ids[8] = { 1, 2, 3, 4, 5, 6, 7, 8 };
	const struct kv_hash roots[] = { root_of(1, ""), root_of(2, ""), root_of(1, "app") };
	struct prefix *p = new_prefix();
	struct prefix_match m;

	(void)state;
	add_text(p, roots[0], 1, ids, 8, 0);
	match_own(p, roots[0], ids, 8, &m);
	assert_int_equal(m.n_pages, 2);
	for (int i = 1; i < 3; i++) {
		match_own(p, roots[i], ids, 8, &m);
		assert_null(m.last);
		assert_null(m.part);
		assert_int_equal(m.n_pages, 0);
		assert_non_null(prefix_space(p, roots[i], 2));
		match_own(p, roots[i], ids, 8, &m);
		assert_ptr_equal(m.last, prefix_space(p, roots[i], 2));
		assert_int_equal(m.n_pages, 0);
		assert_null(m.part);
		assert_null(m.gone);
	}
	prefix_free(p);
}

/* As if hashes had collided: the tokens decide. */
static void a_hash_alone_is_no_match(void **state)
{
	static const uint32_t ids[8] = { 1, 2, 3, 4, 5, 6, 7, 8 }, others[4] = { 9, 9, 9, 9 };
	const struct kv_hash root = root_of(1, "");
	struct prefix *p = new_prefix();
	struct prefix_node *space = prefix_space(p, root, 1), *first, *wrong;
	const struct kv_hash hash = chain_next(root, root, ids, 4);
	struct prefix_match m;

	(void)state;
	wrong = add_below(p, space, hash, others, 4); /* the hash of another text */
	prefix_set_page(p, wrong, 0);
	match_own(p, root, ids, 8, &m);
	assert_int_equal(m.n_pages, 0);
	assert_null(m.gone);
	assert_null(add_below(p, space, hash, ids, 4));
	assert_null(add_below(p, space, hash, others, 3));
	assert_ptr_equal(add_below(p, space, hash, others, 4), wrong);
	prefix_set_page(p, wrong, KV_PAGE_NONE);
	match_own(p, root, ids, 8, &m);
	assert_null(m.gone); /* nor an explanation */
	prefix_remove(p, wrong);

	/* the right tokens, behind the wrong page */
	first = add_text(p, root, 1, ids, 4, 0);
	wrong = add_below(p, space, chain_next(root, first->hash, ids + 4, 4), ids + 4, 4);
	prefix_set_page(p, wrong, 1);
	match_own(p, root, ids, 8, &m);
	assert_int_equal(m.n_pages, 1);
	assert_ptr_equal(m.last, first);
	assert_null(add_below(p, first, wrong->hash, ids + 4, 4));
	prefix_free(p);
}

static void a_page_is_not_a_namespace(void **state)
{
	static const uint32_t ids[8] = { 1, 2, 3, 4, 5, 6, 7, 8 };
	const struct kv_hash root = root_of(1, "");
	struct prefix *p = new_prefix();
	struct prefix_node *node = add_text(p, root, 1, ids, 4, 0);
	struct prefix_match m;

	(void)state;
	assert_null(prefix_space(p, node->hash, 1));
	match_own(p, node->hash, ids, 8, &m);
	assert_null(m.last);
	prefix_free(p);
}

static void the_child_with_most_in_common_is_the_part(void **state)
{
	static const uint32_t a[4] = { 1, 2, 3, 4 }, b[4] = { 1, 2, 3, 9 }, c[2] = { 1, 2 },
			      text[4] = { 1, 2, 3, 8 }, other[4] = { 2, 2, 3, 4 };
	const struct kv_hash root = root_of(1, "");
	struct prefix *p = new_prefix();
	struct prefix_node *short_one, *long_one;
	struct prefix_match m;

	(void)state;
	short_one = add_text(p, root, 1, c, 2, 0);
	match_own(p, root, text, 4, &m);
	assert_ptr_equal(m.part, short_one);
	assert_int_equal(m.part_tokens, 2);
	long_one = add_text(p, root, 1, a, 4, 1);
	match_own(p, root, text, 4, &m);
	assert_ptr_equal(m.part, long_one);
	assert_int_equal(m.part_tokens, 3);
	add_text(p, root, 1, b, 4, 2);
	match_own(p, root, text, 1, &m); /* no more than follows */
	assert_int_equal(m.part_tokens, 1);
	match_own(p, root, a, 3, &m); /* a whole page's beginning */
	assert_int_equal(m.part_tokens, 3);
	assert_int_equal(m.n_pages, 0);
	match_own(p, root, a, 4, &m);
	assert_ptr_equal(m.last, long_one);
	assert_null(m.part);
	match_own(p, root, other, 4, &m);
	assert_null(m.part);
	prefix_set_page(p, long_one, KV_PAGE_NONE);
	match_own(p, root, a, 4, &m); /* its sibling has as much of it as nobody else */
	assert_ptr_equal(m.gone, long_one);
	assert_int_equal(m.part_tokens, 3);
	assert_true(m.part != long_one);
	prefix_free(p);
}

static void a_deep_chain_goes_with_its_first_page(void **state)
{
	enum { DEPTH = 100000 };
	const struct kv_hash root = root_of(1, "");
	uint32_t *ids = malloc(DEPTH * PAGE * sizeof(*ids));
	struct prefix *p = new_prefix();
	struct prefix_node *last, *first, **path = malloc(DEPTH * sizeof(struct prefix_node *));
	struct prefix_match m;

	(void)state;
	for (uint32_t i = 0; i < DEPTH * PAGE; i++)
		ids[i] = i;
	last = add_text(p, root, 1, ids, DEPTH * PAGE, 0);
	match_own(p, root, ids, DEPTH * PAGE, &m);
	assert_int_equal(m.n_pages, DEPTH);
	assert_ptr_equal(m.last, last);
	assert_int_equal(last->depth, DEPTH);
	for (struct prefix_node *node = last; node->parent; node = node->parent)
		path[node->depth - 1] = node;
	first = path[0];
	for (uint32_t i = 0; i < DEPTH; i++) {
		assert_int_equal(path[i]->page, i);
		prefix_set_page(p, path[i], KV_PAGE_NONE);
	}
	prefix_remove(p, first);
	assert_int_equal(prefix_nodes(p), 1);
	match_own(p, root, ids, DEPTH * PAGE, &m);
	assert_ptr_equal(m.last, prefix_space(p, root, 1));
	assert_null(m.gone);
	assert_true(LIST_EMPTY(&m.last->children));
	prefix_free(p);
	free(path);
	free(ids);
}

static void roots_and_pages_have_hashes_of_their_own(void **state)
{
	static const uint32_t ids[8] = { 1, 2, 3, 4, 5, 6, 7, 8 }, zeros[4] = { 0 };
	static const uint64_t other[2] = { 1, 3 };
	const struct kv_hash a = root_of(1, "a");
	struct kv_hash all[] = {
		a,
		root_of(2, "a"),
		root_of(1, "b"),
		root_of(1, ""),
		chain_root(other, 2, 1, "a"),
		chain_root(fingerprint, 4, 1, "a"),
		chain_next(a, a, ids, 4),
		chain_next(a, a, ids, 3),
		chain_next(a, a, zeros, 3),
		chain_next(a, a, zeros, 4),
		chain_next(root_of(2, "a"), a, ids, 4),
		chain_next(a, chain_next(a, a, ids, 4), ids, 4),
		chain_next(a, chain_next(a, a, ids, 4), ids + 4, 4),
		chain_next(a, a, ids, 8),
	};

	(void)state;
	assert_true(chain_equal(a, root_of(1, "a")));
	assert_true(chain_equal(all[6], chain_next(a, a, ids, 4)));
	for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
		for (size_t j = 0; j < i; j++)
			assert_false(chain_equal(all[i], all[j]));
	}
	/* either half alone is not enough */
	assert_false(chain_equal(a, (struct kv_hash){ a.lo, a.hi ^ 1 }));
	assert_false(chain_equal(a, (struct kv_hash){ a.lo ^ 1, a.hi }));
}

static void a_model_is_another_one_on_another_instruction_set(void **state)
{
	static const uint8_t print[16] = { 1 }, other[16] = { 2 };
	uint64_t a[2], b[2];

	(void)state;
	chain_model(print, "avx2", a);
	chain_model(print, "avx2", b);
	assert_memory_equal(a, b, sizeof(a));
	chain_model(print, "avx512", b);
	assert_memory_not_equal(a, b, sizeof(a));
	chain_model(print, "avx", b);
	assert_memory_not_equal(a, b, sizeof(a));
	chain_model(other, "avx2", b);
	assert_memory_not_equal(a, b, sizeof(a));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_texts_match_as_in_a_list_of_all),
		cmocka_unit_test(namespaces_are_apart),
		cmocka_unit_test(a_hash_alone_is_no_match),
		cmocka_unit_test(a_page_is_not_a_namespace),
		cmocka_unit_test(the_child_with_most_in_common_is_the_part),
		cmocka_unit_test(a_deep_chain_goes_with_its_first_page),
		cmocka_unit_test(roots_and_pages_have_hashes_of_their_own),
		cmocka_unit_test(a_model_is_another_one_on_another_instruction_set),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
