/*
 * The sessions of a simulated day: the real store, in a file system whose power
 * can be cut, and beside it a book of what must be in it. All calls block and
 * fail the test where store and book differ.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/session/store.h"

#define DAYBOOK_SESSIONS 20
#define DAYBOOK_TURNS_MAX 512

/* One that is complete. */
struct daybook_turn {
	uint32_t question, n_prompt, n_ids;
	const char *finish; /* static */
	uint32_t *ids;
};

struct daybook_session {
	struct store_who who;
	char name[8];
	uint64_t id;	  /* 0: there is none yet, or none any more */
	bool has_come;	  /* a turn of it was committed once: it stays */
	uint32_t running; /* the turn that was begun; 0: none */
	uint32_t question; /* its, or of the turn that was committed last */
	uint32_t n_turns;
	struct daybook_turn turns[DAYBOOK_TURNS_MAX];
};

struct daybook {
	struct store *store;
	char dir[64], path[96];
	struct daybook_session sessions[DAYBOOK_SESSIONS];
	uint32_t n_begun, n_committed, n_told_twice, n_aborted, n_rewound, n_unfinished, n_checked;
};

/* How the broker ends. */
enum daybook_end {
	DAYBOOK_STOPPED,    /* by its own doing */
	DAYBOOK_KILLED,	    /* what was written is there */
	DAYBOOK_POWER_CUT,  /* what was synced is there, */
	DAYBOOK_POWER_TORN, /* and some of what was written after that */
};

/* The caller sets each session's who before its first turn. */
void daybook_open(struct daybook *b);
void daybook_close(struct daybook *b);

/*
 * Begins a turn of session @i, which gets its id if it has none; what it begins
 * with is compared with what was committed last. Returns the turn's number.
 */
uint32_t daybook_begin(struct daybook *b, uint32_t i, uint32_t question);
/* Commits the turn that was begun; one that was committed already may be told again. */
void daybook_commit(struct daybook *b, uint32_t i, uint32_t turn, const char *finish,
		    const uint32_t *ids, uint32_t n_prompt, uint32_t n_ids);
void daybook_abort(struct daybook *b, uint32_t i, uint32_t turn);
/* Takes turns back that have more than @n_ids. */
void daybook_rewind(struct daybook *b, uint32_t i, uint32_t n_ids);
/* Writes the log into the database, as is done when nothing else is to do. */
void daybook_tidy(struct daybook *b);

/*
 * The broker ends and another begins, which has the turns @live; then all is
 * looked at. @seed: which writes are there after DAYBOOK_POWER_TORN.
 */
void daybook_restart(struct daybook *b, enum daybook_end end, uint64_t seed,
		     const struct store_live *live, uint32_t n_live);
/* Every committed turn is there whole, and what was begun only if it goes on; nothing else is. */
void daybook_check(struct daybook *b);
