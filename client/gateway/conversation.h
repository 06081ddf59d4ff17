/* What applications say, as steamd's conversation: {"messages":[…],"tools":[…],…}. */
#pragma once

#include "client/gateway/fields.h"

/*
 * Checks the messages of Chat Completions and appends them to @to: developers
 * are the system, parts are one text, images and sounds are refused.
 * Returns 0, or a negative errno and @no names the place.
 */
int conversation_add_chat(json_t *to, const json_t *messages, struct refusal *no);

/* The same of the items of Responses: a string, or a list of items. */
int conversation_add_items(json_t *to, const json_t *input, struct refusal *no);

/* The tools of Chat Completions: each must be a function with a name. */
int conversation_check_tools(const json_t *tools, struct refusal *no);

/* Tools of Responses in the form of Chat Completions; *@ret: NULL if there are none. */
int conversation_tools(const json_t *tools, json_t **ret, struct refusal *no);

/*
 * The whole as JSON text, malloc'd.
 *
 * tools	NULL: none
 * think	-1: as the model does by itself
 * extra	more members; may be NULL
 */
int conversation_write(json_t *messages, const json_t *tools, int think, const json_t *extra,
		       char **ret, size_t *ret_len);
