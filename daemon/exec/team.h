/*
 * The ranks of one model in one process: each has a thread, a device with
 * threads and memory of its own, its share of the weights and a model over
 * that. The thread that made the team is rank 0; the others sleep until it
 * calls, and all do the same then.
 *
 * Once a rank has failed within a forward pass the team is worth nothing: every
 * call returns -EIO, none waits, and the process is to leave.
 */
#pragma once

#include "daemon/exec/mirror.h"
#include "daemon/exec/model/model.h"

struct team;

/*
 * What is called, by its own thread, when a rank other than 0 fails in a pass on a
 * device that is not the host: the others may wait for it there, for ever.
 */
void team_on_loss(void (*lost)(uint32_t rank));

/*
 * Starts the ranks and opens their devices.
 *
 * n_threads	of all ranks together, at least one each; 0: see dev_open()
 * n_ranks	1 … SHARE_RANKS_MAX
 *
 * Returns 0; -EINVAL; what dev_open() does, with dev_why() as it leaves it; or
 * -EAGAIN, -ENOMEM for the threads.
 */
int team_open(enum isa isa, uint32_t n_threads, uint32_t n_ranks, struct team **ret);
/* Waits for the ranks, and frees models, weights and devices. By the thread that opened it. */
struct team *team_close(struct team *team);

/* weights_load_ranks(), weights_drop() and weights_reload_ranks() of all ranks. */
int team_load(struct team *team, const struct checkpoint *c, weights_progress_fn progress,
	      void *userdata, struct err *err);
void team_drop(struct team *team);
int team_reload(struct team *team, const struct checkpoint *c, weights_progress_fn progress,
		void *userdata, struct err *err);

/*
 * Makes each rank's model, over its heads of the pages of @kv, after team_load();
 * in place of those that were made before. On devices that are not the host the
 * pages of @kv, which is in the host's memory, have a mirror there, of one context:
 * team_resize() is for when all else that needs memory of the device has it. Else as
 * model_new().
 */
int team_make_models(struct team *team, const struct kv_cache *kv, uint32_t max_tokens,
		     uint32_t max_context, struct err *err);

/*
 * model_choose() of all ranks, each with a file of its own in @dir; NULL: none keeps
 * any. @ret_text is rank 0's.
 */
int team_choose(struct team *team, const char *dir, char *ret_text, size_t text_bytes);

/*
 * As model_forward() and model_logits(), and for whole logits; -EIO also if another rank failed.
 * Where there are mirrors the pages of @seqs are at most team_pages(), one in two of them counted twice.
 */
int team_forward(struct team *team, const uint32_t *ids, uint32_t n_tokens, const struct seq *seqs,
		 uint32_t n_seqs, const uint32_t *out, uint32_t n_out, float *logits);
int team_logits(struct team *team, uint32_t first, uint32_t n, float *logits);

/* mirror_move() on all ranks, where there are mirrors: false otherwise. */
bool team_has_mirrors(const struct team *team);
int team_move(struct team *team, const struct step_move *moves, uint32_t n);
/* Pages that a batch may have: the frames of the smallest mirror; UINT32_MAX where every page has one, or is computed in place. */
uint32_t team_pages(const struct team *team);
/*
 * mirror_resize() of all ranks, to @pool_bytes together, but not below one
 * context; 0: to nothing, until the next call. UINT64_MAX: to all pages.
 * Returns 0; -ENOMEM with the numbers: the devices have not memory for one
 * context; less than was asked for is no error. Or -EIO.
 */
int team_resize(struct team *team, uint64_t pool_bytes, struct err *err);
/* Of the mirrors of all ranks: bytes that have memory, that they cannot do without, that there are addresses for; of a group. */
struct team_pool {
	uint64_t bytes, least_bytes, most_bytes, group_bytes;
};
struct team_pool team_pool(const struct team *team);
/* dev_set_serving() of all devices. */
void team_set_serving(struct team *team, bool serving);

/*
 * Calls @run(team, rank, userdata) on every rank's thread, and waits. One that
 * fails where the others would wait for it has called comm_fail(). Returns 0, or
 * the failure of the lowest rank that is more than another's (-EIO), if it is known.
 */
int team_run(struct team *team, int (*run)(struct team *team, uint32_t rank, void *userdata),
	     void *userdata);

/* Of rank @rank. The model is NULL before team_make_models(). */
uint32_t team_ranks(const struct team *team);
struct dev *team_dev(const struct team *team, uint32_t rank);
struct mirror *team_mirror(const struct team *team, uint32_t rank); /* NULL: there is none, or not yet */
struct weights *team_weights(const struct team *team, uint32_t rank);
struct model *team_model(const struct team *team, uint32_t rank);

static inline void team_closep(struct team **team)
{
	*team = team_close(*team);
}
