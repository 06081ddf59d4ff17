/* Sessions by name: found, made, listed, copied, cut, removed. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "client/wire/utf8.h"
#include "daemon/session/store-parts.h"
#include "daemon/text/pyjson.h"

#define ID_DIGITS 16
#define DAY_S 86400

int session_id_text(uint64_t id, char ret[17])
{
	return snprintf(ret, ID_DIGITS + 1, "%016llx", (unsigned long long)id);
}

/* Exactly 16 hexadecimal digits, as session_id_text() writes them. */
static bool read_id(struct span text, uint64_t *ret)
{
	uint64_t id = 0;

	if (text.len != ID_DIGITS)
		return false;
	for (size_t i = 0; i < text.len; i++) {
		const char c = text.data[i];

		if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f')))
			return false;
		id = id << 4 | (uint64_t)(c <= '9' ? c - '0' : c - 'a' + 10);
	}
	*ret = id;
	return true;
}

static int check_name(struct span name, struct err *err)
{
	uint64_t id;

	if (name.len == 0 || name.len > STORE_NAME_MAX)
		return err_set(err, -EINVAL, "a session's name has 1 to %d bytes; this one has %zu",
			       STORE_NAME_MAX, name.len);
	if (name.data[0] == '-')
		return err_set(err, -EINVAL, "a session's name does not begin with '-'");
	for (size_t i = 0; i < name.len; i++) {
		const unsigned char c = (unsigned char)name.data[i];

		if (c == ' ' || utf8_control(name.data + i, name.len - i) > 0)
			return err_set(err, -EINVAL,
				       "a session's name has no white space and no control "
				       "characters; byte %zu is 0x%02x",
				       i, c);
	}
	if (read_id(name, &id))
		return err_set(err, -EINVAL,
			       "'%.*s' looks like a session's id; another name is wanted",
			       SPAN_ARG(name));
	return 0;
}

static int is_taken(struct span name, struct err *err)
{
	return err_set(err, -EEXIST, "there is a session named '%.*s' already", SPAN_ARG(name));
}

int session_find(struct store *s, const struct store_who *who, struct span name,
		 sqlite3_stmt **ret_stmt, struct session_row *ret, struct err *err)
{
	uint64_t id = 0;
	int r;

	r = store_prepare(s,
			  "SELECT " SESSION_COLUMNS " FROM session WHERE uid=? AND label=?"
			  " AND (name=? OR id=?) ORDER BY name=? DESC",
			  ret_stmt, err);
	if (r < 0)
		return r;
	read_id(name, &id); /* no session has the id 0 */
	sqlite3_bind_int64(*ret_stmt, 1, who->uid);
	bind_span(*ret_stmt, 2, span_of(who->label));
	bind_span(*ret_stmt, 3, name);
	sqlite3_bind_int64(*ret_stmt, 4, (int64_t)id);
	bind_span(*ret_stmt, 5, name);
	r = store_step(s, *ret_stmt, err);
	if (r == 0)
		r = err_set(err, -ENOENT, "no session '%.*s'", SPAN_ARG(name));
	if (r > 0 && (r = session_row_read(s, *ret_stmt, ret)) < 0)
		err_set(err, r, "session '%.*s' is damaged: its entry does not match its sum",
			SPAN_ARG(name));
	return MIN(r, 0);
}

/* What @sql, whose only parameter is @value, counts. */
static int count(struct store *s, const char *sql, int64_t value, int64_t *ret, struct err *err)
{
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	int r;

	r = store_prepare(s, sql, &stmt, err);
	if (r < 0)
		return r;
	sqlite3_bind_int64(stmt, 1, value);
	r = store_step(s, stmt, err);
	if (r > 0)
		*ret = sqlite3_column_int64(stmt, 0);
	return MIN(r, 0);
}

/* Runs @sql, whose only parameter is @value. */
static int run(struct store *s, const char *sql, uint64_t value, struct err *err)
{
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	int r;

	r = store_prepare(s, sql, &stmt, err);
	if (r < 0)
		return r;
	sqlite3_bind_int64(stmt, 1, (int64_t)value);
	return store_step(s, stmt, err);
}

int session_make(struct store *s, const struct store_who *who, struct session_row *row,
		 const struct store_limits *limits, char id_text[17], struct err *err)
{
	int64_t n = 0;
	int r = 0;

	if (row->name.len > 0)
		r = check_name(row->name, err);
	if (r == 0)
		r = count(s, "SELECT count(*) FROM session WHERE uid=?", who->uid, &n, err);
	if (r < 0)
		return r;
	if (n >= limits->max_sessions)
		return err_set(err, -EDQUOT, "uid %u has %lld sessions; %u may be", who->uid,
			       (long long)n, limits->max_sessions);
	do {
		if (getrandom(&row->id, sizeof(row->id), 0) != (ssize_t)sizeof(row->id))
			return err_set(err, -EIO, "no random id could be had");
		r = count(s, "SELECT count(*) FROM session WHERE id=?", (int64_t)row->id, &n, err);
		if (r < 0)
			return r;
	} while (row->id == 0 || n > 0);
	session_id_text(row->id, id_text);
	if (row->name.len == 0)
		row->name = (struct span){ id_text, ID_DIGITS };
	row->uid = who->uid;
	row->label = span_of(who->label);
	row->created = row->used = store_now();
	r = session_row_write(s, row, err);
	return r == -EEXIST ? is_taken(row->name, err) : r;
}

int session_print(json_t *object, struct bytes *ret, struct err *err)
{
	if (object)
		pyjson_dump(object, ret);
	json_decref(object);
	return object && !ret->failed ? 0 : err_set(err, -ENOMEM, "out of memory");
}

int session_json(struct store *s, const struct session_row *row, json_t **ret, struct err *err)
{
	int64_t turns = 0, tokens = 0;
	char id[17];
	json_t *o;
	int r;

	r = count(s, "SELECT count(*) FROM turn WHERE session=? AND state=1", (int64_t)row->id,
		  &turns, err);
	if (r == 0)
		r = count(s,
			  "SELECT kept + length(ids) / 4 FROM turn WHERE session=? AND state=1"
			  " ORDER BY n DESC LIMIT 1",
			  (int64_t)row->id, &tokens, err);
	if (r < 0)
		return r;
	session_id_text(row->id, id);
	o = json_pack("{s:s, s:o, s:I, s:I, s:b, s:b, s:I, s:I}", "id", id, "name",
		      json_stringn(row->name.data, row->name.len), "turns", (json_int_t)turns,
		      "tokens", (json_int_t)tokens, "pinned", row->pinned, "running",
		      store_is_running(s, row->id), "created", (json_int_t)row->created, "used",
		      (json_int_t)row->used);
	if (o && row->forked_from) {
		session_id_text(row->forked_from, id);
		json_object_set_new(o, "forked_from", json_string(id));
	}
	*ret = o;
	return o ? 0 : err_set(err, -ENOMEM, "out of memory");
}

int store_find(struct store *s, const struct store_who *who, struct span name, uint64_t *ret,
	       struct err *err)
{
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	struct session_row row;
	int r;

	r = session_find(s, who, name, &stmt, &row, err);
	if (r == 0)
		*ret = row.id;
	return r;
}

int store_list(struct store *s, const struct store_who *who, struct bytes *ret, struct err *err)
{
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	json_t *o = json_object(), *list = json_array(), *one;
	json_int_t n_damaged = 0;
	struct session_row row;
	int r;

	json_object_set_new(o, "sessions", list);
	r = store_prepare(s,
			  "SELECT " SESSION_COLUMNS " FROM session WHERE uid=? AND label=?"
			  " ORDER BY used DESC, name",
			  &stmt, err);
	if (r == 0) {
		sqlite3_bind_int64(stmt, 1, who->uid);
		bind_span(stmt, 2, span_of(who->label));
	}
	while (r == 0 && (r = store_step(s, stmt, err)) > 0) {
		r = 0;
		if (session_row_read(s, stmt, &row) < 0) {
			n_damaged++;
			continue;
		}
		r = session_json(s, &row, &one, err);
		if (r == 0)
			json_array_append_new(list, one);
	}
	if (n_damaged > 0)
		json_object_set_new(o, "damaged", json_integer(n_damaged));
	if (r < 0) {
		json_decref(o);
		return r;
	}
	return session_print(o, ret, err);
}

static int show_turn(const struct turn_row *row, void *userdata, struct err *err)
{
	json_t *o = json_pack("{s:i}", "n", (int)row->n), *value = NULL;
	int r = 0;

	if (!o)
		return err_set(err, -ENOMEM, "out of memory");
	json_array_append_new(userdata, o);
	if (row->state == TURN_ROW_DAMAGED) {
		json_object_set_new(o, "damaged", json_true());
		return 0;
	}
	r = pyjson_load(row->request, &value, err);
	if (r == 0)
		json_object_set_new(o, "request", value);
	json_object_set_new(o, "begun", json_integer(row->begun));
	if (row->state == TURN_ROW_BEGUN) {
		json_object_set_new(o, "running", json_true());
		return r;
	}
	if (r == 0)
		r = pyjson_load(row->answer, &value, err);
	if (r == 0)
		json_object_set_new(o, "answer", value);
	json_object_set_new(o, "finish", json_stringn(row->finish.data, row->finish.len));
	json_object_set_new(o, "n_prompt", json_integer(row->n_prompt));
	json_object_set_new(o, "n_ids", json_integer((json_int_t)(row->kept + row->ids.len / 4)));
	json_object_set_new(o, "n_kept", json_integer(row->kept));
	json_object_set_new(o, "ended", json_integer(row->ended));
	if (row->n_cached >= 0) {
		json_object_set_new(o, "n_cached", json_integer(row->n_cached));
		json_object_set_new(o, "n_reasoning", json_integer(row->n_reasoning));
	}
	return r;
}

int store_show(struct store *s, const struct store_who *who, struct span name, struct bytes *ret,
	       struct err *err)
{
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	json_t *o = NULL, *list = json_array(), *defaults;
	struct session_row row;
	int r;

	r = session_find(s, who, name, &stmt, &row, err);
	if (r == 0)
		r = session_json(s, &row, &o, err);
	if (r == 0 && (r = pyjson_load(row.defaults, &defaults, err)) == 0)
		json_object_set_new(o, "defaults", defaults);
	if (r == 0)
		r = store_each_turn(s, &row, UINT32_MAX, true, show_turn, list, err);
	if (r < 0) {
		json_decref(list);
		json_decref(o);
		return r;
	}
	json_object_set_new(o, "turn", list);
	return session_print(o, ret, err);
}

/* Each of the verbs below: found, changed and told in one durable transaction. */
struct change {
	const struct store_who *who;
	struct span name, to;
	uint32_t turn;
	const struct store_limits *limits;
	bool pinned;
};
typedef int (*change_fn)(struct store *s, const struct change *c, struct session_row *row,
			 struct bytes *ret, struct err *err);

static int change_found(struct store *s, const struct change *c, change_fn change,
			struct bytes *ret, struct err *err)
{
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	struct session_row row;
	int r;

	r = session_find(s, c->who, c->name, &stmt, &row, err);
	return r < 0 ? r : change(s, c, &row, ret, err);
}

static int change_session(struct store *s, const struct change *c, change_fn change,
			  struct bytes *ret, struct err *err)
{
	int r;

	r = c->limits ? store_limited_transaction(s, c->who->uid, c->limits, true, err)
		      : store_transaction(s, true, err);
	return r < 0 ? r : store_finish(s, change_found(s, c, change, ret, err), err);
}

static int tell(struct store *s, const struct session_row *row, struct bytes *ret, struct err *err)
{
	json_t *o;
	int r;

	r = session_json(s, row, &o, err);
	return r < 0 ? r : session_print(o, ret, err);
}

int store_new(struct store *s, const struct store_who *who, struct span name, struct span defaults,
	      const struct store_limits *limits, struct bytes *ret, struct err *err)
{
	struct session_row row = { .name = name, .defaults = defaults };
	char id_text[17];
	int r;

	r = store_limited_transaction(s, who->uid, limits, true, err);
	if (r < 0)
		return r;
	r = session_make(s, who, &row, limits, id_text, err);
	if (r == 0)
		r = store_check_bytes(s, who->uid, limits, err);
	if (r == 0)
		r = tell(s, &row, ret, err);
	return store_finish(s, r, err);
}

struct copying {
	struct store *store;
	sqlite3_stmt *put;
	uint64_t to;
};

static int copy_turn(const struct turn_row *row, void *userdata, struct err *err)
{
	struct copying *c = userdata;
	struct turn_row copy = *row;

	if (row->state != TURN_ROW_COMPLETE)
		return 0;
	copy.session = c->to;
	return turn_row_put(c->store, &c->put, &copy, err);
}

static int fork_to(struct store *s, const struct change *c, struct session_row *row,
		   struct bytes *ret, struct err *err)
{
	struct session_row copy = { .name = c->to,
				    .defaults = row->defaults,
				    .forked_from = row->id };
	struct copying copying = { .store = s };
	int64_t n = 0;
	char id_text[17];
	int r;

	r = count(s, "SELECT count(*) FROM turn WHERE session=? AND state=1", (int64_t)row->id, &n,
		  err);
	if (r < 0)
		return r;
	if (c->turn != UINT32_MAX && c->turn > n)
		return err_set(err, -EINVAL, "session '%.*s' has %lld turns; it cannot fork at %u",
			       SPAN_ARG(row->name), (long long)n, c->turn);
	r = session_make(s, c->who, &copy, c->limits, id_text, err);
	copying.to = copy.id;
	if (r == 0)
		r = store_each_turn(s, row, c->turn, false, copy_turn, &copying, err);
	sqlite3_finalize(copying.put);
	if (r == 0)
		r = store_check_bytes(s, c->who->uid, c->limits, err);
	return r < 0 ? r : tell(s, &copy, ret, err);
}

int store_fork(struct store *s, const struct store_who *who, struct span name, struct span to,
	       uint32_t turn, const struct store_limits *limits, struct bytes *ret, struct err *err)
{
	const struct change c = {
		.who = who, .name = name, .to = to, .turn = turn, .limits = limits
	};

	return change_session(s, &c, fork_to, ret, err);
}

static int must_rest(const struct store *s, const struct session_row *row, struct err *err)
{
	if (!store_is_running(s, row->id))
		return 0;
	return err_set(err, -EBUSY, "a turn of session '%.*s' is running; cancel it first",
		       SPAN_ARG(row->name));
}

static int rewind_to(struct store *s, const struct change *c, struct session_row *row,
		     struct bytes *ret, struct err *err)
{
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	int64_t n = 0;
	int r;

	r = must_rest(s, row, err);
	if (r == 0)
		r = count(s, "SELECT count(*) FROM turn WHERE session=?", (int64_t)row->id, &n,
			  err);
	if (r < 0)
		return r;
	if (c->turn > n)
		return err_set(err, -EINVAL,
			       "session '%.*s' has %lld turns; it cannot go back to %u",
			       SPAN_ARG(row->name), (long long)n, c->turn);
	r = store_prepare(s, "DELETE FROM turn WHERE session=? AND n>?", &stmt, err);
	if (r < 0)
		return r;
	sqlite3_bind_int64(stmt, 1, (int64_t)row->id);
	sqlite3_bind_int64(stmt, 2, c->turn);
	r = store_step(s, stmt, err);
	return r < 0 ? r : tell(s, row, ret, err);
}

int store_rewind(struct store *s, const struct store_who *who, struct span name, uint32_t turn,
		 struct bytes *ret, struct err *err)
{
	const struct change c = { .who = who, .name = name, .turn = turn };

	return change_session(s, &c, rewind_to, ret, err);
}

static int rename_to(struct store *s, const struct change *c, struct session_row *row,
		     struct bytes *ret, struct err *err)
{
	int r;

	r = check_name(c->to, err);
	if (r < 0)
		return r;
	row->name = c->to;
	r = session_row_write(s, row, err);
	if (r == -EEXIST)
		return is_taken(c->to, err);
	return r < 0 ? r : tell(s, row, ret, err);
}

int store_rename(struct store *s, const struct store_who *who, struct span name, struct span to,
		 struct bytes *ret, struct err *err)
{
	const struct change c = { .who = who, .name = name, .to = to };

	return change_session(s, &c, rename_to, ret, err);
}

static int pin(struct store *s, const struct change *c, struct session_row *row, struct bytes *ret,
	       struct err *err)
{
	int r;

	row->pinned = c->pinned;
	r = session_row_write(s, row, err);
	return r < 0 ? r : tell(s, row, ret, err);
}

int store_pin(struct store *s, const struct store_who *who, struct span name, bool pinned,
	      struct bytes *ret, struct err *err)
{
	const struct change c = { .who = who, .name = name, .pinned = pinned };

	return change_session(s, &c, pin, ret, err);
}

static int delete_session(struct store *s, uint64_t id, struct err *err)
{
	int r;

	r = run(s, "DELETE FROM turn WHERE session=?", id, err);
	return r < 0 ? r : run(s, "DELETE FROM session WHERE id=?", id, err);
}

static int remove_it(struct store *s, const struct change *c, struct session_row *row,
		     struct bytes *ret, struct err *err)
{
	int r;

	(void)c;
	r = must_rest(s, row, err);
	if (r == 0)
		r = tell(s, row, ret, err);
	return r < 0 ? r : delete_session(s, row->id, err);
}

int store_rm(struct store *s, const struct store_who *who, struct span name, struct bytes *ret,
	     struct err *err)
{
	const struct change c = { .who = who, .name = name };

	return change_session(s, &c, remove_it, ret, err);
}

int store_recent(struct store *s, struct store_name **ret, size_t *ret_n, struct err *err)
{
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	_cleanup_(freep) struct store_name *at = NULL;
	size_t n = 0, cap = 0;
	struct session_row row;
	int r;

	r = store_prepare(s, "SELECT " SESSION_COLUMNS " FROM session ORDER BY used DESC, id DESC",
			  &stmt, err);
	while (r >= 0 && n < STORE_RECENT_MAX && (r = store_step(s, stmt, err)) > 0) {
		if (session_row_read(s, stmt, &row) < 0 || row.label.len >= sizeof(at->label))
			continue;
		if (n == cap) {
			struct store_name *more = reallocarray(at, MAX(2 * cap, (size_t)16),
							       sizeof(*at));

			if (!more)
				return err_set(err, -ENOMEM, "out of memory");
			at = more;
			cap = MAX(2 * cap, (size_t)16);
		}
		at[n] = (struct store_name){ .id = row.id, .uid = row.uid };
		if (row.label.len > 0)
			memcpy(at[n].label, row.label.data, row.label.len);
		n++;
	}
	if (r < 0)
		return r;
	*ret = steal(at);
	*ret_n = n;
	return 0;
}

static int collect_old(struct store *s, const struct store_who *who, int64_t before, json_t *list,
		       struct err *err)
{
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	struct session_row row;
	json_t *one;
	int r;

	r = store_prepare(s,
			  "SELECT " SESSION_COLUMNS " FROM session"
			  " WHERE uid=? AND label=? AND pinned=0 AND used<=?",
			  &stmt, err);
	if (r < 0)
		return r;
	sqlite3_bind_int64(stmt, 1, who->uid);
	bind_span(stmt, 2, span_of(who->label));
	sqlite3_bind_int64(stmt, 3, before);
	while ((r = store_step(s, stmt, err)) > 0) {
		if (session_row_read(s, stmt, &row) < 0 || store_is_running(s, row.id))
			continue;
		r = session_json(s, &row, &one, err);
		if (r < 0)
			return r;
		json_array_append_new(list, one);
		r = delete_session(s, row.id, err);
		if (r < 0)
			return r;
	}
	return r;
}

int store_gc(struct store *s, const struct store_who *who, uint32_t days, struct bytes *ret,
	     struct err *err)
{
	json_t *o = json_object(), *list = json_array();
	int r;

	json_object_set_new(o, "removed", list);
	r = store_transaction(s, true, err);
	if (r == 0)
		r = store_finish(
			s, collect_old(s, who, store_now() - (int64_t)days * DAY_S, list, err),
			err);
	if (r < 0) {
		json_decref(o);
		return r;
	}
	return session_print(o, ret, err);
}
