/*
 * Running turns in a memfd that outlives the broker: what was asked, what has
 * been sampled, and up to which step results have been applied. One writer,
 * the broker; a record is believed only while its state says so.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "client/wire/err.h"
#include "client/wire/step.h"
#include "daemon/kv/miss.h"

#define TURNS_MAGIC 0x31736e7275746d73ull /* "smturns1" */
#define TURNS_VERSION 4
#define TURNS_MAX 512		/* records; queued and running ones */
#define TURN_STOP_BYTES 4096
#define TURN_STRING_ARGS_BYTES 8192
#define TURN_CONVERSATION_BYTES (4u << 20)
#define TURN_NO_SLOT 0xffffu

enum turn_state {
	TURN_FREE,
	TURN_OPEN,    /* being written: thrown away when adopted */
	TURN_QUEUED,  /* waits for a slot and pages */
	TURN_RUNNING, /* has a slot */
	TURN_ENDED,   /* kept until its client has the end, or nobody asks for it in time */
};

enum turn_finish {
	FINISH_NONE, FINISH_STOP, FINISH_STOP_STRING, FINISH_LENGTH, FINISH_DEADLINE,
	FINISH_CANCELLED, FINISH_FAULT, FINISH_SCORED, FINISH_N,
};
const char *turn_finish_name(enum turn_finish finish); /* "stop", "stop", "length", "deadline", … */

/*
 * What the store was told of the end of a session's turn: nothing; something,
 * and it may not have been kept; it was saved. Once it was told, it may mean
 * another turn by that number.
 */
enum turn_told { TURN_NOT_TOLD, TURN_TOLD, TURN_TOLD_AND_SAVED };

/*
 * How far a turn has come. There are two in a record; the one in force is
 * named by turn_record.mark, so that all of it changes at once.
 */
struct turn_mark {
	uint64_t last_step; /* results up to this step id are in the record */
	uint32_t n_ids;	    /* prompt and sampled tokens together */
	uint32_t n_kv;	    /* tokens whose KV the slot has after last_step */
	uint32_t n_scored;
	uint32_t sampled;   /* last_step sampled the last id, and the slot knows it */
};
_Static_assert(sizeof(struct turn_mark) == 24, "struct turn_mark outlives its writer");

/*
 * The record of one turn. The fixed part is followed by the arrays (see
 * turn_ids() and the like); all in shared memory.
 */
struct turn_record {
	_Atomic uint32_t state;	    /* enum turn_state; written last when opening, first when freeing */
	uint32_t finish;	    /* enum turn_finish */
	uint64_t id;		    /* random, not 0: names the turn to clients */
	uint32_t uid;
	char label[64], client[64]; /* terminated */
	uint64_t accepted_us, first_token_us, ended_us; /* clock_us() */
	uint64_t deadline_us;	    /* 0: none */
	uint32_t n_prompt;	    /* ids[0 .. n_prompt) */
	uint32_t n_ids;		    /* prompt and sampled tokens together; a stop id is the last */
	uint32_t max_tokens;	    /* sampled ones */
	uint32_t n_pages;
	uint32_t n_faults;	    /* executor deaths while in flight, since it last came past one */
	uint32_t n_cached;	    /* prompt tokens whose KV was there when it was first admitted */
	uint32_t n_cached_disk;	    /* of those, that were on disk alone */
	uint32_t n_recomputed;	    /* tokens computed again after their KV was lost */
	uint16_t slot, n_top;	    /* slot: TURN_NO_SLOT while queued */
	uint8_t score, logprobs, detach, chat_layout; /* chat_layout: enum of daemon/text/chat.h, 0 for raw text */
	uint8_t thinking, in_reasoning, ignore_eos, batch; /* batch: the class; else interactive */
	uint32_t stop_id;	    /* sampled, or UINT32_MAX */
	uint64_t last_step;	    /* results up to this step id are in the record */
	uint32_t n_scored;	    /* score: positions whose log-probability is there; the first has none: NaN */
	uint32_t n_bias;
	struct step_sampler sampler; /* bias_off unused: see turn_bias() */
	uint32_t stops_len, n_stops; /* strings one after the other, each ended by NUL */
	char stops[TURN_STOP_BYTES];
	uint32_t string_args_len;    /* arguments of tools that are strings: see daemon/text/chat.h */
	uint32_t tidy;		     /* computes its prompt for a later turn and samples nothing: of no client */
	char string_args[TURN_STRING_ARGS_BYTES];
	uint32_t bias_ids[STEP_BIAS_MAX];
	float bias_values[STEP_BIAS_MAX];
	/*
	 * The publication: n_ids, n_kv, last_step and n_scored above are copies of
	 * marks[mark], and are made again from it when the record is adopted.
	 */
	uint64_t ring_ino; /* of the step ring that last_step and n_kv speak of */
	uint32_t n_kv, sampled;
	_Atomic uint32_t mark; /* 0 or 1 */
	uint32_t mark_pad;
	struct turn_mark marks[2];
	uint64_t session;     /* the turn is session_turn of this session; 0: of none */
	uint32_t session_turn;
	uint32_t conversation_len; /* of a chat that may be worth tidying; 0: it is not kept */
	uint32_t session_told; /* enum turn_told */
	struct kvcache_miss miss; /* why n_cached is not n_prompt - 1 */
};

struct turns;

/* Makes the memory for turns of up to @max_context tokens and @max_pages pages. 0 or a negative errno. */
int turns_new(uint32_t max_context, uint32_t max_pages, struct turns **ret, struct err *err);
/* Takes @memfd over. -EBADMSG: magic, version, boot id, size or seals are wrong; every record is bounds-checked, bad ones freed. */
int turns_adopt(int memfd, struct turns **ret, struct err *err);
struct turns *turns_free(struct turns *t);
int turns_fd(const struct turns *t);
uint32_t turns_max_context(const struct turns *t);
uint32_t turns_max_pages(const struct turns *t);

/* A record in state OPEN, zeroed but for its id; NULL if all are taken. */
struct turn_record *turns_take(struct turns *t);
void turns_drop(struct turns *t, struct turn_record *rec);
struct turn_record *turns_find(struct turns *t, uint64_t id);		/* NULL: none */
struct turn_record *turns_next(struct turns *t, struct turn_record *after); /* NULL first; not FREE ones */

uint32_t *turn_ids(struct turns *t, struct turn_record *rec);		/* [max_context + 1] */
uint32_t *turn_page_table(struct turns *t, struct turn_record *rec);	/* [max_pages] */
/* Log-probabilities: row i belongs to ids[n_prompt + i], or to ids[i] when scoring. */
float *turn_logprobs(struct turns *t, struct turn_record *rec);		/* [max_context + 1] */
uint32_t *turn_top_ids(struct turns *t, struct turn_record *rec);	/* [max_context + 1][STEP_TOP_MAX], rows of n_top */
float *turn_top_logprobs(struct turns *t, struct turn_record *rec);	/* likewise */

char *turn_conversation(struct turns *t, struct turn_record *rec);	/* [TURN_CONVERSATION_BYTES] */

/* Publishes the plain counts as they stand: when a record is opened, and when KV is lost (n_kv = last_step = 0). */
void turn_restart(struct turn_record *rec);
/* Appends a sampled id and the step that sampled it in one publication: a crash sees both or neither. */
void turn_append(struct turns *t, struct turn_record *rec, uint32_t id, uint64_t step_id);
/* The same for a step that sampled nothing: the slot has @n_kv tokens, and @n_scored positions are scored. */
void turn_advance(struct turn_record *rec, uint32_t n_kv, uint32_t n_scored, uint64_t step_id);

static inline void turns_freep(struct turns **t)
{
	*t = turns_free(*t);
}
