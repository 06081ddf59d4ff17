/* What clients ask of the ladder (daemon/power/power.h), and what status says of it. */
#pragma once

#include <jansson.h>

#include "daemon/server/request.h"

/* The ladder of @s, made with it. 0 or a negative errno. */
int sleep_open(struct server *s, struct err *err);

/* What it looks after from now on; NULL: nothing, and the engine may go. */
void sleep_set_engine(struct server *s, struct engine *e);

/* The engine was taken over: what an earlier broker had paused for good stays so. */
void sleep_adopted(struct server *s);

/* Handlers of SLEEP, WAKE and YIELD: administrators only, but for WAKE. */
int sleep_on_sleep(struct request *q, struct err *err);
int sleep_on_wake(struct request *q, struct err *err);
int sleep_on_yield(struct request *q, struct err *err);
/* The request goes: nobody wants that any more. */
void sleep_forget(struct request *q);

/* The rung, where the memory is, prices, leases: for status. */
json_t *sleep_describe(const struct server *s);
