/*
 * Status requests that wait for what an executor says of its devices, which is
 * asked then and never else. It is not waited for longer than LOOKING_US: a
 * status that lacks it is better than none.
 */
#pragma once

#include "daemon/server/request.h"

#define LOOKING_US 500000ull

/* Answers @q at once, or when the devices were looked at. As a handler. */
int looking_on_status(struct request *q, struct err *err);
/* The executor has answered. */
void looking_seen(struct server *s);
void looking_forget(struct request *q); /* of request_free() */
void looking_close(struct server *s);
