/* What each user may have, and what it has now: for `steamctl status --limits`. */
#pragma once

struct peer;

/*
 * {"users":[{"uid":…,"connections":{"used":…,"limit":…},…},…]}: @p's own user
 * first, and for administrators all others that hold anything. malloc'd; NULL:
 * out of memory.
 */
char *limits_report(const struct peer *p);
