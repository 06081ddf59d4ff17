/*
 * Shared prompts (SharedPrompts=) are computed before anybody needs them: else
 * the first user would, and until then others could tell by the time that it
 * has not been done. As tidying (tidy.h) it runs while nothing else does, ends
 * when something comes, and goes on from there; it is charged to the daemon's
 * own user. It wakes nothing up, and takes no memory that is on lease. Each
 * prompt has its time after it was read, and after an executor was started, for
 * pages may have been lost with the one before; one that was then given up for
 * memory's sake stays so.
 */
#pragma once

#include <jansson.h>

#include "daemon/server/server.h"

struct warm;

int warm_new(struct server *s, struct warm **ret);
struct warm *warm_free(struct warm *w);

/* The prompts were read, an executor was started: each is looked at again. */
void warm_all(struct warm *w);
/* Something ended: the next may begin. */
void warm_look(struct warm *w);
/* What runs ends. Until the next warm_all() nothing begins. */
void warm_stop(struct warm *w);

/* For status. */
json_t *warm_describe(const struct warm *w);

static inline void warm_freep(struct warm **w)
{
	*w = warm_free(*w);
}
