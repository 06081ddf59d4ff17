/*
 * The Responses API. A stored response is a turn of a session of steamd's, and
 * its id says which: resp_, the session's 16 digits, the turn's 5, and 8 of the
 * instructions that were in force, so that a response that goes on from it knows
 * by its id whether the stored conversation can be continued as it is.
 */
#pragma once

#include "client/gateway/reply.h"

#define RESPONSES_PREFIX "response-" /* of the sessions' names */

struct response_id {
	char session[48]; /* its name */
	uint32_t turn;
	uint32_t instructions; /* responses_hash() */
};

/* 0, or -EINVAL: it is none of ours. */
int response_id_parse(const char *text, struct response_id *ret);
/* Digits behind resp_; those of items begin with other letters. */
void response_id_write(const struct response_id *id, char ret[32]);

uint32_t responses_hash(const char *instructions);

/* One that is being made. */
struct response {
	LIST_ENTRY(response) link;
	struct reply *r;
	struct response_id id;
	char digits[32];
	json_t *about;	  /* what is stored beside the messages: see responses.c */
	json_t *messages; /* what is new */
	json_t *tools;	  /* as Chat Completions has them */
	json_t *output;	  /* items that are complete */
	const char *open; /* "reasoning", "message" or NULL: the item that is being written */
	char open_id[64];
	size_t open_from; /* where its text begins in all there is */
	uint32_t n_calls;
	uint64_t n_events;
	uint64_t n_input, n_cached, n_output, n_reasoning;
};

struct responses {
	LIST_HEAD(, response) running;
};

/* NULL: none with this id is being made. */
struct response *responses_running(struct gateway *g, const char *id);

/* Whether one with this id, of the exchange's own, is being made; @no says so. */
bool response_refuse_running(const struct exchange *x, const char *id, struct refusal *no);

/* What is known of a response, as JSON. */
struct response_facts {
	const char *digits;
	const json_t *about; /* NULL: nothing */
	const char *status, *finish;
	const json_t *output;
	bool has_usage, has_cached; /* has_cached: n_cached and n_reasoning are known, too */
	uint64_t n_input, n_cached, n_output, n_reasoning;
	const struct refusal *no; /* why it failed; NULL: it did not */
};
void response_write(const struct response_facts *f, struct jsontext *to);
/* Of one that is being made. */
void response_write_running(const struct response *p, const char *status, const struct refusal *no,
			    struct jsontext *to);

/* An item's complete form, as it was streamed; a new reference. */
json_t *response_item_message(const char *digits, uint32_t n, const char *text, size_t len,
			      json_t *logprobs);
json_t *response_item_reasoning(const char *digits, const char *text, size_t len);
json_t *response_item_call(const char *digits, uint32_t n, const json_t *name, json_t *arguments);

/* Status for how it finished: "completed", "incomplete" or "cancelled". */
const char *response_status(const char *finish);

/*
 * Removes stored ones that are too old or too many, if it is time to look for
 * them; on its own, without an answer.
 */
void responses_look(struct link *l);

struct responses *responses_free(struct responses *all);
