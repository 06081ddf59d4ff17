/*
 * Added tokens, found in text before it is split: leftmost, longest of those
 * that begin there, never overlapping; then the flags single_word, lstrip and
 * rstrip, in the order of the reference, whose quirks are kept.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/wire/span.h"

#define ADDED_NONE UINT32_MAX

struct added_token {
	char *content; /* UTF-8, terminated */
	size_t len;
	uint32_t id;
	bool single_word, lstrip, rstrip, normalized, special;
};

struct added_node {
	uint32_t child, sibling; /* 0: none */
	uint32_t token;		 /* index of the token that ends here, or ADDED_NONE */
	uint8_t byte;
};

/* A trie over some of the tokens. */
struct added_trie {
	struct added_node *nodes; /* [0] is the root */
	uint32_t n, cap;
	bool begins[256];
};

int added_trie_insert(struct added_trie *trie, struct span content, uint32_t token); /* 0, -ENOMEM */
void added_trie_deinit(struct added_trie *trie);

/* Walks @text: alternately text between tokens and tokens. */
struct added_walk {
	const struct added_trie *trie;
	const struct added_token *tokens;
	const uint8_t *classes; /* unicode_classes() */
	bool skip_special;	/* special tokens are text */
	struct span text;

	size_t at;	  /* where the search goes on */
	size_t done;	  /* how far the parts given out reach */
	size_t run_end;	  /* of the white space last stripped to the right */
	uint32_t pending; /* a token found while the text before it was given out */
	size_t pending_end;
};

struct added_part {
	size_t begin, len;
	uint32_t token; /* an index, or ADDED_NONE: text, which is not empty */
};

/* True and the next part, or false at the end. Starts with at = done = run_end = 0, pending = ADDED_NONE. */
bool added_walk_next(struct added_walk *w, struct added_part *ret);
