/*
 * What sessions said in earlier lives, learned again after a start: one after
 * the other, the last used first, from the store's thread to the worker, for
 * each user as far as there is room. Nobody waits for it; a prompt that comes
 * before its session's turn in this finds those ids if it names the session.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/server/sessions-parts.h"
#include "daemon/text/spans.h"

#define FULL_MAX SPANS_USERS_MAX

struct recall {
	struct sessions *x;
	struct store_name *names;
	size_t n_names, at;
	uid_t full[FULL_MAX]; /* users for whom there is no more room */
	uint32_t n_full;
	/* of the one in hand */
	const struct textmodel *model;
	uint32_t *ids;
	size_t n_ids, n_prompt;
	int r;
};

static void next(struct recall *c);

static void end(struct recall *c)
{
	c->x->recalling = false;
	free(c->names);
	free(c->ids);
	free(c);
}

static bool is_full(const struct recall *c, uid_t uid)
{
	for (uint32_t i = 0; i < c->n_full; i++) {
		if (c->full[i] == uid)
			return true;
	}
	return c->n_full == FULL_MAX;
}

/* On the worker. */
static void run_learn(void *userdata)
{
	struct recall *c = userdata;
	const struct store_name *name = &c->names[c->at];
	const struct spans_who who = { name->uid, name->label };

	c->r = spans_recall(c->x->server->spans, &who, c->model->tokenizer, c->ids, c->n_prompt,
			    c->n_ids);
}

static void learned(void *userdata)
{
	struct recall *c = userdata;

	c->x->n_recalled += c->r == 0;
	if (c->r == -ENOSPC && c->n_full < FULL_MAX)
		c->full[c->n_full++] = c->names[c->at].uid;
	free(c->ids);
	c->ids = NULL;
	c->at++;
	next(c);
}

static int run_read(struct job *job)
{
	struct recall *c = job->recall;

	return store_ids_of(job->x->store, &c->names[c->at], job->vocab, &c->ids, &c->n_ids,
			    &c->n_prompt, &job->err);
}

/* One that is damaged, or was removed meanwhile, is passed over. */
static void read_home(struct job *job)
{
	struct recall *c = job->recall;
	struct server *s = c->x->server;

	if (job->result == -ECANCELED || s->leaving || !s->model || !s->worker) {
		end(c);
		return;
	}
	c->r = -ECANCELED;   /* unless it is run */
	c->model = s->model; /* stays until jobs before its end are done */
	if (!c->ids) {
		learned(c);
		return;
	}
	if (worker_push_for(s->worker, c->names[c->at].uid, run_learn, learned, c) < 0)
		end(c);
}

static void next(struct recall *c)
{
	struct err err = { 0 };
	struct job *job;

	while (c->at < c->n_names && is_full(c, c->names[c->at].uid))
		c->at++;
	if (c->at == c->n_names || c->x->server->leaving ||
	    job_new(c->x->server, NULL, run_read, read_home, &job, &err) < 0) {
		end(c);
		return;
	}
	job->recall = c;
	job_for(job, c->names[c->at].uid);
	if (job_push(job) < 0) {
		job_free(job);
		end(c);
	}
}

static int run_list(struct job *job)
{
	return store_recent(job->x->store, &job->recall->names, &job->recall->n_names, &job->err);
}

static void listed(struct job *job)
{
	job_log_failure(job);
	next(job->recall);
}

void sessions_recall(struct server *s)
{
	struct sessions *x = s->sessions;
	struct recall *c;
	struct err err = { 0 };
	struct job *job;

	if (!x || !x->store || x->recalling || x->recalled_vocab == s->model->vocab_sum)
		return;
	c = calloc(1, sizeof(*c));
	if (!c)
		return;
	c->x = x;
	if (job_new(s, NULL, run_list, listed, &job, &err) < 0) {
		free(c);
		return;
	}
	x->recalling = true;
	x->recalled_vocab = s->model->vocab_sum;
	job->recall = c;
	if (job_push(job) < 0) {
		job_free(job);
		end(c);
	}
}
