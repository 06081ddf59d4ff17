/*
 * The executor as a library: slots, and steps run on them. A slot holds a
 * sequence: its tokens, the pages of its KV, its sampler and what it sampled
 * last. Knows nothing of who sends the steps.
 */
#pragma once

#include "client/wire/step.h"
#include "daemon/exec/model/model.h"
#include "daemon/exec/team.h"

struct exec;

struct exec_limits {
	uint32_t n_slots, max_context; /* slots are numbered from 0; tokens in one slot */
	uint32_t max_batch_tokens;     /* of one step */
	uint64_t pool_bytes;	       /* of the KV cache on devices that are not the host; 0: all of it */
	bool chooses;		       /* how products are computed, by timing: see team_choose() */
	const char *cache_dir;	       /* for what it found, kept for processes to come; NULL: it is not kept */
};

/*
 * Over the ranks of @team, of which one will do: makes their models, of what
 * team_load() loaded. @team and the memory of @kv outlive it. Allocates all that
 * steps need but samplers, which come and go with turns. Returns 0, -EINVAL, -ENOMEM.
 */
int exec_new(struct team *team, const struct kv_cache *kv, const struct exec_limits *limits,
	     struct exec **ret, struct err *err);
struct exec *exec_free(struct exec *e);

/* What was chosen, for people; "": there was nothing to choose. */
const char *exec_products(const struct exec *e);

/* team_resize(): between steps. */
int exec_resize(struct exec *e, uint64_t pool_bytes, struct err *err);

/*
 * Runs one step: @step is the caller's copy, @payload may be shared memory (it
 * is copied, then checked). Writes row results and log-probabilities to @room,
 * STEP_RESULT_BYTES, and fills *@ret.
 *
 * Returns 0; -EBADMSG with a sentence for a malformed step, or another negative
 * errno of computing it. ret->error is the same. After a failure the slots are
 * worth nothing: the process is to leave.
 */
int exec_step(struct exec *e, const struct step *step, const void *payload, void *room,
	      struct step_result *ret, struct err *err);

/*
 * Runs the steps of @ring in order, sleeping on its doorbell when there are
 * none. Returns 0 when *@interrupt is not 0 and the steps pushed before that
 * are done; who sets it rings the bell. Else only on failure, after the result
 * that tells it was written.
 */
int exec_run(struct exec *e, struct ring *ring, const _Atomic uint32_t *interrupt, struct err *err);

/* The same until no step waits: for tests. Returns the steps done, or what exec_run() does. */
int exec_drain(struct exec *e, struct ring *ring, struct err *err);

static inline void exec_freep(struct exec **e)
{
	*e = exec_free(*e);
}
