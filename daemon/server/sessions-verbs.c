/* What clients do with sessions: the store's calls, and their answers. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/server/explain.h"
#include "daemon/server/limits.h"
#include "daemon/server/sessions-parts.h"
#include "daemon/server/transfer.h"
#include "daemon/text/pyjson.h"

static int run_list(struct job *job)
{
	const struct store_who who = job_who(job);

	return store_list(job->x->store, &who, &job->out, &job->err);
}

static int run_show(struct job *job)
{
	const struct store_who who = job_who(job);

	return store_show(job->x->store, &who, job->request->msg.session_show.session, &job->out,
			  &job->err);
}

static int run_new(struct job *job)
{
	const struct store_who who = job_who(job);

	return store_new(job->x->store, &who, job->request->msg.session_new.session,
			 span_of(job->defaults), &job->limits, &job->out, &job->err);
}

static int run_fork(struct job *job)
{
	const struct msg_session_fork *m = &job->request->msg.session_fork;
	const struct store_who who = job_who(job);

	return store_fork(job->x->store, &who, m->session, m->name,
			  m->has_turn ? m->turn : UINT32_MAX, &job->limits, &job->out, &job->err);
}

static int run_rewind(struct job *job)
{
	const struct msg_session_rewind *m = &job->request->msg.session_rewind;
	const struct store_who who = job_who(job);

	return store_rewind(job->x->store, &who, m->session, m->turn, &job->out, &job->err);
}

static int run_rename(struct job *job)
{
	const struct msg_session_rename *m = &job->request->msg.session_rename;
	const struct store_who who = job_who(job);

	return store_rename(job->x->store, &who, m->session, m->name, &job->out, &job->err);
}

static int run_pin(struct job *job)
{
	const struct msg_session_pin *m = &job->request->msg.session_pin;
	const struct store_who who = job_who(job);

	return store_pin(job->x->store, &who, m->session, m->pinned, &job->out, &job->err);
}

static int run_rm(struct job *job)
{
	const struct store_who who = job_who(job);

	return store_rm(job->x->store, &who, job->request->msg.session_rm.session, &job->out,
			&job->err);
}

static int run_export(struct job *job)
{
	const struct store_who who = job_who(job);

	return store_export(job->x->store, &who, job->request->msg.session_export.session,
			    &job->out, &job->err);
}

static int run_export_kv(struct job *job)
{
	const struct store_who who = job_who(job);
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
	const struct store_who who = job_who(job);
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
			    &job->limits, &job->out, &job->err);
}

/* The ids of what was imported, by the id that it says it has. */
static int find_imported(struct job *job)
{
	const struct store_who who = job_who(job);
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
	const struct store_who who = job_who(job);
	const int r = store_import(job->x->store, &who, bytes_span(&job->file),
				   job->request->msg.session_import.name, job->vocab,
				   job->vocab_size, &job->limits, &job->out, &job->err);

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
	const struct store_who who = job_who(job);

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
	if (job->result >= 0)
		job->result = request_hold(job->request, job->out.n, &job->err);
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

/* What no turn of it could be sampled with is refused now. */
static int check_defaults(const struct msg_session_new *m, struct err *err)
{
	struct textmodel_defaults d;

#define ONE(member, key, builtin) d.member.value = m->has_##member ? m->member : builtin;
	TEXTMODEL_SAMPLERS(ONE)
#undef ONE
	return generate_check_samplers("session_new", &d, err);
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
	r = q->msg.type == MSG_SESSION_NEW ? check_defaults(&q->msg.session_new, err) : 0;
	if (r < 0)
		return r;
	r = job_new(q->server, q, with_kv ? run_export_kv : verbs[i].run,
		    with_kv ? exported : reply, &job, err);
	if (r < 0)
		return r;
	if (q->msg.type == MSG_SESSION_NEW && !(job->defaults = defaults_of(&q->msg.session_new))) {
		job_free(job);
		return err_set(err, -ENOMEM, "out of memory");
	}
	return job_push_request(job, err);
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
	return job_push_request(job, err);
}

static int run_find(struct job *job)
{
	const struct store_who who = job_who(job);

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

	return r < 0 ? r : job_push_request(job, err);
}

static int run_usage(struct job *job)
{
	return store_usage(job->x->store, &job->usage, &job->n_usage, &job->err);
}

static void counted(struct job *job)
{
	static const struct store_usage none;
	struct msg m = { .type = MSG_DONE };
	_cleanup_(freep) char *json = NULL;

	if (job->result < 0) {
		request_error(job->request, job->result, &job->err);
		return;
	}
	json = limits_report(job->request->peer, job->usage ? job->usage : &none, job->n_usage);
	if (!json) {
		request_error(job->request, -ENOMEM, NULL);
		return;
	}
	MSG_SET(&m.done, json, span_of(json));
	request_done(job->request, &m);
}

int sessions_limits(struct request *q)
{
	struct err ignored = { 0 };
	struct job *job;
	int r;

	r = job_new(q->server, q, run_usage, counted, &job, &ignored);
	return r < 0 ? r : job_push_request(job, &ignored);
}
