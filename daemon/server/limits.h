/* What each user may have, and what it has now: for `steamctl status --limits`. */
#pragma once

#include <stddef.h>

struct peer;
struct store_usage;

/*
 * {"users":[{"uid":…,"connections":{"used":…,"limit":…},…},…]}: @p's own user
 * first, and for administrators all others that hold anything.
 *
 * disk_evicted: bytes of KV on disk that went to keep the user within its quota.
 *
 * usage	[n_usage] sessions of each; NULL: none are kept
 *
 * malloc'd; NULL: out of memory.
 */
char *limits_report(const struct peer *p, const struct store_usage *usage, size_t n_usage);
