/*
 * The real scheduler, KV pool, turns and executor object in one loop, against
 * the toy executor of computer.h and the store of manager.h. Nothing moves but
 * by world_run(); no test waits.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "daemon/base/clock.h"
#include "daemon/kv/kvdisk.h"
#include "daemon/sched/sched.h"
#include "tests/unit/computer.h"
#include "tests/unit/manager.h"

#define WORLD_CONTEXT 512
#define WORLD_PAGE_TOKENS 16
#define WORLD_TURNS 1024

struct world {
	sd_event *loop;
	struct settings settings;
	struct kvcache *cache;
	struct kvpool *kv; /* the cache's */
	struct kvdisk *disk; /* NULL: none */
	char disk_dir[64];
	struct kvcache_shared shared[2]; /* marked prompts, of every life */
	uint32_t n_shared;
	struct turns *turns;
	struct executor *executor;
	struct sched *sched;
	struct computer computer;
	struct manager manager;
	uint32_t n_pages, context;
	struct turn t[WORLD_TURNS]; /* in the order they were added */
	uint32_t n_turns, n_ended, n_tokens_calls;
	int ended_order[WORLD_TURNS]; /* indices in t */
	void (*heard)(struct world *w, struct turn *t); /* a turn's on_tokens; or NULL */
	void (*ended)(struct world *w, struct turn *t); /* a turn's on_end; or NULL */
	uint64_t remember_at_step;    /* at the first token of this step's result; 0: never */
	size_t record_bytes;	      /* of a turn */
	struct remembered {
		char *ring, *dir, *copies[TURNS_MAX];
		struct turn_record *records[TURNS_MAX]; /* that the copies are of */
		size_t dir_bytes;
		uint32_t n_records;
	} *remembered; /* memory as it was then; NULL: not yet */
	uint32_t stop_at_tokens;      /* on_tokens finishes a turn that sampled so many; 0: none */
};

/* All of it, with the executor started; contexts of WORLD_CONTEXT tokens. */
void world_open(struct world *w, uint32_t n_pages, uint32_t max_batch, uint32_t batch_tokens);
/* The same with contexts of @context tokens. */
void world_open_context(struct world *w, uint32_t context, uint32_t n_pages, uint32_t max_batch,
			uint32_t batch_tokens);
/* A disk behind the cache, in a new directory; all its files have been looked into. */
void world_open_disk(struct world *w);
void world_close(struct world *w);

/* Marks a prompt from now on; @ids must outlive the world. */
void world_mark(struct world *w, const uint32_t *ids, uint32_t n);

/* Runs until nothing moves any more, or the computer has done @n_steps more; those that only move pages do not count. */
void world_run(struct world *w, uint64_t n_steps);
void world_run_all(struct world *w);
/* All that waits to be done, results included; returns whether there was anything. */
bool world_listen(struct world *w);
/* The same, and then one step of the computer; returns whether there was anything. */
bool world_turn(struct world *w);

/* A turn whose record is open, with a prompt of its own; not submitted yet. */
struct turn *world_add(struct world *w, uint32_t uid, uint32_t n_prompt, uint32_t max_tokens);
struct turn *world_submit(struct world *w, uint32_t uid, uint32_t n_prompt, uint32_t max_tokens);

/*
 * All of the broker's objects go and come again: memory, ring and socket stay,
 * in the manager's store. Turns keep their place in t; n_ended begins at those
 * that had ended. With remember_at_step reached, all is as if the broker had
 * died then: in the middle of a result, of which the first token was stored;
 * the computer must have done nothing since.
 */
void world_restart_broker(struct world *w);

/* The machine begins anew, and of all there was only the disk is left; w->t is empty. */
void world_reboot(struct world *w);

/* The turn sampled @n_sampled tokens, those that the toy model says after its prompt. */
void world_assert_text(struct world *w, struct turn *t, uint32_t n_sampled);
/* Runs all; then nobody holds anything, and the books of pages agree. */
void world_assert_all_free(struct world *w);
