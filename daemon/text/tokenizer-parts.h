/* What a tokenizer is made of; for the files that build it and use it. */
#pragma once

#include "daemon/text/added.h"
#include "daemon/text/bpe.h"
#include "daemon/text/tokenizer.h"
#include "daemon/text/vocab.h"

struct tokenizer {
	struct vocab vocab; /* added tokens included */
	struct bpe bpe;
	bool ignore_merges; /* a piece that is a token as a whole is not merged */

	struct added_token *added;
	uint32_t n_added, cap_added;
	struct added_trie raw, normalized; /* searched in this order */

	struct ids before, after; /* the post-processor's template */
	const uint8_t *classes;	  /* unicode_classes() */
};
