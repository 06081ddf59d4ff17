/*
 * A row of a step, read and checked: every offset and count lies inside the
 * payload, every id inside the vocabulary, every page inside the arena. What
 * depends on the slot's state is exec.c's to check.
 */
#pragma once

#include "client/wire/step.h"

struct order_limits {
	uint32_t n_slots, max_context, page_tokens, n_pages, vocab;
};

/* Pointers go into the payload that was read; it must be the reader's own copy. */
struct order {
	struct row row;
	const uint32_t *tokens;	     /* FEED */
	const uint32_t *targets;     /* ROW_SCORE, or NULL */
	const uint32_t *pages;
	const struct step_sampler *sampler; /* or NULL */
	const uint32_t *bias_ids;
	const float *bias_values;
};

/*
 * Reads the @step->n_rows rows at @payload, which is aligned to 8 and private.
 * Returns 0, or -EBADMSG with the field at fault: "row 3: tokens_off is 17 …".
 */
int order_read(const struct step *step, const void *payload, const struct order_limits *limits,
	       struct order *ret, struct err *err);

/* The same for the moves of a STEP_MOVE: all pages and token counts exist. */
int order_read_moves(const struct step *step, const void *payload,
		     const struct order_limits *limits, struct err *err);
