/*
 * What computes for one model: the KV arena, the turns' memory, the executor
 * and the scheduler over them, sized from settings and model, made afresh or
 * adopted from the service manager's descriptor store.
 */
#pragma once

#include "daemon/kv/kvdisk.h"
#include "daemon/sched/sched.h"
#include "daemon/server/textmodel.h"

struct engine_options {
	const struct settings *settings; /* outlives the engine */
	const char *program;		 /* the executor to fork, or */
	const char *unit_socket;	 /* the socket of its unit; NULL: fork */
	const char *state_dir;		 /* KV goes to its "kv"; NULL: to no disk. Outlives the engine */
	void (*on_state)(void *userdata); /* of the executor: state or progress changed */
	void (*on_seen)(void *userdata);  /* executor_seen() has the answer to executor_look() */
	void (*on_applied)(void *userdata); /* as the scheduler's */
	void *userdata;
};

/* How much of everything, reckoned before anything is made. */
struct engine_plan {
	uint32_t page_tokens, page_strips, n_pages, max_context, pages_per_turn;
	uint64_t page_bytes;
	uint32_t element_bytes; /* of one K or V */
	char warning[256]; /* empty, or why max_context is less than Context= */
};

struct engine {
	sd_event *loop;
	struct engine_options options;
	struct engine_plan plan;
	struct kvcache *kv;
	struct kvdisk *disk; /* NULL: none, or the model is not known yet */
	uint64_t disk_model[2]; /* chain_model() */
	struct turns *turns;
	struct executor *executor;
	struct sched *sched;
	bool adopted; /* the turns are from an earlier life: see turns_next() */
};

/*
 * @ram_bytes	of the machine, for the default of KVCacheSize=
 *
 * Returns 0, or -EINVAL with the numbers if the KV cache does not hold one page.
 */
int engine_reckon(const struct settings *s, const struct config *c, uint64_t ram_bytes,
		  struct engine_plan *ret, struct err *err);

/*
 * Makes or adopts everything and starts the executor; its state follows as
 * events. Adopted turns are not yet with the scheduler. Returns 0 or a
 * negative errno with a sentence; then what was to be adopted can be adopted
 * another time.
 */
int engine_new(sd_event *loop, const struct engine_options *options, const struct textmodel *model,
	       struct engine **ret, struct err *err);

/* The settings were read again: those that matter here and can change take effect. */
void engine_reload(struct engine *e);

/* @stop: ends a parked executor too and forgets what was stored; else it lives on for the next broker. */
struct engine *engine_free(struct engine *e, bool stop);

static inline void engine_freep(struct engine **e)
{
	*e = engine_free(*e, true);
}
