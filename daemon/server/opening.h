/*
 * The model's way into service: its files are read on the worker, then the
 * engine is made or adopted on the loop. What fails on the way and may pass is
 * tried again, as an executor that dies is; all else is a refusal.
 */
#pragma once

#include "daemon/server/server.h"

struct opening;

int opening_new(struct server *s, struct opening **ret); /* 0 or -ENOMEM */
struct opening *opening_free(struct opening *o);	 /* after the worker has gone */

/* Begins, whatever it waited for; no model is in service. 0, or -ENOMEM with a sentence. */
int opening_begin(struct opening *o, struct err *err);

bool opening_is_under_way(const struct opening *o);	/* on the worker */
bool opening_is_waiting(const struct opening *o);	/* it failed, and is tried again in */
uint64_t opening_retry_us(const struct opening *o);	/* 0: at once, or it is not waiting */
const char *opening_hindrance(const struct opening *o); /* why; "": nothing is in its way */
void opening_proved(struct opening *o); /* the model is served: the next failure is the first one */

/* The model in service goes, when the jobs that may read it are done. */
void opening_drop_model(struct server *s);

/* SharedPrompts= is read again for the model in service, and then in force. 0, or -ENOMEM with a sentence. */
int opening_reread_prompts(struct server *s, struct err *err);
