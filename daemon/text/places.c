/* The markers of a chat and what follows each. */
#include "daemon/text/places.h"

#include "client/wire/ownership.h"

enum { ASSISTANT, SYSTEM, THINK, END_THINK };

static const struct {
	const char *name;
	enum place_kind kind; /* inside an answer */
} table[PLACE_MARKERS] = {
	[ASSISTANT] = { "<|assistant|>", PLACE_LEAD },
	[SYSTEM] = { "<|system|>", PLACE_NONE },
	[THINK] = { "<think>", PLACE_REASONING },
	[END_THINK] = { "</think>", PLACE_CONTENT },
	{ "<tool_call>", PLACE_CALL },
	{ "</tool_call>", PLACE_CONTENT },
	{ "<arg_key>", PLACE_KEY },
	{ "</arg_key>", PLACE_BETWEEN },
	{ "<arg_value>", PLACE_VALUE },
	{ "</arg_value>", PLACE_BETWEEN },
};

void places_begin(struct places *p, const struct tokenizer *t)
{
	*p = (struct places){ .tokenizer = t };
	for (size_t i = 0; i < PLACE_MARKERS; i++)
		p->markers[i] = tokenizer_added_id(t, table[i].name);
}

void places_pass(struct places *p, uint32_t id)
{
	if (!tokenizer_is_added(p->tokenizer, id))
		return;
	for (size_t i = 0; i < PLACE_MARKERS; i++) {
		if (p->markers[i] != id)
			continue;
		if (i <= SYSTEM) {
			p->in_answer = i == ASSISTANT;
			p->in_system = i == SYSTEM;
		}
		p->kind = p->in_answer ? table[i].kind : PLACE_NONE;
		return;
	}
	/* any other added token ends whatever it stands in */
	p->in_answer = false;
	p->in_system = false;
	p->kind = PLACE_NONE;
}

bool places_is_think(const struct places *p, uint32_t id)
{
	return id == p->markers[THINK] && id != UINT32_MAX;
}

bool places_is_end_think(const struct places *p, uint32_t id)
{
	return id == p->markers[END_THINK] && id != UINT32_MAX;
}
