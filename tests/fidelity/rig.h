/*
 * A checkpoint of tests/golden loaded the real way, with a cache and a model,
 * and what tests/golden says it computes.
 */
#pragma once

#include <jansson.h>

#include "daemon/exec/team.h"

#define RIG_PAGE_TOKENS 16

struct rig {
	char *name;
	struct checkpoint *checkpoint;
	struct team *team; /* it owns those of rank 0 below; NULL: there is none */
	void *arena;	   /* of kv, on the host: where devices mirror it */
	struct dev *dev;
	struct weights *weights;
	struct kv_cache kv;
	struct model *model;
	uint32_t *pages; /* all of the arena, last first */
	uint32_t vocab, max_tokens;
};

/* Prints why and returns a negative errno on failure. @n_pages of RIG_PAGE_TOKENS. */
int rig_open(const char *name, enum isa isa, uint32_t n_threads, uint32_t max_tokens,
	     uint32_t n_pages, struct rig *ret);
/* The same with @n_ranks; below tests/golden, or @name is a path if it begins with a slash. */
int rig_open_ranks(const char *name, enum isa isa, uint32_t n_threads, uint32_t n_ranks,
		   uint32_t max_tokens, uint32_t n_pages, struct rig *ret);
/* The same on a team, also of one: for an executor, or devices that the KV cache is mirrored on. */
int rig_open_team(const char *name, enum isa isa, uint32_t n_threads, uint32_t n_ranks,
		  uint32_t max_tokens, uint32_t n_pages, struct rig *ret);
void rig_close(struct rig *rig);

/* Whether a checkpoint can be divided among so many: 0, or what weights_load_ranks() returns. */
int rig_divides(const char *name, uint32_t n_ranks);

/* As model_forward(), on all ranks. */
int rig_forward(struct rig *rig, const uint32_t *ids, uint32_t n_tokens, const struct seq *seqs,
		uint32_t n_seqs, const uint32_t *out, uint32_t n_out, float *logits);

/* The path of a file below tests/golden: malloc'd. */
char *rig_path(const char *name, const char *file);

/* expect/truth.json of a checkpoint, and one of its prompts by name; NULL: not there. */
json_t *rig_truth(const char *name);
json_t *rig_prompt(json_t *truth, const char *name);

/* A prompt's ids: malloc'd. */
uint32_t *rig_ids(json_t *prompt, uint32_t *ret_n);

/* @n floats of a file in expect/: malloc'd, NULL if it has another size. */
float *rig_floats(const char *name, const char *file, size_t n);

/*
 * Feeds @n tokens at position @at of a sequence that has the arena's pages from
 * @first_page on, in pieces of at most @chunk. Logits of every token to @logits,
 * or of the last alone if @last.
 */
int rig_feed(struct rig *rig, uint32_t first_page, const uint32_t *ids, uint32_t at, uint32_t n,
	     uint32_t chunk, bool last, float *logits);
