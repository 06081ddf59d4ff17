/* Jobs for the store thread, and what comes home from them. */
#include "daemon/server/sessions.h"

#include <errno.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/server/explain.h"
#include "daemon/server/said.h"
#include "daemon/server/stream.h"
#include "daemon/server/transfer.h"
#include "daemon/session/store.h"
#include "daemon/text/pyjson.h"

struct sessions {
	struct server *server;
	struct worker *thread;
	struct store *store;	    /* the thread's once it runs; NULL: see off */
	struct err off;		    /* why there is none */
	struct store_counts counts; /* as they were when the last job came home */
	bool settled;
	sd_event_source *idle; /* armed while there is a log to write into the database */
};

/* One call of the store. */
struct job {
	struct sessions *x;
	struct request *request; /* NULL: of no client */
	int (*run)(struct job *job);
	void (*home)(struct job *job);
	int result;
	struct err err;
	struct store_counts counts;

	char label[64];
	uid_t uid;
	uint64_t vocab, turn; /* turn: the record's id, to find its stream again */
	uint32_t vocab_size, max_sessions;
	struct bytes out, file;
	size_t n_ids;
	char *defaults;
	struct store_begun begun;

	struct store_end end;
	char *answer;
	uint32_t *ids;
	struct store_live *live;
	size_t n_live;
};

static void job_free(struct job *job)
{
	bytes_deinit(&job->out);
	bytes_deinit(&job->file);
	store_begun_deinit(&job->begun);
	free(job->defaults);
	free(job->answer);
	free(job->ids);
	free(job->live);
	free(job);
}

static struct store_who who_of(const struct job *job)
{
	return (struct store_who){ job->uid, job->label };
}

static void on_job_run(void *userdata)
{
	struct job *job = userdata;

	job->err = (struct err){ 0 };
	job->result = job->run(job);
	if (job->result == -ENOMEM && !job->err.text[0])
		err_set(&job->err, -ENOMEM, "out of memory");
	store_checkpoint(job->x->store, false, NULL);
	store_count(job->x->store, &job->counts);
}

static void arm_checkpoint(struct sessions *x);

static void on_job_home(void *userdata)
{
	struct job *job = userdata;
	struct request *q = job->request;

	if (job->counts.n_damaged > job->x->counts.n_damaged)
		log_warning("sessions: %llu rows do not match their sums",
			    (unsigned long long)(job->counts.n_damaged - job->x->counts.n_damaged));
	if (job->result != -ECANCELED) {
		if (job->counts.n_changes != job->x->counts.n_changes)
			arm_checkpoint(job->x);
		job->x->counts = job->counts;
	}
	if (q)
		q->in_worker = false;
	if (q && !q->peer) { /* its client left meanwhile */
		if (job->result >= 0 && job->begun.session)
			sessions_abort(job->x->server, job->begun.session, job->begun.turn);
		request_free(q);
	} else {
		job->home(job);
	}
	job_free(job);
}

/* A request's end comes with its job's; until then it outlives its peer. */
static int push(struct job *job)
{
	const int r = worker_push(job->x->thread, on_job_run, on_job_home, job);

	if (r < 0)
		return r;
	if (job->request)
		job->request->in_worker = true;
	return 0;
}

static int job_new(struct server *s, struct request *q, int (*run)(struct job *),
		   void (*home)(struct job *), struct job **ret, struct err *err)
{
	struct sessions *x = s->sessions;
	struct job *job;

	if (!x || !x->store)
		return err_set(err, -ENODEV, "sessions are not kept: %s",
			       x ? x->off.text : "steamd is ending");
	job = calloc(1, sizeof(*job));
	if (!job)
		return err_set(err, -ENOMEM, "out of memory");
	job->x = x;
	job->result = err_set(&job->err, -ECANCELED, "steamd ended before"); /* unless it is run */
	job->request = q;
	job->run = run;
	job->home = home;
	job->max_sessions = s->settings->max_user_sessions;
	if (s->model) {
		job->vocab = s->model->vocab_sum;
		job->vocab_size = s->model->vocab_real;
	}
	if (q) {
		job->uid = q->peer->uid;
		snprintf(job->label, sizeof(job->label), "%s", q->peer->label);
	}
	*ret = job;
	return 0;
}

/* Takes @job over. */
static int push_request(struct job *job, struct err *err)
{
	const int r = push(job);

	if (r < 0) {
		job_free(job);
		return err_set(err, r, "out of memory");
	}
	return 0;
}

/* One without a client; what cannot be pushed is only logged, as the next life repairs it. */
static void push_own(struct job *job, const char *what)
{
	if (push(job) < 0) {
		log_warning("sessions: out of memory: %s", what);
		job_free(job);
	}
}

static int run_checkpoint(struct job *job)
{
	return store_checkpoint(job->x->store, true, &job->err);
}

static void log_failure(struct job *job)
{
	if (job->result < 0)
		log_warning("sessions: %s", job->err.text);
}

static int on_idle(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct sessions *x = userdata;
	struct err err = { 0 };
	struct job *job;

	(void)source, (void)usec;
	x->idle = sd_event_source_disable_unref(x->idle);
	if (job_new(x->server, NULL, run_checkpoint, log_failure, &job, &err) == 0)
		push_own(job, "no checkpoint");
	return 0;
}

/* After every job that wrote, anew. */
static void arm_checkpoint(struct sessions *x)
{
	x->idle = sd_event_source_disable_unref(x->idle);
	if (sd_event_add_time_relative(x->server->loop, &x->idle, CLOCK_MONOTONIC, SESSIONS_IDLE_US,
				       US_PER_S, on_idle, x) < 0)
		log_warning("sessions: no timer: the database's log grows until the next write");
}

/* The verbs. */

static int run_list(struct job *job)
{
	const struct store_who who = who_of(job);

	return store_list(job->x->store, &who, &job->out, &job->err);
}

static int run_show(struct job *job)
{
	const struct store_who who = who_of(job);

	return store_show(job->x->store, &who, job->request->msg.session_show.session, &job->out,
			  &job->err);
}

static int run_new(struct job *job)
{
	const struct store_who who = who_of(job);

	return store_new(job->x->store, &who, job->request->msg.session_new.session,
			 span_of(job->defaults), job->max_sessions, &job->out, &job->err);
}

static int run_fork(struct job *job)
{
	const struct msg_session_fork *m = &job->request->msg.session_fork;
	const struct store_who who = who_of(job);

	return store_fork(job->x->store, &who, m->session, m->name,
			  m->has_turn ? m->turn : UINT32_MAX, job->max_sessions, &job->out,
			  &job->err);
}

static int run_rewind(struct job *job)
{
	const struct msg_session_rewind *m = &job->request->msg.session_rewind;
	const struct store_who who = who_of(job);

	return store_rewind(job->x->store, &who, m->session, m->turn, &job->out, &job->err);
}

static int run_rename(struct job *job)
{
	const struct msg_session_rename *m = &job->request->msg.session_rename;
	const struct store_who who = who_of(job);

	return store_rename(job->x->store, &who, m->session, m->name, &job->out, &job->err);
}

static int run_pin(struct job *job)
{
	const struct msg_session_pin *m = &job->request->msg.session_pin;
	const struct store_who who = who_of(job);

	return store_pin(job->x->store, &who, m->session, m->pinned, &job->out, &job->err);
}

static int run_rm(struct job *job)
{
	const struct store_who who = who_of(job);

	return store_rm(job->x->store, &who, job->request->msg.session_rm.session, &job->out,
			&job->err);
}

static int run_export(struct job *job)
{
	const struct store_who who = who_of(job);

	return store_export(job->x->store, &who, job->request->msg.session_export.session,
			    &job->out, &job->err);
}

static int run_export_kv(struct job *job)
{
	const struct store_who who = who_of(job);
	const int r = run_export(job);

	return r < 0 ? r
		     : store_ids(job->x->store, &who, job->request->msg.session_export.session,
				 job->vocab, &job->ids, &job->n_ids, &job->err);
}

static void exported(struct job *job)
{
	int r = job->result;

	if (r >= 0)
		r = transfer_send(job->request, &job->out, steal(job->ids), job->n_ids, &job->err);
	if (r < 0)
		request_error(job->request, r, &job->err);
}

static int run_import(struct job *job)
{
	const struct request *q = job->request;
	const struct msg_session_import *m = &q->msg.session_import;
	const struct store_who who = who_of(job);
	_cleanup_(freep) char *attached = NULL;
	struct span file = m->data;
	int r;

	if (m->has_data + m->has_attached != 1 ||
	    (m->has_attached && !span_is(m->attached, "data")))
		return err_set(&job->err, -EINVAL, "session_import wants data, once");
	if (m->has_attached) {
		r = attached_read(q->attached_fd, q->attached_bytes, &attached, &job->err);
		if (r < 0)
			return r;
		file = (struct span){ attached, q->attached_bytes };
	}
	return store_import(job->x->store, &who, file, m->name, job->vocab, job->vocab_size,
			    job->max_sessions, &job->out, &job->err);
}

/* The ids of what was imported, by the id that it says it has. */
static int find_imported(struct job *job)
{
	const struct store_who who = who_of(job);
	json_t *o = NULL;
	int r;

	r = pyjson_load(bytes_span(&job->out), &o, &job->err);
	if (r == 0)
		r = store_ids(job->x->store, &who,
			      span_of(json_string_value(json_object_get(o, "id"))), job->vocab,
			      &job->ids, &job->n_ids, &job->err);
	json_decref(o);
	return r;
}

static int run_import_file(struct job *job)
{
	const struct store_who who = who_of(job);
	const int r = store_import(job->x->store, &who, bytes_span(&job->file),
				   job->request->msg.session_import.name, job->vocab,
				   job->vocab_size, job->max_sessions, &job->out, &job->err);

	return r < 0 ? r : find_imported(job);
}

static void imported(struct job *job)
{
	int r = job->result;

	if (r >= 0)
		r = transfer_stored(job->request, &job->out, steal(job->ids), job->n_ids,
				    &job->err);
	if (r < 0)
		request_error(job->request, r, &job->err);
}

static int run_gc(struct job *job)
{
	const struct store_who who = who_of(job);

	return store_gc(job->x->store, &who, job->request->msg.session_gc.days, &job->out,
			&job->err);
}

static void reply(struct job *job)
{
	const bool is_file = job->request->msg.type == MSG_SESSION_EXPORT;
	const size_t most = is_file ? SESSIONS_FILE_MAX : SESSIONS_JSON_MAX;
	struct msg m = { .type = MSG_DONE };

	if (job->result >= 0 && job->out.n > most)
		job->result = err_set(&job->err, -E2BIG,
				      "the answer has %zu bytes; %zu can be sent", job->out.n,
				      most);
	if (job->result < 0) {
		request_error(job->request, job->result, &job->err);
		return;
	}
	if (is_file)
		MSG_SET(&m.done, data, bytes_span(&job->out));
	else
		MSG_SET(&m.done, json, bytes_span(&job->out));
	request_done(job->request, &m);
}

static char *defaults_of(const struct msg_session_new *m)
{
	json_t *o = json_object();
	char *text;

#define ONE(member, key, builtin)                                                                  \
	if (m->has_##member)                                                                       \
		json_object_set_new(o, #member, json_real(m->member));
	TEXTMODEL_SAMPLERS(ONE)
#undef ONE
	text = json_dumps(o, JSON_COMPACT);
	json_decref(o);
	return text;
}

int sessions_handle(struct request *q, struct err *err)
{
	static const struct {
		enum msg_type type;
		int (*run)(struct job *job);
	} verbs[] = {
		{ MSG_SESSION_LIST, run_list },	    { MSG_SESSION_SHOW, run_show },
		{ MSG_SESSION_NEW, run_new },	    { MSG_SESSION_FORK, run_fork },
		{ MSG_SESSION_REWIND, run_rewind }, { MSG_SESSION_RENAME, run_rename },
		{ MSG_SESSION_PIN, run_pin },	    { MSG_SESSION_RM, run_rm },
		{ MSG_SESSION_EXPORT, run_export }, { MSG_SESSION_IMPORT, run_import },
		{ MSG_SESSION_GC, run_gc },
	};
	const bool with_kv = q->msg.type == MSG_SESSION_EXPORT && q->msg.session_export.has_kv &&
			     q->msg.session_export.kv;
	struct job *job;
	size_t i = 0;
	int r;

	if (q->msg.type == MSG_SESSION_IMPORT && q->msg.session_import.has_pieces &&
	    q->msg.session_import.pieces && !q->msg.session_import.has_data &&
	    !q->msg.session_import.has_attached)
		return transfer_receive(q, err);
	while (verbs[i].type != q->msg.type)
		i++;
	r = job_new(q->server, q, with_kv ? run_export_kv : verbs[i].run,
		    with_kv ? exported : reply, &job, err);
	if (r < 0)
		return r;
	if (q->msg.type == MSG_SESSION_NEW && !(job->defaults = defaults_of(&q->msg.session_new))) {
		job_free(job);
		return err_set(err, -ENOMEM, "out of memory");
	}
	return push_request(job, err);
}

int sessions_import(struct request *q, struct bytes *file, struct err *err)
{
	struct job *job;
	int r;

	r = job_new(q->server, q, run_import_file, imported, &job, err);
	if (r < 0)
		return r;
	job->file = *file;
	*file = (struct bytes){ 0 };
	return push_request(job, err);
}

static int run_find(struct job *job)
{
	const struct store_who who = who_of(job);

	return store_find(job->x->store, &who, job->request->msg.cache_explain.session,
			  &job->end.session, &job->err);
}

static void found(struct job *job)
{
	struct err err = job->err;
	int r = job->result;

	if (r >= 0)
		r = explain_session(job->request, job->end.session, &err);
	if (r < 0)
		request_error(job->request, r, &err);
}

int sessions_explain(struct request *q, struct err *err)
{
	struct job *job;
	const int r = job_new(q->server, q, run_find, found, &job, err);

	return r < 0 ? r : push_request(job, err);
}

/* A turn: begun. */

static int run_begin(struct job *job)
{
	const struct request *q = job->request;
	const struct msg_generate *g = &q->msg.generate;
	const struct store_who who = who_of(job);
	_cleanup_(freep) char *attached = NULL;
	struct span messages = g->messages;
	int r;

	if (q->attached_fd >= 0) {
		r = attached_read(q->attached_fd, q->attached_bytes, &attached, &job->err);
		if (r < 0)
			return r;
		messages = (struct span){ attached, q->attached_bytes };
	}
	return store_begin(job->x->store, &who, g->session,
			   g->has_session_create && g->session_create, job->max_sessions, messages,
			   job->vocab, &job->begun, &job->err);
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
	return r < 0 ? r : push_request(job, err);
}

/* … forgotten … */

static int run_abort(struct job *job)
{
	return store_abort(job->x->store, job->end.session, job->end.turn, &job->err);
}

void sessions_abort(struct server *s, uint64_t session, uint32_t turn)
{
	struct err err = { 0 };
	struct job *job;

	if (job_new(s, NULL, run_abort, log_failure, &job, &err) < 0)
		return;
	job->end.session = session;
	job->end.turn = turn;
	push_own(job, "a turn that was given up is forgotten at the next start");
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

	r = said_whole(st, &job->answer, &finish, &job->end.n_ids);
	if (r < 0)
		return r;
	job->ids = malloc(job->end.n_ids * sizeof(*job->ids));
	if (!job->ids)
		return -ENOMEM;
	memcpy(job->ids, turn_ids(st->server->engine->turns, st->turn.rec),
	       job->end.n_ids * sizeof(*job->ids));
	job->turn = rec->id;
	job->end.session = rec->session;
	job->end.turn = rec->session_turn;
	job->end.answer = span_of(job->answer);
	job->end.finish = span_of(finish);
	job->end.ids = job->ids;
	job->end.n_prompt = rec->n_prompt;
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

void sessions_end(struct stream *st)
{
	struct turn_record *rec = st->turn.rec;
	struct err err = { 0 };
	struct job *job;
	int r;

	if (rec->session_told)
		return;
	if (!is_worth_keeping(st)) {
		rec->session_told = 1;
		sessions_abort(st->server, rec->session, rec->session_turn);
		return;
	}
	r = job_new(st->server, NULL, run_commit, committed, &job, &err);
	if (r >= 0) {
		r = fill_end(st, job);
		if (r >= 0)
			r = push(job);
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

	if (s->sessions->settled || job_new(s, NULL, run_settle, log_failure, &job, &err) < 0)
		return;
	s->sessions->settled = true;
	while (r == 0 && (rec = turns_next(turns, rec)))
		if (rec->session && rec->state != TURN_OPEN && !rec->session_told)
			r = add_live(job, rec);
	if (r < 0) {
		log_warning("sessions: out of memory: turns of an earlier life may be forgotten");
		job_free(job);
		return;
	}
	push_own(job, "turns of an earlier life may be forgotten");
}

static int run_check(struct job *job)
{
	return store_check(job->x->store, &job->err);
}

static void checked(struct job *job)
{
	log_failure(job);
	if (job->result > 0)
		log_error(
			"the session database was damaged: it is set aside as state.db.damaged-N, "
			"and %llu rows of it are kept",
			(unsigned long long)job->counts.n_kept);
}

static int open_store(struct sessions *x, const char *dir)
{
	_cleanup_(freep) char *path = NULL;
	struct job *job;
	int r;

	if (!dir)
		return err_set(&x->off, -ENODEV, "there is no state directory");
	if (asprintf(&path, "%s/state.db", dir) < 0)
		return path = NULL, err_set(&x->off, -ENOMEM, "out of memory");
	r = store_open(path, NULL, &x->store, &x->off);
	if (r < 0)
		return r;
	store_count(x->store, &x->counts);
	if (x->counts.n_set_aside > 0)
		log_error("'%s' could not be read: it is set aside as state.db.damaged-N, and %llu "
			  "rows of it are kept",
			  path, (unsigned long long)x->counts.n_kept);
	r = job_new(x->server, NULL, run_check, checked, &job, &x->off);
	if (r >= 0)
		push_own(job, "the session database is not checked");
	return 0;
}

int sessions_new(struct server *s, const char *dir, struct sessions **ret)
{
	_cleanup_(sessions_freep) struct sessions *x = calloc(1, sizeof(*x));
	int r;

	if (!x)
		return -ENOMEM;
	x->server = s;
	r = worker_new(s->loop, &x->thread);
	if (r < 0)
		return r;
	s->sessions = x; /* jobs find it there */
	r = open_store(x, dir);
	if (r < 0 && dir)
		log_error("sessions are not kept: %s", x->off.text);
	*ret = steal(x);
	return 0;
}

static void post(void *userdata)
{
	sem_post(userdata);
}

static void nothing(void *userdata)
{
	(void)userdata;
}

/* Jobs run in order: when the last one has run, all have. */
static void drain(struct sessions *x)
{
	sem_t done;

	sem_init(&done, 0, 0);
	if (x->thread && worker_push(x->thread, post, nothing, &done) == 0)
		while (sem_wait(&done) < 0 && errno == EINTR)
			;
	sem_destroy(&done);
}

struct sessions *sessions_free(struct sessions *x)
{
	if (!x)
		return NULL;
	drain(x);
	x->server->sessions = x;
	x->thread = worker_free(x->thread); /* the ends of its jobs come first */
	x->server->sessions = NULL;
	sd_event_source_disable_unref(x->idle);
	store_free(x->store);
	free(x);
	return NULL;
}

json_t *sessions_describe(const struct sessions *x)
{
	json_t *o = json_object();

	json_object_set_new(o, "state", json_string(x->store ? "open" : "off"));
	json_object_set_new(o, "text", json_string(x->off.text));
#define ONE(key, member) json_object_set_new(o, key, json_integer((json_int_t)x->counts.member))
	ONE("turns_saved", n_saved);
	ONE("turns_unfinished", n_unfinished);
	ONE("rows_damaged", n_damaged);
	ONE("databases_set_aside", n_set_aside);
	ONE("rows_kept_of_those", n_kept);
#undef ONE
	return o;
}
