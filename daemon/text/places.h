/*
 * Where in a chat an id stands, told by the markers alone: they are ids that
 * only a renderer and the model write, so no text can pretend to be elsewhere.
 */
#pragma once

#include "daemon/text/tokenizer.h"

enum place_kind {
	PLACE_NONE, /* not in an answer */
	PLACE_LEAD, /* after <|assistant|> */
	PLACE_REASONING,
	PLACE_CONTENT, /* after </think> or </tool_call> */
	PLACE_CALL,    /* a tool's name */
	PLACE_KEY,
	PLACE_BETWEEN, /* after </arg_key> or </arg_value> */
	PLACE_VALUE,
};

#define PLACE_MARKERS 10

/* The walk along one prompt; begin with places_begin(). */
struct places {
	const struct tokenizer *tokenizer;
	uint32_t markers[PLACE_MARKERS]; /* UINT32_MAX where the tokenizer has none */
	enum place_kind kind;
	bool in_answer, in_system;
};

void places_begin(struct places *p, const struct tokenizer *t);
/* Goes past @id; ids that are no added token change nothing. */
void places_pass(struct places *p, uint32_t id);
/* Whether @id is <think> or </think>. */
bool places_is_think(const struct places *p, uint32_t id);
bool places_is_end_think(const struct places *p, uint32_t id);
