/*
 * Steps in shared memory, between the broker and one executor. A step is one
 * forward pass over a batch of rows, each for one slot. One memfd holds a
 * header, a ring of steps (written by the broker) and a ring of results
 * (written by the executor); an eventfd each way rings when one was put in.
 *
 * The memory outlives either side: positions are counts since the beginning,
 * a result stays until the broker has taken it, and a broker that adopts the
 * memory after a crash goes on at the positions it finds.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/wire/err.h"

#define STEP_MAGIC 0x31706574736d7473ull /* "stmstep1" */
#define STEP_VERSION 2
#define STEP_RING_SLOTS 4		  /* a power of two, at least the depth */
#define STEP_DEPTH_MAX 2		  /* steps in flight */
#define STEP_ROWS_MAX 64
#define STEP_TOKENS_MAX 2048		  /* of all rows of a step together */
#define STEP_PAYLOAD_BYTES (512u << 10)	  /* rows and what they refer to */
#define STEP_RESULT_BYTES (512u << 10)	  /* row results and logprobs */
#define STEP_TOP_MAX 20
#define STEP_STOP_IDS_MAX 32
#define STEP_BIAS_MAX 1024

enum step_kind {
	STEP_DECODE = 1, /* CONT rows only */
	STEP_MIXED,
	STEP_MOVE,	 /* no rows: the payload is struct step_move[n_rows] */
};

enum row_kind {
	ROW_FEED = 1, /* tokens, and the position of the first */
	ROW_CONT,     /* goes on from the slot's own length with what it sampled last */
};

enum row_flags {
	ROW_SAMPLE = 1,	  /* sample after the last token of the row */
	ROW_LOGPROBS = 2, /* with ROW_SAMPLE: log-probability of the sample and of the n_top best */
	ROW_SCORE = 4,	  /* FEED: log-probability of targets[i] after token i, and the n_top best */
	ROW_KNOWN = 8,	  /* FEED: the pages hold the tokens' KV already; nothing is computed */
};

/*
 * A row's order to one slot. Offsets count from the payload's beginning and
 * are multiples of 4, sampler_off and bias_off of 8; 0: none.
 *
 * A FEED at 0 opens the slot afresh and carries a sampler. A FEED below the
 * slot's length cuts the slot there first. A ROW_KNOWN has no other flag, and
 * its tokens do not count to a step's. A CONT after a sampled stop id, or
 * for a slot without a sample, does nothing (RESULT_IGNORED).
 */
struct row {
	uint16_t kind, slot;
	uint16_t n_tokens;	/* FEED: at least 1; CONT: 0 */
	uint16_t flags;
	uint32_t at;		/* FEED: position of the first token */
	uint32_t tokens_off;	/* FEED: u32[n_tokens] */
	uint32_t targets_off;	/* ROW_SCORE: u32[n_tokens]; UINT32_MAX: none wanted there */
	uint32_t pages_off;	/* u32[n_pages]: page ids granted */
	uint32_t page_at;	/* index in the slot's page table of the first of them */
	uint16_t n_pages, n_top;
	uint32_t sampler_off;	/* struct step_sampler: replaces the slot's */
	uint32_t pad;
};
_Static_assert(sizeof(struct row) == 40, "struct row is shared");

/* How a slot samples. Order and meaning as in daemon/exec/sample/sampler.h. */
struct step_sampler {
	double temperature, top_p, min_p;
	double repetition, frequency, presence; /* 1, 0, 0: off */
	uint64_t seed;			/* with the position, the key of the random generator */
	uint32_t top_k;			/* 0: off */
	uint32_t n_prompt;		/* tokens at the slot's beginning that are prompt, for the penalties */
	uint32_t min_tokens;		/* sampled tokens before which stop ids are masked */
	uint32_t vocab_real;		/* ids from here on are never sampled nor counted in a softmax */
	uint32_t n_stop_ids;
	uint32_t stop_ids[STEP_STOP_IDS_MAX];
	uint32_t n_bias, bias_off, pad;	/* u32 ids[n_bias], f32 values[n_bias] in the same payload */
};
_Static_assert(sizeof(struct step_sampler) == 216, "struct step_sampler is shared");

struct step {
	uint64_t id;		/* rises by one; the first of a memory is 1 */
	uint16_t kind, n_rows;	/* the payload begins with struct row[n_rows] */
	uint32_t payload_bytes;
};

#define STEP_MOVES_MAX 64
#define STEP_NO_PAGE UINT32_MAX

/*
 * One page's KV copied, cleared or summed. Those of a step are done in order;
 * the sums are taken when all are done. A sum is the XXH3-128 of
 * the first n_tokens positions' bytes, in the order of the page's layout. What
 * is summed is in the arena afterwards, wherever it was computed.
 *
 *	from == to		only the sum
 *	from == STEP_NO_PAGE	@to becomes zeros, all of it; the sum is 0
 *	else			the first n_tokens positions are copied, and summed in @to
 */
enum move_flags {
	STEP_MOVE_CHECK = 1, /* from == to, and it is the arena's page that is summed, and holds from then on */
};
struct step_move {
	uint32_t from, to;
	uint32_t n_tokens; /* 1 up to the page's */
	uint32_t flags;	   /* enum move_flags */
};
_Static_assert(sizeof(struct step_move) == 16, "struct step_move is shared");

/* The result of each, in order: the payload of a STEP_MOVE's result. */
struct step_moved {
	uint64_t sum[2]; /* low, high */
};
_Static_assert(sizeof(struct step_moved) == 16, "struct step_moved is shared");

enum result_flags {
	RESULT_SAMPLED = 1, /* tokens[0..n_tokens) were sampled */
	RESULT_STOPPED = 2, /* the last of them is a stop id */
	RESULT_IGNORED = 4, /* a CONT row that did nothing */
};

/* One for each row, in the rows' order. */
struct row_result {
	uint16_t slot, n_tokens;
	uint32_t flags;
	uint32_t length;       /* of the slot after the step: tokens whose KV is computed */
	uint32_t tokens[8];    /* 1 is used today; drafts need more */
	/*
	 * ROW_LOGPROBS (n = n_tokens) and ROW_SCORE (n = the row's n_tokens):
	 * f32 logprob[n], u32 top_ids[n][n_top], f32 top_logprobs[n][n_top],
	 * over ids below vocab_real, from logits before any sampler step. The
	 * logprob of a target UINT32_MAX is NaN. From the result payload's start.
	 */
	uint32_t logprobs_off;
};
_Static_assert(sizeof(struct row_result) == 48, "struct row_result is shared");

struct step_result {
	uint64_t id;
	int32_t error;	    /* 0, or a negative errno: the executor leaves after writing it */
	uint32_t device_us; /* time the step took */
	uint16_t n_rows, kind; /* the step's */
	uint32_t payload_bytes;
};

/* Either side's view of the memory. */
struct ring {
	struct ring_shared *shared; /* mapped; layout in step.c */
	size_t bytes;
	int memfd, down_fd, up_fd;  /* down: rings the executor; up: rings the broker */
};

/* Makes the memory and both doorbells, sealed against resizing. Returns 0 or a negative errno. */
int ring_new(struct ring *ret, struct err *err);

/*
 * Maps a memory made by ring_new(), in another process or another life. Takes
 * the descriptors over on success. Returns 0, -EBADMSG if magic, version, size
 * or seals are wrong or the doorbells are not those it was made with, or mmap's
 * error.
 */
int ring_map(int memfd, int down_fd, int up_fd, struct ring *ret, struct err *err);
void ring_deinit(struct ring *ring); /* unmaps, closes; the memory stays with the other side */

/* Broker. Room for the next step's payload: STEP_PAYLOAD_BYTES, or NULL at depth. */
void *ring_stage(struct ring *ring);
/* Publishes what was staged and rings the bell. @step->id is set here and returned. */
uint64_t ring_push(struct ring *ring, const struct step *step);
/* Rings the executor: whoever pushed may have died before its own ring. */
void ring_wake(struct ring *ring);
/* Steps pushed and not yet taken back as results. */
uint32_t ring_in_flight(const struct ring *ring);
/* The oldest result not yet taken; NULL if there is none. Copy, check, use. */
const struct step_result *ring_result(struct ring *ring, const void **ret_payload);
void ring_take(struct ring *ring); /* releases it; do this after its effects are stored */

/* Executor. The oldest step not yet done, and its payload; NULL if there is none. */
const struct step *ring_next(struct ring *ring, const void **ret_payload);
void *ring_result_room(struct ring *ring);				/* STEP_RESULT_BYTES */
void ring_done(struct ring *ring, const struct step_result *result);	/* publishes, rings back */
