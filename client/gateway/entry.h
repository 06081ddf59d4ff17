/* Who asks, from where, and for what: checked before a body is read. */
#pragma once

#include "client/gateway/exchange.h"

/* The header's value, or NULL. */
const char *entry_header(const struct exchange *x, const char *name);

/*
 * Sets the route of @method and @url, and the key's label. No route and 0: an
 * allowed web page asks whether it may ask. Negative: x->no says why not.
 */
int entry_check(struct exchange *x, const char *method, const char *url);
