/* Turns: begun, completed or forgotten, and what a conversation is made of. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/session/store-parts.h"
#include "daemon/text/pyjson.h"

void store_begun_deinit(struct store_begun *b)
{
	free(b->conversation);
	free(b->ids);
	free(b->defaults);
	memset(b, 0, sizeof(*b));
}

/* Which turns run is known here alone: a row that was begun may be of a life that ended. */

bool store_is_running(const struct store *s, uint64_t session)
{
	for (size_t i = 0; i < s->n_running; i++) {
		if (s->running[i].session == session)
			return true;
	}
	return false;
}

static int reserve_running(struct store *s, size_t n, struct err *err)
{
	const size_t cap = MAX(2 * s->cap_running, s->n_running + n);
	struct store_live *more;

	if (s->n_running + n <= s->cap_running)
		return 0;
	more = reallocarray(s->running, cap, sizeof(*more));
	if (!more)
		return err_set(err, -ENOMEM, "out of memory");
	s->running = more;
	s->cap_running = cap;
	return 0;
}

static void add_running(struct store *s, uint64_t session, uint32_t turn)
{
	s->running[s->n_running++] = (struct store_live){ session, turn };
}

static void drop_running(struct store *s, uint64_t session, uint32_t turn)
{
	for (size_t i = 0; i < s->n_running; i++) {
		if (s->running[i].session == session && s->running[i].turn == turn)
			s->running[i--] = s->running[--s->n_running];
	}
}

int store_each_turn(struct store *s, const struct session_row *session, uint32_t last,
		    bool tell_damaged, turn_row_fn each, void *userdata, struct err *err)
{
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	uint32_t expected = 1;
	struct turn_row row;
	int r;

	r = store_prepare(s,
			  "SELECT " TURN_COLUMNS " FROM turn WHERE session=? AND n<=? ORDER BY n",
			  &stmt, err);
	if (r < 0)
		return r;
	sqlite3_bind_int64(stmt, 1, (int64_t)session->id);
	sqlite3_bind_int64(stmt, 2, last);
	while ((r = store_step(s, stmt, err)) > 0) {
		if (turn_row_read(s, stmt, &row) < 0 || row.n != expected) {
			if (!tell_damaged)
				return err_set(err, -EUCLEAN,
					       "turn %u of session '%.*s' is damaged: rewind to "
					       "turn %u to go on without it",
					       expected, SPAN_ARG(session->name), expected - 1);
			row.state = TURN_ROW_DAMAGED;
		}
		r = each(&row, userdata, err);
		if (r != 0)
			break;
		expected = row.n + 1;
	}
	return MIN(r, 0);
}

void turn_ids_deinit(struct turn_ids *ids)
{
	free(ids->at);
	memset(ids, 0, sizeof(*ids));
}

int turn_ids_follow(struct turn_ids *ids, const struct turn_row *row)
{
	const size_t more = row->ids.len / 4;

	if (row->vocab != ids->vocab)
		ids->n = 0;
	ids->vocab = row->vocab;
	ids->n_prompt = row->n_prompt;
	if (row->kept > ids->n || row->ids.len % 4 != 0)
		return -EUCLEAN;
	ids->n = row->kept;
	if (ids->n + more > ids->cap) {
		const size_t cap = MAX(2 * ids->cap, ids->n + more);
		uint32_t *at = reallocarray(ids->at, cap, sizeof(*at));

		if (!at)
			return -ENOMEM;
		ids->at = at;
		ids->cap = cap;
	}
	if (more > 0)
		memcpy(ids->at + ids->n, row->ids.data, row->ids.len);
	ids->n += more;
	return 0;
}

/* A conversation as it grows turn by turn. */
struct growing {
	json_t *all, *messages;
	struct turn_ids ids;
	uint32_t n_turns;
	size_t n_bytes; /* of requests and answers */
};

static void growing_deinit(struct growing *g)
{
	json_decref(g->all);
	turn_ids_deinit(&g->ids);
}

/* New messages at the end; options replace those given before. */
static int add_request(struct growing *g, struct span request, struct err *err)
{
	json_t *object = NULL, *value, *entry;
	const char *key;
	size_t i;
	int r;

	g->n_bytes += request.len;
	if (g->n_bytes > STORE_TEXT_BYTES_MAX)
		return err_set(
			err, -E2BIG,
			"the session would have %zu bytes of text or more; with more than %u "
			"it cannot go on",
			g->n_bytes, STORE_TEXT_BYTES_MAX);
	r = pyjson_load(request, &object, err);
	if (r < 0)
		return r == -ENOMEM ? r : err_wrap(err, -EINVAL, "the conversation");
	value = json_object_get(object, "messages");
	if (!json_is_array(value) || json_array_size(value) == 0) {
		json_decref(object);
		return err_set(err, -EINVAL,
			       "the conversation has no messages; one new one is wanted at least");
	}
	json_array_foreach(value, i, entry)
		json_array_append(g->messages, entry);
	json_object_foreach(object, key, value)
		if (strcmp(key, "messages") != 0)
			json_object_set(g->all, key, value);
	json_decref(object);
	return 0;
}

static int add_turn(const struct turn_row *row, void *userdata, struct err *err)
{
	struct growing *g = userdata;
	json_t *answer = NULL;
	int r;

	r = add_request(g, row->request, err);
	if (r == 0)
		r = pyjson_load(row->answer, &answer, err);
	if (r < 0)
		return r;
	json_array_append_new(g->messages, answer);
	g->n_bytes += row->answer.len;
	g->n_turns = row->n;
	return turn_ids_follow(&g->ids, row);
}

static int forget_begun(struct store *s, uint64_t session, struct err *err)
{
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	int r;

	r = store_prepare(s, "DELETE FROM turn WHERE session=? AND state=0", &stmt, err);
	if (r < 0)
		return r;
	sqlite3_bind_int64(stmt, 1, (int64_t)session);
	return store_step(s, stmt, err);
}

static int fill_begun(struct growing *g, const struct session_row *session, uint64_t vocab,
		      struct store_begun *ret, struct err *err)
{
	_cleanup_(store_begun_deinit) struct store_begun b = { .session = session->id,
							       .turn = g->n_turns + 1 };
	struct bytes text = { 0 };

	pyjson_dump(g->all, &text);
	b.conversation = text.at;
	b.conversation_len = text.n;
	b.defaults = strndup(session->defaults.data ? session->defaults.data : "",
			     session->defaults.len);
	if (text.failed || !b.conversation || !b.defaults)
		return err_set(err, -ENOMEM, "out of memory");
	if (g->ids.n > 0 && g->ids.vocab == vocab) {
		b.ids = steal(g->ids.at);
		b.n_ids = g->ids.n;
		b.n_prompt = MIN(g->ids.n_prompt, g->ids.n);
	}
	*ret = b;
	memset(&b, 0, sizeof(b));
	return 0;
}

/* The session to begin a turn of, made if need be. */
static int begin_session(struct store *s, const struct store_who *who, struct span name,
			 bool create, const struct store_limits *limits, sqlite3_stmt **stmt,
			 struct session_row *ret, char id_text[17], struct err *err)
{
	int r;

	r = session_find(s, who, name, stmt, ret, err);
	if (r != -ENOENT || !create)
		return r;
	*ret = (struct session_row){ .name = name, .defaults = SPAN("{}"), .implicit = true };
	return session_make(s, who, ret, limits, id_text, err);
}

/* Why a session whose turn is running begins no other. */
static int tell_busy(struct store *s, const struct session_row *session, struct span request,
		     struct store_begun *ret, struct err *err)
{
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	int r;

	r = store_prepare(s, "SELECT n, request FROM turn WHERE session=? AND state=0", &stmt, err);
	if (r < 0)
		return r;
	sqlite3_bind_int64(stmt, 1, (int64_t)session->id);
	err_set(err, -EBUSY, "a turn of session '%.*s' is running; it takes one after the other",
		SPAN_ARG(session->name));
	while ((r = store_step(s, stmt, err)) > 0) {
		const struct span same = column_span(stmt, 1);

		if (same.len != request.len || memcmp(same.data, request.data, request.len) != 0)
			continue;
		ret->session = session->id;
		ret->turn = (uint32_t)sqlite3_column_int64(stmt, 0);
		return -EALREADY;
	}
	return r < 0 ? r : -EBUSY;
}

static int begin(struct store *s, const struct store_who *who, struct span name, bool create,
		 const struct store_limits *limits, struct span request, uint64_t vocab,
		 struct store_begun *ret, struct err *err)
{
	_cleanup_(growing_deinit) struct growing g = { .all = json_object(),
						       .messages = json_array() };
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	struct session_row session;
	struct turn_row row;
	char id_text[17];
	int r;

	json_object_set_new(g.all, "messages", g.messages);
	r = begin_session(s, who, name, create, limits, &stmt, &session, id_text, err);
	if (r < 0)
		return r;
	if (store_is_running(s, session.id))
		return tell_busy(s, &session, request, ret, err);
	r = forget_begun(s, session.id, err);
	if (r == 0)
		r = store_each_turn(s, &session, UINT32_MAX, false, add_turn, &g, err);
	if (r == 0)
		r = add_request(&g, request, err);
	if (r < 0)
		return r;
	if (g.n_turns >= STORE_TURNS_MAX)
		return err_set(err, -E2BIG, "session '%.*s' has %u turns; no more can be",
			       SPAN_ARG(session.name), g.n_turns);
	row = (struct turn_row){ .session = session.id,
				 .n = g.n_turns + 1,
				 .state = TURN_ROW_BEGUN,
				 .request = request,
				 .begun = store_now(),
				 .n_cached = -1,
				 .n_reasoning = -1 };
	r = turn_row_write(s, &row, err);
	if (r == 0)
		r = store_check_bytes(s, who->uid, limits, err);
	return r < 0 ? r : fill_begun(&g, &session, vocab, ret, err);
}

int store_begin(struct store *s, const struct store_who *who, struct span name, bool create,
		const struct store_limits *limits, struct span request, uint64_t vocab,
		struct store_begun *ret, struct err *err)
{
	_cleanup_(store_begun_deinit) struct store_begun b = { 0 };
	int r;

	r = reserve_running(s, 1, err);
	if (r == 0)
		r = store_limited_transaction(s, who->uid, limits, false, err);
	if (r < 0)
		return r;
	r = store_finish(s, begin(s, who, name, create, limits, request, vocab, &b, err), err);
	if (r == -EALREADY) {
		ret->session = b.session;
		ret->turn = b.turn;
	}
	if (r < 0)
		return r;
	add_running(s, b.session, b.turn);
	*ret = b;
	memset(&b, 0, sizeof(b));
	return 0;
}

static int find_turn(struct store *s, uint64_t session, uint32_t turn, sqlite3_stmt **ret_stmt,
		     struct turn_row *ret, struct err *err)
{
	int r;

	r = store_prepare(s, "SELECT " TURN_COLUMNS " FROM turn WHERE session=? AND n=?", ret_stmt,
			  err);
	if (r < 0)
		return r;
	sqlite3_bind_int64(*ret_stmt, 1, (int64_t)session);
	sqlite3_bind_int64(*ret_stmt, 2, turn);
	r = store_step(s, *ret_stmt, err);
	if (r <= 0)
		return r < 0 ? r : err_set(err, -ENOENT, "the turn's session is gone");
	if (turn_row_read(s, *ret_stmt, ret) < 0)
		return err_set(err, -EUCLEAN, "turn %u was damaged while it ran", turn);
	return 0;
}

static int follow_ids(const struct turn_row *row, void *userdata, struct err *err)
{
	(void)err;
	return row->state == TURN_ROW_COMPLETE ? turn_ids_follow(userdata, row) : 0;
}

/* How many ids the turn shares with the one before it; 0 where that cannot be known. */
static int count_kept(struct store *s, const struct store_end *end, uint32_t *ret, struct err *err)
{
	const struct session_row session = { .id = end->session };
	_cleanup_(turn_ids_deinit) struct turn_ids before = { 0 };
	uint32_t n = 0;
	int r;

	*ret = 0;
	r = store_each_turn(s, &session, end->turn - 1, false, follow_ids, &before, err);
	if (r == -EUCLEAN || (r == 0 && before.vocab != end->vocab))
		return 0;
	if (r < 0)
		return r;
	while (n < before.n && n < end->n_ids && before.at[n] == end->ids[n])
		n++;
	*ret = n;
	return 0;
}

static int touch_session(struct store *s, uint64_t session, int64_t now, struct err *err)
{
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	struct session_row row;
	int r;

	r = store_prepare(s, "SELECT " SESSION_COLUMNS " FROM session WHERE id=?", &stmt, err);
	if (r < 0)
		return r;
	sqlite3_bind_int64(stmt, 1, (int64_t)session);
	r = store_step(s, stmt, err);
	/* a damaged one stays as it is: the turn is what is to be saved */
	if (r <= 0 || session_row_read(s, stmt, &row) < 0)
		return r;
	row.used = now;
	row.implicit = false;
	return session_row_write(s, &row, err);
}

static int complete(struct store *s, const struct store_end *end, struct err *err)
{
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	struct turn_row row;
	int r;

	r = find_turn(s, end->session, end->turn, &stmt, &row, err);
	if (r < 0 || row.state == TURN_ROW_COMPLETE)
		return r;
	r = count_kept(s, end, &row.kept, err);
	if (r < 0)
		return r;
	row.state = TURN_ROW_COMPLETE;
	row.answer = end->answer;
	row.finish = end->finish;
	row.n_prompt = end->n_prompt;
	row.ids = (struct span){ (const char *)(end->ids + row.kept),
				 (size_t)(end->n_ids - row.kept) * 4 };
	row.n_cached = end->n_cached;
	row.n_reasoning = end->n_reasoning;
	row.vocab = end->vocab;
	row.ended = store_now();
	r = turn_row_write(s, &row, err);
	return r < 0 ? r : touch_session(s, end->session, row.ended, err);
}

int store_commit(struct store *s, const struct store_end *end, struct err *err)
{
	int r;

	drop_running(s, end->session, end->turn);
	r = store_transaction(s, true, err);
	if (r == 0)
		r = store_finish(s, complete(s, end, err), err);
	if (r == 0)
		s->counts.n_saved++;
	return r;
}

/* Sessions that were made by a turn which never was. */
static int forget_empty(struct store *s, struct err *err)
{
	return store_exec(s,
			  "DELETE FROM session WHERE implicit=1 AND id NOT IN"
			  " (SELECT session FROM turn)",
			  err);
}

static int forget_turn(struct store *s, uint64_t session, uint32_t turn, struct err *err)
{
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	int r;

	r = store_prepare(s, "DELETE FROM turn WHERE session=? AND n=? AND state=0", &stmt, err);
	if (r < 0)
		return r;
	sqlite3_bind_int64(stmt, 1, (int64_t)session);
	sqlite3_bind_int64(stmt, 2, turn);
	return store_step(s, stmt, err);
}

int store_abort(struct store *s, uint64_t session, uint32_t turn, struct err *err)
{
	int r;

	drop_running(s, session, turn);
	r = store_transaction(s, false, err);
	if (r < 0)
		return r;
	r = forget_turn(s, session, turn, err);
	if (r == 0)
		r = forget_empty(s, err);
	return store_finish(s, r, err);
}

static bool is_live(const struct store_live *live, size_t n, uint64_t session, uint32_t turn)
{
	for (size_t i = 0; i < n; i++) {
		if (live[i].session == session && live[i].turn == turn)
			return true;
	}
	return false;
}

static int settle(struct store *s, const struct store_live *live, size_t n, struct err *err)
{
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	int r;

	r = store_prepare(s, "SELECT session, n FROM turn WHERE state=0", &stmt, err);
	while (r == 0 && (r = store_step(s, stmt, err)) > 0) {
		const uint64_t session = (uint64_t)sqlite3_column_int64(stmt, 0);
		const uint32_t turn = (uint32_t)sqlite3_column_int64(stmt, 1);

		r = 0;
		if (is_live(live, n, session, turn) ||
		    is_live(s->running, s->n_running, session, turn))
			continue;
		s->counts.n_unfinished++;
		r = forget_turn(s, session, turn, err);
	}
	return r < 0 ? r : forget_empty(s, err);
}

int store_settle(struct store *s, const struct store_live *live, size_t n, struct err *err)
{
	int r;

	r = reserve_running(s, n, err);
	if (r == 0)
		r = store_transaction(s, false, err);
	if (r < 0)
		return r;
	r = store_finish(s, settle(s, live, n, err), err);
	for (size_t i = 0; i < n && r == 0; i++)
		add_running(s, live[i].session, live[i].turn);
	return r;
}

int store_ids_of(struct store *s, const struct store_name *name, uint64_t vocab, uint32_t **ret,
		 size_t *ret_n, size_t *ret_n_prompt, struct err *err)
{
	_cleanup_(turn_ids_deinit) struct turn_ids ids = { 0 };
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	const struct store_who who = { name->uid, name->label };
	struct session_row session;
	char id[17];
	int r;

	session_id_text(name->id, id);
	r = session_find(s, &who, span_of(id), &stmt, &session, err);
	if (r == 0)
		r = store_each_turn(s, &session, UINT32_MAX, false, follow_ids, &ids, err);
	if (r < 0)
		return r;
	*ret_n = ids.vocab == vocab ? ids.n : 0;
	*ret_n_prompt = MIN((size_t)ids.n_prompt, *ret_n);
	*ret = *ret_n ? steal(ids.at) : NULL;
	return 0;
}

int store_ids(struct store *s, const struct store_who *who, struct span name, uint64_t vocab,
	      uint32_t **ret, size_t *ret_n, struct err *err)
{
	_cleanup_(turn_ids_deinit) struct turn_ids ids = { 0 };
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	struct session_row session;
	int r;

	r = session_find(s, who, name, &stmt, &session, err);
	if (r == 0)
		r = store_each_turn(s, &session, UINT32_MAX, false, follow_ids, &ids, err);
	if (r < 0)
		return r;
	*ret_n = ids.vocab == vocab ? ids.n : 0;
	*ret = *ret_n ? steal(ids.at) : NULL;
	return 0;
}
