/* What status, ps and models answer: malloc'd JSON objects. NULL: out of memory. */
#pragma once

#include "daemon/server/peer.h"

/* An administrator sees the shared prompts, too. */
char *report_status(const struct server *s, const struct peer *p);
char *report_models(const struct server *s);
/* A uid's own turns in detail, those of others as totals; an administrator sees all. */
char *report_ps(const struct server *s, const struct peer *p);
