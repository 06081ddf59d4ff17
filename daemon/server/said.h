/*
 * What a turn has said: the parser of its ids, the whole answer once it has
 * ended, and what is remembered of it for the next prompt.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct answer;
struct stream;

/* A parser for the turn from its beginning. 0 or -ENOMEM. */
int said_parser(const struct stream *st, struct answer **ret);
/* Whether @id ends the turn; the parser does not get it. */
bool said_is_stop_id(const struct stream *st, uint32_t id);

/*
 * The whole answer of an ended turn as an assistant's message, whatever its
 * reader has read. *@ret_json: malloc'd; *@ret_finish: static; *@ret_n_ids: of
 * the record's ids, those that belong to it; *@ret_n_reasoning: of those, what
 * became reasoning alone. 0 or -ENOMEM.
 */
int said_whole(const struct stream *st, char **ret_json, const char **ret_finish,
	       uint32_t *ret_n_ids, uint32_t *ret_n_reasoning);

/*
 * Remembers an ended turn's ids, see daemon/text/spans.h. Those of a long one
 * are learned on the worker; the next prompt is as long and goes there too,
 * behind this. One that does not only misses the ids.
 */
void said_remember(const struct stream *st);
