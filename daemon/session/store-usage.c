/*
 * What each uid has in the database. Its bytes are counted once in a life, when
 * first asked for; from then on triggers keep them, so that what is undone is not
 * counted either. The table lives in memory, and with the connection.
 */
#include <errno.h>
#include <stdlib.h>

#include "daemon/session/store-parts.h"

#define TEXT_BYTES(row, column) "length(CAST(" row column " AS BLOB))"
#define TURN_BYTES(row)                                                                            \
	"(" TEXT_BYTES(row, "request") "+" TEXT_BYTES(row, "answer") "+length(" row "ids)+256)"
#define SESSION_BYTES(row) "(" TEXT_BYTES(row, "defaults") "+256)"

int store_count_bytes(struct store *s, struct err *err)
{
	/* recursive: else what REPLACE takes away would stay counted */
	static const char sql[] =
		"PRAGMA temp_store=MEMORY; PRAGMA recursive_triggers=ON;"
		"CREATE TEMP TABLE bytes_of(uid INTEGER PRIMARY KEY, bytes INTEGER NOT NULL);"
		"CREATE TEMP TRIGGER turn_came AFTER INSERT ON main.turn BEGIN"
		" UPDATE bytes_of SET bytes=bytes+" TURN_BYTES(
			"NEW.") " WHERE uid=(SELECT uid FROM session WHERE id=NEW.session); END;"
				"CREATE TEMP TRIGGER turn_went AFTER DELETE ON main.turn BEGIN"
				" UPDATE bytes_of SET bytes=bytes-" TURN_BYTES(
					"OLD.") " WHERE uid=(SELECT uid FROM session WHERE "
						"id=OLD.session); END;"
						"CREATE TEMP TRIGGER session_came AFTER INSERT ON "
						"main.session BEGIN"
						" UPDATE bytes_of SET bytes=bytes+" SESSION_BYTES(
							"NEW.") " WHERE uid=NEW.uid; END;"
								"CREATE TEMP TRIGGER session_went "
								"AFTER DELETE ON main.session BEGIN"
								" UPDATE bytes_of SET "
								"bytes=bytes-" SESSION_BYTES(
									"OLD.") " WHERE "
										"uid=OLD.uid; END;"
										"CREATE TEMP "
										"TRIGGER "
										"session_changed "
										"AFTER UPDATE OF "
										"defaults ON "
										"main.session BEGIN"
										" UPDATE bytes_of "
										"SET "
										"bytes="
										"bytes"
										"-" SESSION_BYTES("OLD.") "+" SESSION_BYTES(
											"NEW.") " W"
												"HE"
												"RE"
												" u"
												"id"
												"=N"
												"EW"
												".u"
												"id"
												"; "
												"EN"
												"D"
												";";

	return store_exec(s, sql, err);
}

/* The first column of the first row of @sql, whose parameters are all @uid. Returns whether there is one. */
static int ask_of(struct store *s, const char *sql, uid_t uid, int64_t *ret, struct err *err)
{
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	int r;

	r = store_prepare(s, sql, &stmt, err);
	if (r < 0)
		return r;
	for (int i = 1; i <= sqlite3_bind_parameter_count(stmt); i++)
		sqlite3_bind_int64(stmt, i, uid);
	r = store_step(s, stmt, err);
	if (r > 0)
		*ret = sqlite3_column_int64(stmt, 0);
	return r;
}

static int bytes_of(struct store *s, uid_t uid, uint64_t *ret, struct err *err)
{
	static const char known[] = "SELECT bytes FROM bytes_of WHERE uid=?";
	int64_t bytes = 0;
	int r;

	r = ask_of(s, known, uid, &bytes, err);
	if (r == 0)
		r = ask_of(s,
			   "INSERT INTO bytes_of SELECT ?, (SELECT ifnull(sum(" SESSION_BYTES(
				   "") "), 0) FROM session WHERE uid=?) + (SELECT "
				       "ifnull(sum(" TURN_BYTES("") "), 0) FROM turn WHERE session "
								    "IN (SELECT id FROM session "
								    "WHERE uid=?))",
			   uid, &bytes, err);
	if (r == 0)
		r = ask_of(s, known, uid, &bytes, err);
	*ret = (uint64_t)bytes;
	return MIN(r, 0);
}

int store_limited_transaction(struct store *s, uid_t uid, const struct store_limits *limits,
			      bool durable, struct err *err)
{
	uint64_t bytes;
	int r = 0;

	if (limits->max_bytes > 0)
		r = bytes_of(s, uid, &bytes, err);
	return r < 0 ? r : store_transaction(s, durable, err);
}

int store_check_bytes(struct store *s, uid_t uid, const struct store_limits *limits,
		      struct err *err)
{
	uint64_t bytes;
	int r;

	if (limits->max_bytes == 0)
		return 0;
	r = bytes_of(s, uid, &bytes, err);
	if (r < 0 || bytes <= limits->max_bytes)
		return r;
	return err_set(err, -EDQUOT, "uid %u would have %llu bytes of sessions; %llu may be", uid,
		       (unsigned long long)bytes, (unsigned long long)limits->max_bytes);
}

int store_usage(struct store *s, struct store_usage **ret, size_t *ret_n, struct err *err)
{
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	_cleanup_(freep) struct store_usage *at = NULL;
	size_t n = 0;
	int r;

	r = store_prepare(s, "SELECT uid, COUNT(*) FROM session GROUP BY uid", &stmt, err);
	while (r >= 0 && (r = store_step(s, stmt, err)) > 0) {
		struct store_usage *more = reallocarray(at, n + 1, sizeof(*at));

		if (!more)
			return err_set(err, -ENOMEM, "out of memory");
		at = more;
		at[n++] = (struct store_usage){ .uid = (uid_t)sqlite3_column_int64(stmt, 0),
						.n_sessions = (uint32_t)sqlite3_column_int64(stmt,
											     1) };
	}
	for (size_t i = 0; i < n && r >= 0; i++)
		r = bytes_of(s, at[i].uid, &at[i].n_bytes, err);
	if (r < 0)
		return r;
	*ret = steal(at);
	*ret_n = n;
	return 0;
}
