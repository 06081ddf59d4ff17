/* What transfer.c, -out and -in share. */
#pragma once

#include <jansson.h>

#include "daemon/kv/kvcache.h"
#include "daemon/server/transfer.h"
#include "daemon/session/export.h"

#define TRANSFER_FRONT_BYTES 8192 /* what is before a page's bytes, or kvhd */

struct transfer {
	struct request *q; /* NULL: gone; the rest goes when nothing is under way */
	struct server *server;
	struct user *user;
	size_t held_bytes;
	bool under_way; /* the room is the cache's, or the worker's */

	struct bytes text; /* the file without KV */
	uint32_t *ids;
	size_t n_ids;
	struct kvcache_walk walk;
	uint64_t page_bytes;
	uint32_t page_tokens, element_bytes, n_pages;
	struct export_section section;
	char front[TRANSFER_FRONT_BYTES], *room; /* a section's payload: front, then a page */
	size_t n_front;

	/* out */
	struct span left[3]; /* to be sent, in order */
	uint64_t n_sent;
	uint32_t n_told, n_carried; /* pages: sections written; of those, with bytes */
	const char *why; /* KV is left out; NULL: it is not */
	/* in */
	enum { IN_HEAD, IN_SECTION, IN_TEXT, IN_KVHD, IN_FRONT, IN_PAGE, IN_STORE } phase;
	char *to; /* where the next bytes go; NULL: behind the text */
	uint64_t n_to;
	uint32_t n_wanted, n_sections, n_text; /* sections: left; of those read, text's */
	bool ended, stored;
	json_t *json, *not_taken;
	uint32_t n_taken, n_there, n_damaged;
	const char *fault; /* of the page in the room: static */
	bool sum_fails;
};

int transfer_new(struct request *q, struct transfer **ret, struct err *err);
/* Nothing is under way any more: returns whether its request is still there, else frees it. */
bool transfer_is_home(struct transfer *t);
/* Counts @bytes instead of what it held before: -EAGAIN with the numbers. */
int transfer_hold(struct transfer *t, size_t bytes, struct err *err);
/* The way along its ids, and room for a page; no engine, no ids: no pages. */
int transfer_walk(struct transfer *t, struct err *err);
/* The cache that it began with is still there. */
bool transfer_has_cache(const struct transfer *t);
/* Appends {"what":…,"why":…}. */
void transfer_note(json_t *list, const char *why, const char *format, ...) _printf_(3, 4);
