/*
 * A session as a file. All numbers little-endian, nothing between the parts:
 *
 *	u8[8]	"STEAMDSN"
 *	u32	version, 1
 *	u32	sections that follow
 *	u64	xxh3-64 of the 16 bytes above
 *
 * and for each section
 *
 *	u32	kind	four letters, the first in the lowest byte
 *	u32	version of the kind
 *	u64	bytes of the payload
 *	u64	xxh3-64 of the 16 bytes above and the payload, in one run
 *	…	payload
 *
 * Kinds, all of version 1, in this order:
 *
 *	sess	JSON {"name":…,"created":s,"defaults":{…}}; once, first
 *	turn	JSON {"n":1…,"request":"…","answer":"…","finish":…,"n_prompt":n,
 *		"kept":n,"vocab":"16 hex digits","begun":s,"ended":s}. request is
 *		{"messages":[…],…} and answer the assistant's message, both JSON texts
 *	toks	u32 ids of the turn before it: prompt and answer, without the first
 *		"kept" ids, which are those of the turn before. Ids mean something to
 *		a tokenizer with the same vocab only
 *	kvpg	KV pages; not written yet. A session is whole without them
 *
 * A reader passes over kinds and versions that it does not know, and says so.
 */
#pragma once

#include <stdint.h>

#define EXPORT_MAGIC "STEAMDSN"
#define EXPORT_VERSION 1
#define EXPORT_SECTIONS_MAX (1u << 20)

struct export_head {
	char magic[8];
	uint32_t version, n_sections;
	uint64_t sum;
};
_Static_assert(sizeof(struct export_head) == 24, "the layout is a file's");

struct export_section {
	uint32_t kind, version;
	uint64_t bytes, sum;
};
_Static_assert(sizeof(struct export_section) == 24, "the layout is a file's");

#define EXPORT_KIND(a, b, c, d)                                                                    \
	((uint32_t)(a) | (uint32_t)(b) << 8 | (uint32_t)(c) << 16 | (uint32_t)(d) << 24)
#define EXPORT_SESS EXPORT_KIND('s', 'e', 's', 's')
#define EXPORT_TURN EXPORT_KIND('t', 'u', 'r', 'n')
#define EXPORT_TOKS EXPORT_KIND('t', 'o', 'k', 's')
#define EXPORT_KVPG EXPORT_KIND('k', 'v', 'p', 'g')
