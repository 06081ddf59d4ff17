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
 *		"kept":n,"vocab":"16 hex digits","begun":s,"ended":s,"n_cached":n,
 *		"n_reasoning":n}. request is {"messages":[…],…} and answer the
 *		assistant's message, both JSON texts. The last two are missing, or
 *		-1, where it is not known
 *	toks	u32 ids of the turn before it: prompt and answer, without the first
 *		"kept" ids, which are those of the turn before. Ids mean something to
 *		a tokenizer with the same vocab only
 *	kvhd	JSON {"model":"32 hex digits","isa":…,"layout":n,"element_bytes":n,
 *		"page_tokens":n,"page_bytes":n,"pages":n}: what the KV behind it is:
 *		the fingerprint of the checkpoint and the instruction set that
 *		computed it, CHAIN_LAYOUT, and the sizes of a page. At most once
 *	kvpg	a page of the KV of the last turn's ids, prompt and answer: struct
 *		export_page, u32 ids[n_tokens], then page_bytes as they lie in the
 *		arena. As many as kvhd says, from the first on; one without payload was
 *		given up while the file was written, and so are all behind it
 *
 * What is left of the ids fills no page, and its KV is in no file: with the next turn it
 * would be another page's beginning, each of its strips as long as there are tokens; and
 * page_tokens - 1 tokens at most are soon computed. The next turn after an import
 * computes those and what is new.
 *
 * A session is whole without kvhd and kvpg. A reader passes over kinds and
 * versions that it does not know, and says so.
 *
 * A file's sums find damage; they prove nothing of who made it, and its KV may
 * be anything. It need prove nothing, for a page has no identity in a file: the
 * importer keys each by what its own session says, with the chain of daemon/kv/
 * chain.h whose root is the importer's uid and label, and takes none at the
 * place of a marked prompt, which all share. So forged KV is found by prompts
 * of that same uid and label alone, which may as well ask for other answers;
 * and no other row's result depends on it, see README.md. Only what is no
 * number is refused, for that might stop the executor.
 */
#pragma once

#include <stdint.h>

#include "client/wire/err.h"
#include "client/wire/span.h"

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
#define EXPORT_KVHD EXPORT_KIND('k', 'v', 'h', 'd')

struct export_page {
	uint32_t n, n_tokens; /* n: from 0 */
	uint64_t sum[2];      /* xxh3-128 of the page's bytes: low, high */
};
_Static_assert(sizeof(struct export_page) == 24, "the layout is a file's");

/* The head of a file with so many sections, and whether one is sound: -EINVAL, -EUCLEAN with a sentence. */
struct export_head export_head_of(uint32_t n_sections);
int export_head_check(const struct export_head *head, struct err *err);
/* The sum of a section whose payload is @first and behind it @second. */
uint64_t export_section_sum(const struct export_section *head, struct span first,
			    struct span second);
