/* Where two prompts part, and why: what a miss of the prefix cache is explained by. */
#pragma once

#include "daemon/text/tokenizer.h"

#define DIVERGE_SHOWN_IDS 16 /* of each side, as text */

enum diverge_cause {
	DIVERGE_NONE,		    /* one is the beginning of the other, or they are the same */
	DIVERGE_SYSTEM,		    /* another system message, or other tools */
	DIVERGE_REASONING_STRIPPED, /* the template drops an earlier answer's reasoning */
	DIVERGE_REASONING_ADDED,    /* or shows one that was not there */
	DIVERGE_SPACE,		    /* white space around a text */
	DIVERGE_TOKENS,		    /* the same text in other tokens */
	DIVERGE_TEXT,
	DIVERGE_N,
};
/* "none", "system-prompt", "reasoning-stripped", "reasoning-added", "white-space", "tokens", "text" */
const char *diverge_cause_name(enum diverge_cause cause);

struct divergence {
	size_t index; /* the first id that differs, or the shorter one's length */
	enum diverge_cause cause;
	char *before, *now; /* the text from there on, on both sides; "" at an end */
	size_t before_len, now_len;
};
void divergence_deinit(struct divergence *d);

/* @before: a prompt as it was computed, with its answer; @now: the next one. 0 or -ENOMEM. */
int diverge_find(const struct tokenizer *t, const uint32_t *before, size_t n_before,
		 const uint32_t *now, size_t n_now, struct divergence *ret);
