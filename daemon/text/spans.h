/*
 * What was sampled is what is continued: the ids of answers, so that their
 * text in a later prompt becomes these ids and not others of the same text.
 *
 * An answer is cut at its added tokens into spans of text. A span is known by
 * where it stood (reasoning, content, a call's parts: see places.h), by its
 * text, and in two ways: behind exactly the ids that preceded it, so that what
 * was a prompt before begins the next one; and anywhere, for answers whose
 * history the template changed (reasoning stripped). Only text in an answer's
 * place is looked up, spans hold no added token, and before they are used they
 * are decoded again: ids take the place of exactly their own text and never
 * move a marker.
 *
 * Kept per user, for all namespaces of it together, the least recently used
 * leaving first; what one namespace said is found in that namespace alone. It
 * is kept in memory and lasts no longer than the broker. What sessions said is
 * recalled by the next one from their database, the last used first, as far as
 * there is room; what turns are saying from the turns' memory. Answers of no
 * session that had ended and been read are forgotten, and become what the
 * tokenizer makes of their text.
 * May be called from several threads at once.
 */
#pragma once

#include "daemon/text/chat.h"

#define SPANS_USER_BYTES (8u << 20)
#define SPANS_USERS_MAX 64 /* with more, the one that was longest without a word is forgotten */

struct spans;

struct spans_who {
	uint32_t uid;
	const char *label;
};

int spans_new(struct spans **ret); /* 0, -ENOMEM, or what getrandom() says */
struct spans *spans_free(struct spans *s);

/*
 * Remembers an ended turn: @ids are its prompt and behind it what was sampled,
 * as they were computed. A prompt's answers are remembered as they stand in
 * it; those sampled also wherever else they may come again. -ENOMEM: some are not.
 */
int spans_learn(struct spans *s, const struct spans_who *who, const struct tokenizer *t,
		const uint32_t *ids, size_t n_prompt, size_t n_ids);
/*
 * The same of a turn from an earlier life: it counts as used before all that is
 * remembered, and nothing leaves for it. -ENOSPC: there is no more room for
 * turns of @who, and none for older ones.
 */
int spans_recall(struct spans *s, const struct spans_who *who, const struct tokenizer *t,
		 const uint32_t *ids, size_t n_prompt, size_t n_ids);

/* As chat_encode(), but answers' texts become the ids that are remembered for them. */
int spans_encode(struct spans *s, const struct spans_who *who, const struct chat_rendering *r,
		 const struct tokenizer *t, struct ids *ids);

size_t spans_user_bytes(struct spans *s, uint32_t uid);

static inline void spans_freep(struct spans **s)
{
	*s = spans_free(*s);
}
