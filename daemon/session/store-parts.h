/* What the files of the store share: the connection, rows with their sums, transactions. */
#pragma once

#include <jansson.h>
#include <sqlite3.h>
#include <time.h>

#include "client/wire/ownership.h"
#include "daemon/session/store.h"

struct store {
	sqlite3 *db;
	char *path, *vfs;
	bool full_sync, checked;
	struct err unmended; /* why it is damaged still, while db is NULL */
	struct store_counts counts;
	struct store_live *running; /* begun in this life, or going on from an earlier one */
	size_t n_running, cap_running;
};

/* Columns as they are in the table; spans are valid until the statement moves. */
struct session_row {
	uint64_t id;
	uid_t uid;
	struct span label, name, defaults;
	int64_t created, used;
	bool pinned, implicit; /* implicit: made by its first turn, which is not committed yet */
	uint64_t forked_from;  /* 0: none */
};

enum turn_row_state { TURN_ROW_BEGUN, TURN_ROW_COMPLETE, TURN_ROW_DAMAGED /* never stored */ };

struct turn_row {
	uint64_t session;
	uint32_t n;
	enum turn_row_state state;
	struct span request, answer, finish;
	uint32_t n_prompt, kept; /* kept: ids shared with the turn before, not stored again */
	struct span ids;	 /* u32 little-endian, from kept on */
	uint64_t vocab;
	int64_t begun, ended;
	/* -1: of a turn that is not complete, or of a format before 4 */
	int64_t n_cached, n_reasoning;
};

#define SESSION_COLUMNS "id,uid,label,name,defaults,created,used,pinned,implicit,forked_from,sum"
#define TURN_COLUMNS_1 "session,n,state,request,answer,finish,n_prompt,kept,ids,vocab,begun,ended"
#define TURN_COLUMNS TURN_COLUMNS_1 ",n_cached,n_reasoning,sum"
#define TURN_COLUMNS_BEFORE_4 TURN_COLUMNS_1 ",-1,-1,sum"

static inline void finalizep(sqlite3_stmt **stmt)
{
	sqlite3_finalize(*stmt);
}

/* store.c */

/* The errno and the sentence of what SQLite said last. */
int store_fault(struct store *s, struct err *err);
int store_exec(struct store *s, const char *sql, struct err *err);
int store_prepare(struct store *s, const char *sql, sqlite3_stmt **ret, struct err *err);
/* 1: a row, 0: the end. */
int store_step(struct store *s, sqlite3_stmt *stmt, struct err *err);
/* The first column of the only row. */
int store_ask(struct store *s, const char *sql, int64_t *ret, struct err *err);
/* Begins one; @durable: its commit waits for the disk. */
int store_transaction(struct store *s, bool durable, struct err *err);
/* Ends it as @result says: commits if it is not negative, else undoes. Returns it, or why the commit failed. */
int store_finish(struct store *s, int result, struct err *err);

/* SQLite's code for what became of it. */
int store_connect(const char *path, const char *vfs, sqlite3 **ret);
/* Has @s use the database there, brought up to date. -EUCLEAN: it is damaged. */
int store_open_file(struct store *s, const char *path, struct err *err);

void bind_span(sqlite3_stmt *stmt, int at, struct span s);
struct span column_span(sqlite3_stmt *stmt, int at);

/* Reads a row of SESSION_COLUMNS or TURN_COLUMNS; -EUCLEAN: it does not match its sum; counted. */
int session_row_read(struct store *s, sqlite3_stmt *stmt, struct session_row *ret);
int turn_row_read(struct store *s, sqlite3_stmt *stmt, struct turn_row *ret);
/* Inserts or replaces it. */
int session_row_write(struct store *s, const struct session_row *row, struct err *err);
int turn_row_write(struct store *s, const struct turn_row *row, struct err *err);
/* The same of one after the other: *@made, NULL at first, is the statement, which the caller finalizes. */
int turn_row_put(struct store *s, sqlite3_stmt **made, const struct turn_row *row, struct err *err);

/* store-mend.c */

/* Puts what can be read of the database into its place. 1; or a failure, and all can be tried again. */
int store_mend(struct store *s, struct err *err);
/* Before it is opened: an earlier life may not have come to the end of that. */
int store_go_on_mending(struct store *s, struct err *err);
/* Rows of one that has just taken a damaged one's place. */
int store_count_kept(struct store *s, struct err *err);

/* store-sessions.c */

/* The session of @who with that name or id; its spans live as long as *@ret_stmt. -ENOENT, -EUCLEAN. */
int session_find(struct store *s, const struct store_who *who, struct span name,
		 sqlite3_stmt **ret_stmt, struct session_row *ret, struct err *err);
int session_id_text(uint64_t id, char ret[17]);
/* A new one; @row's id, times and, where the name is empty, name are set; -EEXIST, -EDQUOT, -EINVAL. */
int session_make(struct store *s, const struct store_who *who, struct session_row *row,
		 const struct store_limits *limits, char id_text[17], struct err *err);
int session_json(struct store *s, const struct session_row *row, json_t **ret, struct err *err);
/* Prints @object, which it takes over, NULL included. */
int session_print(json_t *object, struct bytes *ret, struct err *err);

/* store-usage.c */

/* From here on what changes is counted. */
int store_count_bytes(struct store *s, struct err *err);
/*
 * A transaction that store_check_bytes() ends. @uid's bytes are counted before it: what is counted
 * within is forgotten with what is refused, and would be counted again for each refusal.
 */
int store_limited_transaction(struct store *s, uid_t uid, const struct store_limits *limits,
			      bool durable, struct err *err);
/* At the end of a transaction: what @uid has with it. -EDQUOT. */
int store_check_bytes(struct store *s, uid_t uid, const struct store_limits *limits,
		      struct err *err);

/* store-turns.c */

bool store_is_running(const struct store *s, uint64_t session);
/*
 * Walks the turns 1 … @last of a session in order until @each returns other
 * than 0. A damaged one ends the walk with -EUCLEAN and a sentence, or with
 * @tell_damaged is passed on with that state and its number.
 */
typedef int (*turn_row_fn)(const struct turn_row *row, void *userdata, struct err *err);
int store_each_turn(struct store *s, const struct session_row *session, uint32_t last,
		    bool tell_damaged, turn_row_fn each, void *userdata, struct err *err);

/* The ids of turn after turn; begin with a zeroed one. */
struct turn_ids {
	uint32_t *at;
	size_t n, cap;
	uint32_t n_prompt; /* of the last turn */
	uint64_t vocab;
};
int turn_ids_follow(struct turn_ids *ids, const struct turn_row *row); /* 0, -ENOMEM, -EUCLEAN */
void turn_ids_deinit(struct turn_ids *ids);

static inline int64_t store_now(void)
{
	return (int64_t)time(NULL);
}
