/* Tries with sibling lists: contents are short and few, and a table of first bytes passes over most text. */
#include <errno.h>
#include <stdlib.h>

#include "client/wire/ownership.h"
#include "daemon/text/added.h"
#include "daemon/text/codepoint.h"
#include "daemon/text/unicode.h"

void added_trie_deinit(struct added_trie *trie)
{
	free(trie->nodes);
	*trie = (struct added_trie){ 0 };
}

/* Index of a new node, or 0. */
static uint32_t new_node(struct added_trie *trie, uint8_t byte)
{
	if (trie->n == trie->cap) {
		const uint32_t cap = MAX(64u, trie->cap * 2);
		struct added_node *nodes = realloc(trie->nodes, cap * sizeof(*nodes));

		if (!nodes)
			return 0;
		trie->nodes = nodes;
		trie->cap = cap;
		if (trie->n == 0)
			trie->nodes[trie->n++] = (struct added_node){ .token = ADDED_NONE };
	}
	trie->nodes[trie->n] = (struct added_node){ .byte = byte, .token = ADDED_NONE };
	return trie->n++;
}

static uint32_t child_of(const struct added_trie *trie, uint32_t node, uint8_t byte)
{
	uint32_t child = trie->nodes[node].child;

	while (child && trie->nodes[child].byte != byte)
		child = trie->nodes[child].sibling;
	return child;
}

int added_trie_insert(struct added_trie *trie, struct span content, uint32_t token)
{
	uint32_t node = 0;

	for (size_t i = 0; i < content.len; i++) {
		const uint8_t byte = content.data[i];
		uint32_t child = trie->n ? child_of(trie, node, byte) : 0;

		if (!child) {
			child = new_node(trie, byte);
			if (!child)
				return -ENOMEM;
			trie->nodes[child].sibling = trie->nodes[node].child;
			trie->nodes[node].child = child;
		}
		node = child;
	}
	trie->nodes[node].token = token;
	trie->begins[(uint8_t)content.data[0]] = true;
	return 0;
}

/* The longest token that begins at @at. */
static uint32_t longest_at(const struct added_trie *trie, struct span text, size_t at,
			   size_t *ret_end)
{
	uint32_t node = 0, token = ADDED_NONE;

	while (at < text.len && (node = child_of(trie, node, text.data[at]))) {
		at++;
		if (trie->nodes[node].token != ADDED_NONE) {
			token = trie->nodes[node].token;
			*ret_end = at;
		}
	}
	return token;
}

static size_t before(struct span text, size_t at)
{
	do
		at--;
	while (at > 0 && ((uint8_t)text.data[at] & 0xc0) == 0x80);
	return at;
}

static bool is_in(const struct added_walk *w, size_t at, uint8_t class)
{
	size_t len;

	return w->classes[codepoint_read(w->text.data + at, &len)] & class;
}

static bool stands_alone(const struct added_walk *w, size_t begin, size_t end)
{
	return (begin == 0 || !is_in(w, before(w->text, begin), UNICODE_W)) &&
	       (end == w->text.len || !is_in(w, end, UNICODE_W));
}

/* White space to the left, but nothing already given out. */
static size_t strip_left(const struct added_walk *w, size_t begin)
{
	while (begin > w->done && is_in(w, before(w->text, begin), UNICODE_S))
		begin = before(w->text, begin);
	return MAX(begin, w->done);
}

/* Tokens made of white space may ask again inside the run: its end is remembered. */
static size_t strip_right(struct added_walk *w, size_t run_begin)
{
	size_t len, at = run_begin;

	if (run_begin < w->run_end)
		return w->run_end;
	while (at < w->text.len && is_in(w, at, UNICODE_S)) {
		codepoint_read(w->text.data + at, &len);
		at += len;
	}
	w->run_end = at;
	return at;
}

/* The next accepted token; searching goes on behind its content, even where rstrip took more. */
static uint32_t find(struct added_walk *w, size_t *ret_begin, size_t *ret_end)
{
	while (w->at < w->text.len) {
		const struct added_token *token;
		size_t begin = w->at, end = 0;
		uint32_t found = ADDED_NONE;

		if (w->trie->begins[(uint8_t)w->text.data[begin]])
			found = longest_at(w->trie, w->text, begin, &end);
		if (found == ADDED_NONE) {
			w->at++;
			continue;
		}
		w->at = end;
		token = &w->tokens[found];
		if ((w->skip_special && token->special) ||
		    (token->single_word && !stands_alone(w, begin, end)))
			continue;
		*ret_begin = token->lstrip ? strip_left(w, begin) : begin;
		*ret_end = token->rstrip ? strip_right(w, end) : end;
		return found;
	}
	return ADDED_NONE;
}

bool added_walk_next(struct added_walk *w, struct added_part *ret)
{
	uint32_t token = w->pending;
	size_t begin = w->done, end = w->pending_end;

	w->pending = ADDED_NONE;
	if (token == ADDED_NONE) {
		begin = end = w->text.len;
		token = find(w, &begin, &end);
		if (w->done < begin) {
			*ret = (struct added_part){ w->done, begin - w->done, ADDED_NONE };
			w->pending = token;
			w->pending_end = end;
			w->done = begin;
			return true;
		}
		if (token == ADDED_NONE)
			return false;
	}
	*ret = (struct added_part){ begin, end - begin, token };
	w->done = end;
	return true;
}
