/* The database itself: opened, brought up to date, checked, mended, and its rows with their sums. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#define XXH_STATIC_LINKING_ONLY /* for states on the stack */
#include <xxhash.h>

#include "daemon/session/store-parts.h"
#include "daemon/session/walfile.h"

/* Format n comes of format n - 1 by formats[n - 1]. What was released once never changes. */
static const char *const formats[STORE_FORMAT] = {
	"CREATE TABLE session(id INTEGER PRIMARY KEY, uid INTEGER NOT NULL, label TEXT NOT NULL,"
	" name TEXT NOT NULL, defaults TEXT NOT NULL, created INTEGER NOT NULL,"
	" used INTEGER NOT NULL, pinned INTEGER NOT NULL, sum INTEGER NOT NULL,"
	" UNIQUE(uid, label, name));"
	"CREATE TABLE turn(session INTEGER NOT NULL, n INTEGER NOT NULL, state INTEGER NOT NULL,"
	" request TEXT NOT NULL, answer TEXT NOT NULL, finish TEXT NOT NULL,"
	" n_prompt INTEGER NOT NULL, kept INTEGER NOT NULL, ids BLOB NOT NULL,"
	" vocab INTEGER NOT NULL, begun INTEGER NOT NULL, ended INTEGER NOT NULL,"
	" sum INTEGER NOT NULL, UNIQUE(session, n));",

	"ALTER TABLE session ADD COLUMN implicit INTEGER NOT NULL DEFAULT 0;"
	"ALTER TABLE session ADD COLUMN forked_from INTEGER NOT NULL DEFAULT 0;",

	"CREATE TABLE format(only INTEGER PRIMARY KEY, n INTEGER NOT NULL);",

	"ALTER TABLE turn ADD COLUMN n_cached INTEGER NOT NULL DEFAULT -1;"
	"ALTER TABLE turn ADD COLUMN n_reasoning INTEGER NOT NULL DEFAULT -1;",
};
#define FORMAT_IN_TABLE 3     /* from here on it is written twice */
#define FORMAT_SUMS_SESSION 3 /* from here on a session's sum covers the whole row */

int store_fault(struct store *s, struct err *err)
{
	const char *text;

	if (!s->db) /* it was to be mended */
		return err_set(err, s->unmended.code ? s->unmended.code : -EIO,
			       "the session database '%s' is damaged, and cannot be mended now: %s",
			       s->path, s->unmended.text);
	text = sqlite3_errmsg(s->db);
	switch (sqlite3_errcode(s->db) & 0xff) {
	case SQLITE_NOMEM:
		return err_set(err, -ENOMEM, "out of memory");
	case SQLITE_ERROR: /* what is asked for fits the tables, if they are ours */
	case SQLITE_CORRUPT:
	case SQLITE_NOTADB:
		return err_set(err, -EUCLEAN, "the session database '%s' is damaged: %s", s->path,
			       text);
	case SQLITE_FULL:
		return err_set(err, -ENOSPC, "there is no room for the session database '%s'",
			       s->path);
	case SQLITE_BUSY:
		return err_set(err, -EBUSY,
			       "the session database '%s' is in use by another process", s->path);
	case SQLITE_CONSTRAINT:
		return -EEXIST; /* the caller knows what it was about */
	default:
		return err_set(err, -EIO, "the session database '%s' failed: %s", s->path, text);
	}
}

int store_exec(struct store *s, const char *sql, struct err *err)
{
	return sqlite3_exec(s->db, sql, NULL, NULL, NULL) == SQLITE_OK ? 0 : store_fault(s, err);
}

int store_prepare(struct store *s, const char *sql, sqlite3_stmt **ret, struct err *err)
{
	return sqlite3_prepare_v2(s->db, sql, -1, ret, NULL) == SQLITE_OK ? 0 : store_fault(s, err);
}

int store_step(struct store *s, sqlite3_stmt *stmt, struct err *err)
{
	switch (sqlite3_step(stmt)) {
	case SQLITE_ROW:
		return 1;
	case SQLITE_DONE:
		return 0;
	default:
		return store_fault(s, err);
	}
}

int store_ask(struct store *s, const char *sql, int64_t *ret, struct err *err)
{
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	int r;

	r = store_prepare(s, sql, &stmt, err);
	if (r == 0)
		r = store_step(s, stmt, err);
	if (r > 0)
		*ret = sqlite3_column_int64(stmt, 0);
	return MIN(r, 0);
}

int store_transaction(struct store *s, bool durable, struct err *err)
{
	int r = 0;

	if (durable != s->full_sync)
		r = store_exec(s, durable ? "PRAGMA synchronous=FULL" : "PRAGMA synchronous=NORMAL",
			       err);
	if (r < 0)
		return r;
	s->full_sync = durable;
	return store_exec(s, "BEGIN IMMEDIATE", err);
}

int store_finish(struct store *s, int result, struct err *err)
{
	int r = result;

	if (r >= 0)
		r = store_exec(s, "COMMIT", err);
	/* some failures have rolled back already */
	if (r < 0 && !sqlite3_get_autocommit(s->db))
		sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL);
	return r < 0 ? r : result;
}

void bind_span(sqlite3_stmt *stmt, int at, struct span span)
{
	sqlite3_bind_text(stmt, at, span.data ? span.data : "", (int)span.len, SQLITE_STATIC);
}

struct span column_span(sqlite3_stmt *stmt, int at)
{
	const char *data = sqlite3_column_blob(stmt, at); /* of a text: its bytes */

	return (struct span){ data, data ? (size_t)sqlite3_column_bytes(stmt, at) : 0 };
}

/* Sums: every field with its length before it, so that nothing can move from one into the next. */

static void sum_bytes(XXH3_state_t *x, struct span span)
{
	const uint64_t len = span.len;

	XXH3_64bits_update(x, &len, sizeof(len));
	XXH3_64bits_update(x, span.data, span.len);
}

static void sum_integer(XXH3_state_t *x, uint64_t value)
{
	XXH3_64bits_update(x, &value, sizeof(value));
}

/* Until format 2 what changes with every turn, and what format 2 added, was left out. */
static int64_t session_sum_of(const struct session_row *row, int format)
{
	XXH3_state_t x;

	XXH3_64bits_reset(&x);
	sum_integer(&x, row->id);
	sum_integer(&x, row->uid);
	sum_bytes(&x, row->label);
	sum_bytes(&x, row->name);
	sum_bytes(&x, row->defaults);
	sum_integer(&x, (uint64_t)row->created);
	sum_integer(&x, row->pinned);
	if (format >= FORMAT_SUMS_SESSION) {
		sum_integer(&x, (uint64_t)row->used);
		sum_integer(&x, row->implicit);
		sum_integer(&x, row->forked_from);
	}
	return (int64_t)XXH3_64bits_digest(&x);
}

static int64_t turn_sum(const struct turn_row *row)
{
	XXH3_state_t x;

	XXH3_64bits_reset(&x);
	sum_integer(&x, row->session);
	sum_integer(&x, row->n);
	sum_integer(&x, row->state);
	sum_bytes(&x, row->request);
	sum_bytes(&x, row->answer);
	sum_bytes(&x, row->finish);
	sum_integer(&x, row->n_prompt);
	sum_integer(&x, row->kept);
	sum_bytes(&x, row->ids);
	sum_integer(&x, row->vocab);
	sum_integer(&x, (uint64_t)row->begun);
	sum_integer(&x, (uint64_t)row->ended);
	/* one that has none keeps the sum that it had before there were any */
	if (row->n_cached != -1 || row->n_reasoning != -1) {
		sum_integer(&x, (uint64_t)row->n_cached);
		sum_integer(&x, (uint64_t)row->n_reasoning);
	}
	return (int64_t)XXH3_64bits_digest(&x);
}

int session_row_read(struct store *s, sqlite3_stmt *stmt, struct session_row *ret)
{
	int64_t sum;

	*ret = (struct session_row){
		.id = (uint64_t)sqlite3_column_int64(stmt, 0),
		.uid = (uid_t)sqlite3_column_int64(stmt, 1),
		.label = column_span(stmt, 2),
		.name = column_span(stmt, 3),
		.defaults = column_span(stmt, 4),
		.created = sqlite3_column_int64(stmt, 5),
		.used = sqlite3_column_int64(stmt, 6),
		.pinned = sqlite3_column_int64(stmt, 7),
		.implicit = sqlite3_column_int64(stmt, 8),
		.forked_from = (uint64_t)sqlite3_column_int64(stmt, 9),
	};
	sum = sqlite3_column_int64(stmt, 10);
	/* the shorter one: of a database that is being brought up to date, or was set aside before */
	if (sum == session_sum_of(ret, STORE_FORMAT) ||
	    sum == session_sum_of(ret, FORMAT_SUMS_SESSION - 1))
		return 0;
	s->counts.n_damaged++;
	return -EUCLEAN;
}

int turn_row_read(struct store *s, sqlite3_stmt *stmt, struct turn_row *ret)
{
	*ret = (struct turn_row){
		.session = (uint64_t)sqlite3_column_int64(stmt, 0),
		.n = (uint32_t)sqlite3_column_int64(stmt, 1),
		.state = (enum turn_row_state)sqlite3_column_int64(stmt, 2),
		.request = column_span(stmt, 3),
		.answer = column_span(stmt, 4),
		.finish = column_span(stmt, 5),
		.n_prompt = (uint32_t)sqlite3_column_int64(stmt, 6),
		.kept = (uint32_t)sqlite3_column_int64(stmt, 7),
		.ids = column_span(stmt, 8),
		.vocab = (uint64_t)sqlite3_column_int64(stmt, 9),
		.begun = sqlite3_column_int64(stmt, 10),
		.ended = sqlite3_column_int64(stmt, 11),
		.n_cached = sqlite3_column_int64(stmt, 12),
		.n_reasoning = sqlite3_column_int64(stmt, 13),
	};
	if (sqlite3_column_int64(stmt, 14) == turn_sum(ret))
		return 0;
	s->counts.n_damaged++;
	return -EUCLEAN;
}

int session_row_write(struct store *s, const struct session_row *row, struct err *err)
{
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	int r;

	r = store_prepare(s,
			  "INSERT INTO session(" SESSION_COLUMNS ") VALUES(?,?,?,?,?,?,?,?,?,?,?)"
			  " ON CONFLICT(id) DO UPDATE SET name=excluded.name,"
			  " defaults=excluded.defaults, used=excluded.used, pinned=excluded.pinned,"
			  " implicit=excluded.implicit, sum=excluded.sum",
			  &stmt, err);
	if (r < 0)
		return r;
	sqlite3_bind_int64(stmt, 1, (int64_t)row->id);
	sqlite3_bind_int64(stmt, 2, row->uid);
	bind_span(stmt, 3, row->label);
	bind_span(stmt, 4, row->name);
	bind_span(stmt, 5, row->defaults);
	sqlite3_bind_int64(stmt, 6, row->created);
	sqlite3_bind_int64(stmt, 7, row->used);
	sqlite3_bind_int64(stmt, 8, row->pinned);
	sqlite3_bind_int64(stmt, 9, row->implicit);
	sqlite3_bind_int64(stmt, 10, (int64_t)row->forked_from);
	sqlite3_bind_int64(stmt, 11, session_sum_of(row, STORE_FORMAT));
	return store_step(s, stmt, err);
}

int turn_row_put(struct store *s, sqlite3_stmt **made, const struct turn_row *row, struct err *err)
{
	sqlite3_stmt *stmt;
	int r = 0;

	if (!*made)
		r = store_prepare(s,
				  "REPLACE INTO turn(" TURN_COLUMNS
				  ") VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
				  made, err);
	if (r < 0)
		return r;
	stmt = *made;
	sqlite3_reset(stmt);
	sqlite3_bind_int64(stmt, 1, (int64_t)row->session);
	sqlite3_bind_int64(stmt, 2, row->n);
	sqlite3_bind_int64(stmt, 3, row->state);
	bind_span(stmt, 4, row->request);
	bind_span(stmt, 5, row->answer);
	bind_span(stmt, 6, row->finish);
	sqlite3_bind_int64(stmt, 7, row->n_prompt);
	sqlite3_bind_int64(stmt, 8, row->kept);
	sqlite3_bind_blob(stmt, 9, row->ids.data ? row->ids.data : "", (int)row->ids.len,
			  SQLITE_STATIC);
	sqlite3_bind_int64(stmt, 10, (int64_t)row->vocab);
	sqlite3_bind_int64(stmt, 11, row->begun);
	sqlite3_bind_int64(stmt, 12, row->ended);
	sqlite3_bind_int64(stmt, 13, row->n_cached);
	sqlite3_bind_int64(stmt, 14, row->n_reasoning);
	sqlite3_bind_int64(stmt, 15, turn_sum(row));
	return store_step(s, stmt, err);
}

int turn_row_write(struct store *s, const struct turn_row *row, struct err *err)
{
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;

	return turn_row_put(s, &stmt, row, err);
}

static int write_format(struct store *s, int64_t format, struct err *err)
{
	char sql[64];
	int r;

	snprintf(sql, sizeof(sql), "PRAGMA user_version=%lld", (long long)format);
	r = store_exec(s, sql, err);
	if (r < 0 || format < FORMAT_IN_TABLE)
		return r;
	snprintf(sql, sizeof(sql), "REPLACE INTO format VALUES(1, %lld)", (long long)format);
	return store_exec(s, sql, err);
}

/* Every session's sum anew; one that is damaged already stays so. */
static int sum_sessions(struct store *s, struct err *err)
{
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	struct session_row row;
	int r;

	r = store_prepare(s, "SELECT " SESSION_COLUMNS " FROM session", &stmt, err);
	while (r >= 0 && (r = store_step(s, stmt, err)) > 0)
		if (session_row_read(s, stmt, &row) == 0)
			r = session_row_write(s, &row, err);
	return r;
}

/* All that the schema says, as one text. */
static int read_schema(struct store *s, char **ret, struct err *err)
{
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	const char *text;
	int r;

	r = store_prepare(s,
			  "SELECT group_concat(type || name || tbl_name || ifnull(sql, ''))"
			  " FROM (SELECT * FROM sqlite_schema ORDER BY name)",
			  &stmt, err);
	if (r == 0)
		r = store_step(s, stmt, err);
	if (r < 0)
		return r;
	text = (const char *)sqlite3_column_text(stmt, 0);
	*ret = strdup(text ? text : "");
	return *ret ? 0 : err_set(err, -ENOMEM, "out of memory");
}

/* What read_schema() says of a fresh database of @format. */
static int schema_of(int64_t format, char **ret, struct err *err)
{
	struct store fresh = { .path = ":memory:" };
	int r;

	r = sqlite3_open(fresh.path, &fresh.db) == SQLITE_OK ? 0 : store_fault(&fresh, err);
	for (int64_t i = 0; i < format && r == 0; i++)
		r = store_exec(&fresh, formats[i], err);
	if (r == 0)
		r = read_schema(&fresh, ret, err);
	sqlite3_close(fresh.db);
	return r;
}

/* No sum covers the schema, and a bit of it can mean another table: it is compared with a fresh one. */
static int check_schema(struct store *s, int64_t format, struct err *err)
{
	_cleanup_(freep) char *found = NULL, *wanted = NULL;
	int r;

	r = schema_of(format, &wanted, err);
	if (r == 0)
		r = read_schema(s, &found, err);
	if (r < 0)
		return r;
	if (strcmp(found, wanted) != 0)
		return err_set(err, -EUCLEAN,
			       "the session database '%s' is damaged: its tables are not those of "
			       "format %lld",
			       s->path, (long long)format);
	return 0;
}

/*
 * The format it says in both places. Where they differ one of them is damaged:
 * it is that whose tables are there. -ENOTSUP: both say the same newer one.
 */
static int find_format(struct store *s, int64_t *ret, struct err *err)
{
	int64_t version = 0, written = 0;
	struct err none = { 0 };
	int r;

	r = store_ask(s, "PRAGMA user_version", &version, err);
	if (r < 0)
		return r;
	r = store_ask(s, "SELECT n FROM format", &written, &none);
	if (r < 0 && r != -EUCLEAN) /* before FORMAT_IN_TABLE there is none */
		return err_set(err, r, "%s", none.text);
	*ret = version;
	if (version > STORE_FORMAT && version == written)
		return err_set(err, -ENOTSUP,
			       "the session database '%s' has format %lld, from a newer steamd; "
			       "this one knows formats up to %d",
			       s->path, (long long)version, STORE_FORMAT);
	if (version >= 0 && version <= STORE_FORMAT &&
	    written == (version < FORMAT_IN_TABLE ? 0 : version))
		return 0;
	for (int64_t format = STORE_FORMAT; format > 0; format--) {
		r = check_schema(s, format, &none);
		if (r == -EUCLEAN)
			continue;
		r = r < 0 ? err_set(err, r, "%s", none.text) : write_format(s, format, err);
		s->counts.n_damaged++;
		*ret = format;
		return r;
	}
	return err_set(err, -EUCLEAN,
		       "the session database '%s' is damaged: its format is %lld or %lld", s->path,
		       (long long)version, (long long)written);
}

/* Format by format, each in one transaction with its number. */
static int bring_up_to_date(struct store *s, struct err *err)
{
	int64_t format = 0;
	int r;

	r = find_format(s, &format, err);
	for (; format < STORE_FORMAT && r >= 0; format++) {
		r = store_transaction(s, true, err);
		if (r < 0)
			break;
		r = store_exec(s, formats[format], err);
		if (r >= 0 && format + 1 == FORMAT_SUMS_SESSION)
			r = sum_sessions(s, err);
		if (r >= 0)
			r = write_format(s, format + 1, err);
		r = store_finish(s, r, err);
	}
	return r;
}

int store_connect(const char *path, const char *vfs, sqlite3 **ret)
{
	/* made by us, so that nobody else can read it for a moment */
	_cleanup_(closep) int fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	int r;

	(void)fd; /* should it fail, SQLite says why */
	r = sqlite3_open_v2(path, ret,
			    SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, vfs);
	if (r == SQLITE_OK)
		r = sqlite3_exec(*ret,
				 "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL;"
				 "PRAGMA wal_autocheckpoint=0; PRAGMA synchronous=NORMAL;"
				 "PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON;"
				 "PRAGMA secure_delete=ON; PRAGMA journal_size_limit=0",
				 NULL, NULL, NULL);
	return r;
}

int store_open_file(struct store *s, const char *path, struct err *err)
{
	int r;

	s->full_sync = false;
	if (store_connect(path, s->vfs, &s->db) != SQLITE_OK)
		return store_fault(s, err);
	r = bring_up_to_date(s, err);
	if (r >= 0)
		r = check_schema(s, STORE_FORMAT, err);
	return r < 0 ? r : store_count_bytes(s, err);
}

struct store *store_free(struct store *s)
{
	if (!s)
		return NULL;
	sqlite3_close(s->db); /* writes the log into the database */
	free(s->running);
	free(s->path);
	free(s->vfs);
	free(s);
	return NULL;
}

void store_count(const struct store *s, struct store_counts *ret)
{
	*ret = s->counts;
	ret->n_changes = s->db ? (uint64_t)sqlite3_total_changes(s->db) : 0;
}

int store_checkpoint(struct store *s, bool now, struct err *err)
{
	_cleanup_(freep) char *log = NULL;
	struct stat st;

	if (!s->db)
		return store_fault(s, err);
	if (!now) {
		if (asprintf(&log, "%s-wal", s->path) < 0)
			return log = NULL, -ENOMEM;
		if (stat(log, &st) < 0 || st.st_size < (off_t)STORE_WAL_BYTES_MAX)
			return 0;
	}
	if (sqlite3_wal_checkpoint_v2(s->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL) !=
	    SQLITE_OK)
		return store_fault(s, err);
	return 0;
}

static int open_or_mend(struct store *s, struct err *err)
{
	struct walfile_found found;
	int r;

	r = store_go_on_mending(s, err);
	if (r == 0)
		r = walfile_mend(s->path, false, &found, err);
	if (r < 0)
		return r;
	s->counts.n_log_mended += found.n_mended;
	s->counts.n_log_lost += found.n_lost;
	s->counts.n_log_torn += found.n_torn;
	r = found.n_lost > 0 ? -EUCLEAN : store_open_file(s, s->path, err);
	if (r == 0 && s->counts.n_set_aside > 0)
		r = store_count_kept(s, err);
	return r == -EUCLEAN ? store_mend(s, err) : r;
}

int store_open(const char *path, const char *vfs, struct store **ret, struct err *err)
{
	_cleanup_(store_freep) struct store *s = calloc(1, sizeof(*s));
	int r;

	if (!s || !(s->path = strdup(path)) || (vfs && !(s->vfs = strdup(vfs))))
		return err_set(err, -ENOMEM, "out of memory");
	r = open_or_mend(s, err);
	if (r < 0)
		return r;
	*ret = steal(s);
	return 0;
}

/* Counts the rows that do not match their sums; <0 only where the pages do not fit. */
static int check_rows(struct store *s, struct err *err)
{
	_cleanup_(finalizep) sqlite3_stmt *sessions = NULL, *turns = NULL;
	struct session_row session;
	struct turn_row turn;
	int r;

	r = store_prepare(s, "SELECT " SESSION_COLUMNS " FROM session", &sessions, err);
	while (r >= 0 && (r = store_step(s, sessions, err)) > 0)
		session_row_read(s, sessions, &session);
	if (r >= 0)
		r = store_prepare(s, "SELECT " TURN_COLUMNS " FROM turn", &turns, err);
	while (r >= 0 && (r = store_step(s, turns, err)) > 0)
		turn_row_read(s, turns, &turn);
	return r;
}

/* Whether the pages fit together: 1 or 0; or what the check failed with. */
static int pages_fit(struct store *s, struct err *err)
{
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	int r;

	r = store_prepare(s, "PRAGMA integrity_check(1)", &stmt, err);
	if (r == 0)
		r = store_step(s, stmt, err);
	return r > 0 ? span_is(column_span(stmt, 0), "ok") : r;
}

static int check(struct store *s, struct err *err)
{
	int r = s->db ? 0 : open_or_mend(s, err);

	if (r != 0)
		return r;
	r = pages_fit(s, err);
	/* again: what could not be read once tells this as damage, and is none */
	if (r == 0)
		r = pages_fit(s, err);
	if (r > 0)
		r = check_rows(s, err);
	else if (r == 0)
		r = -EUCLEAN;
	return r == -EUCLEAN ? store_mend(s, err) : r;
}

int store_check(struct store *s, struct err *err)
{
	const int r = check(s, err);

	s->checked = r >= 0;
	return r;
}

bool store_is_open(const struct store *s)
{
	return s->db;
}

bool store_is_checked(const struct store *s)
{
	return s->checked;
}
