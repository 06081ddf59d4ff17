/* The book of daybook.h: every change is made in both, the store and the book. */
#include "tests/unit/daybook.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <errno.h>
#include <ftw.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/session/store-parts.h"
#include "tests/unit/shim-vfs.h"

#define VOCAB 0x5eed5eed5eed5eedull

static struct span request_of(uint32_t question)
{
	static char json[96];

	snprintf(json, sizeof(json),
		 "{\"messages\": [{\"role\": \"user\", \"content\": \"question %u\"}]}", question);
	return span_of(json);
}

static struct span answer_to(uint32_t question)
{
	static char json[96];

	snprintf(json, sizeof(json), "{\"role\": \"assistant\", \"content\": \"answer %u\"}",
		 question);
	return span_of(json);
}

static void open_store(struct daybook *b)
{
	struct store_counts n;
	struct err err = { 0 };

	shim_reset(SHIM_NONE, 0);
	if (store_open(b->path, SHIM_VFS, &b->store, &err) < 0)
		fail_msg("%s", err.text);
	store_count(b->store, &n);
	assert_int_equal(n.n_set_aside, 0);
}

void daybook_open(struct daybook *b)
{
	memset(b, 0, sizeof(*b));
	snprintf(b->dir, sizeof(b->dir), "%s/steamd-daybook-XXXXXX",
		 access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
	assert_non_null(mkdtemp(b->dir));
	snprintf(b->path, sizeof(b->path), "%s/state.db", b->dir);
	for (uint32_t i = 0; i < DAYBOOK_SESSIONS; i++)
		snprintf(b->sessions[i].name, sizeof(b->sessions[i].name), "talk-%u", i);
	open_store(b);
	assert_int_equal(store_settle(b->store, NULL, 0, NULL), 0);
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
	(void)st, (void)kind, (void)ftw;
	return remove(path);
}

static void drop_turns(struct daybook_session *s, uint32_t n)
{
	while (s->n_turns > n)
		free(s->turns[--s->n_turns].ids);
}

void daybook_close(struct daybook *b)
{
	b->store = store_free(b->store);
	shim_reset(SHIM_NONE, 0);
	for (uint32_t i = 0; i < DAYBOOK_SESSIONS; i++)
		drop_turns(&b->sessions[i], 0);
	nftw(b->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* What is done. */

uint32_t daybook_begin(struct daybook *b, uint32_t i, uint32_t question)
{
	struct daybook_session *s = &b->sessions[i];
	const struct daybook_turn *last = s->n_turns > 0 ? &s->turns[s->n_turns - 1] : NULL;
	_cleanup_(store_begun_deinit) struct store_begun begun = { 0 };
	struct err err = { 0 };

	if (store_begin(b->store, &s->who, span_of(s->name), true, DAYBOOK_SESSIONS,
			request_of(question), VOCAB, &begun, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(begun.turn, s->n_turns + 1);
	assert_true(begun.turn < DAYBOOK_TURNS_MAX);
	assert_true(s->id == 0 || s->id == begun.session);
	assert_int_equal(begun.n_ids, last ? last->n_ids : 0);
	if (last) {
		assert_int_equal(begun.n_prompt, last->n_prompt);
		assert_memory_equal(begun.ids, last->ids, last->n_ids * sizeof(*last->ids));
	}
	s->id = begun.session;
	s->running = begun.turn;
	s->question = question;
	b->n_begun++;
	return begun.turn;
}

static void keep(struct daybook_session *s, const struct store_end *end, const char *finish)
{
	const size_t bytes = end->n_ids * sizeof(*end->ids);
	struct daybook_turn *t = &s->turns[s->n_turns++];

	*t = (struct daybook_turn){ .question = s->question,
				    .n_prompt = end->n_prompt,
				    .n_ids = end->n_ids,
				    .finish = finish,
				    .ids = malloc(bytes) };
	assert_non_null(t->ids);
	memcpy(t->ids, end->ids, bytes);
	s->has_come = true;
	s->running = 0;
}

void daybook_commit(struct daybook *b, uint32_t i, uint32_t turn, const char *finish,
		    const uint32_t *ids, uint32_t n_prompt, uint32_t n_ids)
{
	struct daybook_session *s = &b->sessions[i];
	const bool again = turn == s->n_turns;
	const struct store_end end = {
		.session = s->id,
		.turn = turn,
		.answer = answer_to(s->question),
		.finish = span_of(finish),
		.ids = ids,
		.n_prompt = n_prompt,
		.n_ids = n_ids,
		.vocab = VOCAB,
	};
	struct err err = { 0 };

	if (store_commit(b->store, &end, &err) < 0)
		fail_msg("%s", err.text);
	if (again) {
		b->n_told_twice++;
		return;
	}
	assert_int_equal(turn, s->running);
	keep(s, &end, finish);
	b->n_committed++;
}

/* What was begun is not any more; nor is a session that it alone had made. */
static void forget_running(struct daybook_session *s)
{
	s->running = 0;
	if (!s->has_come)
		s->id = 0;
}

void daybook_abort(struct daybook *b, uint32_t i, uint32_t turn)
{
	struct daybook_session *s = &b->sessions[i];
	struct err err = { 0 };

	assert_int_equal(turn, s->running);
	if (store_abort(b->store, s->id, turn, &err) < 0)
		fail_msg("%s", err.text);
	forget_running(s);
	b->n_aborted++;
}

void daybook_rewind(struct daybook *b, uint32_t i, uint32_t n_ids)
{
	struct daybook_session *s = &b->sessions[i];
	struct bytes said = { 0 };
	struct err err = { 0 };
	uint32_t n = s->n_turns;

	while (n > 0 && s->turns[n - 1].n_ids > n_ids)
		n--;
	if (n == s->n_turns)
		return;
	if (store_rewind(b->store, &s->who, span_of(s->name), n, &said, &err) < 0)
		fail_msg("%s", err.text);
	bytes_deinit(&said);
	drop_turns(s, n);
	b->n_rewound++;
}

void daybook_tidy(struct daybook *b)
{
	struct err err = { 0 };

	if (store_checkpoint(b->store, true, &err) < 0)
		fail_msg("%s", err.text);
}

/* What is looked at. */

struct walk {
	const struct daybook_session *session;
	struct turn_ids ids;
	uint32_t n;
};

static void assert_span(struct span found, struct span wanted)
{
	assert_int_equal(found.len, wanted.len);
	assert_memory_equal(found.data, wanted.data, wanted.len);
}

static int check_turn(const struct turn_row *row, void *userdata, struct err *err)
{
	struct walk *walk = userdata;
	const struct daybook_session *s = walk->session;
	const struct daybook_turn *t = &s->turns[walk->n];

	(void)err;
	assert_int_equal(row->n, ++walk->n);
	if (walk->n > s->n_turns) {
		assert_int_equal(row->state, TURN_ROW_BEGUN);
		assert_int_equal(row->n, s->running);
		assert_span(row->request, request_of(s->question));
		assert_int_equal(row->ids.len, 0);
		return 0;
	}
	assert_int_equal(row->state, TURN_ROW_COMPLETE);
	assert_span(row->request, request_of(t->question));
	assert_span(row->answer, answer_to(t->question));
	assert_span(row->finish, span_of(t->finish));
	assert_int_equal(row->n_prompt, t->n_prompt);
	assert_int_equal(turn_ids_follow(&walk->ids, row), 0);
	assert_int_equal(walk->ids.n, t->n_ids);
	assert_memory_equal(walk->ids.at, t->ids, t->n_ids * sizeof(*t->ids));
	return 0;
}

static void check_session(struct daybook *b, const struct daybook_session *s)
{
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	struct walk walk = { .session = s };
	struct session_row row;
	struct err err = { 0 };
	const int r = session_find(b->store, &s->who, span_of(s->name), &stmt, &row, &err);

	if (s->id == 0) {
		assert_int_equal(r, -ENOENT);
		return;
	}
	assert_int_equal(r, 0);
	assert_int_equal(row.id, s->id);
	if (store_each_turn(b->store, &row, UINT32_MAX, false, check_turn, &walk, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(walk.n, s->running > 0 ? s->running : s->n_turns);
	turn_ids_deinit(&walk.ids);
	b->n_checked += s->n_turns;
}

void daybook_check(struct daybook *b)
{
	_cleanup_(freep) struct store_name *names = NULL;
	struct store_counts n;
	struct err err = { 0 };
	size_t n_names = 0, n_wanted = 0;

	for (uint32_t i = 0; i < DAYBOOK_SESSIONS; i++) {
		check_session(b, &b->sessions[i]);
		n_wanted += b->sessions[i].id != 0;
	}
	assert_int_equal(store_recent(b->store, &names, &n_names, &err), 0);
	assert_int_equal(n_names, n_wanted);
	store_count(b->store, &n);
	assert_int_equal(n.n_damaged, 0);
}

static bool is_live(const struct daybook_session *s, const struct store_live *live, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		if (live[i].session == s->id && live[i].turn == s->running)
			return true;
	}
	return false;
}

static void end_store(struct daybook *b, enum daybook_end end, uint64_t seed)
{
	if (end != DAYBOOK_STOPPED)
		shim_cut_now();
	b->store = store_free(b->store);
	if (end == DAYBOOK_POWER_CUT)
		shim_restore(SHIM_SYNCED, seed);
	else if (end == DAYBOOK_POWER_TORN)
		shim_restore(SHIM_SOME, seed);
}

void daybook_restart(struct daybook *b, enum daybook_end end, uint64_t seed,
		     const struct store_live *live, uint32_t n_live)
{
	struct store_counts n;
	struct err err = { 0 };
	uint32_t n_lost = 0;

	end_store(b, end, seed);
	open_store(b);
	if (store_settle(b->store, live, n_live, &err) < 0)
		fail_msg("%s", err.text);
	for (uint32_t i = 0; i < DAYBOOK_SESSIONS; i++) {
		struct daybook_session *s = &b->sessions[i];

		if (s->running == 0 || is_live(s, live, n_live))
			continue;
		forget_running(s);
		n_lost++;
	}
	store_count(b->store, &n);
	/* of what was begun, or given up, the disk need not have heard when the power went */
	if (end == DAYBOOK_STOPPED || end == DAYBOOK_KILLED)
		assert_int_equal(n.n_unfinished, n_lost);
	b->n_unfinished += n_lost;
	daybook_check(b);
}
