/*
 * Why a prompt was not found in the cache, told to whom it belongs: of turns
 * that are there from their records, and of the last ones that ended from what
 * was kept of them. What this life of the broker has not seen is not known.
 */
#pragma once

#include "daemon/server/request.h"

#define EXPLAIN_USER_MAX 32 /* turns that ended, of one uid */
#define EXPLAIN_MAX 1024    /* of all */

struct stream;

/* The turn has ended; its record may go. */
void explain_remember(const struct stream *st);
void explain_forget_all(struct server *s);

/* CACHE_EXPLAIN. */
int explain_handle(struct request *q, struct err *err);
/* The same, once it is known which session was meant. */
int explain_session(struct request *q, uint64_t session, struct err *err);
