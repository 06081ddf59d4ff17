/* A turn's way through the store: begun, forgotten or ended, and found again by the next broker. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/log.h"
#include "daemon/server/said.h"
#include "daemon/server/sessions-parts.h"
#include "daemon/server/stream.h"

/* Begun. */

/* What was begun does not follow the turn that it was to follow. */
static int tell_moved(struct job *job, uint32_t after)
{
	const int r = err_set(&job->err, -EREMCHG,
			      "turn %u of session '%.*s' is not its last any more: fork it there "
			      "to go on from it",
			      after, SPAN_ARG(job->request->msg.generate.session));
	struct err ignored = { 0 };

	if (job->begun.session)
		store_abort(job->x->store, job->begun.session, job->begun.turn, &ignored);
	store_begun_deinit(&job->begun);
	return r;
}

static int run_begin(struct job *job)
{
	const struct request *q = job->request;
	const struct msg_generate *g = &q->msg.generate;
	const struct store_who who = job_who(job);
	_cleanup_(freep) char *attached = NULL;
	struct span messages = g->messages;
	int r;

	if (q->attached_fd >= 0) {
		r = attached_read(q->attached_fd, q->attached_bytes, &attached, &job->err);
		if (r < 0)
			return r;
		messages = (struct span){ attached, q->attached_bytes };
	}
	r = store_begin(job->x->store, &who, g->session, g->has_session_create && g->session_create,
			&job->limits, messages, job->vocab, &job->begun, &job->err);
	if (g->has_session_after &&
	    (r == -EBUSY || (r == 0 && job->begun.turn != g->session_after + 1)))
		return tell_moved(job, g->session_after);
	return r;
}

/*
 * The same question again, while its turn goes on without a reader: a client
 * that lost its connection before the turn was accepted. It gets that turn.
 */
static int take_up(struct job *job, struct err *err)
{
	struct server *s = job->x->server;
	struct stream *st;

	TAILQ_FOREACH(st, &s->streams, link) {
		if (st->turn.rec->session == job->begun.session &&
		    st->turn.rec->session_turn == job->begun.turn && !st->request && !st->dropped)
			return stream_attach(st, job->request, 0, err);
	}
	*err = job->err;
	return -EBUSY;
}

static void begun(struct job *job)
{
	struct request *q = job->request;
	struct err err = { 0 };
	int r = job->result;

	if (r == -EALREADY) {
		r = take_up(job, &err);
	} else if (r >= 0) {
		q->begun = job->begun;
		memset(&job->begun, 0, sizeof(job->begun));
		r = request_hold(q,
				 q->begun.conversation_len + q->begun.n_ids * sizeof(*q->begun.ids),
				 &err);
		if (r >= 0)
			r = request_start(q, &err);
	} else {
		err = job->err;
	}
	if (r < 0)
		request_error(q, r, &err);
}

int sessions_begin(struct request *q, struct err *err)
{
	const struct msg_generate *g = &q->msg.generate;
	struct job *job;
	int r;

	if (!g->has_messages && !(g->has_attached && span_is(g->attached, "messages")))
		return err_set(err, -EINVAL, "generate.session goes with messages only");
	r = job_new(q->server, q, run_begin, begun, &job, err);
	return r < 0 ? r : job_push_request(job, err);
}

/* … forgotten … */

static int run_abort(struct job *job)
{
	return store_abort(job->x->store, job->end.session, job->end.turn, &job->err);
}

void sessions_abort(struct server *s, uid_t uid, uint64_t session, uint32_t turn)
{
	struct err err = { 0 };
	struct job *job;

	if (job_new(s, NULL, run_abort, job_log_failure, &job, &err) < 0)
		return;
	job_for(job, uid);
	job->end.session = session;
	job->end.turn = turn;
	job_push_own(job, "a turn that was given up is forgotten at the next start");
}

/* … or ended. */

static int run_commit(struct job *job)
{
	return store_commit(job->x->store, &job->end, &job->err);
}

static void committed(struct job *job)
{
	struct stream *st = stream_find(job->x->server, job->turn);

	if (job->result == -ECANCELED)
		return; /* its record tells the next broker */
	if (job->result < 0)
		log_warning("session %016llx: turn %u is not saved: %s",
			    (unsigned long long)job->end.session, job->end.turn, job->err.text);
	if (st)
		stream_saved(st, job->result, &job->err);
}

static int fill_end(struct stream *st, struct job *job)
{
	const struct turn_record *rec = st->turn.rec;
	const char *finish;
	int r;

	r = said_whole(st, &job->answer, &finish, &job->end.n_ids, &job->end.n_reasoning);
	if (r < 0)
		return r;
	job->ids = malloc(job->end.n_ids * sizeof(*job->ids));
	if (!job->ids)
		return -ENOMEM;
	memcpy(job->ids, turn_ids(st->server->engine->turns, st->turn.rec),
	       job->end.n_ids * sizeof(*job->ids));
	job_for(job, rec->uid);
	job->turn = rec->id;
	job->end.session = rec->session;
	job->end.turn = rec->session_turn;
	job->end.answer = span_of(job->answer);
	job->end.finish = span_of(finish);
	job->end.ids = job->ids;
	job->end.n_prompt = rec->n_prompt;
	job->end.n_cached = rec->n_cached;
	job->end.vocab = job->vocab;
	return 0;
}

/* An answer of which nothing was said, or that no executor could give, was no turn. */
static bool is_worth_keeping(const struct stream *st)
{
	const struct turn_record *rec = st->turn.rec;

	if (st->fault < 0 || rec->finish == FINISH_FAULT)
		return false;
	return rec->n_ids > rec->n_prompt ||
	       (rec->finish != FINISH_CANCELLED && rec->finish != FINISH_DEADLINE);
}

/* Its end was told by an earlier life, which may not have come to say so to the reader. */
static void recall_saved(struct stream *st)
{
	st->saved = st->turn.rec->session_told == TURN_TOLD_AND_SAVED;
	if (!st->saved)
		err_set(&st->not_saved, -EIO, "it failed before steamd was restarted: see its log");
}

void sessions_end(struct stream *st)
{
	struct turn_record *rec = st->turn.rec;
	struct err err = { 0 };
	struct job *job;
	int r;

	if (rec->session_told != TURN_NOT_TOLD) {
		recall_saved(st);
		return;
	}
	if (!is_worth_keeping(st)) {
		rec->session_told = TURN_TOLD;
		sessions_abort(st->server, rec->uid, rec->session, rec->session_turn);
		return;
	}
	r = job_new(st->server, NULL, run_commit, committed, &job, &err);
	if (r >= 0) {
		r = fill_end(st, job);
		if (r >= 0)
			r = job_push(job);
		if (r < 0) {
			job_free(job);
			err_set(&err, r, "out of memory");
		}
	}
	if (r < 0)
		stream_saved(st, r, &err);
	else
		st->saving = true;
}

/* At the start: what goes on, what is checked. */

static int run_settle(struct job *job)
{
	return store_settle(job->x->store, job->live, job->n_live, &job->err);
}

static void settled(struct job *job)
{
	job_log_failure(job);
	if (job->result >= 0)
		return;
	job->x->settled = false;
	job->x->settle_again = true;
}

static int add_live(struct job *job, const struct turn_record *rec)
{
	struct store_live *more = reallocarray(job->live, job->n_live + 1, sizeof(*more));

	if (!more)
		return -ENOMEM;
	job->live = more;
	job->live[job->n_live++] = (struct store_live){ rec->session, rec->session_turn };
	return 0;
}

void sessions_settle(struct server *s)
{
	struct turns *turns = s->engine->turns;
	struct turn_record *rec = NULL;
	struct err err = { 0 };
	struct job *job;
	int r = 0;

	if (s->sessions->settled || job_new(s, NULL, run_settle, settled, &job, &err) < 0)
		return;
	s->sessions->settled = true;
	s->sessions->settle_again = false;
	while (r == 0 && (rec = turns_next(turns, rec)))
		if (rec->session && rec->state != TURN_OPEN && !rec->session_told)
			r = add_live(job, rec);
	if (r < 0) {
		log_warning("sessions: out of memory: turns of an earlier life may be forgotten");
		job_free(job);
		return;
	}
	job_push_own(job, "turns of an earlier life may be forgotten");
}
