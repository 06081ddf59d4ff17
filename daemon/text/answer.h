/*
 * Sampled ids to what a reader sees: reasoning, content and tool calls, by
 * token id, so that no text can pretend to be a marker; stop strings; only
 * whole characters. State depends on the ids pushed so far and on nothing
 * else, so a replay gives the same pieces.
 */
#pragma once

#include "daemon/text/chat.h"

#define ANSWER_STOPS_MAX 16

struct answer;

struct answer_options {
	const struct tokenizer *tokenizer; /* outlives the answer */
	enum chat_layout layout;	   /* CHAT_NONE: raw text, everything is content, added tokens kept */
	bool thinking, in_reasoning;	   /* as the rendering says */
	bool trim;			   /* leading newlines of content and reasoning, trailing ones of reasoning */
	struct span string_args;	   /* as the rendering has them; copied */
	uint32_t n_stops;
	struct span stops[ANSWER_STOPS_MAX]; /* copied; not empty; matched on content only, or raw text */
};

int answer_new(const struct answer_options *options, struct answer **ret); /* 0, -EINVAL, -ENOMEM */
struct answer *answer_free(struct answer *a);

/* What pushes added since answer_clear(): valid until the next call. */
struct answer_delta {
	struct span reasoning, content;
	/*
	 * JSON array of the calls completed: [{"name":…,"arguments":{…}}, …], or
	 * empty. A call cut off by the end of the answer has "truncated":true.
	 */
	struct span tool_calls;
};

/*
 * Takes one sampled id (a stop id is not pushed). Returns 0; 1 if a stop string matched
 * in this id: later pushes are ignored, see answer_stop_string(); -ENOMEM.
 */
int answer_push(struct answer *a, uint32_t id);
/* The end: releases what was held back, parses a truncated tool call as far as it goes. */
int answer_finish(struct answer *a);
void answer_delta(const struct answer *a, struct answer_delta *ret);
/* The bytes of reasoning and of content in it. */
void answer_count(const struct answer *a, size_t *ret_reasoning, size_t *ret_content);
void answer_clear(struct answer *a);
struct span answer_stop_string(const struct answer *a);	/* empty: none matched */
uint32_t answer_n_tool_calls(const struct answer *a);

static inline void answer_freep(struct answer **a)
{
	*a = answer_free(*a);
}
