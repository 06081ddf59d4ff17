/*
 * A damaged database is read from a copy of it and its log, PATH.reading, into
 * PATH.mending, which is named PATH.mended when it is whole: from then on it takes
 * the place of the other, though it may be another life that sees to it. Until then
 * nothing has happened to what was found, and whatever fails can be tried again.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/session/store-parts.h"
#include "daemon/session/walfile.h"

#define SET_ASIDE_MAX 1000
#define COPY_BYTES ((size_t)1 << 20)

/* Rows: forward to the first page that fails, then backward to the last. */

typedef int (*keep_fn)(struct store *s, sqlite3_stmt *stmt, struct err *err);

static int keep_session(struct store *s, sqlite3_stmt *stmt, struct err *err)
{
	struct session_row row;

	return session_row_read(s, stmt, &row) < 0 ? 0 : session_row_write(s, &row, err);
}

static int keep_turn(struct store *s, sqlite3_stmt *stmt, struct err *err)
{
	struct turn_row row;

	return turn_row_read(s, stmt, &row) < 0 ? 0 : turn_row_write(s, &row, err);
}

/* @before: for one of an older format */
static int keep_rows(struct store *s, sqlite3 *old, const char *sql, const char *before,
		     keep_fn keep, struct err *err)
{
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	int stepped;

	if (sqlite3_prepare_v2(old, sql, -1, &stmt, NULL) != SQLITE_OK &&
	    sqlite3_prepare_v2(old, before, -1, &stmt, NULL) != SQLITE_OK)
		return 0;
	while ((stepped = sqlite3_step(stmt)) == SQLITE_ROW) {
		const int r = keep(s, stmt, err);

		/* an index of the old one may have let a name in twice */
		if (r < 0 && r != -EEXIST)
			return r;
	}
	return stepped == SQLITE_NOMEM ? err_set(err, -ENOMEM, "out of memory") : 0;
}

static int keep_all(struct store *s, sqlite3 *old, struct err *err)
{
	static const struct {
		const char *sql, *before;
		keep_fn keep;
	} scans[] = {
		{ "SELECT " SESSION_COLUMNS " FROM session NOT INDEXED ORDER BY rowid", "",
		  keep_session },
		{ "SELECT " SESSION_COLUMNS " FROM session NOT INDEXED ORDER BY rowid DESC", "",
		  keep_session },
		{ "SELECT " TURN_COLUMNS " FROM turn NOT INDEXED ORDER BY rowid",
		  "SELECT " TURN_COLUMNS_BEFORE_4 " FROM turn NOT INDEXED ORDER BY rowid",
		  keep_turn },
		{ "SELECT " TURN_COLUMNS " FROM turn NOT INDEXED ORDER BY rowid DESC",
		  "SELECT " TURN_COLUMNS_BEFORE_4 " FROM turn NOT INDEXED ORDER BY rowid DESC",
		  keep_turn },
	};
	int r = 0;

	for (size_t i = 0; i < ARRAY_SIZE(scans) && r >= 0; i++)
		r = keep_rows(s, old, scans[i].sql, scans[i].before, scans[i].keep, err);
	/* turns of a session that is gone lead nowhere */
	return r < 0 ? r
		     : store_exec(s,
				  "DELETE FROM turn WHERE session NOT IN (SELECT id FROM session)",
				  err);
}

static int failed_at(const char *what, const char *path, struct err *err)
{
	const int r = -errno;

	return err_set(err, r, "cannot %s '%s': %s", what, path, strerror(-r));
}

/* The name of @path with @end behind it; NULL: no memory. */
static char *beside(const char *path, const char *end)
{
	char *name;

	return asprintf(&name, "%s%s", path, end) < 0 ? NULL : name;
}

static void remove_with_log(const char *path)
{
	_cleanup_(freep) char *log = beside(path, "-wal");

	unlink(path);
	if (log)
		unlink(log);
}

/* Names in the folder of @path are made to last. */
static int sync_folder(const char *path, struct err *err)
{
	_cleanup_(freep) char *folder = strdup(path);
	_cleanup_(closep) int fd = -1;
	char *slash = folder ? strrchr(folder, '/') : NULL;

	if (!folder)
		return err_set(err, -ENOMEM, "out of memory");
	if (slash)
		slash[slash == folder] = '\0';
	fd = open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 || fsync(fd) < 0 ? failed_at("sync the folder of", path, err) : 0;
}

/* No file is an empty one. */
static int copy_file(const char *path, const char *to, struct err *err)
{
	_cleanup_(closep) int from_fd = open(path, O_RDONLY | O_CLOEXEC);
	_cleanup_(closep) int fd = open(to, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
	_cleanup_(freep) char *block = malloc(COPY_BYTES);
	ssize_t n = 0;

	if (!block)
		return err_set(err, -ENOMEM, "out of memory");
	if (fd < 0)
		return failed_at("make", to, err);
	while (from_fd >= 0 && (n = read(from_fd, block, COPY_BYTES)) > 0)
		for (ssize_t done = 0, m; done < n; done += m) {
			m = write(fd, block + done, (size_t)(n - done));
			if (m < 0)
				return failed_at("write", to, err);
		}
	return n < 0 ? failed_at("read", path, err) : 0;
}

static int copy_with_log(const char *path, const char *to, struct err *err)
{
	_cleanup_(freep) char *log = beside(path, "-wal"), *log_to = beside(to, "-wal");
	int r;

	if (!log || !log_to)
		return err_set(err, -ENOMEM, "out of memory");
	r = copy_file(path, to, err);
	return r < 0 ? r : copy_file(log, log_to, err);
}

/* Every row of @from that can be read and matches its sum, into a new database at @to. */
static int read_out(struct store *s, const char *from, const char *to, struct err *err)
{
	struct walfile_found found;
	sqlite3 *old = NULL;
	int r;

	r = walfile_mend(from, true, &found, err);
	if (r == 0)
		r = store_open_file(s, to, err);
	if (r == 0 && store_connect(from, s->vfs, &old) == SQLITE_OK) {
		r = store_transaction(s, true, err);
		if (r >= 0)
			r = store_finish(s, keep_all(s, old, err), err);
	}
	sqlite3_close(old);
	if (r == 0)
		r = store_checkpoint(s, true, err);
	sqlite3_close(s->db);
	s->db = NULL;
	return r;
}

/* A name that is free for what goes aside; NULL: there is none, or no memory. */
static char *name_aside(const struct store *s)
{
	char end[32], *name;

	for (int n = 1; n <= SET_ASIDE_MAX; n++) {
		snprintf(end, sizeof(end), ".damaged-%d", n);
		name = beside(s->path, end);
		if (!name || access(name, F_OK) < 0)
			return name;
		free(name);
	}
	return NULL;
}

/* What was found goes aside with its log, and @mended takes its place. Done again, it goes on where it was. */
static int take_place(struct store *s, const char *mended, struct err *err)
{
	_cleanup_(freep) char *log = beside(s->path, "-wal"), *aside = name_aside(s);
	_cleanup_(freep) char *log_aside = aside ? beside(aside, "-wal") : NULL;

	if (!log || !log_aside)
		return err_set(err, -EIO, "there is no name left for '%s' to be set aside",
			       s->path);
	/* the log first: with the mended database it would be nothing but damage */
	if (rename(log, log_aside) < 0 && errno != ENOENT)
		return failed_at("set aside", log, err);
	if (rename(s->path, aside) < 0 && errno != ENOENT)
		return failed_at("set aside", s->path, err);
	if (rename(mended, s->path) < 0)
		return failed_at("rename", mended, err);
	s->counts.n_set_aside++;
	return sync_folder(s->path, err);
}

/* Of a database that has just taken a damaged one's place. */
int store_count_kept(struct store *s, struct err *err)
{
	int64_t n = 0;
	const int r = store_ask(
		s, "SELECT (SELECT count(*) FROM session) + (SELECT count(*) FROM turn)", &n, err);

	s->counts.n_kept = (uint64_t)n;
	return r;
}

static int mend(struct store *s, struct err *err)
{
	_cleanup_(freep) char *reading = beside(s->path, ".reading");
	_cleanup_(freep) char *mending = beside(s->path, ".mending");
	_cleanup_(freep) char *mended = beside(s->path, ".mended"), *aside = name_aside(s);
	int r;

	sqlite3_close(s->db);
	s->db = NULL;
	if (!reading || !mending || !mended)
		return err_set(err, -ENOMEM, "out of memory");
	if (!aside)
		return err_set(err, -EIO, "there is no name left for '%s' to be set aside",
			       s->path);
	remove_with_log(mending);
	r = copy_with_log(s->path, reading, err);
	if (r == 0)
		r = read_out(s, reading, mending, err);
	remove_with_log(reading);
	if (r == 0 && rename(mending, mended) < 0)
		r = failed_at("rename", mending, err);
	if (r < 0)
		remove_with_log(mending);
	if (r == 0)
		r = sync_folder(s->path, err);
	if (r == 0)
		r = take_place(s, mended, err);
	if (r == 0)
		r = store_open_file(s, s->path, err);
	if (r == 0)
		r = store_count_kept(s, err);
	return r < 0 ? r : 1;
}

int store_mend(struct store *s, struct err *err)
{
	struct err why = { 0 };
	int r;

	r = mend(s, &why);
	if (r >= 0)
		return r;
	s->unmended = (struct err){ 0 };
	err_set(&s->unmended, r, "%s", why.text[0] ? why.text : strerror(-r));
	if (!s->db)
		return store_fault(s, err);
	return err_set(err, r, "%s", s->unmended.text);
}

/* An earlier life may have been mending. */
int store_go_on_mending(struct store *s, struct err *err)
{
	_cleanup_(freep) char *reading = beside(s->path, ".reading");
	_cleanup_(freep) char *mending = beside(s->path, ".mending");
	_cleanup_(freep) char *mended = beside(s->path, ".mended");

	if (!reading || !mending || !mended)
		return err_set(err, -ENOMEM, "out of memory");
	remove_with_log(reading);
	remove_with_log(mending);
	return access(mended, F_OK) < 0 ? 0 : take_place(s, mended, err);
}
