/*
 * Tidying. Where the template changes a chat's history (reasoning and white
 * space are stripped), the prompt of the next turn leaves what was computed
 * long before its end. When nothing else waits or runs, that prompt's beginning,
 * up to the marker of what the user says next, is computed once in advance, by
 * a tidy turn of the scheduler. What was computed as sampled stays, too.
 *
 * Not after a tool call, for there reasoning stays; not where it would save no
 * more than TidyOver; not while the executor sleeps, or memory is on lease.
 *
 * What is kept for it is counted in the user's held bytes. All of it belongs
 * to the loop's thread; text work runs on the worker. The conversation of a
 * turn that runs is in its record, so that the next broker tidies it as well;
 * what waits or is being tidied lasts no longer than the broker.
 */
#pragma once

#include <jansson.h>

#include "daemon/server/request.h"

#define TIDY_USER_BYTES_MAX (SERVER_USER_HELD_BYTES_MAX / 8) /* with more held, none is kept */
#define TIDY_WAITING_MAX 16				   /* conversations; the oldest is forgotten */
#define TIDY_TRIES_MAX 4				   /* as often is one begun, if others end it */

struct tidy;
struct stream;

int tidy_new(struct server *s, struct tidy **ret);
struct tidy *tidy_free(struct tidy *t);

/* The turn of @st comes from @q: keeps the conversation, if it is one and there is room. */
void tidy_keep(struct stream *st, const struct request *q);
/* The turn comes from an earlier broker, which kept its conversation, or did not. */
void tidy_adopt(struct stream *st);
/* The turn goes: what was kept does, too. */
void tidy_forget(struct stream *st);
/* It has ended; behind said_remember(). */
void tidy_ended(struct stream *st);

/* Something ended: one of those that wait may begin. */
void tidy_look(struct tidy *t);
/* What runs ends, and what waits is forgotten. */
void tidy_stop(struct tidy *t);

/* For status. */
json_t *tidy_describe(const struct tidy *t);

static inline void tidy_freep(struct tidy **t)
{
	*t = tidy_free(*t);
}
